"""Which replica holds which relayer: each live one its part, among the relayers whose keys it has."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from facilitator.units import Address


def share_out(keys_of: Mapping[str, AbstractSet[Address]], owners: Mapping[Address, str]) -> dict[Address, str]:
    """The replica that should hold each relayer, by replica id. Every replica computes it alone, from the same rows.

    Nobody holds two more than somebody else who could have one of them. Owners keep theirs where that allows it, for
    each change of hands means looking at the chain again. Relayers that few can sign for are given first.
    """
    able = {address: [replica for replica in sorted(keys_of) if address in keys_of[replica]] for address in set().union(*keys_of.values())}
    addresses = sorted(able, key=lambda address: (len(able[address]), address))
    load = dict.fromkeys(keys_of, 0)
    given: dict[Address, str] = {}
    kept_max = max(1, len(addresses) // max(1, sum(bool(keys) for keys in keys_of.values())))
    for address in addresses:
        owner = owners.get(address)
        if owner in able[address] and load[owner] < kept_max:
            given[address] = owner
            load[owner] += 1
    for address in addresses:
        if address not in given:
            owner = owners.get(address)
            taker = min(able[address], key=lambda replica: (load[replica], replica != owner, replica))
            given[address] = taker
            load[taker] += 1
    return given

"""What a refused signature was made for: the usual mistakes of wallets and sellers, tried one after the other.

For messages only. It must never make anything valid, and it looks at no more than the domains of the tokens we know.
"""

from collections.abc import Iterable, Iterator

from facilitator.protocol.messages import Authorization
from facilitator.schemes import signatures
from facilitator.schemes.scheme import Token
from facilitator.schemes.usdc import USDC
from facilitator.units import chain_id_of

_VERSIONS = ("1", "2")


def signed_for(authorization: Authorization, signature: bytes, token: Token) -> str | None:
    """Under which other EIP-712 domain the payer's own key did sign these terms, such as `name = 'USD Coin'`. None: under none we know.

    Some twenty recoveries of 30 µs each. `signature` is normalised, and `signatures.flaw` must have found nothing.
    """
    for words, other in _domains(token):
        digest = signatures.digest_in(authorization, other)
        if signatures.recover(digest, signature) == authorization.payer:
            return words
    return None


def _domains(token: Token) -> Iterator[tuple[str, bytes]]:
    """Other domains, the likeliest mistake first: this contract's name or version, then another network."""
    here = chain_id_of(token.network)
    for name in _unique([token.name, *(known.name for known in USDC)]):
        for version in _unique([token.version, *_VERSIONS]):
            if (name, version) != (token.name, token.version):
                changes = [f"name = {name!r}"] * (name != token.name) + [f"version = {version!r}"] * (version != token.version)
                yield ", ".join(changes), signatures.domain_separator(name, version, here, token.address)
    for known in USDC:
        chain_id = chain_id_of(known.network)
        if chain_id != here:
            words = f"chainId = {chain_id}, verifyingContract = the token of {known.network}"
            yield words, signatures.domain_separator(known.name, known.version, chain_id, known.address)
            yield f"chainId = {chain_id}", signatures.domain_separator(token.name, token.version, chain_id, token.address)


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))

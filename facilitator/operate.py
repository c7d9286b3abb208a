"""What operators do to a running service's ledger from the command line: reconcile it, and take relayers in and out of use.

It talks to the database and the chains only; running services are told, and notice within a lease renewal anyway.
"""

import json
from collections.abc import Iterator, Sequence

from facilitator.app import build_client
from facilitator.clock import SystemClock
from facilitator.config import Config, NetworkSettings
from facilitator.domain.facts import CodeOf
from facilitator.errors import ConfigFault, Fault
from facilitator.finance.reconciliation import Report, reconcile
from facilitator.keyring import open_signer, parse_reference
from facilitator.protocol.address import checksum_address
from facilitator.store import relayers
from facilitator.store.db import Db
from facilitator.store.relayers import PoolRelayer, RelayerBusyError
from facilitator.units import Address, Wei, parse_address

STATUSES = {"drain": "draining", "activate": "active", "remove": "removed"}
"""What each command makes of a relayer: draining takes no new work and finishes what is open; removed is never leased."""


def network_of(config: Config, wanted: str) -> NetworkSettings:
    """The configured network of that id. Raises ConfigFault that names those there are."""
    for network in config.networks:
        if network.id == wanted:
            return network
    known = ", ".join(network.id for network in config.networks)
    raise ConfigFault("unknown_network", f"--network: expected one of {known}, got {wanted}")


async def reconcile_network(config: Config, db: Db, wanted: str, from_block: int, to_block: int | None) -> Report:
    """Hold one network's ledger against its chain. Raises Fault."""
    network = network_of(config, wanted)
    evm = build_client(network, config, SystemClock())
    try:
        head = await evm.connect(evm.deadline_in(config.settlement.verify_deadline_s))
        assets = [token.address for token in network.tokens]
        return await reconcile(db, evm, network.id, assets, from_block, head.number if to_block is None else to_block)
    finally:
        await evm.close()


def report_lines(report: Report, *, as_json: bool) -> Iterator[str]:
    """The report as people or programs read it."""
    if as_json:
        yield json.dumps(
            {
                "network": report.network,
                "fromBlock": report.from_block,
                "toBlock": report.to_block,
                "toHash": report.to_hash,
                "payments": report.payments,
                "transfers": report.transfers,
                "amounts": {checksum_address(asset): str(amount) for asset, amount in report.amounts_atomic.items()},
                "balanced": report.balanced,
                "differences": [
                    {
                        "kind": difference.kind,
                        "settlementId": str(difference.settlement_id) if difference.settlement_id else None,
                        "transaction": difference.tx_hash,
                        "logIndex": difference.log_index,
                        "expected": difference.expected,
                        "got": difference.got,
                    }
                    for difference in report.differences
                ],
            }
        )
        return
    for difference in report.differences:
        yield str(difference)
    verdict = "ledger = chain" if report.balanced else f"{len(report.differences)} differences"
    counted = f"{report.payments} payments, {report.transfers} transfers"
    yield f"{report.network}, blocks {report.from_block} to {report.to_block}: {counted}: {verdict}"


async def relayer_lines(config: Config, db: Db) -> list[str]:
    """Every relayer on record: where its key lies, its status, its coins, what is in flight, and who holds it."""
    lines = []
    for network in config.networks:
        pool = await relayers.list_relayers(db, network.id)
        balances = await _balances(config, network, pool)
        for relayer, balance_wei in zip(pool, balances, strict=True):
            kind = relayer.key_reference.partition(":")[0] if relayer.key_reference else "config"
            coins = "balance unknown" if balance_wei is None else f"{balance_wei / 10**18:.6f} coins"
            holder = f"held by {relayer.owner}" if relayer.owner else "held by nobody"
            who = f"{relayer.network}  {checksum_address(relayer.address)}  {kind:<10}  {relayer.status:<11}"
            lines.append(f"{who}  {coins}  {relayer.open_slots} open  next tx_nonce {relayer.next_tx_nonce}  {holder}")
    return lines


async def _balances(config: Config, network: NetworkSettings, pool: Sequence[PoolRelayer]) -> Sequence[Wei | None]:
    """Coins of the relayers; None for all when the chain cannot be asked."""
    if not pool:
        return []
    evm = build_client(network, config, SystemClock())
    try:
        return await evm.balances([relayer.address for relayer in pool], evm.deadline_in(config.settlement.verify_deadline_s))
    except Fault:
        return [None] * len(pool)
    finally:
        await evm.close()


async def add_relayer(config: Config, db: Db, wanted: str, reference: str, address: str | None) -> str:
    """Add a relayer by where its key lies. `address` is needed when the key cannot be read here.

    Raises ConfigFault for a reference that leads to no key, or not to that of `address`, or to an account with code;
    ChainFault when the chain cannot be asked which tx_nonces the account has used.
    """
    network, secret = network_of(config, wanted), parse_reference(reference)
    relayer = None if address is None else _parse_relayer(address)
    try:
        found = (await open_signer(secret, network, config)).address
    except ConfigFault as fault:
        if relayer is None or fault.kind != "secret_missing":
            raise
        found = relayer
    if relayer not in {None, found}:
        raise ConfigFault("wrong_key", f"{secret} leads to the key of {checksum_address(found)}, not of {address}")
    evm = build_client(network, config, SystemClock())
    try:
        await evm.connect(evm.deadline_in(config.settlement.verify_deadline_s))
        deadline = evm.deadline_in(config.settlement.verify_deadline_s)
        if (await evm.answer((CodeOf(address=found),), deadline)).replies[0].data:
            raise ConfigFault("relayer_has_code", f"{checksum_address(found)} has code (EIP-7702?): a relayer must be a plain account")
        used = [await evm.transaction_count(found, tag, deadline) for tag in ("latest", "pending")]
        balance_wei = await evm.balance(found, deadline)
    finally:
        await evm.close()
    await relayers.add(db, network.id, found, max(used), str(secret))
    money = f"it has {balance_wei / 10**18:.6f} of the gas coin" if balance_wei else "send it gas money: it has none"
    return f"{checksum_address(found)} is added on {network.id} by {secret}; {money}"


def _parse_relayer(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise ConfigFault("bad_address", f"ADDRESS: {error}") from None


async def set_relayer_status(config: Config, db: Db, wanted: str, address: str, command: str) -> str:
    """Drain, activate or remove a relayer. Raises ConfigFault when there is none, or when it still has open transactions."""
    network, relayer = network_of(config, wanted), _parse_relayer(address)
    try:
        known = await relayers.set_status(db, network.id, relayer, STATUSES[command])
    except RelayerBusyError:
        raise ConfigFault("relayer_busy", f"{address} has open transactions: drain it and wait until they are mined") from None
    if not known:
        raise ConfigFault("unknown_relayer", f"{address} was never used on {network.id}: see `facilitator relayers list`")
    return f"{checksum_address(relayer)} is {STATUSES[command]} on {network.id}; running services notice within settlement.lease_renew_s"

"""What operators do to a running service's ledger from the command line: reconcile it, and take relayers in and out of use.

It talks to the database and the chains only; running services are told, and notice within a lease renewal anyway.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from facilitator.app import build_client
from facilitator.clock import SystemClock
from facilitator.config import Config, NetworkSettings
from facilitator.domain.discrepancies import CLASSES
from facilitator.domain.facts import CodeOf
from facilitator.errors import ConfigFault, Fault
from facilitator.finance.examination import examine
from facilitator.finance.reconciliation import Report
from facilitator.keyring import open_signer, parse_reference
from facilitator.protocol.address import checksum_address
from facilitator.store import relayers
from facilitator.store.db import Db
from facilitator.store.discrepancies import Discrepancy, list_all
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A reconciliation by command."""

    report: Report
    unexplained: tuple[Discrepancy, ...]
    """What it found that nobody has explained yet."""
    explained: int
    """What it found that somebody has."""


async def reconcile_network(config: Config, db: Db, wanted: str, from_block: int, to_block: int | None) -> Look:
    """Hold one network's ledger against its chain, and record what is found. Raises Fault."""
    network = network_of(config, wanted)
    evm = build_client(network, config, SystemClock())
    try:
        head = await evm.connect(evm.deadline_in(config.settlement.verify_deadline_s))
        assets = [token.address for token in network.tokens]
        report, findings = await examine(db, evm, network.id, assets, from_block, head.number if to_block is None else to_block)
    finally:
        await evm.close()
    found = {(finding.class_, finding.subject) for finding in findings}
    unexplained = tuple(each for each in await list_all(db, network.id) if (each.class_, each.subject) in found)
    return Look(report=report, unexplained=unexplained, explained=len(findings) - len(unexplained))


def report_lines(look: Look, *, as_json: bool) -> Iterator[str]:
    """The report as people or programs read it."""
    report = look.report
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
                "balanced": not look.unexplained,
                "explained": look.explained,
                "discrepancies": [discrepancy_row(each) for each in look.unexplained],
            }
        )
        return
    for each in look.unexplained:
        yield discrepancy_line(each)
    verdict = f"{len(look.unexplained)} unexplained" if look.unexplained else "ledger = chain"
    explained = f", {look.explained} explained" if look.explained else ""
    counted = f"{report.payments} payments, {report.transfers} transfers"
    yield f"{report.network}, blocks {report.from_block} to {report.to_block}: {counted}: {verdict}{explained}"


def discrepancy_line(each: Discrepancy) -> str:
    """One discrepancy for people."""
    worth = "" if each.value_atomic is None else f", {each.value_atomic} of {each.asset}"
    state = f", explained by {each.resolved_by}: {each.note}" if each.resolved_at else ", gone" if each.gone_at else ""
    about = f"{each.class_} ({CLASSES[each.class_]}), {each.subject}{worth}, {each.age_s} s old{state}"
    return f"{each.discrepancy_id}: {about}: expected {each.expected}, got {each.got}"


def discrepancy_row(each: Discrepancy) -> dict[str, object]:
    """One discrepancy for programs."""
    return {
        "id": each.discrepancy_id,
        "class": each.class_,
        "network": each.network,
        "subject": each.subject,
        "settlementId": str(each.settlement_id) if each.settlement_id else None,
        "transaction": each.tx_hash,
        "block": each.block_number,
        "asset": each.asset,
        "valueAtomic": None if each.value_atomic is None else str(each.value_atomic),
        "ageS": each.age_s,
        "expected": each.expected,
        "got": each.got,
        "gone": each.gone_at is not None,
        "explainedBy": each.resolved_by,
        "note": each.note,
        "entry": each.resolution_entry,
    }


async def relayer_lines(config: Config, db: Db) -> list[str]:
    """Every relayer on record: where its key lies, its status, its coins, what is in flight, and who holds it."""
    lines = []
    for network in config.networks:
        pool = await relayers.list_relayers(db, network.id)
        balances = await _balances(config, network, pool)
        for relayer, balance_wei in zip(pool, balances, strict=True):
            kind = relayer.key_reference.partition(":")[0] if relayer.key_reference else "config"
            coins = "balance unknown" if balance_wei is None else f"{balance_wei / 10**18:.6f} coins"
            holder = f"held by {relayer.owner}" if relayer.leased else "held by nobody"
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


async def add_relayer(config: Config, db: Db, actor: str, wanted: str, reference: str, address: str | None) -> str:
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
    await relayers.add(db, actor, network.id, found, max(used), str(secret))
    money = f"it has {balance_wei / 10**18:.6f} of the gas coin" if balance_wei else "send it gas money: it has none"
    return f"{checksum_address(found)} is added on {network.id} by {secret}; {money}"


def _parse_relayer(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise ConfigFault("bad_address", f"ADDRESS: {error}") from None


async def set_relayer_status(config: Config, db: Db, actor: str, wanted: str, address: str, command: str) -> str:
    """Drain, activate or remove a relayer. Raises ConfigFault when there is none, or when it still has open transactions."""
    network, relayer = network_of(config, wanted), _parse_relayer(address)
    try:
        known = await relayers.set_status(db, actor, network.id, relayer, STATUSES[command])
    except RelayerBusyError:
        raise ConfigFault("relayer_busy", f"{address} has open transactions: drain it and wait until they are mined") from None
    if not known:
        raise ConfigFault("unknown_relayer", f"{address} was never used on {network.id}: see `facilitator relayers list`")
    return f"{checksum_address(relayer)} is {STATUSES[command]} on {network.id}; running services notice within settlement.lease_renew_s"

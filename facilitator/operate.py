"""What operators do to a running service's ledger from the command line: reconcile it, and take relayers in and out of use.

It talks to the database and the chains only; running services notice within a lease renewal.
"""

import json
from collections.abc import Iterator

from facilitator.app import build_client
from facilitator.clock import SystemClock
from facilitator.config import Config, NetworkSettings
from facilitator.errors import ConfigFault
from facilitator.finance.reconciliation import Report, reconcile
from facilitator.protocol.address import checksum_address
from facilitator.store import relayers
from facilitator.store.db import Db
from facilitator.units import parse_address

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
    """Every relayer on record, with who holds it."""
    lines = []
    for network in config.networks:
        for relayer in await relayers.list_relayers(db, network.id):
            holder = f"held by {relayer.owner}" if relayer.owner else "held by nobody"
            who = f"{relayer.network}  {checksum_address(relayer.address)}  {relayer.status:<11}"
            lines.append(f"{who}  next tx_nonce {relayer.next_tx_nonce}  {holder}")
    return lines


async def set_relayer_status(config: Config, db: Db, wanted: str, address: str, command: str) -> str:
    """Drain, activate or remove a relayer. Raises ConfigFault when there is none, or when it still has open transactions."""
    network = network_of(config, wanted)
    try:
        relayer = parse_address(address)
    except ValueError as error:
        raise ConfigFault("bad_address", f"ADDRESS: {error}") from None
    if command == "remove" and await relayers.open_slots(db, network.id, relayer):
        raise ConfigFault("relayer_busy", f"{address} has open transactions: drain it and wait until they are mined")
    if not await relayers.set_status(db, network.id, relayer, STATUSES[command]):
        raise ConfigFault("unknown_relayer", f"{address} was never used on {network.id}: see `facilitator relayers list`")
    return f"{checksum_address(relayer)} is {STATUSES[command]} on {network.id}; running services notice within settlement.lease_renew_s"

"""`facilitator doctor`: is everything there that payments need? Each finding says ok, warn or fail, and the remedy.

It changes nothing: it asks database and chains, and signs a transaction that is never sent.
"""

import secrets
import stat
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from facilitator.app import build_client, open_database
from facilitator.chain.evm import EvmClient
from facilitator.clock import SystemClock
from facilitator.config import Config, NetworkSettings
from facilitator.domain.screening import is_sanctioned, read_sanctioned
from facilitator.domain.transactions import Transaction
from facilitator.errors import ConfigFault, Fault
from facilitator.keyring import KeptSigner, build_signers, open_signer, parse_reference
from facilitator.protocol.address import checksum_address
from facilitator.references import KeyReference
from facilitator.settlement.screening import ListFile
from facilitator.settlement.screening import Settings as ScreeningSettings
from facilitator.store import inspection, relayers
from facilitator.store.migrate import schema_standing
from facilitator.store.relayers import PoolRelayer
from facilitator.telemetry import redact_text
from facilitator.units import Address, Gas, Wei, chain_id_of


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    verdict: Literal["ok", "warn", "fail"]
    subject: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.verdict:<4}  {self.subject:<28} {redact_text(self.what)}" + (f" -> {self.remedy}" if self.remedy else "")


async def examine(config: Config, database: AbstractAsyncContextManager[str]) -> AsyncIterator[Finding]:
    """Every check, one after the other; a check that cannot be made fails. `database` gives the database's URL."""
    pool: list[PoolRelayer] = []
    try:
        async with database as url:
            async for finding in _examine_database(config, url, pool):
                yield finding
    except Fault as fault:
        yield Finding("fail", "database", str(fault), "check [database] url and that the server runs")
    if config.screening is not None and config.screening.list_file is not None:
        yield await _examine_list(config.screening)
    for network in config.networks:
        async for finding in _examine_network(config, network, [relayer for relayer in pool if relayer.network == network.id]):
            yield finding


async def _examine_database(config: Config, url: str, pool: list[PoolRelayer]) -> AsyncIterator[Finding]:
    """The server and its schema; `pool` is filled with the relayers on record."""
    standing = await schema_standing(url)
    missing = standing.missing
    if missing and config.database.migrate:
        yield Finding("warn", "schema", f"lacks {', '.join(missing)}", "`serve` will apply them; so does `facilitator migrate`")
        return
    if missing:
        yield Finding("fail", "schema", f"lacks {', '.join(missing)}", "run `facilitator migrate`")
        return
    db = await open_database(config, url)
    try:
        seen = await inspection.inspect(db)
        for network in config.networks:
            pool += await relayers.list_relayers(db, network.id)
    finally:
        await db.close()
    yield Finding("ok", "database", f"PostgreSQL {seen.version}")
    if standing.ahead:
        yield Finding("warn", "schema", f"of a newer release: {', '.join(standing.ahead)}", "roll the replicas to that release")
    else:
        yield Finding("ok", "schema", "as this release knows it")
    if seen.missing:
        yield Finding("fail", "grants", f"missing: {', '.join(seen.missing)}", "grant them to the service's role")
    elif seen.excessive:
        yield Finding("warn", "grants", f"more than needed: {', '.join(seen.excessive)}", "revoke them: these tables are append-only")
    else:
        yield Finding("ok", "grants", "what is needed and no more")
    if seen.synchronous_commit == "off":
        yield Finding("fail", "durability", "synchronous_commit is off: a crash forgets signed transactions", "set it to on")
    skew_s = abs((datetime.now(UTC) - seen.now).total_seconds())
    verdict: Literal["ok", "warn"] = "ok" if skew_s < 2 else "warn"
    yield Finding(verdict, "clock", f"{skew_s:.1f} s from the database's", "" if skew_s < 2 else "run NTP on both machines")


async def _examine_network(config: Config, network: NetworkSettings, pool: Sequence[PoolRelayer]) -> AsyncIterator[Finding]:
    clock = SystemClock()
    for index, rpc_url in enumerate(network.rpc_urls):
        subject = f"{network.id} rpc {index}"
        try:
            client = build_client(_with_one_url(network, index), config, clock)
        except ConfigFault as fault:
            yield Finding("fail", subject, fault.message, f"check rpc_urls ({rpc_url})")
            continue
        try:
            async for finding in _examine_endpoint(config, client, network, subject):
                yield finding
        except Fault as fault:
            yield Finding("fail", subject, str(fault), "check the URL, the provider's status and your quota")
        finally:
            await client.close()
    async for finding in _examine_relayers(config, network, pool):
        yield finding


def _with_one_url(network: NetworkSettings, index: int) -> NetworkSettings:
    """The same network with one of its endpoints only."""
    return NetworkSettings(
        id=network.id, rpc_urls=(network.rpc_urls[index],), relayers=network.relayers, ws_url=None, poll_s=None, assets=network.assets
    )


async def _examine_endpoint(config: Config, client: EvmClient, network: NetworkSettings, subject: str) -> AsyncIterator[Finding]:
    head = await client.connect(client.deadline_in(5.0))
    age_s = int(datetime.now(UTC).timestamp()) - head.timestamp
    yield Finding("ok", subject, f"chain {chain_id_of(network.id)}, block {head.number}" + ("" if client.multicall else ", no Multicall3"))
    if age_s < -config.settlement.wall_skew_max_s:
        yield Finding("warn", subject, f"its newest block is {-age_s} s ahead of this machine's clock", "run NTP here")
    elif age_s > 60:
        yield Finding("warn", subject, f"its newest block is {age_s} s old", "a stale endpoint, or a chain that mines on demand")
    for token in network.tokens:
        findings = await client.token_domain(token, client.deadline_in(5.0))
        name = f"{network.id} {token.name}"
        for text in findings:
            yield Finding("fail", name, text, "correct name, version and address in [[networks.assets]]")
        if not findings:
            yield Finding("ok", name, f"{checksum_address(token.address)}, EIP-712 version {token.version}, {token.decimals} decimals")
    if config.screening is not None and network.screening_oracle is not None:
        yield await _examine_oracle(config.screening, client, network.screening_oracle, f"{network.id} screening oracle")


async def _examine_list(settings: ScreeningSettings) -> Finding:
    """The sanctions list in a file."""
    file = ListFile(settings, SystemClock())
    try:
        found = await file.load()
    except ConfigFault as fault:
        return Finding("fail", "screening list", fault.message, "correct the file: payments are held against it")
    written = datetime.fromtimestamp(file.written_at, UTC).isoformat(timespec="seconds")
    what = f"{len(found.addresses)} accounts, {checksum_address(settings.known_listed)} among them, written {written}, {found.version}"
    if file.stale:
        return Finding("fail", "screening list", what, "it is older than screening.list_age_max_s: fetch it again, or touch it")
    return Finding("ok", "screening list", what)


async def _examine_oracle(settings: ScreeningSettings, client: EvmClient, oracle: Address, subject: str) -> Finding:
    """Does the oracle list whom it must, and not just anybody?"""
    anybody = Address("0x" + secrets.token_hex(20))
    questions = [is_sanctioned(oracle, account) for account in (settings.known_listed, anybody)]
    facts = await client.answer(questions, client.deadline_in(5.0))
    known, other = (read_sanctioned(reply) for reply in facts.replies)
    shown = checksum_address(oracle)
    if known and other is False:
        return Finding("ok", subject, f"{shown} lists {checksum_address(settings.known_listed)}")
    if known is None or other is None:
        return Finding("fail", subject, f"{shown} does not answer isSanctioned(address)", "correct screening_oracle")
    if other:
        return Finding("fail", subject, f"{shown} lists {anybody}, an account made up just now", "correct screening_oracle")
    remedy = "correct screening_oracle, or screening.known_listed"
    return Finding("fail", subject, f"{shown} does not list {checksum_address(settings.known_listed)}", remedy)


async def _examine_relayers(config: Config, network: NetworkSettings, pool: Sequence[PoolRelayer]) -> AsyncIterator[Finding]:
    try:
        signers = await build_signers(network, config)
    except ConfigFault as fault:
        yield Finding("fail", f"{network.id} relayers", fault.message, "correct the reference or the key")
        return
    added: list[KeptSigner] = []
    async for finding in _examine_pool(config, network, pool, {signer.address for signer in signers}, added):
        yield finding
    references = [*network.relayers, *(parse_reference(row.key_reference) for row in pool if row.key_reference)]
    for where in _readable_by_others(references):
        yield Finding("warn", f"{network.id} relayer", f"{where} is readable by others", f"chmod 600 {where}")
    signers += added
    client = build_client(network, config, SystemClock())
    try:
        for signer in signers:
            subject = f"{network.id} {signer.address[:10]}…"
            probe = Transaction(
                chain_id=chain_id_of(network.id),
                tx_nonce=0,
                to=signer.address,
                data=b"",
                gas=Gas(21_000),
                max_fee_wei=Wei(1),
                max_priority_fee_wei=Wei(0),
            )
            signed = await signer.sign(probe)
            recovered = _recover(signed.raw)
            if recovered != signer.address:
                yield Finding("fail", subject, "signs for another address than its own", "the key or the signer is broken")
            try:
                balance_wei = await client.balance(signer.address, client.deadline_in(5.0))
            except Fault as fault:
                yield Finding("fail", subject, str(fault), "check the RPC endpoints")
                continue
            # What 100 payments of 100,000 gas each may cost at most at the lowest offer.
            enough_wei = 100 * 100_000 * config.settlement.max_fee_floor_wei
            coins = f"{checksum_address(signer.address)} has {balance_wei / 10**18:.6f} of the gas coin"
            if balance_wei == 0:
                yield Finding("fail", subject, coins, "send it gas money")
            elif balance_wei < enough_wei:
                yield Finding("warn", subject, coins, "send it gas money soon")
            else:
                yield Finding("ok", subject, coins)
    finally:
        await client.close()


async def _examine_pool(
    config: Config, network: NetworkSettings, pool: Sequence[PoolRelayer], configured: AbstractSet[Address], added: list[KeptSigner]
) -> AsyncIterator[Finding]:
    """Relayers on record; `added` is filled with those that were added at run time and whose key can be read here."""
    for relayer in pool:
        subject, shown = f"{network.id} {relayer.address[:10]}…", checksum_address(relayer.address)
        if relayer.status in {"draining", "quarantined"}:
            yield Finding("warn", subject, f"{shown} is {relayer.status}", "`facilitator relayers activate` when it may work again")
        if relayer.key_reference is None or relayer.gone or relayer.address in configured:
            continue
        try:
            signer = await open_signer(parse_reference(relayer.key_reference), network, config)
        except ConfigFault as fault:
            yield Finding("warn", subject, f"{shown} was added, but not for here: {fault.message}", "services with its key use it")
            continue
        if signer.address == relayer.address:
            added.append(signer)
        else:
            yield Finding("fail", subject, f"{relayer.key_reference} leads to another key than that of {shown}", "correct it, or remove it")


def _readable_by_others(references: Sequence[KeyReference]) -> list[str]:
    """Key files that more than their owner can read."""
    files = [Path(secret.where) for reference in references for secret in reference.secrets if secret.kind in {"file", "keystore"}]
    return [str(file) for file in files if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077]


def _recover(raw: bytes) -> str:
    """Who signed these bytes, by eth-account's reading: an oracle independent of our own encoding."""
    from eth_account import Account  # noqa: PLC0415 (half a second to load)

    return str(Account.recover_transaction(raw)).lower()

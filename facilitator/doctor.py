"""`facilitator doctor`: is everything there that payments need? Each finding says ok, warn or fail, and the remedy.

It changes nothing: it asks database and chains, and signs a transaction that is never sent.
"""

import asyncio
import importlib
import secrets
import stat
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from coincurve import PrivateKey

from facilitator.app import build_client, open_database
from facilitator.chain.evm import EvmClient
from facilitator.chain.signer import address_of
from facilitator.clock import SystemClock
from facilitator.config import Config, NetworkSettings
from facilitator.domain import abi
from facilitator.domain.facts import Call, CodeOf, Head, Probe, Question
from facilitator.domain.screening import is_sanctioned, read_sanctioned
from facilitator.domain.transactions import Transaction
from facilitator.domain.wallets import Rules
from facilitator.errors import ChainFault, ConfigFault, Fault
from facilitator.finance.seals import close_due
from facilitator.keyring import KeptSigner, build_signers, open_canary, open_signer, parse_reference
from facilitator.protocol.address import checksum_address
from facilitator.protocol.reasons import Reason
from facilitator.references import Secret
from facilitator.schemes.exact_eip3009 import ExactEip3009
from facilitator.schemes.scheme import Token
from facilitator.settlement.canary import authorize
from facilitator.settlement.screening import ListFile
from facilitator.settlement.screening import Settings as ScreeningSettings
from facilitator.store import inspection, relayers
from facilitator.store.inspection import GasSpent
from facilitator.store.migrate import schema_standing
from facilitator.store.relayers import PoolRelayer
from facilitator.telemetry import redact_text
from facilitator.units import ZERO_ADDRESS, Address, AuthNonce, Gas, Network, UnixSeconds, Wei, chain_id_of

_RUNWAY_DAYS: Final = 3
"""Gas money for fewer days is soon to be renewed."""
_FILE_S: Final = 10.0
"""A file that cannot be read within this lies on a file system that hangs."""
Spent = dict[tuple[Network, Address], GasSpent]
"""What relayers spent in the last week."""


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
    spent: Spent = {}
    for finding in (*examine_extras(config), *examine_files(config)):
        yield finding
    try:
        async with database as url:
            async for finding in _examine_database(config, url, pool, spent):
                yield finding
    except Fault as fault:
        yield Finding("fail", "database", str(fault), "check [database] url and that the server runs")
    if config.screening is not None and config.screening.list_file is not None:
        yield await _examine_list(config.screening)
    for network in config.networks:
        async for finding in _examine_network(config, network, [relayer for relayer in pool if relayer.network == network.id], spent):
            yield finding


async def _examine_database(config: Config, url: str, pool: list[PoolRelayer], spent: Spent) -> AsyncIterator[Finding]:
    """The server and its schema; `pool` is filled with the relayers on record, `spent` with their gas money of the last week."""
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
        due = await close_due(db, config.finance)
        unbudgeted = await inspection.unbudgeted(db) if config.wallets.mode == "counterfactual" else None
        for network in config.networks:
            pool += await relayers.list_relayers(db, network.id)
            spent |= {(network.id, each.relayer): each for each in (await inspection.gas_spent(db, network.id)).values()}
    finally:
        await db.close()
    yield Finding("ok", "database", f"PostgreSQL {seen.version}")
    if standing.ahead:
        yield Finding("warn", "schema", f"of a newer release: {', '.join(standing.ahead)}", "roll the replicas to that release")
    else:
        yield Finding("ok", "schema", "as this release knows it")
    for finding in judge_database(seen, datetime.now(UTC), due):
        yield finding
    if unbudgeted is not None:
        yield judge_budgets(unbudgeted)


def judge_database(seen: inspection.Inspection, now: datetime, due: datetime | None) -> Iterator[Finding]:
    """What the server says of itself, at this machine's time; `due`: since when the oldest open book day could be closed."""
    if seen.missing:
        yield Finding("fail", "grants", f"missing: {', '.join(seen.missing)}", "as the schema's owner: `select grant_roles()`")
    elif seen.excessive:
        yield Finding("warn", "grants", f"more than needed: {', '.join(seen.excessive)}", "revoke them: these tables are append-only")
    else:
        yield Finding("ok", "grants", "what is needed and no more")
    if seen.synchronous_commit == "off":
        yield Finding("fail", "durability", "synchronous_commit is off: a crash forgets signed transactions", "set it to on")
    if not (seen.encrypted or seen.local):
        yield Finding("warn", "database", "the connection is not encrypted", "add sslmode=verify-full to the URL")
    skew_s = abs((now - seen.now).total_seconds())
    verdict: Literal["ok", "warn"] = "ok" if skew_s < 2 else "warn"
    yield Finding(verdict, "clock", f"{skew_s:.1f} s from the database's", "" if skew_s < 2 else "run NTP on both machines")
    if due is not None and now - due > timedelta(days=1):
        yield Finding("warn", "daily close", f"a book day could be closed since {due:%Y-%m-%d %H:%M} UTC", "`facilitator close DAY`")


def judge_budgets(unbudgeted: Sequence[str]) -> Finding:
    """Where wallets are deployed with their first payment: for which tenants are they not, for want of a gas budget?"""
    if not unbudgeted:
        return Finding("ok", "gas budgets", "every tenant that may settle has one")
    what = f"none, so no wallet is deployed: {', '.join(unbudgeted[:10])}{' and others' if len(unbudgeted) > 10 else ''}"
    return Finding("warn", "gas budgets", what, "`facilitator tenants set TENANT --gas-usd-per-day USD`")


def examine_extras(config: Config) -> Iterator[Finding]:
    """What the configuration asks for and pip has to bring."""
    wanted = {"otel": ("[tracing]", "opentelemetry.sdk")} if config.tracing else {}
    wanted |= {"console": ("[console]", "jinja2")} if config.console else {}
    kinds = {reference.service.kind for network in config.networks for reference in network.relayers if reference.service}
    wanted |= {"aws": ("aws-kms:", "botocore")} if "aws-kms" in kinds else {}
    wanted |= {"gcp": ("gcp-kms:", "google.auth")} if "gcp-kms" in kinds else {}
    for extra, (for_what, module) in wanted.items():
        try:
            importlib.import_module(module)
        except ImportError:
            yield Finding("fail", "extras", f"{for_what} needs {module}, which is not installed", f"pip install facilitator[{extra}]")
        else:
            yield Finding("ok", "extras", f"{extra}, for {for_what}")


def examine_files(config: Config) -> Iterator[Finding]:
    """Files of secrets that more than their owner can read."""
    secrets = [secret for network in config.networks for reference in network.relayers for secret in reference.secrets]
    urls = [config.database.url, *(url for network in config.networks for url in (*network.rpc_urls, network.ws_url) if url)]
    secrets += [url.secret for url in urls if url.secret is not None]
    secrets += [secret for network in config.networks if (secret := network.canary) is not None]
    for where in _readable_by_others(secrets):
        yield Finding("warn", "secret file", f"{where} is readable by others", f"chmod 600 {where}")


async def _examine_network(config: Config, network: NetworkSettings, pool: Sequence[PoolRelayer], spent: Spent) -> AsyncIterator[Finding]:
    clock = SystemClock()
    heads: dict[int, Head] = {}
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
            async for finding in _examine_wallets(config.wallets, client, f"{subject} wallets"):
                yield finding
            heads[index] = await client.head(client.deadline_in(5.0))
        except Fault as fault:
            yield Finding("fail", subject, str(fault), "check the URL, the provider's status and your quota")
        finally:
            await client.close()
    for finding in judge_heads(network.id, heads, config.rpc.lag_max_blocks):
        yield finding
    async for finding in _examine_agreement(config, network, heads):
        yield finding
    async for finding in _examine_relayers(config, network, pool, spent):
        yield finding
    if network.canary is not None:
        yield await _examine_canary(config, network)


def judge_heads(network: Network, heads: Mapping[int, Head], lag_max_blocks: int) -> Iterator[Finding]:
    """Which endpoints are behind the furthest one?"""
    furthest = max((head.number for head in heads.values()), default=0)
    for index, head in heads.items():
        if (behind := furthest - head.number) > lag_max_blocks:
            what = f"{behind} blocks behind the furthest endpoint: it is asked last, and is no witness"
            yield Finding("warn", f"{network} rpc {index}", what, "ask its provider, or take another one")


async def _examine_agreement(config: Config, network: NetworkSettings, heads: Mapping[int, Head]) -> AsyncIterator[Finding]:
    """Do endpoints have the same block at the height that all of them have?"""
    if len(heads) < 2:
        return
    height, hashes = min(head.number for head in heads.values()), {}
    for index in heads:
        client = build_client(_with_one_url(network, index), config, SystemClock())
        try:
            block = await client.block(height, client.deadline_in(5.0))
            hashes[index] = block.block_hash if block else "none"
        except Fault as fault:
            yield Finding("fail", f"{network.id} rpc {index}", str(fault), "check the URL, the provider's status and your quota")
        finally:
            await client.close()
    if len(set(hashes.values())) > 1:
        told = ", ".join(f"rpc {index} {block_hash}" for index, block_hash in hashes.items())
        remedy = "take out of rpc_urls which is on another chain or on a fork"
        yield Finding("fail", f"{network.id} endpoints", f"they have different blocks {height}: {told}", remedy)
    else:
        yield Finding("ok", f"{network.id} endpoints", f"they agree on block {height}")


async def _examine_canary(config: Config, network: NetworkSettings) -> Finding:
    """Has its account the one unit that it pays itself?"""
    subject, token = f"{network.id} canary", network.tokens[0]
    try:
        key = await open_canary(network)
        assert key is not None
        client = build_client(network, config, SystemClock())
        try:
            call = Call(to=token.address, data=abi.balance_of(address_of(key)))
            (reply,) = (await client.answer((call,), client.deadline_in(5.0))).replies
        finally:
            await client.close()
    except Fault as fault:
        return Finding("fail", subject, str(fault), "correct networks[].canary, or check the RPC endpoints")
    shown = f"{checksum_address(address_of(key))} has {int.from_bytes(reply.data, 'big')} atomic units of {token.name}"
    if not reply.ok or int.from_bytes(reply.data, "big") < 1:
        return Finding("fail", subject, shown, "send it one")
    return Finding("ok", subject, shown)


def _with_one_url(network: NetworkSettings, index: int) -> NetworkSettings:
    """The same network with one of its endpoints only."""
    return NetworkSettings(
        id=network.id, rpc_urls=(network.rpc_urls[index],), relayers=network.relayers, ws_url=None, poll_s=None, assets=network.assets
    )


async def _examine_endpoint(config: Config, client: EvmClient, network: NetworkSettings, subject: str) -> AsyncIterator[Finding]:
    head = await client.connect(client.deadline_in(5.0))
    age_s = int(datetime.now(UTC).timestamp()) - head.timestamp
    yield Finding("ok", subject, f"chain {chain_id_of(network.id)}, block {head.number}")
    if not client.multicall:
        yield Finding("warn", subject, "Multicall3 is not on this chain", "deploy it, or pay for a transaction for each payment")
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
        if not findings:
            yield await _examine_judgement(client, token, subject)
    if config.screening is not None and network.screening_oracle is not None:
        yield await _examine_oracle(config.screening, client, network.screening_oracle, f"{network.id} screening oracle")


async def _examine_wallets(rules: Rules, client: EvmClient, subject: str) -> AsyncIterator[Finding]:
    """Can this endpoint try out what a wallet's code does, and are the factories there that are called?"""
    if rules.mode == "off":
        return
    factories = sorted(factory for network, factory in rules.factories if network == client.network and rules.mode == "counterfactual")
    questions: tuple[Question, ...] = (
        Probe(call=Call(to=ZERO_ADDRESS, data=b""), gas=Gas(50_000)),
        *(CodeOf(address=factory) for factory in factories),
    )
    try:
        _, *codes = (await client.answer(questions, client.deadline_in(5.0))).replies
    except ChainFault as fault:
        yield Finding("warn", subject, str(fault), "smart wallets get 503 by it: use another endpoint, or set smart_wallets = off")
        return
    for factory in [factory for factory, code in zip(factories, codes, strict=True) if not code.data]:
        yield Finding("fail", subject, f"no contract lies at {checksum_address(factory)}", "correct wallet_factories")
    yield Finding("ok", subject, f"{rules.mode}: their code can be tried out, {sum(bool(code.data) for code in codes)} factories")


async def _examine_list(settings: ScreeningSettings) -> Finding:
    """The sanctions list in a file."""
    file = ListFile(settings, SystemClock())
    try:
        found = await asyncio.wait_for(file.load(), _FILE_S)
    except ConfigFault as fault:
        return Finding("fail", "screening list", fault.message, "correct the file: payments are held against it")
    except TimeoutError:
        what = f"{settings.list_file} cannot be read within {_FILE_S:g} s"
        return Finding("fail", "screening list", what, "mend its file system, then restart the service")
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


async def _examine_judgement(client: EvmClient, token: Token, subject: str) -> Finding:
    """Is a payment of somebody without money refused for that, in the simulation and by the token's own word?"""
    name = f"{subject} {token.name}"
    scheme = ExactEip3009([token])
    auth_nonce = AuthNonce("0x" + secrets.token_hex(32))
    payment = authorize(PrivateKey(), token, auth_nonce, UnixSeconds(int(datetime.now(UTC).timestamp()) + 600))
    question = scheme.trial(payment)
    assert question is not None, "a key signed it, no contract"
    try:
        trial = (await client.answer((question,), client.deadline_in(5.0))).replies[0]
        refusal = scheme.judge(payment, await client.answer(scheme.ask(payment), client.deadline_in(5.0)))
    except Fault as fault:
        return Finding("fail", name, f"a payment cannot be simulated: {fault}", "use an endpoint that takes eth_call with these calls")
    if trial.ok or refusal is None or refusal.reason is not Reason.INSUFFICIENT_BALANCE:
        told = "it would be made" if refusal is None else refusal.message
        return Finding("fail", name, f"a payment without money is not refused for that: {told}", "do not pay by this endpoint")
    return Finding("ok", name, "a payment without money is refused for that")


async def _examine_relayers(config: Config, network: NetworkSettings, pool: Sequence[PoolRelayer], spent: Spent) -> AsyncIterator[Finding]:
    try:
        signers = await build_signers(network, config)
    except Fault as fault:
        yield Finding("fail", f"{network.id} relayers", fault.message, "correct the reference or the key, or see whether its service runs")
        return
    added: list[KeptSigner] = []
    async for finding in _examine_pool(config, network, pool, {signer.address for signer in signers}, added):
        yield finding
    added_by_reference = [parse_reference(row.key_reference) for row in pool if row.key_reference]
    for where in _readable_by_others([secret for reference in added_by_reference for secret in reference.secrets]):
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
            floor_wei = 100 * 100_000 * config.settlement.max_fee_floor_wei
            yield judge_balance(subject, signer.address, balance_wei, floor_wei, spent.get((network.id, signer.address)))
    finally:
        await client.close()


def judge_balance(subject: str, relayer: Address, balance_wei: int, floor_wei: int, spent: GasSpent | None) -> Finding:
    """For how long the gas money lasts; `floor_wei` is what 100 payments of 100,000 gas each may cost at the lowest offer."""
    coins = f"{checksum_address(relayer)} has {balance_wei / 10**18:.6f} of the gas coin"
    days = None
    if spent is not None and spent.wei and spent.days:
        days = balance_wei / (spent.wei / max(spent.days, 1 / 24))
        coins += f", for {days:.1f} days as in the last week"
    if balance_wei == 0:
        return Finding("fail", subject, coins, "send it gas money")
    if balance_wei < floor_wei or (days is not None and days < _RUNWAY_DAYS):
        return Finding("warn", subject, coins, "send it gas money soon")
    return Finding("ok", subject, coins)


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


def _readable_by_others(secrets: Iterable[Secret]) -> list[str]:
    """Files of secrets that more than their owner can read; passwords of keystores are secrets of their own."""
    every = [part for secret in secrets for part in (secret, secret.password) if part is not None]
    files = dict.fromkeys(Path(secret.where) for secret in every if secret.kind in {"file", "keystore"})
    return [str(file) for file in files if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077]


def _recover(raw: bytes) -> str:
    """Who signed these bytes, by eth-account's reading: an oracle independent of our own encoding."""
    from eth_account import Account  # noqa: PLC0415 (half a second to load)

    return str(Account.recover_transaction(raw)).lower()

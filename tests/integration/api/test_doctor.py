"""`facilitator doctor` on set-ups that are broken in one place each: the finding names it, with its remedy."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from coincurve import PrivateKey
from eth_account.signers.local import LocalAccount

from facilitator.chain.signer import address_of
from facilitator.config import load
from facilitator.devstack.stack import Anvil, Postgres
from facilitator.devstack.token import MULTICALL3, Token
from facilitator.doctor import Finding, examine
from facilitator.store import administration, tenants
from facilitator.store.db import Db
from facilitator.store.tenants import Scope, Tenant
from tests.fixtures.wallets import FACTORY

CONFIG = """
{tables}
[database]
url = "env:DATABASE_URL"
[[networks]]
id = "eip155:84532"
rpc_urls = [{rpc_urls}]
relayers = ["file:{directory}/relayer"]
canary = "file:{directory}/canary"
{network}
"""
Examine = Callable[..., Awaitable[list[Finding]]]


@pytest.fixture
async def doctor(
    tmp_path: Path, database_url: str, chain: Anvil, token: Token, new_relayer: Callable[..., Awaitable[LocalAccount]]
) -> Examine:
    """Examine a set-up that is well but for what is said: `await doctor(rpc_urls=…, tables=…)`."""
    relayer, canary = await new_relayer(), PrivateKey()
    await token.fund([address_of(canary)], amount_atomic=1)
    for name, key in (("relayer", bytes(relayer.key).hex()), ("canary", canary.secret.hex())):
        (tmp_path / name).write_text(key)
        (tmp_path / name).chmod(0o600)

    @asynccontextmanager
    async def database() -> AsyncIterator[str]:
        yield database_url

    async def run(rpc_urls: list[str] | None = None, tables: str = "", network: str = "") -> list[Finding]:
        file = tmp_path / "facilitator.toml"
        urls = ", ".join(f'"{url}"' for url in rpc_urls or [chain.rpc_url])
        file.write_text(CONFIG.format(tables=tables, network=network, rpc_urls=urls, directory=tmp_path))
        config = load(file, {}).config
        return [finding async for finding in examine(config, database())]

    return run


def troubles(found: list[Finding]) -> Mapping[str, Finding]:
    assert all(finding.remedy for finding in found if finding.verdict != "ok"), "a trouble without a remedy"
    return {finding.subject: finding for finding in found if finding.verdict != "ok"}


EXPECTED = {"clock", "database", "schema", "grants", "eip155:84532 rpc 0", "eip155:84532 USDC", "eip155:84532 rpc 0 USDC"}
OWNER = {"grants"}
"""The tests' login owns the tables, so it may do more than it should."""


async def test_a_set_up_that_is_well_has_no_trouble(doctor: Examine) -> None:
    found = await doctor()
    assert EXPECTED | {"eip155:84532 canary"} <= {finding.subject for finding in found}
    assert [finding for finding in found if finding.verdict == "fail"] == []
    assert set(troubles(found)) <= OWNER | {"eip155:84532 rpc 0"}, "an idle chain has an old block"


async def test_two_endpoints_of_different_chains_are_told_and_a_token_that_is_none(
    doctor: Examine, chain: Anvil, token: Token, start_chain: Callable[..., Awaitable[Anvil]]
) -> None:
    other = await start_chain()
    await other.node.call("anvil_setCoinbase", MULTICALL3)  # both begin with the same blocks, when they began in the same second
    for each in (chain, other):
        await each.node.call("anvil_mine", "0x2")
    found = troubles(await doctor([chain.rpc_url, other.rpc_url]))
    assert found["eip155:84532 endpoints"].verdict == "fail"
    assert "different blocks" in found["eip155:84532 endpoints"].what
    await other.node.call("anvil_setCode", MULTICALL3, "0x")
    await other.node.call("anvil_mine", "0x1000")
    found = troubles(await doctor([other.rpc_url, chain.rpc_url]))
    assert "blocks behind" in found["eip155:84532 rpc 1"].what
    assert found["eip155:84532 rpc 0"].remedy.startswith(("deploy it", "run NTP"))
    await other.node.call("anvil_setCode", token.asset, "0x5f5ff3")  # returns nothing, reverts never: it pays whoever asks
    found = troubles(await doctor([other.rpc_url]))
    assert any(finding.verdict == "fail" and "USDC" in subject for subject, finding in found.items()), found


async def test_a_canary_without_its_unit_and_a_relayer_without_coins_are_told(doctor: Examine, tmp_path: Path) -> None:
    for name in ("canary", "relayer"):
        (tmp_path / name).write_text(PrivateKey().secret.hex())
    found = troubles(await doctor())
    assert (found["eip155:84532 canary"].verdict, found["eip155:84532 canary"].remedy) == ("fail", "send it one")
    assert [finding.remedy for finding in found.values() if "0.000000 of the gas coin" in finding.what] == ["send it gas money"]
    (tmp_path / "canary").write_text("no key")
    assert "networks[].canary" in troubles(await doctor())["eip155:84532 canary"].remedy


async def test_tenants_for_whom_no_wallet_is_deployed_are_told(doctor: Examine, database_url: str) -> None:
    deploying = {"tables": '[settlement]\nsmart_wallets = "counterfactual"', "network": f'wallet_factories = ["{FACTORY}"]'}
    db = await Db.connect(database_url)
    try:
        for name, scopes in (("acme", ["settle"]), ("globex", ["settle"]), ("reader", ["read"])):
            await tenants.create_tenant(db, Tenant(tenant_id=name))
            await tenants.create_api_key(db, tenants.generate_key(), name, cast("list[Scope]", scopes), None)
        await administration.change_tenant(db, "cli me", "acme", {}, limits={"gasUsdPerDay": "5"})
    finally:
        await db.close()
    found = troubles(await doctor(**deploying))["gas budgets"]
    assert (found.verdict, found.what) == ("warn", "none, so no wallet is deployed: globex")
    assert "gas budgets" not in {finding.subject for finding in await doctor()}, "nobody's are deployed"


async def test_files_of_secrets_that_others_can_read_are_told(doctor: Examine, tmp_path: Path) -> None:
    (tmp_path / "canary").chmod(0o644)
    (tmp_path / "rpc").write_text("http://127.0.0.1:1")
    (tmp_path / "rpc").chmod(0o640)
    found = await doctor([f"file:{tmp_path}/rpc"])
    assert {finding.remedy for finding in found if finding.subject == "secret file"} == {
        f"chmod 600 {tmp_path}/canary",
        f"chmod 600 {tmp_path}/rpc",
    }


async def test_an_extra_that_is_not_installed_is_told(doctor: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = '[tracing]\nendpoint = "http://127.0.0.1:4318/v1/traces"'
    assert "extras" not in troubles(await doctor(tables=tables))
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    found = troubles(await doctor(tables=tables))["extras"]
    assert (found.verdict, found.remedy) == ("fail", "pip install facilitator[otel]")


async def test_gas_money_that_lasts_for_two_days_and_a_day_that_was_not_closed_are_told(
    doctor: Examine, tmp_path: Path, database_url: str
) -> None:
    relayer = address_of(PrivateKey(bytes.fromhex((tmp_path / "relayer").read_text())))
    connection: Any = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "with e as (insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at, tx_hash, admission)"
            " values ('own', 'pending', 'gas_expense:eip155:84532:settled', $1, 'eip155:84532/native', $2,"
            " now() - interval '4 days', $3, 1)"
            " returning entry_id), s as (insert into seal (seal_no, leaves, root, head, journal_through, audit_through)"
            " select 1, 1, sha256('a'), sha256('b'), entry_id, 0 from e returning seal_no)"
            " insert into sealed_leaf (source, row_id, seal_no, position, book_day, leaf)"
            " select 'journal', entry_id, 1, 0, (now() - interval '4 days')::date, sha256('c') from e, s",
            f"gas:eip155:84532:{relayer}",
            "20000000000000000000",
            "0x" + "ab" * 32,
        )
    finally:
        await connection.close()
    found = troubles(await doctor())
    assert found["daily close"].remedy == "`facilitator close DAY`"
    assert any("for 2.0 days" in finding.what and finding.remedy == "send it gas money soon" for finding in found.values())


async def test_a_database_without_schema_or_out_of_reach_is_told(doctor: Examine, postgres: Postgres, database_url: str) -> None:
    connection: Any = await asyncpg.connect(database_url)
    await connection.execute("delete from schema_migration where version = (select max(version) from schema_migration)")
    await connection.close()
    assert troubles(await doctor())["schema"].remedy == "run `facilitator migrate`"
    await postgres.drop_database(database_url.partition("@/")[2].partition("?")[0])
    assert "[database] url" in troubles(await doctor())["database"].remedy

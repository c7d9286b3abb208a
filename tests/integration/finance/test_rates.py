"""A feed on a real chain and a file are read and recorded; a stale rate gives no dollar figure, and never 0."""

import csv
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import SystemClock
from facilitator.devstack.stack import Anvil
from facilitator.domain.periods import Period
from facilitator.domain.rates import Rate
from facilitator.errors import ChainFault, ConfigFault
from facilitator.finance.export import Asked, export_report
from facilitator.finance.rates import RateKeeper, read_feed, read_file
from facilitator.finance.settings import Settings
from facilitator.store import rates
from facilitator.store.db import Db
from facilitator.units import UTC_ZONE, Address, Network
from tests.fixtures.books import NETWORK, plant

FEED = Address("0x" + "fe" * 20)
_CODE = (
    "60003560e01c"  # selector
    "63313ce5671460325760005460005260015460205260025460405260035460605260045460805260a06000f3"  # slots 0 to 4
    "5b600860005260206000f3"  # decimals(): 8
)
"""A feed whose five words are its storage slots 0 to 4."""
AT = datetime(2026, 11, 21, 8, tzinfo=UTC)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Db]:
    db = await Db.connect(database_url)
    yield db
    await db.close()


@pytest.fixture
async def evm(chain: Anvil) -> AsyncIterator[EvmClient]:
    evm = EvmClient(Network(NETWORK), RpcClient([chain.rpc_url], SystemClock()))
    yield evm
    await evm.close()


async def quote(chain: Anvil, round_id: int, answer: int, at: datetime) -> None:
    """What the feed says from now on."""
    await chain.node.call("anvil_setCode", FEED, "0x" + _CODE)
    for slot, value in enumerate((round_id, answer, 0, int(at.timestamp()), round_id)):
        await chain.node.call("anvil_setStorageAt", FEED, f"0x{slot:064x}", f"0x{value:064x}")


async def test_a_feed_on_the_chain_is_recorded_with_source_round_and_time(db: Db, chain: Anvil, evm: EvmClient, database_url: str) -> None:
    await quote(chain, 42, 312_055_000_000, AT)
    rate = await read_feed(evm, FEED)
    assert rate == Rate(source=f"chainlink:{FEED}", round="42", quoted_at=AT, usd_e8=312_055_000_000)
    assert await rates.record(db, Network(NETWORK), rate)
    assert not await rates.record(db, Network(NETWORK), rate)
    connection = await asyncpg.connect(database_url)
    assert tuple(await connection.fetchrow("select network, quoted_at, source, round, usd_e8::text from rate")) == (
        NETWORK,
        AT,
        f"chainlink:{FEED}",
        "42",
        "312055000000",
    )
    await connection.close()


async def test_what_is_no_feed_is_a_fault(chain: Anvil, evm: EvmClient) -> None:
    with pytest.raises(ChainFault, match="does not answer as a Chainlink feed"):
        await read_feed(evm, Address("0x" + "fd" * 20))
    await quote(chain, 43, 0, AT)
    with pytest.raises(ChainFault, match="worth nothing"):
        await read_feed(evm, FEED)


async def test_one_source_that_fails_keeps_no_other_waiting(db: Db, evm: EvmClient, tmp_path: Path, database_url: str) -> None:
    path = tmp_path / "eth.json"
    path.write_text(json.dumps({"usd": "3120.55", "quoted_at": "2026-11-21T09:00:00+01:00"}), "utf-8")
    keeper = RateKeeper(
        db, SystemClock(), Settings(), {Network("eip155:1"): (evm, Address("0x" + "fd" * 20)), Network("eip155:8453"): path}
    )
    for network, source in keeper._sources.items():
        await keeper._look(network, source)
    connection = await asyncpg.connect(database_url)
    assert [tuple(row) for row in await connection.fetch("select network, source, quoted_at, usd_e8::text from rate")] == [
        ("eip155:8453", "file:eth.json", AT, "312055000000")
    ]
    await connection.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"usd": 3120.55, "quoted_at": "2026-11-21T08:00:00Z"}',
        '{"usd": "3120.555555555", "quoted_at": "2026-11-21T08:00:00Z"}',
        '{"usd": "0.00", "quoted_at": "2026-11-21T08:00:00Z"}',
        '{"usd": "-1", "quoted_at": "2026-11-21T08:00:00Z"}',
        '{"usd": "3120.55", "quoted_at": "2026-11-21T08:00:00"}',
        '{"usd": "3120.55"}',
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "eth.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigFault, match=r"rate_file .*eth\.json"):
        read_file(path)


async def test_a_fresh_rate_prices_a_cost_and_a_stale_or_absent_one_leaves_it_empty(db: Db, database_url: str, tmp_path: Path) -> None:
    connection: Any = await asyncpg.connect(database_url)
    start = datetime(2025, 11, 5, tzinfo=UTC)
    await plant(connection, 4, start=start, step=timedelta(hours=1))
    await connection.close()
    for hours, usd_e8 in ((0.5, 300_000_000_000), (0.75, 310_000_000_000)):
        quoted = start + timedelta(hours=hours)
        await rates.record(db, Network(NETWORK), Rate(source="file:x", round=str(hours), quoted_at=quoted, usd_e8=usd_e8))
    asked = Asked(
        period=Period(start, start + timedelta(days=1)),
        zone=UTC_ZONE,
        tenant_id=None,
        format="csv",
        decimals={},
        rate_stale_s=4500.0,
        booking_zone=UTC_ZONE,
    )
    await export_report(db, asked, tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(encoding="utf-8", newline="") as file:
        found = [(row["eth_usd"], row["eth_usd_source"]) for row in csv.DictReader(file)]
    assert found == [("", "none"), ("3100.00000000", "file:x#0.75"), ("", "stale file:x#0.75"), ("", "stale file:x#0.75")]

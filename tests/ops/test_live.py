"""A real service under load, scraped by a real Prometheus: what it exports is sound, and every dashboard shows data."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.fixtures import prometheus
from tests.fixtures.house import AMOUNT, eventually
from tests.fixtures.service import BASE_SEPOLIA
from tests.ops.boards import unanswered
from tests.ops.watched import PAYMENTS_PER_S, Watched, visit, watched

SECONDS = 8
LOOPS = {
    "event_loop",
    "access",
    "heartbeat",
    "presence",
    "survey",
    "limits",
    "screening",
    "canary",
    "watcher",
    "dispatcher",
    "queue",
    "keeper",
    "finality",
    "aftermath",
}
SERIES_MAX = 2500


@pytest_asyncio.fixture
async def load(tmp_path_factory: pytest_asyncio.plugin.pytest.TempPathFactory, database_url: str) -> AsyncIterator[Watched]:
    async with watched(tmp_path_factory.mktemp("watched"), database_url, SECONDS) as load:
        yield load


async def test_a_loaded_service_says_the_truth_and_every_dashboard_shows_it(load: Watched) -> None:
    """One load for all of it, for it takes its time."""
    await metrics_are_well_formed(load)
    await figures_are_those_of_ledger_and_chain(load)
    await every_dashboard_has_data(load)
    await every_loop_beats_while_nothing_happens(load)
    await no_alert_fires_in_peace(load)
    await strangers_cannot_make_series(load)


async def metrics_are_well_formed(load: Watched) -> None:
    text = await load.scrape()
    done = await asyncio.to_thread(prometheus.run, "promtool", ["check", "metrics"], text.encode())
    assert (done.returncode, done.stdout) == (0, "")
    spoilt = text.replace("# HELP facilitator_http_requests_total", "# HELP facilitator_http_requests", 1)
    spoilt = spoilt.replace("facilitator_head_block", "facilitator_headBlock")
    bitten = await asyncio.to_thread(prometheus.run, "promtool", ["check", "metrics"], spoilt.encode())
    assert bitten.returncode != 0


async def figures_are_those_of_ledger_and_chain(load: Watched) -> None:
    paid = SECONDS * PAYMENTS_PER_S
    for expression, wanted in (
        ("facilitator_settled_value_atomic_total", paid * AMOUNT),
        ('facilitator_settlements_total{outcome="included"}', paid),
        ('facilitator_settle_answers_total{outcome="success"}', paid),
        ('facilitator_settle_answers_total{outcome="duplicate_settlement"}', paid),
        ('facilitator_verifications_total{outcome="valid"}', paid),
        ('sum(facilitator_http_requests_total{route="/verify",status="200"})', 2 * paid),
        ('facilitator_settle_duration_seconds_count{stage="total"}', 2 * paid),
        ('facilitator_events_total{event="settlement.resolved"}', paid),
        ("sum(facilitator_http_in_flight_requests)", 1),  # the scrape itself
        ("sum(facilitator_open_settlements)", 0),
        (f'facilitator_network_served{{network="{BASE_SEPOLIA}"}}', 1),
    ):
        await eventually(lambda expression=expression, wanted=wanted: _is(load, expression, wanted), f"{expression} = {wanted}")
    spent = await load.query('sum(facilitator_gas_spent_wei_total{outcome="settled"})')
    balance_wei = int(await load.house.call("eth_getBalance", load.house.relayer.address, "latest"), 16)
    assert float(spent[0]["value"][1]) == 10**19 - balance_wei, "all that the relayer is short of was counted"
    await eventually(lambda: _is(load, "facilitator_relayer_balance_wei", float(balance_wei)), "the relayer's balance")


async def every_dashboard_has_data(load: Watched) -> None:
    """Visits go on while a panel is silent: a series that first appears with all its counts has had no rate yet."""
    silent: dict[str, list[str]] = {}

    async def answered() -> bool:
        nonlocal silent
        if silent := await unanswered(load):
            await visit(load)
            await load.house.call("anvil_mine", "0x60")
        return not silent

    try:
        await eventually(answered, "data in every panel", poll_s=0.5)
    except AssertionError as error:
        raise AssertionError(f"{error}: {silent}") from None


async def every_loop_beats_while_nothing_happens(load: Watched) -> None:
    beaten: set[str] = set()

    async def all_beat() -> bool:
        rows = await load.query("changes(facilitator_loop_heartbeat_timestamp_seconds[20s]) > 0")
        beaten.update(row["metric"]["loop"] for row in rows)
        return beaten >= LOOPS

    try:
        await eventually(all_beat, "a beat of every loop", poll_s=0.2)
    except AssertionError as error:
        raise AssertionError(f"{error}: {LOOPS - beaten}") from None


async def no_alert_fires_in_peace(load: Watched) -> None:
    assert [row["metric"]["alertname"] for row in await load.query('ALERTS{alertstate="firing"}')] == []


async def strangers_cannot_make_series(load: Watched) -> None:
    def count(text: str) -> int:
        return sum(1 for line in text.splitlines() if not line.startswith("#"))

    base_url = load.house.services[0].base_url
    before = count(await load.scrape())
    assert before < SERIES_MAX
    for _ in range(50):
        for method in ("GET", "POST", secrets.token_hex(4).upper()):
            async with load.session.request(method, f"{base_url}/{secrets.token_hex(8)}", data=secrets.token_bytes(20)):
                pass
    headers = {"Authorization": f"Bearer {await load.house.key('test')}", "Content-Type": "application/json"}
    for network in ("eip155:1", *(f"eip155:{secrets.randbelow(10**9)}" for _ in range(20))):
        body = load.house.payment().body.replace(BASE_SEPOLIA.encode(), network.encode())
        async with load.session.post(f"{base_url}/verify", data=body, headers=headers):
            pass
    text = await load.scrape()
    assert count(text) - before < 60, "a stranger's words became labels"
    assert re.findall(r'route="([^"]+)"', text).count("unmatched") > 0


async def _is(load: Watched, expression: str, wanted: float) -> bool:
    return [float(row["value"][1]) for row in await load.query(expression)] == [wanted]

"""The gauges of the ledger: how much is open, since when, and what nobody closed."""

import time
from typing import Any

from prometheus_client import REGISTRY

from facilitator.clock import SystemClock
from facilitator.settlement.survey import Surveyor
from facilitator.store import settlements
from tests.integration.settlement.conftest import NETWORK, Rig, decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"facilitator_{name}", {"network": NETWORK, **labels})


def surveyor(rig: Rig) -> Surveyor:
    return Surveyor(tuple(rig.engine._networks.values()), rig.db, SystemClock(), rig.settings)


async def settled(rig: Rig, buyer: Any) -> None:
    asked = terms()
    assert reason(await rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None)) is None


async def test_open_settlements_are_shown_by_state_and_age_and_vanish_when_they_end(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig = await start_engine()
    look = surveyor(rig).look
    await settled(rig, await new_buyer())
    await rig.fetch("alter table settlement disable trigger all")
    before = time.time()
    await look()
    assert [gauge("open_settlements", state=state) for state in ("queued", "submitted")] == [0, 0]
    assert gauge("open_settlements_oldest_timestamp_seconds", state="queued") == 0
    unfinal = gauge("open_settlements_oldest_timestamp_seconds", state="unfinal")
    assert unfinal is not None
    assert before - 60 < unfinal <= time.time()

    copied = "insert into settlement select (jsonb_populate_record(s, $1::jsonb)).* from settlement s limit 1"
    open_row = '{"settlement_id": "%s", "auth_nonce": "0x%064x", "state": "%s", "resolved_at": null, "queued_at": "%s", "valid_before": %d}'
    for number, (state, queued_at, valid_before) in enumerate(
        [("queued", "2026-01-01T00:00:30Z", 1), ("queued", "2026-01-01T00:00:00Z", 10**12), ("submitted", "2026-01-01T00:01:00Z", 10**12)]
    ):
        await rig.fetch(copied, open_row % (f"00000000-0000-7000-8000-{number:012d}", number, state, queued_at, valid_before))
    await look()

    assert [gauge("open_settlements", state=state) for state in ("queued", "submitted")] == [2, 1]
    assert gauge("open_settlements_oldest_timestamp_seconds", state="queued") == 1767225600
    assert gauge("open_settlements_oldest_timestamp_seconds", state="submitted") == 1767225660
    assert gauge("past_deadline_settlements") == 1

    await rig.fetch("delete from settlement where settlement_id::text like '00000000-0000-7000-8000-%'")
    await look()
    assert [gauge("open_settlements", state=state) for state in ("queued", "submitted")] == [0, 0]
    assert gauge("past_deadline_settlements") == 0


async def test_an_incident_is_shown_until_it_is_closed(start_engine: StartEngine) -> None:
    rig = await start_engine()
    look = surveyor(rig).look
    await settlements.open_incident(rig.db, NETWORK, "reorganised", "a test")
    await look()
    assert gauge("open_incidents", kind="reorganised") == 1
    await rig.fetch("update incident set closed_at = now()")
    await look()
    assert gauge("open_incidents", kind="reorganised") == 0

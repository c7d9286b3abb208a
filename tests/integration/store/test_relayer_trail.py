"""Whoever takes relayers in and out of use leaves a line in the audit trail, and no key."""

import json

import asyncpg

from facilitator.store import relayers
from facilitator.store.db import Db
from facilitator.units import Address, Network

NETWORK, ADDRESS = Network("eip155:84532"), Address("0x" + "a1" * 20)
REFERENCE = "keystore:/etc/relayer.json?password=env:PASSWORD"


async def test_each_change_of_a_relayer_is_in_the_trail_with_before_and_after_and_none_without_a_change(database_url: str) -> None:
    db = await Db.connect(database_url, connections_max=2)
    try:
        await relayers.add(db, "cli ada", NETWORK, ADDRESS, 7, REFERENCE)
        await relayers.add(db, "cli ada", NETWORK, ADDRESS, 7, REFERENCE)
        for status in ("draining", "draining", "removed"):
            assert await relayers.set_status(db, "cli bob", NETWORK, ADDRESS, status)
        assert not await relayers.set_status(db, "cli bob", NETWORK, Address("0x" + "b2" * 20), "removed")
    finally:
        await db.close()
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("select kind, actor, detail from audit_event order by event_id")
    finally:
        await connection.close()

    def facts(status: str) -> dict[str, str]:
        return {"network": NETWORK, "status": status, "key_reference": REFERENCE}

    assert [(row["kind"], row["actor"], json.loads(row["detail"])) for row in rows] == [
        ("relayer_added", "cli ada", {"subject": ADDRESS, "before": None, "after": facts("active")}),
        ("relayer_changed", "cli bob", {"subject": ADDRESS, "before": facts("active"), "after": facts("draining")}),
        ("relayer_changed", "cli bob", {"subject": ADDRESS, "before": facts("draining"), "after": facts("removed")}),
    ]

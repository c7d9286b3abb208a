"""Files that are made in the background: who may have them, what they hold, and what is said when they come to nothing."""

import asyncio
import errno
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from facilitator.clock import SystemClock
from facilitator.console.exporter import DIED, SILENT_S
from facilitator.console.roles import ROLES
from facilitator.console.settings import Settings
from facilitator.devstack.stack import Postgres
from facilitator.domain.periods import parse_period
from facilitator.errors import ConfigFault, StoreFault
from facilitator.finance import export
from facilitator.finance.export import export_report, verify
from facilitator.finance.export_files import Wanted, make_file, write_hledger
from facilitator.finance.export_job import Order, _problem
from facilitator.schemes.usdc import USDC
from facilitator.store import exports
from facilitator.store.db import ConstraintViolated
from facilitator.units import UTC_ZONE, parse_zone
from tests.fixtures.busy import Busy, fill
from tests.fixtures.console import ANYWHERE, Browser, Room, open_room
from tests.fixtures.waiting import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALM: Final = Settings(listen=ANYWHERE, sign_ins_per_s=1000.0, sign_ins_burst=1000)
WHOLE: Final = {"from": "2020-01", "to": "2100-01"}


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """A console on a busy ledger."""

    room: Room
    busy: Busy
    connection: Any


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(postgres: Postgres, database_template: str) -> AsyncIterator[House]:
    url = await postgres.create_database("console_exports", database_template)
    busy = await fill(url, now=datetime.now(UTC), a_day=4)
    connection = await asyncpg.connect(url)
    async with open_room(url, CALM) as room:
        yield House(room=room, busy=busy, connection=connection)
    await connection.close()
    await postgres.drop_database("console_exports")


@pytest_asyncio.fixture(loop_scope="session")
async def halted(house: House) -> AsyncIterator[House]:
    """Nobody makes files: what is asked for waits."""
    await halt(house)
    yield house
    await house.connection.execute("update export_job set state = 'cancelled', place = null, ended_at = now() where ended_at is null")
    await go_on(house)


async def halt(house: House) -> None:
    task: Any = house.room.console._exports
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def go_on(house: House) -> None:
    await halt(house)
    house.room.console.connect(house.room.db)


async def asked(browser: Browser, **form: str) -> str:
    """The address of a file that was asked for."""
    answer = await browser.post("/exports", {"kind": "settlements", "format": "csv", **form})
    assert answer.status == 303, answer.text
    return answer.location


async def ended(house: House, path: str) -> Any:
    """The job when it moves no more."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            row = await house.connection.fetchrow("select * from export_job where export_id = $1", path.rpartition("/")[2])
            if row["ended_at"] is not None:
                return row
            await SystemClock().sleep(0.02)


async def fetched(browser: Browser, path: str) -> tuple[int, bytes, Any]:
    async with browser.session.get(f"{browser.base}{path}", allow_redirects=False) as answer:
        return answer.status, await answer.read(), answer.headers


KINDS: Final = (("settlements", "csv"), ("gas", "xlsx"), ("journal", "parquet"), ("hledger", "text"), ("audit_bundle", "zip"))


@pytest.mark.parametrize(("kind", "form"), KINDS)
async def test_each_file_is_made_as_the_command_makes_it_with_a_manifest_that_holds(
    house: House, tmp_path: Path, kind: str, form: str
) -> None:
    browser = await house.room.sign_in("admin")
    start, end = str(house.busy.closed[0]), str(house.busy.closed[5])
    period = {} if kind == "audit_bundle" else {"from": start, "to": end, "tz": "Europe/Berlin"}
    path = await asked(browser, kind=kind, format=form, **period)
    row = await ended(house, path)
    assert (row["state"], row["problem"]) == ("done", None)
    status, body, headers = await fetched(browser, f"{path}/file")
    manifest = json.loads((await browser.get(f"{path}/manifest")).text)
    assert (status, len(body)) == (200, manifest["bytes"])
    assert headers["Content-Disposition"] == f'attachment; filename="{manifest["file"]}"'
    assert 0 < manifest["rows"] == row["rows_done"]
    file = tmp_path / manifest["file"]
    file.write_bytes(body)
    assert verify(file, manifest) == []
    if kind == "audit_bundle":
        with zipfile.ZipFile(io.BytesIO(body)) as packed:
            packed.extractall(tmp_path)
        checked = subprocess.run([sys.executable, tmp_path / "verify.py"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
        return
    zone = parse_zone("Europe/Berlin")
    asked_for = parse_period(start, end, zone)
    again = tmp_path / f"again-{manifest['file']}"
    if kind in {"settlements", "gas"}:
        report = export.Asked(
            report=export.GAS if kind == "gas" else export.SETTLEMENTS, period=asked_for, zone=zone, booking_zone=UTC_ZONE, tenant_id=None,
            format=form, decimals=house.room.desk.decimals, rate_stale_s=3600.0,
        )  # fmt: skip
        assert (await export_report(house.room.db, report, again))["sums"] == manifest["sums"]
        assert manifest["is_complete"] is False or manifest["complete_through"]["time"]
    elif kind == "hledger":
        await write_hledger(house.room.db, asked_for, zone, USDC, again)
    else:
        wanted = Wanted(kind=kind, format=form, asked=period, tokens=USDC, booking_zone=UTC_ZONE, rate_stale_s=3600.0)
        (tmp_path / "again").mkdir()
        again, _ = await make_file(house.room.db, wanted, tmp_path / "again")
    assert again.read_bytes() == body
    told = await house.connection.fetchval(
        "select string_agg(kind, ' ' order by event_id) from audit_event where detail like '%' || $1 || '%'", path.rpartition("/")[2]
    )
    assert told == "export_asked export_made export_downloaded"


async def test_of_a_tenant_it_has_that_tenant_s_rows(house: House) -> None:
    browser = await house.room.sign_in("finance")
    path = await asked(browser, tenant="model-hub", **WHOLE)
    row = await ended(house, path)
    _, body, _ = await fetched(browser, f"{path}/file")
    tenants = {line.split(",")[1] for line in body.decode().splitlines()[1:]}
    assert tenants == {"model-hub"}
    assert row["rows_expected"] == row["rows_done"]


async def test_a_role_takes_what_it_may_and_the_bundle_holds_the_audit_trail(house: House) -> None:
    admin = await house.room.sign_in("admin")
    bundle, report = await asked(admin, kind="audit_bundle"), await asked(admin, **WHOLE)
    for path in (bundle, report):
        assert (await ended(house, path))["state"] == "done"
    for role in ROLES:
        browser = await house.room.sign_in(role)
        may = {"viewer": (), "finance": (report,), "auditor": (bundle, report), "admin": (bundle, report)}[role]
        for kind, path in (("audit_bundle", bundle), ("settlements", report)):
            for part in ("", "/file", "/manifest"):
                assert (await fetched(browser, path + part))[0] == (200 if path in may else 403), (role, path + part)
            assert (await browser.post(f"{path}/cancel")).status == (303 if path in may else 403)
            answer = await browser.post("/exports", {"kind": kind, **WHOLE})
            assert answer.status == (303 if path in may else 403), (role, kind)
            if path in may:
                await browser.post(f"{answer.location}/cancel")


@pytest.mark.parametrize(
    ("form", "status", "said"),
    [
        ({}, 400, "There is no file of kind"),
        ({"kind": "secrets"}, 400, "There is no file of kind"),
        ({"kind": "settlements"}, 400, "the first day is missing"),
        ({"kind": "settlements", "from": "2026-01"}, 400, "the day after the last is missing"),
        ({"kind": "settlements", "from": "2026-02", "to": "2026-01"}, 400, "the period is empty"),
        ({"kind": "settlements", "from": "soon", "to": "2026-01"}, 400, "expected"),
        ({"kind": "gas", **WHOLE, "tz": "Nowhere"}, 400, "expected"),
        ({"kind": "gas", **WHOLE, "format": "exe"}, 400, "exe cannot be written here"),
        ({"kind": "gas", **WHOLE, "colour": "red"}, 400, "There is no &#39;colour&#39; to choose."),
    ],
)
async def test_what_is_asked_wrongly_is_said_in_words(house: House, form: dict[str, str], status: int, said: str) -> None:
    answer = await (await house.room.sign_in("finance")).post("/exports", form)
    assert answer.status == status
    assert said in answer.text


async def test_too_many_wait_and_a_cancelled_one_makes_room(halted: House) -> None:
    browser = await halted.room.sign_in("finance")
    paths = [await asked(browser, **WHOLE) for _ in range(CALM.exports_waiting_max)]
    refused = await browser.post("/exports", {"kind": "gas", **WHOLE})
    assert (refused.status, f"{CALM.exports_waiting_max} files wait" in refused.text) == (429, True)
    waiting = await browser.get(paths[0])
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in waiting.text
    assert "Waits for others to be made." in waiting.text
    for part in ("file", "manifest"):
        assert (await browser.get(f"{paths[0]}/{part}")).status == 409
    assert (await browser.post(f"{paths[0]}/cancel")).location == paths[0]
    cancelled = await browser.get(paths[0])
    assert "Cancelled. Nothing of it is kept." in cancelled.text
    assert 'http-equiv="refresh"' not in cancelled.text
    assert (await browser.post("/exports", {"kind": "gas", **WHOLE})).status == 303


async def test_no_more_run_at_once_than_there_are_places_whoever_takes_them(halted: House) -> None:
    browser, db = await halted.room.sign_in("finance"), halted.room.db
    for _ in range(4):
        await asked(browser, **WHOLE)
    taken = await asyncio.gather(*(exports.claim(db, 2) for _ in range(8)), return_exceptions=True)
    assert [each for each in taken if isinstance(each, BaseException) and not isinstance(each, ConstraintViolated)] == []
    for _ in range(3):  # who lost a race asks again
        await exports.claim(db, 2)
    running = await halted.connection.fetch("select place from export_job where state = 'running' order by place")
    assert [row["place"] for row in running] == [1, 2]


async def test_a_job_whose_process_died_says_so_and_can_be_asked_for_again(halted: House) -> None:
    """As a replica that was killed leaves it: running, and silent."""
    browser, db = await halted.room.sign_in("finance", "Grace Hopper"), halted.room.db
    path = await asked(browser, tenant="model-hub", **WHOLE)
    claimed = await exports.claim(db, 2)
    assert claimed is not None
    await exports.add_chunk(db, claimed.export_id, 0, b"half a file")
    assert await exports.fail_silent(db, SILENT_S, DIED) == 0
    await halted.connection.execute(
        "update export_job set seen_at = now() - make_interval(secs => $1) where state = 'running'", SILENT_S + 1
    )
    halted.room.console.connect(db)  # another replica, or this one after its restart
    assert (await ended(halted, path))["problem"] == DIED
    page = await browser.get(path)
    assert DIED in page.text
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text.partition('action="/exports">')[2]))
    fields.pop("csrf")
    assert fields == {"kind": "settlements", "format": "csv", "tenant": "model-hub", **WHOLE}
    again = await asked(browser, **fields)
    assert (await ended(halted, again))["state"] == "done"
    assert await halted.connection.fetchval("select count(*) from export_chunk where export_id = $1", claimed.export_id) == 0
    assert not await exports.add_chunk(db, claimed.export_id, 1, b"late")


async def test_files_that_are_being_made_end_with_the_console(house: House) -> None:
    """A child that waits for a lock is killed; its job is told to have failed at once."""
    async with open_room(house.room.db.url, CALM) as other:
        await halt(house)
        browser = await other.sign_in("finance")
        blocker = await asyncpg.connect(house.room.db.url)
        async with asyncio.timeout(PATIENCE_S):
            transaction = blocker.transaction()
            await transaction.start()
            await blocker.execute("lock table journal_entry in access exclusive mode")
            path = await asked(browser, **WHOLE)
            blocked = "select count(*) from pg_locks where not granted and relation = 'journal_entry'::regclass"
            while not await house.connection.fetchval(blocked):
                await SystemClock().sleep(0.02)
            await other.console.stop()
            row = await house.connection.fetchrow("select state, problem from export_job where export_id = $1", path.rpartition("/")[2])
            await transaction.rollback()
            await blocker.close()
    assert tuple(row) == ("failed", DIED)
    await go_on(house)


async def test_what_is_cancelled_while_it_is_made_stays_cancelled(house: House) -> None:
    browser = await house.room.sign_in("finance")
    blocker = await asyncpg.connect(house.room.db.url)
    async with asyncio.timeout(PATIENCE_S), blocker.transaction():
        await blocker.execute("lock table journal_entry in access exclusive mode")
        path = await asked(browser, **WHOLE)
        while "Counts its rows." not in (await browser.get(path)).text:
            await SystemClock().sleep(0.02)
        await browser.post(f"{path}/cancel")
    await blocker.close()
    after = await asked(browser, **WHOLE)  # the place is free
    assert (await ended(house, after))["state"] == "done"
    assert (await ended(house, path))["state"] == "cancelled"
    assert await house.connection.fetchval("select count(*) from export_chunk where export_id = $1", path.rpartition("/")[2]) == 0


async def test_a_file_is_kept_for_a_while_and_its_manifest_for_ever(house: House) -> None:
    browser = await house.room.sign_in("finance")
    path = await asked(browser, **WHOLE)
    await ended(house, path)
    export_id = path.rpartition("/")[2]
    await house.connection.execute("update export_job set expires_at = now() - interval '1 s' where export_id = $1", export_id)
    assert (await browser.get(f"{path}/file")).status == 410
    page = await browser.get(path)
    assert "is gone. Its manifest stays" in page.text
    assert "Ask again" in page.text
    assert (await browser.get(f"{path}/manifest")).status == 200
    house.room.desk.exporter.wake()
    async with asyncio.timeout(PATIENCE_S):
        while await house.connection.fetchval("select count(*) from export_chunk where export_id = $1", export_id):
            await SystemClock().sleep(0.02)


async def test_a_file_that_goes_while_it_is_read_is_cut_off(house: House) -> None:
    browser = await house.room.sign_in("finance")
    path = await asked(browser, **WHOLE)
    await ended(house, path)
    await house.connection.execute("delete from export_chunk where export_id = $1", path.rpartition("/")[2])
    with pytest.raises(aiohttp.ClientError):
        await fetched(browser, f"{path}/file")


async def test_a_file_larger_than_it_may_be_is_refused_in_words(house: House) -> None:
    settings = Settings(listen=ANYWHERE, sign_ins_per_s=1000.0, sign_ins_burst=1000, export_bytes_max=20_000)
    await halt(house)
    async with open_room(house.room.db.url, settings) as small:
        browser = await small.sign_in("finance")
        for form in ("csv", "xlsx", "parquet"):
            row = await ended(house, await asked(browser, format=form, **WHOLE))
            assert row["state"] == "failed", form
            assert row["problem"].startswith("The file would be larger than 20,000 bytes"), (form, row["problem"])
    await go_on(house)


async def test_what_went_wrong_is_said_in_words(house: House) -> None:
    wanted = Wanted(kind="gas", format="csv", asked=WHOLE, tokens=USDC, booking_zone=UTC_ZONE, rate_stale_s=1.0)
    order = Order(
        database_url=house.room.db.url, export_id=UUID(int=0), person="ada", wanted=wanted, directory=None, bytes_max=1, kept_s=1.0
    )
    assert _problem(ZeroDivisionError(), order) == ("This is a bug of ours; the log has it.", 1)
    assert _problem(OSError(errno.ENOSPC, "full"), order)[0].startswith("There is no room")
    assert _problem(ConfigFault("no_xlsx", "XLSX needs an extra"), order) == ("XLSX needs an extra.", 0)
    assert _problem(StoreFault("gone", "gone"), order)[0].startswith("The database could not be read")


async def test_files_that_are_slow_to_send_keep_no_page_waiting(house: House) -> None:
    browser = await house.room.sign_in("admin")
    waiting = "select count(*) from pg_locks where not granted and relation = 'settlement'::regclass"
    async with house.connection.transaction():
        await house.connection.execute("lock table settlement in access exclusive mode")
        files = [asyncio.create_task(browser.get("/settlements.csv")) for _ in range(CALM.pages_max + 1)]
        async with asyncio.timeout(PATIENCE_S):
            while await house.connection.fetchval(waiting) < 2:
                await asyncio.sleep(0.01)
            assert (await browser.get("/audit")).status == 200
        assert await house.connection.fetchval(waiting) == 2, "the others wait for a place"
    assert [answer.status for answer in await asyncio.gather(*files)] == [200] * len(files)

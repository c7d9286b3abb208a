"""The console's pages over a busy ledger, in Debian's Chromium: what each shows, to whom, with and without scripts.

One console, one database and one browser for the whole file.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from playwright.async_api import Browser as Chromium
from playwright.async_api import BrowserContext, Page, async_playwright, expect

from facilitator.clock import SystemClock
from facilitator.console.roles import PERMISSIONS, ROLES, Role
from facilitator.console.table import ENTRIES, PAGES
from facilitator.devstack.stack import Postgres
from facilitator.domain.money import decimal_text
from facilitator.domain.periods import parse_period
from facilitator.finance import views
from facilitator.finance.earnings import Earnings
from facilitator.finance.export import Asked, export_report
from facilitator.finance.seals import seal_once
from facilitator.store import earnings, seals
from facilitator.units import UTC_ZONE, parse_zone
from tests.fixtures.busy import BASE, HOSTILE, Busy, fill
from tests.fixtures.chromium import launch_options
from tests.fixtures.console import Room, open_room
from tests.fixtures.office import open_office

pytestmark = pytest.mark.asyncio(loop_scope="session")

WAIT_MS: Final = 30_000
EXPLORER: Final = "https://explorer.example/base"
NPM: Final = Path(__file__).parents[2] / "conformance" / "npm" / "node_modules"


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """A console on a busy ledger, and a browser."""

    room: Room
    busy: Busy
    chromium: Chromium
    connection: Any
    export: str
    """Where a file that is made is shown."""

    async def open(self, role: Role = "admin", person: str = "Ada Lovelace", **how: Any) -> Page:
        """A page of a browser of its own, signed in by the link as a person does it. What the page complains of fails the test."""
        context: BrowserContext = await self.chromium.new_context(base_url=self.room.base, **how)
        context.set_default_timeout(WAIT_MS)
        page = await context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        await page.goto(f"/sign-in?token={await self.room.link(role, person)}")
        await page.get_by_role("button", name="Open the console").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        return page

    @property
    def complaints(self) -> list[str]:
        """Of pages: what the Content-Security-Policy refused, what could not be loaded, what a script threw."""
        return _COMPLAINTS

    @property
    def paths(self) -> dict[str, str]:
        """An address of every page that is read."""
        return {
            "/": "/",
            "/settlements": "/settlements",
            "/settlements/{id}": f"/settlements/{self.busy.hostile[0]}",
            "/discrepancies": "/discrepancies?status=all",
            "/discrepancies/{id}": "/discrepancies/1",
            "/days": "/days",
            "/days/{day}": f"/days/{self.busy.closed[-1]}",
            "/relayers": "/relayers",
            "/tenants": "/tenants",
            "/tenants/{id}": "/tenants/model-hub",
            "/tenants/{id}/{month}": f"/tenants/model-hub/{self.busy.today:%Y-%m}",
            "/invoices/{number}": "/invoices/1",
            "/exports": "/exports",
            "/exports/{id}": self.export,
            "/audit": "/audit",
        }

    @property
    def files(self) -> dict[str, str]:
        """An address of every file."""
        return {
            "/settlements.csv": "/settlements.csv?state=failed",
            "/exports/{id}/file": f"{self.export}/file",
            "/exports/{id}/manifest": f"{self.export}/manifest",
        }


_COMPLAINTS: Final[list[str]] = []


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(postgres: Postgres, database_template: str) -> AsyncIterator[House]:
    options = launch_options()
    url = await postgres.create_database("console_pages", database_template)
    busy = await fill(url, now=datetime.now(UTC), a_day=8)
    connection = await asyncpg.connect(url)
    async with open_room(url, explorers={BASE: f"{EXPLORER}/"}) as room, async_playwright() as playwright:
        chromium = await playwright.chromium.launch(**options, timeout=WAIT_MS)
        dark = datetime.combine(busy.closed[8], time(), UTC)
        await connection.execute("delete from rate where quoted_at >= $1 and quoted_at < $1 + interval '20 hours'", dark)
        await Earnings(room.db, SystemClock(), room.desk.finance, room.desk.decimals).count()
        browser = await room.sign_in("finance", "Grace Hopper")
        asked = {"kind": "settlements", "format": "csv", "tenant": "model-hub", "from": str(busy.closed[0]), "to": str(busy.closed[5])}
        export = (await browser.post("/exports", asked)).location
        while "Download settlements-" not in (await browser.get(export)).text:
            await SystemClock().sleep(0.02)
        yield House(room=room, busy=busy, chromium=chromium, connection=connection, export=export)
        await chromium.close()
    await connection.close()
    await postgres.drop_database("console_pages")


@pytest.fixture(autouse=True)
def no_complaints() -> None:
    _COMPLAINTS.clear()


async def test_every_page_that_is_read_is_looked_at_here(house: House) -> None:
    assert set(house.paths) | set(house.files) == {page.path for page in PAGES if page.method == "GET"}


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_opens_its_pages_and_sees_no_other(house: House, role: Role) -> None:
    browser = await house.room.sign_in(role, "Grace Hopper")
    front = await browser.get("/")
    shown = re.findall(r'<li><a href="([^"]+)"', front.text)
    assert shown == [entry.path for entry in ENTRIES if entry.needs in PERMISSIONS[role]]
    for page in PAGES:
        allowed = page.needs in PERMISSIONS[role]
        if page.method == "GET":
            assert (await browser.get({**house.paths, **house.files}[page.path])).status == (200 if allowed else 403), page.path
        elif not allowed:
            assert (await browser.post(house.paths.get(page.path, "/days/2026-01-01/close"))).status == 403, page.path


MISSING: Final = (
    "/settlements/1",
    "/discrepancies/0",
    "/discrepancies/x",
    "/days/tomorrow",
    "/days/2999-01-01",
    "/tenants/nobody",
    "/tenants/nobody/2026-01",
    "/tenants/model-hub/then",
    "/invoices/0",
    "/invoices/x",
    "/exports/x",
    "/exports/00000000-0000-0000-0000-000000000000",
    "/nothing",
)


@pytest.mark.parametrize("path", MISSING)
async def test_what_is_not_there_is_said_in_words(house: House, path: str) -> None:
    answer = await (await house.room.sign_in("finance")).get(path)
    assert answer.status == 404
    assert "<h1>Not found</h1>" in answer.text


ACCESSIBLE: Final = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]}
CONTRAST: Final = {"type": "rule", "values": ["color-contrast"]}


@pytest.mark.parametrize(("scheme", "rules"), [("light", ACCESSIBLE), ("dark", CONTRAST)], ids=["light", "dark"])
async def test_axe_finds_nothing_serious_on_any_page(house: House, scheme: Any, rules: object) -> None:
    """The policy of the console forbids scripts that are not its own; the browser is told to look away for axe's."""
    page = await house.open(color_scheme=scheme, bypass_csp=True)
    axe = (NPM / "axe-core" / "axe.min.js").read_text("utf-8")
    found = {}
    for path in [*house.paths.values(), "/settlements?state=failed&from=never"]:
        await page.goto(path)
        await page.evaluate(axe)
        report = await page.evaluate("rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", rules)
        found[path] = [
            (each["id"], each["nodes"][0]["html"][:200], each["nodes"][0].get("failureSummary"))
            for each in report["violations"]
            if each["impact"] in {"serious", "critical"}
        ]
    assert {path: violations for path, violations in found.items() if violations} == {}
    await page.context.close()


async def test_no_page_is_wider_than_a_narrow_screen_and_none_breaks_the_policy(house: House) -> None:
    page = await house.open(viewport={"width": 360, "height": 740})
    wide = {}
    for path in house.paths.values():
        await page.goto(path)
        wide[path] = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == dict.fromkeys(wide, 0)
    assert house.complaints == []
    await page.context.close()


async def test_a_filter_lives_in_the_url_and_its_totals_are_of_the_whole_filter(house: House) -> None:
    page = await house.open()
    await page.goto("/settlements")
    await page.get_by_label("State").select_option("finalized")
    await expect(page).to_have_url(re.compile(r"/settlements\?state=finalized$"))
    await page.get_by_label("Tenant").fill("model-hub")
    await page.get_by_role("button", name="Show").click()
    await expect(page).to_have_url(re.compile(r"tenant=model-hub"))
    assert parse_qs(urlsplit(page.url).query) == {"state": ["finalized"], "tenant": ["model-hub"]}
    await expect(page.locator("#found .state").first).to_be_visible()
    assert set(await page.locator("#found tbody:not(.totals) .state").all_inner_texts()) == {"finalized"}
    said = {
        (row[4], row[1], row[0], row[2].replace(",", ""))
        for row in [await each.locator("th, td").all_inner_texts() for each in await page.locator("tbody.totals tr").all()]
    }
    rows = await house.connection.fetch(
        "select network, count(*) as number, sum(amount_atomic)::bigint as amount from settlement"
        " where state = 'finalized' and tenant_id = 'model-hub' group by network"
    )
    names = {"eip155:8453": "Base", "eip155:84532": "Base Sepolia"}
    assert said == {
        (names[row["network"]], "paid, final", str(row["number"]), f"{row['amount'] // 10**6}.{row['amount'] % 10**6:06}") for row in rows
    }
    await page.reload()
    assert set(await page.locator("#found tbody:not(.totals) .state").all_inner_texts()) == {"finalized"}
    assert house.complaints == []
    await page.context.close()


async def test_pages_of_the_table_show_every_settlement_once_without_scripts(house: House) -> None:
    page = await house.open("viewer", java_script_enabled=False)
    await page.goto("/settlements")
    seen: list[str] = []
    while len(seen) <= house.busy.settlements:
        seen += await page.locator("tbody:not(.totals) th a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        following = page.get_by_role("link", name="Next page")
        if not await following.count():
            break
        await following.click()
    rows = await house.connection.fetch("select settlement_id from settlement order by queued_at desc, settlement_id desc")
    assert seen == [f"/settlements/{row['settlement_id']}" for row in rows]
    await page.context.close()


async def test_every_page_and_form_works_without_scripts(house: House) -> None:
    page = await house.open(java_script_enabled=False)
    for path in house.paths.values():
        answer = await page.goto(path)
        assert answer is not None
        assert answer.status == 200
        await expect(page.get_by_role("heading", level=1)).to_be_visible()
    await page.goto("/settlements")
    await page.get_by_label("State").select_option("failed")
    await page.get_by_role("button", name="Show").click()
    assert urlsplit(page.url).query == "state=failed"
    assert set(await page.locator("tbody:not(.totals) .state").all_inner_texts()) == {"failed"}
    await page.get_by_role("button", name="Dark").click()
    assert urlsplit(page.url).query == "state=failed"
    assert await page.locator("html").get_attribute("data-theme") == "dark"
    await page.get_by_role("button", name="Sign out", exact=True).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    await page.context.close()


async def test_a_wrong_filter_is_told_beside_its_field(house: House) -> None:
    page = await house.open()
    await page.goto("/settlements?from=yesterday&payer=0x1")
    await expect(page.get_by_label("From", exact=True)).to_have_attribute("aria-invalid", "true")
    await expect(page.locator("#found")).to_contain_text("expected a date, a month")
    browser = await house.room.sign_in("viewer")
    assert (await browser.get("/settlements?colour=red")).status == 400
    await page.context.close()


async def test_what_a_buyer_names_is_shown_as_text(house: House) -> None:
    page = await house.open()
    await page.goto(f"/settlements?from={house.busy.today - timedelta(days=1)}")
    shown = await page.locator("td.clip").all_inner_texts()
    assert set(HOSTILE) <= set(shown)
    for settlement_id, resource in zip(house.busy.hostile, HOSTILE, strict=True):
        await page.goto(f"/settlements/{settlement_id}")
        await expect(page.get_by_text(resource, exact=True)).to_be_visible()
        assert await page.title() == f"Settlement {settlement_id} · Facilitator"
    assert house.complaints == []
    await page.context.close()


async def test_one_settlement_shows_all_that_is_on_record(house: House) -> None:
    row = await house.connection.fetchrow(
        "select s.*, e.entry_id, i.cost_wei from settlement s"
        " join journal_entry e on e.settlement_id = s.settlement_id and e.phase = 'posted'"
        " join slot_item i on i.settlement_id = s.settlement_id where s.state = 'finalized' order by s.settlement_id limit 1"
    )
    text = (await (await house.room.sign_in("viewer")).get(f"/settlements/{row['settlement_id']}")).text
    cost = row["cost_wei"]
    for fact in (row["tx_hash"], row["block_hash"], row["auth_nonce"], row["tenant_id"], str(row["entry_id"]), row["request_id"]):
        assert fact in text
    assert f'value="0.{cost:018}"' in text
    assert re.findall(r'<div class="what"><span>(\w+)</span>', text) == ["queued", "submitted", "included", "finalized"]
    assert "USD, at" in text


async def test_a_proof_is_linked_to_an_explorer_where_one_is_configured_and_only_there(house: House) -> None:
    """The fixture has one for Base, none for Base Sepolia."""
    browser = await house.room.sign_in("viewer")
    proofs = await house.connection.fetch(
        "select distinct on (network) settlement_id, network, tx_hash from settlement where log_index is not null"
    )
    assert len(proofs) == 2
    for row in proofs:
        page = (await browser.get(f"/settlements/{row['settlement_id']}")).text
        link = f'<a class="small" href="{EXPLORER}/tx/{row["tx_hash"]}" rel="noreferrer">'
        assert (link in page) == (row["network"] == BASE)
        assert page.count("https://explorer.example") == (1 if row["network"] == BASE else 0)
    assert "explorer.example" not in str((await browser.get("/")).headers)


async def test_the_overview_is_what_the_ledger_says(house: House) -> None:
    page = await house.open("viewer")
    since = datetime.combine(house.busy.today - timedelta(days=29), datetime.min.time(), UTC)
    paid = await house.connection.fetch(
        "select network, count(*) as number, sum(amount_atomic)::bigint as amount from settlement"
        " where state in ('included', 'finalized') and queued_at >= $1 group by network order by number desc",
        since,
    )
    tiles = await page.locator(".tiles > div").all_inner_texts()
    for tile, row in zip(tiles, paid, strict=False):
        assert f"{row['amount'] // 10**6:,}.{row['amount'] % 10**6:06}" in tile.replace("\n", "")
        assert f"{row['number']} payments" in tile
    chart = page.get_by_role("img", name=re.compile(r"^Paid per day, USDC on Base A bar"))
    by_day: Counter[str] = Counter()
    for each in await house.connection.fetch(
        "select queued_at, amount_atomic::bigint as amount from settlement"
        " where state in ('included', 'finalized') and network = 'eip155:8453' and queued_at >= $1",
        since,
    ):
        by_day[f"{each['queued_at']:%a} {each['queued_at'].day} {each['queued_at']:%b %Y}"] += each["amount"]
    told = [title.split(": ") for title in await chart.locator("rect title").all_text_contents()]
    assert {day: figure for day, figure in told if figure != "0.000000 USDC"} == {
        day: f"{amount // 10**6:,}.{amount % 10**6:06} USDC" for day, amount in by_day.items()
    }
    await page.context.close()


async def test_the_overview_has_fees_gas_and_margin_of_each_day_and_says_what_has_no_rate(house: House) -> None:
    """One day of the fixture is without rates: it and the period have no figure, and the tiles say how many are lacking."""
    earned = await earnings.earned(house.room.db, UTC_ZONE, house.busy.closed[0], house.busy.today)
    dark = [each for each in earned if each.margin_micros is None]
    assert house.busy.closed[8] in {each.day for each in dark}
    assert len(earned) >= len(house.busy.closed)
    page = (await (await house.room.sign_in("viewer")).get("/")).text
    for each in earned:
        row = re.search(rf'<a href="/settlements\?from={each.day}&amp.*?</tr>', page, re.DOTALL)
        if row is None:
            continue  # nothing was asked for on that day
        known = [each.fees_micros, each.gas_micros, each.margin_micros]
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row[0])[-7:-4]
        assert [_value_of(cell) for cell in cells] == [None if micros is None else decimal_text(micros, 6) for micros in known], each.day
    today = re.search(rf'<a href="/settlements\?from={house.busy.today}&amp.*?</tr>', page, re.DOTALL)
    assert today is not None
    assert today[0].count(">open</td>") == 3
    unrated = sum(each.unrated for each in earned)
    assert unrated > 0
    tile = page[page.index("<dt>Gas, USD</dt>") : page.index("<dt>Margin, USD</dt>")]
    assert "not known" in tile
    assert f'<span class="figure">{unrated}</span> transactions without a fresh dollar rate' in tile
    assert "not known" in page[page.index("<dt>Margin, USD</dt>") : page.index("<dt>Undecided now</dt>")]


def _value_of(cell: str) -> str | None:
    found = re.search(r'value="([^"]*)"', cell)
    return None if found is None else found[1]


async def test_an_invoice_is_shown_as_it_was_issued(house: House) -> None:
    page = await house.open("viewer")
    await page.goto("/invoices/1")
    document = json.loads(await house.connection.fetchval("select document from invoice where number = 1"))
    shown = " ".join((await page.locator("main").inner_text()).split()).replace(",", "")
    for figure in (document["total"], document["receivable"]["closing"], *(line["charge"] for line in document["lines"])):
        assert figure in shown
    assert document["tenant"] in shown
    await page.context.close()


async def test_a_tenant_s_account_is_the_statement_of_the_books(house: House) -> None:
    today = datetime.now(UTC).date()
    first = today.replace(day=1, year=today.year - 1)
    found = await views.statement(house.room.db, "receivable:model-hub", parse_period(f"{first}", f"{today + timedelta(days=1)}", UTC_ZONE))
    owed, expected = 0, [("Opening balance", "0.000000")]
    for movement in found.movements:
        owed += movement.amount_atomic
        expected.append((str(movement.reference), decimal_text(owed, 6)))
    expected.append(("Closing balance", decimal_text(owed, 6)))
    assert (len(expected), expected[-2][0], found.opening, found.closing) == (4, "wire 4471", {}, {"USD": owed})
    page = await house.open("viewer")
    await page.goto("/tenants/model-hub")
    rows = await page.get_by_role("region", name="Account of the last twelve months").locator("tbody tr, tfoot tr").all()
    assert [(await row.locator("th").inner_text(), await row.locator("data").last.get_attribute("value")) for row in rows] == expected
    await page.context.close()


async def test_a_discrepancy_is_explained_and_a_day_closed_reopened_by_two_and_closed_again(house: House) -> None:
    """The whole way: a day does not close while something is unexplained; whoever asked for the reopening cannot confirm it."""
    day = house.busy.closed[-1] + timedelta(days=1)
    ada = await house.open("finance", "Ada Lovelace")
    await ada.goto(f"/days/{day}")
    await expect(ada.locator(".notice.warn")).to_contain_text("unexplained: R4")
    await ada.get_by_role("button", name="Close this day").click()
    await expect(ada.locator(".notice.bad")).to_contain_text("stays open")

    for note in ("The buyer's own wallet was quicker.", "Topped up by treasury, wire 4471."):
        await ada.goto("/discrepancies")
        await ada.locator("tbody th a").first.click()
        if await ada.get_by_label("Book the difference").count():
            await ada.get_by_label("Book the difference").check()
        await ada.get_by_label("Note").fill(note)
        await ada.get_by_role("button", name="Explain").click()
        await expect(ada.locator(".notice.good")).to_contain_text(note)
    await ada.goto("/discrepancies")
    await expect(ada.locator(".empty")).to_contain_text("Nothing to explain")
    booked = await house.connection.fetchrow(
        "select credit, debit, amount_atomic from journal_entry where reference like 'discrepancy %' limit 1"
    )
    assert booked["amount_atomic"] == 50_000_000_000_000_000
    async with house.room.db.transaction(long=True) as session:  # as the sealer does every few seconds
        await seals.lock(session)
        while await seal_once(session, UTC_ZONE) is not None:
            pass

    await ada.goto(f"/days/{day}")
    await ada.get_by_role("button", name="Close this day").click()
    await expect(ada.locator(".notice.good")).to_contain_text("Closed by Ada Lovelace")
    await ada.get_by_text("Ask that this day be reopened").click()
    await ada.get_by_label("Reason").fill("A credit note is missing.")
    await ada.get_by_role("button", name="Ask").click()
    await expect(ada.locator(".notice.warn")).to_contain_text("Another person must confirm")
    await expect(ada.get_by_role("button", name="Reopen this day")).to_have_count(0)

    bob = await house.open("viewer", "Bob")
    await bob.goto(f"/days/{day}")
    await expect(bob.get_by_role("button", name="Reopen this day")).to_have_count(0)
    grace = await house.open("finance", "Grace Hopper", java_script_enabled=False)
    await grace.goto(f"/days/{day}")
    await expect(grace.locator(".notice.warn")).to_contain_text("A credit note is missing.")
    await grace.get_by_role("button", name="Reopen this day").click()
    await expect(grace.get_by_role("button", name="Close this day")).to_be_visible()
    await grace.get_by_role("button", name="Close this day").click()
    await expect(grace.locator(".notice.good")).to_contain_text("Closed by Grace Hopper")
    events = await house.connection.fetch("select kind, actor, second from day_event where day = $1 order by event_id", day)
    assert [tuple(event) for event in events] == [
        ("closed", "Ada Lovelace", None),
        ("reopened", "Ada Lovelace", "Grace Hopper"),
        ("closed", "Grace Hopper", None),
    ]
    for page in (ada, bob, grace):
        await page.context.close()


async def test_a_file_has_the_rows_of_the_filter_as_the_api_has_them_and_is_harmless(house: House) -> None:
    page = await house.open("auditor", "Eve")
    query = f"from={house.busy.today - timedelta(days=1)}&state=finalized"
    await page.goto(f"/settlements?{query}")
    async with page.expect_download() as coming:
        await page.get_by_role("link", name="Download CSV").click()
    file = Path(await (await coming.value).path()).read_bytes().decode()
    async with open_office(house.room.db.url, decimals=house.room.desk.decimals) as office:
        status, told = await office.ask("GET", f"/finance/settlements/file?{query}&format=csv", scope="finance")
        assert (status, told) == (200, file)
    rows = list(csv.DictReader(io.StringIO(file, newline="")))
    seen = await page.locator("tbody:not(.totals) th a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert [f"/settlements/{row['settlement_id']}" for row in rows] == seen
    resources = {UUID(row["settlement_id"]): row["resource"] for row in rows}
    named = [resources[settlement_id] for settlement_id in house.busy.hostile]
    assert named == [text if text.startswith("<") else f"'{text}" for text in HOSTILE]
    trail = await house.connection.fetch("select actor, detail from audit_event where kind = 'settlements_downloaded' and actor = 'Eve'")
    assert [json.loads(event["detail"])["filter"]["state"] for event in trail] == ["finalized"]
    await page.context.close()


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
async def test_a_file_is_asked_for_seen_to_be_made_and_taken(house: House, tmp_path: Path, scripts: bool) -> None:  # noqa: FBT001
    """Nobody loads a page by hand: htmx asks again, or the browser does."""
    page = await house.open("finance", "Grace Hopper", java_script_enabled=scripts)
    await page.goto("/exports")
    start, end = house.busy.closed[0], house.busy.closed[5]
    await page.get_by_label("From").fill(str(start))
    await page.get_by_label("To, excluded").fill(str(end))
    await page.get_by_label("Time zone").fill("Europe/Berlin")
    await page.get_by_role("button", name="Make the file").click()
    link = page.get_by_role("link", name="Download settlements-")
    await expect(link).to_be_visible(timeout=WAIT_MS)
    async with page.expect_download() as coming:
        await link.click()
    file = Path(await (await coming.value).path())
    zone = parse_zone("Europe/Berlin")
    asked = Asked(
        period=parse_period(str(start), str(end), zone),
        zone=zone,
        booking_zone=UTC_ZONE,
        tenant_id=None,
        format="csv",
        decimals=house.room.desk.decimals,
        rate_stale_s=house.room.desk.finance.rate_stale_s,
    )
    await export_report(house.room.db, asked, tmp_path / "detail.csv")
    assert file.read_bytes() == (tmp_path / "detail.csv").read_bytes()
    await page.goto("/exports")
    await expect(page.get_by_role("table", name="What was taken").get_by_role("row").nth(1)).to_contain_text("Grace Hopper")
    await page.context.close()


async def test_htmx_is_the_pinned_package_byte_for_byte(house: House) -> None:
    assert house.room.desk.assets["htmx.min.js"].body == (NPM / "htmx.org" / "dist" / "htmx.min.js").read_bytes()

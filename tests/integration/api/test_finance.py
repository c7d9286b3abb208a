"""The finance routes over a real port and a planted ledger: what they say is what is on record, and who does what is told."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator

from facilitator.api.openapi import DOCUMENT
from facilitator.devstack.stack import Postgres
from facilitator.domain.periods import Period
from facilitator.finance import views
from facilitator.finance.export import GAS, SETTLEMENTS, Asked, Report, export_report
from facilitator.finance.seals import Sealer
from facilitator.protocol.address import checksum_address
from facilitator.store import administration, tenants
from facilitator.units import UTC_ZONE, Address, Network
from tests.fixtures.books import NETWORK, RELAYER, USDC, plant
from tests.fixtures.office import Office, open_office

START = datetime(2025, 11, 1, tzinfo=UTC)
COUNT = 400
STEP = timedelta(minutes=10)
DECIMALS = {(Network(NETWORK), Address(USDC)): 6}
STATES = {"finalized": 320, "failed": 40, "external": 40}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(postgres: Postgres, database_template: str) -> AsyncIterator[Office]:
    """One ledger for the whole file; tests that change it plant what they change."""
    url = await postgres.create_database("finance_api", database_template)
    connection = await asyncpg.connect(url)
    await plant(connection, COUNT, start=START, step=STEP)
    await connection.execute(
        "insert into reconciliation_run (network, from_block, to_block, to_hash, found, background) values ($1, 0, 1000000, 'x', 0, true)",
        NETWORK,
    )
    await connection.execute("update settlement set resource = '=HYPERLINK(\"https://evil.example\")' where log_index = 1")
    async with open_office(url, decimals=DECIMALS) as office:
        await Sealer(office.db, office.clock, office.finance).seal()
        yield office
    await connection.close()
    await postgres.drop_database("finance_api")


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ask(office: Office, path: str, scope: Any = "finance", **query: str) -> Any:
    from urllib.parse import urlencode  # noqa: PLC0415

    status, told = await office.ask("GET", f"{path}?{urlencode(query)}", scope=scope)
    assert status == 200, (path, told)
    return told


async def test_what_is_answered_is_what_the_description_says(office: Office) -> None:
    settlement_id = (await ask(office, "/finance/settlements", limit="1"))["settlements"][0]["id"]
    paths = cast("dict[str, Any]", DOCUMENT["paths"])
    looked = 0
    for path, item in paths.items():
        if not path.startswith("/finance/") or "get" not in item or path.endswith(("/file", "/report", "invoices/{id}")):
            continue
        if path == "/finance/discrepancies/{id}":
            continue
        query = {"from": "2025-11-01", "to": "2025-12-01", "account": f"gas:{NETWORK}:{RELAYER}"}
        wanted = {each["name"] for each in item["get"]["parameters"] if each["in"] == "query" and each["required"]}
        told = await ask(office, path.replace("{id}", settlement_id), "admin", **{name: query[name] for name in wanted})
        name = item["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        Draft202012Validator({"$ref": name, "components": DOCUMENT["components"]}).validate(told)
        looked += 1
    assert looked == 13


async def test_pages_of_a_filter_are_the_whole_filter_and_its_totals_are_their_sum(office: Office) -> None:
    for query in (
        {},
        {"state": "failed"},
        {"tenant": "tenant-1", "state": "finalized"},
        {"payer": "0x" + "7".rjust(40, "a")},
        {"pay_to": "0x" + "2".rjust(40, "b"), "from": "2025-11-02"},
        {"amount_min": "1100", "amount_max": "1199"},
        {"from": "2025-11-01T12:00:00Z", "to": "2025-11-02"},
        {"network": "base-sepolia", "asset": checksum_address(Address(USDC))},
        {"tx": "0x" + f"{17:064x}"},
        {"state": "queued"},
    ):
        rows: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = await ask(office, "/finance/settlements", limit="37", **query, **cursor)
            rows += page["settlements"]
            assert len(page["settlements"]) <= 37
            if page["nextCursor"] is None:
                break
            cursor = {"cursor": page["nextCursor"]}
        assert len({row["id"] for row in rows}) == len(rows)
        assert [row["queuedAt"] for row in rows] == sorted((row["queuedAt"] for row in rows), reverse=True)
        sums: dict[str, list[int]] = {}
        for row in rows:
            total = sums.setdefault(row["state"], [0, 0])
            total[0] += 1
            total[1] += int(row["amount"])
        told = (await ask(office, "/finance/settlements/totals", **query))["totals"]
        assert {each["state"]: [each["settlements"], int(each["amount"])] for each in told} == sums, query


async def test_a_filter_finds_what_it_says(office: Office) -> None:
    totals = (await ask(office, "/finance/settlements/totals"))["totals"]
    assert {each["state"]: each["settlements"] for each in totals} == STATES
    (row,) = (await ask(office, "/finance/settlements", tx="0x" + f"{17:064x}"))["settlements"]
    assert (row["amount"], row["tenant"], row["payTo"]) == ("1017", "tenant-2", checksum_address(Address("0x" + "2".rjust(40, "b"))))
    bounded = (await ask(office, "/finance/settlements", amount_min="1100", amount_max="1199", limit="200"))["settlements"]
    assert sorted(int(row["amount"]) for row in bounded) == list(range(1100, 1200))


async def test_a_day_of_another_zone_is_another_period(office: Office) -> None:
    """New York's 2 November 2025 has 25 hours."""
    days = {
        zone: sum(
            each["settlements"]
            for each in (await ask(office, "/finance/settlements/totals", **{"from": "2025-11-02", "to": "2025-11-03", "tz": zone}))[
                "totals"
            ]
        )
        for zone in ("UTC", "America/New_York")
    }
    assert days == {"UTC": 144, "America/New_York": 150}


async def test_one_settlement_has_its_history_cost_proof_entries_and_attempts(office: Office) -> None:
    told = await ask(office, f"/finance/settlements/{UUID(int=(0x7000 << 64) | (0x8000 << 48) | 17)}")
    assert (told["state"], told["logIndex"], told["blockNumber"]) == ("finalized", 1, 1017)
    assert [move["state"] for move in told["moves"]] == ["submitted", "finalized"]
    assert [(entry["phase"], entry["sealNo"]) for entry in told["entries"]] == [("pending", 1), ("posted", 1)]
    assert told["costs"][0]["shareWei"] == told["costWei"] == str((86000 + 17) * (1000000 + 17) + 55000)
    assert [(attempt["relayer"], attempt["mined"]) for attempt in told["attempts"]] == [(checksum_address(Address(RELAYER)), True)]
    assert (await office.ask("GET", "/finance/settlements/nothing", scope="finance"))[0] == 404


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("path", "report", "tenant"),
    [("/finance/report", SETTLEMENTS, None), ("/finance/report", SETTLEMENTS, "tenant-1"), ("/finance/gas/file", GAS, None)],
)
async def test_a_report_is_the_file_of_the_command_byte_for_byte(
    office: Office, tmp_path: Path, form: str, path: str, report: Report, tenant: str | None
) -> None:
    await plant_gas(office)
    asked = Asked(
        report=report, period=Period(START, START + timedelta(days=30)), zone=UTC_ZONE, booking_zone=UTC_ZONE, tenant_id=tenant,
        format=form, decimals=DECIMALS, rate_stale_s=3600.0,
    )  # fmt: skip
    manifest = await export_report(office.db, asked, tmp_path / "out")
    query = {"from": "2025-11-01", "to": "2025-12-01", "format": form} | ({} if tenant is None else {"tenant": tenant})
    told = await ask(office, path, **query)
    assert told.encode() == (tmp_path / "out").read_bytes()
    assert told.count("\n") >= manifest["rows"] >= 18


async def test_a_list_as_a_file_has_precisely_the_rows_of_its_filter_and_runs_no_formula(office: Office) -> None:
    query = {"state": "finalized", "tenant": "tenant-1"}
    text = await ask(office, "/finance/settlements/file", **query)
    rows = list(csv.DictReader(io.StringIO(text)))
    listed = (await ask(office, "/finance/settlements", limit="200", **query))["settlements"]
    assert [row["settlement_id"] for row in rows] == [row["id"] for row in listed]
    assert {row["resource"] for row in rows} == {'\'=HYPERLINK("https://evil.example")'}
    assert (rows[0]["amount_atomic"], rows[0]["amount"]) == (listed[0]["amount"], f"0.{int(listed[0]['amount']):06}")
    lines = (await ask(office, "/finance/settlements/file", format="jsonl", **query)).splitlines()
    assert [json.loads(line)["settlement_id"] for line in lines] == [row["id"] for row in listed]


async def test_a_file_that_was_taken_is_in_the_trail_under_the_key(office: Office) -> None:
    await ask(office, "/finance/settlements/file", state="failed")
    event = (await ask(office, "/finance/audit", "admin", kind="settlements_downloaded", limit="1"))["events"][0]
    assert event["actor"] == f"key {office.keys['finance'].key_id}"
    assert json.loads(event["detail"]) == {"what": "settlements", "filter": {"state": "failed"}}


async def test_a_file_whose_making_fails_is_cut_and_never_looks_whole(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> AsyncIterator[str]:
        yield "x" * 200_000
        raise OSError("gone")

    import aiohttp  # noqa: PLC0415

    monkeypatch.setattr(views, "settlement_list", broken)
    with pytest.raises(aiohttp.ClientError):
        await office.ask("GET", "/finance/settlements/file", scope="finance")


async def test_more_files_at_a_time_wait_for_each_other(office: Office) -> None:
    told = await asyncio.gather(*(ask(office, "/finance/settlements/file") for _ in range(6)))
    assert {text.count("\n") for text in told} == {COUNT + 1}


async def plant_gas(office: Office) -> None:
    """Once: 18 entries over three days."""
    connection = await asyncpg.connect(office.db.url)
    try:
        if await connection.fetchval("select exists (select from journal_entry where book = 'own')"):
            return
        await connection.execute(
            "with p as (insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, tx_hash, admission, happened_at)"
            " select 'own', 'pending', 'gas_expense:' || $1 || ':' || cause, 'gas:' || $1 || ':' || $2, $1 || '/native', 100 + i,"
            " '0x' || lpad(to_hex(i), 64, '0'), 1, $3::timestamptz + i * interval '8 hours'"
            " from generate_series(0, 8) i, unnest(array['settled', 'reverted']) cause returning *)"
            " insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, tx_hash, admission, happened_at, resolves)"
            " select book, 'posted', debit, credit, asset, amount_atomic, tx_hash, admission, happened_at, entry_id from p",
            NETWORK,
            RELAYER,
            START,
        )
    finally:
        await connection.close()


async def test_gas_adds_up_to_the_accounts(office: Office) -> None:
    await plant_gas(office)
    gas = (await ask(office, "/finance/gas", **{"from": "2025-11-01", "to": "2025-11-04"}))["gas"]
    assert [(row["day"], row["cause"], row["transactions"]) for row in gas] == [
        (f"2025-11-0{day}", cause, 3) for day in (1, 2, 3) for cause in ("reverted", "settled")
    ]
    assert {row["relayer"] for row in gas} == {RELAYER}
    balances = {each["account"]: each["balance"] for each in (await ask(office, "/finance/balances"))["balances"]}
    assert balances[f"gas_expense:{NETWORK}:settled"] == str(sum(int(row["amountWei"]) for row in gas if row["cause"] == "settled"))
    query = {"from": "2025-11-02", "to": "2025-11-03", "account": f"gas_expense:{NETWORK}:settled"}
    statement = await ask(office, "/finance/statement", **query)
    (asset,) = statement["opening"]
    moved = sum(int(movement["amount"]) for movement in statement["movements"])
    assert int(statement["opening"][asset]) + moved == int(statement["closing"][asset])
    assert (statement["opening"][asset], len(statement["movements"])) == (str(100 + 101 + 102), 3)


async def test_a_discrepancy_is_listed_explained_once_and_told(office: Office) -> None:
    connection = await asyncpg.connect(office.db.url)
    try:
        number = await connection.fetchval(
            "insert into discrepancy (network, class, subject, asset, value_atomic, expected, got)"
            " values ($1, 'R4', 'somebody', $2, 5, 'us', 'them') returning discrepancy_id",
            NETWORK,
            USDC,
        )
    finally:
        await connection.close()
    (listed,) = (await ask(office, "/finance/discrepancies"))["discrepancies"]
    assert (listed["id"], listed["class"], listed["value"]) == (number, "R4", "5")
    assert (await ask(office, "/finance/overview"))["networks"][0]["discrepancies"] == 1
    path = f"/finance/discrepancies/{number}/explain"
    assert (await office.ask("POST", path, {"note": " "}, scope="finance"))[0] == 400
    assert (await office.ask("POST", path, {"note": "a relay of the payer", "book": True}, scope="finance"))[0] == 409
    status, told = await office.ask("POST", path, {"note": "a relay of the payer"}, scope="finance")
    key = f"key {office.keys['finance'].key_id}"
    assert (status, told["resolvedBy"], told["note"]) == (200, key, "a relay of the payer")
    assert (await office.ask("POST", path, {"note": "again"}, scope="finance"))[0] == 409
    assert (await ask(office, "/finance/discrepancies"))["discrepancies"] == []
    assert (await ask(office, "/finance/discrepancies", status="explained"))["discrepancies"][0]["id"] == number
    events = (await ask(office, "/finance/audit", "admin", kind="discrepancy_explained"))["events"]
    assert [(event["actor"], event["detail"]) for event in events] == [(key, f"{number}: a relay of the payer")]


async def test_a_day_is_closed_and_only_a_second_key_reopens_it(office: Office) -> None:
    second = tenants.generate_key()
    await administration.create_key(office.db, "cli me", second, "house", ("finance",), None)
    closed, path = [], "/finance/days/2025-11-01"
    status, told = await office.ask("POST", f"{path}/close", scope="finance")
    closed.append((status, told.get("day")))
    assert closed == [(200, "2025-11-01")], told
    status, told = await office.ask("POST", f"{path}/close", scope="finance")
    assert (status, told["error"]) == (409, "day_open")
    assert (await office.ask("POST", f"{path}/reopen", {"reason": ""}, scope="finance"))[0] == 400
    assert (await office.ask("POST", f"{path}/reopen", {"reason": "a late fact"}, scope="finance"))[0] == 202
    status, told = await office.ask("POST", f"{path}/reopen/confirm", scope="finance")
    assert (status, told["error"]) == (409, "one_person")
    (day,) = (await ask(office, "/finance/days", **{"from": "2025-11-01", "to": "2025-11-01"}))["days"]
    first = f"key {office.keys['finance'].key_id}"
    assert (day["closed"]["actor"], day["reopeningAsked"][0]["actor"]) == (first, first)
    office.keys["finance"], kept = second, office.keys["finance"]
    try:
        status, told = await office.ask("POST", f"{path}/reopen/confirm", scope="finance")
    finally:
        office.keys["finance"] = kept
    assert (status, told["asked"], told["confirmed"]) == (200, first, f"key {second.key_id}")
    (day,) = (await ask(office, "/finance/days", **{"from": "2025-11-01", "to": "2025-11-01"}))["days"]
    assert (day["closed"], [event["kind"] for event in day["history"]]) == (None, ["closed", "reopened"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/finance/settlements?state=paid", "state: expected one of queued"),
        ("/finance/settlements?sate=failed", "unknown query parameter 'sate'"),
        ("/finance/settlements?state=failed&state=queued", "state: expected once"),
        ("/finance/settlements?from=2025-11-02&to=2025-11-01", "to: the period is empty"),
        ("/finance/settlements?tz=Mars", "tz: expected an IANA time zone"),
        ("/finance/settlements?amount_min=1.5", "amount_min: expected a decimal integer"),
        ("/finance/settlements?tx=0x12", "tx: expected 32 bytes"),
        ("/finance/settlements?cursor=zzz", "cursor: expected"),
        ("/finance/settlements?limit=0", "limit: expected an integer"),
        ("/finance/settlements/file?format=xlsx", "format: expected one of csv"),
        ("/finance/report?from=2025-11-01", "expected the query parameters from and to"),
        ("/finance/report?from=2025-11-02&to=2025-11-01", "the period is empty"),
        ("/finance/gas?from=0001-01-01&to=0001-01-02&tz=Asia/Tokyo", ""),
        ("/finance/discrepancies?status=all&class=R4&network=base", "network: expected a CAIP-2"),
        ("/finance/statement?from=2025-11-01&to=2025-11-02", "account: expected"),
        ("/finance/days?from=2020-01-01&to=2025-01-01", "expected 1 to 400 days"),
    ],
)
async def test_a_wrong_parameter_is_named(office: Office, path: str, said: str) -> None:
    status, told = await office.ask("GET", path, scope="finance")
    assert status == 400, told
    assert said in told["message"]


async def test_the_overview_says_how_the_books_stand(office: Office) -> None:
    told = await ask(office, "/finance/overview")
    assert told["zone"] == "UTC"
    assert [network["network"] for network in told["networks"]] == [NETWORK]
    assert (told["open"], told["overdue"], told["days"]) == ([], 0, [])
    assert told["seal"]["sealNo"] >= 1
    assert date.fromisoformat(told["lastDay"]) - date.fromisoformat(told["firstDay"]) == timedelta(days=29)

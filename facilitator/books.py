"""What finance people and auditors do from the command line: export, verify, report.

Each command is a coroutine from (configuration, database, arguments) to an exit status and the lines to print. Exit status
1 means looked at and found wrong.
"""

import argparse
import csv
import io
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final, NamedTuple

from facilitator.config import Config
from facilitator.domain.money import decimal_text
from facilitator.domain.periods import Period, local_date, parse_day, parse_instant, parse_month, parse_period
from facilitator.domain.schedules import USD_DECIMALS, decode_terms
from facilitator.errors import ConfigFault
from facilitator.finance import closes, export, invoices, seals, views
from facilitator.finance.examination import explain
from facilitator.finance.export_files import write_hledger, write_journal
from facilitator.finance.journal import decimals_of
from facilitator.finance.tables import FORMATS, time_text
from facilitator.operate import discrepancy_line, discrepancy_row
from facilitator.store import billing, books, days
from facilitator.store.db import Db
from facilitator.store.discrepancies import list_all
from facilitator.store.seals import record_event
from facilitator.units import Address, Network, Zone, parse_zone

ACTOR: Final = os.environ.get("USER") or f"uid {os.getuid()}"
"""Who runs the command, for the audit trail."""


class Done(NamedTuple):
    """How a command ended and what it has to say."""

    status: int
    lines: list[str]


Work = Callable[[Config, Db, argparse.Namespace], Awaitable[Done]]
Offline = Callable[[argparse.Namespace], Done]
Run = Callable[[argparse.Namespace], int]
Bind = Callable[[Work], Run]


def add_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    with_config: argparse.ArgumentParser,
    on_ledger: Bind,
    offline: Callable[[Offline], Run],
) -> None:
    """The finance commands of the command line; `on_ledger` and `offline` make of a command what argparse calls."""
    period = argparse.ArgumentParser(add_help=False, parents=[with_config])
    period.add_argument("--from", dest="start", required=True, metavar="DATE", help="a date, a month, or a time with its offset")
    period.add_argument("--to", dest="end", required=True, metavar="DATE", help="excluded")
    period.add_argument("--tz", type=_zone, metavar="ZONE", help="IANA zone of the dates; finance.booking_zone by default")

    _add_exports(commands, with_config, period, on_ledger, offline)
    _add_fees(commands, with_config, on_ledger)
    _add_audit(commands, with_config, on_ledger)
    _add_days(commands, with_config, on_ledger)
    _add_discrepancies(commands, with_config, on_ledger)
    _add_reports(commands, with_config, period, on_ledger)


def _add_exports(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    with_config: argparse.ArgumentParser,
    period: argparse.ArgumentParser,
    on_ledger: Bind,
    offline: Callable[[Offline], Run],
) -> None:
    exports = commands.add_parser("export", help="files for accountants and auditors").add_subparsers(required=True, metavar="COMMAND")
    detail = exports.add_parser("settlements", parents=[period], help="the settlement detail report, with a manifest beside it")
    detail.add_argument("--format", choices=sorted(FORMATS), default="csv")
    detail.add_argument("--tenant")
    detail.add_argument("--out", type=Path, required=True, metavar="FILE")
    detail.set_defaults(run=on_ledger(export_report), report=export.SETTLEMENTS)
    gas = exports.add_parser("gas", parents=[period], help="the gas report: every wei of relayers by cause, with a manifest beside it")
    gas.add_argument("--format", choices=sorted(FORMATS), default="csv")
    gas.add_argument("--out", type=Path, required=True, metavar="FILE")
    gas.set_defaults(run=on_ledger(export_report), report=export.GAS, tenant=None)
    journal = exports.add_parser("journal", parents=[period], help="every entry, for a program that checks books")
    journal.add_argument("--format", choices=["csv", "hledger"], default="hledger")
    journal.add_argument("--out", type=Path, required=True, metavar="FILE")
    journal.set_defaults(run=on_ledger(export_journal))
    bundle = exports.add_parser("audit-bundle", parents=[with_config], help="all that is sealed, with a script that checks it offline")
    bundle.add_argument("--out", type=Path, required=True, metavar="DIR")
    bundle.set_defaults(run=on_ledger(export_bundle))
    verify = exports.add_parser("verify", help="a file against its manifest; exit 1 when it differs")
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.add_argument("manifest", type=Path, metavar="MANIFEST")
    verify.set_defaults(run=offline(verify_export))


def _add_fees(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", with_config: argparse.ArgumentParser, on_ledger: Bind
) -> None:
    fees = commands.add_parser("fees", help="what tenants are charged, and what they paid").add_subparsers(required=True, metavar="COMMAND")
    add = fees.add_parser("add", parents=[with_config], help="a new version of a tenant's terms; versions are never edited")
    add.add_argument("--tenant", required=True)
    add.add_argument("--from", dest="start", required=True, metavar="DATE", help="the first book day of the version")
    add.add_argument("terms", type=Path, metavar="FILE", help="terms as JSON")
    add.set_defaults(run=on_ledger(fees_add))
    listing = fees.add_parser("list", parents=[with_config], help="every version")
    listing.add_argument("--tenant")
    listing.add_argument("--format", choices=["text", "csv", "json"], default="text")
    listing.set_defaults(run=on_ledger(fees_list))
    for kind, text in (("payment", "a tenant paid"), ("credit", "a tenant is credited")):
        paid = fees.add_parser(kind, parents=[with_config], help=text)
        paid.add_argument("--tenant", required=True)
        paid.add_argument("--usd", required=True, metavar="AMOUNT")
        paid.add_argument("--reference", required=True, help="what it can be found by outside")
        paid.set_defaults(run=on_ledger(fees_book), kind=kind)


def _add_audit(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", with_config: argparse.ArgumentParser, on_ledger: Bind
) -> None:
    audit = commands.add_parser("audit", help="what is sealed").add_subparsers(required=True, metavar="COMMAND")
    whole = audit.add_parser("verify", parents=[with_config], help="history against its seals; exit 1 when it was altered")
    whole.add_argument("--against", type=Path, metavar="FILE", help="heads that left the database: number and head, one a line")
    whole.set_defaults(run=on_ledger(audit_verify))


def _add_days(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", with_config: argparse.ArgumentParser, on_ledger: Bind
) -> None:
    closing = commands.add_parser("close", parents=[with_config], help="close a book day; exit 3 says all that keeps it open")
    closing.add_argument("day", metavar="DAY")
    closing.add_argument("--by", default=ACTOR, metavar="NAME")
    closing.set_defaults(run=on_ledger(close))
    reopening = commands.add_parser("reopen", parents=[with_config], help="reopen the last closed book day; it takes two people")
    reopening.add_argument("day", metavar="DAY")
    reopening.add_argument("--by", default=ACTOR, metavar="NAME")
    step = reopening.add_mutually_exclusive_group(required=True)
    step.add_argument("--reason", metavar="TEXT", help="ask for it")
    step.add_argument("--confirm", action="store_true", help="do what somebody else asked for within a day")
    reopening.set_defaults(run=on_ledger(reopen))


def _add_discrepancies(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", with_config: argparse.ArgumentParser, on_ledger: Bind
) -> None:
    found = commands.add_parser("discrepancies", help="what reconciliations found").add_subparsers(required=True, metavar="COMMAND")
    listed = found.add_parser("list", parents=[with_config], help="what nobody has explained; exit 2 while there is something")
    listed.add_argument("--all", action="store_true", help="what was explained or is gone, too")
    listed.add_argument("--json", action="store_true")
    listed.set_defaults(run=on_ledger(discrepancies_list))
    explained = found.add_parser("explain", parents=[with_config], help="say what they were")
    explained.add_argument("discrepancies", type=int, nargs="+", metavar="ID")
    explained.add_argument("--by", required=True, metavar="NAME")
    explained.add_argument("--note", required=True)
    with_entry = explained.add_mutually_exclusive_group()
    with_entry.add_argument("--entry", type=int, metavar="N", help="the journal entry that resolves it")
    with_entry.add_argument("--book", action="store_true", help="book what a relayer's balance lacks or has too much (R6)")
    explained.set_defaults(run=on_ledger(discrepancies_explain))


def _add_reports(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    with_config: argparse.ArgumentParser,
    period: argparse.ArgumentParser,
    on_ledger: Bind,
) -> None:
    reports = commands.add_parser("report", help="statements of the books").add_subparsers(required=True, metavar="COMMAND")
    balances = reports.add_parser("balances", parents=[with_config], help="each account's turnover and balance in each asset")
    balances.add_argument("--at", metavar="TIME", help="as of a date, or a time with its offset, excluded; now by default")
    balances.add_argument("--tz", type=_zone, metavar="ZONE", help="IANA zone of the date; finance.booking_zone by default")
    balances.add_argument("--format", choices=["text", "csv", "json"], default="text")
    balances.set_defaults(run=on_ledger(report_balances))
    statement = reports.add_parser("statement", parents=[period], help="one account: opening, movements, closing")
    statement.add_argument("--account", required=True)
    statement.add_argument("--format", choices=["text", "csv", "json"], default="text")
    statement.set_defaults(run=on_ledger(report_statement))
    listed = reports.add_parser("days", parents=[with_config], help="closes and reopenings of book days, with their heads")
    listed.add_argument("--format", choices=["text", "csv", "json"], default="text")
    listed.set_defaults(run=on_ledger(report_days))
    invoice = reports.add_parser("invoice", parents=[with_config], help="a tenant's month: as issued, else a draft")
    invoice.add_argument("--tenant", required=True)
    invoice.add_argument("--month", required=True, metavar="YYYY-MM")
    invoice.add_argument("--issue", action="store_true", help="give it its number and book it, if it is not issued yet")
    invoice.add_argument("--format", choices=["text", "csv", "json"], default="text")
    invoice.set_defaults(run=on_ledger(report_invoice))


async def export_report(config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`export settlements` and `export gas`."""
    zone = parsed.tz or config.finance.booking_zone
    asked = export.Asked(
        report=parsed.report,
        period=_period(parsed, zone),
        zone=zone,
        tenant_id=parsed.tenant,
        format=parsed.format,
        decimals=_decimals(config),
        rate_stale_s=config.finance.rate_stale_s,
        booking_zone=config.finance.booking_zone,
    )
    manifest = await export.export_report(db, asked, parsed.out)
    await record_event(
        db, f"{parsed.report.name}_exported", ACTOR, json.dumps({"filter": manifest["filter"], "sha256": manifest["sha256"]})
    )
    whole = "complete" if manifest["is_complete"] else f"not complete: open after {manifest['complete_through']['time']}"
    return Done(0, [f"{parsed.out}: {manifest['rows']} rows, {whole}; manifest {export.manifest_path(parsed.out)}"])


async def export_journal(config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`export journal`."""
    zone = parsed.tz or config.finance.booking_zone
    period = _period(parsed, zone)
    if parsed.format == "hledger":
        await write_hledger(db, period, zone, config.tokens, parsed.out)
    else:
        await write_journal(db, period, parsed.format, config.tokens, parsed.out)
    await record_event(db, "journal_exported", ACTOR, f"{time_text(period.start)} to {time_text(period.end)} as {parsed.format}")
    return Done(0, [f"{parsed.out}: {time_text(period.start)} to {time_text(period.end)}"])


async def report_balances(config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`report balances`."""
    zone, decimals = parsed.tz or config.finance.booking_zone, decimals_of(config.tokens)
    try:
        before = datetime.now(UTC) if parsed.at is None else parse_instant(parsed.at, zone)
    except ValueError as error:
        raise ConfigFault("bad_time", f"--at: {error}") from None
    async with db.snapshot() as session:
        totals = [total async for total in books.balances(session, before)]

    def spell(atomic: int | None, asset: str) -> str:
        return decimal_text(atomic or 0, decimals(asset))

    rows = [
        {
            "account": total.account,
            "asset": total.asset,
            "debits": spell(total.debits_atomic, total.asset),
            "credits": spell(total.credits_atomic, total.asset),
            "balance": spell(total.balance_atomic, total.asset),
            "pending": spell(total.pending_atomic, total.asset),
        }
        for total in totals
    ]
    return Done(0, table_lines(["account", "asset", "debits", "credits", "balance", "pending"], rows, parsed.format))


async def report_statement(config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`report statement`."""
    zone, decimals = parsed.tz or config.finance.booking_zone, decimals_of(config.tokens)
    period = _period(parsed, zone)
    found = await views.statement(db, parsed.account, period)
    balance = dict(found.opening)
    rows = [_statement_row("opening", asset, decimals, balance[asset]) for asset in balance]
    for moved in found.movements:
        balance[moved.asset] = balance.get(moved.asset, 0) + moved.amount_atomic
        about = moved.reference or str(moved.settlement_id or moved.tx_hash or "")
        row = _statement_row(str(moved.entry_id), moved.asset, decimals, balance[moved.asset])
        side = "debit" if moved.amount_atomic >= 0 else "credit"
        amount = decimal_text(abs(moved.amount_atomic), decimals(moved.asset))
        on = local_date(moved.happened_at, zone).isoformat()
        rows.append(row | {"date": on, side: amount, "against": moved.against, "about": about})
    rows += [_statement_row("closing", asset, decimals, amount) for asset, amount in found.closing.items()]
    return Done(0, table_lines(["entry", "date", "asset", "debit", "credit", "balance", "against", "about"], rows, parsed.format))


def _statement_row(entry: str, asset: str, decimals: Callable[[str], int], balance: int) -> dict[str, str]:
    empty = dict.fromkeys(("date", "debit", "credit", "against", "about"), "")
    return {"entry": entry, "asset": asset, "balance": decimal_text(balance, decimals(asset))} | empty


async def report_invoice(config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`report invoice`: exit 1 when the books do not make an issued one again to the byte."""
    try:
        month = parse_month(parsed.month)
    except ValueError as error:
        raise ConfigFault("bad_month", f"--month: {error}") from None
    how = invoices.Billing(booking_zone=config.finance.booking_zone, decimals=_decimals(config), rate_stale_s=config.finance.rate_stale_s)
    if parsed.issue:
        invoice = await invoices.issue(db, how, parsed.tenant, month)
        await record_event(db, "invoice_issued", ACTOR, f"invoice {invoice.number}, {parsed.tenant}, {parsed.month}")
    async with db.snapshot() as session:
        issued = await billing.find_invoice(session, parsed.tenant, month)
        if issued is None:
            document, _, _ = await invoices.make(session, how, parsed.tenant, month, None, None)
        else:
            document = issued.document
            if not await invoices.issued_again(session, how, issued):
                return Done(1, [f"invoice {issued.number} of {parsed.tenant}: the books do not make it again as it was issued"])
    if parsed.format == "json":
        return Done(0, document.splitlines())
    rows = invoices.lines_of(document)
    lines = table_lines(["what", "settlements", "volume", "charge"], rows, parsed.format)
    return Done(0, lines if parsed.format == "csv" else [*invoices.heading(document), *lines, *invoices.ending(document)])


async def fees_add(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`fees add`."""
    try:
        start, terms = parse_day(parsed.start), decode_terms(parsed.terms.read_bytes())
    except ValueError as error:
        raise ConfigFault("bad_terms", str(error)) from None
    added = await invoices.add_terms(db, ACTOR, parsed.tenant, start, terms)
    if added is None:
        return Done(1, [invoices.reaches_back(parsed.tenant, start)])
    return Done(0, [f"version {added.version} of {parsed.tenant} holds from {added.effective_from}"])


async def fees_list(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`fees list`."""
    async with db.session() as session:
        found = await billing.list_schedules(session, parsed.tenant)
    rows = [
        {"tenant": row.tenant_id, "version": str(row.version), "from": row.effective_from.isoformat(), "terms": row.terms} for row in found
    ]
    return Done(0, table_lines(["tenant", "version", "from", "terms"], rows, parsed.format))


async def fees_book(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`fees payment` and `fees credit`."""
    amount = invoices.parse_usd(parsed.usd)
    entry_id, new = await invoices.book(db, ACTOR, parsed.tenant, parsed.kind, amount, parsed.reference)
    told = f"entry {entry_id}: {parsed.kind} of {decimal_text(amount, USD_DECIMALS)} USD, {parsed.tenant}"
    return Done(0, [told if new else f"{told}; {parsed.reference} was booked before, nothing is booked again"])


async def discrepancies_list(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`discrepancies list`."""
    found = await list_all(db, closed=parsed.all)
    is_open = any(each.resolved_at is None and each.gone_at is None for each in found)
    lines = [json.dumps([discrepancy_row(each) for each in found])] if parsed.json else [discrepancy_line(each) for each in found]
    return Done(2 if is_open else 0, lines or ["nothing is unexplained"])


async def discrepancies_explain(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`discrepancies explain`."""
    lines = []
    for discrepancy_id in parsed.discrepancies:
        entry_id = await explain(db, discrepancy_id, parsed.by, parsed.note, parsed.entry, book=parsed.book)
        await record_event(db, "discrepancy_explained", parsed.by, f"{discrepancy_id}: {parsed.note}")
        lines.append(f"discrepancy {discrepancy_id} is explained" + (f" by entry {entry_id}" if entry_id else ""))
    return Done(0, lines)


def table_lines(columns: Sequence[str], rows: Iterable[dict[str, str]], form: str) -> list[str]:
    """A small table as `text`, `csv` or `json`; amounts stand to the right."""
    held = list(rows)
    if form == "json":
        return [json.dumps(held, indent=2)]
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(held)
        return text.getvalue().splitlines()
    widths = [max(len(column), *(len(row[column]) for row in held), 0) for column in columns]
    numeric = [bool(held) and all(row[column].lstrip("-").replace(".", "").isdigit() for row in held) for column in columns]
    lines = [dict(zip(columns, columns, strict=True)), *held]
    return [
        "  ".join(
            line[column].rjust(width) if right else line[column].ljust(width)
            for column, width, right in zip(columns, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]


async def export_bundle(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`export audit-bundle`."""
    newest = await seals.write_bundle(db, parsed.out)
    await record_event(db, "bundle_exported", ACTOR, "" if newest is None else f"through seal {newest.seal_no}")
    sealed = "nothing is sealed yet" if newest is None else f"through seal {newest.seal_no}, head {newest.head.hex()}"
    return Done(0, [f"{parsed.out}: {sealed}; check it with `python {parsed.out / 'verify.py'}`"])


async def close(config: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`close`."""
    document = await closes.close_day(db, config.finance, _day(parsed.day), parsed.by)
    lines = [f"{document['day']} is closed: {document['entries']} entries"]
    decimals = decimals_of(config.tokens)
    rows = [
        {name: str(total[name]) for name in ("book", "phase", "debit", "credit", "asset", "entries")}
        | {"amount": decimal_text(int(total["amount_atomic"]), decimals(total["asset"]))}
        for total in document["totals"]
    ]
    return Done(0, lines + table_lines(["book", "phase", "debit", "credit", "asset", "entries", "amount"], rows, "text"))


async def reopen(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`reopen`: one person asks, another confirms."""
    day = _day(parsed.day)
    if parsed.confirm:
        first = await closes.confirm_reopening(db, day, parsed.by)
        return Done(0, [f"{day} is open again: {first} asked, {parsed.by} confirmed"])
    await closes.ask_reopening(db, day, parsed.by, parsed.reason)
    return Done(
        0, [f"on record: {parsed.by} wants {day} reopened; somebody else confirms with `facilitator reopen {day} --by NAME --confirm`"]
    )


async def report_days(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`report days`."""
    async with db.session() as session:
        found = await days.events(session)
    rows = [
        {
            "day": each.day.isoformat(),
            "what": each.kind,
            "at": time_text(each.at),
            "by": each.actor,
            "second": each.second or "",
            "head": each.head.hex(),
        }
        for each in found
    ]
    return Done(0, table_lines(["day", "what", "at", "by", "second", "head"], rows, parsed.format))


def _day(text: str) -> date:
    try:
        return parse_day(text)
    except ValueError as error:
        raise ConfigFault("bad_day", f"DAY: {error}") from None


async def audit_verify(_: Config, db: Db, parsed: argparse.Namespace) -> Done:
    """`audit verify`."""
    against = {} if parsed.against is None else seals.read_heads(parsed.against.read_text("utf-8"))
    found = await seals.verify(db, against)
    wrong = [*found.wrong, *await closes.altered_days(db)]
    if wrong:
        return Done(1, wrong)
    return Done(0, [f"{found.leaves} records in {found.seals} seals, as they were sealed; head {found.seals} {found.head.hex()}"])


def verify_export(parsed: argparse.Namespace) -> Done:
    """`export verify`."""
    try:
        manifest = json.loads(parsed.manifest.read_text("utf-8"))
        wrong = export.verify(parsed.file, manifest)
    except (ValueError, KeyError, TypeError) as error:
        return Done(1, [f"{parsed.manifest}: not the manifest of this file: {error!r}"])
    return Done(1, [f"{parsed.file}: {word}" for word in wrong]) if wrong else Done(0, [f"{parsed.file}: as its manifest says"])


def _decimals(config: Config) -> dict[tuple[Network, Address], int]:
    return {(token.network, token.address): token.decimals for token in config.tokens}


def _period(parsed: argparse.Namespace, zone: Zone) -> Period:
    try:
        return parse_period(parsed.start, parsed.end, zone)
    except ValueError as error:
        raise ConfigFault("bad_period", str(error)) from None


def _zone(text: str) -> Zone:
    try:
        return parse_zone(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

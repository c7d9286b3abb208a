"""Every named query is prepared on the migrated schema, and its columns are those of the row type it fills."""

import asyncpg
import pytest

from facilitator.domain.seals import EntryRecord, EventRecord
from facilitator.store import (
    billing,
    books,
    console,
    days,
    discrepancies,
    earnings,
    exports,
    inspection,
    listings,
    reconciliation,
    relayers,
    replicas,
    restraints,
    seals,
    settlements,
    survey,
    tenants,
    views,
)
from facilitator.store.db import Query, column_names, load_queries, prepare_connection

ROW_OF = {
    "own_records": settlements.Settlement,
    "records_of_authorizations": settlements.Settlement,
    "days_to_count": views.Day,
    "first_ended_day": views.Day,
    "try_lock_earnings": seals.Mine,
    "known": earnings.Known,
    "earnings": earnings.Earned,
    "counted_gas": views.GasSpent,
    "counted_days": views.Day,
    "ask_export": exports.ExportId,
    "claim_export": exports.Claimed,
    "get_export": exports.Export,
    "list_exports": exports.Export,
    "read_chunk": exports.Chunk,
    "expected_settlements": exports.Rows,
    "expected_gas": exports.Rows,
    "expected_journal": exports.Rows,
    "expected_sealed": exports.Rows,
    "records": settlements.Settlement,
    "page": settlements.Settlement,
    "list_queued": settlements.Settlement,
    "queue_ages": settlements.QueueAge,
    "claim_queued": settlements.SettlementId,
    "history": settlements.Move,
    "costs": settlements.ItemCost,
    "incidents": settlements.Incident,
    "write_ahead": settlements.OpenedSlot,
    "dispatch_claimed": settlements.OpenedSlot,
    "readmit": settlements.Readmitted,
    "resolve": settlements.Resolved,
    "withdraw": settlements.SettlementId,
    "take_answer": settlements.AnswerSlot,
    "spend_answer": settlements.AnswerSlot,
    "share_answer": settlements.AnswerSlot,
    "unfinal_blocks": settlements.Block,
    "preconfirm": settlements.Resolved,
    "unseal": settlements.SettlementId,
    "make_safe": settlements.Deeper,
    "finalize": settlements.Deeper,
    "reopen": settlements.Deeper,
    "take_watched": settlements.Settlement,
    "count_watched": settlements.Watched,
    "resolve_late": settlements.SettlementId,
    "take_lease": relayers.Relayer,
    "renew_lease": relayers.Relayer,
    "renew_leases": relayers.Relayer,
    "raise_tx_nonce": relayers.Relayer,
    "list_relayers": relayers.PoolRelayer,
    "open_transactions": relayers.OpenTransaction,
    "open_items": relayers.OpenItem,
    "open_slots": relayers.OpenSlotId,
    "our_transactions": relayers.KnownHash,
    "live_replicas": replicas.LiveReplica,
    "missing_replicas": replicas.MissingReplica,
    "bury": replicas.GoneReplica,
    "hold_presence": replicas.Held,
    "consumed_slots": relayers.ConsumedSlot,
    "record_attempt": relayers.RecordedAttempt,
    "record_stray": relayers.KnownHash,
    "claims_in_blocks": reconciliation.LedgerRow,
    "rows_of_authorizations": reconciliation.LedgerRow,
    "claimless_in_blocks": reconciliation.LedgerRow,
    "settlement_lines": books.SettlementLine,
    "gas_lines": books.GasLine,
    "completeness": books.Completeness,
    "journal_lines": books.JournalLine,
    "open_lines": books.JournalLine,
    "balances": books.AccountTotal,
    "add_schedule": billing.ScheduleRow,
    "list_schedules": billing.ScheduleRow,
    "counted": billing.Counted,
    "counted_of": billing.Counted,
    "find_invoice": billing.Invoice,
    "invoiced_after": billing.Invoice,
    "next_number": billing.NextNumber,
    "post_entry": billing.EntryId,
    "find_entry": billing.Booked,
    "opening": billing.Opening,
    "opening_of_ours": billing.Opening,
    "movements": billing.Movement,
    "movements_of_ours": billing.Movement,
    "reconciled_through": discrepancies.Through,
    "list_discrepancies": discrepancies.Discrepancy,
    "lock_discrepancy": discrepancies.Discrepancy,
    "mined_costs": discrepancies.MinedCost,
    "roll_forward": discrepancies.RollForward,
    "matched": discrepancies.Matched,
    "uncounted_slices": discrepancies.Slice,
    "lock_reconciling": discrepancies.Mine,
    "try_lock_seals": seals.Mine,
    "last_seal": seals.Seal,
    "unsealed_entries": EntryRecord,
    "unsealed_events": EventRecord,
    "seals": seals.Seal,
    "sealed_rows": seals.SealedRow,
    "overdue": seals.Overdue,
    "first_day": seals.FirstDay,
    "last_closed": seals.LastClosed,
    "low_water": seals.LowWater,
    "resolved_before": days.First,
    "pending_before": days.Count,
    "unreconciled_before": days.Count,
    "unsealed_before": days.Count,
    "day_totals": days.Total,
    "day_adjusts": days.Adjusted,
    "day_events": days.DayEvent,
    "last_day_event": days.DayEvent,
    "reopen_asked": days.Asked,
    "find_tenant": tenants.TenantRecord,
    "lock_tenant": tenants.TenantRecord,
    "list_tenants": tenants.TenantRecord,
    "store_tenant": tenants.TenantRecord,
    "create_api_key": tenants.ApiKey,
    "replace_api_key": tenants.ApiKey,
    "end_api_key": tenants.ApiKey,
    "lock_api_key": tenants.ApiKey,
    "list_api_keys": tenants.ApiKey,
    "revoke_api_key": tenants.ApiKey,
    "find_api_keys": tenants.LiveKey,
    "use_token": tenants.UsedToken,
    "gas_budgets": restraints.GasBudget,
    "fresh_rates": restraints.FreshRate,
    "struck": restraints.Struck,
    "unbudgeted": inspection.Unbudgeted,
    "open_settlements": survey.OpenSettlements,
    "oldest_unfinal": survey.Unfinal,
    "open_incidents": survey.OpenIncidents,
    "use_link": console.Invited,
    "find_session": console.ConsoleSession,
    "view_settlements": views.SettlementRow,
    "stream_settlements": views.SettlementRow,
    "view_few_settlements": views.SettlementRow,
    "view_few_totals": views.StateTotal,
    "uncounted_days": views.Day,
    "view_totals": views.StateTotal,
    "view_settlement": views.SettlementRow,
    "entries_of": views.SettlementEntry,
    "attempts_of": views.Attempt,
    "view_gas": views.GasSpent,
    "view_relayers": views.RelayerRow,
    "view_tenants": views.TenantRow,
    "list_invoices": billing.Invoice,
    "invoice_numbered": billing.Invoice,
    "view_events": views.EventRow,
    "view_discrepancies": discrepancies.Discrepancy,
    "view_discrepancy": discrepancies.Discrepancy,
    "discrepancies_of": discrepancies.Discrepancy,
    "view_networks": views.NetworkRow,
    "list_listings": listings.Row,
    "search_listings": listings.Row,
    "count_listings": listings.Total,
}
QUERIES = [
    query
    for module in (
        "settlements",
        "relayers",
        "listings",
        "reconciliation",
        "billing",
        "books",
        "console",
        "days",
        "discrepancies",
        "rates",
        "restraints",
        "seals",
        "tenants",
        "survey",
        "views",
    )
    for query in load_queries(module).values()
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
async def test_query_prepares_on_the_migrated_schema_and_fills_its_row(database_url: str, query: Query) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await prepare_connection(connection)
        statement = await connection.prepare(query.sql)
        columns = [attribute.name for attribute in statement.get_attributes()]
        if query.kind == "execute":
            assert query.name not in ROW_OF
        else:
            assert columns == list(column_names(ROW_OF[query.name]))
    finally:
        await connection.close()


def test_a_payment_without_other_names_is_looked_up_as_the_one_with_them() -> None:
    with_names, without = settlements.QUERIES["own_records"].sql, settlements.QUERIES["records_of_authorizations"].sql
    assert with_names.partition("union all")[0].replace("$7", "$5").split() == without.rstrip(";\n").split()


@pytest.mark.parametrize(
    ("name", "types", "keys"),
    [
        ("records_of_authorizations", "tttti", ["settlement_authorization"]),
        ("own_records", "ttttttitt", ["settlement_authorization", "settlement_idempotency", "settlement_payment_identifier"]),
    ],
)
async def test_the_record_of_a_payment_is_found_by_its_keys_in_a_ledger_that_was_never_analysed(
    database_url: str, name: str, types: str, keys: list[str]
) -> None:
    """The plan of a prepared statement stays until the table is analysed, and it is made when there is next to nothing in it."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("set plan_cache_mode = force_generic_plan")
    declared = ", ".join({"t": "text[]", "i": "double precision"}[each] for each in types)
    await connection.execute(f"prepare looked_up ({declared}) as {settlements.QUERIES[name].sql}")
    given = ", ".join({"t": "array['x']", "i": "1.0"}[each] for each in types)
    lines = [row[0] for row in await connection.fetch(f"explain execute looked_up ({given})")]
    assert not [line for line in lines if "Seq Scan on settlement" in line]
    every = ("settlement_authorization", "settlement_idempotency", "settlement_payment_identifier")
    assert [key for key in every if any(f"using {key} " in line for line in lines)] == keys
    await connection.close()

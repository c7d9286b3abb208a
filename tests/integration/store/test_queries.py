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
    reconciliation,
    relayers,
    seals,
    settlements,
    survey,
    tenants,
    views,
)
from facilitator.store.db import Query, column_names, load_queries, prepare_connection

ROW_OF = {
    "own_records": settlements.Settlement,
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
    "live_replicas": relayers.LiveReplica,
    "consumed_slots": relayers.ConsumedSlot,
    "record_attempt": relayers.KnownHash,
    "record_stray": relayers.KnownHash,
    "claims_in_blocks": reconciliation.LedgerRow,
    "rows_of_authorizations": reconciliation.LedgerRow,
    "claimless_in_blocks": reconciliation.LedgerRow,
    "settlement_lines": books.SettlementLine,
    "completeness": books.Completeness,
    "journal_lines": books.JournalLine,
    "open_lines": books.JournalLine,
    "balances": books.AccountTotal,
    "add_schedule": billing.ScheduleRow,
    "list_schedules": billing.ScheduleRow,
    "counted": billing.Counted,
    "find_invoice": billing.Invoice,
    "invoiced_after": billing.Invoice,
    "next_number": billing.NextNumber,
    "post_entry": billing.EntryId,
    "opening": billing.Opening,
    "movements": billing.Movement,
    "reconciled_through": discrepancies.Through,
    "list_discrepancies": discrepancies.Discrepancy,
    "lock_discrepancy": discrepancies.Discrepancy,
    "mined_costs": discrepancies.MinedCost,
    "roll_forward": discrepancies.RollForward,
    "matched": discrepancies.Matched,
    "lock_reconciling": discrepancies.Mine,
    "try_lock_seals": seals.Mine,
    "last_seal": seals.Seal,
    "unsealed_entries": EntryRecord,
    "unsealed_events": EventRecord,
    "seals": seals.Seal,
    "sealed_rows": seals.SealedRow,
    "overdue": seals.Overdue,
    "last_closed": seals.LastClosed,
    "low_water": seals.LowWater,
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
    "open_settlements": survey.OpenSettlements,
    "oldest_unfinal": survey.Unfinal,
    "open_incidents": survey.OpenIncidents,
    "use_link": console.Invited,
    "find_session": console.ConsoleSession,
    "view_settlements": views.SettlementRow,
    "view_totals": views.StateTotal,
    "view_settlement": views.SettlementRow,
    "entries_of": views.SettlementEntry,
    "attempts_of": views.Attempt,
    "view_days": views.DayTotal,
    "view_gas": views.GasSpent,
    "view_relayers": views.RelayerRow,
    "view_tenants": views.TenantRow,
    "list_invoices": billing.Invoice,
    "invoice_numbered": billing.Invoice,
    "view_events": views.EventRow,
    "view_discrepancies": discrepancies.Discrepancy,
    "view_discrepancy": discrepancies.Discrepancy,
    "view_networks": views.NetworkRow,
}
QUERIES = [
    query
    for module in (
        "settlements",
        "relayers",
        "reconciliation",
        "billing",
        "books",
        "console",
        "days",
        "discrepancies",
        "rates",
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

"""Every rule that must never break is a constraint: a row planted against it is refused by that constraint's name."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from facilitator.domain.states import PAID, UNRESOLVED, State
from facilitator.store import tenants
from facilitator.store.db import ConstraintViolated, Db
from facilitator.store.settlements import AUTHORIZATION_TAKEN, IDEMPOTENCY_TAKEN, IDENTIFIER_TAKEN

NETWORK = "eip155:84532"
USDC, PAYER, PAY_TO, RELAYER = ("0x" + byte * 20 for byte in ("11", "22", "33", "44"))
HASH = "0x" + "ab" * 32
PROOF = {"tx_hash": HASH, "log_index": 3, "block_number": 7, "block_hash": HASH}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENDS = set(State) - PAID - UNRESOLVED
HEX = ("0x" + "AA" * 20, "aa" * 20, "0x" + "aa" * 19, "0x" + "aa" * 21, "0x" + "gg" * 20)
ROW_NUMBERS = {
    "api_key_pkey",
    "incident_pkey",
    "incident_settlement_id_fkey",
    "journal_entry_pkey",
    "journal_entry_settlement_id_fkey",
    "audit_event_pkey",
    "day_event_pkey",
    "discrepancy_pkey",
    "reconciliation_run_pkey",
    "relayer_slot_pkey",
    "relayer_transaction_slot_id_fkey",
    "replica_pkey",
    "settlement_move_settlement_id_fkey",
    "settlement_pkey",
    "slot_item_settlement_id_fkey",
    "slot_item_slot_id_fkey",
    "tenant_pkey",
}
"""Keys by which rows are found and hang together; no invariant of the ledger rests on them."""


def demanded(state: State) -> dict[str, Any]:
    """All that the schema demands of a settlement in that state."""
    row: dict[str, Any] = {"state": str(state), "resolved_at": None if state in UNRESOLVED else NOW}
    if state in PAID:
        row |= PROOF
    if state is State.SUBMITTED:
        row["tx_hash"] = HASH
    if state in ENDS:
        row["reason"] = "TEST"
    return row


class Ledger:
    """One transaction on a migrated database, with rows that keep every rule unless a test says otherwise."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.connection = connection

    async def insert(self, table: str, row: dict[str, Any], returning: str = "*") -> Any:
        """Put one row in and return what the database made of it."""
        columns, values = ", ".join(row), ", ".join(f"${number}" for number in range(1, len(row) + 1))
        sql = f"insert into {table} ({columns}) values ({values}) returning {returning}"  # noqa: S608 - names of our own schema
        return await self.connection.fetchrow(sql, *row.values())

    async def settlement(self, **changes: Any) -> UUID:
        """A queued settlement."""
        row = {
            "settlement_id": uuid4(),
            "network": NETWORK,
            "asset": USDC,
            "payer": PAYER,
            "auth_nonce": "0x" + uuid4().hex * 2,
            "scheme": "exact",
            "pay_to": PAY_TO,
            "amount_atomic": 10_000,
            "valid_after": 0,
            "valid_before": 2_000_000_000,
            "signature": b"\x01" * 65,
            "fingerprint": b"\x02" * 32,
            "tenant_id": "acme",
            "request_id": "test",
            "state": "queued",
            "admitted_block": 1,
            "answer_holder": "replica",
        } | changes
        settlement_id: UUID = (await self.insert("settlement", row))["settlement_id"]
        return settlement_id

    async def api_key(self, **changes: Any) -> None:
        """A live key of acme."""
        row = {"key_id": "abcdefghijk1", "tenant_id": "acme", "secret_sha256": b"\x03" * 32, "scopes": ["settle"]}
        await self.insert("api_key", row | changes)

    async def slot(self, **changes: Any) -> int:
        """An open slot of the relayer."""
        row = {"network": NETWORK, "relayer": RELAYER, "tx_nonce": 0, "epoch": 1, "kind": "single", "state": "open"}
        slot_id: int = (await self.insert("relayer_slot", row | changes))["slot_id"]
        return slot_id

    async def item(self, **changes: Any) -> None:
        """What a slot carries."""
        await self.insert("slot_item", {"item_index": 0} | changes)

    async def transaction(self, **changes: Any) -> None:
        """A signed transaction of a slot."""
        row = {"tx_hash": HASH, "attempt": 0, "purpose": "payment", "raw": b"\x02", "gas": 120_000, "max_fee_wei": 2}
        await self.insert("relayer_transaction", row | {"max_priority_fee_wei": 1} | changes)

    async def entry(self, **changes: Any) -> int:
        """A pending entry."""
        row = {"phase": "pending", "debit": f"payer:{PAYER}", "credit": f"payee:{PAY_TO}", "asset": f"{NETWORK}/{USDC}"}
        entry_id: int = (await self.insert("journal_entry", row | {"amount_atomic": 10_000} | changes))["entry_id"]
        return entry_id

    async def relayer(self, **changes: Any) -> None:
        """A second relayer."""
        await self.insert("relayer", {"network": NETWORK, "address": "0x" + "55" * 20, "next_tx_nonce": 0} | changes)


@pytest_asyncio.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    """A database with one tenant and one relayer."""
    connection = await asyncpg.connect(database_url)
    rows = Ledger(connection)
    await rows.insert("tenant", {"tenant_id": "acme"})
    await rows.insert("relayer", {"network": NETWORK, "address": RELAYER, "next_tx_nonce": 1})
    yield rows
    await connection.close()


@contextmanager
def refused(constraint: str) -> Iterator[None]:
    """Expect that the block breaks the named constraint."""
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
        yield
    assert caught.value.constraint_name == constraint


# --- settlement ---


async def test_an_authorization_is_on_record_once_whoever_asks(ledger: Ledger) -> None:
    await ledger.insert("tenant", {"tenant_id": "globex"})
    await ledger.settlement(auth_nonce=HASH)
    with refused(AUTHORIZATION_TAKEN):
        await ledger.settlement(auth_nonce=HASH, tenant_id="globex", pay_to="0x" + "66" * 20, amount_atomic=1)


@pytest.mark.parametrize("changes", [{"network": "eip155:8453"}, {"asset": "0x" + "77" * 20}, {"payer": "0x" + "77" * 20}])
async def test_another_network_asset_or_payer_is_another_authorization(ledger: Ledger, changes: dict[str, str]) -> None:
    await ledger.settlement(auth_nonce=HASH)
    await ledger.settlement(auth_nonce=HASH, **changes)


async def test_a_tenant_binds_an_idempotency_key_to_one_settlement(ledger: Ledger) -> None:
    await ledger.insert("tenant", {"tenant_id": "globex"})
    await ledger.settlement(idempotency_key="order-1")
    await ledger.settlement(idempotency_key="order-1", tenant_id="globex")
    await ledger.settlement()
    await ledger.settlement()
    with refused(IDEMPOTENCY_TAKEN):
        await ledger.settlement(idempotency_key="order-1")


@pytest.mark.parametrize("key", ["", "k" * 257])
async def test_an_idempotency_key_has_a_length(ledger: Ledger, key: str) -> None:
    with refused("settlement_idempotency_key_check"):
        await ledger.settlement(idempotency_key=key)


async def test_a_tenant_binds_a_payment_identifier_to_one_settlement(ledger: Ledger) -> None:
    await ledger.insert("tenant", {"tenant_id": "globex"})
    await ledger.settlement(payment_identifier="pay_0123456789abcdef")
    await ledger.settlement(payment_identifier="pay_0123456789abcdef", tenant_id="globex")
    with refused(IDENTIFIER_TAKEN):
        await ledger.settlement(payment_identifier="pay_0123456789abcdef")


@pytest.mark.parametrize("identifier", ["", "i" * 15, "i" * 129, "pay 0123456789abcdef"])
async def test_a_payment_identifier_has_its_form(ledger: Ledger, identifier: str) -> None:
    with refused("settlement_payment_identifier_check"):
        await ledger.settlement(payment_identifier=identifier)


async def test_a_state_that_is_not_in_the_table_cannot_be_stored(ledger: Ledger) -> None:
    with refused("settlement_state_check"):
        await ledger.settlement(state="paid", resolved_at=NOW)


@pytest.mark.parametrize("state", State)
async def test_every_state_of_the_table_can_be_stored(ledger: Ledger, state: State) -> None:
    await ledger.settlement(**demanded(state))


@pytest.mark.parametrize("state", State)
async def test_resolved_at_is_set_exactly_when_the_settlement_is_resolved(ledger: Ledger, state: State) -> None:
    row = demanded(state)
    row["resolved_at"] = NOW if row["resolved_at"] is None else None
    with refused("settlement_resolved"):
        await ledger.settlement(**row)


@pytest.mark.parametrize("state", sorted(PAID))
@pytest.mark.parametrize("part", ["log_index", "block_number", "block_hash"])
async def test_a_paid_settlement_has_its_whole_proof(ledger: Ledger, state: State, part: str) -> None:
    with refused("settlement_proof"):
        await ledger.settlement(**demanded(state) | {part: None})


@pytest.mark.parametrize("state", sorted(PAID | {State.SUBMITTED}))
async def test_a_settlement_that_was_signed_for_has_a_hash(ledger: Ledger, state: State) -> None:
    with refused("settlement_hash"):
        await ledger.settlement(**demanded(state) | {"tx_hash": None})


@pytest.mark.parametrize("state", sorted(ENDS))
async def test_a_settlement_that_ended_otherwise_has_a_reason(ledger: Ledger, state: State) -> None:
    with refused("settlement_reason"):
        await ledger.settlement(**demanded(state) | {"reason": None})


@pytest.mark.parametrize("column", ["asset", "payer", "pay_to"])
@pytest.mark.parametrize("text", HEX)
async def test_addresses_are_lower_case_text(ledger: Ledger, column: str, text: str) -> None:
    with refused(f"settlement_{column}_check"):
        await ledger.settlement(**{column: text})


@pytest.mark.parametrize("text", ["0x" + "AB" * 32, "ab" * 32, "0x" + "ab" * 31, "0x" + "ab" * 33])
@pytest.mark.parametrize("column", ["auth_nonce", "tx_hash", "block_hash"])
async def test_hashes_are_lower_case_text(ledger: Ledger, column: str, text: str) -> None:
    with refused(f"settlement_{column}_check"):
        await ledger.settlement(**{column: text})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("amount_atomic", -1),
        ("moves", -1),
        ("admissions", 0),
        ("log_index", -1),
        ("answer_state", "told"),
        ("confirm_level", "deep"),
        ("screening", '{"decision": "fine"}'),
        ("fingerprint", b"short"),
    ],
)
async def test_a_value_out_of_its_range_is_refused(ledger: Ledger, column: str, value: Any) -> None:
    with refused(f"settlement_{column}_check"):
        await ledger.settlement(**{column: value})


async def test_a_tenant_has_a_known_confirm_level(ledger: Ledger) -> None:
    with refused("tenant_confirm_level_check"):
        await ledger.insert("tenant", {"tenant_id": "globex", "confirm_level": "deep"})


async def test_amounts_and_times_hold_every_uint256(ledger: Ledger) -> None:
    most = 2**256 - 1
    await ledger.settlement(amount_atomic=most, valid_after=most, valid_before=most)


async def test_a_settlement_belongs_to_a_tenant(ledger: Ledger) -> None:
    with refused("settlement_tenant_id_fkey"):
        await ledger.settlement(tenant_id="nobody")


async def test_a_move_is_recorded_once_and_queued_is_no_move(ledger: Ledger) -> None:
    settlement_id = await ledger.settlement()
    row = {"settlement_id": settlement_id, "move": 1, "from_state": "queued", "to_state": "submitted"}
    await ledger.insert("settlement_move", row)
    with refused("settlement_move_pkey"):
        await ledger.insert("settlement_move", row)
    with refused("settlement_move_move_check"):
        await ledger.insert("settlement_move", row | {"move": 0})


# --- relayers, slots, transactions ---


async def test_a_tx_nonce_of_a_relayer_is_used_by_one_slot(ledger: Ledger) -> None:
    await ledger.slot(tx_nonce=7)
    await ledger.slot(tx_nonce=8)
    with refused("relayer_slot_nonce"):
        await ledger.slot(tx_nonce=7, state="consumed_externally")


async def test_a_slot_belongs_to_a_known_relayer(ledger: Ledger) -> None:
    with refused("relayer_slot_network_relayer_fkey"):
        await ledger.slot(relayer="0x" + "99" * 20)


@pytest.mark.parametrize(
    ("state", "mined_tx_hash"), [("included", None), ("finalized", None), ("open", HASH), ("consumed_externally", HASH)]
)
async def test_a_slot_names_the_mined_transaction_exactly_when_one_of_ours_was_mined(
    ledger: Ledger, state: str, mined_tx_hash: str | None
) -> None:
    with refused("relayer_slot_mined"):
        await ledger.slot(state=state, mined_tx_hash=mined_tx_hash)


@pytest.mark.parametrize(("column", "value"), [("tx_nonce", -1), ("kind", "double"), ("state", "lost")])
async def test_a_slot_has_a_known_kind_and_state(ledger: Ledger, column: str, value: Any) -> None:
    with refused(f"relayer_slot_{column}_check"):
        await ledger.slot(**{column: value})


async def test_a_settlement_is_in_at_most_one_unresolved_slot(ledger: Ledger) -> None:
    settlement_id = await ledger.settlement()
    first, second = await ledger.slot(tx_nonce=1), await ledger.slot(tx_nonce=2)
    await ledger.item(slot_id=first, settlement_id=settlement_id)
    with refused("slot_item_one_open_slot"):
        await ledger.item(slot_id=second, settlement_id=settlement_id)
    await ledger.connection.execute("update slot_item set unresolved = false")
    await ledger.item(slot_id=second, settlement_id=settlement_id)
    with refused("slot_item_one_open_slot"):
        await ledger.connection.execute("update slot_item set unresolved = true where slot_id = $1", first)


async def test_a_place_in_a_slot_is_taken_once(ledger: Ledger) -> None:
    slot_id = await ledger.slot()
    await ledger.item(slot_id=slot_id, settlement_id=await ledger.settlement())
    with refused("slot_item_pkey"):
        await ledger.item(slot_id=slot_id, settlement_id=await ledger.settlement())


async def test_a_place_in_a_slot_is_not_negative(ledger: Ledger) -> None:
    with refused("slot_item_item_index_check"):
        await ledger.item(slot_id=await ledger.slot(), settlement_id=await ledger.settlement(), item_index=-1)


async def test_a_transaction_is_recorded_once_and_so_is_an_attempt(ledger: Ledger) -> None:
    slot_id = await ledger.slot()
    await ledger.transaction(slot_id=slot_id)
    with refused("relayer_transaction_pkey"):
        await ledger.transaction(slot_id=slot_id, attempt=1)
    with refused("relayer_transaction_attempt"):
        await ledger.transaction(slot_id=slot_id, tx_hash="0x" + "cd" * 32)


@pytest.mark.parametrize(("column", "value"), [("tx_hash", "0xAB"), ("attempt", -1), ("purpose", "gift")])
async def test_a_transaction_has_a_hash_and_a_purpose(ledger: Ledger, column: str, value: Any) -> None:
    with refused(f"relayer_transaction_{column}_check"):
        await ledger.transaction(**{"slot_id": await ledger.slot(), column: value})


@pytest.mark.parametrize(("column", "value"), [("address", "0xABC"), ("next_tx_nonce", -1), ("status", "asleep")])
async def test_a_relayer_has_an_address_a_next_tx_nonce_and_a_status(ledger: Ledger, column: str, value: Any) -> None:
    with refused(f"relayer_{column}_check"):
        await ledger.relayer(**{column: value})


@pytest.mark.parametrize("key", ["0x" + "11" * 32, "11" * 32, "file:", ""])
async def test_a_relayer_s_key_is_a_reference_and_no_key(ledger: Ledger, key: str) -> None:
    with refused("relayer_key_by_reference"):
        await ledger.relayer(key_reference=key)


async def test_a_relayer_is_on_record_once(ledger: Ledger) -> None:
    with refused("relayer_pkey"):
        await ledger.relayer(address=RELAYER)


# --- journal ---


async def test_an_admission_has_one_pending_entry(ledger: Ledger) -> None:
    settlement_id = await ledger.settlement()
    await ledger.entry(settlement_id=settlement_id, admission=1)
    await ledger.entry(settlement_id=settlement_id, admission=2)
    with refused("journal_entry_pending"):
        await ledger.entry(settlement_id=settlement_id, admission=1)


async def test_a_pending_entry_is_resolved_once(ledger: Ledger) -> None:
    settlement_id = await ledger.settlement()
    pending = await ledger.entry(settlement_id=settlement_id, admission=1)
    await ledger.entry(settlement_id=settlement_id, admission=1, phase="posted", resolves=pending)
    with refused("journal_entry_resolved_once"):
        await ledger.entry(settlement_id=settlement_id, admission=1, phase="voided", resolves=pending)


@pytest.mark.parametrize("phase", ["posted", "voided"])
async def test_what_resolves_says_which_entry(ledger: Ledger, phase: str) -> None:
    with refused("journal_entry_phase"):
        await ledger.entry(phase=phase)


async def test_a_pending_entry_resolves_nothing(ledger: Ledger) -> None:
    with refused("journal_entry_phase"):
        await ledger.entry(resolves=await ledger.entry())


async def test_only_an_entry_on_record_can_be_resolved(ledger: Ledger) -> None:
    with refused("journal_entry_resolves_fkey"):
        await ledger.entry(phase="posted", resolves=999_999)


async def test_an_entry_moves_between_two_accounts(ledger: Ledger) -> None:
    with refused("journal_entry_two_accounts"):
        await ledger.entry(book="own", debit="funding", credit="funding")


@pytest.mark.parametrize(("column", "value"), [("amount_atomic", -1), ("phase", "done")])
async def test_an_entry_has_a_known_phase_and_no_negative_amount(ledger: Ledger, column: str, value: Any) -> None:
    with refused(f"journal_entry_{column}_check"):
        await ledger.entry(**{column: value} | ({"resolves": None} if column == "amount_atomic" else {"resolves": await ledger.entry()}))


@pytest.mark.parametrize(
    "changes",
    [
        {"book": "own"},
        {"book": "other"},
        {"debit": f"gas_expense:{NETWORK}:payment", "credit": f"gas:{NETWORK}:{RELAYER}", "tx_hash": HASH, "admission": 1},
        {"book": "own", "debit": f"payer:{PAYER}", "credit": f"gas:{NETWORK}:{RELAYER}"},
        {"book": "own", "debit": f"gas:{NETWORK}:{RELAYER}", "credit": f"payee:{PAY_TO}"},
    ],
)
async def test_third_party_value_and_our_own_stand_in_different_books(ledger: Ledger, changes: dict[str, Any]) -> None:
    with refused("journal_entry_book"):
        await ledger.entry(**changes)


def gas(**changes: Any) -> dict[str, Any]:
    """What a transaction cost."""
    accounts = {"debit": f"gas_expense:{NETWORK}:payment", "credit": f"gas:{NETWORK}:{RELAYER}", "asset": f"{NETWORK}/native"}
    return {"book": "own", **accounts, "tx_hash": HASH, "admission": 1} | changes


@pytest.mark.parametrize("missing", ["tx_hash", "admission"])
async def test_gas_is_booked_for_a_transaction(ledger: Ledger, missing: str) -> None:
    with refused("journal_entry_gas_of_a_transaction"):
        await ledger.entry(**gas(**{missing: None}))


async def test_the_cost_of_a_transaction_is_booked_once_for_each_time_it_was_mined(ledger: Ledger) -> None:
    await ledger.entry(**gas())
    await ledger.entry(**gas(admission=2))
    await ledger.entry(**gas(debit=f"gas_expense:{NETWORK}:revert"))
    with refused("journal_entry_gas"):
        await ledger.entry(**gas())


async def test_a_share_of_a_cost_is_not_negative(ledger: Ledger) -> None:
    with refused("slot_item_cost_wei_check"):
        await ledger.item(slot_id=await ledger.slot(), settlement_id=await ledger.settlement(), cost_wei=-1)


@pytest.mark.parametrize(
    "sql",
    [
        "update journal_entry set amount_atomic = amount_atomic + 1",
        "update journal_entry set booked_at = booked_at where false",
        "delete from journal_entry",
        "truncate journal_entry cascade",
    ],
)
async def test_nobody_changes_the_journal(ledger: Ledger, sql: str) -> None:
    await ledger.entry()
    with refused("journal_entry_append_only"):
        await ledger.connection.execute(sql)


@pytest.mark.parametrize(
    ("role", "sql"),
    [
        (role, sql)
        for role, forbidden in {
            "facilitator_app": [
                "update journal_entry set amount_atomic = 0",
                "delete from journal_entry",
                "truncate journal_entry",
                "alter table journal_entry disable trigger journal_entry_append_only",
                "update settlement_move set reason = null",
                "delete from settlement",
                "delete from schema_migration",
                "update schema_migration set checksum = ''",
                "select grant_roles()",
            ],
            "facilitator_auditor": [
                "insert into incident (network, kind, detail) values ('n', 'k', 'd')",
                "update journal_entry set amount_atomic = 0",
                "delete from journal_entry",
                "update settlement set state = 'failed'",
                "select secret_sha256 from api_key",
            ],
        }.items()
        for sql in forbidden
    ],
)
async def test_a_role_may_do_what_it_must_and_no_more(ledger: Ledger, role: str, sql: str) -> None:
    await ledger.connection.execute(f"set role {role}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await ledger.connection.execute(sql)
    await ledger.connection.fetch("select from journal_entry")


# --- billing ---


@pytest.mark.parametrize(
    ("constraint", "table", "row"),
    [
        ("rate_usd_e8_check", "rate", {"network": NETWORK, "quoted_at": NOW, "source": "s", "round": "1", "usd_e8": 0}),
        (
            "fee_schedule_version_check",
            "fee_schedule",
            {"tenant_id": "acme", "version": 0, "effective_from": date(2026, 1, 1), "terms": "{}"},
        ),
        (
            "fee_schedule_tenant_id_fkey",
            "fee_schedule",
            {"tenant_id": "nobody", "version": 1, "effective_from": date(2026, 1, 1), "terms": "{}"},
        ),
        ("invoice_number_check", "invoice", {"number": 0, "tenant_id": "acme", "month": date(2026, 1, 1), "document": ""}),
        ("invoice_month_check", "invoice", {"number": 1, "tenant_id": "acme", "month": date(2026, 1, 2), "document": ""}),
        ("invoice_tenant_id_fkey", "invoice", {"number": 1, "tenant_id": "nobody", "month": date(2026, 1, 1), "document": ""}),
        (
            "invoice_entry_id_fkey",
            "invoice",
            {"number": 1, "tenant_id": "acme", "month": date(2026, 1, 1), "document": "", "entry_id": 9},
        ),
    ],
)
async def test_a_bill_that_makes_no_sense(ledger: Ledger, constraint: str, table: str, row: dict[str, Any]) -> None:
    with refused(constraint):
        await ledger.insert(table, row)


async def test_one_rate_version_and_invoice_of_a_kind(ledger: Ledger) -> None:
    rate = {"network": NETWORK, "quoted_at": NOW, "source": "s", "round": "1", "usd_e8": 1}
    await ledger.insert("rate", rate)
    with refused("rate_pkey"):
        await ledger.insert("rate", rate | {"round": "2"})
    schedule = {"tenant_id": "acme", "version": 1, "effective_from": date(2026, 1, 1), "terms": "{}"}
    await ledger.insert("fee_schedule", schedule)
    with refused("fee_schedule_pkey"):
        await ledger.insert("fee_schedule", schedule | {"effective_from": date(2026, 1, 2)})
    with refused("fee_schedule_one_a_day"):
        await ledger.insert("fee_schedule", schedule | {"version": 2})
    invoice = {"number": 1, "tenant_id": "acme", "month": date(2026, 1, 1), "document": ""}
    await ledger.insert("invoice", invoice)
    with refused("invoice_pkey"):
        await ledger.insert("invoice", invoice | {"month": date(2026, 2, 1)})
    with refused("invoice_one_a_month"):
        await ledger.insert("invoice", invoice | {"number": 2})


# --- discrepancies ---

FOUND = {"network": NETWORK, "class": "R1", "subject": "s", "expected": "e", "got": "g"}


@pytest.mark.parametrize(
    ("constraint", "table", "row"),
    [
        ("discrepancy_class_check", "discrepancy", FOUND | {"class": "R10"}),
        ("discrepancy_resolved", "discrepancy", FOUND | {"resolved_at": NOW, "note": "n"}),
        ("discrepancy_resolved", "discrepancy", FOUND | {"resolved_by": "ada"}),
        ("discrepancy_settlement_id_fkey", "discrepancy", FOUND | {"settlement_id": UUID(int=1)}),
        ("discrepancy_resolution_entry_fkey", "discrepancy", FOUND | {"resolution_entry": 9}),
        (
            "reconciliation_run_range",
            "reconciliation_run",
            {"network": NETWORK, "from_block": 2, "to_block": 1, "to_hash": HASH, "found": 0, "background": True},
        ),
        (
            "relayer_balance_wei_check",
            "relayer_balance",
            {"network": NETWORK, "relayer": RELAYER, "block_number": 1, "wei": -1, "last_entry": 0},
        ),
    ],
)
async def test_a_finding_that_makes_no_sense(ledger: Ledger, constraint: str, table: str, row: dict[str, Any]) -> None:
    with refused(constraint):
        await ledger.insert(table, row)


async def test_a_discrepancy_stands_once_and_an_entry_explains_one(ledger: Ledger) -> None:
    entry_id = await ledger.entry()
    await ledger.insert("discrepancy", FOUND | {"resolution_entry": entry_id})
    with refused("discrepancy_subject"):
        await ledger.insert("discrepancy", FOUND)
    with refused("discrepancy_entry"):
        await ledger.insert("discrepancy", FOUND | {"subject": "t", "resolution_entry": entry_id})
    balance = {"network": NETWORK, "relayer": RELAYER, "block_number": 1, "wei": 1, "last_entry": 0}
    await ledger.insert("relayer_balance", balance)
    with refused("relayer_balance_pkey"):
        await ledger.insert("relayer_balance", balance)


# --- seals and days ---

SEAL = {"seal_no": 1, "leaves": 1, "root": b"r" * 32, "head": b"h" * 32, "journal_through": 1, "audit_through": 0}
LEAF = {"source": "journal", "row_id": 1, "seal_no": 1, "position": 0, "book_day": date(2026, 1, 1), "leaf": b"l" * 32}
DAY = {"day": date(2026, 1, 1), "kind": "closed", "actor": "ada", "document": "{}", "head": b"h" * 32}


@pytest.mark.parametrize(
    ("constraint", "table", "row"),
    [
        ("seal_seal_no_check", "seal", SEAL | {"seal_no": 0}),
        ("seal_leaves_check", "seal", SEAL | {"seal_no": 2, "leaves": 0}),
        ("seal_root_check", "seal", SEAL | {"seal_no": 2, "root": b""}),
        ("seal_head_check", "seal", SEAL | {"seal_no": 2, "head": b""}),
        ("seal_pkey", "seal", SEAL),
        ("sealed_leaf_source_check", "sealed_leaf", LEAF | {"source": "other", "book_day": None}),
        ("sealed_leaf_position_check", "sealed_leaf", LEAF | {"position": -1}),
        ("sealed_leaf_leaf_check", "sealed_leaf", LEAF | {"leaf": b""}),
        ("sealed_leaf_day", "sealed_leaf", LEAF | {"book_day": None}),
        ("sealed_leaf_day", "sealed_leaf", LEAF | {"source": "audit"}),
        ("sealed_leaf_seal_no_fkey", "sealed_leaf", LEAF | {"seal_no": 9}),
        ("sealed_leaf_place", "sealed_leaf", LEAF | {"row_id": 8, "position": 5}),
        ("sealed_leaf_pkey", "sealed_leaf", LEAF | {"row_id": 7}),
        ("day_event_kind_check", "day_event", DAY | {"kind": "opened"}),
        ("day_event_head_check", "day_event", DAY | {"head": b""}),
        ("day_event_two_people", "day_event", DAY | {"kind": "reopened"}),
        ("day_event_two_people", "day_event", DAY | {"kind": "reopened", "second": "ada"}),
    ],
)
async def test_a_seal_or_a_day_that_makes_no_sense(ledger: Ledger, constraint: str, table: str, row: dict[str, Any]) -> None:
    await ledger.insert("seal", SEAL)
    await ledger.insert("sealed_leaf", LEAF | {"row_id": 7, "position": 5})
    with refused(constraint):
        await ledger.insert(table, row)


@pytest.mark.parametrize("table", ["seal", "sealed_leaf", "audit_event", "day_event", "fee_schedule", "invoice"])
@pytest.mark.parametrize("sql", ["delete from {}", "truncate {} cascade"])
async def test_nobody_changes_what_is_sealed_or_closed(ledger: Ledger, table: str, sql: str) -> None:
    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
        await ledger.connection.execute(sql.format(table))


# --- tenants and keys ---


@pytest.mark.parametrize("tenant_id", ["", "Acme", "-acme", "a" * 64, "acme corp"])
async def test_a_tenant_has_a_plain_name(ledger: Ledger, tenant_id: str) -> None:
    with refused("tenant_tenant_id_check"):
        await ledger.insert("tenant", {"tenant_id": tenant_id})


@pytest.mark.parametrize(
    ("column", "value"),
    [("key_id", "short"), ("key_id", "ABCDEFGHIJKL"), ("secret_sha256", b"secret"), ("scopes", []), ("scopes", ["settle", "root"])],
)
async def test_a_key_has_an_id_a_hash_and_known_scopes(ledger: Ledger, column: str, value: Any) -> None:
    with refused(f"api_key_{column}_check"):
        await ledger.api_key(**{column: value})


async def test_a_key_belongs_to_a_tenant(ledger: Ledger) -> None:
    with refused("api_key_tenant_id_fkey"):
        await ledger.api_key(tenant_id="nobody")


async def test_a_key_is_replaced_by_one_other_at_most(ledger: Ledger) -> None:
    await ledger.api_key()
    await ledger.api_key(key_id="abcdefghijk2", replaces="abcdefghijk1")
    with refused("api_key_replaced_once"):
        await ledger.api_key(key_id="abcdefghijk3", replaces="abcdefghijk1")


# --- the console ---

LATER = datetime(2126, 1, 1, tzinfo=UTC)
LINK = {"secret_sha256": b"s" * 32, "person": "ada", "role": "viewer", "made_by": "cli", "expires_at": LATER}
SIGNED_IN = {"secret_sha256": b"s" * 32, "person": "ada", "role": "viewer", "method": "link", "expires_at": LATER}


@pytest.mark.parametrize(
    ("constraint", "table", "row"),
    [
        ("console_link_secret_sha256_check", "console_link", LINK | {"secret_sha256": b"s"}),
        ("console_link_person_check", "console_link", LINK | {"person": ""}),
        ("console_link_role_check", "console_link", LINK | {"role": "root"}),
        ("console_link_in_time", "console_link", LINK | {"used_at": LATER}),
        ("console_session_secret_sha256_check", "console_session", SIGNED_IN | {"secret_sha256": b"s"}),
        ("console_session_person_check", "console_session", SIGNED_IN | {"person": ""}),
        ("console_session_role_check", "console_session", SIGNED_IN | {"role": "root"}),
        ("console_session_method_check", "console_session", SIGNED_IN | {"method": "password"}),
        ("console_session_ends", "console_session", SIGNED_IN | {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}),
    ],
)
async def test_a_link_or_a_session_that_makes_no_sense(ledger: Ledger, constraint: str, table: str, row: dict[str, Any]) -> None:
    with refused(constraint):
        await ledger.insert(table, row)


async def test_a_day_is_counted_once_and_of_nothing_there_is_no_count(ledger: Ledger) -> None:
    day = {"day": date(2026, 1, 1)}
    await ledger.insert("settlement_day", day)
    with refused("settlement_day_pkey"):
        await ledger.insert("settlement_day", day)
    count = {"tenant_id": "acme", "network": NETWORK, "asset": "a", "state": "finalized", "amount_atomic": 1}
    with refused("settlement_tally_settlements_check"):
        await ledger.insert("settlement_tally", day | count | {"settlements": 0})
    with refused("settlement_tally_day_fkey"):
        await ledger.insert("settlement_tally", count | {"day": date(2026, 1, 2), "settlements": 1})


async def test_five_minutes_are_counted_once_and_no_more_is_held_than_was_settled(ledger: Ledger) -> None:
    slice_ = {"starts_at": datetime(2026, 1, 1, 0, 5, tzinfo=UTC)}
    await ledger.insert("settled_slice", slice_ | {"undecided": []})
    with refused("settled_slice_pkey"):
        await ledger.insert("settled_slice", slice_ | {"undecided": []})
    with refused("settled_slice_five_minutes"):
        await ledger.insert("settled_slice", {"starts_at": datetime(2026, 1, 1, 0, 6, tzinfo=UTC), "undecided": []})
    of = {"network": NETWORK, "asset": "a", "settled_atomic": 10}
    for held in (-1, 11):
        with refused("settled_sum_held"):
            await ledger.insert("settled_sum", slice_ | of | {"held_atomic": held})
    await ledger.insert("settled_sum", slice_ | of | {"held_atomic": 10})
    with refused("settled_sum_pkey"):
        await ledger.insert("settled_sum", slice_ | of | {"held_atomic": 0})
    with refused("settled_sum_starts_at_fkey"):
        await ledger.insert("settled_sum", of | {"starts_at": datetime(2026, 1, 1, 0, 10, tzinfo=UTC), "held_atomic": 0})


async def test_a_secret_of_the_console_is_of_one_link_and_of_one_session(ledger: Ledger) -> None:
    await ledger.insert("console_link", LINK)
    with refused("console_link_pkey"):
        await ledger.insert("console_link", LINK)
    await ledger.insert("console_session", SIGNED_IN)
    with refused("console_session_pkey"):
        await ledger.insert("console_session", SIGNED_IN)


# --- gas budgets, strikes, tokens ---

GAS_DAY = {"tenant_id": "acme", "day": date(2026, 1, 1), "unit": NETWORK, "most": 10, "held": 10}
TOKEN_USE = {"key_id": "k" * 12, "use_sha256": b"u" * 32, "ends_at": NOW}


async def test_no_more_gas_is_held_and_spent_than_the_budget_was_when_it_was_held(ledger: Ledger) -> None:
    await ledger.insert("gas_day", GAS_DAY | {"unit": "usd", "most": None, "held": 10**30})
    await ledger.insert("gas_day", GAS_DAY)
    with refused("gas_day_pkey"):
        await ledger.insert("gas_day", GAS_DAY)
    with refused("gas_day_within"):
        await ledger.connection.execute("update gas_day set spent = 1 where unit = $1", NETWORK)
    with refused("gas_day_tenant_id_fkey"):
        await ledger.insert("gas_day", GAS_DAY | {"tenant_id": "nobody"})


async def test_a_settlement_is_struck_once_for_a_transaction(ledger: Ledger) -> None:
    settlement_id = await ledger.settlement()
    row = {
        "settlement_id": settlement_id,
        "tx_hash": HASH,
        "tenant_id": "acme",
        "payer": "0x" + "01" * 20,
        "reason": "INSUFFICIENT_BALANCE",
        "of_payer": True,
    }
    await ledger.insert("strike", row)
    with refused("strike_pkey"):
        await ledger.insert("strike", row)
    with refused("strike_settlement_id_fkey"):
        await ledger.insert("strike", row | {"settlement_id": uuid4()})
    with refused("strike_tenant_id_fkey"):
        await ledger.insert("strike", row | {"tx_hash": "0x" + "0f" * 32, "tenant_id": "nobody"})


async def test_a_signed_token_is_used_once(ledger: Ledger) -> None:
    await ledger.insert("token_use", TOKEN_USE)
    with refused("token_use_pkey"):
        await ledger.insert("token_use", TOKEN_USE)
    with refused("token_use_use_sha256_check"):
        await ledger.insert("token_use", TOKEN_USE | {"use_sha256": b"short"})


# --- listings ---


LISTED: dict[str, Any] = {
    "tenant_id": "acme",
    "resource": "https://api.example/x",
    "kind": "http",
    "operation": "GET",
    "version": 2,
    "entry": "{}",
    "prices": "[]",
    "words": "",
    "settled": 1,
}


async def test_a_resource_is_listed_once_for_each_tenant_and_operation(ledger: Ledger) -> None:
    await ledger.insert("tenant", {"tenant_id": "globex"})
    for changes in ({}, {"tenant_id": "globex"}, {"operation": "POST"}, {"kind": "mcp"}, {"resource": "https://api.example/y"}):
        await ledger.insert("listing", LISTED | changes)
    with refused("listing_pkey"):
        await ledger.insert("listing", LISTED)
    with refused("listing_tenant_id_fkey"):
        await ledger.insert("listing", LISTED | {"tenant_id": "nobody"})


async def test_a_listing_of_the_longest_name_fits_into_its_key(ledger: Ledger) -> None:
    long = {"tenant_id": "t" * 63, "resource": "https://" + token_urlsafe(1800)[:2340], "operation": token_urlsafe(128)[:128]}
    await ledger.insert("tenant", {"tenant_id": long["tenant_id"]})
    await ledger.insert("listing", LISTED | long)


@pytest.mark.parametrize(
    ("constraint", "changes"),
    [
        ("listing_resource_check", {"resource": "https://" + "x" * 4096}),
        ("listing_kind_check", {"kind": "ftp"}),
        ("listing_operation_check", {"operation": ""}),
        ("listing_version_check", {"version": 3}),
        ("listing_settled_check", {"settled": 0}),
    ],
)
async def test_a_listing_has_its_form(ledger: Ledger, constraint: str, changes: dict[str, Any]) -> None:
    with refused(constraint):
        await ledger.insert("listing", LISTED | changes)


# --- what days earned ---


EARNED: dict[str, Any] = {"zone": "UTC", "day": date(2026, 1, 1), "fees_micros": 5, "unpriced": 0, "terms": 0}
GAS_EARNED: dict[str, Any] = {
    "zone": "UTC", "day": date(2026, 1, 1), "network": NETWORK, "relayer": "0x1", "cause": "payment", "transactions": 1, "amount_wei": 1,
    "usd_micros": 1, "unrated": 0,
}  # fmt: skip


async def test_a_day_s_earnings_are_known_or_said_not_to_be(ledger: Ledger) -> None:
    for constraint, changes in (
        ("earnings_day_unpriced_check", {"unpriced": -1}),
        ("earnings_day_known", {"unpriced": 1}),
        ("earnings_day_known", {"fees_micros": None}),
    ):
        with refused(constraint):
            await ledger.insert("earnings_day", EARNED | changes)
    with refused("earnings_gas_zone_day_fkey"):
        await ledger.insert("earnings_gas", GAS_EARNED)
    await ledger.insert("earnings_day", EARNED)
    with refused("earnings_day_pkey"):
        await ledger.insert("earnings_day", EARNED)
    for constraint, changes in (
        ("earnings_gas_transactions_check", {"transactions": 0}),
        ("earnings_gas_unrated_check", {"unrated": -1}),
        ("earnings_gas_known", {"unrated": 1}),
        ("earnings_gas_known", {"usd_micros": None}),
    ):
        with refused(constraint):
            await ledger.insert("earnings_gas", GAS_EARNED | changes)
    await ledger.insert("earnings_gas", GAS_EARNED)
    with refused("earnings_gas_pkey"):
        await ledger.insert("earnings_gas", GAS_EARNED)


# --- exports ---


JOB: dict[str, Any] = {"kind": "gas", "format": "csv", "asked": "{}", "person": "ada"}
RUNNING = JOB | {"state": "running", "place": 1, "started_at": NOW, "seen_at": NOW}
MADE = JOB | {"state": "done", "manifest": "{}", "bytes": 1, "ended_at": NOW, "expires_at": LATER}


@pytest.mark.parametrize(
    ("constraint", "row"),
    [
        ("export_job_kind_check", JOB | {"kind": "secrets"}),
        ("export_job_format_check", JOB | {"format": "exe"}),
        ("export_job_person_check", JOB | {"person": ""}),
        ("export_job_state_check", JOB | {"state": "lost"}),
        ("export_job_place", RUNNING | {"place": None}),
        ("export_job_place", JOB | {"place": 1}),
        ("export_job_started", RUNNING | {"seen_at": None}),
        ("export_job_started", RUNNING | {"started_at": None, "seen_at": None}),
        ("export_job_ended", JOB | {"state": "cancelled"}),
        ("export_job_ended", JOB | {"ended_at": NOW}),
        ("export_job_done", MADE | {"manifest": None}),
        ("export_job_done", MADE | {"expires_at": None}),
        ("export_job_failed", JOB | {"state": "failed", "ended_at": NOW}),
        ("export_job_failed", JOB | {"problem": "none"}),
    ],
)
async def test_an_export_that_makes_no_sense(ledger: Ledger, constraint: str, row: dict[str, Any]) -> None:
    with refused(constraint):
        await ledger.insert("export_job", row)


async def test_one_export_runs_in_a_place_and_each_part_is_of_one(ledger: Ledger) -> None:
    export = {"export_id": UUID(int=1)}
    await ledger.insert("export_job", RUNNING | export)
    with refused("export_job_one_a_place"):
        await ledger.insert("export_job", RUNNING)
    with refused("export_job_pkey"):
        await ledger.insert("export_job", MADE | export)
    part = export | {"chunk_no": 0, "content": b"part"}
    await ledger.insert("export_chunk", part)
    with refused("export_chunk_pkey"):
        await ledger.insert("export_chunk", part)
    with refused("export_chunk_chunk_no_check"):
        await ledger.insert("export_chunk", part | {"chunk_no": -1})
    with refused("export_chunk_content_check"):
        await ledger.insert("export_chunk", part | {"chunk_no": 1, "content": b""})
    with refused("export_chunk_export_id_fkey"):
        await ledger.insert("export_chunk", part | {"export_id": UUID(int=2)})


# --- what the code sees of it ---


async def test_the_store_names_the_constraint_that_was_broken(ledger: Ledger, database_url: str) -> None:
    await ledger.api_key()
    db = await Db.connect(database_url, connections_max=1)
    try:
        with pytest.raises(ConstraintViolated) as caught:
            await tenants.create_api_key(db, tenants.generate_key(), "nobody", ["settle"], None)
        assert caught.value.constraint == "api_key_tenant_id_fkey"
    finally:
        await db.close()


async def test_every_constraint_of_the_schema_is_broken_above(ledger: Ledger) -> None:
    """So that a new rule comes with its planted violation. `not null` and the keys that only number rows stand aside."""
    named = await ledger.connection.fetch(
        """select c.conname::text as name from pg_constraint c join pg_class t on t.oid = c.conrelid
            where t.relnamespace = 'public'::regnamespace and t.relname <> 'schema_migration' and c.contype in ('c', 'u', 'p', 'f')
           union select i.indexrelid::regclass::text from pg_index i join pg_class t on t.oid = i.indrelid
            where t.relnamespace = 'public'::regnamespace and t.relname <> 'schema_migration' and i.indisunique"""
    )
    text = Path(__file__).read_text("utf-8")
    tested = text[text.index("async def test_an_authorization_is_on_record") : text.index("async def test_the_store_names")]
    tested += AUTHORIZATION_TAKEN + IDEMPOTENCY_TAKEN + IDENTIFIER_TAKEN
    assert {row["name"] for row in named if not covered(row["name"], tested)} == ROW_NUMBERS


def covered(name: str, text: str) -> bool:
    """Written out, or made of a table and a column that a parametrized test breaks."""
    return name in text or any(
        f'refused(f"{table}_{{column}}_check")' in text and name == f"{table}_{column}_check" and f'"{column}"' in text
        for table in ("settlement", "relayer_slot", "relayer_transaction", "relayer", "journal_entry", "api_key")
        for column in [name.removeprefix(f"{table}_").removesuffix("_check")]
    )

"""A reorganisation is taken in whatever stands on record: one settlement that is oddly placed must not keep a network's others waiting."""

from facilitator.store.settlements import QUERIES
from tests.integration.store.test_constraints import HASH, NETWORK, PROOF, RELAYER, Ledger, ledger

__all__ = ["ledger"]


async def test_what_an_earlier_slot_paid_while_a_later_one_is_open_is_open_again_in_one_slot(ledger: Ledger) -> None:
    """The first slot was mined in vain, reorganised away, and mined again: that time it paid, before the second one was mined."""
    included = {"state": "included", "mined_tx_hash": HASH, "block_number": PROOF["block_number"], "block_hash": PROOF["block_hash"]}
    settlement_id = await ledger.settlement(state="included", resolved_at=await ledger.connection.fetchval("select now()"), **PROOF)
    first, second = await ledger.slot(tx_nonce=100, **included), await ledger.slot(tx_nonce=101)
    await ledger.item(slot_id=first, settlement_id=settlement_id, unresolved=False)
    await ledger.item(slot_id=second, settlement_id=settlement_id)
    await ledger.transaction(slot_id=first)

    await ledger.connection.fetch(QUERIES["reopen"].sql, NETWORK, [PROOF["block_number"]], [PROOF["block_hash"]])

    assert await ledger.connection.fetchval("select state from settlement where settlement_id = $1", settlement_id) == "submitted"
    assert await ledger.connection.fetchval("select count(*) from relayer_slot where relayer = $1 and state = 'open'", RELAYER) == 2
    rows = await ledger.connection.fetch("select slot_id from slot_item where settlement_id = $1 and unresolved", settlement_id)
    assert [row["slot_id"] for row in rows] == [second]

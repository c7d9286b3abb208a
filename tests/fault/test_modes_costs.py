"""What payments cost, and what gas and fees do behind our back. Numbers as in docs/faults.md."""

from typing import Any

import pytest

from facilitator.api.settlements import render
from facilitator.store import settlements
from facilitator.store.inspection import inspect
from tests.fault.conftest import StartScene
from tests.fault.test_modes_chain import batched, buyers, drain
from tests.fixtures.base_sim import Call, Rewrite
from tests.fixtures.scene import Scene, reason

RECEIPT = "eth_getTransactionReceipt"
L1_FEE_WEI = 7_000_000_123
OPERATOR_SCALAR, OPERATOR_CONSTANT_WEI = 3, 17


def charge(scene: Scene, *, jovian: bool) -> None:
    """From here on receipts are those of an OP Stack chain."""
    fields = {"l1Fee": hex(L1_FEE_WEI), "operatorFeeScalar": hex(OPERATOR_SCALAR), "operatorFeeConstant": hex(OPERATOR_CONSTANT_WEI)}
    fields |= {"daFootprintGasScalar": "0x94"} if jovian else {}

    def charged(call: Call, receipt: Any) -> Any:
        del call
        return receipt if receipt is None else receipt | fields

    def surcharge(receipt: dict[str, Any]) -> int:
        scaled = int(receipt["gasUsed"], 16) * OPERATOR_SCALAR
        return L1_FEE_WEI + (scaled * 100 if jovian else scaled // 10**6) + OPERATOR_CONSTANT_WEI

    scene.sim.plant(Rewrite(charged, method=RECEIPT))
    scene.surcharge = surcharge


async def final(scene: Scene) -> None:
    """Blocks until everything is final."""

    async def nothing_left() -> bool:
        return not await scene.rows("select from relayer_slot where state <> 'finalized' limit 1")

    await scene.until(nothing_left, "finality", mine=True)


async def book(scene: Scene) -> list[Any]:
    """Our own book, in order."""
    return await scene.rows(
        "select entry_id, phase, debit, credit, asset, amount_atomic, tx_hash, resolves, admission from journal_entry"
        " where book = 'own' order by entry_id"
    )


@pytest.mark.parametrize("jovian", [False, True], ids=["isthmus", "jovian"])
async def test_a_batch_of_which_two_fail_is_shared_out_to_the_wei_by_cause_and_posted_when_final(
    start_scene: StartScene, *, jovian: bool
) -> None:
    scene = await start_scene(chain={"automine": False, "slots_in_an_epoch": 2})
    charge(scene, jovian=jovian)
    rig = await scene.engine(batching="adaptive", batch_min=1)
    payers = await buyers(scene, 7)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = await batched(scene, rig, payers, [scene.buyer.address] * 7)
    for payer in payers[1:3]:
        await drain(scene, payer)
    scene.sim.pool.hold = None

    answers = await scene.answers(tasks)

    assert [reason(answer) for answer in answers].count(None) == 6
    [single, batch] = await scene.rows(
        "select mined_tx_hash, gas_used * effective_gas_price_wei as l2, l1_fee_wei, operator_fee_wei, gas_used"
        " from relayer_slot join relayer_transaction on tx_hash = mined_tx_hash order by tx_nonce"
    )
    scaled = batch["gas_used"] * OPERATOR_SCALAR
    assert batch["l1_fee_wei"] == L1_FEE_WEI
    assert batch["operator_fee_wei"] == (scaled * 100 if jovian else scaled // 10**6) + OPERATOR_CONSTANT_WEI
    cost = batch["l2"] + batch["l1_fee_wei"] + batch["operator_fee_wei"]
    rows = await scene.rows(
        "select cost_wei, s.state from slot_item join relayer_slot using (slot_id) join settlement s using (settlement_id)"
        " where kind = 'batch' order by item_index"
    )
    assert sum(row["cost_wei"] for row in rows) == cost
    paid = sum(row["cost_wei"] for row in rows if row["state"] == "included")
    entries = [entry for entry in await book(scene) if entry["tx_hash"] == batch["mined_tx_hash"]]
    gas, relayer = f"gas_expense:{scene.network}", f"gas:{scene.network}:{scene.relayers[0].address.lower()}"
    assert [(entry["phase"], entry["debit"], entry["credit"], entry["amount_atomic"]) for entry in entries] == [
        ("pending", f"{gas}:payment", relayer, paid),
        ("pending", f"{gas}:revert", relayer, cost - paid),
    ]
    assert {entry["asset"] for entry in entries} == {f"{scene.network}/native"}

    await final(scene)

    posted = [entry for entry in await book(scene) if entry["phase"] == "posted"]
    assert {(entry["resolves"], entry["amount_atomic"]) for entry in posted} == {
        (entry["entry_id"], entry["amount_atomic"]) for entry in await book(scene) if entry["phase"] == "pending"
    }
    assert len(posted) == 3
    assert single["mined_tx_hash"] in {entry["tx_hash"] for entry in posted}
    await scene.finish(settled=6)


async def test_what_a_settlement_cost_is_told_part_by_part_and_adds_up(scene: Scene) -> None:
    charge(scene, jovian=True)
    rig = await scene.engine()
    answer = await scene.answer(scene.settle(rig))
    [record] = await settlements.page(rig.db, tenant_id="acme", limit=1)

    told: Any = render(record, [], await settlements.costs(rig.db, [record.settlement_id]), [])["cost"]

    [transaction] = told["transactions"]
    assert transaction["transaction"] == answer.result.tx_hash
    parts = [int(transaction[part]) for part in ("l2FeeWei", "l1FeeWei", "operatorFeeWei")]
    assert parts[1] == L1_FEE_WEI
    assert parts[2] > OPERATOR_CONSTANT_WEI
    assert sum(parts) == int(transaction["feeWei"]) == int(transaction["shareWei"]) == int(told["wei"])
    await scene.finish(settled=1)


async def test_a_reorganisation_voids_what_gas_cost_and_the_next_inclusion_books_it_again(scene: Scene) -> None:
    await scene.sim.mine(3)  # what the test itself put on the chain must stay
    rig = await scene.engine()
    assert reason(await scene.answer(scene.settle(rig))) is None
    [entry] = await book(scene)
    [mined] = await scene.rows("select block_number from relayer_slot")

    await scene.reorganise(await scene.block() - mined["block_number"] + 1)

    async def again() -> bool:
        return await scene.states() == ["included"] and len(await book(scene)) == 3

    await scene.until(again, "the payment in another block", mine=True)
    first, voided, second = await book(scene)
    assert first == entry
    assert (voided["phase"], voided["resolves"], voided["amount_atomic"]) == ("voided", first["entry_id"], first["amount_atomic"])
    assert (second["phase"], second["tx_hash"], second["admission"]) == ("pending", first["tx_hash"], 2)
    [row] = await scene.rows("select cost_wei from slot_item")
    assert row["cost_wei"] == second["amount_atomic"]
    await scene.finish(settled=1)


async def test_two_replicas_that_see_the_same_receipt_book_its_cost_once(scene: Scene) -> None:
    rig = await scene.engine()
    task = await scene.settle_pooled(rig)
    watcher = rig.engine._watchers[scene.network]
    [slot] = watcher._open.values()
    assert reason(await scene.answer(task)) is None
    watcher.add(slot)  # as a replica knows it that has not heard yet

    await watcher.look()

    assert len(await book(scene)) == 1
    await scene.finish(settled=1)


async def test_an_engine_whose_login_is_a_member_of_the_application_role_wants_for_nothing(scene: Scene) -> None:
    scene.databases[-1] += "&role=facilitator_app" if "?" in scene.databases[-1] else "?role=facilitator_app"
    await scene.sim.mine(3)
    rig = await scene.engine()
    assert reason(await scene.answer(scene.settle(rig))) is None
    [mined] = await scene.rows("select block_number from relayer_slot")
    await scene.reorganise(await scene.block() - mined["block_number"] + 1)

    async def booked_again() -> bool:
        return len(await book(scene)) == 3

    await scene.until(booked_again, "the payment in another block", mine=True)
    assert not (await inspect(rig.db)).missing
    assert not (await inspect(rig.db)).excessive
    await scene.finish(settled=1)

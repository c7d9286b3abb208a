"""What payments cost, and what gas and fees do behind our back. Numbers as in docs/faults.md."""

from typing import Any

import pytest
from prometheus_client import REGISTRY

from facilitator.api.settlements import render
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.token import BASE_SEPOLIA_USDC
from facilitator.domain import abi
from facilitator.domain.batching import GasTable
from facilitator.domain.states import PAID
from facilitator.errors import OverloadFault
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from facilitator.store import settlements
from facilitator.store.inspection import inspect
from tests.fault.conftest import StartScene
from tests.fault.test_modes_chain import LOOPS_FOR_EVER, batched, buyers, drain
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
    paid = sum(row["cost_wei"] for row in rows if row["state"] in PAID)
    entries = [entry for entry in await book(scene) if entry["tx_hash"] == batch["mined_tx_hash"] and entry["phase"] == "pending"]
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
    assert (voided["phase"], voided["resolves"]) == ("voided", first["entry_id"])
    for what in ("debit", "credit", "asset", "amount_atomic", "tx_hash"):
        assert voided[what] == first[what]
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


# --- 15: a tip that follows the delay ---


async def test_mode_15_the_tip_rises_while_inclusion_is_late_and_is_told(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=1, priority_fee_min_wei=100_000, priority_fee_cap_wei=300_000, max_fee_cap_wei=10**13)
    pricing = rig.engine._watchers[scene.network].pricing
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig)
    await scene.until(lambda: pricing.tip_wei > 100_000, "the tip to rise", mine=True)
    assert tip_told(scene) == pricing.tip_wei == 200_000
    await scene.until(lambda: pricing.tip_wei == 300_000, "the tip at its cap", mine=True)
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is None

    assert reason(await scene.answer(scene.settle(rig))) is None

    fresh = [attempt for attempt in await scene.attempts() if attempt["purpose"] == "payment"]
    assert [attempt["max_priority_fee_wei"] for attempt in fresh] == [100_000, 300_000]
    await scene.finish(settled=2)


def tip_told(scene: Scene) -> float | None:
    """The metric."""
    return REGISTRY.get_sample_value("facilitator_priority_fee_wei", {"network": scene.network})


# --- 47: gas costs change ---


async def make_transfers_dearer(scene: Scene, gas: int) -> None:
    """The token is upgraded to code that burns so much gas, then does what it did."""
    slot = "0x7050c9e0f4ca769c69bd3a8ef740bc37934f8e2c036e5a723fd8ee048ed3f8c3"  # of FiatTokenProxy's implementation
    was = str(await scene.node.call("eth_getStorageAt", BASE_SEPOLIA_USDC, slot, "latest"))[-40:]
    code = f"62{gas // 26:06x}5b600190038060045750"  # count down
    code += f"365f5f375f5f365f73{was}5af43d5f5f3e"  # then delegatecall with the same data
    end = len(code) // 2 + 6
    code += f"60{end:02x}573d5ffd5b3d5ff3"  # and end as it did
    upgraded = "0x" + "de" * 20
    await scene.node.call("anvil_setCode", upgraded, "0x" + code)
    await scene.node.call("anvil_setStorageAt", BASE_SEPOLIA_USDC, slot, "0x" + upgraded[2:].rjust(64, "0"))


async def test_mode_47_a_token_whose_transfers_become_dearer_is_paid_with_a_larger_limit(scene: Scene) -> None:
    rig = await scene.engine()
    assert reason(await scene.answer(scene.settle(rig))) is None
    await make_transfers_dearer(scene, 160_000)

    answers = await scene.answers([scene.settle(rig) for _ in range(3)])

    assert {reason(answer) for answer in answers} == {None}
    assert REGISTRY.get_sample_value("facilitator_gas_limit", {"network": scene.network, "kind": "single"}) == 480_000
    ran_out = await scene.rows("select gas from relayer_transaction where gas_used >= gas * 95 / 100")
    assert {row["gas"] for row in ran_out} == {120_000, 240_000}
    causes = {entry["debit"].rpartition(":")[2] for entry in await book(scene)}
    assert causes == {"payment", "revert"}
    sent = len(scene.sent())
    assert reason(await scene.answer(scene.settle(rig))) is None
    assert len(scene.sent()) == sent + 1, "learned: the next payment needs one transaction"
    await scene.finish(settled=5)


async def test_mode_47_a_batch_that_becomes_dearer_is_paid_and_the_next_one_has_room(scene: Scene) -> None:
    rig = await scene.engine(batching="adaptive", batch_min=1)
    payers = await buyers(scene, 6)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = await batched(scene, rig, payers, [scene.buyer.address] * 6)
    await make_transfers_dearer(scene, 50_000)
    scene.sim.pool.hold = None

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}

    assert REGISTRY.get_sample_value("facilitator_gas_limit", {"network": scene.network, "kind": "batch_item"}) == 150_000
    await scene.finish(settled=7)


async def test_mode_47_beyond_four_times_the_constant_it_fails_with_its_hash_and_is_not_tried_for_ever(scene: Scene) -> None:
    rig = await scene.engine()
    await make_transfers_dearer(scene, 450_000)

    answer = await scene.answer(scene.settle(rig))

    assert reason(answer) is Reason.TRANSACTION_FAILED
    assert [sent.transaction.gas for sent in scene.sent()] == [120_000, 240_000, 480_000]
    assert answer.result.tx_hash == scene.sent()[-1].tx_hash
    await scene.finish(settled=0)


async def test_mode_30_a_payer_who_burns_the_gas_of_a_batch_raises_no_limit(scene: Scene) -> None:
    rig = await scene.engine(batching="adaptive", batch_min=1)
    payers = await buyers(scene, 6)
    tasks = await batched(scene, rig, payers, [scene.buyer.address] * 6)
    await scene.node.call("anvil_setCode", payers[0].address, LOOPS_FOR_EVER)

    answers = await scene.answers(tasks)

    assert [reason(answer) for answer in answers].count(None) == 6
    assert rig.engine._watchers[scene.network].pricing.gas == GasTable()
    await scene.finish(settled=6)


# --- 52: the L1 fee ---


async def oracle_says(scene: Scene, *, l1_fee_wei: int, operator_fee_wei: int = 0) -> None:
    """Put code where the OP Stack's GasPriceOracle is: the one figure for `getOperatorFee`, the other for everything else."""
    code = f"5f3560e01c63275aedd214601f5767{l1_fee_wei:016x}5f5260205ff3".ljust(2 * 0x1F, "0")
    code += f"5b67{operator_fee_wei:016x}5f5260205ff3"
    await scene.node.call("anvil_setCode", abi.GAS_PRICE_ORACLE_ADDRESS, "0x" + code)


async def test_mode_52_above_the_cap_new_work_is_refused_and_what_is_open_is_still_pushed(scene: Scene) -> None:
    rig = await scene.engine(l1_fee_poll_s=0.05, payment_cost_cap_wei=10**15, resend_s=0.1)
    pricing = rig.engine._watchers[scene.network].pricing
    task = await scene.settle_pooled(rig)
    await oracle_says(scene, l1_fee_wei=9 * 10**14, operator_fee_wei=3 * 10**14)
    await scene.until(lambda: pricing.l1_fee_wei, "the fee to be read")
    assert (pricing.l1_fee_wei, pricing.operator_fee_wei) == (9 * 10**14, 3 * 10**14)

    with pytest.raises(OverloadFault) as raised:
        await scene.settle(rig)

    assert raised.value.kind == "gas_price_too_high"
    assert len(scene.sent()) == 1
    assert len(await scene.states()) == 1
    await scene.sim.pool.evict_all()
    assert reason(await scene.answer(task)) is None, "the open one was sent again"
    await oracle_says(scene, l1_fee_wei=10**12)
    await scene.until(lambda: pricing.l1_fee_wei == 10**12, "the fee to fall")
    assert reason(await scene.answer(scene.settle(rig))) is None
    await scene.finish(settled=2)


async def test_mode_52_a_base_fee_above_the_cap_refuses_too_and_no_cap_refuses_nothing(scene: Scene) -> None:
    dear = await scene.engine(payment_cost_cap_wei=10**9)
    with pytest.raises(OverloadFault):
        await scene.settle(dear)
    await dear.engine.stop(1.2)
    free = await scene.engine(payment_cost_cap_wei=0)
    assert reason(await scene.answer(scene.settle(free))) is None
    await scene.finish(settled=1)


async def test_a_relayer_whose_money_would_not_do_for_the_l1_fee_signs_nothing(scene: Scene) -> None:
    rig = await scene.engine(l1_fee_poll_s=0.05, payment_cost_cap_wei=0, deadline_s=3.0)
    await scene.token.set_gas_money(scene.relayers[0].address, 10**16)
    await oracle_says(scene, l1_fee_wei=10**16)
    await scene.until(lambda: rig.engine._watchers[scene.network].pricing.l1_fee_wei == 10**16, "the fee to be read")
    [account] = rig.engine._dispatchers[scene.network].pool.accounts
    await scene.until(lambda: account.balance_wei == 10**16, "the balance to be read")
    with pytest.raises(OverloadFault) as raised:
        await scene.settle(rig)
    assert raised.value.kind == "not_sent"
    assert scene.sent() == []


# --- 23, 27, 28: a payload that is dead for whatever reason stands in others' way ---


async def kill(scene: Scene, buyer: Buyer, payment: Payment, what: str) -> None:
    """See to it that the payment can be made no more."""
    stranger, terms = dev_account("stranger").address, payment.payload
    authorization: Any = terms["authorization"]
    auth_nonce = bytes.fromhex(authorization["nonce"][2:])
    await scene.token.set_gas_money(stranger, 10**18)
    if what == "cancelled":
        domain = {"name": "USDC", "version": "2", "chainId": 84532, "verifyingContract": BASE_SEPOLIA_USDC}
        types = {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]}
        signed = buyer.account.sign_typed_data(domain, types, {"authorizer": buyer.address, "nonce": auth_nonce})
        await scene.token.transact(
            stranger, "cancelAuthorization(address,bytes32,bytes)", buyer.address, auth_nonce, bytes(signed.signature)
        )
    elif what == "used elsewhere":
        await scene.token.transact(
            stranger,
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            authorization["from"],
            authorization["to"],
            *(int(authorization[field]) for field in ("value", "validAfter", "validBefore")),
            auth_nonce,
            bytes.fromhex(str(terms["signature"])[2:]),
        )
    else:
        await scene.token.set_blacklisted(buyer.address, blacklisted=True)


@pytest.mark.parametrize("what", ["cancelled", "used elsewhere", "blacklisted"])
async def test_mode_23_dead_for_whatever_reason_and_in_the_way_of_others_it_is_replaced_by_a_noop(scene: Scene, what: str) -> None:
    rig = await scene.engine(bump_blocks=1)
    (buyer,) = await buyers(scene, 1)
    payment = scene.payment(buyer)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    doomed = await scene.settle_pooled(rig, payment)
    behind = await scene.settle_pooled(rig)
    first, second = (sent.tx_hash for sent in scene.sent())
    await kill(scene, buyer, payment, what)
    scene.sim.pool.hold = lambda transaction: transaction.tx_hash == first

    answers = await scene.answers([doomed, behind])

    expected = {
        "cancelled": Reason.AUTHORIZATION_CANCELED,
        "used elsewhere": Reason.SETTLEMENT_EXTERNAL,
        "blacklisted": Reason.ACCOUNT_BLACKLISTED,
    }
    assert [reason(answer) for answer in answers] == [expected[what], None]
    assert answers[1].result.tx_hash == second
    attempts = await scene.attempts()
    assert [attempt["purpose"] for attempt in attempts if attempt["tx_nonce"] == 0][1] == "noop", "nothing dead was outbid"
    assert {entry["debit"].rpartition(":")[2] for entry in await book(scene)} == {"noop", "payment"}
    await scene.finish(settled=1)


async def test_a_payment_that_came_alive_again_behind_its_noop_is_made_after_all(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=1)
    (buyer,) = await buyers(scene, 1)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    doomed = await scene.settle_pooled(rig, scene.payment(buyer))
    behind = await scene.settle_pooled(rig)
    await scene.token.set_blacklisted(buyer.address, blacklisted=True)

    async def noop() -> bool:
        return "noop" in {attempt["purpose"] for attempt in await scene.attempts()}

    await scene.until(noop, "the no-op", mine=True)
    await scene.token.set_blacklisted(buyer.address, blacklisted=False)
    noops = {attempt["tx_hash"] for attempt in await scene.attempts() if attempt["purpose"] == "noop"}
    scene.sim.pool.hold = lambda transaction: transaction.tx_nonce == 0 and transaction.tx_hash not in noops

    answers = await scene.answers([doomed, behind])

    assert [reason(answer) for answer in answers] == [None, None]
    await scene.finish(settled=2)


async def test_a_live_payment_in_the_way_of_others_is_outbid_and_never_dropped(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=1)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = [await scene.settle_pooled(rig) for _ in range(2)]

    async def bumped() -> bool:
        return len(await scene.attempts()) >= 4

    await scene.until(bumped, "bumps", mine=True)
    scene.sim.pool.hold = None
    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    assert "noop" not in {attempt["purpose"] for attempt in await scene.attempts()}
    await scene.finish(settled=2)

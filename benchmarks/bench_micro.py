"""What each step of a payment costs alone: codec, digest, recovery, signing, ABI, and the two statements on real Postgres.

Steps: microseconds of CPU for one call, the best of several rounds, for noise only ever adds; next to some stands what the usual
library takes for the same, in the same run. Statements: the median wall time, commit and fsync included. `BENCH_QUICK=1` for a
short run.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import http_face
import uvloop
from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from harness import NETWORK, QUICK, Prepared, Report

from facilitator.chain.signer import LocalSigner, SigningPolicy
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.children import StateDirectory
from facilitator.devstack.stack import Postgres
from facilitator.domain import abi
from facilitator.domain.facts import Call, Now
from facilitator.domain.fees import split_evenly
from facilitator.domain.identity import key_of
from facilitator.domain.postings import Cause, gas_entries, resolution
from facilitator.domain.states import State
from facilitator.domain.transactions import Transaction
from facilitator.protocol import codec
from facilitator.protocol.address import keccak256
from facilitator.protocol.messages import Authorization, Payment, SettleResult, VerifyResult
from facilitator.protocol.strict_json import load
from facilitator.schemes.exact_eip3009 import ExactEip3009
from facilitator.schemes.scheme import Token
from facilitator.schemes.signatures import recover, transfer_digest
from facilitator.store import relayers, replicas, settlements
from facilitator.store.db import Db
from facilitator.store.migrate import migrate
from facilitator.store.settlements import Admission, Answer, Asked, ClosedSlot, Cost, Lease, OpenedSlot, Outcome, SignedSlot
from facilitator.store.tenants import Tenant, create_tenant
from facilitator.units import Address, BlockHash, Gas, TxHash, UnixSeconds, Wei, chain_id_of

ROUNDS: Final = 3 if QUICK else 7
ROUND_S: Final = 0.03 if QUICK else 0.15
GROUPS: Final = (1, 10, 100)
"""Settlements in one statement."""
STATEMENTS: Final = 10 if QUICK else 60
OWNER: Final = "bench"
TENANT: Final = "bench"
BLOCK_HASH: Final = BlockHash("0x" + "cc" * 32)
COLUMNS: Final = (
    ("who", "who"),
    ("what", "what"),
    ("n", "items"),
    ("us", "us"),
    ("us_item", "us / item"),
    ("items_s", "items/s"),
    ("times_library", "x library"),
)


def timed(work: Callable[[], object]) -> float:
    """Microseconds for one call."""
    work()
    calls, took = 1, 0.0
    while took < ROUND_S / 4:
        calls *= 2
        took = _seconds(work, calls)
    calls = max(1, int(calls * ROUND_S / took))
    return min(_seconds(work, calls) for _ in range(ROUNDS)) / calls * 1e6


def _seconds(work: Callable[[], object], calls: int) -> float:
    began = time.thread_time()  # CPU, not wall: whoever else runs here does not count
    for _ in range(calls):
        work()
    return time.thread_time() - began


def add(report: Report, what: str, us: float, n: int = 1, who: str = "ours", **more: float) -> None:
    report.add(
        {"who": who, "what": what, "n": n}, {"us": round(us, 2), "us_item": round(us / n, 2), "items_s": round(n / us * 1e6), **more}
    )


def beside(report: Report, what: str, ours: Callable[[], object], library: Callable[[], object]) -> None:
    """Ours and the library's way to the same result."""
    mine, theirs = timed(ours), timed(library)
    add(report, what, mine, times_library=round(theirs / mine, 1))
    add(report, what, theirs, who="library")


def steps(report: Report) -> None:
    """Everything that asks nobody."""
    body = Prepared.new(1).body
    payment = codec.decode_request(body)
    assert isinstance(payment, Payment)
    token = Token(network=NETWORK, address=payment.requirements.asset, name="USDC", version="2", decimals=6)
    scheme = ExactEip3009((token,))
    authorization = scheme.read(payment)
    assert isinstance(authorization, Authorization)
    digest = transfer_digest(authorization, "USDC", "2")
    add(report, "decode_request", timed(lambda: codec.decode_request(body)))
    add(report, "strict_json.load", timed(lambda: load(body)))
    add(report, "scheme.read", timed(lambda: scheme.read(payment)))
    add(report, "scheme.check_terms", timed(lambda: scheme.check_terms(authorization, payment.requirements)))
    add(report, "scheme.trial", timed(lambda: scheme.trial(authorization)))
    now = Now(head=UnixSeconds(1), wall=UnixSeconds(int(time.time())))
    add(report, "scheme.check_time", timed(lambda: scheme.check_time(authorization, now)))
    verified = VerifyResult(payer=authorization.payer, refusal=None)
    settled = SettleResult(payer=authorization.payer, refusal=None, tx_hash=TxHash("0x" + "ab" * 32), log_index=1, settlement_id="0" * 36)
    add(report, "encode_verify", timed(lambda: codec.encode_verify(verified, 2)))
    add(report, "encode_settle", timed(lambda: codec.encode_settle(settled, 2, NETWORK)))
    add(report, "keccak256 of 64 bytes", timed(lambda: keccak256(digest + digest)))
    signed_data = typed_data(authorization)
    beside(report, "digest", lambda: transfer_digest(authorization, "USDC", "2"), lambda: encode_typed_data(full_message=signed_data))
    signable = encode_typed_data(full_message=signed_data)
    beside(
        report,
        "recover",
        lambda: recover(digest, authorization.signature),
        lambda: Account.recover_message(signable, signature=authorization.signature),
    )
    call = scheme.call(authorization)
    key = dev_account("bench-micro")
    transaction = Transaction(
        chain_id=chain_id_of(NETWORK),
        tx_nonce=7,
        to=call.to,
        data=call.data,
        gas=Gas(120_000),
        max_fee_wei=Wei(10**9),
        max_priority_fee_wei=Wei(10**6),
    )
    signer = LocalSigner(
        bytes(key.key), SigningPolicy(chain_id=chain_id_of(NETWORK), assets=frozenset({authorization.asset}), max_fee_max_wei=Wei(10**10))
    )
    as_library: dict[str, Any] = {
        "type": 2,
        "chainId": transaction.chain_id,
        "nonce": 7,
        "to": dev_account("bench-micro", 1).address,
        "value": 0,
        "data": call.data,
        "gas": 120_000,
        "maxFeePerGas": 10**9,
        "maxPriorityFeePerGas": 10**6,
    }
    beside(report, "sign transaction", lambda: at_once(signer.sign(transaction)), lambda: key.sign_transaction(as_library))
    beside(
        report,
        "balanceOf calldata",
        lambda: abi.balance_of(authorization.payer),
        lambda: bytes.fromhex("70a08231") + encode(["address"], [authorization.payer]),
    )
    add(
        report, "transferWithAuthorization calldata", timed(lambda: abi.transfer_with_authorization(authorization, authorization.signature))
    )
    for n in (6, 50):
        calls = [Call(to=call.to, data=call.data)] * n
        add(report, "aggregate3 encode", timed(lambda calls=calls: abi.aggregate3(calls)), n)  # type: ignore[misc]
        answer = encode(["(bool,bytes)[]"], [[(True, digest)] * n])
        add(report, "aggregate3 decode", timed(lambda answer=answer: abi.read_aggregate3(answer)), n)  # type: ignore[misc]


def at_once(work: Awaitable[object]) -> None:
    """Run a coroutine that waits for nothing."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration:
        return
    raise AssertionError("it waited")


def typed_data(authorization: Authorization) -> dict[str, object]:
    """The EIP-712 message as wallets take it."""
    kinds = {"from": "address", "to": "address", "value": "uint256", "validAfter": "uint256", "validBefore": "uint256", "nonce": "bytes32"}
    domain = {"name": "string", "version": "string", "chainId": "uint256", "verifyingContract": "address"}
    return {
        "types": {
            "EIP712Domain": [{"name": name, "type": kind} for name, kind in domain.items()],
            "TransferWithAuthorization": [{"name": name, "type": kind} for name, kind in kinds.items()],
        },
        "primaryType": "TransferWithAuthorization",
        "domain": {"name": "USDC", "version": "2", "chainId": chain_id_of(NETWORK), "verifyingContract": authorization.asset},
        "message": {
            "from": authorization.payer,
            "to": authorization.pay_to,
            "value": authorization.amount_atomic,
            "validAfter": authorization.valid_after,
            "validBefore": authorization.valid_before,
            "nonce": bytes.fromhex(authorization.auth_nonce[2:]),
        },
    }


class Ledger:
    """A migrated database with one tenant and one relayer that is ours."""

    def __init__(self, db: Db, lease: Lease) -> None:
        self._db = db
        self._lease = lease
        self._tx_nonce = 0

    @classmethod
    async def open(cls, db: Db) -> "Ledger":
        relayer = Address(dev_account("bench-micro").address.lower())
        await create_tenant(db, Tenant(tenant_id=TENANT))
        await replicas.heartbeat(db, OWNER, [NETWORK])
        await relayers.register(db, NETWORK, relayer, 0)
        taken = await relayers.take_lease(db, NETWORK, relayer, OWNER, 3600.0)
        assert taken is not None
        return cls(db, Lease(network=NETWORK, relayer=relayer, owner=OWNER, epoch=taken.epoch))

    def compose(self, authorizations: list[Authorization], *, shared: bool) -> tuple[list[Admission], list[SignedSlot]]:
        """Admissions, and a transaction for each or one for all."""
        admissions = [
            Admission(
                settlement_id=settlements.new_id(int(time.time() * 1000)),
                authorization=authorization,
                tenant_id=TENANT,
                request_id="bench",
                resource="http://127.0.0.1/report",
                idempotency_key=None,
                admitted_block=1,
            )
            for authorization in authorizations
        ]
        ids = [admission.settlement_id for admission in admissions]
        carried = [tuple(ids)] if shared else [(one,) for one in ids]
        slots = [
            SignedSlot(
                tx_nonce=self._tx_nonce + index,
                kind="batch" if shared else "single",
                tx_hash=TxHash("0x" + keccak256(items[0].bytes).hex()),
                raw=bytes(500 * len(items)),
                gas=120_000,
                max_fee_wei=10**9,
                max_priority_fee_wei=10**6,
                most_wei=120_000 * 10**9,
                settlement_ids=items,
            )
            for index, items in enumerate(carried)
        ]
        self._tx_nonce += len(slots)
        return admissions, slots

    async def write(self, admissions: list[Admission], slots: list[SignedSlot]) -> list[OpenedSlot]:
        opened = await settlements.write_ahead(self._db, self._lease, OWNER, NETWORK, admissions, slots, 3600.0)
        assert len(opened) == len(slots)
        return opened

    async def resolve(self, slots: list[SignedSlot], opened: list[OpenedSlot]) -> None:
        """As if one block had carried them all."""
        outcomes = [
            Outcome(
                settlement_id=settlement_id,
                from_state=State.SUBMITTED,
                to_state=State.INCLUDED,
                answer=Answer(success=True, tx_hash=slot.tx_hash, log_index=index),
                phase=resolution(State.INCLUDED),
                tx_hash=slot.tx_hash,
                log_index=index,
                block_number=1,
                block_hash=BLOCK_HASH,
                spend_epoch=1,
            )
            for slot in slots
            for index, settlement_id in enumerate(slot.settlement_ids)
        ]
        hash_of = {slot.tx_nonce: slot.tx_hash for slot in slots}
        id_of = {one.tx_nonce: one.slot_id for one in opened}
        closed = [
            ClosedSlot(slot_id=one.slot_id, state="included", mined_tx_hash=hash_of[one.tx_nonce], block_number=1, block_hash=BLOCK_HASH)
            for one in opened
        ]
        fee_wei = 85_720 * 10**9
        costs = [
            Cost(
                slot_id=id_of[slot.tx_nonce],
                tx_hash=slot.tx_hash,
                gas_used=85_720,
                effective_gas_price_wei=10**9,
                l1_fee_wei=None,
                operator_fee_wei=None,
                shares_wei=dict(zip(slot.settlement_ids, split_evenly(fee_wei, len(slot.settlement_ids)), strict=True)),
                entries=gas_entries(NETWORK, self._lease.relayer, {Cause.PAYMENT: fee_wei}),
            )
            for slot in slots
        ]
        assert len(await settlements.resolve(self._db, OWNER, outcomes, closed, costs, 6.0)) == len(outcomes)


def authorizations(count: int) -> list[Authorization]:
    """Different payments; nobody looks at the signature here."""
    found = []
    for number in range(count):
        payment = codec.decode_request(Prepared.new(number).body)
        assert isinstance(payment, Payment)
        read = ExactEip3009((Token(network=NETWORK, address=payment.requirements.asset, name="USDC", version="2", decimals=6),)).read(
            payment
        )
        assert isinstance(read, Authorization)
        found.append(read)
    return found


async def statements(report: Report) -> None:
    """The statements, each a commit with fsync, one after another on one connection."""
    state = StateDirectory.open()
    postgres = Postgres(state)
    await postgres.start()
    try:
        url = await postgres.create_database("micro")
        await migrate(url)
        db = await Db.connect(url, connections_max=8)
        try:
            await measure_statements(report, db)
        finally:
            await db.close()
    finally:
        await postgres.stop()
        state.close()


async def measure_statements(report: Report, db: Db) -> None:
    ledger = await Ledger.open(db)
    for shared in (False, True):
        for n in GROUPS:
            if shared and n == 1:
                continue
            kind = "one transaction" if shared else "a transaction each"
            writing, resolving = [], []
            for _ in range(max(5, STATEMENTS // (1 + n // 10))):
                admissions, slots = ledger.compose(authorizations(n), shared=shared)
                began = time.perf_counter()
                opened = await ledger.write(admissions, slots)
                written = time.perf_counter()
                await ledger.resolve(slots, opened)
                resolving.append(time.perf_counter() - written)
                writing.append(written - began)
            add(report, f"write_ahead, {kind}", sorted(writing)[len(writing) // 2] * 1e6, n)
            add(report, f"resolve, {kind}", sorted(resolving)[len(resolving) // 2] * 1e6, n)
    unknown = authorizations(1)[0]
    looks = []
    for _ in range(STATEMENTS * 5):
        began = time.perf_counter()
        await settlements.own_records(db, [Asked(key=key_of(unknown), tenant_id=TENANT)], 10.0)
        looks.append(time.perf_counter() - began)
    add(report, "own_records of an unknown payment", sorted(looks)[len(looks) // 2] * 1e6)
    began = time.perf_counter()
    count = STATEMENTS * 20
    left = iter(range(count))

    async def look() -> None:
        for _ in left:
            await settlements.own_records(db, [Asked(key=key_of(unknown), tenant_id=TENANT)], 10.0)

    await asyncio.gather(*(look() for _ in range(16)))
    add(report, "own_records, 16 side by side", (time.perf_counter() - began) / count * 1e6)


def main() -> None:
    report = Report("micro")
    steps(report)
    for what, us in http_face.alone(timed).items():
        add(report, what, us)
    for (who, what), us in uvloop.run(http_face.whole()).items():
        add(report, what, us, who=who)
    uvloop.run(statements(report))
    report.close("items_s", COLUMNS)


if __name__ == "__main__":
    main()

"""The chain client and the scheme against a real anvil with Circle's token: asked, answered, judged, sent and found."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from eth_account import Account
from eth_account.signers.local import LocalAccount

from facilitator.chain.evm import UNSEALED, EvmClient, LogQuery, Receipt, SendOutcome
from facilitator.chain.rpc import NodeError, RpcClient
from facilitator.chain.signer import LocalSigner, SigningPolicy
from facilitator.clock import SystemClock
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token, calldata
from facilitator.domain import abi
from facilitator.domain.abi import Canceled, PaymentProof, UsedOtherwise, find_payment
from facilitator.domain.facts import Call, CodeOf, Facts, Now
from facilitator.domain.fees import FeePolicy, max_fee, next_base_fee
from facilitator.domain.transactions import SignedTransaction, Transaction
from facilitator.errors import ChainFault, ConfigFault
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes.scheme import Token as ServedToken
from facilitator.schemes.signatures import normalise
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, Gas, Network, TxHash, UnixSeconds, Wei
from tests.fixtures.payments import BASE_SEPOLIA, SCHEME, TOKEN, USDC, authorization, sign, typed_data
from tests.fixtures.waiting import PATIENCE_S

NewBuyer = Callable[..., Awaitable[Buyer]]
NewRelayer = Callable[..., Awaitable[LocalAccount]]
PAY_TO = Address(dev_account("seller", 7).address.lower())
LIMITS = SigningPolicy(chain_id=84532, assets=frozenset({USDC}), max_fee_max_wei=Wei(10**13))


class Unbounded(SigningPolicy):
    """For transactions that no relayer sends: cancellations, calls of other contracts."""

    def check(self, transaction: Transaction, signer: Address) -> None:
        """Anything goes."""


ANYTHING = Unbounded(chain_id=84532, assets=frozenset(), max_fee_max_wei=Wei(0))


@pytest_asyncio.fixture
async def evm(chain: Anvil) -> AsyncIterator[EvmClient]:
    client = EvmClient(BASE_SEPOLIA, RpcClient([chain.rpc_url], SystemClock()))
    await client.connect(client.deadline_in(PATIENCE_S))
    yield client
    await client.close()


def pay(buyer: Buyer, **changes: Any) -> Authorization:
    """An authorization of this buyer, signed."""
    auth_nonce = AuthNonce("0x" + buyer.address[2:34].lower().rjust(64, "a"))
    fields = {"payer": Address(buyer.address.lower()), "pay_to": PAY_TO, "auth_nonce": auth_nonce} | changes
    unsigned = authorization(**fields)
    return authorization(**fields, signature=sign(unsigned, bytes(buyer.account.key)))


async def judge(evm: EvmClient, terms: Authorization) -> Refusal | None:
    """Everything that verification does with a parsed authorization, in its order."""
    refusal = SCHEME.check_signature(terms)
    if refusal is not None:
        return refusal
    facts = await evm.answer(SCHEME.ask(terms), evm.deadline_in(PATIENCE_S))
    now = Now(head=facts.head.timestamp, wall=SystemClock().now())
    return SCHEME.check_time(terms, now) or SCHEME.judge(terms, facts)


async def reason(evm: EvmClient, terms: Authorization) -> Reason | None:
    refusal = await judge(evm, terms)
    return None if refusal is None else refusal.reason


async def signed_transaction(evm: EvmClient, signer: LocalSigner, call: Call, gas: int) -> SignedTransaction:
    fees = max_fee(next_base_fee(await evm.head(evm.deadline_in(PATIENCE_S))), Wei(100_000), FeePolicy())
    return await signer.sign(
        Transaction(
            chain_id=84532,
            tx_nonce=0,
            to=call.to,
            data=call.data,
            gas=Gas(gas),
            max_fee_wei=fees.max_fee_wei,
            max_priority_fee_wei=fees.max_priority_fee_wei,
        )
    )


async def settle(evm: EvmClient, new_relayer: NewRelayer, call: Call, gas: int = 120_000) -> Receipt:
    """Send a call in a transaction of its own and wait for its receipt."""
    signer = LocalSigner(bytes((await new_relayer()).key), ANYTHING)
    signed = await signed_transaction(evm, signer, call, gas)
    outcome = await evm.send_raw(signed.raw, evm.deadline_in(PATIENCE_S))
    assert outcome == SendOutcome(error=None)
    while True:
        (receipt,) = await evm.receipts([signed.tx_hash], evm.deadline_in(PATIENCE_S))
        if receipt is not None:
            assert receipt.tx_hash == signed.tx_hash
            return receipt
        await asyncio.sleep(0.02)


async def test_all_facts_of_a_verification_come_in_one_http_request(evm: EvmClient, new_buyer: NewBuyer) -> None:
    terms = pay(await new_buyer())
    sent = evm.rpc.requests_sent
    assert await judge(evm, terms) is None
    assert evm.rpc.requests_sent == sent + 1


async def test_without_multicall3_the_same_facts_still_come_in_one_http_request(evm: EvmClient, new_buyer: NewBuyer) -> None:
    questions = SCHEME.ask(pay(await new_buyer(amount_atomic=1)))
    shared = await evm.answer(questions, evm.deadline_in(PATIENCE_S))
    evm.multicall = False
    sent = evm.rpc.requests_sent
    alone = await evm.answer(questions, evm.deadline_in(PATIENCE_S))
    assert evm.rpc.requests_sent == sent + 1
    assert alone.replies == shared.replies
    assert not alone.replies[-1].ok
    assert abi.revert_reason(alone.replies[-1].data) == "ERC20: transfer amount exceeds balance"


async def test_without_questions_the_head_is_the_answer(evm: EvmClient) -> None:
    facts = await evm.answer((), evm.deadline_in(PATIENCE_S))
    assert isinstance(facts, Facts)
    assert facts.replies == ()
    assert facts.head.timestamp > 0
    assert facts.head.gas_limit == 400_000_000


async def test_answers_keep_the_order_of_their_questions(evm: EvmClient, new_buyer: NewBuyer) -> None:
    buyer = Address((await new_buyer(amount_atomic=123)).address.lower())
    balance = Call(to=USDC, data=abi.balance_of(buyer))
    questions = (balance, CodeOf(address=buyer), Call(to=USDC, data=abi.DECIMALS), CodeOf(address=USDC), balance)
    first, code, decimals, token_code, last = (await evm.answer(questions, evm.deadline_in(PATIENCE_S))).replies
    assert abi.read_uint(first.data) == abi.read_uint(last.data) == 123
    assert code.data == b""
    assert abi.read_uint(decimals.data) == 6
    assert len(token_code.data) > 100


async def test_a_payer_who_has_too_little_is_refused(evm: EvmClient, new_buyer: NewBuyer) -> None:
    assert await reason(evm, pay(await new_buyer(amount_atomic=9_999))) is Reason.INSUFFICIENT_BALANCE
    assert await reason(evm, pay(await new_buyer(amount_atomic=0))) is Reason.INSUFFICIENT_BALANCE
    assert await reason(evm, pay(await new_buyer(amount_atomic=10_000))) is None


async def test_a_paused_token_is_named(evm: EvmClient, new_buyer: NewBuyer, token: Token) -> None:
    terms = pay(await new_buyer())
    await token.pause()
    try:
        assert await reason(evm, terms) is Reason.TOKEN_PAUSED
    finally:
        await token.unpause()
    assert await reason(evm, terms) is None


async def test_blacklisted_payers_and_sellers_are_named(evm: EvmClient, new_buyer: NewBuyer, token: Token) -> None:
    buyer, seller = await new_buyer(), await new_buyer()
    to_seller = pay(buyer, pay_to=Address(seller.address.lower()))
    await token.set_blacklisted(seller.address, blacklisted=True)
    refusal = await judge(evm, to_seller)
    assert refusal is not None
    assert refusal.reason is Reason.ACCOUNT_BLACKLISTED
    assert seller.address in refusal.message
    await token.set_blacklisted(buyer.address, blacklisted=True)
    refusal = await judge(evm, pay(buyer))
    assert refusal is not None
    assert buyer.address in refusal.message


async def test_a_payer_with_a_7702_delegation_to_nothing_has_no_signature_that_counts(
    evm: EvmClient, new_buyer: NewBuyer, chain: Anvil
) -> None:
    buyer = await new_buyer()
    await chain.node.call("anvil_setCode", buyer.address, "0xef0100" + "11" * 20)
    assert await reason(evm, pay(buyer)) is Reason.SIGNATURE


async def test_an_asset_that_is_no_eip3009_token_is_told(evm: EvmClient, new_buyer: NewBuyer) -> None:
    for asset, expected in ((abi.MULTICALL3_ADDRESS, Reason.EIP3009_NOT_SUPPORTED), (PAY_TO, Reason.ASSET_NOT_DEPLOYED)):
        terms = pay(await new_buyer(), asset=asset)
        refusal = SCHEME.judge(terms, await evm.answer(SCHEME.ask(terms), evm.deadline_in(PATIENCE_S)))
        assert refusal is not None
        assert refusal.reason is expected


async def test_a_forged_signature_would_also_revert(evm: EvmClient, new_buyer: NewBuyer) -> None:
    forged = pay(await new_buyer(), amount_atomic=Atomic(1))
    terms = authorization(
        payer=forged.payer, pay_to=forged.pay_to, auth_nonce=forged.auth_nonce, amount_atomic=Atomic(2), signature=forged.signature
    )
    assert await reason(evm, terms) is Reason.SIGNATURE
    refusal = SCHEME.judge(terms, await evm.answer(SCHEME.ask(terms), evm.deadline_in(PATIENCE_S)))
    assert refusal is not None
    assert refusal.reason is Reason.SIGNATURE


async def test_a_payment_valid_only_from_now_on_passes(evm: EvmClient, new_buyer: NewBuyer) -> None:
    buyer = await new_buyer()
    head = await evm.head(evm.deadline_in(PATIENCE_S))
    wall = UnixSeconds(max(SystemClock().now(), head.timestamp + 1))
    terms = pay(buyer, valid_after=UnixSeconds(head.timestamp))
    facts = await evm.answer(SCHEME.ask(terms), evm.deadline_in(PATIENCE_S))
    assert SCHEME.check_time(terms, Now(head=facts.head.timestamp, wall=wall)) is None
    assert SCHEME.judge(terms, facts) is None


async def test_a_payment_goes_through_and_is_found_by_its_logs(evm: EvmClient, new_buyer: NewBuyer, new_relayer: NewRelayer) -> None:
    terms = pay(await new_buyer())
    assert await reason(evm, terms) is None
    receipt = await settle(evm, new_relayer, SCHEME.call(terms))
    assert receipt.succeeded
    assert receipt.sealed
    assert receipt.l1_fee_wei is None
    assert receipt.fee_wei == receipt.gas_used * receipt.effective_gas_price_wei > 0
    assert 70_000 < receipt.gas_used < 110_000

    proof = find_payment(receipt.logs, terms)
    assert isinstance(proof, PaymentProof)
    assert proof.log.tx_hash == receipt.tx_hash
    block = await evm.block(receipt.block_number, evm.deadline_in(PATIENCE_S))
    assert block is not None
    assert block.block_hash == receipt.block_hash
    assert await evm.block_by_hash(receipt.block_hash, evm.deadline_in(PATIENCE_S)) == block

    topics = abi.payment_topics([terms.payer])
    by_block = await evm.logs(evm.deadline_in(PATIENCE_S), addresses=[USDC], topics=topics, block_hash=receipt.block_hash)
    by_range = await evm.logs(
        evm.deadline_in(PATIENCE_S), addresses=[USDC], topics=topics, from_block=receipt.block_number, to_block=receipt.block_number
    )
    assert find_payment(by_block, terms) == find_payment(by_range, terms) == proof
    assert await reason(evm, terms) is Reason.NONCE_USED


async def test_a_compact_signature_settles(evm: EvmClient, new_buyer: NewBuyer, new_relayer: NewRelayer) -> None:
    terms = pay(await new_buyer())
    raw = terms.signature
    compact = raw[:32] + bytes([raw[32] | (raw[64] - 27) << 7]) + raw[33:64]
    assert normalise(compact) == raw
    receipt = await settle(evm, new_relayer, SCHEME.call(terms))
    assert isinstance(find_payment(receipt.logs, terms), PaymentProof)


async def test_a_nonce_used_for_other_terms_is_no_payment(evm: EvmClient, new_buyer: NewBuyer, new_relayer: NewRelayer) -> None:
    buyer = await new_buyer()
    paid, asked = pay(buyer, amount_atomic=Atomic(1)), pay(buyer, amount_atomic=Atomic(2))
    receipt = await settle(evm, new_relayer, SCHEME.call(paid))
    found = find_payment(receipt.logs, asked)
    assert isinstance(found, UsedOtherwise)
    assert found.transfer is not None
    assert found.transfer.amount_atomic == 1


async def test_a_cancelled_authorization_is_found(evm: EvmClient, new_buyer: NewBuyer, new_relayer: NewRelayer) -> None:
    buyer = await new_buyer()
    terms = pay(buyer)
    message = typed_data(terms)
    message["types"] = {
        "EIP712Domain": message["types"]["EIP712Domain"],
        "CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}],
    }
    message |= {
        "primaryType": "CancelAuthorization",
        "message": {"authorizer": terms.payer, "nonce": bytes.fromhex(terms.auth_nonce[2:])},
    }
    signed = Account.sign_typed_data(bytes(buyer.account.key), full_message=message)
    data = calldata(
        "cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)",
        buyer.address,
        bytes.fromhex(terms.auth_nonce[2:]),
        signed.v,
        signed.r.to_bytes(32, "big"),
        signed.s.to_bytes(32, "big"),
    )
    receipt = await settle(evm, new_relayer, Call(to=USDC, data=bytes.fromhex(data[2:])))
    assert isinstance(find_payment(receipt.logs, terms), Canceled)
    assert await reason(evm, terms) is Reason.NONCE_USED


async def test_a_reverted_transaction_has_a_receipt_and_proves_nothing(
    evm: EvmClient, new_buyer: NewBuyer, new_relayer: NewRelayer
) -> None:
    terms = pay(await new_buyer(amount_atomic=1))
    receipt = await settle(evm, new_relayer, SCHEME.call(terms))
    assert not receipt.succeeded
    assert find_payment(receipt.logs, terms) is None


async def test_several_payments_share_a_transaction_and_each_is_found(evm: EvmClient, new_buyer: NewBuyer, new_relayer: NewRelayer) -> None:
    good, broke = [pay(await new_buyer()) for _ in range(2)], pay(await new_buyer(amount_atomic=0))
    call = Call(to=abi.MULTICALL3_ADDRESS, data=abi.aggregate3([SCHEME.call(terms) for terms in (good[0], broke, good[1])]))
    receipt = await settle(evm, new_relayer, call, gas=500_000)
    proofs = [find_payment(receipt.logs, terms) for terms in good]
    assert all(isinstance(proof, PaymentProof) for proof in proofs)
    assert proofs[0] != proofs[1]
    assert find_payment(receipt.logs, broke) is None


async def test_each_refusal_of_a_send_is_told_apart(start_chain: Callable[..., Awaitable[Anvil]]) -> None:
    anvil = await start_chain(automine=False)
    own = EvmClient(BASE_SEPOLIA, RpcClient([anvil.rpc_url], SystemClock()))
    relayer, poor = dev_account("relayer", 9_001), dev_account("relayer", 9_002)
    await Token.at(anvil.rpc_url).set_gas_money(relayer.address, 10**19)
    signer = LocalSigner(bytes(relayer.key), LIMITS)

    async def send(signer: LocalSigner = signer, **changes: Any) -> SendOutcome:
        fields: dict[str, Any] = {
            "chain_id": 84532,
            "tx_nonce": 0,
            "to": signer.address,
            "data": b"",
            "gas": Gas(21_000),
            "max_fee_wei": Wei(10**10),
            "max_priority_fee_wei": Wei(1),
        }
        signed = await signer.sign(Transaction(**fields | changes))
        return await own.send_raw(signed.raw, own.deadline_in(PATIENCE_S))

    try:
        assert await send() == SendOutcome(error=None)
        again = await send()
        assert again.in_pool
        assert again.error is NodeError.ALREADY_KNOWN
        assert (await send(max_fee_wei=Wei(10**10 - 1))).error is NodeError.REPLACEMENT_UNDERPRICED
        assert (await send(tx_nonce=1, max_fee_wei=Wei(2))).error is NodeError.UNDERPRICED
        assert (await send(tx_nonce=1, gas=Gas(20_000))).error is NodeError.GAS_LIMIT
        assert (await send(LocalSigner(bytes(poor.key), LIMITS))).error is NodeError.INSUFFICIENT_FUNDS
        foreign = LocalSigner(bytes(relayer.key), SigningPolicy(chain_id=1, assets=frozenset({USDC}), max_fee_max_wei=Wei(10**13)))
        assert (await send(foreign, chain_id=1, tx_nonce=1)).error is NodeError.INVALID_TRANSACTION
        await anvil.node.call("evm_mine")
        low = await send(max_fee_wei=Wei(10**11))
        assert low.error is NodeError.NONCE_TOO_LOW
        assert not low.in_pool
    finally:
        await own.close()


async def test_what_is_not_there_yet_is_none_and_what_a_node_refuses_is_a_fault(evm: EvmClient) -> None:
    assert await evm.receipts([TxHash("0x" + "12" * 32)], evm.deadline_in(PATIENCE_S)) == [None]
    assert await evm.receipts([], evm.deadline_in(PATIENCE_S)) == []
    assert await evm.block(10**9, evm.deadline_in(PATIENCE_S)) is None
    assert await evm.block_by_hash(UNSEALED, evm.deadline_in(PATIENCE_S)) is None
    with pytest.raises(ChainFault):
        await evm.receipts([TxHash("0x12")], evm.deadline_in(PATIENCE_S))


async def test_many_receipts_come_in_requests_of_the_batch_limit(chain: Anvil) -> None:
    client = EvmClient(BASE_SEPOLIA, RpcClient([chain.rpc_url], SystemClock()))
    hashes = [TxHash("0x" + number.to_bytes(32, "big").hex()) for number in range(1, 251)]
    assert await client.receipts(hashes, client.deadline_in(PATIENCE_S)) == [None] * 250
    assert client.rpc.requests_sent == 3
    await client.close()


async def test_heads_and_counts_are_read(evm: EvmClient, new_relayer: NewRelayer) -> None:
    relayer = Address((await new_relayer(wei=12_345)).address.lower())
    assert await evm.balance(relayer, evm.deadline_in(PATIENCE_S)) == 12_345
    assert await evm.transaction_count(relayer, "latest", evm.deadline_in(PATIENCE_S)) == 0
    assert await evm.chain_id(evm.deadline_in(PATIENCE_S)) == 84532
    latest = await evm.head(evm.deadline_in(PATIENCE_S))
    safe = await evm.block_at("safe", evm.deadline_in(PATIENCE_S))
    finalized = await evm.block_at("finalized", evm.deadline_in(PATIENCE_S))
    assert finalized.number <= safe.number <= latest.number


async def test_the_next_base_fee_is_what_the_chain_makes_it(start_chain: Callable[..., Awaitable[Anvil]]) -> None:
    anvil = await start_chain()
    client = EvmClient(BASE_SEPOLIA, RpcClient([anvil.rpc_url], SystemClock()))
    try:
        for _ in range(5):
            before = await client.head(client.deadline_in(PATIENCE_S))
            await anvil.node.call("evm_mine")
            after = await client.head(client.deadline_in(PATIENCE_S))
            assert after.number == before.number + 1
            assert after.base_fee_wei == next_base_fee(before)
    finally:
        await client.close()


async def test_the_configured_token_is_checked_against_its_contract(evm: EvmClient) -> None:
    deadline = evm.deadline_in(PATIENCE_S)
    assert await evm.token_domain(TOKEN, deadline) == ()

    def served(address: Address = USDC, name: str = "USDC", decimals: int = 6) -> ServedToken:
        return ServedToken(network=BASE_SEPOLIA, address=address, name=name, version="2", decimals=decimals)

    (domain,) = await evm.token_domain(served(name="USD Coin"), deadline)
    assert "'USDC', version '2'" in domain
    (decimals,) = await evm.token_domain(served(decimals=18), deadline)
    assert "18 decimals" in decimals
    (missing,) = await evm.token_domain(served(PAY_TO), deadline)
    assert "no contract" in missing
    assert len(await evm.token_domain(served(abi.MULTICALL3_ADDRESS), deadline)) == 2


async def test_an_endpoint_of_another_chain_is_refused_at_once(chain: Anvil) -> None:
    client = EvmClient(Network("eip155:8453"), RpcClient([chain.rpc_url], SystemClock()))
    with pytest.raises(ConfigFault, match="another chain"):
        await client.connect(client.deadline_in(PATIENCE_S))
    await client.close()


async def test_a_call_may_not_burn_more_gas_than_its_share(evm: EvmClient, chain: Anvil) -> None:
    looper = Address("0x" + "1009" * 10)
    await chain.node.call("anvil_setCode", looper, "0x5b600056")  # JUMPDEST PUSH1 0 JUMP
    questions = (Call(to=USDC, data=abi.DECIMALS), Call(to=looper, data=b""))
    decimals, burned = (await evm.answer(questions, evm.deadline_in(PATIENCE_S))).replies
    assert abi.read_uint(decimals.data) == 6
    assert not burned.ok


async def test_a_look_brings_logs_receipts_and_counts_in_one_request_and_each_its_own_fault(
    evm: EvmClient, new_buyer: NewBuyer, new_relayer: NewRelayer
) -> None:
    terms = pay(await new_buyer())
    receipt = await settle(evm, new_relayer, SCHEME.call(terms))
    query = LogQuery(addresses=[terms.asset], topics=((abi.AUTHORIZATION_USED_TOPIC,),), block_hash=receipt.block_hash)
    unknown = TxHash("0x" + "ab" * 32)
    sent = evm.rpc.requests_sent

    sight = await evm.see(query, [receipt.tx_hash, unknown], [terms.payer, Address("0xnone")], evm.deadline_in(PATIENCE_S))

    assert evm.rpc.requests_sent == sent + 1
    assert isinstance(sight.logs, tuple)
    assert [log.topics[2] for log in sight.logs] == [terms.auth_nonce]
    assert sight.receipts == [receipt, None]
    assert sight.tx_counts[0] == 0
    assert isinstance(sight.tx_counts[1], ChainFault)
    missing = LogQuery(addresses=[terms.asset], block_hash=BlockHash("0x" + "ab" * 32))
    assert isinstance((await evm.see(missing, (), (), evm.deadline_in(PATIENCE_S))).logs, ChainFault)


async def test_blocks_come_in_one_request_and_one_that_is_not_there_is_none(evm: EvmClient) -> None:
    head = await evm.head(evm.deadline_in(PATIENCE_S))
    sent = evm.rpc.requests_sent

    found = await evm.blocks([head.number, 0, head.number + 1000], evm.deadline_in(PATIENCE_S))

    assert evm.rpc.requests_sent == sent + 1
    assert found == [head, await evm.block(0, evm.deadline_in(PATIENCE_S)), None]


async def test_a_call_at_a_block_that_the_node_does_not_have_is_a_fault(evm: EvmClient, new_buyer: NewBuyer) -> None:
    terms, head = pay(await new_buyer()), await evm.head(evm.deadline_in(PATIENCE_S))
    state = Call(to=terms.asset, data=abi.authorization_state(terms.payer, terms.auth_nonce))
    assert abi.read_bool((await evm.call_at(state, head.number, evm.deadline_in(PATIENCE_S))).data) is False
    with pytest.raises(ChainFault):
        await evm.call_at(state, head.number + 1000, evm.deadline_in(PATIENCE_S))

"""The token's and Multicall3's codecs against known-good vectors, eth-abi, and what real contracts return."""

from collections.abc import Callable

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from facilitator.domain import abi
from facilitator.domain.abi import Canceled, PaymentProof, Transfer, UsedOtherwise, find_payment
from facilitator.domain.facts import Call, Reply
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, TxHash
from tests.fixtures.payments import USDC, authorization, canceled_log, error, log, transfer_log, used_log, word
from tests.fixtures.vectors import (
    AUTH_NONCE,
    CALLDATA_BYTES_BYTES,
    CALLDATA_BYTES_KECCAK,
    CALLDATA_VRS_BYTES,
    CALLDATA_VRS_KECCAK,
    PAYER,
)

PAYER_ADDRESS = Address(PAYER.lower())
OTHER = Address("0x" + "44" * 20)


def test_selectors_are_those_of_appendix_b() -> None:
    assert abi.TRANSFER_WITH_AUTHORIZATION.hex() == "e3ee160e"
    assert abi.TRANSFER_WITH_AUTHORIZATION_BYTES.hex() == "cf092995"
    assert abi.AUTHORIZATION_STATE.hex() == "e94a0102"
    assert abi.BALANCE_OF.hex() == "70a08231"
    assert abi.NAME.hex() == "06fdde03"
    assert abi.VERSION.hex() == "54fd4d50"
    assert abi.AGGREGATE3.hex() == "82ad56cb"


@pytest.mark.parametrize(
    ("selector", "signature"),
    [
        (abi.IS_BLACKLISTED, "isBlacklisted(address)"),
        (abi.PAUSED, "paused()"),
        (abi.DOMAIN_SEPARATOR, "DOMAIN_SEPARATOR()"),
        (abi.DECIMALS, "decimals()"),
        (abi.GET_CURRENT_BLOCK_TIMESTAMP, "getCurrentBlockTimestamp()"),
    ],
)
def test_the_other_selectors_are_hashes_of_their_signatures(selector: bytes, signature: str) -> None:
    assert selector == keccak(text=signature)[:4]


def test_topics_are_those_of_appendix_b() -> None:
    assert abi.TRANSFER_TOPIC == "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    assert abi.AUTHORIZATION_USED_TOPIC == "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
    assert abi.AUTHORIZATION_CANCELED_TOPIC == "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"


def test_calldata_of_both_overloads_is_that_of_appendix_a() -> None:
    short = abi.transfer_with_authorization(authorization(), authorization().signature)
    assert len(short) == CALLDATA_VRS_BYTES
    assert "0x" + keccak(short).hex() == CALLDATA_VRS_KECCAK
    long = abi.transfer_with_authorization_bytes(authorization(), authorization().signature)
    assert len(long) == CALLDATA_BYTES_BYTES
    assert "0x" + keccak(long).hex() == CALLDATA_BYTES_KECCAK


def test_what_our_transactions_pay_is_read_back_alone_and_together() -> None:
    long = authorization(signature=bytes(range(200)))
    short = authorization()
    calls = (
        Call(to=short.asset, data=abi.transfer_with_authorization(short, short.signature)),
        Call(to=long.asset, data=abi.transfer_with_authorization_bytes(long, long.signature)),
    )
    for call, paid in zip(calls, (short, long), strict=True):
        assert abi.read_payments(call, paid.network, paid.scheme) == (paid,)
    together = Call(to=abi.MULTICALL3_ADDRESS, data=abi.aggregate3(calls))
    assert abi.read_payments(together, short.network, short.scheme) == (short, long)
    deployed_first = Call(to=abi.MULTICALL3_ADDRESS, data=abi.deploy_and_pay(Call(to=short.pay_to, data=b"make it"), calls[1]))
    assert abi.read_payments(deployed_first, long.network, long.scheme) == (long,)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data + b"\x00", lambda data: b"\xff" * 4 + data[4:],
                                   lambda data: data[:4] + b"\xff" * 32 + data[36:], lambda data: data[:4], lambda _: b""])  # fmt: skip
def test_other_calldata_pays_nobody(spoil: Callable[[bytes], bytes]) -> None:
    paid = authorization()
    for data in (abi.transfer_with_authorization(paid, paid.signature), abi.transfer_with_authorization_bytes(paid, paid.signature)):
        assert abi.read_payments(Call(to=paid.asset, data=spoil(data)), paid.network, paid.scheme) == ()
        together = Call(to=abi.MULTICALL3_ADDRESS, data=spoil(abi.aggregate3([Call(to=paid.asset, data=data)])))
        assert abi.read_payments(together, paid.network, paid.scheme) == ()


def test_reads_of_the_token_are_packed_as_eth_abi_packs_them() -> None:
    assert abi.authorization_state(PAYER_ADDRESS, AuthNonce(AUTH_NONCE)) == abi.AUTHORIZATION_STATE + encode(
        ["address", "bytes32"], [PAYER, bytes.fromhex(AUTH_NONCE[2:])]
    )
    assert abi.balance_of(PAYER_ADDRESS) == abi.BALANCE_OF + encode(["address"], [PAYER])
    assert abi.is_blacklisted(PAYER_ADDRESS) == abi.IS_BLACKLISTED + encode(["address"], [PAYER])


def test_a_batch_of_no_calls_is_still_a_call() -> None:
    assert abi.aggregate3(()) == abi.AGGREGATE3 + encode(["(address,bool,bytes)[]"], [[]])


def test_a_deployment_may_fail_and_its_payment_may_not() -> None:
    deployment, payment = Call(to=PAYER_ADDRESS, data=b"make"), Call(to=USDC, data=b"pay")
    made = abi.deploy_and_pay(deployment, payment)
    assert made == abi.AGGREGATE3 + encode(["(address,bool,bytes)[]"], [[(PAYER, True, b"make"), (USDC, False, b"pay")]])
    assert abi.read_deploy_and_pay(made) == (deployment, payment)
    for other in (made + b"\0", made[:-1], abi.aggregate3([deployment, payment]), abi.aggregate3([]), b""):
        assert abi.read_deploy_and_pay(other) is None
    assert abi.read_aggregate3_calls(made) is None


def test_a_wrapped_signature_is_read_as_eth_abi_wrote_it() -> None:
    suffix = bytes.fromhex("6492" * 16)
    wrapped = encode(["address", "bytes", "bytes"], [PAYER, b"factory calldata", b"inner"]) + suffix
    assert abi.is_enveloped(wrapped)
    assert abi.read_envelope(wrapped) == abi.Envelope(deployment=Call(to=PAYER_ADDRESS, data=b"factory calldata"), signature=b"inner")
    nested = encode(["address", "bytes", "bytes"], [PAYER, b"", wrapped]) + suffix
    too_large = (2**160).to_bytes(32, "big") + wrapped[32:]
    for broken in (suffix, wrapped[40:], nested, too_large, wrapped[:64] + b"\xff" * 32 + wrapped[96:]):
        assert abi.is_enveloped(broken)
        assert abi.read_envelope(broken) is None
    assert not abi.is_enveloped(wrapped[:-1])


def test_the_question_to_a_contract_is_eth_abis() -> None:
    asked = abi.is_valid_signature(b"\x07" * 32, b"any length")
    assert asked == bytes.fromhex("1626ba7e") + encode(["bytes32", "bytes"], [b"\x07" * 32, b"any length"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        word(32),
        word(32) + word(1),
        word(2**255) + word(1),
        word(32) + word(2**255),
        word(32) + word(1) + word(2**200),
        encode(["(bool,bytes)[]"], [[(True, b"abc")]])[:-33],
        word(32) + word(1) + word(32) + word(2) + word(64) + word(0),
    ],
)
def test_what_multicall3_cannot_have_returned_is_none(data: bytes) -> None:
    assert abi.read_aggregate3(data) is None


def test_replies_of_multicall3_keep_their_order_and_their_failures() -> None:
    data = encode(["(bool,bytes)[]"], [[(True, word(5)), (False, error("no")), (True, b"")]])
    assert abi.read_aggregate3(data) == (Reply(ok=True, data=word(5)), Reply(ok=False, data=error("no")), Reply(ok=True, data=b""))


def test_returns_that_are_no_such_value_are_none() -> None:
    assert abi.read_bool(b"") is None
    assert abi.read_bool(word(2)) is None
    assert abi.read_bool(word(1)[:-1]) is None
    assert abi.read_uint(bytes(31)) is None
    assert abi.read_string(b"") is None
    assert abi.read_string(word(32) + word(40) + bytes(32)) is None


def test_returns_are_read() -> None:
    assert abi.read_bool(word(1)) is True
    assert abi.read_bool(word(0)) is False
    assert abi.read_uint(word(2**256 - 1)) == 2**256 - 1
    assert abi.read_string(encode(["string"], ["USD₮0"])) == "USD₮0"


@pytest.mark.parametrize("padding", [b"\0", b"\xff", b"e"])
def test_a_revert_text_is_read_whatever_its_padding_holds(padding: bytes) -> None:
    assert abi.revert_reason(error("ERC20: transfer amount exceeds balance", padding)) == "ERC20: transfer amount exceeds balance"


def test_a_revert_text_may_lack_its_padding() -> None:
    data = error("Pausable: paused")
    assert abi.revert_reason(data[: 4 + 64 + len("Pausable: paused")]) == "Pausable: paused"


def test_other_revert_data_is_named_as_far_as_it_can_be() -> None:
    assert abi.revert_reason(b"") is None
    assert abi.revert_reason(b"\x08\xc3\x79") is None
    assert abi.revert_reason(bytes.fromhex("4e487b71") + word(0x11)) == "Panic(0x11)"
    assert abi.revert_reason(keccak(text="ERC20InsufficientBalance(address,uint256,uint256)")[:4] + bytes(96)) == "ERC20InsufficientBalance"
    assert abi.revert_reason(bytes.fromhex("deadbeef")) == "custom error 0xdeadbeef"
    assert abi.revert_reason(bytes.fromhex("08c379a0")) == "custom error 0x08c379a0"


def test_a_revert_text_is_made_harmless() -> None:
    assert abi.revert_reason(error("a\nb\x1b[31m")) == "a?b?[31m"
    assert len(abi.revert_reason(error("x" * 5000)) or "") == 200


def test_used_followed_by_its_transfer_is_payment() -> None:
    terms = authorization()
    used = used_log(terms)
    assert find_payment([transfer_log(terms), used], terms) == PaymentProof(log=used)


@pytest.mark.parametrize(
    "follower",
    [
        transfer_log(authorization(amount_atomic=Atomic(9_999))),
        transfer_log(authorization(pay_to=OTHER)),
        transfer_log(authorization(payer=OTHER)),
    ],
)
def test_used_followed_by_another_transfer_is_no_payment(follower: abi.Log) -> None:
    terms = authorization()
    used = used_log(terms)
    assert find_payment([used, follower], terms) == UsedOtherwise(log=used, transfer=abi.read_transfer(follower))


@pytest.mark.parametrize(
    "follower",
    [
        transfer_log(authorization(), log_index=9),
        transfer_log(authorization(), log_index=6),
        transfer_log(authorization(), address=OTHER),
        transfer_log(authorization(), tx_hash=TxHash("0x" + "ee" * 32)),
        transfer_log(authorization(), block_hash=BlockHash("0x" + "ee" * 32)),
        transfer_log(authorization(), removed=True),
        log(transfer_log(authorization()).topics[:2], word(10_000), log_index=8),
        log(transfer_log(authorization()).topics, word(10_000) * 2, log_index=8),
    ],
)
def test_used_without_its_transfer_right_behind_is_no_payment(follower: abi.Log) -> None:
    terms = authorization()
    used = used_log(terms)
    assert find_payment([used, follower], terms) == UsedOtherwise(log=used, transfer=None)


def test_cancelled_is_neither() -> None:
    terms = authorization()
    canceled = canceled_log(terms)
    assert find_payment([canceled, transfer_log(terms)], terms) == Canceled(log=canceled)


def test_logs_of_other_authorizations_other_contracts_and_other_chains_say_nothing() -> None:
    terms = authorization()
    others = [
        used_log(authorization(auth_nonce=AuthNonce("0x" + "cc" * 32)), log_index=1),
        used_log(authorization(payer=OTHER), log_index=3),
        used_log(terms, log_index=5, address=OTHER),
        used_log(terms, log_index=9, removed=True),
        transfer_log(terms, log_index=10),
    ]
    assert find_payment(others, terms) is None
    assert find_payment((), terms) is None


def test_each_payment_of_a_shared_transaction_is_found_by_its_own_pair() -> None:
    first, second = authorization(), authorization(auth_nonce=AuthNonce("0x" + "cc" * 32), amount_atomic=Atomic(5))
    logs = [used_log(first, 7), transfer_log(first, 8), used_log(second, 9), transfer_log(second, 10)]
    assert find_payment(logs, first) == PaymentProof(log=logs[0])
    assert find_payment(logs, second) == PaymentProof(log=logs[2])


def test_events_are_read() -> None:
    terms = authorization()
    assert abi.read_transfer(transfer_log(terms)) == Transfer(sender=terms.payer, recipient=terms.pay_to, amount_atomic=Atomic(10_000))
    assert abi.read_transfer(used_log(terms)) is None
    used, canceled = abi.read_authorized(used_log(terms)), abi.read_authorized(canceled_log(terms))
    assert used == abi.Authorized(authorizer=terms.payer, auth_nonce=terms.auth_nonce, canceled=False)
    assert canceled == abi.Authorized(authorizer=terms.payer, auth_nonce=terms.auth_nonce, canceled=True)
    assert abi.read_authorized(transfer_log(terms)) is None


def test_the_topics_asked_for_bring_all_three_events_of_the_payers() -> None:
    assert abi.payment_topics() == ((abi.AUTHORIZATION_USED_TOPIC, abi.AUTHORIZATION_CANCELED_TOPIC, abi.TRANSFER_TOPIC),)
    assert abi.payment_topics([OTHER])[1] == ("0x" + "00" * 12 + "44" * 20,)

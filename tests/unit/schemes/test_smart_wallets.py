"""Payers whose signature code judges: every row of the decision table, each alone."""

from typing import Any

import pytest
from eth_abi.abi import encode

from facilitator.domain import abi
from facilitator.domain.facts import Call, CodeOf, Facts, Probe, Question, Reply
from facilitator.domain.wallets import DEPLOYMENT_GAS, WALLET_GAS, PayerKind, Rules, Wallet
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes import signatures
from facilitator.schemes.exact_eip3009 import ExactEip3009
from facilitator.units import Address, Gas
from tests.fixtures.payments import BASE_SEPOLIA, TOKEN, USDC, authorization, error, facts, head, payload, payment, sign, word

FACTORY = Address("0x" + "fa" * 20)
SUFFIX = bytes.fromhex("6492" * 16)
CODE = b"\x60\x80"
DELEGATION = b"\xef\x01\x00" + b"\xde" * 20
INNER = b"a passkey's signature"
TAKEN = Reply(ok=True, data=bytes.fromhex("1626ba7e") + bytes(28))
NO_CODE = Reply(ok=True, data=b"")
RULES = Rules(mode="counterfactual", factories=frozenset({(BASE_SEPOLIA, FACTORY)}))
SCHEME = ExactEip3009((TOKEN,), wallets=RULES)
DEPLOYED_ONLY = ExactEip3009((TOKEN,))
OFF = ExactEip3009((TOKEN,), wallets=Rules(mode="off"))


def wrapped(factory: str = FACTORY, calldata: bytes = b"make it", inner: bytes = INNER) -> Authorization:
    return authorization(signature=encode(["address", "bytes", "bytes"], [factory, calldata, inner]) + SUFFIX)


def passkey() -> Authorization:
    return authorization(signature=INNER)


def judge(terms: Authorization, *replies: Reply, scheme: ExactEip3009 = SCHEME) -> Wallet | Refusal:
    refusal = scheme.check_signature(terms)
    assert refusal is not None
    return scheme.judge_wallet(terms, Facts(head=head(), replies=replies), refusal)


def paid_by(found: object, kind: PayerKind) -> Wallet:
    assert isinstance(found, Wallet), found
    assert found.kind is kind
    return found


def refused(found: object, reason: Reason, *words: str) -> None:
    assert isinstance(found, Refusal), found
    assert found.reason is reason
    assert ": expected " in found.message
    for each in words:
        assert each in found.message


def both(deployment: Reply, word_of_it: Reply) -> Reply:
    """What Multicall3 returns of a deployment and the question behind it."""
    items = [(deployment.ok, deployment.data), (word_of_it.ok, word_of_it.data)]
    return Reply(ok=True, data=encode(["(bool,bytes)[]"], [items]))


def asked_of(question: Question) -> bytes:
    assert isinstance(question, Probe)
    return question.call.data


# ---- which questions


def test_code_and_its_word_are_asked_for_in_one_request() -> None:
    terms = passkey()
    digest = signatures.transfer_digest(terms, "USDC", "2")
    code, word_of_it = DEPLOYED_ONLY.ask_wallet(terms)
    assert code == CodeOf(address=terms.payer)
    assert word_of_it == Probe(call=Call(to=terms.payer, data=abi.is_valid_signature(digest, INNER)), gas=WALLET_GAS)


def test_a_wrapped_signature_is_also_asked_about_behind_its_deployment() -> None:
    terms = wrapped()
    digest = signatures.transfer_digest(terms, "USDC", "2")
    _, word_of_it, deployed = SCHEME.ask_wallet(terms)
    question = Call(to=terms.payer, data=abi.is_valid_signature(digest, INNER))
    assert asked_of(word_of_it) == question.data
    expected = Call(to=abi.MULTICALL3_ADDRESS, data=abi.aggregate3([Call(to=FACTORY, data=b"make it"), question]))
    assert deployed == Probe(call=expected, gas=DEPLOYMENT_GAS)


@pytest.mark.parametrize(
    ("scheme", "terms", "count"),
    [
        (OFF, passkey(), 1),
        (OFF, wrapped(), 1),
        (DEPLOYED_ONLY, wrapped(), 2),
        (SCHEME, wrapped(factory="0x" + "66" * 20), 2),
        (SCHEME, wrapped(calldata=b""), 2),
    ],
)
def test_no_factory_is_called_but_a_listed_one(scheme: ExactEip3009, terms: Authorization, count: int) -> None:
    assert len(scheme.ask_wallet(terms)) == count


@pytest.mark.parametrize("terms", [passkey(), wrapped(), authorization(signature=bytes(65)), authorization(signature=b"\x01")])
def test_where_wallets_may_pay_no_shape_of_a_signature_is_refused_unasked(terms: Authorization) -> None:
    """A contract may take any bytes: Safe takes 65 with r an owner, s nothing and v 1."""
    refusal = SCHEME.check_signature(terms)
    assert refusal is not None
    assert SCHEME.refuse_unasked(terms, refusal) is None
    assert DEPLOYED_ONLY.refuse_unasked(terms, refusal) is None


@pytest.mark.parametrize(
    ("terms", "reason", "got"),
    [
        (passkey(), Reason.SMART_WALLET_UNSUPPORTED, f"{len(INNER)} bytes"),
        (wrapped(), Reason.SMART_WALLET_UNSUPPORTED, "ERC-6492"),
        (authorization(signature=b"\x01" * 65), Reason.SIGNATURE, "smart wallets are not supported"),
        (authorization(signature=b"\x01" * 64), Reason.SIGNATURE, "smart wallets are not supported"),
    ],
)
def test_where_none_may_pay_every_signature_that_is_not_the_keys_is_refused_unasked(terms: Authorization, reason: Reason, got: str) -> None:
    refusal = OFF.check_signature(terms)
    assert refusal is not None
    refused(OFF.refuse_unasked(terms, refusal), reason, got)


# ---- who judges


@pytest.mark.parametrize(("code", "kind"), [(CODE, PayerKind.CONTRACT), (DELEGATION, PayerKind.DELEGATED)])
@pytest.mark.parametrize("signature", [INNER, b"\x01" * 64, b"\x01" * 65, b"\x01" * 64 + b"\0"])
def test_the_code_takes_a_signature_of_any_length_and_gets_it_as_it_came(code: bytes, kind: PayerKind, signature: bytes) -> None:
    terms = authorization(signature=signature)
    found = paid_by(judge(terms, Reply(ok=True, data=code), TAKEN), kind)
    assert found.call == Call(to=USDC, data=abi.transfer_with_authorization_bytes(terms, signature))
    assert found.gas == WALLET_GAS


def test_a_wallet_that_is_deployed_judges_what_was_wrapped() -> None:
    terms = wrapped(factory="0x" + "66" * 20)  # whoever made it
    found = paid_by(judge(terms, Reply(ok=True, data=CODE), TAKEN, scheme=DEPLOYED_ONLY), PayerKind.CONTRACT)
    assert found.call == Call(to=USDC, data=abi.transfer_with_authorization_bytes(terms, INNER))


def test_a_wallet_that_is_not_is_deployed_in_the_transaction_that_it_pays_by() -> None:
    terms = wrapped()
    made = Reply(ok=True, data=word(1))
    found = paid_by(judge(terms, NO_CODE, NO_CODE, both(made, TAKEN)), PayerKind.COUNTERFACTUAL)
    assert found.gas == DEPLOYMENT_GAS
    assert found.call.to == abi.MULTICALL3_ADDRESS
    payment_call = Call(to=USDC, data=abi.transfer_with_authorization_bytes(terms, INNER))
    assert abi.read_deploy_and_pay(found.call.data) == (Call(to=FACTORY, data=b"make it"), payment_call)
    faster = judge(terms, NO_CODE, NO_CODE, both(Reply(ok=False, data=b""), TAKEN))
    assert faster == found, "somebody else deployed it: the factory reverts, and the wallet is there"


def test_a_key_without_code_is_not_a_wallet() -> None:
    bad = authorization(signature=b"\x01" * 65)
    assert judge(bad, NO_CODE, NO_CODE) == SCHEME.check_signature(bad)
    assert SCHEME.wallet(authorization(), b"") is None


def test_a_delegated_key_that_signed_is_judged_by_its_code_in_the_keys_one_spelling() -> None:
    right = authorization().signature
    odd = authorization(signature=right[:64] + bytes([right[64] - 27]))
    assert SCHEME.check_signature(odd) is None
    found = paid_by(SCHEME.wallet(odd, DELEGATION), PayerKind.DELEGATED)
    assert found.call == Call(to=USDC, data=abi.transfer_with_authorization_bytes(odd, right))
    not_the_keys = authorization(signature=b"\x01" * 64 + b"\0")
    assert paid_by(SCHEME.wallet(not_the_keys, DELEGATION), PayerKind.DELEGATED).call.data.count(b"\x01" * 64 + b"\0") == 1


# ---- who is refused


@pytest.mark.parametrize(
    ("said", "got"),
    [
        (Reply(ok=True, data=bytes.fromhex("ffffffff") + bytes(28)), "another answer"),
        (Reply(ok=True, data=bytes.fromhex("1626ba7e")), "another answer"),
        (Reply(ok=True, data=bytes.fromhex("1626ba7e") + b"\x01" + bytes(27)), "another answer"),
        (NO_CODE, "knows no isValidSignature"),
        (Reply(ok=False, data=b""), "a revert"),
        (Reply(ok=False, data=b"", gas_used=WALLET_GAS), "all of 500000 gas"),
    ],
)
def test_whatever_the_code_says_but_yes_is_no(said: Reply, got: str) -> None:
    refused(judge(passkey(), Reply(ok=True, data=CODE), said), Reason.SIGNATURE, got)
    refused(judge(passkey(), Reply(ok=True, data=DELEGATION), said), Reason.SIGNATURE, got, "EIP-7702", "0xdEDE")
    refused(judge(wrapped(), Reply(ok=True, data=CODE), said, NO_CODE), Reason.SIGNATURE, got, "is not called")


@pytest.mark.parametrize(
    ("said", "reason", "got"),
    [
        (both(Reply(ok=True, data=b""), NO_CODE), Reason.DEPLOYMENT_FAILED, "no code there"),
        (both(Reply(ok=False, data=b""), NO_CODE), Reason.DEPLOYMENT_FAILED, "a revert"),
        (Reply(ok=False, data=b""), Reason.DEPLOYMENT_FAILED, "gas used"),
        (Reply(ok=True, data=b""), Reason.DEPLOYMENT_FAILED, "could be read"),
        (both(Reply(ok=True, data=b""), Reply(ok=False, data=b"")), Reason.SIGNATURE, "a revert"),
        (both(Reply(ok=True, data=b""), Reply(ok=True, data=word(0))), Reason.SIGNATURE, "another answer"),
    ],
)
def test_whatever_a_deployment_leaves_but_a_wallet_that_says_yes_is_refused(said: Reply, reason: Reason, got: str) -> None:
    refused(judge(wrapped(), NO_CODE, NO_CODE, said), reason, got)


@pytest.mark.parametrize(
    ("scheme", "terms", "code", "reason"),
    [
        (OFF, passkey(), CODE, Reason.SMART_WALLET_UNSUPPORTED),
        (OFF, authorization(), DELEGATION, Reason.SMART_WALLET_UNSUPPORTED),
        (OFF, wrapped(), b"", Reason.SMART_WALLET_UNSUPPORTED),
        (DEPLOYED_ONLY, wrapped(), b"", Reason.UNDEPLOYED_WALLET),
        (SCHEME, wrapped(factory="0x" + "00" * 20), b"", Reason.UNDEPLOYED_WALLET),
        (SCHEME, wrapped(calldata=b""), b"", Reason.UNDEPLOYED_WALLET),
        (SCHEME, wrapped(factory="0x" + "66" * 20), b"", Reason.FACTORY_NOT_ALLOWED),
        (SCHEME, wrapped(factory=USDC), b"", Reason.FACTORY_NOT_ALLOWED),
        (SCHEME, wrapped(factory=abi.MULTICALL3_ADDRESS), b"", Reason.FACTORY_NOT_ALLOWED),
    ],
)
def test_the_rules_refuse_before_anybodys_word(scheme: ExactEip3009, terms: Authorization, code: bytes, reason: Reason) -> None:
    refused(scheme.wallet(terms, code), reason)
    if scheme.check_signature(terms) is not None:
        refused(judge(terms, Reply(ok=True, data=code), TAKEN, scheme=scheme), reason)
    refused(scheme.judge(terms, facts(code=code)), reason)


def test_a_factory_is_listed_for_its_network_only() -> None:
    elsewhere = ExactEip3009((TOKEN,), wallets=Rules(mode="counterfactual", factories=frozenset({("eip155:8453", FACTORY)})))  # type: ignore[arg-type]
    refused(elsewhere.wallet(wrapped(), b""), Reason.FACTORY_NOT_ALLOWED)


@pytest.mark.parametrize("signature", [SUFFIX, b"\xff" * 96 + SUFFIX, wrapped(inner=wrapped().signature).signature])
def test_what_only_ends_like_a_wrapped_signature_is_malformed(signature: bytes) -> None:
    refused(SCHEME.read(payment(payload(signature="0x" + signature.hex()))), Reason.INVALID_EXACT_PAYLOAD, "ERC-6492")


# ---- the payment itself


def wallet() -> Wallet:
    return paid_by(SCHEME.wallet(passkey(), CODE), PayerKind.CONTRACT)


def test_the_simulation_is_what_would_be_sent_with_no_more_gas_than_there_may_be() -> None:
    *_, simulation = SCHEME.ask(passkey(), wallet())
    assert simulation == Probe(call=wallet().call, gas=wallet().call_gas)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, None),
        ({"simulation": Reply(ok=False, data=error("FiatTokenV2: invalid signature"))}, Reason.SIGNATURE),
        ({"simulation": Reply(ok=False, data=error("FiatTokenV2: invalid signature"), gas_used=WALLET_GAS)}, Reason.SIMULATION_FAILED),
        ({"simulation": Reply(ok=False, data=b"")}, Reason.SIMULATION_FAILED),
        ({"simulation": Reply(ok=False, data=b""), "balance": Reply(ok=True, data=word(1))}, Reason.INSUFFICIENT_BALANCE),
        ({"state": Reply(ok=True, data=word(1))}, Reason.NONCE_USED),
    ],
)
def test_a_wallets_payment_is_judged_as_any_other(answers: dict[str, Any], reason: Reason | None) -> None:
    found = SCHEME.judge(passkey(), facts(code=CODE, **answers), wallet())
    assert (found.reason if found else None) is reason


def test_a_refused_signature_of_a_delegated_key_says_that_only_the_code_counts() -> None:
    terms = authorization(signature=sign(authorization()))
    assert SCHEME.check_signature(terms) is None
    delegated = paid_by(SCHEME.wallet(terms, DELEGATION), PayerKind.DELEGATED)
    answers = facts(code=DELEGATION, simulation=Reply(ok=False, data=error("FiatTokenV2: invalid signature"), gas_used=Gas(1)))
    refused(SCHEME.judge(terms, answers, delegated), Reason.SIGNATURE, "EIP-7702", "whatever its key signed")

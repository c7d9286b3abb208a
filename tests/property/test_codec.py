"""The codec against requests, mutations and trees that nobody thought of, and against the official models."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from x402.schemas import (
    PaymentPayload,
    PaymentPayloadV1,
    PaymentRequirements,
    PaymentRequirementsV1,
    ResourceInfo,
    SettleResponse,
    SupportedResponse,
    VerifyRequest,
    VerifyResponse,
)

from facilitator.protocol import v1
from facilitator.protocol.address import checksum_address
from facilitator.protocol.codec import Malformed, Refused, decode_request, encode_settle, encode_supported, encode_verify
from facilitator.protocol.messages import Payment, SettleResult, Supported, SupportedKind, VerifyResult, Version
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.protocol.strict_json import HostileError, load, load_any
from facilitator.units import UINT256_MAX, Address, Network, TxHash
from tests.fixtures.vectors import v1_request, v2_request

Tree = dict[str, Any]

# ---- what may be sent

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
leaves = st.none() | st.booleans() | st.integers(-(10**77) + 1, 10**78 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12)
objects = st.dictionaries(texts, trees, max_size=4)


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """An address in any case."""
    digits = draw(st.binary(min_size=20, max_size=20)).hex()
    return "0x" + "".join(draw(st.sampled_from([digit, digit.upper()])) for digit in digits)


@dataclass(frozen=True)
class Asked:
    """One payment, before any version has spelled it."""

    scheme: str
    nickname: str
    amount_atomic: int
    asset: str
    pay_to: str
    max_timeout_s: int
    extra: Tree
    payload: Tree
    resource: str


asked_payments = st.builds(
    Asked,
    scheme=texts,
    nickname=st.sampled_from(sorted(v1.CHAIN_ID_BY_NICKNAME)),
    amount_atomic=st.integers(0, UINT256_MAX),
    asset=addresses(),
    pay_to=addresses(),
    max_timeout_s=st.integers(1, 2**31 - 1),
    extra=objects,
    payload=objects,
    resource=texts,
)


def spell_v1(asked: Asked, *, extra_as_text: bool) -> Tree:
    """An encoder of our own for v1, written from docs/protocol.md and sharing nothing with the codec."""
    return {
        "x402Version": 1,
        "paymentPayload": {"x402Version": 1, "scheme": asked.scheme, "network": asked.nickname, "payload": asked.payload},
        "paymentRequirements": {
            "scheme": asked.scheme,
            "network": asked.nickname,
            "maxAmountRequired": str(asked.amount_atomic),
            "resource": asked.resource,
            "description": "",
            "mimeType": "",
            "payTo": asked.pay_to,
            "maxTimeoutSeconds": asked.max_timeout_s,
            "asset": asked.asset,
            "extra": json.dumps(asked.extra) if extra_as_text else asked.extra,
        },
    }


def spell_v2(asked: Asked) -> Tree:
    """The same for v2."""
    requirements = {
        "scheme": asked.scheme,
        "network": f"eip155:{v1.CHAIN_ID_BY_NICKNAME[asked.nickname]}",
        "amount": str(asked.amount_atomic),
        "asset": asked.asset,
        "payTo": asked.pay_to,
        "maxTimeoutSeconds": asked.max_timeout_s,
        "extra": asked.extra,
    }
    return {
        "x402Version": 2,
        "paymentPayload": {"x402Version": 2, "accepted": requirements, "payload": asked.payload, "resource": {"url": asked.resource}},
        "paymentRequirements": requirements,
    }


def dump(tree: object, *, escaped: bool = True) -> bytes:
    return json.dumps(tree, ensure_ascii=escaped).encode()


@given(asked_payments, st.booleans(), st.booleans())
def test_v1_and_v2_of_one_payment_have_one_core(asked: Asked, escaped: bool, extra_as_text: bool) -> None:  # noqa: FBT001
    one = decode_request(dump(spell_v1(asked, extra_as_text=extra_as_text), escaped=escaped))
    two = decode_request(dump(spell_v2(asked), escaped=escaped))
    assert isinstance(one, Payment)
    assert isinstance(two, Payment)
    assert replace(one, version=2, wire_network=two.wire_network) == two
    assert (one.version, one.wire_network) == (1, asked.nickname)
    assert two.wire_network == two.network
    asks = two.requirements
    assert (two.scheme, two.payload, two.resource, two.accepted_differs) == (asked.scheme, asked.payload, asked.resource, ())
    assert (asks.scheme, asks.network, asks.extra) == (asked.scheme, two.network, asked.extra)
    assert (asks.amount_atomic, asks.max_timeout_s) == (asked.amount_atomic, asked.max_timeout_s)
    assert (asks.asset, asks.pay_to) == (asked.asset.lower(), asked.pay_to.lower())


# ---- what nobody should send

BODIES = (dump(v1_request()), dump(v2_request()))
TOKENS = (
    b"",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"NaN",
    b"-",
    b"1e999",
    b"0",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
)


@settings(max_examples=500)
@given(
    st.sampled_from(BODIES),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 40), st.sampled_from(TOKENS) | st.binary(max_size=4)), max_size=6),
)
def test_no_mutation_of_a_request_raises(body: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for start, length, replacement in edits:
        body = body[:start] + replacement + body[start + length :]
    assert isinstance(decode_request(body), Payment | Refused | Malformed)


@given(st.binary(max_size=200))
def test_no_bytes_raise(body: bytes) -> None:
    assert isinstance(decode_request(body), Malformed)


def paths_of(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*path, key)
            yield from paths_of(value, (*path, key))


@settings(max_examples=500)
@given(st.data())
def test_any_json_in_any_field_gives_a_checked_payment_or_a_refusal(data: st.DataObject) -> None:
    tree = data.draw(st.sampled_from([v1_request, v2_request]))()
    path = data.draw(st.sampled_from(list(paths_of(tree))))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(trees)
    match decode_request(dump(tree)):
        case Payment() as payment:
            asks = payment.requirements
            assert 0 <= asks.amount_atomic <= UINT256_MAX
            assert isinstance(asks.max_timeout_s, int)
            assert asks.max_timeout_s > 0
            assert asks.asset == asks.asset.lower()
            assert asks.pay_to == asks.pay_to.lower()
            assert isinstance(payment.payload, dict)
        case Refused() as refused:
            assert refused.refusal.reason in {
                Reason.INVALID_VERSION,
                Reason.SCHEME_MISMATCH,
                Reason.NETWORK_MISMATCH,
                Reason.UNSUPPORTED_NETWORK,
            }
            encode_verify(VerifyResult(payer=refused.payer, refusal=refused.refusal), refused.version)
            encode_settle(SettleResult(payer=refused.payer, refusal=refused.refusal), refused.version, refused.wire_network)
        case Malformed() as malformed:
            assert malformed.message


@given(trees)
def test_strict_json_reads_ordinary_json_as_it_was_written(tree: object) -> None:
    assert load(dump(tree)) == tree
    assert load(dump(tree, escaped=False)) == tree


SPELLINGS = ['"a"', '"a":', '"a":1,', '"a" :1,', '":', "\\u0061", "é", "\u2028", "NaN", "-0", "1.0", "1e5", "null", "true", "//", "0x1"]
NUMBERS = [str(number) for number in (2**53, 2**63, 2**64, -(2**63) - 1, 10**77, 10**78)]
tokens = st.sampled_from([*'{}[]",: \t\n\0\x7f\\', *SPELLINGS, *NUMBERS, "9" * 5000, "\ufeff", "\udcff"])
"""What two parsers might take differently. The last one is a byte that is not UTF-8."""


@given(st.data())
def test_the_short_cut_says_what_the_judge_of_all_json_says(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        request = data.draw(st.sampled_from([v1_request, v2_request]))()
        text = json.dumps(request, ensure_ascii=False, separators=data.draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")])))
        for token in data.draw(st.lists(tokens, max_size=3)):
            at = data.draw(st.integers(0, len(text)))
            text = text[:at] + token + text[at + data.draw(st.sampled_from([0, 0, 1, len(token)])) :]
    else:
        text = "".join(data.draw(st.lists(tokens, max_size=12)))
    body = text.encode("utf-8", "surrogateescape")
    assert outcome(load, body) == outcome(load_any, body)


def outcome(read: Callable[[bytes], object], body: bytes) -> str:
    try:
        return repr(read(body))
    except HostileError as hostile:
        return f"refused: {hostile.message}"


class Twice(dict[str, Any]):
    """An object that writes its first key again at its end."""

    def items(self) -> Any:
        return [*super().items(), next(iter(super().items()))]


@given(st.data())
def test_a_key_that_stands_twice_is_always_malformed(data: st.DataObject) -> None:
    tree = data.draw(st.sampled_from([v1_request, v2_request]))()
    tree["unknown"] = data.draw(st.lists(objects.filter(bool), min_size=1, max_size=3))
    holders = [tree, *tree["unknown"], *(node for path in paths_of(tree) if isinstance(node := _find(tree, path), dict) and node)]
    chosen = data.draw(st.sampled_from(range(len(holders))))
    text = dump(_double(tree, holders[chosen]), escaped=data.draw(st.booleans()))
    malformed = decode_request(text)
    assert isinstance(malformed, Malformed)
    assert malformed.message.startswith("expected each key once")


def _find(tree: Tree, path: tuple[str, ...]) -> object:
    node: Any = tree
    for key in path:
        node = node[key]
    return node


def _double(tree: object, holder: object) -> object:
    """A copy of the tree in which that one object writes a key twice."""
    if isinstance(tree, dict):
        copy = {key: _double(value, holder) for key, value in tree.items()}
        return Twice(copy) if tree is holder else copy
    if isinstance(tree, list):
        return [_double(value, holder) for value in tree]
    return tree


# ---- the official models (PyPI x402)

payers = st.none() | st.binary(min_size=20, max_size=20).map(lambda raw: Address("0x" + raw.hex()))
hashes = st.binary(min_size=32, max_size=32).map(lambda raw: TxHash("0x" + raw.hex()))
refusals = st.builds(Refusal, reason=st.sampled_from(Reason), message=texts)
versions: st.SearchStrategy[Version] = st.sampled_from((1, 2))


@given(payers, st.none() | refusals, versions)
def test_official_models_read_our_answers_of_verify(payer: Address | None, refusal: Refusal | None, version: Version) -> None:
    encoded = encode_verify(VerifyResult(payer=payer, refusal=refusal), version)
    read = VerifyResponse.model_validate_json(encoded)
    assert read.is_valid == (refusal is None)
    assert read.payer == (checksum_address(payer) if payer else "")
    if refusal is not None:
        assert (read.invalid_reason, read.invalid_message) == (refusal.reason.v1 if version == 1 else refusal.reason.v2, refusal.message)
    assert json.loads(encoded) == read.model_dump(by_alias=True, exclude_none=True)


@given(payers, st.none() | refusals, hashes, st.none() | st.integers(0, 2**31), st.none() | texts, versions)
def test_official_models_read_our_answers_of_settle(
    payer: Address | None, refusal: Refusal | None, tx_hash: TxHash, log_index: int | None, settlement_id: str | None, version: Version
) -> None:
    result = SettleResult(payer=payer, refusal=refusal, tx_hash=tx_hash, log_index=log_index, settlement_id=settlement_id)
    encoded = encode_settle(result, version, "base")
    read = SettleResponse.model_validate_json(encoded)
    assert (read.success, read.transaction, read.network) == (refusal is None, tx_hash, "base")
    assert (read.error_reason is None) == (refusal is None)
    assert json.loads(encoded) == read.model_dump(by_alias=True, exclude_none=True)


@given(st.lists(st.tuples(texts, st.integers(1, 2**53), st.none() | objects), max_size=5), st.lists(texts), st.lists(addresses()))
def test_official_models_read_our_answer_of_supported(
    kinds: list[tuple[str, int, Tree | None]], extensions: list[str], signers: list[str]
) -> None:
    supported = Supported(
        kinds=tuple(SupportedKind(scheme=scheme, network=Network(f"eip155:{chain_id}"), extra=extra) for scheme, chain_id, extra in kinds),
        extensions=tuple(extensions),
        signers={"eip155:*": tuple(Address(signer.lower()) for signer in signers)},
    )
    read = SupportedResponse.model_validate_json(encode_supported(supported))
    assert [(kind.scheme, kind.network) for kind in read.kinds if kind.x402_version == 2] == [
        (kind.scheme, kind.network) for kind in supported.kinds
    ]
    assert all(kind.network in v1.NETWORK_BY_NICKNAME for kind in read.kinds if kind.x402_version == 1)
    assert read.extensions == extensions
    assert [signer.lower() for signer in read.signers["eip155:*"]] == [signer.lower() for signer in signers]


@pytest.mark.parametrize("exclude_none", [True, False])
@given(asked_payments, st.none() | objects)
def test_requests_of_the_official_v2_models_are_read(exclude_none: bool, asked: Asked, extensions: Tree | None) -> None:  # noqa: FBT001
    spelled = spell_v2(asked)
    requirements = PaymentRequirements.model_validate(spelled["paymentRequirements"])
    payload = PaymentPayload(
        payload=asked.payload, accepted=requirements, resource=ResourceInfo(url=asked.resource, tags=["a"]), extensions=extensions
    )
    request = VerifyRequest(x402_version=2, payment_payload=payload, payment_requirements=requirements)
    body = dump(request.model_dump(by_alias=True, exclude_none=exclude_none))
    payment = decode_request(body)
    assert isinstance(payment, Payment)
    if not exclude_none:
        assert replace(payment, payment_identifier=None) == decode_request(dump(spelled))


@pytest.mark.parametrize("exclude_none", [True, False])
@given(asked_payments)
def test_requests_of_the_official_v1_models_are_read(exclude_none: bool, asked: Asked) -> None:  # noqa: FBT001
    spelled = spell_v1(asked, extra_as_text=False)
    requirements = PaymentRequirementsV1.model_validate(spelled["paymentRequirements"] | {"description": None, "mimeType": None})
    payload = PaymentPayloadV1(scheme=asked.scheme, network=asked.nickname, payload=asked.payload)
    body = dump(
        {
            "x402Version": 1,
            "paymentPayload": payload.model_dump(by_alias=True, exclude_none=exclude_none),
            "paymentRequirements": requirements.model_dump(by_alias=True, exclude_none=exclude_none),
        }
    )
    payment = decode_request(body)
    assert isinstance(payment, Payment)
    if not exclude_none:
        assert payment == decode_request(dump(spelled))

"""Short cuts of the hot path give what the long way gives, for whatever is put in."""

import re
from typing import Final

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from facilitator.domain.facts import Now
from facilitator.protocol import v2
from facilitator.protocol.codec import check_content_type
from facilitator.protocol.messages import Authorization
from facilitator.units import UnixSeconds
from tests.fixtures.payments import SCHEME, authorization, payload, payment
from tests.fixtures.vectors import SIGNATURE

HEX: Final = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
moments = st.integers(0, 40).map(UnixSeconds)
addresses = st.sampled_from(["0x" + "aB" * 20, "0x" + "Ab" * 20, "0x" + "cd" * 20, ""])


@given(
    st.one_of(
        st.lists(st.sampled_from(["0x", "0X", "00", "a", "F", "g", " ", "\n", "\u0661", "\uff10", "\0"]), max_size=8).map("".join),
        st.text(max_size=8),
        st.binary(min_size=1, max_size=70).map(lambda raw: "0x" + raw.hex()),
    )
)
@example("0x00 11")
@example("0x 0011")
@example("0011")
@example(SIGNATURE)
def test_a_signature_is_read_when_it_is_an_even_number_of_hex_digits(text: str) -> None:
    read = SCHEME.read(payment(payload(signature=text)))
    good = len(text) % 2 == 0 and HEX.fullmatch(text) is not None
    assert isinstance(read, Authorization) == good
    assert not isinstance(read, Authorization) or read.signature == bytes.fromhex(text[2:])


@given(moments, moments, moments, st.none() | moments, st.integers(0, 20))
def test_time_is_in_order_when_no_fault_is_found_in_it(
    after: UnixSeconds, before: UnixSeconds, head: UnixSeconds, wall: UnixSeconds | None, life_min_s: int
) -> None:
    terms = msgspec.structs.replace(authorization(), valid_after=after, valid_before=before)
    now = Now(head=head, wall=wall, life_min_s=life_min_s)
    assert SCHEME.check_time(terms, now) == next(SCHEME.faults_in_time(terms, now), None)


@given(
    *[st.tuples(st.none() | addresses, addresses) for _ in range(2)], st.tuples(st.none() | st.sampled_from("12"), st.sampled_from("12"))
)
def test_terms_that_differ_are_named_one_by_one(
    asset: tuple[str | None, str], pay_to: tuple[str | None, str], amount: tuple[str | None, str]
) -> None:
    accepted = v2.Accepted(scheme="exact", network="eip155:1", amount=amount[0], asset=asset[0], pay_to=pay_to[0])
    asked = v2.Requirements(scheme="exact", network="eip155:1", amount=amount[1], asset=asset[1], pay_to=pay_to[1], max_timeout_seconds=60)
    request = v2.Request(v2.PaymentPayload(2, accepted, {}), asked)
    named = (
        ("amount", amount[0] != amount[1]),
        ("asset", (asset[0] or "").lower() != asset[1].lower()),
        ("payTo", (pay_to[0] or "").lower() != pay_to[1].lower()),
    )
    assert request.accepted_differs == tuple(name for name, differs in named if differs)


@given(
    st.sampled_from(["application/json", "APPLICATION/JSON", " application/json", "application/json ;", "application/json; charset=utf-8"])
)
def test_a_content_type_in_any_spelling_is_the_plain_one(value: str) -> None:
    assert check_content_type(value) is None

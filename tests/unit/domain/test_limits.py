"""A tenant's limits as plain values: read, patched, judged; buckets and rooms by a time that the test tells."""

import json

import pytest

from facilitator.domain.identity import AuthKey
from facilitator.domain.limits import (
    HELD_S,
    Bucket,
    InFlight,
    Limits,
    Looks,
    Rate,
    decode_limits,
    encode_limits,
    judge_terms,
    over_budget,
    patched,
)
from facilitator.units import Address, AuthNonce, Network

NETWORK = Network("eip155:8453")
ASSET, SHOP, PAYER, OTHER = (Address("0x" + digit * 40) for digit in "1234")
LIMITS = Limits(networks=(NETWORK,), assets=(ASSET,), pay_to=(SHOP,), amount_min="1000")


def key(number: int, payer: Address = PAYER) -> AuthKey:
    return AuthKey(NETWORK, ASSET, payer, AuthNonce(f"0x{number:064x}"))


def test_limits_are_read_as_they_are_written() -> None:
    limits = Limits(rates={"/settle": Rate(per_second=2.5, burst=5)}, settlements_max=3, payer_settlements_max=1, amount_min="1000")
    assert decode_limits(encode_limits(limits)) == limits
    assert encode_limits(Limits()) == "{}"
    assert json.loads(encode_limits(limits))["rates"] == {"/settle": {"perSecond": 2.5, "burst": 5}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"rate": {}}', "unknown field"),
        ('{"rates": {"/admin/tenants": {"perSecond": 1, "burst": 1}}}', "expected some of /verify"),
        ('{"rates": {"/settle": {"perSecond": 0, "burst": 1}}}', "perSecond from 0.001"),
        ('{"rates": {"/settle": {"perSecond": 1, "burst": 0}}}', "burst from 1"),
        ('{"settlementsMax": -1}', "settlementsMax"),
        ('{"payerSettlementsMax": 1.5}', "int"),
        ('{"networks": ["base"]}', "CAIP-2"),
        ('{"assets": ["0x12"]}', "an address"),
        ('{"payTo": "0x12"}', "array"),
        ('{"amountMin": "01"}', "atomic units"),
        ('{"amountMin": "1.5"}', "atomic units"),
        ('{"amountMin": "١"}', "atomic units"),
        ('{"gasWeiPerDay": 5}', "str"),
        ('{"gasWeiPerDay": "0x5"}', "wei"),
        ('{"gasUsdPerDay": "1."}', "dollars"),
        ('{"gasUsdPerDay": "0.0000001"}', "dollars"),
        ('{"gasUsdPerDay": "-1"}', "dollars"),
        ('{"payerStrikesMax": 0}', "payerStrikesMax: expected 1"),
        ('{"strikesMax": 1000001}', "strikesMax: expected 1"),
        ("[]", "object"),
        ("{", "truncated"),
    ],
)
def test_what_cannot_be_a_limit_is_refused_and_says_why(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decode_limits(text)


def test_a_patch_replaces_what_it_names_and_null_ends_a_limit() -> None:
    first = patched(Limits(), {"rates": {"/settle": {"perSecond": 1, "burst": 2}}, "payTo": [SHOP.upper().replace("X", "x"), SHOP]})
    assert first == Limits(rates={"/settle": Rate(per_second=1, burst=2)}, pay_to=(SHOP,))
    second = patched(first, {"rates": {"/verify": {"perSecond": 3, "burst": 4}}, "payTo": None, "settlementsMax": 7})
    assert second.rates == {"/settle": Rate(per_second=1, burst=2), "/verify": Rate(per_second=3, burst=4)}
    assert (second.pay_to, second.settlements_max) == (None, 7)
    assert patched(second, {"rates": {"/settle": {"burst": 9}, "/verify": None}}).rates == {"/settle": Rate(per_second=1, burst=9)}
    assert patched(second, {"rates": None, "settlementsMax": None}) == Limits()
    with pytest.raises(ValueError, match="limits: "):
        patched(second, {"speed": 1})


def test_terms_within_the_limits_pass_and_no_limit_refuses_nothing() -> None:
    assert judge_terms(LIMITS, NETWORK, ASSET, SHOP, 1000) is None
    assert judge_terms(Limits(), "eip155:1", OTHER, OTHER, 0) is None


def test_each_breach_says_which_limit_what_it_allows_and_what_came() -> None:
    cases = {
        "networks": judge_terms(LIMITS, "eip155:1", ASSET, SHOP, 1000),
        "assets": judge_terms(LIMITS, NETWORK, OTHER, SHOP, 1000),
        "payTo": judge_terms(LIMITS, NETWORK, ASSET, OTHER, 1000),
        "amountMin": judge_terms(LIMITS, NETWORK, ASSET, SHOP, 999),
    }
    for name, breach in cases.items():
        assert breach is not None
        assert (breach.limit, breach.frees_s) == (name, None), "waiting does not help"
        assert breach.message.startswith(name)
    assert cases["payTo"] is not None
    assert cases["payTo"].facts == {"allowed": (SHOP,), "got": OTHER}
    assert cases["amountMin"] is not None
    assert cases["amountMin"].facts == {"min": "1000", "got": "999"}
    nobody = judge_terms(Limits(pay_to=()), NETWORK, ASSET, SHOP, 1)
    assert nobody is not None
    assert "none" in nobody.message


def test_a_gas_budget_says_what_is_left_what_is_needed_and_whether_to_wait_for_receipts_or_for_midnight() -> None:
    assert over_budget("gasWeiPerDay", "wei", most=100, used=90, need=10, spent=0, ends_in_s=5.5) is None
    held = over_budget("gasWeiPerDay", "wei", most=100, used=91, need=10, spent=90, ends_in_s=500.5)
    spent = over_budget("gasUsdPerDay", "dollars", most=12_500_000, used=12_600_000, need=1_500, spent=12_600_000, ends_in_s=500.5)
    assert held is not None
    assert spent is not None
    assert (held.frees_s, held.facts) == (HELD_S, {"max": "100", "left": "9", "needs": "10", "unit": "wei"})
    assert spent.frees_s == 501
    assert spent.facts == {"max": "12.500000", "left": "0.000000", "needs": "0.001500", "unit": "dollars"}
    assert "midnight UTC" in spent.message
    assert "midnight" not in held.message


def test_a_bucket_gives_its_burst_at_once_then_its_rate_and_says_when() -> None:
    bucket = Bucket(3, 100.0)
    assert [bucket.take(2.0, 3, 100.0) for _ in range(3)] == [None] * 3
    assert bucket.take(2.0, 3, 100.0) == pytest.approx(0.5)
    assert bucket.take(2.0, 3, 100.5) is None
    assert bucket.take(2.0, 3, 100.5) is not None
    assert [bucket.take(2.0, 3, 200.0) for _ in range(4)][:3] == [None] * 3, "never more than the burst, however long it rested"
    assert bucket.tokens < 1


def test_a_bucket_follows_a_rate_that_changes() -> None:
    bucket = Bucket(100, 0.0)
    assert bucket.take(1.0, 1, 0.0) is None
    assert bucket.take(1.0, 1, 0.0) == pytest.approx(1.0), "a smaller burst holds at once"


def test_a_bucket_leaves_to_others_what_is_kept_for_them() -> None:
    bucket = Bucket(4, 0.0)
    assert [bucket.take(1.0, 4, 0.0, kept=2) for _ in range(3)] == [None, None, pytest.approx(1.0)]
    assert [bucket.take(1.0, 4, 0.0) for _ in range(3)] == [None, None, pytest.approx(1.0)]
    for _ in range(9):
        bucket.give_back(4)
    assert bucket.tokens == 4, "never more than the burst"


def test_looks_are_bounded_for_each_tenant_and_what_is_given_back_does_not_count() -> None:
    looks = Looks(Rate(per_second=0.5, burst=2), Rate(per_second=1, burst=100))
    assert [looks.take("shop", 10.0) for _ in range(2)] == [None, None]
    breach = looks.take("shop", 10.0)
    assert breach is not None
    assert (breach.limit, breach.frees_s) == ("settlement.stranger_looks_per_s", 2)
    assert breach.facts == {"perSecond": 0.5, "burst": 2, "left": 0}
    assert looks.take("other", 10.0) is None
    looks.give_back("shop")
    assert looks.take("shop", 10.0) is None
    assert looks.take("shop", 12.0) is None, "one in two seconds"


def test_half_of_all_looks_is_kept_for_tenants_with_few_of_their_own() -> None:
    looks = Looks(Rate(per_second=0.001, burst=100), Rate(per_second=1, burst=120))
    flooded = [looks.take("flooded", 0.0) for _ in range(90)]
    assert flooded[:60] == [None] * 60
    assert {breach.limit for breach in flooded if breach} == {"settlement.stranger_looks_total_per_s"}
    assert [breach for breach in (looks.take("quiet", 0.0) for _ in range(50)) if breach] == []
    assert looks.take("quiet", 0.0) is not None, "it has used more than half of its own by now"
    assert looks.take("third", 0.0) is None
    assert looks.take("flooded", 51.0) is not None
    assert looks.take("flooded", 52.0) is None, "when there is more than what is kept"


def test_settlements_of_a_tenant_are_counted_by_payment_and_the_next_one_hears_when() -> None:
    rooms, limits = InFlight(), Limits(settlements_max=2)
    assert rooms.enter("shop", limits, key(1), 110.0, 100.0) is None
    assert rooms.enter("shop", limits, key(2), 108.5, 100.0) is None
    assert rooms.enter("shop", limits, key(2), 112.0, 100.0) is None, "a second caller with the same payment takes no room"
    breach = rooms.enter("shop", limits, key(3), 120.0, 100.0)
    assert breach is not None
    assert (breach.limit, breach.facts, breach.frees_s) == ("settlementsMax", {"max": 2, "left": 0}, 10)
    assert rooms.enter("other", limits, key(3), 120.0, 100.0) is None, "another tenant has its own"
    rooms.leave("shop", key(2))
    assert rooms.enter("shop", limits, key(3), 120.0, 100.0) is not None, "one caller of payment 2 is still there"
    rooms.leave("shop", key(2))
    assert rooms.enter("shop", limits, key(3), 120.0, 100.0) is None


def test_settlements_of_one_payer_are_counted_apart() -> None:
    rooms, limits = InFlight(), Limits(payer_settlements_max=1)
    assert rooms.enter("shop", limits, key(1), 110.0, 100.0) is None
    breach = rooms.enter("shop", limits, key(2), 110.0, 100.0)
    assert breach is not None
    assert breach.limit == "payerSettlementsMax"
    assert rooms.enter("shop", limits, key(3, OTHER), 110.0, 100.0) is None
    rooms.leave("shop", key(1))
    assert rooms.enter("shop", limits, key(2), 110.0, 100.0) is None


def test_a_limit_of_none_at_once_never_frees_and_nothing_is_kept_of_who_left() -> None:
    rooms = InFlight()
    breach = rooms.enter("shop", Limits(settlements_max=0), key(1), 110.0, 100.0)
    assert breach is not None
    assert breach.frees_s is None
    assert rooms.enter("shop", Limits(), key(1), 110.0, 100.0) is None
    rooms.leave("shop", key(1))
    assert rooms == InFlight()

"""Rulings on transactions that are not mined yet."""

import pytest

from facilitator.domain.fees import Fees
from facilitator.domain.resubmission import Bump, BumpPolicy, Rebroadcast, Replace, Ruling, Sent, Wait, outbid, rule
from facilitator.units import Wei

POLICY = BumpPolicy(max_fee_cap_wei=Wei(10_000))
QUOTE = Fees(Wei(800), Wei(10))


def sent(**changes: object) -> Sent:
    facts: dict[str, object] = {
        "attempts": [Fees(Wei(800), Wei(10))],
        "idle_s": 0.2,
        "blocks_missed": 0,
        "lowest": True,
        "blocks_others": False,
        "dead": False,
    }
    return Sent(**(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "ruling"),
    [
        ({}, Wait()),
        ({"idle_s": 1.0}, Rebroadcast()),
        ({"blocks_missed": 2}, Bump(Fees(Wei(900), Wei(12)))),
        ({"blocks_missed": 2, "lowest": False, "idle_s": 5.0}, Rebroadcast()),
        ({"blocks_missed": 2, "dead": True, "blocks_others": True}, Replace(Fees(Wei(900), Wei(12)))),
        ({"blocks_missed": 2, "dead": True, "idle_s": 2.0}, Rebroadcast()),
        ({"blocks_missed": 9, "idle_s": 9.0, "attempts": [Fees(Wei(9_500), Wei(10))]}, Rebroadcast()),
    ],
)
def test_a_ruling_follows_from_what_was_seen(facts: dict[str, object], ruling: Ruling) -> None:
    assert rule(sent(**facts), QUOTE, POLICY) == ruling


def test_later_bumps_raise_by_a_quarter_and_never_below_a_fresh_quote() -> None:
    attempts = [Fees(Wei(800), Wei(10)), Fees(Wei(900), Wei(12))]
    assert outbid(attempts, QUOTE) == Fees(Wei(1_125), Wei(15))
    assert outbid(attempts, Fees(Wei(5_000), Wei(50))) == Fees(Wei(5_000), Wei(50))


def test_a_tip_of_nothing_is_outbid_too() -> None:
    assert outbid([Fees(Wei(1), Wei(0))], Fees(Wei(0), Wei(0))) == Fees(Wei(2), Wei(1))

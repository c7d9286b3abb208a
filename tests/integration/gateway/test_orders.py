"""Whatever fails, and in whatever order: one payment buys once, and who was charged gets it, or the truth and then it.

A property over scripts of buyer, handler and facilitator, for a route of the tests and for one of a sample seller. The buyer
sends one payment again and again, by x402 or by turns by x402 and MPP, sometimes several at once, sometimes leaving in the
middle; in the end everything is well again and he asks until he hears an end.
"""

import asyncio
import base64
import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.integration.gateway.model import CHAT, WORK, Answer, Model, Route, Scene, Settling, Stage, Verifying, Working

VERIFYING: list[Verifying] = ["valid", "valid", "valid", "refuse", "503", "lost", "<html>"]
SETTLING: list[Settling] = ["success", "pending", "refuse", "503", "recorded 503", "lost", "recorded lost", "recorded <html>", "401", "409"]
WORKING: list[Working] = ["works", "works", "404", "raises", "raises 404"]
ATTEMPTS: list[tuple[Stage, int]] = [
    ("stays", 1),
    ("stays", 3),
    ("leaves at verify", 1),
    ("leaves at work", 1),
    ("leaves at settle", 1),
]


@pytest.mark.parametrize(("route", "both"), [(WORK, False), (WORK, True), (CHAT, False)], ids=["route", "both protocols", "sample seller"])
@settings(max_examples=200, deadline=None)
@given(
    verifying=st.lists(st.sampled_from(VERIFYING), max_size=4),
    working=st.lists(st.sampled_from(WORKING), max_size=4),
    settling=st.lists(st.sampled_from(SETTLING), max_size=8),
    attempts=st.lists(st.sampled_from(ATTEMPTS), min_size=1, max_size=4),
    cancels=st.booleans(),
)
@example(verifying=[], working=[], settling=["recorded lost"] * 3, attempts=[("leaves at settle", 1)], cancels=True)
@example(verifying=[], working=[], settling=["pending"] * 4, attempts=[("stays", 3), ("leaves at settle", 1)], cancels=True)
@example(verifying=["valid", "503"], working=[], settling=["pending", "pending"], attempts=[("stays", 1), ("stays", 1)], cancels=True)
@example(verifying=[], working=["works", "404"], settling=["pending", "pending"], attempts=[("stays", 1), ("stays", 1)], cancels=True)
def test_one_payment_buys_once_and_who_is_charged_gets_it(
    route: Route,
    verifying: list[Verifying],
    working: list[Working],
    settling: list[Settling],
    attempts: list[tuple[Stage, int]],
    *,
    cancels: bool,
    both: bool,
) -> None:
    asyncio.run(play(route, verifying, working, settling, attempts, cancels=cancels, both=both))


async def play(
    route: Route,
    verifying: list[Verifying],
    working: list[Working],
    settling: list[Settling],
    attempts: list[tuple[Stage, int]],
    *,
    cancels: bool,
    both: bool,
) -> None:
    model = Model(list(verifying), list(settling))
    async with Scene(model, route=route, handler_cancellation=cancels) as scene:
        scene.working = list(working)
        payments = itertools.cycle(await scene.payment_both_ways() if both else [scene.payment()])
        received = 0
        for stage, together in attempts:
            answers = await asyncio.gather(*(scene.buy(next(payments), stage=stage) for _ in range(together)))
            received += sum(answer is not None and answer.status == 200 for answer in answers)
            assert_truthful([answer for answer in answers if answer is not None and not is_truth_of_mpp(answer, model)], model, route)
        model.verifying, model.settling, scene.working = [], [], []
        for _ in range(4 if both else 2):
            answer = await scene.buy(next(payments))
            assert answer is not None
            received += answer.status == 200
        assert model.recorded
        assert received == 1
        assert "duplicate_settlement" in {answer.json.get("error"), answer.json.get("reason")}


def assert_truthful(answers: list[Answer], model: Model, route: Route) -> None:
    """Nobody hears that he was not charged when he was, and whatever is open may be sent again."""
    for answer in answers:
        told = {} if answer.status in {404, 500} or b"charged nothing" in answer.body else answer.json
        receipt = json.loads(base64.b64decode(answer.headers["Payment-Response"])) if "Payment-Response" in answer.headers else None
        match answer.status, told.get("error"):
            case 200, None:
                assert route.goods in answer.body
                assert model.told_with_key is not None
                assert receipt is not None
                assert receipt["success"] is True
                assert answer.headers["Cache-Control"] in {"private", "no-store"}
            case 402, "settlement_pending":
                assert told["accepts"] == []
                assert "Payment-Required" not in answer.headers
                assert "Retry-After" in answer.headers
                assert receipt is not None
                assert receipt["transaction"]
            case 402, "duplicate_settlement":
                assert model.recorded
            case 402, "insufficient_funds":
                assert told["accepts"]
            case 502, "settlement_unknown":
                assert told["payment"] == "open"
                assert "Retry-After" in answer.headers
            case 502, "facilitator_unavailable":
                assert told["payment"] == "untouched"
                assert "Retry-After" in answer.headers
            case 404 | 500 | 502, None:  # the handler's own: this request did nothing with the payment
                pass
            case other:
                raise AssertionError(f"an answer that was not thought of: {other}")
        assert b"nothing is charged" not in answer.body  # an earlier request may have
        if answer.status != 200:
            assert route.goods not in answer.body
            assert answer.headers.get("Cache-Control") == "no-store" or answer.status in {404, 500}


def is_truth_of_mpp(answer: Answer, model: Model) -> bool:
    """Is this an answer that only MPP has? Then it is true; what both have is left to the caller."""
    asks, paid, x402 = (name in answer.headers for name in ("Www-Authenticate", "Payment-Receipt", "Payment-Response"))
    if answer.headers.get("Content-Type") == "application/problem+json":
        assert (answer.status, asks, paid, x402) == (402, True, False, False)
        assert answer.json["reason"] == "insufficient_funds" or (answer.json["reason"] == "duplicate_settlement" and model.recorded)
        return True
    if answer.status == 503 and answer.json["error"] == "settlement_pending":
        assert (asks, paid, x402, answer.json["payment"]) == (False, False, False, "open")
        assert "Retry-After" in answer.headers
        return True
    if paid:
        assert (answer.status, asks, x402) == (200, False, False)
        assert model.told_with_key is not None
        assert answer.headers["Cache-Control"] in {"private", "no-store"}
    return paid

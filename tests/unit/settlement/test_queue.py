"""The queue's verdict before a payment is parsed is the one that it hears afterwards."""

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from facilitator.clock import SystemClock
from facilitator.errors import OverloadFault
from facilitator.settlement.queue import Queue
from facilitator.settlement.settings import Settings
from facilitator.units import Address, Network

ASSET = Address("0x" + "11" * 20)
STEP = st.one_of(st.just(("come", 0)), st.tuples(st.just("leave"), st.integers(0, 3)), st.tuples(st.just("wait"), st.integers(1, 40)))


class HandClock(SystemClock):
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


def verdict(queue: Queue, clock: HandClock, settings: Settings) -> tuple[str, int | None] | None:
    """What a payment that lives long hears when it asks for its place."""
    try:
        with queue.place(ASSET, float("inf"), clock.at + settings.deadline_s):
            return None
    except OverloadFault as fault:
        return fault.kind, fault.retry_after_s


@given(st.lists(STEP, max_size=60), st.integers(1, 12))
def test_what_a_full_queue_says_at_the_door_it_says_inside(steps: list[tuple[str, int]], queue_max: int) -> None:
    clock, settings = HandClock(), Settings(queue_max=queue_max, queue_wait_max_s=2.0)
    queue = Queue(Network("eip155:84532"), clock, settings)
    places: list[ExitStack] = []
    for what, amount in steps:
        if what == "wait":
            clock.at += amount / 10
        elif what == "leave":
            queue.left(len(places[:amount]))
            for place in places[:amount]:
                place.close()
            places = places[amount:]
        elif queue.full(0) is None:
            (place := ExitStack()).enter_context(queue.place(ASSET, float("inf"), clock.at + settings.deadline_s))
            places.append(place)
        told = queue.full(0)
        assert (told and (told.kind, told.retry_after_s)) == verdict(queue, clock, settings)
        if places:
            full = queue.full(queue_max)
            assert full is not None, "those on their way count"
            assert full.kind == "queue_full"
    for place in places:
        place.close()
    assert queue.full(10**6) is None, "an empty queue refuses nobody, however many come"

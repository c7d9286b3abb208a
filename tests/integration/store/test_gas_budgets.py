"""Gas budgets in Postgres: a walk at random (`make prove` walks farther), and the cases that it seldom meets."""

import asyncio
import os
import secrets
from collections.abc import Iterator

import pytest

from facilitator.store import restraints
from tests.fixtures.gas_books import BASE_SEPOLIA, GasBooks, Ground

WALKS, STEPS = 20, 25
AGAIN = "FACILITATOR_SEED={seed} .venv/bin/python -m pytest tests/integration/store/test_gas_budgets.py"
FEE = 5 * 10**12
"""Half of the first tenant's budget."""


@pytest.fixture
def books(database_url: str) -> Iterator[GasBooks]:
    books = GasBooks.opened(Ground(database_url))
    yield books
    books.teardown()


def test_no_tenant_spends_more_than_its_budget_and_one_transaction_and_all_together_what_relayers_paid(database_url: str) -> None:
    seed = int(os.environ.get("FACILITATOR_SEED") or secrets.randbelow(2**31))
    print(AGAIN.format(seed=seed))  # noqa: T201
    ground = Ground(database_url)
    ground.walk(seed, WALKS, STEPS)
    print(ground)  # noqa: T201


def test_what_is_held_frees_at_the_receipt_and_what_is_spent_at_midnight(books: GasBooks) -> None:
    first, second, *_ = books.names
    lease, other = books.leases
    whole = books.play(books.pay_now([first, first], FEE, lease, together=False, queued=False))
    assert len(whole) == 2
    assert books.play(books.pay_now([first], 7, other, together=False, queued=False)) == [], "all of it is held"
    assert books.play(books.pay_now([first, second], 7, other, together=True, queued=True)) == [], "nor in company, nor from the queue"
    assert len(books.play(books.pay_now([second], 7, other, together=False, queued=True))) == 1, "another tenant's budget is its own"
    books.play(books.mine_now(whole[0], 20, 0))
    assert len(books.play(books.pay_now([first], FEE * 4 // 5, other, together=False, queued=False))) == 1
    assert books.play(books.pay_now([first], 1, other, together=False, queued=False)) == []
    books.play(books.mine_now(whole[1], 100, 1))
    books.play(books.midnight_now())
    assert len(books.play(books.pay_now([first, first], FEE, other, together=False, queued=False))) == 2, "a new day"


def test_one_higher_bid_may_overdraw_a_budget_and_a_no_op_within_what_is_held_still_goes(books: GasBooks) -> None:
    name, lease = books.names[0], books.leases[0]
    low, high = books.play(books.pay_now([name, name], FEE, lease, together=False, queued=False))
    books.play(books.outbid_now(low, 2, noop=False))
    assert len(low.hashes) == 2, "the budget was whole until then"
    books.play(books.outbid_now(high, 2, noop=False))
    assert (len(high.hashes), books.ground.unaffordable) == (1, 1), "and is overdrawn now"
    books.play(books.outbid_now(high, 2, noop=True))
    assert len(high.hashes) == 2
    assert books.play(books.pay_now([name], 1, lease, together=False, queued=False)) == []
    books.play(books.mine_now(low, 20, 0))
    books.play(books.outbid_now(high, 2, noop=False))
    assert books.ground.unaffordable == 1, "what is held is within the budget again"


def test_a_budget_in_dollars_holds_nothing_without_a_fresh_rate_and_settles_by_the_rate_that_it_was_held_at(books: GasBooks) -> None:
    name, lease = books.names[1], books.leases[0]
    [held] = books.play(books.pay_now([name], FEE, lease, together=False, queued=False))
    books.play(books.rate_now(None))
    assert books.play(books.pay_now([name], 1, lease, together=False, queued=False)) == []
    books.play(books.mine_now(held, 90, 0))
    assert books.books.days[name, 0, "usd"].spent == 13_500
    books.play(books.ripen_now(held, deep=False))
    assert books.books.days[name, 0, "usd"].spent == 0, "its block left the chain"


def test_of_replicas_that_hold_the_last_of_a_budget_at_the_same_time_one_does(books: GasBooks) -> None:
    name = books.names[0]

    async def race() -> list[int]:
        steps = [books.pay_now([name], FEE + 1, lease, together=False, queued=False) for lease in books.leases]
        books.racing = True
        return [len(found.values) for found in await asyncio.gather(*steps)]

    assert sorted(books.run(race())) == [0, 1]
    [budget] = [
        row for row in books.run(restraints.gas_budgets(books.here, [BASE_SEPOLIA])) if (row.tenant_id, row.unit) == (name, BASE_SEPOLIA)
    ]
    assert (budget.most, budget.held, budget.spent) == (2 * FEE, FEE + 1, 0)

"""What the doctor makes of what it sees: each trouble has its line and its remedy, and health has none."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from facilitator.doctor import judge_balance, judge_budgets, judge_database, judge_heads
from facilitator.domain.facts import Head
from facilitator.store.inspection import GasSpent, Inspection
from facilitator.units import Address, BlockHash, Network, UnixSeconds, Wei

NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)
WELL = Inspection(version="18.4", now=NOW, missing=(), excessive=(), synchronous_commit="on", encrypted=False, local=True)
RELAYER = Address("0x" + "11" * 20)
ETHER = 10**18


def test_a_database_that_is_well_has_nothing_to_remedy() -> None:
    assert [str(finding) for finding in judge_database(WELL, NOW, NOW - timedelta(hours=23)) if finding.verdict != "ok"] == []


@pytest.mark.parametrize(
    ("change", "verdict", "subject", "remedy"),
    [
        ({"missing": ("seal: insert",)}, "fail", "grants", "select grant_roles()"),
        ({"excessive": ("seal: delete",)}, "warn", "grants", "revoke"),
        ({"synchronous_commit": "off"}, "fail", "durability", "set it to on"),
        ({"local": False}, "warn", "database", "sslmode=verify-full"),
        ({"now": NOW + timedelta(seconds=3)}, "warn", "clock", "NTP"),
        ({"now": NOW - timedelta(seconds=3)}, "warn", "clock", "NTP"),
    ],
)
def test_each_trouble_of_the_database_has_its_line(change: dict[str, Any], verdict: str, subject: str, remedy: str) -> None:
    (found,) = [finding for finding in judge_database(replace(WELL, **change), NOW, None) if finding.verdict != "ok"]
    assert (found.verdict, found.subject) == (verdict, subject)
    assert remedy in found.remedy


def test_tenants_for_whom_no_wallet_is_deployed_are_named() -> None:
    assert judge_budgets([]).verdict == "ok"
    found = judge_budgets(["acme", "globex"])
    assert (found.verdict, "acme, globex" in found.what) == ("warn", True)
    assert "--gas-usd-per-day" in found.remedy
    assert judge_budgets([f"t{number}" for number in range(11)]).what.endswith("t9 and others")


def test_an_encrypted_connection_over_a_network_is_well() -> None:
    far = replace(WELL, local=False, encrypted=True)
    assert all(finding.verdict == "ok" for finding in judge_database(far, NOW, None))


def test_a_book_day_that_could_be_closed_for_a_day_is_told() -> None:
    (found,) = [each for each in judge_database(WELL, NOW, NOW - timedelta(days=2)) if each.verdict != "ok"]
    assert (found.verdict, found.subject, found.remedy) == ("warn", "daily close", "`facilitator close DAY`")
    assert "2026-11-19 09:00" in found.what


def head(number: int) -> Head:
    return Head(number=number, timestamp=UnixSeconds(0), block_hash=BlockHash("0x" + "00" * 32), base_fee_wei=Wei(0))


def test_endpoints_that_are_behind_are_told() -> None:
    network = Network("eip155:8453")
    assert list(judge_heads(network, {0: head(100), 1: head(97)}, 3)) == []
    assert list(judge_heads(network, {}, 3)) == []
    (found,) = judge_heads(network, {0: head(100), 2: head(96)}, 3)
    assert (found.verdict, found.subject) == ("warn", "eip155:8453 rpc 2")
    assert "4 blocks behind" in found.what


@pytest.mark.parametrize(
    ("balance_wei", "spent_wei", "days", "verdict", "said"),
    [
        (ETHER, None, 0.0, "ok", "1.000000"),
        (0, None, 0.0, "fail", "0.000000"),
        (10**14, None, 0.0, "warn", "0.000100"),
        (ETHER, ETHER, 5.0, "ok", "for 5.0 days"),
        (ETHER, 2 * ETHER, 4.0, "warn", "for 2.0 days"),
        (ETHER, ETHER, 0.0, "ok", "1.000000"),  # spent just now: that says nothing of a week
    ],
)
def test_gas_money_is_told_in_coins_and_days(balance_wei: int, spent_wei: int | None, days: float, verdict: str, said: str) -> None:
    spent = None if spent_wei is None else GasSpent(RELAYER, Wei(spent_wei), days)
    found = judge_balance("relayer", RELAYER, balance_wei, 5 * 10**14, spent)
    assert (found.verdict, bool(found.remedy)) == (verdict, verdict != "ok")
    assert said in found.what

"""Screening as operators have it: `serve` with a list and an oracle, what callers hear, and what `doctor` finds."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from facilitator import doctor
from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import SystemClock
from facilitator.devstack.buyer import facilitator_request
from facilitator.devstack.stack import Anvil
from facilitator.domain.abi import MULTICALL3_ADDRESS
from facilitator.settlement.screening import Settings
from facilitator.units import Address
from tests.fixtures.sanctions import KNOWN_LISTED, Oracle, write_list
from tests.fixtures.service import ServeFailed, ServeProcess
from tests.integration.settlement.conftest import NETWORK
from tests.integration.settlement.test_engine import NewBuyer, terms

PAYER_WORD = "invalid_exact_evm_payload_authorization_from_address_kyt"


async def test_a_service_refuses_who_is_listed_keeps_evidence_and_takes_a_new_list_while_it_runs(
    tmp_path: Path, database_url: str, chain: Anvil, new_buyer: NewBuyer, new_relayer: Callable[..., Awaitable[Any]]
) -> None:
    oracle, path = await Oracle.deployed(chain.node), write_list(tmp_path / "list.txt")
    bad, silent, good, asked = await new_buyer(), await new_buyer(), await new_buyer(), terms()
    await oracle.say(silent.address, "silent")
    service = ServeProcess(
        tmp_path,
        database_url=database_url,
        rpc_url=chain.rpc_url,
        relayer_keys=[(await new_relayer()).key.hex()],
        settings={
            "screening": {"known_listed": KNOWN_LISTED, "list_file": str(path), "reload_s": 0.1},
            "network": {"screening_oracle": oracle.address},
        },
    )
    async with service, aiohttp.ClientSession(headers=service.headers, timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def ask(route: str, buyer: Any) -> tuple[int, dict[str, Any]]:
            body = facilitator_request(buyer.pay(2, asked), asked)
            async with session.post(service.base_url + route, json=body) as response:
                return response.status, await response.json()

        assert (await ask("/verify", bad))[1]["isValid"] is True
        write_list(path, bad.address)
        async with asyncio.timeout(30):
            while (told := await ask("/verify", bad))[1]["isValid"]:
                await asyncio.sleep(0.05)
        assert told == (200, {"isValid": False, "payer": bad.address, **_said("invalid", told[1])})
        assert told[1]["invalidReason"] == PAYER_WORD
        status, answer = await ask("/settle", bad)
        assert (status, answer["success"], answer["errorReason"], answer["transaction"]) == (200, False, PAYER_WORD, "")
        for route in ("/verify", "/settle"):
            status, answer = await ask(route, silent)
            assert (status, answer["error"]) == (503, "screening_unavailable")
        status, answer = await ask("/settle", good)
        assert (status, answer["success"]) == (200, True)
        async with session.get(f"{service.base_url}/settlements/{answer['extra']['settlementId']}") as response:
            kept = (await response.json())["screening"]
        assert kept["decision"] == "clear"
        assert kept["lists"][0].startswith("sha256:")
        assert kept["lists"][1].startswith(f"{oracle.address}@")
        async with session.get(f"{service.base_url}/metrics") as response:
            metrics = await response.text()
        for decision in ("clear", "listed", "unavailable"):
            assert f'decision="{decision}"' in metrics
        write_list(path, "nonsense", extra=())
        async with asyncio.timeout(30):
            while "screening_list.refused" not in service.logs:
                await asyncio.sleep(0.05)
        assert (await ask("/verify", bad))[1]["isValid"] is False, "the version before stays"
    assert bad.address.lower() not in json.dumps([event for event in service.log_events if str(event["event"]).startswith("screening")])


def _said(prefix: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key.startswith(prefix)}


async def test_a_service_without_a_readable_list_does_not_start(tmp_path: Path, database_url: str, chain: Anvil) -> None:
    service = ServeProcess(
        tmp_path,
        database_url=database_url,
        rpc_url=chain.rpc_url,
        relayer_keys=[],
        settings={"screening": {"known_listed": KNOWN_LISTED, "list_file": str(tmp_path / "nowhere.txt")}},
    )
    with pytest.raises(ServeFailed, match="screening.list_file"):
        await service.astart()


# --- doctor ---


async def test_doctor_reads_the_list_as_serve_does(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.txt")
    settings = Settings(known_listed=KNOWN_LISTED, list_file=str(path))
    well = await doctor._examine_list(settings)
    assert (well.verdict, "1 accounts" in well.what, "sha256:" in well.what) == ("ok", True, True)
    old = await doctor._examine_list(Settings(known_listed=KNOWN_LISTED, list_file=str(path), list_age_max_s=-1.0))
    assert (old.verdict, "touch it" in old.remedy) == ("fail", True)
    toothless = await doctor._examine_list(Settings(known_listed=Address("0x" + "1" * 40), list_file=str(path)))
    assert (toothless.verdict, "does not name" in toothless.what) == ("fail", True)


@pytest.mark.parametrize(
    ("word", "verdict", "what"),
    [
        ("listed", "ok", "lists"),
        ("clear", "fail", "does not list"),
        ("silent", "fail", "does not answer"),
        (None, "fail", "does not answer"),
    ],
)
async def test_doctor_asks_the_oracle_about_the_known_account_and_about_anybody(chain: Anvil, word: Any, verdict: str, what: str) -> None:
    oracle = await Oracle.deployed(chain.node)
    if word is not None:
        await oracle.say(KNOWN_LISTED, word)
    client = EvmClient(NETWORK, RpcClient([chain.rpc_url], SystemClock()))
    try:
        address = oracle.address if word is not None else Address(MULTICALL3_ADDRESS)
        found = await doctor._examine_oracle(Settings(known_listed=KNOWN_LISTED), client, address, "oracle")
    finally:
        await client.close()
    assert found.verdict == verdict
    assert what in found.what


async def test_doctor_finds_an_oracle_that_lists_anybody(chain: Anvil) -> None:
    oracle = await Oracle.deployed(chain.node)
    await chain.node.call("anvil_setCode", oracle.address, "0x60015f5260205ff3")  # returns 1, whatever is asked
    client = EvmClient(NETWORK, RpcClient([chain.rpc_url], SystemClock()))
    try:
        found = await doctor._examine_oracle(Settings(known_listed=KNOWN_LISTED), client, oracle.address, "oracle")
    finally:
        await client.close()
    assert (found.verdict, "made up" in found.what) == ("fail", True)

"""Reconciling and relayers from the command line, beside a running service."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from eth_account.signers.local import LocalAccount

from facilitator.devstack.buyer import Buyer, facilitator_request, requirements
from facilitator.devstack.stack import Anvil
from tests.fixtures.service import BASE_SEPOLIA, ServeFailed, ServeProcess
from tests.fixtures.waiting import PATIENCE_S

PAY_TO = "0x2222222222222222222222222222222222222222"
QUICK = {"settlement": {"lease_renew_s": 0.3}}


async def settle(service: ServeProcess, buyer: Buyer) -> dict[str, Any]:
    asked = requirements(2, pay_to=PAY_TO, amount_atomic=1000)
    body = facilitator_request(buyer.pay(2, asked), asked)
    async with aiohttp.ClientSession(headers=service.headers) as session, session.post(f"{service.base_url}/settle", json=body) as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def test_the_ledger_is_reconciled_and_a_difference_is_exit_2(
    tmp_path: Path,
    database_url: str,
    chain: Anvil,
    new_buyer: Callable[..., Awaitable[Buyer]],
    new_relayer: Callable[..., Awaitable[LocalAccount]],
) -> None:
    relayer, buyer = await new_relayer(), await new_buyer()
    service = ServeProcess(tmp_path, database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=[relayer.key.hex()], settings=QUICK)
    async with service:
        assert (await settle(service, buyer))["success"]
        assert service.command("reconcile", "--network", BASE_SEPOLIA).strip().endswith("1 payments, 1 transfers: ledger = chain")

        connection = await asyncpg.connect(database_url)
        await connection.execute("update settlement set amount_atomic = amount_atomic + 1")
        await connection.close()
        with pytest.raises(ServeFailed):
            service.command("reconcile", "--network", BASE_SEPOLIA, "--json")
        with pytest.raises(ServeFailed, match="expected one of"):
            service.command("reconcile", "--network", "eip155:1")


async def test_a_drained_relayer_takes_no_work_until_it_is_activated(
    tmp_path: Path,
    database_url: str,
    chain: Anvil,
    new_buyer: Callable[..., Awaitable[Buyer]],
    new_relayer: Callable[..., Awaitable[LocalAccount]],
) -> None:
    relayer, buyer = await new_relayer(), await new_buyer()
    quick = {"settlement": QUICK["settlement"] | {"deadline_s": 3.0, "verify_deadline_s": 3.0}}
    service = ServeProcess(tmp_path, database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=[relayer.key.hex()], settings=quick)
    async with service:
        while not (await settle(service, buyer)).get("success"):
            pass
        service.command("relayers", "drain", "--network", BASE_SEPOLIA, relayer.address)
        answers = [await settle(service, buyer)]
        while "error" not in answers[-1]:  # until the service has noticed
            answers.append(await settle(service, buyer))
        assert "draining" in service.command("relayers", "list")

        service.command("relayers", "activate", "--network", BASE_SEPOLIA, relayer.address)
        answer = await settle(service, buyer)
        while not answer.get("success"):
            answer = await settle(service, buyer)
        assert answer["transaction"]


def test_wrong_usage_is_one_line_that_says_what_to_do(tmp_path: Path, database_url: str, chain: Anvil) -> None:
    service = ServeProcess(tmp_path, database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=["0x" + "11" * 32])
    service.command("migrate")
    with pytest.raises(ServeFailed, match="40 hex digits"):
        service.command("relayers", "drain", "--network", BASE_SEPOLIA, "nobody")
    with pytest.raises(ServeFailed, match="never used"):
        service.command("relayers", "drain", "--network", BASE_SEPOLIA, PAY_TO)


async def test_a_running_service_seals_what_it_books_and_its_heads_leave_the_database(
    tmp_path: Path,
    database_url: str,
    chain: Anvil,
    new_buyer: Callable[..., Awaitable[Buyer]],
    new_relayer: Callable[..., Awaitable[LocalAccount]],
) -> None:
    relayer, buyer, heads = await new_relayer(), await new_buyer(), tmp_path / "heads"
    settings = QUICK | {"finance": {"seal_s": 0.1, "reconcile_s": 0.2, "seal_file": str(heads)}}
    service = ServeProcess(tmp_path, database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=[relayer.key.hex()], settings=settings)
    async with service:
        assert (await settle(service, buyer))["success"]
        connection = await asyncpg.connect(database_url)
        unsealed = (
            "select count(*) from journal_entry e"
            " where not exists (select from sealed_leaf l where l.source = 'journal' and l.row_id = e.entry_id)"
        )
        async with asyncio.timeout(PATIENCE_S):
            while await connection.fetchval(unsealed) or not heads.exists():
                await asyncio.sleep(0.05)
        assert service.command("audit", "verify", "--against", str(heads)).strip().endswith(heads.read_text("ascii").split()[-1])
        await connection.execute("set session_replication_role = replica")
        await connection.execute("update journal_entry set amount_atomic = amount_atomic + 1 where entry_id = 1")
        await connection.close()
        with pytest.raises(ServeFailed, match="journal 1: it was altered after seal [12]"):
            service.command("audit", "verify", "--against", str(heads))

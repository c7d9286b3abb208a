"""The answer to a lost reply: whoever knows network, asset, payer and nonce finds out how the payment ended."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest_asyncio

from facilitator.devstack.token import BASE_SEPOLIA_USDC
from tests.fixtures.house import AMOUNT, House, client_session, eventually
from tests.fixtures.service import BASE_SEPOLIA

USED = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with House.open(tmp_path, database_url, settlement={"finality_poll_s": 0.2}, slots_in_an_epoch=2) as house:
        await house.serve()
        yield house


async def test_a_lost_reply_is_found_by_identity_with_history_and_proof(house: House) -> None:
    payment = house.payment()
    await house.mine_on_command()
    caller = await house.raw_caller(payment)
    await house.pooled()
    caller.socket.close()  # the reply will not arrive

    async with client_session() as session:
        sent = await house.look_up(session, payment)
        assert (sent.status, sent.json["state"], sent.json["logIndex"]) == (200, "submitted", None)
        assert [move["state"] for move in sent.json["history"]] == ["queued", "submitted"]

        await house.mine()

        async def included() -> bool:
            return str((await house.look_up(session, payment)).json["state"]) == "included"

        await eventually(included, "the settlement to be included")
        found = (await house.look_up(session, payment)).json

        assert found["transaction"] == sent.transaction
        assert (found["payer"], found["payTo"], found["amount"]) == (payment.payer, payment.pay_to, str(AMOUNT))
        assert (found["network"], found["asset"], found["nonce"]) == (BASE_SEPOLIA, BASE_SEPOLIA_USDC, payment.auth_nonce)
        assert [move["state"] for move in found["history"]] == ["queued", "submitted", "included"]
        assert [move["transaction"] for move in found["history"]] == [None, sent.transaction, sent.transaction]
        times = [datetime.fromisoformat(move["time"]) for move in found["history"]]
        assert times == sorted(times)
        assert all(time.tzinfo is not None for time in times)

        receipt = await house.call("eth_getTransactionReceipt", found["transaction"])
        logs = {int(log["logIndex"], 16): log for log in receipt["logs"]}
        used, transfer = logs[found["logIndex"]], logs[found["logIndex"] + 1]
        assert used["topics"] == [USED, "0x" + payment.payer[2:].lower().rjust(64, "0"), payment.auth_nonce]
        assert transfer["topics"][0] == TRANSFER
        assert transfer["topics"][2].endswith(payment.pay_to[2:].lower())
        assert int(transfer["data"], 16) == AMOUNT
        assert found["blockNumber"] == int(receipt["blockNumber"], 16)
        [cost] = found["cost"]["transactions"]
        assert cost["transaction"] == found["transaction"]
        assert int(cost["feeWei"]) == int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16) == int(found["cost"]["wei"])

        # the reply that was lost was not the one success: it is still to be had, once
        assert found["answered"] is False
        assert (await house.settle(session, payment)).word == "success"
        assert (await house.settle(session, payment)).word == "duplicate_settlement"
        assert (await house.look_up(session, payment)).json["answered"] is True

        async def final() -> bool:
            await house.mine()
            return str((await house.look_up(session, payment)).json["state"]) == "finalized"

        await eventually(final, "the settlement to be final", poll_s=0.05)
    await house.assert_ledger_is_chain(settled=1)


async def test_only_the_own_tenant_finds_it_under_any_spelling_and_what_does_not_exist_is_404(house: House) -> None:
    payment = house.payment(version=1)
    async with client_session() as session:
        assert (await house.settle(session, payment)).word == "success"
        found = await house.look_up(session, payment)
        assert found.status == 200

        other = await house.look_up(session, payment, tenant="globex")
        assert (other.status, other.json["error"]) == (404, "not_found")
        unknown = await house.look_up(session, house.payment())
        assert (unknown.status, other.json["message"]) == (404, unknown.json["message"])
        assert (await house.settle(session, payment, tenant="globex")).word == "duplicate_settlement"
        assert (await house.look_up(session, payment, tenant="globex")).status == 404

        headers = {"Authorization": f"Bearer {await house.key('test')}"}
        url = f"{house.services[0].base_url}/settlements/lookup"
        spelled = payment.identity | {
            "network": "base-sepolia",
            "asset": BASE_SEPOLIA_USDC.lower(),
            "payer": payment.payer.lower(),
        }
        for query, status in (
            (spelled, 200),
            (payment.identity | {"nonce": "0x12"}, 400),
            (payment.identity | {"payer": "nobody"}, 400),
            (payment.identity | {"hash": "0x"}, 400),
            ({"network": BASE_SEPOLIA}, 400),
        ):
            async with session.get(url, params=query, headers=headers) as response:
                assert response.status == status, query
                if status == 200:
                    assert await response.read() == found.body
        async with session.get(url, params=payment.identity) as response:
            assert response.status == 401
    await house.assert_ledger_is_chain(settled=1)


async def test_a_reply_that_died_with_the_service_is_found_after_its_restart(house: House) -> None:
    payment = house.payment()
    await house.mine_on_command()
    caller = await house.raw_caller(payment)
    await house.pooled()
    await house.services[0].akill()
    assert await caller.read_all() == b""
    await house.mine()
    await house.leases_run_out(house.services[0])
    await house.services[0].astart()
    async with client_session() as session:

        async def included() -> bool:
            return str((await house.look_up(session, payment)).json["state"]) in {"included", "finalized"}

        await eventually(included, "the settlement to be included after the restart")
        assert (await house.settle(session, payment)).word == "success"
    await house.assert_ledger_is_chain(settled=1)

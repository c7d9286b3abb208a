"""A relayer whose key a service holds: it pays, and when the service does not sign nothing is recorded and nobody is misled."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from facilitator.chain.remote_signer import RemoteSigner, Web3Signer
from facilitator.chain.signer import SigningPolicy, load_signer
from facilitator.errors import SignerFault
from facilitator.store import settlements
from facilitator.units import Address, Wei
from tests.fixtures.house import eventually
from tests.fixtures.key_services import KeyServices, serving
from tests.integration.settlement.conftest import NETWORK, USDC, Rig, decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms

POLICY = SigningPolicy(chain_id=84532, assets=frozenset({USDC.address}), max_fee_max_wei=Wei(10**11))


async def test_a_key_service_that_does_not_sign_holds_up_no_other_relayer(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: Callable[..., Awaitable[Any]]
) -> None:
    broken, well = await new_relayer(), await new_relayer()
    services = KeyServices(bytes(broken.key))
    async with serving(services) as url:
        address = Address(broken.address.lower())
        signer = RemoteSigner(Web3Signer(f"{url}/web3signer", address, 84532), address, POLICY)
        rig = await start_engine(signers=[signer, load_signer(well.key.hex(), POLICY)])
        buyer, asked = await new_buyer(), terms()
        services.misdeed = "broken"

        for _ in range(3):
            assert reason(await rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None)) is None

        rows = await rig.fetch("select distinct relayer from relayer_slot")
        assert [row["relayer"] for row in rows] == [well.address.lower()]
        await signer.close()


async def test_a_key_service_that_stumbles_costs_a_retry_and_no_more(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: Callable[..., Awaitable[Any]]
) -> None:
    relayer = await new_relayer()
    services = KeyServices(bytes(relayer.key))
    async with serving(services) as url:
        address = Address(relayer.address.lower())
        signer = RemoteSigner(Web3Signer(f"{url}/web3signer", address, 84532), address, POLICY)
        rig = await start_engine(signers=[signer])
        asked = terms()
        payment = decoded((await new_buyer()).pay(2, asked), asked)

        services.misdeed = "broken"
        with pytest.raises(SignerFault):
            await rig.engine.settle(rig.caller(), payment, None)
        assert await rig.fetch("select 1 from settlement") == []
        assert await rig.fetch("select 1 from relayer_slot") == []

        services.misdeed = None
        assert reason(await rig.engine.settle(rig.caller(), payment, None)) is None
        await signer.close()


async def test_no_row_is_locked_while_a_key_service_takes_its_time_and_what_is_taken_meanwhile_is_left(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: Callable[..., Awaitable[Any]]
) -> None:
    relayer = await new_relayer()
    services = KeyServices(bytes(relayer.key))
    services.hanging = True
    async with serving(services) as url:
        address = Address(relayer.address.lower())
        signer = RemoteSigner(Web3Signer(f"{url}/web3signer", address, 84532), address, POLICY)
        front, asked = await start_engine(relayers=[]), terms()
        payments = [decoded((await new_buyer()).pay(2, asked), asked) for _ in range(2)]
        tasks = [asyncio.create_task(front.engine.settle(front.caller(), payment, None)) for payment in payments]
        await eventually(lambda: both_queued(front), "both to be queued")
        await start_engine(signers=[signer], ready=False)
        await eventually(lambda: at_work(services), "the service to be asked for a signature")

        async with front.db.transaction() as session:
            first, second = await settlements.list_queued(front.db, NETWORK, 10)
            assert await settlements.claim_queued(session, [first]) == {first.settlement_id}, "no row is locked"
            services.hang.set()
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            (paid,) = await front.fetch("select settlement_id from settlement where resolved_at is not null")
            assert paid["settlement_id"] == second.settlement_id, "what nobody else took is signed afresh, alone"
            assert len(await settlements.list_queued(front.db, NETWORK, 10)) == 1
        assert [reason(await task) for task in tasks] == [None, None]
        await signer.close()


async def at_work(services: KeyServices) -> bool:
    """It was asked to sign a transaction: what is asked at the start is a message."""
    return any(body["method"] == "eth_signTransaction" for _, body in services.asked)


async def both_queued(rig: Rig) -> bool:
    """On record, and nobody has signed for them."""
    return len(await settlements.list_queued(rig.db, NETWORK, 10)) == 2

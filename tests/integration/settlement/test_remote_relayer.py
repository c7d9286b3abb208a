"""A relayer whose key a service holds: it pays, and when the service does not sign nothing is recorded and nobody is misled."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from facilitator.chain.remote_signer import RemoteSigner, Web3Signer
from facilitator.chain.signer import SigningPolicy, load_signer
from facilitator.errors import SignerFault
from facilitator.units import Address, Wei
from tests.fixtures.key_services import KeyServices, serving
from tests.integration.settlement.conftest import USDC, decoded
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

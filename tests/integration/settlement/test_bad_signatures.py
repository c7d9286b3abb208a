"""Whoever sends wrong signatures pays nothing for it, so they must cost us next to nothing: no question to the chain, no gas."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.stack import Anvil
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from tests.fixtures.base_sim import BaseSim, Fault
from tests.integration.settlement.conftest import Rig, decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, terms

StartSim = Callable[..., Awaitable[BaseSim]]


def forged(buyer: Buyer, other: Buyer) -> Payment:
    """A payment of the buyer, signed by somebody else: a right signature in every respect but its key."""
    asked = terms()
    payment = buyer.pay(2, asked)
    signature = other.pay(2, asked)["payload"]["signature"]
    return decoded({**payment, "payload": {**payment["payload"], "signature": signature}}, asked)


async def asked_for(rig: Rig, sim: BaseSim, buyers: Sequence[Buyer], count: int) -> int:
    """How often the chain was asked about these buyers while so many wrong signatures were refused, by /verify and /settle in turns."""
    stranger = Buyer.numbered(1)
    names = [buyer.address.lower()[2:] for buyer in buyers]

    async def refused(number: int) -> None:
        payment = forged(buyers[number % len(buyers)], stranger)
        if number % 2:
            refusal = (await rig.engine.verify(rig.caller(), payment)).refusal
        else:
            refusal = (await rig.engine.settle(rig.caller(), payment, None)).result.refusal
        assert refusal is not None
        assert refusal.reason is Reason.SIGNATURE

    with sim.faults(Fault(where=lambda call: any(name in str(call.params).lower() for name in names))) as [planted]:
        for start in range(0, count, 100):
            await asyncio.gather(*(refused(number) for number in range(start, min(start + 100, count))))
        return planted.seen


async def test_wrong_signatures_of_known_payers_ask_the_chain_nothing(
    start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig: Rig = await start_engine(rpc_url=sim.url, plain_payer_ttl_s=600.0)
    buyers = [await new_buyer() for _ in range(5)]
    assert await asked_for(rig, sim, buyers, len(buyers)) == len(buyers), "one look at each, for it might be a wallet"

    assert await asked_for(rig, sim, buyers, 500) == 0
    assert await rig.fetch("select from settlement") == [], "nothing is recorded of them"


async def test_a_payer_is_looked_at_again_after_a_while(
    start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil
) -> None:
    """It may have become a wallet by then, and its signatures may be right."""
    sim = await start_sim(node_url=chain.rpc_url)
    rig: Rig = await start_engine(rpc_url=sim.url, plain_payer_ttl_s=1e-9)
    buyer = await new_buyer()
    for _ in range(2):
        assert await asked_for(rig, sim, [buyer], 1) == 1


async def test_memory_of_plain_payers_is_bounded(start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig: Rig = await start_engine(rpc_url=sim.url, plain_payers_max=2, plain_payer_ttl_s=600.0)
    await asked_for(rig, sim, [await new_buyer() for _ in range(4)], 4)
    assert len(rig.engine._verifier._plain) == 2

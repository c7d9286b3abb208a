"""Whoever sends wrong signatures pays nothing for it, so they must cost us next to nothing: no question to the chain, no gas."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count, islice
from random import Random

import msgspec
import pytest
from eth_abi.abi import encode

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.domain.wallets import Rules
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from facilitator.settlement.restraints import LimitReached
from facilitator.settlement.settings import Settings
from tests.fixtures.base_sim import BaseSim, Fault
from tests.fixtures.wallets import FACTORY, WalletBuyer, deployed
from tests.integration.settlement.conftest import Rig, decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms

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


# ---- of payers that nobody has seen

MARK = "bad5163a7e"
"""How the addresses of made-up payers begin."""
FLOOD = 1_000
LOOKS = {"stranger_looks_per_s": 5.0, "stranger_looks_burst": 20}
OFF = Rules(mode="off")
_strangers = count(1)
_wallets = count(910_000)


def made_up(like: Payment, length: int = 65, seed: int = 1) -> Iterator[Payment]:
    """Payments, each of a payer of its own, with random bytes for a signature; of 0 bytes, some that a factory call wraps."""
    random = Random(seed)  # noqa: S311 (the same in every run)
    template = like.payload["authorization"]
    assert isinstance(template, dict)
    for number in _strangers:
        authorization = {**template, "from": f"0x{MARK}{number:030x}", "nonce": "0x" + random.randbytes(32).hex()}
        signature = random.randbytes(length) if length else wrapped(random.randbytes(65))
        yield msgspec.structs.replace(like, payload={"authorization": authorization, "signature": "0x" + signature.hex()})


def wrapped(inner: bytes) -> bytes:
    return encode(["address", "bytes", "bytes"], [FACTORY, b"make it", inner]) + bytes.fromhex("6492" * 16)


async def flood(rig: Rig, payments: Iterator[Payment], number: int, tenant: str = "acme") -> Counter[Reason | str]:
    """Hand in so many, by `/verify` and `/settle` in turns: what was said, reasons and the names of limits."""
    said: Counter[Reason | str] = Counter()

    async def ask(at: int, payment: Payment) -> None:
        try:
            if at % 2:
                refusal = (await rig.engine.verify(rig.caller(tenant), payment)).refusal
            else:
                refusal = (await rig.engine.settle(rig.caller(tenant), payment, None)).result.refusal
        except LimitReached as reached:
            said[reached.breach.limit] += 1
            return
        assert refusal is not None
        said[refusal.reason] += 1

    for start in range(0, number, 100):
        await asyncio.gather(*(ask(at, payment) for at, payment in enumerate(islice(payments, min(100, number - start)))))
    return said


def about_strangers(method: str = "*") -> Fault:
    """Notices what the chain is asked about made-up payers."""
    return Fault(method=method, where=lambda call: MARK in str(call.params).lower())


async def signed(new_buyer: NewBuyer) -> Payment:
    asked = terms()
    return decoded((await new_buyer()).pay(2, asked), asked)


async def new_wallet(chain: Anvil, token: Token) -> WalletBuyer:
    wallet = await deployed(chain.node, next(_wallets))
    await token.fund([wallet.address], amount_atomic=10**6)
    return wallet


def pays(wallet: Buyer) -> Payment:
    asked = terms()
    return decoded(wallet.pay(2, asked), asked)


@pytest.mark.parametrize(
    ("length", "told"), [(65, Reason.SIGNATURE), (200, Reason.SMART_WALLET_UNSUPPORTED), (0, Reason.SMART_WALLET_UNSUPPORTED)]
)
async def test_where_no_wallet_may_pay_wrong_signatures_of_strangers_ask_the_chain_nothing(
    length: int, told: Reason, start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig: Rig = await start_engine(rpc_url=sim.url, wallets=OFF)
    with sim.faults(about_strangers()) as [asked]:
        assert await flood(rig, made_up(await signed(new_buyer), length), FLOOD) == {told: FLOOD}
    assert asked.seen == 0


async def one_of_another_tenant_pays(rig: Rig, wallet: Buyer) -> None:
    assert reason(await rig.engine.settle(rig.caller("globex"), pays(wallet), None)) is None


@pytest.mark.parametrize("length", [65, 200, 0])
async def test_looks_at_strangers_are_as_few_as_the_limit_says_and_another_tenants_wallet_pays_meanwhile(
    length: int, start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil, token: Token
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig: Rig = await start_engine(rpc_url=sim.url, **LOOKS)
    wallet, payments = await new_wallet(chain, token), made_up(await signed(new_buyer), length)
    started = time.monotonic()
    with sim.faults(about_strangers(), about_strangers("eth_getCode")) as [asked, looks]:
        said, _ = await asyncio.gather(flood(rig, payments, FLOOD), one_of_another_tenant_pays(rig, wallet))
    most = LOOKS["stranger_looks_burst"] + LOOKS["stranger_looks_per_s"] * (time.monotonic() - started)

    limited = said.pop("settlement.stranger_looks_per_s")
    assert set(said) == {Reason.UNDEPLOYED_WALLET if not length else Reason.SIGNATURE}
    assert LOOKS["stranger_looks_burst"] <= said.total() == looks.seen <= most
    assert asked.seen <= 2 * looks.seen, "and nothing else is asked of them"
    assert limited == FLOOD - looks.seen, "what is in doubt is put off, never refused"


async def test_wallets_that_pay_use_up_no_looks_and_hear_of_the_limit_when_others_did(
    start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil, token: Token
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig: Rig = await start_engine(rpc_url=sim.url, stranger_looks_per_s=0.001, stranger_looks_burst=1)
    wallet, payments = await new_wallet(chain, token), made_up(await signed(new_buyer))
    for _ in range(3):
        assert (await rig.engine.verify(rig.caller(), pays(wallet))).refusal is None
    assert await flood(rig, payments, 1) == {Reason.SIGNATURE: 1}
    with pytest.raises(LimitReached) as raised:
        await rig.engine.verify(rig.caller(), pays(wallet))
    breach = raised.value.breach
    assert (breach.limit, breach.facts) == ("settlement.stranger_looks_per_s", {"perSecond": 0.001, "burst": 1, "left": 0})
    assert 0 < (breach.frees_s or 0) <= 1_000
    assert (await rig.engine.verify(rig.caller("globex"), pays(wallet))).refusal is None


def test_an_honest_gateway_does_not_meet_the_limit() -> None:
    """As many wallets at once as their lane to the chain takes in one round, before the first answer is there."""
    settings = Settings()
    assert settings.stranger_looks_burst >= 4 * 50
    assert settings.stranger_looks_total_burst >= 5 * settings.stranger_looks_burst

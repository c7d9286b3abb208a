"""The official x402 SDKs, unmodified, sell and buy through a running `facilitator serve`.

Every server of `servers/` is paid by every client of `clients/` that speaks its protocol version. What counts as paid is
read from the chain: receipt, Transfer and AuthorizationUsed logs, balances. A buyer without money must hear the reason word
of that version from its own SDK.
"""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import pytest
import pytest_asyncio

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer, Json, payment_header
from facilitator.devstack.children import StateDirectory, launched
from facilitator.devstack.install import node_program
from facilitator.devstack.stack import Anvil, Postgres
from facilitator.devstack.token import BASE_SEPOLIA_USDC, Token, install_token
from tests.fixtures.service import ServeProcess, free_port, http_status
from tests.fixtures.waiting import PATIENCE_S
from tests.fixtures.wallets import FACTORY, Misdeed, WalletBuyer, delegated, deployed, install_factory, misbehave, undeployed

HERE: Final = Path(__file__).parent
PRICE_ATOMIC: Final = 10_000  # $0.01, as the servers ask it
PAYEE: Final = dev_account("conformance-payee").address
SLOW_DEADLINE_S: Final = 2.5
ETHER: Final = 10**18
TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
AUTHORIZATION_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"

Version = Literal[1, 2]
NETWORK: Final[Mapping[Version, str]] = {1: "base-sepolia", 2: "eip155:84532"}
NO_MONEY: Final[Mapping[Version, str]] = {1: "insufficient_funds", 2: "invalid_exact_evm_insufficient_balance"}

SERVERS: Final[Mapping[str, tuple[Version, str]]] = {
    "fastapi": (2, "fastapi_app.py"),
    "flask": (2, "flask_app.py"),
    "express": (2, "express.mjs"),
    "hono": (2, "hono.mjs"),
    "x402-express": (1, "legacy_express.mjs"),
}
CLIENTS: Final[Mapping[str, tuple[tuple[Version, ...], str]]] = {
    "httpx": ((1, 2), "httpx_client.py"),
    "requests": ((1, 2), "requests_client.py"),
    "fetch": ((1, 2), "fetch.mjs"),
    "axios": ((1, 2), "axios.mjs"),
    "x402-fetch": ((1,), "legacy_fetch.mjs"),
}
PAIRS: Final = [
    (server, client) for server, (version, _) in SERVERS.items() for client, (versions, _) in CLIENTS.items() if version in versions
]

every_pair = pytest.mark.parametrize(("server", "client"), PAIRS, ids=[f"{server}-paid-by-{client}" for server, client in PAIRS])
every_server = pytest.mark.parametrize("server", SERVERS)
NewBuyer = Callable[..., Awaitable[Buyer]]


@dataclass(frozen=True)
class Answer:
    """What a client program printed: what its SDK made of the seller's answer."""

    status: int
    body: Any
    payment_response: dict[str, Any] | None
    error: str | None


@dataclass(frozen=True)
class Market:
    """The programs in a directory beside the installed SDKs, and where each server listens."""

    programs: Path
    urls: Mapping[str, str]

    def buy(self, server: str, client: str, buyer: Buyer) -> Answer:
        """Run a client program once."""
        own = {"EVM_PRIVATE_KEY": "0x" + bytes(buyer.account.key).hex()}
        if isinstance(buyer, WalletBuyer):
            own |= {"WALLET_ADDRESS": buyer.wallet, "WALLET_PREFIX": "0x" + buyer.prefix.hex()}
            if buyer.deployment is not None:
                own |= {"WALLET_FACTORY": buyer.deployment[0], "WALLET_CALLDATA": "0x" + buyer.deployment[1].hex()}
        done = subprocess.run(
            command(self.programs / "clients" / CLIENTS[client][1]),
            env=environment(RESOURCE_URL=f"{self.urls[server]}/report", **own),
            cwd=self.programs,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"the client {client} broke:\n{done.stdout.decode()}\n{done.stderr.decode()}\n{self.log(server)}"
        return Answer(**json.loads(done.stdout))

    def log(self, server: str) -> str:
        """Everything that a server printed."""
        return f"--- {server}:\n" + (self.programs / f"{server}.log").read_text("utf-8", errors="replace")


def command(program: Path) -> list[str | Path]:
    return [node_program() if program.suffix == ".mjs" else sys.executable, program]


def environment(**own: str) -> dict[str, str]:
    """What a program may know of ours: no proxy, no configuration of this machine."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ} | own


@contextmanager
def running_server(programs: Path, server: str, url: str, **own: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server program, which dies with us; stopped at the end."""
    argv = launched(command(programs / "servers" / SERVERS[server][1]), stop_signal=signal.SIGTERM, account=None)
    with (programs / f"{server}.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            env=environment(PORT=url.rpartition(":")[2], **own),
            cwd=programs,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def open_market(programs: Path, facilitator: ServeProcess, servers: tuple[str, ...]) -> Iterator[Market]:
    """Start the servers at once and wait until each answers."""
    for kind in ("servers", "clients"):
        shutil.copytree(HERE / kind, programs / kind)
    (programs / "node_modules").symlink_to(HERE / "npm" / "node_modules", target_is_directory=True)
    market = Market(programs, {server: f"http://127.0.0.1:{free_port()}" for server in servers})
    own = {"FACILITATOR_URL": facilitator.base_url, "FACILITATOR_KEY": facilitator.api_key, "EVM_PAYEE_ADDRESS": PAYEE}
    with ExitStack() as stack:
        started = {server: stack.enter_context(running_server(programs, server, url, **own)) for server, url in market.urls.items()}
        end = time.monotonic() + PATIENCE_S
        for server, process in started.items():
            while http_status(f"{market.urls[server]}/health") != 200:
                assert process.poll() is None, f"the server {server} ended:\n{market.log(server)}"
                assert time.monotonic() < end, f"the server {server} does not answer:\n{market.log(server)}"
                time.sleep(0.02)
        yield market


@asynccontextmanager
async def serving(
    directory: Path, postgres: Postgres, template: str, chain: Anvil, settlement: Mapping[str, float] | None = None
) -> AsyncIterator[ServeProcess]:
    """A facilitator of our own on a database of its own."""
    relayer = dev_account("conformance-relayer")
    await Token.at(chain.rpc_url).set_gas_money(relayer.address, 10 * ETHER)
    name = f"conformance_{os.getpid()}_{chain.port}"
    async with ServeProcess(
        directory,
        database_url=await postgres.create_database(name, template),
        rpc_url=chain.rpc_url,
        relayer_keys=["0x" + bytes(relayer.key).hex()],
        settings={
            "settlement": {"smart_wallets": "counterfactual", **(settlement or {})},
            "network": {"wallet_factories": [FACTORY]},
        },
    ) as service:
        await asyncio.to_thread(lambda: service.api_key and service.limit("test", gasWeiPerDay=str(ETHER)))  # or no wallet is deployed
        yield service
    await postgres.drop_database(name)
    assert [event for event in service.log_events if event["level"] in {"error", "critical"}] == []


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def facilitator(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, database_template: str, chain: Anvil
) -> AsyncIterator[ServeProcess]:
    async with serving(tmp_path_factory.mktemp("facilitator"), postgres, database_template, chain) as service:
        yield service


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, facilitator: ServeProcess) -> Iterator[Market]:
    with open_market(tmp_path_factory.mktemp("programs"), facilitator, tuple(SERVERS)) as market:
        yield market


@dataclass(frozen=True)
class SlowMarket:
    """Servers on a chain that mines only when told, and a facilitator that waits for it briefly."""

    market: Market
    chain: Anvil
    facilitator: ServeProcess

    def count_pending(self) -> int:
        """Answers `settlement_pending` that the facilitator has given."""
        return self.facilitator.logs.count("settlement_pending")

    def wait_pending(self, count: int) -> None:
        """Return once there were that many."""
        end = time.monotonic() + PATIENCE_S
        while self.count_pending() < count:
            assert time.monotonic() < end, f"no settlement_pending:\n{self.facilitator.logs[-4000:]}"
            time.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def slow_market(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, database_template: str) -> AsyncIterator[SlowMarket]:
    state = StateDirectory.open(tmp_path_factory.mktemp("chain"))
    chain = Anvil(state, automine=False)
    await chain.start()
    await install_token(chain.rpc_url)
    wait = {"deadline_s": SLOW_DEADLINE_S, "verify_deadline_s": SLOW_DEADLINE_S}
    async with serving(tmp_path_factory.mktemp("slow"), postgres, database_template, chain, wait) as service:
        with open_market(tmp_path_factory.mktemp("slow-programs"), service, tuple(SERVERS)) as market:
            yield SlowMarket(market, chain, service)
    await chain.stop()
    state.close()


@every_pair
async def test_a_buyer_pays_and_gets_the_resource(
    server: str, client: str, market: Market, chain: Anvil, token: Token, new_buyer: NewBuyer
) -> None:
    version = SERVERS[server][0]
    buyer = await new_buyer(amount_atomic=3 * PRICE_ATOMIC)

    answer = await asyncio.to_thread(market.buy, server, client, buyer)

    assert (answer.status, answer.body, answer.error) == (200, {"report": "sunny"}, None), market.log(server)
    told = answer.payment_response
    assert told is not None
    assert (told["success"], told["network"], told["payer"]) == (True, NETWORK[version], buyer.address)
    assert "errorReason" not in told
    await assert_paid(chain, token, buyer, told)


@pytest.mark.parametrize(
    ("kind", "client"), [("deployed", "httpx"), ("undeployed", "httpx"), ("delegated", "fetch"), ("undeployed", "fetch")]
)
async def test_a_smart_wallet_pays_and_gets_the_resource(kind: str, client: str, market: Market, chain: Anvil, token: Token) -> None:
    number = 600_000 + 10 * ["httpx", "fetch"].index(client)
    buyer: Buyer
    if kind == "delegated":
        buyer = await delegated(chain.node, dev_account("delegated", number), sponsor=dev_account("sponsor", number))
    elif kind == "deployed":
        buyer = await deployed(chain.node, number)
    else:
        await install_factory(chain.node)
        buyer = undeployed(number + 1)
    await token.fund([buyer.address], amount_atomic=3 * PRICE_ATOMIC)

    answer = await asyncio.to_thread(market.buy, "fastapi" if client == "fetch" else "express", client, buyer)

    assert (answer.status, answer.body, answer.error) == (200, {"report": "sunny"}, None), market.log("fastapi")
    assert answer.payment_response is not None
    await assert_paid(chain, token, buyer, answer.payment_response)


async def test_a_delegated_key_whose_code_refuses_hears_so_and_no_relayer_pays(market: Market, chain: Anvil, token: Token) -> None:
    number = 610_000
    buyer = await delegated(chain.node, dev_account("delegated", number), sponsor=dev_account("sponsor", number))
    await misbehave(chain.node, buyer.address, Misdeed.SAY_NO)
    await token.fund([buyer.address], amount_atomic=3 * PRICE_ATOMIC)
    relayer = dev_account("conformance-relayer").address
    sent = await chain.node.call("eth_getTransactionCount", relayer, "latest")

    answer = await asyncio.to_thread(market.buy, "fastapi", "httpx", buyer)

    assert (answer.status, answer.error, answer.payment_response) == (402, "invalid_exact_evm_signature", None)
    assert await chain.node.call("eth_getTransactionCount", relayer, "latest") == sent


@every_pair
async def test_a_buyer_without_money_hears_the_reason(server: str, client: str, market: Market, token: Token, new_buyer: NewBuyer) -> None:
    buyer = await new_buyer(amount_atomic=PRICE_ATOMIC - 1)

    answer = await asyncio.to_thread(market.buy, server, client, buyer)

    assert (answer.status, answer.error) == (402, NO_MONEY[SERVERS[server][0]]), market.log(server)
    assert answer.payment_response is None
    assert await token.balance_of(buyer.address) == PRICE_ATOMIC - 1


@every_server
async def test_one_payment_unlocks_one_resource(server: str, market: Market, chain: Anvil, token: Token, new_buyer: NewBuyer) -> None:
    version = SERVERS[server][0]
    buyer = await new_buyer(amount_atomic=3 * PRICE_ATOMIC)
    url = f"{market.urls[server]}/report"
    async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as http:
        name, value = payment_header(buyer.pay(version, offer(await http.get(url))))
        answers = await asyncio.gather(*(http.get(url, headers={name: value}) for _ in range(5)))
        late = await http.get(url, headers={name: value})

    assert sorted(answer.status_code for answer in answers) == [200, 402, 402, 402, 402], market.log(server)
    assert late.status_code == 402
    (paid,) = (answer for answer in answers if answer.status_code == 200)
    await assert_paid(chain, token, buyer, payment_response(paid))
    assert {reason(answer) for answer in (*answers, late) if answer is not paid} == {"duplicate_settlement"}


@every_server
async def test_a_settlement_that_takes_longer_than_the_facilitator_waits_is_asked_for_again_and_found_paid(
    server: str, slow_market: SlowMarket, new_buyer: NewBuyer
) -> None:
    """The v2 servers repeat `/settle` once on `settlement_pending`; the legacy one does not, and its buyer hears the word."""
    version = SERVERS[server][0]
    token = Token.at(slow_market.chain.rpc_url)
    buyer = await new_buyer(amount_atomic=3 * PRICE_ATOMIC, token=token)
    pending = slow_market.count_pending()

    buying = asyncio.create_task(asyncio.to_thread(slow_market.market.buy, server, "fetch", buyer))
    await asyncio.to_thread(slow_market.wait_pending, pending + 1)
    await slow_market.chain.node.call("evm_mine")
    answer = await buying

    if version == 1:
        assert (answer.status, answer.error) == (402, "settlement_pending"), slow_market.market.log(server)
    else:
        assert (answer.status, answer.body, answer.error) == (200, {"report": "sunny"}, None), slow_market.market.log(server)
        assert answer.payment_response is not None
        await assert_paid(slow_market.chain, token, buyer, answer.payment_response)
    assert await token.balance_of(buyer.address) == 2 * PRICE_ATOMIC


async def test_no_server_gives_anything_while_the_facilitator_is_away_and_all_sell_again_when_it_is_back(
    market: Market, facilitator: ServeProcess, chain: Anvil, token: Token, new_buyer: NewBuyer
) -> None:
    buyers = {server: await new_buyer(amount_atomic=3 * PRICE_ATOMIC) for server in SERVERS}
    await facilitator.aterminate()  # in good order, so that its relayer is free for the next start at once

    for server, answer in (await buy_everywhere(market, buyers)).items():
        assert answer.status in {402, 500, 502}, (server, answer)
        assert answer.payment_response is None or answer.payment_response["success"] is False
        assert await token.balance_of(buyers[server].address) == 3 * PRICE_ATOMIC

    await facilitator.astart()
    for server, answer in (await buy_everywhere(market, buyers)).items():
        assert (answer.status, answer.body) == (200, {"report": "sunny"}), market.log(server)
        assert answer.payment_response is not None
        await assert_paid(chain, token, buyers[server], answer.payment_response)


async def buy_everywhere(market: Market, buyers: Mapping[str, Buyer]) -> dict[str, Answer]:
    """Buy at every server at once."""
    answers = await asyncio.gather(*(asyncio.to_thread(market.buy, server, "fetch", buyer) for server, buyer in buyers.items()))
    return dict(zip(buyers, answers, strict=True))


async def assert_paid(chain: Anvil, token: Token, buyer: Buyer, told: Mapping[str, Any]) -> None:
    """The chain confirms what a payment response says: one transfer of the price to the payee, by the buyer's authorization."""
    receipt = await chain.node.call("eth_getTransactionReceipt", told["transaction"])
    assert isinstance(receipt, dict), f"the chain does not know {told['transaction']}"
    assert receipt["status"] == "0x1"
    logs = [log for log in receipt["logs"] if log["address"] == BASE_SEPOLIA_USDC.lower()]
    payer, payee = topic(buyer.address), topic(PAYEE)
    used, moved = (log for log in logs if log["topics"][1] == payer)
    assert (used["topics"][0], moved["topics"][0]) == (AUTHORIZATION_USED, TRANSFER)
    assert told["extra"]["logIndex"] == int(used["logIndex"], 16)
    transfers = [log for log in logs if log["topics"] == [TRANSFER, payer, payee]]
    assert [int(log["data"], 16) for log in transfers] == [PRICE_ATOMIC]
    assert await token.balance_of(buyer.address) == 2 * PRICE_ATOMIC
    block = int(receipt["blockNumber"], 16)
    in_block = {"fromBlock": hex(block), "toBlock": hex(block), "address": BASE_SEPOLIA_USDC, "topics": [TRANSFER, None, payee]}
    received = await chain.node.call("eth_getLogs", in_block)
    assert isinstance(received, list)
    gained = await balance_at(chain, PAYEE, block) - await balance_at(chain, PAYEE, block - 1)
    assert gained == sum(int(log["data"], 16) for log in received)


def topic(address: str) -> str:
    return "0x" + address[2:].lower().rjust(64, "0")


async def balance_at(chain: Anvil, account: str, block: int) -> int:
    call = {"to": BASE_SEPOLIA_USDC, "data": "0x70a08231" + topic(account)[2:]}
    return int(str(await chain.node.call("eth_call", call, hex(block))), 16)


def offer(unpaid: httpx.Response) -> Json:
    """The terms of a 402: in a header in v2, in the body in v1."""
    assert unpaid.status_code == 402
    header = unpaid.headers.get("PAYMENT-REQUIRED")
    tree = json.loads(base64.b64decode(header)) if header else unpaid.json()
    terms: Json = tree["accepts"][0]
    return terms


def payment_response(answer: httpx.Response) -> Json:
    header = answer.headers.get("PAYMENT-RESPONSE") or answer.headers.get("X-PAYMENT-RESPONSE")
    assert header is not None, answer.text
    told: Json = json.loads(base64.b64decode(header))
    return told


def reason(refused: httpx.Response) -> str:
    """The word for a refusal: of `/settle` in the payment response, of `/verify` beside the offer, of both in v1's body."""
    if "PAYMENT-RESPONSE" in refused.headers:
        return str(payment_response(refused)["errorReason"])
    header = refused.headers.get("PAYMENT-REQUIRED")
    return str((json.loads(base64.b64decode(header)) if header else refused.json())["error"])

"""`facilitator demo` and `facilitator dev`: the whole stack, for people.

The demo pays, and shows what each of the eight steps of a payment left behind, read from where it lies: the seller's
answers, the facilitator's own record, the chain's receipt. Then it holds the ledger against the chain. It believes nothing
that it can read, and its exit status is 0 only if every payment was made exactly once.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from time import monotonic
from typing import Any, Final

import aiohttp
import uvloop
from yarl import URL

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import SystemClock
from facilitator.devstack.buyer import Buyer, Json
from facilitator.devstack.ensemble import NETWORK, SELLER, Ensemble
from facilitator.devstack.gateway import ROUTES
from facilitator.devstack.pay import Bought, buy, demanded, hand_over, new_session, sign_in
from facilitator.devstack.sellers.models.local import LOCAL
from facilitator.devstack.sellers.models.upstream import Upstream
from facilitator.devstack.token import BASE_SEPOLIA_USDC
from facilitator.devstack.tour import Purchase, purchases
from facilitator.errors import ConfigFault
from facilitator.finance.reconciliation import Report, reconcile
from facilitator.gateway.client import Exchange
from facilitator.protocol.messages import Version
from facilitator.references import Secret
from facilitator.store.db import Db
from facilitator.units import Address, Network

_EMPTY: Final = Buyer.numbered(9_999)
"""A buyer that nobody ever gives anything."""
_NO_FUNDS: Final[dict[Version, str]] = {1: "insufficient_funds", 2: "invalid_exact_evm_insufficient_balance"}
_PAID: Final = frozenset({"preconfirmed", "included", "safe", "finalized"})
_WIDTH: Final = 100
_DEAREST_ATOMIC: Final = 50_000
"""No purchase of the tour costs more."""
_DEV_BUYERS: Final = 3
_DEV_FUNDS_ATOMIC: Final = 1_000_000_000


def run_demo(*, payments: int, as_json: bool) -> int:
    """Show `payments` payments on a stack of their own and return the exit status. Raises Fault."""
    if payments < 1:
        raise ConfigFault("bad_usage", f"--payments: expected at least 1, got {payments}")
    return _run(_Demo(payments, as_json=as_json).run())


def run_dev(*, port: int, block_time_s: float | None, state: Path | None, upstream: str | None, upstream_key: str | None) -> int:
    """Keep the stack running until it is told to stop, and return the exit status. Raises Fault.

    `upstream` is the URL of an OpenAI-compatible API that serves the sample sellers' models, `upstream_key` a reference to its key.
    """
    if not 0 <= port <= 65535:
        raise ConfigFault("bad_usage", f"--port: expected 0 to 65535, got {port}")
    if block_time_s is not None and block_time_s <= 0:
        raise ConfigFault("bad_usage", f"--block-time: expected seconds above 0, got {block_time_s:g}")
    try:
        served_by = None if upstream is None else Upstream(upstream, Secret.parse(upstream_key).read() if upstream_key else "")
    except ValueError as error:
        raise ConfigFault("bad_usage", f"--upstream or --upstream-key: {error}") from None
    return _run(_dev(port, block_time_s, state, served_by))


def _run(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end. The first SIGINT, SIGTERM or SIGHUP cancels it, which stops the stack; further ones change nothing."""
    told: list[int] = []

    async def stoppable() -> int:
        task = asyncio.current_task()
        assert task is not None

        def tell(number: int) -> None:
            told.append(number)
            if len(told) == 1:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, tell, number)
        return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(stoppable())
        except asyncio.CancelledError:
            return 128 + (told[0] if told else signal.SIGTERM)


# ---- demo


@dataclass(slots=True)
class _Demo:
    """One run of the demo: facts as they come, and what was not as it should be."""

    payments: int
    as_json: bool
    problems: list[str] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)

    async def run(self) -> int:
        """Start, pay, refuse, reconcile, stop."""
        began = monotonic()
        funds_atomic = max(10_000_000, self.payments * _DEAREST_ATOMIC)
        async with Ensemble(funds_atomic=funds_atomic, observe=self.exchanges.append) as everything, new_session() as session:
            self._show(_started(everything, monotonic() - began))
            paid_atomic, last = 0, None
            for number, purchase in enumerate(islice(cycle(purchases(everything)), self.payments), start=1):
                amount_atomic, bought = await self._pay(everything, session, number, purchase)
                paid_atomic += amount_atomic
                last = purchase, bought
            assert last is not None
            await self._replay(everything, session, *last)
            for version in _NO_FUNDS:
                await self._pay_with_nothing(everything, session, version)
            report = await _reconciled(everything)
            seller_atomic = await everything.token.balance_of(SELLER)
        self._check(report.payments == self.payments, f"expected {self.payments} payments in the ledger, got {report.payments}")
        self._check(report.transfers == self.payments, f"expected {self.payments} transfers on the chain, got {report.transfers}")
        self._check(seller_atomic == paid_atomic, f"expected the seller to hold {paid_atomic}, got {seller_atomic}")
        self.problems += map(str, report.differences)
        self._show(_ended(report, seller_atomic, self.problems, monotonic() - began))
        return 1 if self.problems else 0

    async def _pay(self, everything: Ensemble, session: aiohttp.ClientSession, number: int, purchase: Purchase) -> tuple[int, Bought]:
        """One payment, and all traces of it; what it cost."""
        url, version, order = purchase.url, purchase.version, purchase.order
        self.exchanges.clear()
        began = monotonic()
        terms = await demanded(session, url, version, order)
        amount = str(terms["amount" if version == 2 else "maxAmountRequired"])
        bought = await hand_over(session, url, everything.buyers[0].pay(version, terms), order)
        took_s = monotonic() - began
        record = await _lookup(everything, session, bought)
        receipt = await everything.stack.anvil.node.call("eth_getTransactionReceipt", bought.tx_hash) if bought.tx_hash else None
        verified = next((exchange for exchange in self.exchanges if exchange.route == "/verify"), None)
        fact: Json = {"event": "payment", "number": number, "of": self.payments, "x402Version": version, "url": url}
        fact |= {"seller": purchase.seller, "method": "GET" if order is None else "POST", "amount": amount, "tookMs": _ms(took_s)}
        fact["demanded"] = {"status": 402, "payTo": terms["payTo"], "asset": terms["asset"], "network": terms["network"]}
        fact["signed"] = bought.payment["payload"]["authorization"]
        fact["verified"] = None if verified is None else {**verified.answer, "tookMs": _ms(verified.took_s)}
        fact |= _traces(record, receipt)
        fact["answered"] = {"status": bought.status, "receipt": bought.receipt, "body": bought.body}
        fact["madeOnce"] = (
            bought.status == 200
            and bought.receipt is not None
            and bought.receipt["success"] is True
            and record is not None
            and (record["state"] in _PAID and record["transaction"] == bought.tx_hash and record["amount"] == amount)
            and (fact["mined"] or {}).get("usesNonce") is True
        )
        self._check(fact["madeOnce"], f"payment {number} was not made: {json.dumps(fact['answered'])[:300]}")
        if purchase.makes_job and fact["madeOnce"]:
            fact["job"] = await sign_in(session, everything.buyers[0], str(URL(url).with_path(f"/api/jobs/{bought.body['jobId']}")))
            self._check(fact["job"].get("status") == "complete", f"the job of payment {number} is not complete: {fact['job']}")
        self._show(fact)
        return int(amount), bought

    async def _replay(self, everything: Ensemble, session: aiohttp.ClientSession, purchase: Purchase, bought: Bought) -> None:
        """The same payment again, to the seller, and as a careless seller would pass it on: straight to /settle."""
        settled = [exchange for exchange in self.exchanges if exchange.route == "/settle"]
        if not settled:
            self.problems.append("the last payment never reached /settle, so there was nothing to replay")
            return
        again = await hand_over(session, purchase.url, bought.payment, purchase.order)
        async with session.post(f"{everything.url}/settle", json=settled[-1].question, headers=_authorized(everything)) as response:
            answer: Json = await response.json()
        fact = _refusal("the same payment again", again, "duplicate_settlement")
        fact["settle"] = {"success": answer.get("success"), "reason": answer.get("errorReason"), "transaction": answer.get("transaction")}
        expected = {"success": False, "reason": "duplicate_settlement", "transaction": bought.tx_hash}
        fact["asExpected"] = fact["asExpected"] and fact["settle"] == expected
        self._check(fact["asExpected"], f"a replay was not refused as a duplicate: {json.dumps(fact)[:600]}")
        self._show(fact)

    async def _pay_with_nothing(self, everything: Ensemble, session: aiohttp.ClientSession, version: Version) -> None:
        """A well-signed payment of somebody who has no money."""
        refused = await buy(session, _EMPTY, everything.gateway_url + ROUTES[0].path, version)
        fact = _refusal(f"a payment from an empty wallet, x402 v{version}", refused, _NO_FUNDS[version])
        fact["recorded"] = await _lookup(everything, session, refused) is not None
        fact["asExpected"] = fact["asExpected"] and not fact["recorded"]
        self._check(fact["asExpected"], f"an empty buyer was not refused as such: {json.dumps(fact)[:600]}")
        self._show(fact)

    def _check(self, holds: object, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    def _show(self, fact: Json) -> None:
        _say(json.dumps(fact) if self.as_json else "\n".join(_lines(fact)))


def _started(everything: Ensemble, took_s: float) -> Json:
    return {
        "event": "started",
        "facilitator": everything.url,
        "pid": everything.service_pid,
        "paidApi": everything.gateway_url,
        "sellers": everything.market.urls,
        "rpc": everything.rpc_url,
        "network": NETWORK,
        "asset": BASE_SEPOLIA_USDC,
        "buyer": everything.buyers[0].address,
        "seller": SELLER,
        "tookMs": _ms(took_s),
    }


def _ended(report: Report, seller_atomic: int, problems: list[str], took_s: float) -> Json:
    amount = sum(report.amounts_atomic.values())
    counts = f"{report.payments} payments, {report.transfers} transfers, {_usdc(amount)} USDC"
    verdict = f"ledger {'=' if report.balanced else '≠'} chain: {counts}"
    if problems and report.balanced:
        verdict += ", but not all is as it should be"
    return {
        "event": "reconciled",
        "blocks": [report.from_block, report.to_block],
        "payments": report.payments,
        "transfers": report.transfers,
        "amount": str(amount),
        "sellerHolds": str(seller_atomic),
        "differences": len(report.differences),
        "problems": problems,
        "tookMs": _ms(took_s),
        "verdict": verdict,
    }


def _refusal(what: str, bought: Bought, reason: str) -> Json:
    said = bought.body.get("error")
    return {
        "event": "refusal",
        "what": what,
        "status": bought.status,
        "reason": said,
        "message": bought.body.get("message"),
        "asExpected": bought.status == 402 and said == reason,
    }


def _traces(record: Json | None, receipt: object) -> Json:
    """What a payment left in the facilitator's record and on the chain; None for a step that it did not reach."""
    traces: Json = {"recorded": None, "sent": None, "mined": None, "ledger": None}
    if record is None:
        return traces
    times = {line["state"]: line["time"] for line in record["history"]}
    traces["recorded"] = {"settlementId": record["id"], "nonce": record["nonce"], "time": record["queuedAt"]}
    if record["transaction"] is not None:
        traces["sent"] = {"transaction": record["transaction"], "recordedAt": times.get("submitted")}
    if isinstance(receipt, dict):
        traces["mined"] = {
            "block": int(receipt["blockNumber"], 16),
            "status": int(receipt["status"], 16),
            "gasUsed": int(receipt["gasUsed"], 16),
            "logIndex": record["logIndex"],
            "usesNonce": any(record["nonce"] in log["topics"] for log in receipt["logs"]),
        }
    cost = record["cost"] or {}
    traces["ledger"] = {
        "state": record["state"],
        "costWei": cost.get("wei"),
        "tookMs": _between_ms(record["queuedAt"], record["resolvedAt"]),
    }
    return traces


async def _lookup(everything: Ensemble, session: aiohttp.ClientSession, bought: Bought) -> Json | None:
    """The facilitator's record of a payment, by the authorization alone; None when it has none."""
    query = {"network": NETWORK, "asset": BASE_SEPOLIA_USDC, "nonce": bought.auth_nonce}
    query["payer"] = bought.payment["payload"]["authorization"]["from"]
    async with session.get(f"{everything.url}/settlements/lookup", params=query, headers=_authorized(everything)) as response:
        if response.status == 404:
            return None
        response.raise_for_status()
        record: Json = await response.json()
        return record


async def _reconciled(everything: Ensemble) -> Report:
    """The whole ledger against the whole chain."""
    evm = EvmClient(Network(NETWORK), RpcClient([everything.rpc_url], SystemClock()))
    try:
        db = await Db.connect(everything.database_url, connections_max=2)
        try:
            head = await evm.head(evm.deadline_in(10.0))
            return await reconcile(db, evm, Network(NETWORK), [Address(BASE_SEPOLIA_USDC.lower())], 0, head.number)
        finally:
            await db.close()
    finally:
        await evm.close()


def _authorized(everything: Ensemble) -> dict[str, str]:
    return {"Authorization": f"Bearer {everything.api_key}"}


# ---- for people


def _lines(fact: Json) -> Iterator[str]:
    """A fact as lines of at most 100 columns, problems apart."""
    yield from _RENDER[fact["event"]](fact)


def _started_lines(fact: Json) -> Iterator[str]:
    yield _strong("x402 payments on a local chain with Circle's USDC code")
    yield ""
    yield _row("chain", f"{fact['rpc']}, {fact['network']}")
    yield _row("USDC", f"{fact['asset']}, as on Base Sepolia")
    yield _row("facilitator", f"{fact['facilitator']}, process {fact['pid']}, every nonce in its PostgreSQL")
    yield _row("paid API", f"{fact['paidApi']}: " + ", ".join(f"{p.path} {_usdc(p.price_atomic)} USDC" for p in ROUTES))
    yield _row("2s.io style", fact["sellers"]["twos"] + "/api/ai: chat, image, describe-image")
    yield _row("StableStudio", fact["sellers"]["studio"] + "/api/generate: gpt-image-1, gpt-image-1.5")
    yield _row("x-router", fact["sellers"]["xrouter"] + "/v1/images: generate")
    yield _row("seller", str(fact["seller"]))
    yield _row("buyer", f"{fact['buyer']}, without coins for gas", fact["tookMs"])


def _refusal_lines(fact: Json) -> Iterator[str]:
    yield ""
    yield _strong(f"refused: {fact['what']}")
    yield _row("seller says", f"{fact['status']} {fact['reason']}")
    if "settle" in fact:
        yield _row("/settle says", f"{fact['settle']['reason']}; it was paid by")
        yield _row("", fact["settle"]["transaction"] or "nobody")
    else:
        yield _row("on record", "yes" if fact["recorded"] else "nothing: a refusal writes no settlement")


def _ended_lines(fact: Json) -> Iterator[str]:
    yield ""
    yield _row("reconciled", f"blocks {fact['blocks'][0]} to {fact['blocks'][1]}: {fact['differences']} differences")
    yield _row("seller", f"holds {_usdc(int(fact['sellerHolds']))} USDC")
    yield _row("all of it", f"took {fact['tookMs'] / 1000:.1f} s, and nothing of it is left")
    yield from (f"  wrong         {problem}" for problem in fact["problems"])
    yield _strong(fact["verdict"])


def _payment_lines(fact: Json) -> Iterator[str]:
    """The eight steps of one payment."""
    yield ""
    title = f"payment {fact['number']} of {fact['of']}: {fact['seller']}, {_usdc(int(fact['amount']))} USDC, x402 v{fact['x402Version']}"
    yield _strong(title.ljust(_WIDTH - 11)) + f"{fact['tookMs']:8.1f} ms"
    yield _row("0 asked", f"{fact['method']} {fact['url']}")
    signed, verified, answered = fact["signed"], fact["verified"], fact["answered"]
    yield _row("1 demanded", f"402, {fact['amount']} atomic units to {fact['demanded']['payTo']}")
    yield _row("2 signed", f"nonce {signed['nonce']}")
    if verified is not None:
        said = "valid" if verified.get("isValid") else f"invalid: {verified.get('invalidReason')}"
        yield _row("3 verified", f"{said}, payer {verified.get('payer')}", verified["tookMs"])
    if fact["recorded"] is not None:
        yield _row("4 recorded", f"settlement {fact['recorded']['settlementId']} owns this nonce")
    if fact["sent"] is not None:
        yield _row("5 sent", f"{fact['sent']['transaction']}")
    if (mined := fact["mined"]) is not None:
        yield _row("6 mined", f"block {mined['block']}, log {mined['logIndex']}, status {mined['status']}, {mined['gasUsed']:,} gas")
    if (ledger := fact["ledger"]) is not None:
        cost = f"{int(ledger['costWei']) // 10**9:,} gwei for gas, paid by the relayer" if ledger["costWei"] else "no cost yet"
        yield _row("7 ledger", f"{ledger['state']}; {cost}", ledger["tookMs"])
    success = "paid" if (answered["receipt"] or {}).get("success") else "not paid"
    yield _row("8 answered", f"{answered['status']}, {success}: {json.dumps(answered['body'])}")
    if "job" in fact:
        yield _row("signed in", f"{fact['job']['status']}: {fact['job'].get('result', {}).get('imageUrl')}")


_RENDER: Final = {"started": _started_lines, "payment": _payment_lines, "refusal": _refusal_lines, "reconciled": _ended_lines}


def _row(label: str, text: str, took_ms: float | None = None) -> str:
    """`  label        text      1.2 ms`, cut to the width of the page."""
    room = _WIDTH - 16 - (0 if took_ms is None else 11)
    text = text if len(text) <= room else text[: room - 1] + "…"
    return f"  {label:<14}{text}" if took_ms is None else f"  {label:<14}{text:<{room}}{took_ms:8.1f} ms"


def _strong(text: str) -> str:
    """Bold on a terminal that wants it."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def _usdc(amount_atomic: int) -> str:
    """Atomic units as USDC, without needless zeros."""
    whole, part = divmod(amount_atomic, 1_000_000)
    return f"{whole}.{part:06d}".rstrip("0").rstrip(".")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _between_ms(earlier: str, later: str | None) -> float | None:
    if later is None:
        return None
    return _ms((datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds())


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# ---- dev


async def _dev(port: int, block_time_s: float | None, state: Path | None, upstream: Upstream | None) -> int:
    everything = Ensemble(
        state,
        port=port,
        block_time_s=block_time_s,
        buyers=_DEV_BUYERS,
        funds_atomic=_DEV_FUNDS_ATOMIC,
        models=LOCAL if upstream is None else upstream.models,
    )
    kept = f"; its state is kept in {everything.stack.path}" if state is not None else ""
    try:
        async with everything:
            link = await everything.console_link("dev", "admin")
            _say("\n".join(_invitation(everything, link, kept=state is not None)))
            sys.stderr.write(f"facilitator: {await everything.ended()}\n")
    except asyncio.CancelledError:
        _say(f"stopped{kept}")
        return 0
    finally:
        if upstream is not None:
            await upstream.close()
    return 1


def _invitation(everything: Ensemble, console_link: str, *, kept: bool) -> Iterator[str]:
    """What is where, and how to use it."""
    quote = f"{everything.gateway_url}{ROUTES[0].path}"
    yield _strong("the whole stack is running; Ctrl-C stops it")
    yield ""
    yield f"  facilitator   {everything.url}"
    yield f"  API key       {everything.api_key}"
    yield f"  console       {console_link}"
    yield f"  RPC           {everything.rpc_url}"
    yield f"  USDC          {BASE_SEPOLIA_USDC} on {NETWORK}"
    yield "  paid API      " + "  ".join(f"{everything.gateway_url}{p.path} ({_usdc(p.price_atomic)} USDC)" for p in ROUTES)
    urls = everything.market.urls
    yield f"  2s.io style   {urls['twos']}/api/ai/models"
    yield f"  StableStudio  {urls['studio']}/openapi.json"
    yield f"  x-router      {urls['xrouter']}/v1/images/models"
    for index, buyer in enumerate(everything.buyers):
        yield f"  buyer {index}       {buyer.address} with {_usdc(_DEV_FUNDS_ATOMIC)} USDC"
        yield f"                0x{bytes(buyer.account.key).hex()}"
    yield f"  database      {everything.database_url}"
    yield f"  state         {everything.stack.path}" + ("" if kept else ", removed at the end")
    yield f"  log           {everything.service_log}"
    yield ""
    yield "  what is served, what a paid API demands, and a payment:"
    yield f"    curl -s {everything.url}/supported"
    yield f"    curl -i {quote}"
    yield f"    {sys.executable} -m facilitator.devstack.pay {quote}"
    order = json.dumps({"imageUrl": everything.market.sample_url})
    yield f"    {sys.executable} -m facilitator.devstack.pay {urls['twos']}/api/ai/describe-image --order '{order}'"
    yield "  what the facilitator has on record:"
    yield f"    curl -s -H 'Authorization: Bearer {everything.api_key}' {everything.url}/settlements"

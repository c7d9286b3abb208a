"""Buys from a paid API as an x402 client does: ask, read the demand, sign, ask again with the payment.

`python -m facilitator.devstack.pay URL` does it from a terminal as a buyer of the local stack, whose key everybody knows.
"""

import argparse
import asyncio
import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from eth_account.messages import encode_defunct

from facilitator.devstack.buyer import Buyer, Json, payment_header
from facilitator.devstack.children import StackFault
from facilitator.devstack.sellers.sign_in import EXTENSION, HEADER, message
from facilitator.errors import Fault
from facilitator.gateway.replies import encode
from facilitator.protocol.messages import Version

_TIMEOUT: aiohttp.ClientTimeout = aiohttp.ClientTimeout(total=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """What a paid API answered to a payment."""

    payment: Json
    status: int
    body: Json
    receipt: Json | None
    """The facilitator's settle answer out of `PAYMENT-RESPONSE` or `X-PAYMENT-RESPONSE`."""

    @property
    def auth_nonce(self) -> str:
        """The payer's nonce."""
        return str(self.payment["payload"]["authorization"]["nonce"])

    @property
    def tx_hash(self) -> str:
        """The transaction that the seller names, empty when it names none."""
        return str((self.receipt or {}).get("transaction", ""))


def new_session() -> aiohttp.ClientSession:
    """An HTTP session with a deadline."""
    return aiohttp.ClientSession(timeout=_TIMEOUT)


async def demanded(session: aiohttp.ClientSession, url: str, version: Version, order: Json | None = None) -> Json:
    """The terms that a paid API asks in that version: of v2 the header, of v1 the body. Raises StackFault when it asks nothing.

    `order` is the body of a POST; without one it is a GET.
    """
    async with session.request("GET" if order is None else "POST", url, json=order) as response:
        if response.status != 402:
            raise StackFault("no_demand", f"{url} answered {response.status}, not 402: {(await response.text())[:200]}")
        demand = decoded(response.headers["PAYMENT-REQUIRED"]) if version == 2 else await response.json()
        terms: Json = demand["accepts"][0]
        return terms


async def hand_over(session: aiohttp.ClientSession, url: str, payment: Json, order: Json | None = None) -> Bought:
    """Ask again, with a payment."""
    name, value = payment_header(payment)
    async with session.request("GET" if order is None else "POST", url, json=order, headers={name: value}) as response:
        return Bought(payment=payment, status=response.status, body=await response.json(), receipt=_receipt(response.headers))


async def buy(session: aiohttp.ClientSession, buyer: Buyer, url: str, version: Version, order: Json | None = None) -> Bought:
    """The whole way, once."""
    return await hand_over(session, url, buyer.pay(version, await demanded(session, url, version, order)), order)


async def sign_in(session: aiohttp.ClientSession, buyer: Buyer, url: str) -> Json:
    """What a route answers to a wallet that signs its `sign-in-with-x` challenge. Raises StackFault when it does not ask for that."""
    async with session.get(url) as response:
        if response.status != 402:
            raise StackFault("no_challenge", f"{url} answered {response.status}, not 402: it asks nobody to sign in")
        extension = decoded(response.headers["PAYMENT-REQUIRED"])["extensions"][EXTENSION]
    chain = extension["supportedChains"][0]
    signed = buyer.account.sign_message(encode_defunct(text=message(extension["info"], buyer.address, chain["chainId"])))
    proof = extension["info"] | {"address": buyer.address, "chainId": chain["chainId"], "type": chain["type"]}
    header = encode(proof | {"signature": "0x" + bytes(signed.signature).hex()})
    async with session.get(url, headers={HEADER: header}) as response:
        told: Json = await response.json()
        return told


def decoded(header: str) -> Json:
    """A JSON object out of a header."""
    found: Json = json.loads(base64.b64decode(header))
    return found


def _receipt(headers: Mapping[str, str]) -> Json | None:
    for name in ("PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"):
        if name in headers:
            return decoded(headers[name])
    return None


def main() -> int:
    """Buy once and print what came. Exit status 0 when it was paid for and delivered."""
    parser = argparse.ArgumentParser(prog="python -m facilitator.devstack.pay", description="Buy from a paid API on the local stack.")
    parser.add_argument("url")
    parser.add_argument("--version", type=int, choices=(1, 2), default=2, help="of x402")
    parser.add_argument("--order", metavar="JSON", help="body of a POST; without one it is a GET")
    parser.add_argument("--buyer", type=int, default=0, metavar="N", help="which buyer of the local stack")
    options = parser.parse_args()
    try:
        order = None if options.order is None else json.loads(options.order)
    except ValueError as error:
        parser.error(f"--order: expected JSON: {error}")

    async def run() -> Bought:
        async with new_session() as session:
            return await buy(session, Buyer.numbered(options.buyer), options.url, options.version, order)

    try:
        bought = asyncio.run(run())
    except (Fault, aiohttp.ClientError) as error:
        sys.stderr.write(f"pay: {error}\n")
        return 3
    sys.stdout.write(json.dumps({"status": bought.status, "body": bought.body, "receipt": bought.receipt}, indent=2) + "\n")
    return 0 if bought.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())

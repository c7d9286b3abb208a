"""Buys RESOURCE_URL with EVM_PRIVATE_KEY through the httpx client of PyPI `x402`; prints one JSON line.

By POST, with RESOURCE_ORDER, if that is set.
"""

import asyncio
import json
import os
import sys

from signers import signer
from x402 import x402Client
from x402.http import x402HTTPClient
from x402.http.clients import x402HttpxClient
from x402.mechanisms.evm.exact.register import register_exact_evm_client


async def buy() -> dict[str, object]:
    """Pay, and tell what came back."""
    client = x402Client()
    register_exact_evm_client(client, signer())
    async with x402HttpxClient(client, timeout=120) as http:
        order = os.environ.get("RESOURCE_ORDER")
        how = {"content": order, "headers": {"Content-Type": "application/json"}} if order else {}
        response = await http.request("POST" if order else "GET", os.environ["RESOURCE_URL"], **how)
        await response.aread()
    reader = x402HTTPClient(client)
    body = response.json()
    told: dict[str, object] = {"status": response.status_code, "body": body, "payment_response": None, "error": None}
    if "payment-response" in response.headers or "x-payment-response" in response.headers:
        settled = reader.get_payment_settle_response(response.headers.get)
        told["payment_response"] = settled.model_dump(by_alias=True, exclude_none=True)
    if response.status_code == 402:
        told["error"] = reader.get_payment_required_response(response.headers.get, body).error
    return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(buy())) + "\n")

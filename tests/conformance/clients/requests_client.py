"""Buys RESOURCE_URL with EVM_PRIVATE_KEY through the requests client of PyPI `x402`; prints one JSON line."""

import json
import os
import sys

from eth_account import Account
from x402 import x402ClientSync
from x402.http import x402HTTPClientSync
from x402.http.clients import x402_requests
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner


def buy() -> dict[str, object]:
    """Pay, and tell what came back."""
    client = x402ClientSync()
    register_exact_evm_client(client, EthAccountSigner(Account.from_key(os.environ["EVM_PRIVATE_KEY"])))
    with x402_requests(client) as http:
        response = http.get(os.environ["RESOURCE_URL"], timeout=120)
    reader = x402HTTPClientSync(client)
    body = response.json()
    told: dict[str, object] = {"status": response.status_code, "body": body, "payment_response": None, "error": None}
    if "payment-response" in response.headers or "x-payment-response" in response.headers:
        settled = reader.get_payment_settle_response(response.headers.get)
        told["payment_response"] = settled.model_dump(by_alias=True, exclude_none=True)
    if response.status_code == 402:
        told["error"] = reader.get_payment_required_response(response.headers.get, body).error
    return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(buy()) + "\n")

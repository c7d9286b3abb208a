"""The official Python SDK's facilitator, as its documentation builds one: FastAPI over x402Facilitator with exact EVM.

The sync facilitator on FastAPI's thread pool, which is the faster of the SDK's two forms: the async one stops its event loop
in every RPC call. coincurve is installed, which the SDK does not bring and without which recovery is 100 times slower.
Environment: RPC_URL, EVM_PRIVATE_KEY, PORT.
"""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from x402 import x402FacilitatorSync
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact.register import register_exact_evm_facilitator
from x402.schemas import parse_payment_payload, parse_payment_requirements

signer = FacilitatorWeb3Signer(private_key=os.environ["EVM_PRIVATE_KEY"], rpc_url=os.environ["RPC_URL"])
facilitator = x402FacilitatorSync()
register_exact_evm_facilitator(facilitator, signer, networks="eip155:84532")
app = FastAPI()


@app.get("/readyz")
def ready() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/verify")
def verify(request: dict[str, Any]) -> JSONResponse:
    payload = parse_payment_payload(request["paymentPayload"])
    terms = parse_payment_requirements(payload.x402_version, request["paymentRequirements"])
    return JSONResponse(facilitator.verify(payload, terms).model_dump(by_alias=True, exclude_none=True))


@app.post("/settle")
def settle(request: dict[str, Any]) -> JSONResponse:
    payload = parse_payment_payload(request["paymentPayload"])
    terms = parse_payment_requirements(payload.x402_version, request["paymentRequirements"])
    return JSONResponse(facilitator.settle(payload, terms).model_dump(by_alias=True, exclude_none=True))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning", access_log=False)

"""The OpenAPI document of the StableStudio-style seller: what is sold, what it costs, how it is paid and fetched.

Prices and protocols stand in `x-payment-info` as agents' discovery reads them (`mode: dynamic` with the least and the most),
request bodies are the types that requests are read with.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from facilitator.gateway.prices import Json

_GUIDANCE: Final = (
    "POST an order without a payment: 402, with the exact price in PAYMENT-REQUIRED (x402) and in WWW-Authenticate (MPP, method evm). "
    "Sign one of the two and POST the same order again, with PAYMENT-SIGNATURE or with Authorization: 200 with a jobId. "
    "GET /api/jobs/{jobId}: 402 with a sign-in-with-x challenge. Sign it with the wallet that paid, GET again with SIGN-IN-WITH-X: "
    "the job, with result.imageUrl when status is complete. A sign-in challenge is good for one GET."
)
_ERROR: Final[Json] = {
    "type": "object",
    "properties": {"success": {"const": False}, "error": {"type": "string"}},
    "required": ["success", "error"],
}
_CREATED: Final[Json] = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "jobId": {"type": "string", "format": "uuid"},
        "status": {"const": "pending"},
        "success": {"const": True},
        "servedBy": {"type": "string"},
    },
    "required": ["type", "jobId", "status", "success"],
}
_JOB: Final[Json] = {
    "type": "object",
    "properties": {
        "jobId": {"type": "string", "format": "uuid"},
        "type": {"type": "string"},
        "status": {"enum": ["pending", "complete"]},
        "success": {"const": True},
        "result": {"type": "object", "properties": {"imageUrl": {"type": "string", "format": "uri"}}, "required": ["imageUrl"]},
        "servedBy": {"type": "string"},
    },
    "required": ["jobId", "type", "status", "success"],
}


def document(paths: Mapping[str, str], body: type, *, dollars: tuple[int, int], currency: str, base_url: str) -> Json:
    """OpenAPI 3.1. `paths`: model to path; `dollars`: the least and the most that a call costs, in millionths; `currency`: the token."""
    (_,), components = msgspec.json.schema_components([body], ref_template="#/components/schemas/{name}")
    least, most = (f"{amount / 1_000_000:.3f}" for amount in dollars)
    paid = {
        path: {
            "post": {
                "operationId": f"{model}-generate",
                "summary": f"{model} - generate",
                "x-payment-info": {
                    "price": {"mode": "dynamic", "currency": "USD", "min": least, "max": most},
                    **_protocols(currency),
                },
                "requestBody": {"required": True, "content": _content({"$ref": f"#/components/schemas/{body.__name__}"})},
                "responses": {
                    "200": {"description": "paid; the job is made", "content": _content(_CREATED)},
                    "400": {"description": "the order is wrong; nothing was asked for", "content": _content(_ERROR)},
                    "402": {"description": "Payment Required: the price by quality and size is in PAYMENT-REQUIRED and WWW-Authenticate"},
                    "502": {"description": "the model failed; this request charged nothing", "content": _content(_ERROR)},
                },
            }
        }
        for model, path in paths.items()
    }
    job: Json = {
        "get": {
            "operationId": "job",
            "summary": "a job, for the wallet that paid for it",
            "security": [{"siwx": []}],
            "parameters": [{"name": "jobId", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}],
            "responses": {
                "200": {"description": "the job", "content": _content(_JOB)},
                "402": {"description": "sign in: the sign-in-with-x challenge is in PAYMENT-REQUIRED; nothing is to be paid"},
                "403": {"description": "another wallet paid", "content": _content(_ERROR)},
                "404": {"description": "no such job", "content": _content(_ERROR)},
            },
        }
    }
    siwx = {"type": "apiKey", "in": "header", "name": "SIGN-IN-WITH-X", "description": "CAIP-122 proof of the paying wallet, EIP-191"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "A studio", "version": "1.0.0", "description": "Sample seller of a local x402 stack.", "x-guidance": _GUIDANCE},
        "servers": [{"url": base_url}],
        "paths": {**paid, "/api/jobs/{jobId}": job},
        "components": {"schemas": components, "securitySchemes": {"siwx": siwx}},
    }


def _protocols(currency: str) -> Json:
    """How it can be paid: `protocols` as agents' discovery reads it, `offers` as draft-payment-discovery-01 has it for MPP."""
    charge = {"intent": "charge", "method": "evm", "currency": currency}
    return {"protocols": [{"x402": {}}, {"mpp": charge}], "offers": [charge | {"amount": None, "description": "by quality and size"}]}


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}

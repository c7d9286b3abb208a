"""The API as OpenAPI 3.1. Written by hand, held to the route table, the scopes and real answers by tests."""

from typing import Final

from facilitator.api import openapi_finance
from facilitator.api.describing import (
    ADDRESS,
    ATOMIC,
    BODY,
    CHAIN,
    HASH,
    LOCKED,
    NETWORK,
    RETRY,
    TIME,
    Json,
    answer,
    body,
    closed,
    nullable,
    operation,
    parameter,
    ref,
    struct,
)
from facilitator.domain.confirmation import LEVELS
from facilitator.domain.limits import RATED_ROUTES
from facilitator.domain.states import State
from facilitator.protocol.reasons import Reason
from facilitator.store.tenants import SCOPES

_WORDS: Final = sorted({word for reason in Reason for word in (reason.v1, reason.v2)})


_RULES: Final[Json] = {
    "sharedTransactions": {"type": "boolean"},
    "acceptExternal": {"type": "boolean"},
    "trustPaymentIdentifier": {"type": "boolean"},
    "discoverable": {"type": "boolean", "description": "resources are listed whose sellers declare it"},
    "acceptUnscreened": {"type": "boolean", "description": "made while a sanctions list is stale or cannot be read"},
    "confirmLevel": nullable({"type": "string", "enum": list(LEVELS)}),
}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0, "maximum": 1_000_000}
_API_KEY: Final[Json] = {
    "id": {"type": "string"},
    "tenant": {"type": "string"},
    "scopes": {"type": "array", "items": {"type": "string", "enum": list(SCOPES)}},
    "created": TIME,
    "expires": nullable(TIME),
    "revoked": nullable(TIME),
    "lastUsed": nullable(TIME),
    "replaces": nullable({"type": "string", "description": "id of the key whose place it took"}),
    "publicKey": nullable(
        {"type": "string", "description": "PEM, Ed25519 or P-256: requests are signed (JWT) instead of carrying a secret"}
    ),
}

_SCHEMAS: Final[Json] = {
    "Limits": {
        **struct(
            {
                "rates": {
                    "type": "object",
                    "description": f"by route: {', '.join(RATED_ROUTES)}",
                    "additionalProperties": struct({"perSecond": {"type": "number"}, "burst": _COUNT}, ["perSecond", "burst"]),
                },
                "settlementsMax": _COUNT,
                "payerSettlementsMax": _COUNT,
                "networks": {"type": "array", "items": NETWORK},
                "assets": {"type": "array", "items": ADDRESS},
                "payTo": {"type": "array", "items": ADDRESS},
                "amountMin": ATOMIC,
                "gasWeiPerDay": {**ATOMIC, "description": "gas budget of a day (UTC) on each network, in wei of its coin"},
                "gasUsdPerDay": {
                    "type": "string",
                    "pattern": r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?$",
                    "description": "gas budget of a day (UTC) on all networks, in dollars",
                },
                "payerStrikesMax": {**_COUNT, "minimum": 1},
                "strikesMax": {**_COUNT, "minimum": 1},
            },
            [],
            "what is absent does not limit",
        ),
        "additionalProperties": False,
    },
    "Tenant": struct(
        {"id": {"type": "string"}, "created": TIME, "disabled": nullable(TIME), **_RULES, "limits": ref("Limits")},
        ["id", "created", "disabled", *_RULES, "limits"],
    ),
    "TenantList": struct({"tenants": {"type": "array", "items": ref("Tenant")}}, ["tenants"]),
    "NewTenant": closed(
        struct({"id": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"}, **_RULES, "limits": ref("Limits")}, ["id"])
    ),
    "TenantChange": closed(
        struct(
            {
                **_RULES,
                "limits": {"type": "object", "description": "a merge patch (RFC 7396) of Limits: null ends a limit"},
                "disabled": {"type": "boolean", "description": "ends all keys of the tenant, until it is false again"},
            },
            [],
            "what is absent stays",
        )
    ),
    "ApiKey": struct(_API_KEY, [*_API_KEY]),
    "MadeKey": struct({"key": {"type": "string", "description": "shown here and never again"}, **_API_KEY}, ["key", *_API_KEY]),
    "KeyList": struct({"keys": {"type": "array", "items": ref("ApiKey")}}, ["keys"]),
    "NewKey": closed(
        struct(
            {name: _API_KEY[name] for name in ("tenant", "expires", "publicKey")}
            | {"scopes": {"type": "array", "items": {"type": "string", "enum": list(SCOPES)}, "minItems": 1, "maxItems": len(SCOPES)}},
            ["tenant", "scopes"],
        )
    ),
    "Rotation": closed(
        struct(
            {
                "overlapSeconds": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 7776000,
                    "description": "how long the old key works yet; 86400",
                }
            },
            [],
        )
    ),
    "PaymentRequest": struct(
        {
            "x402Version": {"type": "integer", "enum": [1, 2]},
            "paymentPayload": struct({"x402Version": {"type": "integer"}}, ["x402Version"], "what the buyer sent, decoded"),
            "paymentRequirements": struct({}, [], "the one entry that the seller selected"),
        },
        ["paymentPayload", "paymentRequirements"],
        "the x402 protocol's request of /verify and /settle, version 1 or 2; unknown keys are tolerated",
    ),
    "VerifyResponse": struct(
        {
            "isValid": {"type": "boolean"},
            "payer": {"type": "string", "description": '"" when unknown'},
            "invalidReason": {"type": "string", "enum": _WORDS},
            "invalidMessage": {"type": "string"},
        },
        ["isValid", "payer"],
    ),
    "SettleResponse": struct(
        {
            "success": {"type": "boolean"},
            "transaction": {"type": "string", "description": '"" when nothing was broadcast'},
            "network": NETWORK,
            "payer": {"type": "string"},
            "errorReason": {"type": "string", "enum": _WORDS},
            "errorMessage": {"type": "string"},
            "extra": struct({"logIndex": {"type": "integer"}, "settlementId": {"type": "string", "format": "uuid"}}, []),
        },
        ["success", "transaction", "network", "payer"],
    ),
    "SupportedResponse": struct(
        {
            "kinds": {
                "type": "array",
                "items": struct(
                    {"x402Version": {"type": "integer"}, "scheme": {"type": "string"}, "network": NETWORK, "extra": {"type": "object"}},
                    ["x402Version", "scheme", "network"],
                ),
            },
            "extensions": {"type": "array", "items": {"type": "string"}},
            "signers": {"type": "object", "additionalProperties": {"type": "array", "items": ADDRESS}},
        },
        ["kinds", "extensions", "signers"],
    ),
    "Settlement": struct(
        {
            "id": {"type": "string", "format": "uuid"},
            "state": {"type": "string", "enum": [state.value for state in State]},
            "scheme": {"type": "string"},
            "network": NETWORK,
            "asset": ADDRESS,
            "payer": ADDRESS,
            "payTo": ADDRESS,
            "amount": ATOMIC,
            "nonce": {**HASH, "description": "the payer's EIP-3009 nonce"},
            "validAfter": {**ATOMIC, "description": "unix seconds"},
            "validBefore": {**ATOMIC, "description": "unix seconds"},
            "transaction": nullable(HASH),
            "logIndex": nullable({"type": "integer", "description": "of the AuthorizationUsed log; with transaction the proof"}),
            "blockNumber": nullable({"type": "integer"}),
            "reason": nullable({"type": "string", "description": "why it was not paid by us"}),
            "tenant": {"type": "string"},
            "requestId": {"type": "string"},
            "paymentIdentifier": nullable({"type": "string", "description": "what the buyer named it"}),
            "traceId": nullable({"type": "string", "description": "of the request that admitted it (W3C Trace Context)"}),
            "resource": nullable({"type": "string"}),
            "queuedAt": TIME,
            "resolvedAt": nullable(TIME),
            "answered": {"type": "boolean", "description": "whether a caller was told the outcome"},
            "screening": nullable(
                struct(
                    {
                        "decision": {"type": "string", "enum": ["clear", "unscreened"]},
                        "lists": {"type": "array", "items": {"type": "string"}, "description": "versions: sha256 of a file, oracle@block"},
                        "time": TIME,
                    },
                    ["decision", "lists", "time"],
                )
            ),
            "history": {
                "type": "array",
                "items": struct(
                    {"state": {"type": "string"}, "time": TIME, "transaction": nullable(HASH), "reason": {"type": "string"}},
                    ["state", "time", "transaction"],
                ),
            },
            "cost": nullable(
                struct(
                    {
                        "wei": {**ATOMIC, "description": "its share of the fees of all transactions that carried it"},
                        "transactions": {
                            "type": "array",
                            "items": struct(
                                {
                                    "transaction": HASH,
                                    "gasUsed": ATOMIC,
                                    "feeWei": {**ATOMIC, "description": "the whole transaction: L2, L1 and operator fee"},
                                    "l2FeeWei": ATOMIC,
                                    "l1FeeWei": ATOMIC,
                                    "operatorFeeWei": ATOMIC,
                                    "shareWei": {**ATOMIC, "description": "this settlement's part of feeWei"},
                                    "settlements": {"type": "integer", "description": "how many share it"},
                                },
                                ["transaction", "gasUsed", "feeWei", "l2FeeWei", "l1FeeWei", "operatorFeeWei", "shareWei", "settlements"],
                            ),
                        },
                    },
                    ["wei", "transactions"],
                )
            ),
            "incidents": {
                "type": "array",
                "items": struct(
                    {"kind": {"type": "string"}, "transaction": nullable(HASH), "detail": {"type": "string"}, "time": TIME},
                    ["kind", "transaction", "detail", "time"],
                ),
            },
        },
        ["id", "state", "network", "asset", "payer", "payTo", "amount", "nonce", "transaction", "logIndex", "history", "cost", "incidents"],
    ),
    "SettlementPage": struct(
        {"settlements": {"type": "array", "items": ref("Settlement")}, "nextCursor": nullable({"type": "string"})},
        ["settlements", "nextCursor"],
    ),
    "Problem": struct(
        {
            "error": {"type": "string"},
            "message": {"type": "string"},
            "requestId": {"type": "string"},
            "limit": struct(
                {
                    "name": {"type": "string"},
                    "left": {"type": "integer"},
                    "freesInSeconds": nullable({"type": "integer", "description": "null: waiting does not help"}),
                },
                ["name", "freesInSeconds"],
                "of 429 and of 403 limit_exceeded: which limit, with what it allows and what came",
            ),
        },
        ["error", "message", "requestId"],
        "every answer outside the protocol; a 400 of /verify and /settle also carries the keys that old clients look for",
    ),
    "DiscoveryItem": struct(
        {
            "resource": {"type": "string", "description": "URL, or URL with the route's template"},
            "type": {"type": "string", "enum": ["http", "mcp"]},
            "x402Version": {"type": "integer", "enum": [1, 2]},
            "accepts": {"type": "array", "items": {"type": "object"}, "description": "what was paid, in that version's words"},
            "lastUpdated": TIME,
            "description": {"type": "string"},
            "mimeType": {"type": "string"},
            "serviceName": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "iconUrl": {"type": "string"},
            "extensions": {"type": "object", "description": "bazaar: info, schema, routeTemplate; as the seller wrote it"},
            "quality": struct({"settledPayments": {"type": "integer"}, "lastSettled": TIME}, ["settledPayments", "lastSettled"]),
        },
        ["resource", "type", "x402Version", "accepts", "lastUpdated", "extensions", "quality"],
        "written by strangers, checked for shape and size only",
    ),
    "DiscoveryPage": struct(
        {
            "x402Version": {"type": "integer", "const": 2},
            "items": {"type": "array", "items": ref("DiscoveryItem")},
            "pagination": struct({"limit": _COUNT, "offset": _COUNT, "total": _COUNT}, ["limit", "offset", "total"]),
        },
        ["x402Version", "items", "pagination"],
    ),
    "DiscoveryFound": struct(
        {
            "x402Version": {"type": "integer", "const": 2},
            "resources": {"type": "array", "items": ref("DiscoveryItem")},
            "partialResults": {"type": "boolean"},
            "pagination": struct({"limit": _COUNT, "cursor": nullable({"type": "string"})}, ["limit", "cursor"]),
        },
        ["x402Version", "resources", "partialResults", "pagination"],
    ),
    "Health": struct({"status": {"type": "string", "enum": ["ok", "stuck"]}, "lagSeconds": {"type": "number"}}, ["status", "lagSeconds"]),
    "Readiness": struct(
        {"ready": {"type": "boolean"}, "gates": {"type": "object", "additionalProperties": {"type": "boolean"}}}, ["ready", "gates"]
    ),
}

_EXTENSIONS: Final[Json] = {
    "EXTENSION-RESPONSES": {
        "description": "base64 of JSON by extension: what becomes of what the seller wants listed (bazaar)",
        "schema": {"type": "string"},
    }
}
_CATALOGUE: Final[Json] = {
    "400": answer("a wrong query parameter", "Problem"),
    "404": answer("this facilitator keeps no catalogue", "Problem"),
    "429": answer("too many requests from this address", "Problem", RETRY),
    "503": answer("cannot serve this now", "Problem", RETRY),
}
_PAYMENT_BODY: Final[Json] = body("PaymentRequest")
_ID: Final[Json] = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_IDEMPOTENCY: Final[Json] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "the same key with the same payment gets the same answer, byte for byte",
}

_FILTERS: Final = [
    parameter("type", {"type": "string", "maxLength": 64, "description": "http or mcp"}),
    parameter("payTo", ADDRESS),
    parameter("scheme", {"type": "string", "maxLength": 64}),
    parameter("network", {"type": "string", "maxLength": 64, "description": "CAIP-2, or a nickname of version 1"}),
    parameter("extensions", {"type": "string", "maxLength": 64, "description": "an extension that the listing has"}),
]

_PATHS: Final[Json] = {
    "/verify": {
        "post": operation(
            "verify",
            "Would this payment settle now?",
            {"200": answer("the outcome, valid or not", "VerifyResponse", _EXTENSIONS), **BODY, **LOCKED},
            ("verify",),
            requestBody=_PAYMENT_BODY,
        )
    },
    "/settle": {
        "post": operation(
            "settle",
            "Get this payment onto the chain once",
            {
                "200": answer(
                    "the outcome: paid, refused, or settlement_pending with the transaction's hash", "SettleResponse", _EXTENSIONS
                ),
                "409": answer("the Idempotency-Key was used for another payment", "Problem"),
                **BODY,
                **LOCKED,
            },
            ("settle",),
            requestBody=_PAYMENT_BODY,
            parameters=[_IDEMPOTENCY],
        )
    },
    "/supported": {"get": operation("supported", "What is served", {"200": answer("kinds, extensions and signers", "SupportedResponse")})},
    "/discovery/resources": {
        "get": operation(
            "listResources",
            "Resources whose sellers let them be listed (extension bazaar), those with the most payments first",
            {"200": answer("a page", "DiscoveryPage"), **_CATALOGUE},
            parameters=[*_FILTERS, parameter("limit", {"type": "integer", "minimum": 0, "default": 20}), parameter("offset", _COUNT)],
        )
    },
    "/discovery/search": {
        "get": operation(
            "searchResources",
            "The same, by words; the best first",
            {"200": answer("a page", "DiscoveryFound"), **_CATALOGUE},
            parameters=[
                parameter("query", {"type": "string", "minLength": 1, "maxLength": 200}, required=True),
                *_FILTERS,
                parameter("limit", {"type": "integer", "minimum": 0, "default": 20}),
                parameter("cursor", {"type": "string", "pattern": "^[0-9]{1,7}$", "description": "cursor of the page before"}),
            ],
        )
    },
    "/settlements": {
        "get": operation(
            "listSettlements",
            "Settlements, newest first; own tenant only unless scope finance or admin",
            {"200": answer("a page", "SettlementPage"), "400": answer("a wrong query parameter", "Problem"), **LOCKED},
            ("read", "finance"),
            parameters=[
                parameter("from", TIME),
                parameter("to", TIME),
                parameter("state", {"type": "string", "enum": [state.value for state in State]}),
                parameter("payer", ADDRESS),
                parameter("pay_to", ADDRESS),
                parameter("network", CHAIN),
                parameter("asset", ADDRESS),
                parameter("tx", HASH),
                parameter("cursor", {"type": "string", "description": "nextCursor of the page before"}),
                parameter("limit", {"type": "integer", "minimum": 1, "default": 50}),
            ],
        )
    },
    "/settlements/lookup": {
        "get": operation(
            "lookupSettlement",
            "One settlement by its authorization: the answer to a lost reply",
            {
                "200": answer("the settlement", "Settlement"),
                "400": answer("a wrong query parameter", "Problem"),
                "404": answer("no such settlement of yours", "Problem"),
                **LOCKED,
            },
            ("read", "finance"),
            parameters=[
                parameter("network", CHAIN, required=True),
                parameter("asset", ADDRESS, required=True),
                parameter("payer", ADDRESS, required=True),
                parameter("nonce", HASH, required=True),
            ],
        )
    },
    "/settlements/{id}": {
        "get": operation(
            "getSettlement",
            "One settlement",
            {"200": answer("the settlement", "Settlement"), "404": answer("no such settlement of yours", "Problem"), **LOCKED},
            ("read", "finance"),
            parameters=[{"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}],
        )
    },
    "/admin/tenants": {
        "get": operation("listTenants", "All tenants, disabled ones too", {"200": answer("by id", "TenantList"), **LOCKED}, ("admin",)),
        "post": operation(
            "createTenant",
            "Make a tenant, without keys yet",
            {"201": answer("the tenant", "Tenant"), "409": answer("there is one of that id", "Problem"), **BODY, **LOCKED},
            ("admin",),
            requestBody=body("NewTenant"),
        ),
    },
    "/admin/tenants/{id}": {
        "patch": operation(
            "changeTenant",
            "Change a tenant's rules and limits, disable or enable it; other processes notice within access.refresh_s",
            {"200": answer("the tenant", "Tenant"), "404": answer("no such tenant", "Problem"), **BODY, **LOCKED},
            ("admin",),
            requestBody=body("TenantChange"),
            parameters=[_ID],
        )
    },
    "/admin/keys": {
        "get": operation(
            "listKeys",
            "All keys, dead ones too",
            {"200": answer("of all tenants, or of one", "KeyList"), "400": answer("a wrong query parameter", "Problem"), **LOCKED},
            ("admin",),
            parameters=[parameter("tenant", {"type": "string"})],
        ),
        "post": operation(
            "createKey",
            "Make a key; the answer is the only copy of it",
            {"201": answer("the key", "MadeKey"), "404": answer("no such tenant", "Problem"), **BODY, **LOCKED},
            ("admin",),
            requestBody=body("NewKey"),
        ),
    },
    "/admin/keys/{id}/rotate": {
        "post": operation(
            "rotateKey",
            "Make a key in the place of another; both work until the overlap ends, and the answer is the only copy of the new one",
            {
                "201": answer("the new key", "MadeKey"),
                "409": answer("no such key, or one that is dead, was replaced before or signs requests", "Problem"),
                **BODY,
                **LOCKED,
            },
            ("admin",),
            requestBody=body("Rotation"),
            parameters=[_ID],
        )
    },
    "/admin/keys/{id}": {
        "delete": operation(
            "revokeKey",
            "End a key; it stays on record",
            {"200": answer("the key", "ApiKey"), "404": answer("no such key", "Problem"), **LOCKED},
            ("admin",),
            parameters=[_ID],
        )
    },
    "/healthz": {
        "get": operation(
            "healthz", "Is the process alive?", {"200": answer("yes", "Health"), "503": answer("its event loop is stuck", "Health")}
        )
    },
    "/readyz": {
        "get": operation(
            "readyz", "May traffic be sent here?", {"200": answer("yes", "Readiness"), "503": answer("not now; which gate", "Readiness")}
        )
    },
    "/metrics": {
        "get": operation(
            "metrics",
            "Prometheus metrics; on [metrics] listen, and here only while this address is loopback",
            {"200": {"description": "text format", "content": {"text/plain": {"schema": {"type": "string"}}}}},
        )
    },
    "/openapi.json": {
        "get": operation(
            "openapi",
            "This document",
            {"200": {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}}},
        )
    },
}

DOCUMENT: Final[Json] = {
    "openapi": "3.1.0",
    "info": {
        "title": "x402 facilitator",
        "version": "1",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        "description": "Judges a signed payment authorization, gets it onto the chain once, and accounts for it.",
    },
    "paths": _PATHS | openapi_finance.PATHS,
    "components": {
        "schemas": _SCHEMAS | openapi_finance.SCHEMAS,
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, or a JWT signed for this request"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        },
    },
}

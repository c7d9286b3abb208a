"""The API as OpenAPI 3.1. Written by hand, held to the route table, the scopes and real answers by tests."""

from typing import Final

from facilitator.domain.confirmation import LEVELS
from facilitator.domain.limits import RATED_ROUTES
from facilitator.domain.states import State
from facilitator.protocol.reasons import Reason
from facilitator.store.tenants import SCOPES

Json = dict[str, object]

_ATOMIC: Final[Json] = {"type": "string", "pattern": "^(0|[1-9][0-9]{0,77})$", "description": "an integer in atomic units"}
_ADDRESS: Final[Json] = {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$", "description": "EIP-55 in answers, any case in requests"}
_HASH: Final[Json] = {"type": "string", "pattern": "^0x[0-9a-fA-F]{64}$"}
_TIME: Final[Json] = {"type": "string", "format": "date-time"}
_NETWORK: Final[Json] = {"type": "string", "description": "CAIP-2, such as eip155:8453; version 1 of the protocol uses nicknames"}
_CHAIN: Final[Json] = {"type": "string", "pattern": "^eip155:[1-9][0-9]{0,18}$", "description": "CAIP-2, such as eip155:8453"}
_WORDS: Final = sorted({word for reason in Reason for word in (reason.v1, reason.v2)})


def _closed(schema: Json) -> Json:
    """Of a body whose unknown keys are refused."""
    return schema | {"additionalProperties": False}


def _nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: Json, required: list[str], description: str = "") -> Json:
    return {"type": "object", "description": description, "properties": properties, "required": required}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_RULES: Final[Json] = {
    "sharedTransactions": {"type": "boolean"},
    "acceptExternal": {"type": "boolean"},
    "trustPaymentIdentifier": {"type": "boolean"},
    "acceptUnscreened": {"type": "boolean", "description": "made while a sanctions list is stale or cannot be read"},
    "confirmLevel": _nullable({"type": "string", "enum": list(LEVELS)}),
}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0, "maximum": 1_000_000}
_API_KEY: Final[Json] = {
    "id": {"type": "string"},
    "tenant": {"type": "string"},
    "scopes": {"type": "array", "items": {"type": "string", "enum": list(SCOPES)}},
    "created": _TIME,
    "expires": _nullable(_TIME),
    "revoked": _nullable(_TIME),
    "lastUsed": _nullable(_TIME),
    "replaces": _nullable({"type": "string", "description": "id of the key whose place it took"}),
    "publicKey": _nullable(
        {"type": "string", "description": "PEM, Ed25519 or P-256: requests are signed (JWT) instead of carrying a secret"}
    ),
}

_SCHEMAS: Final[Json] = {
    "Limits": {
        **_object(
            {
                "rates": {
                    "type": "object",
                    "description": f"by route: {', '.join(RATED_ROUTES)}",
                    "additionalProperties": _object({"perSecond": {"type": "number"}, "burst": _COUNT}, ["perSecond", "burst"]),
                },
                "settlementsMax": _COUNT,
                "payerSettlementsMax": _COUNT,
                "networks": {"type": "array", "items": _NETWORK},
                "assets": {"type": "array", "items": _ADDRESS},
                "payTo": {"type": "array", "items": _ADDRESS},
                "amountMin": _ATOMIC,
            },
            [],
            "what is absent does not limit",
        ),
        "additionalProperties": False,
    },
    "Tenant": _object(
        {"id": {"type": "string"}, "created": _TIME, "disabled": _nullable(_TIME), **_RULES, "limits": _ref("Limits")},
        ["id", "created", "disabled", *_RULES, "limits"],
    ),
    "TenantList": _object({"tenants": {"type": "array", "items": _ref("Tenant")}}, ["tenants"]),
    "NewTenant": _closed(
        _object({"id": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"}, **_RULES, "limits": _ref("Limits")}, ["id"])
    ),
    "TenantChange": _closed(
        _object(
            {
                **_RULES,
                "limits": {"type": "object", "description": "a merge patch (RFC 7396) of Limits: null ends a limit"},
                "disabled": {"type": "boolean", "description": "ends all keys of the tenant, until it is false again"},
            },
            [],
            "what is absent stays",
        )
    ),
    "ApiKey": _object(_API_KEY, [*_API_KEY]),
    "MadeKey": _object({"key": {"type": "string", "description": "shown here and never again"}, **_API_KEY}, ["key", *_API_KEY]),
    "KeyList": _object({"keys": {"type": "array", "items": _ref("ApiKey")}}, ["keys"]),
    "NewKey": _closed(
        _object(
            {name: _API_KEY[name] for name in ("tenant", "expires", "publicKey")}
            | {"scopes": {"type": "array", "items": {"type": "string", "enum": list(SCOPES)}, "minItems": 1, "maxItems": len(SCOPES)}},
            ["tenant", "scopes"],
        )
    ),
    "PaymentRequest": _object(
        {
            "x402Version": {"type": "integer", "enum": [1, 2]},
            "paymentPayload": _object({"x402Version": {"type": "integer"}}, ["x402Version"], "what the buyer sent, decoded"),
            "paymentRequirements": _object({}, [], "the one entry that the seller selected"),
        },
        ["paymentPayload", "paymentRequirements"],
        "the x402 protocol's request of /verify and /settle, version 1 or 2; unknown keys are tolerated",
    ),
    "VerifyResponse": _object(
        {
            "isValid": {"type": "boolean"},
            "payer": {"type": "string", "description": '"" when unknown'},
            "invalidReason": {"type": "string", "enum": _WORDS},
            "invalidMessage": {"type": "string"},
        },
        ["isValid", "payer"],
    ),
    "SettleResponse": _object(
        {
            "success": {"type": "boolean"},
            "transaction": {"type": "string", "description": '"" when nothing was broadcast'},
            "network": _NETWORK,
            "payer": {"type": "string"},
            "errorReason": {"type": "string", "enum": _WORDS},
            "errorMessage": {"type": "string"},
            "extra": _object({"logIndex": {"type": "integer"}, "settlementId": {"type": "string", "format": "uuid"}}, []),
        },
        ["success", "transaction", "network", "payer"],
    ),
    "SupportedResponse": _object(
        {
            "kinds": {
                "type": "array",
                "items": _object(
                    {"x402Version": {"type": "integer"}, "scheme": {"type": "string"}, "network": _NETWORK, "extra": {"type": "object"}},
                    ["x402Version", "scheme", "network"],
                ),
            },
            "extensions": {"type": "array", "items": {"type": "string"}},
            "signers": {"type": "object", "additionalProperties": {"type": "array", "items": _ADDRESS}},
        },
        ["kinds", "extensions", "signers"],
    ),
    "Settlement": _object(
        {
            "id": {"type": "string", "format": "uuid"},
            "state": {"type": "string", "enum": [state.value for state in State]},
            "scheme": {"type": "string"},
            "network": _NETWORK,
            "asset": _ADDRESS,
            "payer": _ADDRESS,
            "payTo": _ADDRESS,
            "amount": _ATOMIC,
            "nonce": {**_HASH, "description": "the payer's EIP-3009 nonce"},
            "validAfter": {**_ATOMIC, "description": "unix seconds"},
            "validBefore": {**_ATOMIC, "description": "unix seconds"},
            "transaction": _nullable(_HASH),
            "logIndex": _nullable({"type": "integer", "description": "of the AuthorizationUsed log; with transaction the proof"}),
            "blockNumber": _nullable({"type": "integer"}),
            "reason": _nullable({"type": "string", "description": "why it was not paid by us"}),
            "tenant": {"type": "string"},
            "requestId": {"type": "string"},
            "paymentIdentifier": _nullable({"type": "string", "description": "what the buyer named it"}),
            "traceId": _nullable({"type": "string", "description": "of the request that admitted it (W3C Trace Context)"}),
            "resource": _nullable({"type": "string"}),
            "queuedAt": _TIME,
            "resolvedAt": _nullable(_TIME),
            "answered": {"type": "boolean", "description": "whether a caller was told the outcome"},
            "screening": _nullable(
                _object(
                    {
                        "decision": {"type": "string", "enum": ["clear", "unscreened"]},
                        "lists": {"type": "array", "items": {"type": "string"}, "description": "versions: sha256 of a file, oracle@block"},
                        "time": _TIME,
                    },
                    ["decision", "lists", "time"],
                )
            ),
            "history": {
                "type": "array",
                "items": _object(
                    {"state": {"type": "string"}, "time": _TIME, "transaction": _nullable(_HASH), "reason": {"type": "string"}},
                    ["state", "time", "transaction"],
                ),
            },
            "cost": _nullable(
                _object(
                    {
                        "wei": {**_ATOMIC, "description": "its share of the fees of all transactions that carried it"},
                        "transactions": {
                            "type": "array",
                            "items": _object(
                                {
                                    "transaction": _HASH,
                                    "gasUsed": _ATOMIC,
                                    "feeWei": {**_ATOMIC, "description": "the whole transaction: L2, L1 and operator fee"},
                                    "l2FeeWei": _ATOMIC,
                                    "l1FeeWei": _ATOMIC,
                                    "operatorFeeWei": _ATOMIC,
                                    "shareWei": {**_ATOMIC, "description": "this settlement's part of feeWei"},
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
                "items": _object(
                    {"kind": {"type": "string"}, "transaction": _nullable(_HASH), "detail": {"type": "string"}, "time": _TIME},
                    ["kind", "transaction", "detail", "time"],
                ),
            },
        },
        ["id", "state", "network", "asset", "payer", "payTo", "amount", "nonce", "transaction", "logIndex", "history", "cost", "incidents"],
    ),
    "SettlementPage": _object(
        {"settlements": {"type": "array", "items": _ref("Settlement")}, "nextCursor": _nullable({"type": "string"})},
        ["settlements", "nextCursor"],
    ),
    "Problem": _object(
        {
            "error": {"type": "string"},
            "message": {"type": "string"},
            "requestId": {"type": "string"},
            "limit": _object(
                {
                    "name": {"type": "string"},
                    "left": {"type": "integer"},
                    "freesInSeconds": _nullable({"type": "integer", "description": "null: waiting does not help"}),
                },
                ["name", "freesInSeconds"],
                "of 429 and of 403 limit_exceeded: which limit, with what it allows and what came",
            ),
        },
        ["error", "message", "requestId"],
        "every answer outside the protocol; a 400 of /verify and /settle also carries the keys that old clients look for",
    ),
    "Health": _object({"status": {"type": "string", "enum": ["ok", "stuck"]}, "lagSeconds": {"type": "number"}}, ["status", "lagSeconds"]),
    "Readiness": _object(
        {"ready": {"type": "boolean"}, "gates": {"type": "object", "additionalProperties": {"type": "boolean"}}}, ["ready", "gates"]
    ),
}

_RETRY: Final[Json] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def _json(description: str, schema: str, headers: Json | None = None) -> Json:
    answer: Json = {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}
    return answer | ({"headers": headers} if headers else {})


_LOCKED: Final[Json] = {
    "401": _json("no API key, or one that is unknown, expired or revoked", "Problem"),
    "403": _json("the key lacks the scope, or a limit of the tenant forbids it", "Problem"),
    "429": _json("too many requests, or too much under way", "Problem", _RETRY),
    "503": _json("cannot serve this now; the same payment may be sent again", "Problem", _RETRY),
}
_BODY: Final[Json] = {
    "400": _json("the body is not what this route takes", "Problem"),
    "408": _json("the body did not arrive in time", "Problem"),
    "413": _json("the body is too large", "Problem"),
    "415": _json("the body is not JSON in UTF-8", "Problem"),
}


def _operation(name: str, summary: str, answers: Json, scopes: tuple[str, ...] = (), **more: object) -> Json:
    locks: Json = (
        {"security": [{"bearer": list(scopes)}, {"apiKey": list(scopes)}], "x-scopes": list(scopes)} if scopes else {"security": []}
    )
    return {"operationId": name, "summary": summary, **locks, "responses": answers, **more}


def _query(name: str, schema: Json, *, required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def _body(schema: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}


_PAYMENT_BODY: Final[Json] = _body("PaymentRequest")
_ID: Final[Json] = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_IDEMPOTENCY: Final[Json] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "the same key with the same payment gets the same answer, byte for byte",
}

_PATHS: Final[Json] = {
    "/verify": {
        "post": _operation(
            "verify",
            "Would this payment settle now?",
            {"200": _json("the outcome, valid or not", "VerifyResponse"), **_BODY, **_LOCKED},
            ("verify",),
            requestBody=_PAYMENT_BODY,
        )
    },
    "/settle": {
        "post": _operation(
            "settle",
            "Get this payment onto the chain once",
            {
                "200": _json("the outcome: paid, refused, or settlement_pending with the transaction's hash", "SettleResponse"),
                "409": _json("the Idempotency-Key was used for another payment", "Problem"),
                **_BODY,
                **_LOCKED,
            },
            ("settle",),
            requestBody=_PAYMENT_BODY,
            parameters=[_IDEMPOTENCY],
        )
    },
    "/supported": {"get": _operation("supported", "What is served", {"200": _json("kinds, extensions and signers", "SupportedResponse")})},
    "/settlements": {
        "get": _operation(
            "listSettlements",
            "Settlements, newest first; own tenant only unless scope finance or admin",
            {"200": _json("a page", "SettlementPage"), "400": _json("a wrong query parameter", "Problem"), **_LOCKED},
            ("read", "finance"),
            parameters=[
                _query("from", _TIME),
                _query("to", _TIME),
                _query("state", {"type": "string", "enum": [state.value for state in State]}),
                _query("payer", _ADDRESS),
                _query("pay_to", _ADDRESS),
                _query("network", _CHAIN),
                _query("asset", _ADDRESS),
                _query("tx", _HASH),
                _query("cursor", {"type": "string", "description": "nextCursor of the page before"}),
                _query("limit", {"type": "integer", "minimum": 1, "default": 50}),
            ],
        )
    },
    "/settlements/lookup": {
        "get": _operation(
            "lookupSettlement",
            "One settlement by its authorization: the answer to a lost reply",
            {
                "200": _json("the settlement", "Settlement"),
                "400": _json("a wrong query parameter", "Problem"),
                "404": _json("no such settlement of yours", "Problem"),
                **_LOCKED,
            },
            ("read", "finance"),
            parameters=[
                _query("network", _CHAIN, required=True),
                _query("asset", _ADDRESS, required=True),
                _query("payer", _ADDRESS, required=True),
                _query("nonce", _HASH, required=True),
            ],
        )
    },
    "/settlements/{id}": {
        "get": _operation(
            "getSettlement",
            "One settlement",
            {"200": _json("the settlement", "Settlement"), "404": _json("no such settlement of yours", "Problem"), **_LOCKED},
            ("read", "finance"),
            parameters=[{"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}],
        )
    },
    "/admin/tenants": {
        "get": _operation("listTenants", "All tenants, disabled ones too", {"200": _json("by id", "TenantList"), **_LOCKED}, ("admin",)),
        "post": _operation(
            "createTenant",
            "Make a tenant, without keys yet",
            {"201": _json("the tenant", "Tenant"), "409": _json("there is one of that id", "Problem"), **_BODY, **_LOCKED},
            ("admin",),
            requestBody=_body("NewTenant"),
        ),
    },
    "/admin/tenants/{id}": {
        "patch": _operation(
            "changeTenant",
            "Change a tenant's rules and limits, disable or enable it; other processes notice within access.refresh_s",
            {"200": _json("the tenant", "Tenant"), "404": _json("no such tenant", "Problem"), **_BODY, **_LOCKED},
            ("admin",),
            requestBody=_body("TenantChange"),
            parameters=[_ID],
        )
    },
    "/admin/keys": {
        "get": _operation(
            "listKeys",
            "All keys, dead ones too",
            {"200": _json("of all tenants, or of one", "KeyList"), "400": _json("a wrong query parameter", "Problem"), **_LOCKED},
            ("admin",),
            parameters=[_query("tenant", {"type": "string"})],
        ),
        "post": _operation(
            "createKey",
            "Make a key; the answer is the only copy of it",
            {"201": _json("the key", "MadeKey"), "404": _json("no such tenant", "Problem"), **_BODY, **_LOCKED},
            ("admin",),
            requestBody=_body("NewKey"),
        ),
    },
    "/admin/keys/{id}": {
        "delete": _operation(
            "revokeKey",
            "End a key; it stays on record",
            {"200": _json("the key", "ApiKey"), "404": _json("no such key", "Problem"), **_LOCKED},
            ("admin",),
            parameters=[_ID],
        )
    },
    "/healthz": {
        "get": _operation(
            "healthz", "Is the process alive?", {"200": _json("yes", "Health"), "503": _json("its event loop is stuck", "Health")}
        )
    },
    "/readyz": {
        "get": _operation(
            "readyz", "May traffic be sent here?", {"200": _json("yes", "Readiness"), "503": _json("not now; which gate", "Readiness")}
        )
    },
    "/metrics": {
        "get": _operation(
            "metrics",
            "Prometheus metrics; on [metrics] listen, and here only while this address is loopback",
            {"200": {"description": "text format", "content": {"text/plain": {"schema": {"type": "string"}}}}},
        )
    },
    "/openapi.json": {
        "get": _operation(
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
    "paths": _PATHS,
    "components": {
        "schemas": _SCHEMAS,
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, or a JWT signed for this request"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        },
    },
}

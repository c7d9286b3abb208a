"""What descriptions of routes are made of: OpenAPI 3.1 in short."""

from typing import Final

Json = dict[str, object]


ATOMIC: Final[Json] = {"type": "string", "pattern": "^(0|[1-9][0-9]{0,77})$", "description": "an integer in atomic units"}
ADDRESS: Final[Json] = {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$", "description": "EIP-55 in answers, any case in requests"}
HASH: Final[Json] = {"type": "string", "pattern": "^0x[0-9a-fA-F]{64}$"}
TIME: Final[Json] = {"type": "string", "format": "date-time"}
NETWORK: Final[Json] = {"type": "string", "description": "CAIP-2, such as eip155:8453; version 1 of the protocol uses nicknames"}
CHAIN: Final[Json] = {"type": "string", "pattern": "^eip155:[1-9][0-9]{0,18}$", "description": "CAIP-2, such as eip155:8453"}


def closed(schema: Json) -> Json:
    """Of a body whose unknown keys are refused."""
    return schema | {"additionalProperties": False}


def nullable(schema: Json) -> Json:
    """That, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def struct(properties: Json, required: list[str], description: str = "") -> Json:
    """An object."""
    return {"type": "object", "description": description, "properties": properties, "required": required}


def ref(name: str) -> Json:
    """A schema of the document by name."""
    return {"$ref": f"#/components/schemas/{name}"}


RETRY: Final[Json] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def answer(description: str, schema: str, headers: Json | None = None) -> Json:
    """A JSON answer."""
    said: Json = {"description": description, "content": {"application/json": {"schema": ref(schema)}}}
    return said | ({"headers": headers} if headers else {})


LOCKED: Final[Json] = {
    "401": answer("no API key, or one that is unknown, expired or revoked", "Problem"),
    "403": answer("the key lacks the scope, or a limit of the tenant forbids it", "Problem"),
    "429": answer("too many requests, or too much under way", "Problem", RETRY),
    "503": answer("cannot serve this now; the same payment may be sent again", "Problem", RETRY),
}
BODY: Final[Json] = {
    "400": answer("the body is not what this route takes", "Problem"),
    "408": answer("the body did not arrive in time", "Problem"),
    "413": answer("the body is too large", "Problem"),
    "415": answer("the body is not JSON in UTF-8", "Problem"),
}


def operation(name: str, summary: str, answers: Json, scopes: tuple[str, ...] = (), **more: object) -> Json:
    """One method of one path; without scopes no key is asked for."""
    locks: Json = (
        {"security": [{"bearer": list(scopes)}, {"apiKey": list(scopes)}], "x-scopes": list(scopes)} if scopes else {"security": []}
    )
    return {"operationId": name, "summary": summary, **locks, "responses": answers, **more}


def parameter(name: str, schema: Json, *, required: bool = False) -> Json:
    """A query parameter."""
    return {"name": name, "in": "query", "required": required, "schema": schema}


def body(schema: str) -> Json:
    """A JSON body."""
    return {"required": True, "content": {"application/json": {"schema": ref(schema)}}}

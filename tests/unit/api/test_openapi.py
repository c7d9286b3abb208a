"""The document says what the route table does: paths, methods, scopes, and references that lead somewhere."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from facilitator.api import settlements
from facilitator.api.openapi import DOCUMENT
from facilitator.api.server import METRICS_ROUTE, ROUTES
from facilitator.store.tenants import SCOPES

OPENAPI: dict[str, Any] = json.loads(json.dumps(DOCUMENT))
OPERATIONS = {(method.upper(), path): operation for path, item in OPENAPI["paths"].items() for method, operation in item.items()}


def test_every_route_is_described_and_nothing_else() -> None:
    assert set(OPERATIONS) == {(route.method, route.path) for route in (*ROUTES, METRICS_ROUTE)}


@pytest.mark.parametrize("route", [*ROUTES, METRICS_ROUTE], ids=lambda route: f"{route.method} {route.path}")
def test_scopes_are_those_of_the_route(route: Any) -> None:
    operation = OPERATIONS[route.method, route.path]
    assert tuple(operation.get("x-scopes", ())) == route.scopes
    assert bool(operation["security"]) == bool(route.scopes)
    assert set(route.scopes) <= set(SCOPES)
    assert ("401" in operation["responses"]) == bool(route.scopes)


def test_path_parameters_are_declared() -> None:
    for (_, path), operation in OPERATIONS.items():
        declared = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))


def test_query_parameters_are_those_that_the_code_takes() -> None:
    def declared(path: str) -> list[str]:
        return [each["name"] for each in OPERATIONS["GET", path]["parameters"] if each["in"] == "query"]

    assert declared("/settlements") == list(settlements.LIST_PARAMETERS)
    assert declared("/settlements/lookup") == list(settlements.LOOKUP_PARAMETERS)


def test_references_lead_somewhere_and_every_schema_is_used() -> None:
    def references(tree: object) -> Iterator[str]:
        if isinstance(tree, dict):
            if "$ref" in tree:
                yield tree["$ref"]
            for value in tree.values():
                yield from references(value)
        elif isinstance(tree, list):
            for value in tree:
                yield from references(value)

    used = {reference.rpartition("/")[2] for reference in references(OPENAPI)}
    assert used == set(OPENAPI["components"]["schemas"])


def test_operation_ids_are_unique() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(names) == len(set(names))

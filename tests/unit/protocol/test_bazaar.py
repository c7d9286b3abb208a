"""What sellers want listed: read in both versions, checked for where it leads and how long it is, and never believed further."""

import json
from typing import Any

import pytest
from x402.extensions.bazaar import OutputConfig, declare_discovery_extension

from facilitator.protocol.bazaar import Listing, UnlistedError, read_listing
from facilitator.protocol.codec import decode_request
from facilitator.protocol.messages import Payment
from tests.fixtures.vectors import v1_request, v2_request

URL = "https://api.weather.example/forecast"
Tree = dict[str, Any]


def declared(method: str = "GET", **changes: Any) -> Tree:
    """As the official server declares it, its method filled in as its middleware does."""
    options: Tree = {"input": {"city": "Paris"}, "output": OutputConfig(example={"sky": "clear"})}
    if method in {"POST", "PUT", "PATCH"}:
        options["body_type"] = "json"
    bazaar: Tree = json.loads(json.dumps(declare_discovery_extension(**options)["bazaar"]))
    bazaar["info"]["input"]["method"] = method
    return bazaar | changes


def offered(bazaar: object = None, **resource: Any) -> Payment:
    tree = v2_request()
    tree["paymentPayload"]["extensions"] = {"bazaar": declared() if bazaar is None else bazaar}
    tree["paymentPayload"]["resource"] = {"url": URL, "description": "Forecasts", "mimeType": "application/json"} | resource
    return decoded(tree)


def decoded(tree: Tree) -> Payment:
    payment = decode_request(json.dumps(tree).encode())
    assert isinstance(payment, Payment), payment
    return payment


def read(payment: Payment, *, private_hosts: bool = False, entry_bytes_max: int = 16_384) -> Listing:
    found = read_listing(payment, entry_bytes_max=entry_bytes_max, private_hosts=private_hosts)
    assert found is not None
    return found


def refused(payment: Payment) -> str:
    with pytest.raises(UnlistedError) as raised:
        read_listing(payment, entry_bytes_max=16_384, private_hosts=False)
    return str(raised.value)


# --- what is listed ---


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST", "PUT", "PATCH"])
def test_what_the_official_server_declares_is_listed_as_it_is(method: str) -> None:
    bazaar = declared(method)
    found = read(offered(bazaar))
    assert (found.resource, found.kind, found.operation, found.version) == (URL, "http", method, 2)
    entry = json.loads(found.entry)
    assert entry["extensions"]["bazaar"] == bazaar
    assert (entry["description"], entry["mimeType"]) == ("Forecasts", "application/json")
    price = json.loads(found.price)
    asked = v2_request()["paymentRequirements"]
    assert {name: price[name] for name in ("scheme", "network", "amount", "payTo")} == {
        name: asked[name] for name in ("scheme", "network", "amount", "payTo")
    }
    assert price["asset"].lower() == asked["asset"].lower()


def test_an_mcp_tool_is_listed_by_its_name() -> None:
    asked = {"type": "mcp", "toolName": "get_weather", "inputSchema": {"type": "object"}, "transport": "sse"}
    found = read(offered({"info": {"input": asked}, "schema": {}}))
    assert (found.kind, found.operation) == ("mcp", "get_weather")


@pytest.mark.parametrize(
    ("url", "template", "resource"),
    [
        (URL + "?city=Paris#top", None, URL),
        ("HTTPS://API.Weather.Example:443/forecast", None, URL),
        ("http://api.weather.example:8080/a/b", None, "http://api.weather.example:8080/a/b"),
        ("https://api.weather.example./forecast", None, URL),
        ("https://api.weather.example/users/7", "/users/:id", "https://api.weather.example/users/:id"),
        ("https://api.weather.example/users/7", "/../admin", "https://api.weather.example/users/7"),
        ("https://api.weather.example/users/7", "/%2e%2e/admin", "https://api.weather.example/users/7"),
        ("https://api.weather.example/users/7", "/%25252e%25252e/x", "https://api.weather.example/users/7"),
        ("https://api.weather.example/users/7", "//evil.example/x", "https://api.weather.example/users/7"),
        ("https://api.weather.example/users/7", "https://evil.example", "https://api.weather.example/users/7"),
        ("https://api.weather.example/users/7", 7, "https://api.weather.example/users/7"),
        ("https://8.8.8.8/x", None, "https://8.8.8.8/x"),
        ("https://[2001:4860:4860::8888]/x", None, "https://[2001:4860:4860::8888]/x"),
        ("https://xn--bcher-kva.example/x", None, "https://xn--bcher-kva.example/x"),
    ],
)
def test_one_resource_has_one_name(url: str, template: object, resource: str) -> None:
    bazaar = declared() if template is None else declared(routeTemplate=template)
    assert read(offered(bazaar, url=url)).resource == resource


PRIVATE = [
    "localhost",
    "a.localhost",
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "10.0.0.7",
    "192.168.1.1",
    "172.16.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104
    "[::1]",
    "[fd00::1]",
    "[fe80::1]",
    "[::ffff:127.0.0.1]",
    "intranet",
    "db.internal",
    "printer.local",
    "router.lan",
    "metadata.google.internal",
    "nas.home.arpa",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_hosts_that_nobody_outside_can_reach_are_not_listed(host: str) -> None:
    assert "public host" in refused(offered(url=f"https://{host}/x"))


def test_a_local_catalogue_lists_local_hosts() -> None:
    assert read(offered(url="http://127.0.0.1:4021/x"), private_hosts=True).resource == "http://127.0.0.1:4021/x"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://api.weather.example/x",
        "javascript:alert(1)",
        "//api.weather.example/x",
        "api.weather.example/x",
        "https:///x",
        "https://user:secret@api.weather.example/x",
        "https://api.weather.example:port/x",
        "https://api.weather.example:99999/x",
        "https://api.wéather.example/x",
        "https://api.weather.example/" + "x" * 2048,
        "https://api.weather.example/a b",
        "https://[::1",
        "",
    ],
)
def test_what_is_no_plain_web_address_is_not_listed_and_not_quoted(url: str) -> None:
    said = refused(offered(url=url))
    assert said.startswith("resource.url: expected")
    assert "secret" not in said


@pytest.mark.parametrize(
    ("bazaar", "where"),
    [
        ({}, "info.input"),
        ({"info": []}, "info.input"),
        ({"info": {"input": {"type": "ftp"}}}, "info.input.type"),
        ({"info": {"input": {"type": "http"}}, "schema": {}}, "info.input.method"),
        ({"info": {"input": {"type": "http", "method": "TRACE"}}, "schema": {}}, "info.input.method"),
        ({"info": {"input": {"type": "http", "method": ["GET"]}}, "schema": {}}, "info.input.method"),
        ({"info": {"input": {"type": "http", "method": "POST"}}, "schema": {}}, "info.input.bodyType"),
        ({"info": {"input": {"type": "http", "method": "GET", "bodyType": "json"}}, "schema": {}}, "info.input.bodyType"),
        ({"info": {"input": {"type": "http", "method": "POST", "bodyType": {}}}, "schema": {}}, "info.input.bodyType"),
        ({"info": {"input": {"type": "mcp", "toolName": "", "inputSchema": {}}}, "schema": {}}, "info.input.toolName"),
        ({"info": {"input": {"type": "mcp", "toolName": "x" * 129, "inputSchema": {}}}, "schema": {}}, "info.input.toolName"),
        ({"info": {"input": {"type": "mcp", "toolName": "x"}}, "schema": {}}, "info.input.inputSchema"),
        ({"info": {"input": {"type": "mcp", "toolName": "x", "inputSchema": {}, "transport": {}}}, "schema": {}}, "info.input.transport"),
        ({"info": {"input": {"type": "http", "method": "GET"}}}, "schema"),
        ({"info": {"input": {"type": "http", "method": "GET"}}, "schema": "https://evil.example/schema"}, "schema"),
    ],
)
def test_what_has_not_the_shape_is_not_listed(bazaar: Tree, where: str) -> None:
    assert refused(offered(bazaar)).startswith(where)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://evil.example/s.json"},
        {"properties": {"a": {"items": [{"$ref": "file:///etc/passwd"}]}}},
        {"$id": "https://evil.example/"},
        {"$defs": {"a": {"$dynamicRef": "http://169.254.169.254/"}}},
        {"$schema": "https://evil.example/draft"},
    ],
)
def test_a_schema_that_leads_out_is_not_listed(schema: Tree) -> None:
    assert refused(offered(declared(schema=schema))).startswith("schema:")


def test_a_schema_may_lead_into_itself_and_name_its_draft() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$id": "#a", "properties": {"$ref": {"type": "string"}, "id": {"type": "string"}}}},
    }
    assert read(offered(declared(schema=schema)))


def test_too_much_is_not_listed() -> None:
    assert "at most 16384 bytes" in refused(
        offered(declared(info={"input": {"type": "http", "method": "GET", "queryParams": {"x": "y" * 17_000}}}))
    )


def test_service_data_is_kept_where_it_is_sound() -> None:
    found = read(
        offered(
            description="  long\n\ttext\x07 " + "d" * 2000,
            serviceName="Weather & Co",
            tags=["data", " Data ", "x" * 33, 7, "a", "b", "c", "d", "e"],
            iconUrl="https://weather.example/i.png",
        )
    )
    entry = json.loads(found.entry)
    assert entry["serviceName"] == "Weather & Co"
    assert entry["tags"] == ["data", "a", "b", "c", "d"]
    assert entry["iconUrl"] == "https://weather.example/i.png"
    assert entry["description"].startswith("long text ddd")
    assert len(entry["description"]) <= 1000
    assert "Weather & Co" in found.words
    assert "forecast" in found.words


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("serviceName", "x" * 33),
        ("serviceName", "Wétter"),
        ("serviceName", {}),
        ("tags", "data"),
        ("tags", {}),
        *[("iconUrl", f"https://{host}/i.png") for host in PRIVATE],
        ("iconUrl", "https://8.8.8.8/i.png"),
        ("iconUrl", "https://user@weather.example/i.png"),
        ("iconUrl", "data:image/png;base64,AAAA"),
        ("iconUrl", "https://weather.example/" + "i" * 2048),
        ("iconUrl", 7),
        ("mimeType", None),
    ],
)
def test_service_data_that_is_not_sound_is_left_out(name: str, value: object) -> None:
    assert name not in json.loads(read(offered(**{name: value})).entry)


@pytest.mark.parametrize("bazaar", ["text", 7, ["a"], None, True])
def test_an_extension_of_another_shape_offers_nothing_and_harms_no_payment(bazaar: object) -> None:
    tree = v2_request()
    tree["paymentPayload"]["extensions"] = {"bazaar": bazaar}
    assert decoded(tree).offer is None


def test_a_payment_without_the_extension_offers_nothing() -> None:
    assert decoded(v2_request()).offer is None
    assert decoded(v1_request()).offer is None


# --- version 1 ---


def offered_v1(schema: object, **changes: Any) -> Payment:
    tree = v1_request()
    tree["paymentRequirements"] |= {"outputSchema": schema, "resource": URL, "description": "Forecasts", "mimeType": "text/plain"} | changes
    return decoded(tree)


@pytest.mark.parametrize("name", ["queryParams", "query_params", "query", "params"])
def test_version_1_says_it_in_its_output_schema(name: str) -> None:
    schema = {"input": {"type": "http", "method": "get", "discoverable": True, name: {"city": "string"}}, "output": {"sky": "string"}}
    found = read(offered_v1(schema))
    assert (found.operation, found.version, found.resource) == ("GET", 1, URL)
    info = json.loads(found.entry)["extensions"]["bazaar"]["info"]
    assert info == {
        "input": {"type": "http", "method": "GET", "queryParams": {"city": "string"}},
        "output": {"type": "json", "example": {"sky": "string"}},
    }
    price = json.loads(found.price)
    assert (price["network"], price["maxAmountRequired"]) == ("base-sepolia", v1_request()["paymentRequirements"]["maxAmountRequired"])
    assert (price["resource"], price["description"], price["mimeType"]) == (URL, "Forecasts", "text/plain")


@pytest.mark.parametrize("name", ["bodyFields", "body_fields", "bodyParams", "body", "data", "properties"])
def test_version_1_has_bodies_under_many_names(name: str) -> None:
    schema = {"input": {"type": "http", "method": "POST", name: {"city": "string"}, "headers": {"X-A": "b"}}}
    told = json.loads(read(offered_v1(schema)).entry)["extensions"]["bazaar"]["info"]["input"]
    assert told == {"type": "http", "method": "POST", "bodyType": "json", "body": {"city": "string"}, "headers": {"X-A": "b"}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"input": []},
        {"input": {"type": "mcp"}},
        {"input": {"type": "http", "method": "GET", "discoverable": False}},
        {"input": {"type": "http", "method": "GET", "discoverable": "no"}},
        {"type": "object", "properties": {}},
    ],
)
def test_version_1_that_is_not_for_listing_offers_nothing(schema: Tree) -> None:
    assert read_listing(offered_v1(schema), entry_bytes_max=16_384, private_hosts=False) is None


def test_an_output_schema_of_another_shape_harms_no_payment() -> None:
    for schema in ("text", 7, [], None):
        assert offered_v1(schema).offer is None
    assert refused(offered_v1({"input": {"type": "http", "method": 7}})).startswith("info.input.method")

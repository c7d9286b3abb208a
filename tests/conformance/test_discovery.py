"""The official clients have a resource listed by paying for it, hear what became of it, and find it in the catalogue."""

import asyncio
import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from eth_utils.address import to_checksum_address
from x402.extensions.bazaar import declare_discovery_extension, with_bazaar
from x402.extensions.bazaar.facilitator_client import ListDiscoveryResourcesParams, SearchDiscoveryResourcesParams
from x402.http import FacilitatorConfig, HTTPFacilitatorClientSync
from x402.http.facilitator_client_base import AuthHeaders
from x402.schemas import PaymentPayload, PaymentRequirements

from facilitator.devstack.buyer import Buyer, requirements
from facilitator.devstack.install import node_program
from facilitator.devstack.stack import Anvil
from tests.fixtures.service import ServeProcess

HERE: Final = Path(__file__).parent
URL: Final = "https://api.weather.example/forecast/paris"


class Keys:
    """An API key for every route, as an operator hands it to a seller."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def get_auth_headers(self) -> AuthHeaders:
        return AuthHeaders(verify=self._headers, settle=self._headers, supported=self._headers, bazaar={})


def paid(buyer: Buyer, **changes: Any) -> tuple[PaymentPayload, PaymentRequirements]:
    asked = requirements(2, pay_to=to_checksum_address("0x" + secrets.token_hex(20)), amount_atomic=1_000)
    bazaar: dict[str, Any] = declare_discovery_extension(input={"days": 3})["bazaar"]
    bazaar["info"]["input"]["method"] = "GET"
    payload = buyer.pay(2, asked) | {
        "extensions": {"bazaar": bazaar | {"routeTemplate": "/forecast/:city"}},
        "resource": {"url": URL, "description": "Weather forecasts for cities", "serviceName": "Weather", "tags": ["climate"]} | changes,
    }
    return PaymentPayload.model_validate(payload), PaymentRequirements.model_validate(asked)


async def test_official_clients_list_search_and_hear_of_it(
    tmp_path: Path,
    database_url: str,
    chain: Anvil,
    new_buyer: Callable[..., Awaitable[Buyer]],
    new_relayer: Callable[..., Awaitable[Any]],
) -> None:
    buyer, relayer = await new_buyer(), await new_relayer()
    service = ServeProcess(
        tmp_path / "service",
        database_url=database_url,
        rpc_url=chain.rpc_url,
        relayer_keys=[relayer.key.hex()],
        settings={"discovery": {"flush_s": 0.05, "rate_burst": 1000}},
    )
    async with service:
        client = HTTPFacilitatorClientSync(FacilitatorConfig(url=service.base_url, auth_provider=Keys(service.headers)))  # type: ignore[arg-type]
        reader = with_bazaar(HTTPFacilitatorClientSync(FacilitatorConfig(url=service.base_url)))  # type: ignore[arg-type]

        def story() -> None:
            assert client.get_supported().extensions == ["payment-identifier", "bazaar"]
            verified = client.verify(*paid(buyer))
            assert (verified.is_valid, verified.extension_responses) == (True, {"bazaar": {"status": "processing"}})
            payload, asked = paid(buyer)
            settled = client.settle(payload, asked)
            assert (settled.success, settled.extension_responses) == (True, {"bazaar": {"status": "processing"}})
            hidden = client.verify(*paid(buyer, url="http://10.0.0.7/forecast"))
            assert hidden.is_valid is True
            assert hidden.extension_responses is not None
            assert hidden.extension_responses["bazaar"]["status"] == "rejected"
            bazaar = reader.extensions.bazaar
            end = time.monotonic() + 30
            while "listings.added" not in service.logs and time.monotonic() < end:
                time.sleep(0.02)
            listed = bazaar.list_resources(ListDiscoveryResourcesParams(type="http", limit=1000))
            assert (listed.pagination.limit, listed.pagination.offset, listed.pagination.total) == (100, 0, 1)
            [item] = listed.items
            assert (item.resource, item.type, item.x402_version) == ("https://api.weather.example/forecast/:city", "http", 2)
            assert item.accepts is not None
            assert [price["payTo"] for price in item.accepts] == [asked.pay_to]
            assert (item.service_name, item.tags) == ("Weather", ["climate"])
            assert item.extensions is not None
            assert item.extensions["bazaar"]["info"]["input"]["queryParams"] == {"days": 3}
            for found, number in (("forecast", 1), ("city weather APIs", 1), ("CLIMATE", 1), ("poetry", 0)):
                assert len(bazaar.search(SearchDiscoveryResourcesParams(query=found)).resources) == number, found
            for narrowed in ({"pay_to": asked.pay_to}, {"scheme": "exact"}, {"network": "eip155:84532"}, {"extensions": "bazaar"}):
                assert bazaar.list_resources(ListDiscoveryResourcesParams(**narrowed)).pagination.total == 1, narrowed
            for narrowed in (
                {"pay_to": buyer.address},
                {"scheme": "upto"},
                {"network": "eip155:8453"},
                {"extensions": "x"},
                {"type": "mcp"},
            ):
                assert bazaar.list_resources(ListDiscoveryResourcesParams(**narrowed)).pagination.total == 0, narrowed

        with client, reader:
            await asyncio.to_thread(story)
        read = await asyncio.to_thread(typescript, tmp_path, service.base_url)
    assert [item["resource"] for item in read["listed"]["items"]] == ["https://api.weather.example/forecast/:city"]
    assert read["listed"]["pagination"] == {"limit": 100, "offset": 0, "total": 1}
    assert [item["quality"]["settledPayments"] for item in read["found"]["resources"]] == [1]
    assert read["found"]["pagination"] == {"limit": 5, "cursor": None}


def typescript(directory: Path, url: str) -> dict[str, Any]:
    program = shutil.copy(HERE / "clients" / "discovery.mjs", directory)
    (directory / "node_modules").symlink_to(HERE / "npm" / "node_modules", target_is_directory=True)
    done = subprocess.run(
        [node_program(), program],
        env={"FACILITATOR_URL": url, "QUERY": "forecasts"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read

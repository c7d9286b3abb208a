"""The official clients sign a token for each request through their own hooks, and one that is sent again opens nothing."""

import asyncio
import json
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.facilitator_client_base import AuthHeaders

from facilitator.api.tokens import parse_public_key
from facilitator.devstack.install import node_program
from facilitator.store import administration, tenants
from facilitator.store.administration import NotPossible
from facilitator.store.db import Db
from tests.fixtures.vectors import v2_request
from tests.integration.api.test_limits import House

PRIVATE = Ed25519PrivateKey.generate()
PUBLIC = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
HERE = Path(__file__).parent


@pytest_asyncio.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    """A service whose tenant has a key that signs."""
    db = await Db.connect(database_url, connections_max=4)
    house = House(db)
    house.key = tenants.signing_key(parse_public_key(PUBLIC))
    await administration.create_key(db, "cli me", house.key, "shop", ("verify", "settle"), None, make_tenant=True)
    await house.server.start()
    yield house
    await house.server.stop()
    await house.desk.deliveries.finish()
    await db.close()


def signed(house: House, method: str, path: str) -> dict[str, str]:
    """The headers of one request, as CDP's clients make them."""
    now = int(time.time())
    claims = {"sub": house.key.key_id, "iss": "cdp", "uris": [f"{method} {house.host}{path}"], "nbf": now, "exp": now + 120}
    token = jwt.encode(claims, PRIVATE, algorithm="EdDSA", headers={"kid": house.key.key_id, "nonce": secrets.token_hex(16)})
    return {"Authorization": f"Bearer {token}"}


async def post(house: House, path: str, headers: dict[str, str]) -> int:
    async with aiohttp.ClientSession() as session, session.post(f"http://{house.host}{path}", json=v2_request(), headers=headers) as answer:
        return answer.status


async def test_the_python_client_s_auth_provider_opens_verify_and_settle(house: House) -> None:
    class Provider:
        def get_auth_headers(self) -> AuthHeaders:
            return AuthHeaders(verify=signed(house, "POST", "/verify"), settle=signed(house, "POST", "/settle"))

    client = HTTPFacilitatorClient(FacilitatorConfig(url=f"http://{house.host}", auth_provider=Provider()))
    body = v2_request()
    payload, requirements = (json.dumps(body[name]).encode() for name in ("paymentPayload", "paymentRequirements"))
    try:
        for _ in range(2):
            assert (await client.verify_from_bytes(payload, requirements)).is_valid
            assert (await client.settle_from_bytes(payload, requirements)).success
    finally:
        await client.aclose()
    assert house.engine.asked == 4


async def test_the_typescript_client_s_create_auth_headers_opens_verify_and_settle(house: House, tmp_path: Path) -> None:
    private = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    program = shutil.copy(HERE / "clients" / "auth_headers.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(HERE / "npm" / "node_modules", target_is_directory=True)
    node = await asyncio.create_subprocess_exec(
        node_program(),
        program,
        f"http://{house.host}",
        house.key.key_id,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(node.communicate(json.dumps({"key": private, "request": v2_request()}).encode()), 120)
    assert node.returncode == 0, error.decode()
    told: dict[str, Any] = json.loads(out)
    assert (told["verified"]["isValid"], told["settled"]["success"]) == (True, True)


async def test_a_token_opens_once_and_for_its_own_request_only(house: House) -> None:
    headers = signed(house, "POST", "/settle")
    assert await post(house, "/verify", headers) == 401
    assert await post(house, "/settle", headers) == 200
    assert await post(house, "/settle", headers) == 401, "a replay"
    assert await post(house, "/settle", signed(house, "POST", "/settle")) == 200
    assert await post(house, "/settle", {"Authorization": f"Bearer fk_{house.key.key_id}_{'s' * 43}"}) == 401, "there is no secret"
    await administration.revoke_key(house.db, "cli me", house.key.key_id)
    await house.access._refresh()
    assert await post(house, "/settle", signed(house, "POST", "/settle")) == 401


async def test_a_key_with_a_secret_takes_no_token_and_one_that_signs_is_not_rotated_to_a_secret(house: House) -> None:
    signing, house.key = house.key, tenants.generate_key()
    await administration.create_key(house.db, "cli me", house.key, "shop", ("settle",), None)
    assert await post(house, "/settle", signed(house, "POST", "/settle")) == 401
    with pytest.raises(NotPossible, match="signs requests"):
        await administration.rotate_key(house.db, "cli me", tenants.generate_key(), signing.key_id, timedelta(hours=1))

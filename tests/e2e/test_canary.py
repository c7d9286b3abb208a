"""Secrets are planted wherever one may stand; then the service lives a full life and says none: in no log line, answer or output.

Its log runs at level debug. What it went through (payments, refusals, failing endpoints and signers, a bug with its traceback, a
kill) is held against its log first, so that silence cannot pass for discretion.
"""

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import asyncpg
from eth_account import Account
from eth_account.signers.local import LocalAccount

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer, facilitator_request, requirements
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from tests.fixtures.house import eventually
from tests.fixtures.key_services import KeyServices, serving
from tests.fixtures.service import ServeProcess

PAY_TO: Final = "0x2222222222222222222222222222222222222222"


def canary(name: str) -> str:
    """A secret that nothing else says."""
    return "c4n4ry" + hashlib.sha256(name.encode()).hexdigest()[:26]


class Canaries:
    """Everything that must not be said."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}

    def plant(self, name: str, value: str | None = None) -> str:
        self.planted[name] = value or canary(name)
        return self.planted[name]

    def heard_in(self, text: str) -> set[str]:
        """Names of those that are in a text, as they are, in any case, or in base64."""
        low = text.lower()
        return {
            name
            for name, value in self.planted.items()
            if value.lower() in low or base64.b64encode(value.encode()).decode().rstrip("=")[:-2] in text
        }


class Life:
    """The service, everything it said, and how callers ask it."""

    def __init__(self, service: ServeProcess, canaries: Canaries, session: aiohttp.ClientSession) -> None:
        self.service = service
        self.canaries = canaries
        self.said: list[str] = []
        self.session = session

    async def ask(self, method: str, path: str, *, body: object = None, **headers: str) -> dict[str, Any]:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("Authorization", self.service.headers["Authorization"])
        url = self.service.base_url + path
        async with self.session.request(method, url, data=data, headers={"Content-Type": "application/json", **named}) as response:
            text = await response.text()
        self.said += [text, *response.headers.values()]
        return json.loads(text) if text.startswith("{") else {}

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "facilitator", *arguments, "--config", str(self.service.config_path)],
            env=self.service._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.said += [done.stdout, done.stderr]
        return done.stdout + done.stderr

    def events(self) -> set[object]:
        return {event.get("event") for event in self.service.log_events}


def keystore(canaries: Canaries, path: Path, account: LocalAccount) -> str:
    password = canaries.plant("keystore password")
    path.write_text(json.dumps(Account.encrypt(account.key, password, iterations=2)))
    canaries.plant("keystore key", bytes(account.key).hex())
    return f"keystore:{path}?password=env:KEYSTORE_PASSWORD"


async def test_no_planted_secret_is_ever_said(
    tmp_path: Path,
    database_url: str,
    chain: Anvil,
    token: Token,
    new_relayer: Callable[..., Awaitable[LocalAccount]],
    new_buyer: Callable[..., Awaitable[Buyer]],
) -> None:
    canaries = Canaries()
    plain, kept, held = await new_relayer(), await new_relayer(), dev_account("canary-signer", 1)
    await token.set_gas_money(held.address, 10**18)
    canaries.plant("relayer key", bytes(plain.key).hex())
    services = KeyServices(bytes(held.key))
    async with serving(services) as signer_url, aiohttp.ClientSession() as session:
        port = chain.rpc_url.rpartition(":")[2].strip("/")
        user = canaries.plant("RPC password")
        environment = {
            "KEYSTORE_PASSWORD": canary("keystore password"),
            "SIGNER_TOKEN": canaries.plant("signer token"),
            "CLIENT_SECRET": canaries.plant("OIDC client secret"),
            "CANARY_KEY": canaries.plant("canary account's key", bytes(dev_account("canary-payer", 1).key).hex()),
            "AWS_SECRET_ACCESS_KEY": canaries.plant("AWS secret"),
            "RPC_1": f"http://rpc:{user}@127.0.0.1:{port}/?key={canaries.plant('RPC key')}",
            "RPC_2": f"http://rpc:{canaries.plant('other RPC password')}@127.0.0.1:1/v2/{canaries.plant('RPC path')}",
        }
        service = ServeProcess(
            tmp_path,
            database_url=database_url.replace("postgres@", f"postgres:{quote(canaries.plant('database password'))}@"),
            rpc_url=chain.rpc_url,
            relayer_keys=["0x" + bytes(plain.key).hex()],
            environment=environment,
            settings={
                "log": {"level": "debug", "format": "json"},
                "access": {"jwt_bases": ["127.0.0.1"]},
                "console": {"listen": "127.0.0.1:0"},
                "console.oidc": {"issuer": "http://127.0.0.1:1", "client_id": "console", "client_secret": "env:CLIENT_SECRET"},
                "settlement": {"lease_ttl_s": 2.0, "lease_renew_s": 0.4, "lease_trust_s": 1.5},
                "network": {
                    "rpc_urls": ["env:RPC_2", "env:RPC_1"],  # the first one is dead
                    "canary": "env:CANARY_KEY",
                    "relayers": [
                        "env:RELAYER_KEY_1",
                        keystore(canaries, tmp_path / "relayer.json", kept),
                        f"web3signer:{signer_url}/web3signer?address={held.address}&token=env:SIGNER_TOKEN",
                    ],
                },
            },
        )
        life = Life(service, canaries, session)
        async with service:
            canaries.plant("API key", service.api_key.split("_", 2)[2])
            await live(life, services, await new_buyer())
            await sign_in(life)
            await break_down(life, database_url, await new_buyer())
            service.kill()
            service.spawn()
            await eventually(lambda: crashed_again(life), "the next start to fail at the schema", timeout_s=60)
    assert canaries.heard_in(" ".join(environment.values())) >= {"keystore password", "RPC path"}, "the search itself"
    assert life.events() >= {"request.answered", "request.crashed", "settlement.resolved", "relayer.ready", "server.started"}
    assert "Traceback" in service.logs
    assert "seen-in-the-log" in service.logs, "what is no secret is said"
    assert canaries.heard_in(service.logs) == set()
    for text in life.said:
        assert canaries.heard_in(text) == set(), text[:300]


async def sign_in(life: Life) -> None:
    """At the console, by a link that is none and by a provider that is not there, with secrets in address and cookie."""
    (listen,) = {str(event["listen"]) for event in life.service.log_events if event["event"] == "console.started"}
    headers = {"Cookie": f"session={life.canaries.plant('session cookie')}"}
    for path in (
        f"/sign-in?link={life.canaries.plant('one-time link')}",
        "/sign-in/oidc",
        "/sign-in/callback?code=x&state=y",
        "/settlements",
    ):
        async with life.session.get(f"http://{listen}{path}", headers=headers) as response:
            life.said.append(await response.text())


async def live(life: Life, services: KeyServices, buyer: Buyer) -> None:
    """Payments, repeats, refusals and rubbish, with secrets in every header and body."""
    canaries = life.canaries
    for command in ("config", "print"), ("doctor",):
        assert life.run(*command)
    for version in (2, 1):
        asked = requirements(version, pay_to=PAY_TO, amount_atomic=1000)
        payment = buyer.pay(version, asked)
        canaries.plant(f"signature of v{version}", payment["payload"]["signature"][2:66])
        body = facilitator_request(payment, asked)
        assert (await life.ask("POST", "/verify", body=body))["isValid"] is True
        assert (await life.ask("POST", "/settle", body=body, X_Request_Id="seen-in-the-log"))["success"] is True
        assert (await life.ask("POST", "/settle", body=body))["errorReason"] == "duplicate_settlement"
        asked = requirements(version, pay_to=PAY_TO, amount_atomic=1000)
        forged = buyer.pay(version, asked)
        forged["payload"]["signature"] = "0x" + hashlib.sha256(b"r").hexdigest() + "11" * 32 + "1b"
        canaries.plant("forged signature", hashlib.sha256(b"r").hexdigest())
        assert (await life.ask("POST", "/verify", body=facilitator_request(forged, asked)))["isValid"] is False
        told = {**body, "privateKey": canaries.plant("key in a body"), "password": canaries.plant("password in a body")}
        await life.ask("POST", "/verify", body=told)
        told["paymentPayload"] = {**told["paymentPayload"], "payload": {"secret": canaries.plant("secret in a payload")}}
        await life.ask("POST", "/settle", body=told)
        await life.ask("POST", "/verify", body=b'{"token":"' + canaries.plant("token in no JSON").encode() + b'"')
    jwt = ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in ('{"alg":"EdDSA"}', '{"sub":"x"}', "0" * 40))
    for name, headers in {
        "wrong key": {"Authorization": "Bearer fk_abcdefghijkl_" + canaries.plant("wrong key") + "x" * 11},
        "other bearer": {"Authorization": "Bearer " + canaries.plant("other bearer")},
        "basic": {"Authorization": "Basic " + canaries.plant("basic")},
        "jwt": {"Authorization": "Bearer " + canaries.plant("jwt", jwt)},
        "second key": {"X_API_Key": canaries.plant("second key")},
        "cookie": {"Cookie": "session=" + canaries.plant("cookie")},
        "proxy": {"Proxy_Authorization": "Bearer " + canaries.plant("proxy")},
    }.items():
        for method, path in (("POST", "/settle"), ("GET", "/settlements"), ("GET", "/nowhere")):
            await life.ask(method, path, **headers)
        assert name in canaries.planted
    await life.ask("GET", "/settlements?token=" + canaries.plant("token in a query"))
    await life.ask("GET", "/settlements/" + canaries.plant("token in a path"))
    services.misdeed = "broken"
    asked = requirements(2, pay_to=PAY_TO, amount_atomic=1000)
    many = [facilitator_request(buyer.pay(2, asked), asked) for _ in range(6)]  # one of three relayers has this signer
    await asyncio.gather(*(life.ask("POST", "/settle", body=body) for body in many))
    services.misdeed = None


async def break_down(life: Life, database_url: str, buyer: Buyer) -> None:
    """Connections of the database end, then a table is gone under the service's feet."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
        asked = requirements(2, pay_to=PAY_TO, amount_atomic=1000)
        body = facilitator_request(buyer.pay(2, asked), asked)
        await life.ask("POST", "/settle", body=body)
        await connection.execute("alter table settlement rename to gone")
    finally:
        await connection.close()
    await eventually(lambda: crashes(life, body), "a bug", timeout_s=60)


async def crashes(life: Life, body: object) -> bool:
    await life.ask("POST", "/settle", body=body)
    await life.ask("GET", "/settlements")
    return "request.crashed" in life.events()


async def crashed_again(life: Life) -> bool:
    """It starts, and meets what is broken."""
    try:
        await life.ask("GET", "/settlements")
    except aiohttp.ClientError:
        return not life.service.running
    return True

"""The commands as an operator types them: what they print, where, and the status they end with."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from eth_account.signers.local import LocalAccount

from facilitator.devstack.stack import Anvil, Postgres
from tests.fixtures.console import open_room
from tests.fixtures.service import ServeProcess, free_port
from tests.fixtures.waiting import PATIENCE_S

KEY = "0x" + "7c" * 32
CONFIG = """
[server]
listen = "127.0.0.1:{port}"
[database]
url = "env:DATABASE_URL"
migrate = {migrate}
[[networks]]
id = "eip155:84532"
rpc_urls = ["{rpc_url}"]
relayers = ["env:RELAYER_KEY"]
"""


class Shell:
    """Runs `facilitator` with one configuration."""

    def __init__(self, directory: Path, database_url: str, rpc_url: str = "http://127.0.0.1:1", *, migrate: bool = False) -> None:
        self.port = free_port()
        self.file = directory / "facilitator.toml"
        self.file.write_text(CONFIG.format(port=self.port, rpc_url=rpc_url, migrate=str(migrate).lower()), "utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FACILITATOR")}
        self.environment = inherited | {"DATABASE_URL": database_url, "RELAYER_KEY": KEY, "FACILITATOR_CONFIG": str(self.file)}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "facilitator", *arguments]
        done = subprocess.run(
            command,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert KEY[2:] not in done.stdout + done.stderr
        return done

    def spawn(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "facilitator", "serve"]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    return Shell(tmp_path, database_url)


@pytest.fixture
def nowhere() -> str:
    """A database URL that leads to nobody."""
    return f"postgresql://postgres@127.0.0.1:{free_port()}/none"


async def status_of(shell: Shell, path: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{shell.port}{path}") as answer:
        return answer.status


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + timeout_s
    while not await holds(condition):
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.05)


async def holds(condition: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await condition()
    except aiohttp.ClientError:
        return False


async def test_keys_are_made_listed_and_revoked(shell: Shell) -> None:
    def story() -> None:
        made = shell.run("keys", "create", "--tenant", "shop", "--scopes", "verify,settle", "--expires", "90d")
        key = made.stdout.strip()
        assert (made.returncode, key[:3]) == (0, "fk_")
        assert "not shown again" in made.stderr
        assert key not in made.stderr
        as_json = json.loads(shell.run("keys", "create", "--tenant", "shop", "--scopes", "read", "--json").stdout)
        assert (as_json["tenant"], as_json["scopes"]) == ("shop", ["read"])
        listed = json.loads(shell.run("keys", "list", "--json").stdout)
        assert [row["id"] for row in listed] == [key[3:15], as_json["id"]]
        assert listed[0]["expires"] is not None
        table = shell.run("keys", "list", "--tenant", "shop").stdout
        assert "verify,settle" in table
        assert key[16:] not in table
        assert shell.run("keys", "revoke", key[3:15]).stdout == f"revoked {key[3:15]} of tenant shop\n"
        nobody = shell.run("tenants", "set", "nobody", "--confirm-level", "safe")
        assert (nobody.returncode, "there is no tenant nobody" in nobody.stderr) == (1, True)
        gone = shell.run("keys", "revoke", "zzzzzzzzzzzz")
        assert (gone.returncode, "keys list" in gone.stderr) == (1, True)

    await asyncio.to_thread(story)


async def test_a_key_is_rotated_and_both_work_for_the_overlap(shell: Shell) -> None:
    def story() -> None:
        made = json.loads(shell.run("keys", "create", "--tenant", "shop", "--scopes", "settle", "--expires", "90d", "--json").stdout)
        rotated = shell.run("keys", "rotate", made["id"], "--overlap", "2h")
        assert (rotated.returncode, "not shown again" in rotated.stderr) == (0, True)
        new = rotated.stdout.strip()
        assert new not in rotated.stderr
        old_row, new_row = json.loads(shell.run("keys", "list", "--json").stdout)
        assert (old_row["id"], new_row["id"], new_row["replaces"]) == (made["id"], new[3:15], made["id"])
        assert new_row["scopes"] == ["settle"]
        left = datetime.fromisoformat(old_row["expires"]) - datetime.now(UTC)
        assert timedelta(hours=1, minutes=55) < left <= timedelta(hours=2)
        assert datetime.fromisoformat(new_row["expires"]) - datetime.now(UTC) > timedelta(days=89)
        again = shell.run("keys", "rotate", made["id"])
        assert (again.returncode, "was replaced before" in again.stderr) == (1, True)
        assert shell.run("keys", "rotate", "zzzzzzzzzzzz").returncode == 1

    await asyncio.to_thread(story)


async def test_a_key_that_signs_is_made_from_its_public_half_alone(shell: Shell, tmp_path: Path) -> None:
    pair = Ed25519PrivateKey.generate()
    public, private = tmp_path / "public.pem", tmp_path / "private.pem"
    public.write_bytes(pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    private.write_bytes(pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def story() -> None:
        create = ("keys", "create", "--tenant", "shop", "--scopes", "settle", "--public-key")
        made = shell.run(*create, str(public))
        assert (made.returncode, len(made.stdout.strip())) == (0, 12)
        [row] = json.loads(shell.run("keys", "list", "--json").stdout)
        assert (row["id"], row["publicKey"]) == (made.stdout.strip(), public.read_text("utf-8"))
        wrong = shell.run(*create, str(private))
        assert (wrong.returncode, "never the private one" in wrong.stderr) == (2, True)

    await asyncio.to_thread(story)


async def test_tenants_are_made_limited_shown_and_disabled_and_each_change_is_on_record(shell: Shell, database_url: str) -> None:
    def story() -> None:
        assert shell.run("tenants", "create", "shop").returncode == 0
        assert shell.run("tenants", "create", "shop").returncode == 1
        changed = shell.run("tenants", "set", "shop", "--confirm-level", "finalized", "--accept-external", "yes")
        told = json.loads(changed.stdout)
        assert (changed.returncode, told["confirmLevel"], told["acceptExternal"]) == (0, "finalized", True)
        assert json.loads(shell.run("tenants", "set", "shop", "--confirm-level", "default").stdout)["confirmLevel"] is None
        limits = ("--rate", "/settle=10:20", "--rate", "/verify=2.5:5", "--settlements-max", "50", "--pay-to", "0x" + "AB" * 20)
        assert json.loads(shell.run("tenants", "set", "shop", *limits, "--amount-min", "1000").stdout)["limits"] == {
            "rates": {"/settle": {"perSecond": 10.0, "burst": 20}, "/verify": {"perSecond": 2.5, "burst": 5}},
            "settlementsMax": 50,
            "payTo": ["0x" + "ab" * 20],
            "amountMin": "1000",
        }
        ended = json.loads(shell.run("tenants", "set", "shop", "--rate", "/verify=none", "--pay-to", "none").stdout)["limits"]
        assert ended == {"rates": {"/settle": {"perSecond": 10.0, "burst": 20}}, "settlementsMax": 50, "amountMin": "1000"}
        wrong = shell.run("tenants", "set", "shop", "--networks", "base")
        assert (wrong.returncode, "CAIP-2" in wrong.stderr) == (2, True)
        assert json.loads(shell.run("tenants", "disable", "shop").stdout)["disabled"] is not None
        assert "shop" in shell.run("tenants", "list").stdout
        assert [row["id"] for row in json.loads(shell.run("tenants", "list", "--json").stdout)] == ["shop"]
        assert json.loads(shell.run("tenants", "enable", "shop").stdout) == json.loads(shell.run("tenants", "show", "shop").stdout)

    await asyncio.to_thread(story)
    connection = await asyncpg.connect(database_url)
    try:
        trail = [tuple(row) for row in await connection.fetch("select kind, actor, detail from audit_event order by event_id")]
    finally:
        await connection.close()
    assert [kind for kind, _, _ in trail] == ["tenant_created"] + ["tenant_changed"] * 6
    assert all(actor.startswith("cli ") for _, actor, _ in trail)
    detail = json.loads(trail[4][2])
    assert (detail["subject"], "payTo" in detail["before"]["limits"], "payTo" in detail["after"]["limits"]) == ("shop", True, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "create", "--tenant", "Shop!", "--scopes", "read"), "expected a tenant id"),
        (("keys", "create", "--tenant", "shop", "--scopes", "reed"), "is none of verify"),
        (("keys", "create", "--tenant", "shop", "--scopes", "read", "--expires", "2020-01-01T00:00:00Z"), "this time is past"),
        (("keys", "create", "--tenant", "shop", "--scopes", "read", "--expires", "2099-01-01"), "needs a zone"),
        (("keys", "rotate", "abcdefghijkl", "--overlap", "soon"), "such as 24h"),
        (("tenants", "set", "shop", "--rate", "/settle=fast"), "expected ROUTE"),
        (("tenants", "set", "shop", "--settlements-max", "-1"), "expected"),
        (("nonsense",), "invalid choice"),
    ],
)
async def test_wrong_usage_is_2(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    done = await asyncio.to_thread(shell.run, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


async def test_config_check_tells_all_problems_and_print_shows_origins_without_secrets(shell: Shell) -> None:
    def story() -> None:
        good = shell.run("config", "check")
        assert (good.returncode, "one RPC URL only" in good.stdout, "ok " in good.stdout) == (0, True, True)
        printed = shell.run("config", "print", FACILITATOR__SETTLEMENT__DEADLINE_S="15")
        assert printed.returncode == 0
        assert any(
            line.split() == ["settlement.deadline_s", "=", "15.0", "#", "env", "FACILITATOR__SETTLEMENT__DEADLINE_S"]
            for line in printed.stdout.splitlines()
        )
        assert "postgresql:" not in printed.stdout
        missing = shell.run("config", "check", RELAYER_KEY="")
        assert (missing.returncode, "env:RELAYER_KEY: nothing there" in missing.stdout) == (1, True)
        bad = shell.run("config", "check", FACILITATOR__SETTLEMENT__DEADLIN_S="15", FACILITATOR__DATABASE__MIGRATE="yes")
        assert (bad.returncode, len(bad.stderr.splitlines())) == (1, 2)
        one_line = shell.run("serve", FACILITATOR__SETTLEMENT__DEADLIN_S="15")
        assert (one_line.returncode, len(one_line.stderr.splitlines())) == (2, 1)
        assert "did you mean deadline_s?" in one_line.stderr

    await asyncio.to_thread(story)


async def test_without_a_configuration_the_remedy_is_named(shell: Shell) -> None:
    done = await asyncio.to_thread(lambda: shell.run("serve", FACILITATOR_CONFIG=""))
    assert (done.returncode, done.stderr) == (2, "facilitator: no configuration: give --config FILE or set FACILITATOR_CONFIG\n")


async def test_what_is_not_possible_now_is_3(tmp_path: Path, nowhere: str) -> None:
    done = await asyncio.to_thread(Shell(tmp_path, nowhere).run, "migrate")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


async def test_serve_refuses_an_old_schema_unless_it_may_migrate(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.create_database(f"old_{os.getpid()}")
    try:
        refused = await asyncio.to_thread(Shell(tmp_path, url).run, "serve")
        assert refused.returncode == 2
        assert "run `facilitator migrate`, or set migrate = true" in refused.stderr.splitlines()[-1]
        shell = Shell(tmp_path, url, migrate=True)
        process = shell.spawn()
        try:
            await until(lambda: _is(shell, "/readyz", 200))
        finally:
            process.terminate()
            assert await asyncio.to_thread(process.wait, 20) == 0
            assert process.stderr is not None
            process.stderr.close()
        nothing = await asyncio.to_thread(shell.run, "migrate")
        assert nothing.stdout == "nothing to do: the schema is up to date\n"
    finally:
        await postgres.drop_database(f"old_{os.getpid()}")


async def _is(shell: Shell, path: str, status: int) -> bool:
    return await status_of(shell, path) == status


async def test_without_database_and_chain_supported_is_served_and_readiness_waits(tmp_path: Path, nowhere: str) -> None:
    shell = Shell(tmp_path, nowhere)
    process = shell.spawn()
    try:
        await until(lambda: _is(shell, "/supported", 200))
        assert await status_of(shell, "/healthz") == 200
        assert await status_of(shell, "/readyz") == 503
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, None, 20)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert KEY[2:] not in errors


async def test_a_taken_port_is_3(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", shell.port))
        taken.listen()
        done = await asyncio.to_thread(shell.run, "serve")
    assert done.returncode == 3
    assert "address already in use" in done.stderr.splitlines()[-1]


async def test_a_bad_relayer_key_is_named_by_its_reference_only(shell: Shell) -> None:
    done = await asyncio.to_thread(lambda: shell.run("serve", RELAYER_KEY="not a key"))
    assert done.returncode == 2
    assert "relayer env:RELAYER_KEY: a relayer key must be 64 hex digits" in done.stderr.splitlines()[-1]
    assert "not a key" not in done.stderr


async def test_doctor_finds_everything_well_and_says_what_is_not(
    tmp_path: Path, database_url: str, chain: Anvil, new_relayer: Callable[..., Awaitable[LocalAccount]]
) -> None:
    relayer = await new_relayer()
    shell = Shell(tmp_path, database_url, chain.rpc_url)

    def story() -> None:
        well = shell.run("doctor", RELAYER_KEY="0x" + bytes(relayer.key).hex())
        assert well.returncode == 0, well.stdout
        for subject in ("database", "schema", "clock", "eip155:84532 rpc 0", "eip155:84532 USDC"):
            assert any(line.startswith(f"ok    {subject}") for line in well.stdout.splitlines()), subject
        poor = shell.run("doctor")
        assert (poor.returncode, "-> send it gas money" in poor.stdout) == (1, True)

    await asyncio.to_thread(story)
    down = Shell(tmp_path, database_url, f"http://127.0.0.1:{free_port()}")
    done = await asyncio.to_thread(down.run, "doctor")
    assert done.returncode == 1
    assert "fail  eip155:84532 rpc 0" in done.stdout


async def test_the_wrong_chain_and_the_wrong_token_are_found_and_withdrawn(tmp_path: Path, database_url: str, chain: Anvil) -> None:
    """The chain is Base Sepolia's double; the configuration calls it Base, and its token by another name."""
    shell = Shell(tmp_path, database_url, chain.rpc_url)
    doctored = await asyncio.to_thread(lambda: shell.run("doctor", FACILITATOR__NETWORKS__0__ID="eip155:8453"))
    assert doctored.returncode == 1
    assert "another chain" in doctored.stdout
    process = ServeProcess(
        tmp_path,
        database_url=database_url,
        rpc_url=chain.rpc_url,
        relayer_keys=[KEY],
        environment={"FACILITATOR__NETWORKS__0__ID": "eip155:8453", "FACILITATOR__NETWORKS__0__PLAIN_KEYS": "true"},
    )
    await process.astart()
    try:

        async def withdrawn() -> bool:
            async with aiohttp.ClientSession() as session, session.get(f"{process.base_url}/supported") as answer:
                kinds: list[object] = (await answer.json())["kinds"]
                return not kinds

        await until(withdrawn)
        errors = [event for event in process.log_events if event.get("level") == "error"]
        assert "network.withdrawn" in {event["event"] for event in errors}
    finally:
        await asyncio.to_thread(process.terminate)


# --- the console


async def test_a_console_link_signs_in_who_it_was_made_for_as_what_and_once(shell: Shell, database_url: str) -> None:
    off = shell.run("console", "link", "--role", "auditor", "--user", "Eve")
    assert (off.returncode, "there is no [console] table" in off.stderr) == (2, True)
    console = f'[console]\nlisten = "127.0.0.1:{free_port()}"\nurl = "https://books.example/"\n'
    shell.file.write_text(console + shell.file.read_text("utf-8"), "utf-8")
    for user in ("", "x" * 201, "line\nbreak"):
        refused = shell.run("console", "link", "--role", "auditor", "--user", user)
        assert (refused.returncode, "--user: expected a name" in refused.stderr, refused.stdout) == (2, True, "")
    assert shell.run("console", "link", "--role", "root", "--user", "Eve").returncode == 2
    made = shell.run("console", "link", "--role", "auditor", "--user", "Eve Miller")
    assert (made.returncode, made.stderr) == (0, "")
    base, _, token = made.stdout.strip().partition("?token=")
    assert base == "https://books.example/sign-in"
    connection = await asyncpg.connect(database_url)
    (event,) = await connection.fetch("select actor, detail from audit_event where kind = 'console_link_made'")
    assert event["actor"].startswith("cli ")
    assert json.loads(event["detail"]) == {"person": "Eve Miller", "role": "auditor"}
    life_s = await connection.fetchval("select extract(epoch from expires_at - made_at)::integer from console_link")
    await connection.close()
    assert life_s == 600
    async with open_room(database_url) as room:
        browser = room.browser()
        assert (await browser.post("/sign-in", {"token": token})).status == 303
        assert 'Eve Miller <span class="soft">· auditor</span>' in (await browser.get("/")).text
        assert (await room.browser().post("/sign-in", {"token": token})).status == 403

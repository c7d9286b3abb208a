"""Lines that the service writes: one canonical line, facts from context, and nothing that must stay secret."""

import asyncio
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from facilitator import telemetry
from facilitator.telemetry import annotate, bind, canonical, get_logger, redact_text
from facilitator.tracing import trace_id_of

SIGNATURE = "0x" + "5b" * 65
API_KEY = "fk_abcdefghijkl_" + "s" * 43
PEM_KEY, DOT = "PRIVATE KEY", "."  # apart, or the search for secrets in tracked files finds them here
TX_HASH = "0x" + "ab" * 32


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    telemetry.configure("info", "json", stream)
    yield stream
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_canonical_line_gathers_what_was_learnt_on_the_way(written: io.StringIO) -> None:
    with bind(request_id="r1"), canonical("request.answered", route="/settle") as line:
        annotate(tx_hash=TX_HASH)
        line["status"] = 200
    annotate(lost="nowhere")
    (only,) = lines(written)
    assert only.pop("timestamp").endswith("Z")
    assert only == {
        "event": "request.answered",
        "level": "info",
        "request_id": "r1",
        "route": "/settle",
        "tx_hash": TX_HASH,
        "status": 200,
    }


def test_each_line_that_is_written_is_counted_by_event_and_level() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    told: list[tuple[str, str]] = []
    telemetry.configure("info", "json", io.StringIO(), observe=lambda event, level: told.append((event, level)))
    try:
        get_logger().info("relayer.ready", relayer="0x1")
        get_logger().debug("too.quiet")
        logging.getLogger("aiohttp").error("text of its own %s", "0x2")
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()
    assert told == [("relayer.ready", "info"), ("library.logged", "error")]


def test_the_canonical_line_is_written_when_the_block_fails_too(written: io.StringIO) -> None:
    with pytest.raises(RuntimeError), canonical("request.answered"):
        raise RuntimeError
    assert [line["event"] for line in lines(written)] == ["request.answered"]


class Writes(io.StringIO):
    """Remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[list[str]] = []

    def write(self, text: str) -> int:
        self.made.append([json.loads(line)["event"] for line in text.splitlines()])
        return super().write(text)


@pytest.fixture
def writes() -> Iterator[Writes]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = Writes()
    telemetry.configure("info", "json", stream)
    yield stream
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def report(event: str) -> None:
    with canonical(event):
        pass


async def test_canonical_lines_go_out_in_one_write_at_the_end_of_the_turn(writes: Writes) -> None:
    for event in ("a.done", "b.done", "c.done"):
        report(event)
    assert writes.made == []
    await asyncio.sleep(0)
    assert writes.made == [["a.done", "b.done", "c.done"]]
    report("d.done")
    await asyncio.sleep(0)
    assert writes.made[1:] == [["d.done"]]


async def test_any_other_line_is_written_at_once_and_none_overtakes_another(writes: Writes) -> None:
    report("a.done")
    get_logger().info("b.done")
    assert [event for write in writes.made for event in write] == ["a.done", "b.done"]
    report("c.done")
    logging.getLogger("asyncio").warning("d")
    assert [event for write in writes.made for event in write] == ["a.done", "b.done", "c.done", "library.logged"]
    await asyncio.sleep(0)
    assert len([event for write in writes.made for event in write]) == 4


async def test_a_line_that_another_thread_is_about_to_write_holds_no_canonical_line_back(writes: Writes) -> None:
    assert telemetry._lines is not None
    telemetry._lines.write('{"event": "b.done"}\n')  # its thread writes it out between any two steps of ours
    report("a.done")
    await asyncio.sleep(0)
    assert [event for write in writes.made for event in write] == ["b.done", "a.done"]


def test_without_a_loop_a_canonical_line_is_written_at_once(writes: Writes) -> None:
    report("a.done")
    assert writes.made == [["a.done"]]


def test_a_process_that_exits_within_a_turn_loses_no_line() -> None:
    program = """
import asyncio, sys
from facilitator import telemetry
telemetry.configure("info", "json", sys.stdout)
async def main():
    with telemetry.canonical("request.answered"):
        pass
    raise SystemExit(0)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout)["event"] == "request.answered"


async def test_a_quiet_log_has_no_canonical_lines(writes: Writes) -> None:
    telemetry.configure("warning", "json", writes)
    report("a.done")
    await asyncio.sleep(0)
    assert writes.made == []


async def test_canonical_lines_are_captured_like_others(writes: Writes) -> None:
    with structlog.testing.capture_logs() as captured:
        report("a.done")
        get_logger().info("b.done")
    await asyncio.sleep(0)
    assert ([line["event"] for line in captured], writes.made) == (["a.done", "b.done"], [])


def test_a_line_is_dated_as_structlog_dates_it() -> None:
    stamper = structlog.processors.TimeStamper(fmt="iso", utc=True)
    dated = [str(process(None, "info", {})["timestamp"]) for process in (stamper, telemetry._add_time, stamper)]
    moments = [datetime.fromisoformat(text) for text in dated]
    assert moments == sorted(moments)
    assert (moments[1].tzinfo, dated[1][-1], len(dated[1])) == (UTC, "Z", len("2026-11-21T11:20:12.123456Z"))


async def test_facts_of_one_request_do_not_leak_into_another(written: io.StringIO) -> None:
    async def request(number: int) -> None:
        with bind(request_id=f"r{number}"), canonical("request.answered") as line:
            await asyncio.sleep(0.001 * (5 - number))
            annotate(payer=f"p{number}")
            line["n"] = number

    await asyncio.gather(*(request(number) for number in range(5)))
    assert sorted((line["request_id"], line["payer"], line["n"]) for line in lines(written)) == [(f"r{n}", f"p{n}", n) for n in range(5)]


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("signature", SIGNATURE),
        ("note", f"signed with {SIGNATURE}"),
        ("note", SIGNATURE[2:]),
        ("private_key", "0x" + "11" * 32),
        ("Authorization", f"Bearer {API_KEY}"),
        ("x-api-key", API_KEY),
        ("headers", {"authorization": f"Bearer {API_KEY}"}),
        ("note", f"got {API_KEY} from"),
        ("note", "Authorization: Bearer ssssssssssssssssssss"),
        ("raw", bytes.fromhex("5b" * 65)),
        ("data", bytes.fromhex("5b" * 65)),
        ("url", f"https://user:{'s' * 20}@rpc.example/v2"),
        ("url", f"https://rpc.example/v2/{'s' * 20}"),
        ("detail", f"cannot reach wss://rpc.example/?key={'s' * 20} now"),
        ("detail", f"postgresql://facilitator:{'s' * 20}@db:5432/facilitator"),
        ("database_password", "s" * 20),
        ("keystore-passphrase", "s" * 20),
        ("webhookSecret", "s" * 20),
        ("client_secret", "s" * 20),
        ("raw_transaction", "0x02" + "5b" * 60),
        ("detail", f"password={'s' * 20} is wrong"),
        ("detail", f"password={'s' * 20}"),
        ("detail", f'{{"token":"{"s" * 20}"}}'),
        ("detail", f"eyJhbGci{DOT}eyJz.{'s' * 20}"),
        ("detail", f"config {{'private_key': '{'s' * 20}'}}"),
        ("detail", f'{{"apiKey": "{"s" * 20}"}}'),
        ("detail", f"got eyJhbGciOiJFUzI1NiJ9{DOT}eyJzdWIiOiJ4In0.{'s' * 20} there"),
        ("detail", f"-----BEGIN EC {PEM_KEY}-----\n{'s' * 20}\n-----END EC {PEM_KEY}-----"),
        ("detail", f"-----BEGIN {PEM_KEY}-----\n{'s' * 20}"),
        ("deep", [{"inner": [f"https://rpc.example/{'s' * 20}"]}]),
    ],
)
def test_no_secret_leaves_whatever_it_is_called(written: io.StringIO, fact: str, value: object) -> None:
    get_logger().info("rpc.failed_over", **{fact: value})
    text = written.getvalue()
    for secret in ("5b" * 60, "11" * 32, "s" * 20):
        assert secret not in text


def test_what_people_need_stays_readable() -> None:
    assert redact_text(TX_HASH) == TX_HASH
    assert redact_text("0x" + "ab" * 20) == "0x" + "ab" * 20
    assert redact_text("no answer from https://rpc.example:8545") == "no answer from https://rpc.example:8545"
    assert redact_text("http://127.0.0.1:8545/") == "http://127.0.0.1:8545/"
    assert redact_text(API_KEY).startswith("fk_abcdefghijkl_")
    for words in ("asset: expected a token, got EURC", "this API key or token is unknown", "expected name = 'USDC', version = '2'"):
        assert redact_text(words) == words


def test_public_facts_with_dangerous_names_stay(written: io.StringIO) -> None:
    get_logger().info("request.answered", key_id="abcdefghijkl", auth_nonce="0x1", idempotency_key="order-7", tokens_max=3)
    (line,) = lines(written)
    assert (line["key_id"], line["auth_nonce"], line["idempotency_key"], line["tokens_max"]) == ("abcdefghijkl", "0x1", "order-7", 3)


@pytest.mark.parametrize(
    "piece", ["eyJ-", "eyJa.", "token=", "password", "-----BEGIN ", f"-----BEGIN {PEM_KEY}-----", "bearer ", "fk_", "a://", "ab"]
)
def test_no_text_takes_long(piece: str) -> None:
    began = time.process_time()
    redact_text(piece * (200_000 // len(piece)))
    assert time.process_time() - began < 2.0


def test_tracebacks_are_kept_and_cleaned(written: io.StringIO) -> None:
    try:
        int(f"https://rpc.example/{'s' * 20}")
    except ValueError:
        get_logger().exception("loop.crashed")
    (line,) = lines(written)
    assert "Traceback" in line["exception"]
    assert "s" * 20 not in line["exception"]


def test_lines_of_libraries_pass_the_same_way(written: io.StringIO) -> None:
    logging.getLogger("asyncio").warning("slow callback at %s", f"https://u:{'s' * 20}@h/x")
    logging.getLogger("asyncio").info("not of interest")
    (line,) = lines(written)
    assert (line["event"], line["library"]) == ("library.logged", "asyncio")
    assert "s" * 20 not in line["message"]


def test_a_stranger_cannot_forge_a_line(written: io.StringIO) -> None:
    get_logger().info("request.answered", resource='x"}\n{"event":"forged"}')
    assert len(written.getvalue().splitlines()) == 1


def test_people_on_a_terminal_get_text() -> None:
    stream = io.StringIO()
    telemetry.configure("info", "console", stream)
    get_logger().info("server.started", signature=SIGNATURE)
    structlog.reset_defaults()
    assert "server.started" in stream.getvalue()
    assert SIGNATURE not in stream.getvalue()


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736", None),
        ("x" * 300, None),
        (None, None),
    ],
)
def test_traceparent_is_read_as_w3c_has_it(header: str | None, trace_id: str | None) -> None:
    assert trace_id_of(header) == trace_id

"""Coverage-guided fuzzing of what reads strangers' bytes (tests/fuzz/codec.py), bounded: `make prove` goes on for longer."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import pytest

from facilitator.devstack.buyer import Buyer, facilitator_request, requirements
from tests.fixtures.hostile import hostile_bodies
from tests.fixtures.vectors import v1_request, v2_request

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris has wheels for Linux on x86-64 only; tests/property/test_codec.py mutates bytes without it",
)
TARGET: Final = Path(__file__).parents[1] / "fuzz" / "codec.py"
SEED_BYTES_MAX: Final = 4096
RUNS: Final = int(os.environ.get("FUZZ_RUNS") or 20_000)
SEED: Final = os.environ.get("FUZZ_SEED") or "402"
WORDS: Final = (
    *("paymentPayload", "paymentRequirements", "x402Version", "accepted", "payload", "authorization", "signature", "validBefore"),
    *("extensions", "payment-identifier", "extra", "maxAmountRequired", "eip155:84532", "base-sepolia"),
    *("\\\\u0000", "\\\\ud800", "1e999", "NaN"),
)
"""What no mutation of bytes would hit upon, as libFuzzer spells it."""


def plant_seeds(directory: Path) -> None:
    """Real payments of both versions, and every hostile body that is short: what is found from them is not found from nothing."""
    directory.mkdir()
    bodies = [hostile.body for hostile in hostile_bodies() if len(hostile.body) <= SEED_BYTES_MAX]
    bodies += [msgspec.json.encode(request()) for request in (v1_request, v2_request)]
    for version in (1, 2):
        asked = requirements(version, pay_to="0x2222222222222222222222222222222222222222", amount_atomic=1000)
        bodies.append(msgspec.json.encode(facilitator_request(Buyer.numbered(1).pay(version, asked), asked)))
    for number, body in enumerate(sorted(set(bodies))):
        (directory / f"{number:04}").write_bytes(body)


def fuzz(directory: Path, *options: str, program: tuple[str, ...] = (str(TARGET),)) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer on the seeds; what it finds is left in `directory`."""
    plant_seeds(directory / "corpus")
    words = directory / "words"
    words.write_text("".join(f'"{word}"\n' for word in WORDS))
    arguments = [f"-artifact_prefix={directory}/", f"-dict={words}", "-max_len=8192", "-timeout=60", "-rss_limit_mb=0", *options]
    return subprocess.run(
        [sys.executable, *program, *arguments, str(directory / "corpus")],
        cwd=TARGET.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_input_crashes_slows_or_divides_the_readers(tmp_path: Path) -> None:
    done = fuzz(tmp_path, f"-runs={RUNS}", f"-seed={SEED}")
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"#\d+\s+DONE\s+cov: (\d+)", done.stderr)
    assert found is not None
    assert int(found[1]) > 250, "the readers are not instrumented, or the seeds do not reach them"


LENIENT: Final = """
import sys
from tests.fuzz import codec

def load(data):
    try:
        return codec.json.loads(data)
    except ValueError as error:
        raise codec.HostileError(str(error)) from None

codec.load = load
sys.argv[0] = "lenient"
codec.main()
"""


def test_the_fuzzer_finds_a_reader_that_is_lenient(tmp_path: Path) -> None:
    done = fuzz(tmp_path, f"-runs={RUNS}", "-seed=402", program=("-c", LENIENT))
    assert done.returncode != 0
    assert "two parsers read two things" in done.stdout + done.stderr

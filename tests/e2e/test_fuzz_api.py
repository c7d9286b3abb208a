"""The whole API against its own description, by schemathesis, bounded: `make prove` goes on for longer."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest_asyncio

from tests.fixtures.house import House

EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES") or 5)
SEED: Final = os.environ.get("FUZZ_SEED") or "402"

BEYOND_SCHEMA: Final = "positive_data_acceptance"
"""Not every body of the right shape is accepted: a payment's rules are the scheme's, and a public key is PEM."""


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with House.open(tmp_path, database_url) as house:
        await house.serve()
        yield house


async def test_everything_is_answered_as_described(house: House, tmp_path: Path) -> None:
    (service,) = house.services
    key = service.create_key("fuzzer", scopes="verify,settle,read,finance,admin")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.base_url}/openapi.json"),
            *(
                "--header",
                f"Authorization: Bearer {key}",
                "--checks",
                "all",
                "--exclude-checks",
                BEYOND_SCHEMA,
                "--mode",
                "all",
                "--seed",
                SEED,
            ),
            *("--max-examples", str(EXAMPLES), "--generation-database", "none", "--phases", "examples,coverage,fuzzing,stateful"),
            *("--request-timeout", "60", "--workers", "1"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert service.running
    assert "Traceback" not in service.logs

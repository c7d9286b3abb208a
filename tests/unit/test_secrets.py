"""No file under version control holds a secret: what detect-secrets knows by its shape, bare 32-byte keys, and API keys of ours.

A private key, a hash and a nonce look alike, so every 32-byte value that stands in a file is listed in KNOWN by its own
hash, with what it is; whoever adds one says so there.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import BasePlugin, RegexBasedDetector

from tests.test_tidy import ROOT, tracked

GUESSES: Final = {"Base64 High Entropy String", "Hex High Entropy String", "Secret Keyword", "Public IP (ipv4)", "IBM COS HMAC Credentials"}
"""Detectors that tell a hash from a secret by chance; the rest know a shape."""
KNOWN: Final = Path(__file__).with_name("known_values.txt")


class RawKey(RegexBasedDetector):
    """32 bytes in hexadecimal, but for what says itself that it is public: locked hashes, checksums, nonces."""

    secret_type = "32-byte key"
    denylist = (re.compile(r"(?<![0-9A-Za-z])(?:0x)?([0-9a-fA-F]{64})(?![0-9a-zA-Z])"),)
    _public = re.compile(r"""(sha256:|checksum/config: |\bnonce[\\": ]+0x|nonce 0x)[0-9a-f]{64}""")

    def analyze_string(self, string: str) -> Iterator[str]:
        yield from super().analyze_string(self._public.sub("", string))


class ApiKey(RegexBasedDetector):
    """One of ours (`fk_id_secret`)."""

    secret_type = "facilitator API key"
    denylist = (re.compile(r"\bfk_[a-z0-9]{12}_[A-Za-z0-9_-]{43}\b"),)


@cache
def detectors() -> tuple[BasePlugin, ...]:
    kinds: dict[str, Any] = get_mapping_from_secret_type_to_class()
    return (RawKey(), ApiKey(), *(kind() for name, kind in sorted(kinds.items()) if name not in GUESSES))


def digest(value: str) -> str:
    return hashlib.sha256(value.lower().encode()).hexdigest()[:16]


@cache
def known() -> dict[str, str]:
    """What each value is, by its digest."""
    return dict(line.split(maxsplit=1) for line in KNOWN.read_text("utf-8").splitlines() if not line.startswith("#"))


@cache
def suspicious(path: Path) -> tuple[tuple[int, str, str], ...]:
    """Line, kind and value of everything in a file that has the shape of a secret."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        return ()  # a picture or an archive
    return tuple(
        (number, detector.secret_type, value)
        for number, line in enumerate(lines, 1)
        for detector in detectors()
        for value in detector.analyze_string(line)
        if not re.fullmatch(r"\{.*\}", value)  # a place that a program fills in
    )


def found_in(path: Path) -> list[tuple[int, str, str]]:
    """Of these, what is not known to be none."""
    return [found for found in suspicious(path) if digest(found[2]) not in known()]


def test_no_tracked_file_holds_a_secret() -> None:
    found = [f"{path.relative_to(ROOT)}:{number}: {kind} {digest(value)}" for path in tracked() for number, kind, value in found_in(path)]
    assert found == [], f"remove it, or say in {KNOWN.name} what it is"


PLANTED: Final = {
    "32-byte key": "relayers = [" + "0x" + hashlib.sha256(b"planted").hexdigest() + "]",
    "32-byte key, bare": "RELAYER_KEY_1=" + hashlib.sha256(b"planted too").hexdigest().upper(),
    "Private Key": "-----BEGIN EC " + "PRIVATE KEY-----",
    "Private Key, PKCS8": "    -----BEGIN " + "PRIVATE KEY-----",
    "facilitator API key": "Authorization: Bearer fk_" + "a1b2c3d4e5f6_" + "Zz9-_" * 8 + "abc",
    "Basic Auth Credentials": "postgresql://facilitator:" + "correct-horse@db/facilitator",
    "JSON Web Token": "eyJhbGciOiJFUzI1NiJ9." + "eyJzdWIiOiJzaG9wIn0." + "A" * 43,
    "AWS Access Key": "AKIA" + "Q3EGRNXPK7ZCD5JM",
    "GitHub Token": "ghp_" + "aB3dE5fG7h" * 3 + "aB3dE5",
    "Slack Token": "https://hooks.slack.com/services/" + "T0000000/B0000000/" + "a" * 24,
    "Stripe Access Key": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
}
"""By kind; put together here, so that this file is clean itself."""


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(f"first line\n{PLANTED[kind]}\n")
    assert (2, kind.partition(",")[0]) in {(number, found) for number, found, _ in found_in(path)}


def test_a_key_that_everybody_knows_is_let_pass(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("0x" + "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
    assert found_in(path) == []


def test_what_is_let_pass_is_there() -> None:
    """A line for something that is gone would let it come back unseen."""
    values = {digest(value) for path in tracked() for _, _, value in suspicious(path)}
    assert [line for value, line in known().items() if value not in values] == []

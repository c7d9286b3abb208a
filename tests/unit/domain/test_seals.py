"""Canonical bytes and trees: as the documentation has them, as RFC 6962 defines them, and as JavaScript computes them."""

import json
import subprocess
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest

from facilitator.devstack.install import node_program
from facilitator.domain.seals import FIRST, EntryRecord, EventRecord, entry_fields, event_fields, head, leaf, root
from tests.fixtures.waiting import PATIENCE_S

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "finance.md"
ENTRY: Final = EntryRecord(
    entry_id=17,
    book="register",
    phase="posted",
    debit="payer:0x" + "22" * 20,
    credit="payee:0x" + "33" * 20,
    asset="eip155:8453/0x833589fcd6edb6e08f4c7c32d4f71b54bda02913",
    amount_atomic=10_000,
    settlement_id=UUID("01900000-0000-7000-8000-000000000001"),
    admission=1,
    tx_hash="0x" + "ab" * 32,
    resolves=16,
    reference=None,
    happened_at=datetime(2026, 11, 21, 8, 30, tzinfo=UTC),
    booked_at=datetime(2026, 11, 21, 8, 45, 0, 123_456, tzinfo=UTC),
)
EVENT: Final = EventRecord(
    event_id=1,
    kind="settlements_exported",
    actor="ada",
    detail='Grüße "漢字"\n\t\x01\\/\u2028',
    happened_at=datetime(2026, 11, 21, tzinfo=UTC),
)
RECORDS: Final = [entry_fields(ENTRY, date(2026, 11, 21)), event_fields(EVENT)]
_NODE: Final = """
const { createHash } = require("node:crypto");
const hash = (...parts) => createHash("sha256").update(Buffer.concat(parts)).digest();
const leaf = (fields) => hash(Buffer.from([0]), Buffer.from(JSON.stringify(fields), "utf8"));
const root = (leaves) => {
  if (leaves.length === 1) return leaves[0];
  let split = 1;
  while (split * 2 < leaves.length) split *= 2;
  return hash(Buffer.from([1]), root(leaves.slice(0, split)), root(leaves.slice(split)));
};
const records = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const leaves = records.map(leaf);
const counts = Buffer.alloc(16);
counts.writeBigUInt64BE(1n, 0);
counts.writeBigUInt64BE(BigInt(leaves.length), 8);
const top = root(leaves);
const head = hash(Buffer.from([2]), Buffer.alloc(32), counts, top);
console.log(JSON.stringify([leaves.map((one) => one.toString("hex")), top.toString("hex"), head.toString("hex")]));
"""


def of_rfc_6962(leaves: list[bytes]) -> bytes:
    """The definition, word by word."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + of_rfc_6962(leaves[:split]) + of_rfc_6962(leaves[split:])).digest()


@pytest.mark.parametrize("count", [*range(1, 20), 31, 32, 33, 100])
def test_the_root_is_that_of_rfc_6962(count: int) -> None:
    leaves = [leaf([str(number)]) for number in range(count)]
    assert root(leaves) == of_rfc_6962(leaves)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_another_language_computes_the_same(count: int) -> None:
    records = [*RECORDS, *([[str(number)] for number in range(5)])][:count]
    done = subprocess.run(
        [node_program(), "-e", _NODE], input=json.dumps(records), capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    leaves = [leaf(record) for record in records]
    assert json.loads(done.stdout) == [[each.hex() for each in leaves], root(leaves).hex(), head(FIRST, 1, count, root(leaves)).hex()]


def test_the_documented_vectors_are_true() -> None:
    text = DOCUMENT.read_text("utf-8")
    record = json.dumps(RECORDS[0], ensure_ascii=False, separators=(",", ":"))
    only = leaf(RECORDS[0])
    for line in (record, f"leaf {only.hex()}", f"head {head(FIRST, 1, 1, only).hex()}"):
        assert f"\n{line}\n" in text


def test_every_field_counts() -> None:
    plain = leaf(RECORDS[0])
    for index in range(len(RECORDS[0])):
        assert leaf([*RECORDS[0][:index], "x", *RECORDS[0][index + 1 :]]) != plain
    assert leaf(["a", None]) != leaf(["a", ""]) != leaf(["a"])
    assert head(FIRST, 1, 2, plain) != head(FIRST, 2, 1, plain) != head(plain, 2, 1, plain)

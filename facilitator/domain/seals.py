"""Canonical bytes of entries and audit events, and the trees and chain that seal them. Pure; docs/finance.md has vectors.

A record is a JSON array of strings and nulls, in UTF-8 without spaces. A leaf is SHA-256 of 0x00 and the record; a node of
0x01, left and right (RFC 6962, section 2.1: the left side of n leaves holds the largest power of two below n). The head of a
seal is SHA-256 of 0x02, the head before it (32 zero bytes before the first), number and leaves as 8 bytes each, and the root.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Final
from uuid import UUID

FIRST: Final = bytes(32)
"""The head before the first seal."""


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """All that an entry says."""

    entry_id: int
    book: str
    phase: str
    debit: str
    credit: str
    asset: str
    amount_atomic: int
    settlement_id: UUID | None
    admission: int | None
    tx_hash: str | None
    resolves: int | None
    reference: str | None
    happened_at: datetime
    booked_at: datetime


@dataclass(frozen=True, slots=True)
class EventRecord:
    """All that an audit event says."""

    event_id: int
    kind: str
    actor: str
    detail: str
    happened_at: datetime


def entry_fields(entry: EntryRecord, book_day: date) -> list[str | None]:
    """The record of an entry on its book day."""
    numbers = entry.settlement_id, entry.admission, entry.tx_hash, entry.resolves, entry.reference
    return [
        "journal-v1",
        str(entry.entry_id),
        entry.book,
        entry.phase,
        entry.debit,
        entry.credit,
        entry.asset,
        str(entry.amount_atomic),
        *(None if value is None else str(value) for value in numbers),
        _time(entry.happened_at),
        _time(entry.booked_at),
        book_day.isoformat(),
    ]


def event_fields(event: EventRecord) -> list[str | None]:
    """The record of an audit event."""
    return ["audit-v1", str(event.event_id), event.kind, event.actor, event.detail, _time(event.happened_at)]


def leaf(fields: Sequence[str | None]) -> bytes:
    """The leaf of a record."""
    return sha256(b"\x00" + json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over at least one leaf."""
    level = list(leaves)
    while len(level) > 1:  # pairwise from the left gives the tree of RFC 6962: an odd last one rises as it is
        paired = [sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def head(previous: bytes, seal_no: int, leaves: int, of_root: bytes) -> bytes:
    """The head of a seal, over the head before it."""
    return sha256(b"\x02" + previous + seal_no.to_bytes(8, "big") + leaves.to_bytes(8, "big") + of_root).digest()


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

"""Checks an audit bundle offline, with nothing but Python: `python verify.py [NUMBER HEAD]`.

NUMBER and HEAD are those of a seal as it left the database: from a log, a metric's label, a file. Exit status 0: every record
is sealed as it stands here, the seals follow from each other, and the head given is among them; else 1, and the first fault.
"""

import hashlib
import sys
from pathlib import Path


def digest(*parts: bytes) -> bytes:
    """SHA-256 of the parts."""
    return hashlib.sha256(b"".join(parts)).digest()


def tree(leaves: list[bytes]) -> bytes:
    """The root of RFC 6962, section 2.1, over hashed leaves, by its recursive definition."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return digest(b"\x01", tree(leaves[:split]), tree(leaves[split:]))


def check(directory: Path, given: dict[int, str]) -> str:
    """The first thing that is wrong; empty when nothing is."""
    records = (directory / "records.jsonl").open(encoding="utf-8", newline="\n")
    with records:
        waiting = next(records, "")
        previous = bytes(32)
        for expected, line in enumerate((directory / "seals.txt").read_text("ascii").splitlines(), start=1):
            number, count, root, head = line.split()
            leaves: list[bytes] = []
            while waiting and int(waiting.split(" ", 2)[0]) == int(number):
                _, position, record = waiting.rstrip("\n").split(" ", 2)
                if int(position) != len(leaves):
                    return f"seal {number}: place {len(leaves)} is missing"
                leaves.append(digest(b"\x00", record.encode()))
                waiting = next(records, "")
            if int(number) != expected or len(leaves) != int(count):
                return f"seal {number}: expected seal {expected} with {count} records, got {len(leaves)}"
            if tree(leaves).hex() != root:
                return f"seal {number}: a record is not as it was sealed"
            counts = int(number).to_bytes(8, "big") + int(count).to_bytes(8, "big")
            if digest(b"\x02", previous, counts, bytes.fromhex(root)).hex() != head:
                return f"seal {number}: its head does not follow from the one before it"
            if given.pop(int(number), head) != head:
                return f"seal {number}: its head is {head}, not the one given"
            previous = bytes.fromhex(head)
        if waiting:
            return f"a record without a seal: {waiting[:60]}"
    return f"seal {min(given)} is not here" if given else ""


def main() -> int:
    """Check the bundle in which this script lies."""
    given = {int(sys.argv[1]): sys.argv[2]} if len(sys.argv) == 3 else {}
    wrong = check(Path(__file__).parent, given)
    sys.stdout.write(f"{wrong or 'every record is as it was sealed'}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

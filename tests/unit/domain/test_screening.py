"""Lists are read strictly, oracles are believed when they say 0 or 1, and what is kept of a look reads back."""

import pytest

from facilitator.domain.facts import Reply
from facilitator.domain.screening import Screening, decode_screening, encode_screening, is_sanctioned, parse_list, read_sanctioned
from facilitator.protocol.address import keccak256
from facilitator.units import Address

ONE, TWO = Address("0x" + "ab" * 20), Address("0x" + "cd" * 20)
MIXED = "0x" + "aB" * 20


def test_a_list_has_an_address_a_line_in_any_case_with_comments_and_further_columns() -> None:
    text = f"\n# a comment\n{MIXED}  # with a remark\n\n{TWO},Some Body,2024-01-01\n{ONE}\n"
    assert parse_list(text.encode()).addresses == {ONE, TWO}


@pytest.mark.parametrize("head", ["address", "Address,name,source", '"address",name'])
def test_a_csv_may_have_a_head(head: str) -> None:
    assert parse_list(f'{head}\n"{ONE}",x\n'.encode()).addresses == {ONE}


def test_windows_line_ends_are_read() -> None:
    assert parse_list(f"{ONE}\r\n{TWO}\r\n".encode()).addresses == {ONE, TWO}


def test_the_version_is_the_hash_of_every_byte() -> None:
    one, other = parse_list(f"{ONE}\n".encode()), parse_list(f"{ONE}\n\n".encode())
    assert one.addresses == other.addresses
    assert one.version != other.version
    assert one.version.startswith("sha256:")
    assert len(one.version) == 7 + 64


@pytest.mark.parametrize(
    "line", ["address", "0x12", ONE[:-1], ONE + "0", ONE[2:], "1BoatSLRHtKNngkdXEeobR76b53LETtpyT", f"{ONE} {TWO}", "name,address"]
)
def test_one_line_that_is_no_address_refuses_the_whole_list(line: str) -> None:
    with pytest.raises(ValueError, match="line 2: expected an address"):
        parse_list(f"{ONE}\n{line}\n{TWO}\n".encode())


@pytest.mark.parametrize("text", [b"", b"\n\n", b"# nobody\n", b"address\n"])
def test_a_list_without_addresses_is_none(text: bytes) -> None:
    with pytest.raises(ValueError, match="no address"):
        parse_list(text)


def test_bytes_that_are_no_text_are_no_list() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse_list(b"\xff\xfe0\x00x\x00")


def test_the_question_is_the_published_one() -> None:
    call = is_sanctioned(TWO, ONE)
    assert call.to == TWO
    assert call.data == keccak256(b"isSanctioned(address)")[:4] + bytes(12) + bytes.fromhex(ONE[2:])


@pytest.mark.parametrize(
    ("ok", "data", "listed"),
    [
        (True, (0).to_bytes(32, "big"), False),
        (True, (1).to_bytes(32, "big"), True),
        (True, (2).to_bytes(32, "big"), None),
        (True, b"\x80" + bytes(31), None),
        (True, b"", None),
        (True, bytes(31), None),
        (True, bytes(64), None),
        (False, (0).to_bytes(32, "big"), None),
    ],
)
def test_only_a_boolean_is_an_answer(ok: bool, data: bytes, listed: bool | None) -> None:  # noqa: FBT001
    assert read_sanctioned(Reply(ok=ok, data=data)) is listed


def test_what_is_kept_reads_back() -> None:
    kept = Screening(decision="clear", lists=("sha256:00", f"{ONE}@7"), at=1_800_000_000, accept_unscreened=True)
    assert decode_screening(encode_screening(kept)) == kept
    assert decode_screening(None) is None

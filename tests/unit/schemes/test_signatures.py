"""Digests, spellings and recovery of payers' signatures, against known-good vectors."""

import importlib
import sys

import pytest

from facilitator.schemes import signatures
from facilitator.schemes.signatures import GROUP_ORDER, HALF_ORDER, domain_separator, flaw, normalise, recover, transfer_digest
from facilitator.units import Address, Atomic, AuthNonce, Network, UnixSeconds
from tests.fixtures.payments import USDC, authorization
from tests.fixtures.vectors import (
    BASE_DOMAIN_SEPARATOR,
    BASE_PAYMENT,
    DIGEST,
    DOMAIN_SEPARATOR,
    OFFICIAL_PAYMENT,
    PAYER,
    SIGNATURE,
    SIGNATURE_HIGH_S,
    USDC_BASE,
)

RAW = bytes.fromhex(SIGNATURE[2:])
R, S, V = RAW[:32], RAW[32:64], RAW[64]


def compact(signature: bytes) -> bytes:
    """The EIP-2098 form."""
    return signature[:32] + bytes([signature[32] | (signature[64] - 27) << 7]) + signature[33:64]


def test_domain_separators_are_those_of_appendix_a() -> None:
    assert "0x" + domain_separator("USDC", "2", 84532, USDC).hex() == DOMAIN_SEPARATOR
    assert "0x" + domain_separator("USD Coin", "2", 8453, Address(USDC_BASE.lower())).hex() == BASE_DOMAIN_SEPARATOR


def test_the_first_vector_of_appendix_a_has_its_digest_and_signer() -> None:
    digest = transfer_digest(authorization(), "USDC", "2")
    assert "0x" + digest.hex() == DIGEST
    assert recover(digest, RAW) == PAYER.lower()


def test_the_vector_on_base_has_its_digest_and_signer() -> None:
    terms = authorization(
        network=Network("eip155:8453"),
        asset=Address(USDC_BASE.lower()),
        payer=Address("0x7e5f4552091a69125d5dfcb7b8c2659029395bdf"),
        pay_to=Address(str(BASE_PAYMENT["to"]).lower()),
        amount_atomic=Atomic(1_000_000),
        valid_after=UnixSeconds(1_700_000_000),
        valid_before=UnixSeconds(1_700_000_060),
        auth_nonce=AuthNonce(str(BASE_PAYMENT["auth_nonce"])),
    )
    digest = transfer_digest(terms, "USD Coin", "2")
    assert "0x" + digest.hex() == BASE_PAYMENT["digest"]
    assert recover(digest, bytes.fromhex(str(BASE_PAYMENT["signature"])[2:])) == terms.payer


def test_the_official_sdks_own_test_input_has_its_digest_and_signer() -> None:
    terms = authorization(
        payer=Address(str(OFFICIAL_PAYMENT["payer"]).lower()),
        pay_to=Address(str(OFFICIAL_PAYMENT["to"]).lower()),
        amount_atomic=Atomic(1000),
        valid_before=UnixSeconds(9_999_999_999),
        auth_nonce=AuthNonce(str(OFFICIAL_PAYMENT["auth_nonce"])),
    )
    digest = transfer_digest(terms, "USDC", "2")
    assert "0x" + digest.hex() == OFFICIAL_PAYMENT["digest"]
    assert recover(digest, bytes.fromhex(str(OFFICIAL_PAYMENT["signature"])[2:])) == terms.payer


@pytest.mark.parametrize(("v", "normal"), [(0, 27), (1, 28), (27, 27), (28, 28), (2, 2), (26, 26), (29, 29), (255, 255)])
def test_v_0_and_1_become_27_and_28_and_no_other_v_changes(v: int, normal: int) -> None:
    assert normalise(R + S + bytes([v])) == R + S + bytes([normal])


@pytest.mark.parametrize("v", [27, 28])
def test_the_compact_form_is_expanded(v: int) -> None:
    assert normalise(compact(R + S + bytes([v]))) == R + S + bytes([v])


@pytest.mark.parametrize("length", [0, 1, 63, 66, 96, 1000])
def test_signatures_of_other_lengths_stay_as_they_came_and_are_no_keys(length: int) -> None:
    raw = bytes(range(256))[:length] * 1
    assert normalise(raw) == raw
    found = flaw(raw)
    assert found is not None
    assert found[1] == f"{len(raw)} bytes"


@pytest.mark.parametrize("v", [2, 26, 29, 255])
def test_other_v_are_refused(v: int) -> None:
    assert flaw(R + S + bytes([v])) == ("v 27, 28, 0 or 1", f"v {v}")


def test_the_high_twin_is_refused_though_it_recovers_to_the_same_signer() -> None:
    twin = bytes.fromhex(SIGNATURE_HIGH_S[2:])
    assert recover(bytes.fromhex(DIGEST[2:]), twin) == PAYER.lower()
    found = flaw(twin)
    assert found is not None
    assert "EIP-2" in found[0]


@pytest.mark.parametrize(
    ("r", "s"), [(1, HALF_ORDER + 1), (0, 1), (1, 0), (GROUP_ORDER, 1), (1, GROUP_ORDER), (2**256 - 1, 1), (1, 2**256 - 1)]
)
def test_r_and_s_outside_their_ranges_are_refused(r: int, s: int) -> None:
    assert flaw(r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\x1b") is not None


@pytest.mark.parametrize(("r", "s"), [(1, 1), (GROUP_ORDER - 1, HALF_ORDER)])
def test_r_and_s_at_the_ends_of_their_ranges_are_fine(r: int, s: int) -> None:
    assert flaw(r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\x1b") is None


def test_an_r_that_is_no_points_x_recovers_nobody() -> None:
    assert recover(bytes.fromhex(DIGEST[2:]), (5).to_bytes(32, "big") + S + b"\x1b") is None


def test_without_coincurve_the_import_fails_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coincurve", None)
    with pytest.raises(ImportError, match="install it"):
        importlib.reload(signatures)
    monkeypatch.undo()
    importlib.reload(signatures)

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from facilitator.protocol.address import checksum_address, keccak256
from facilitator.units import parse_address
from tests.fixtures.vectors import PAYER, USDC_BASE, USDC_BASE_SEPOLIA


def test_the_hash_is_keccak_and_not_sha3_of_fips_202() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_known_addresses_are_spelled_as_their_owners_spell_them() -> None:
    for spelling in (PAYER, USDC_BASE, USDC_BASE_SEPOLIA):
        assert checksum_address(parse_address(spelling.upper().replace("0X", "0x"))) == spelling


@given(st.binary(min_size=20, max_size=20))
def test_every_address_is_spelled_as_eth_utils_spells_it(address: bytes) -> None:
    assert checksum_address(parse_address("0x" + address.hex())) == to_checksum_address(address)


@given(st.binary(max_size=300))
def test_every_hash_is_as_eth_utils_has_it(data: bytes) -> None:
    assert keccak256(data) == keccak(data)

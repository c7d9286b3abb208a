"""What smart wallets' transactions may take, and the code that tries them out."""

from facilitator.domain import probes
from facilitator.domain.facts import Call, Probe, Reply
from facilitator.domain.wallets import DEPLOYMENT_GAS, WALLET_GAS, PayerKind, Wallet, WalletGas, kind_of
from facilitator.units import Gas
from tests.fixtures.payments import USDC

DATA = b"\x01" * 100 + bytes(50)
BASE = 21_000 + 16 * 100 + 4 * 50


def wallet(gas: int = WALLET_GAS, data: bytes = DATA, code: bytes = b"code") -> Wallet:
    return Wallet(kind=PayerKind.CONTRACT, call=Call(to=USDC, data=data), gas=Gas(gas), code=code)


def test_the_limit_is_what_was_measured_and_room() -> None:
    assert wallet().call_gas == WALLET_GAS - BASE
    measured = WalletGas().measured(wallet(), Gas(100_000))
    assert measured.gas == (BASE + 100_000) * 5 // 4 + 30_000
    assert measured.call == wallet().call


def test_no_limit_lies_above_the_most_that_there_may_be() -> None:
    learned = WalletGas()
    assert learned.measured(wallet(), Gas(10**7)).gas == WALLET_GAS
    learned.mined(b"code", 10**7)
    assert learned.measured(wallet(), Gas(1)).gas == WALLET_GAS
    assert learned.measured(wallet(gas=DEPLOYMENT_GAS), Gas(1)).gas == DEPLOYMENT_GAS


def test_what_its_like_took_when_mined_counts_and_fades() -> None:
    learned = WalletGas()
    learned.mined(b"code", 200_000)
    first = learned.measured(wallet(), Gas(50_000)).gas
    assert first == 200_000 * 5 // 4 + 30_000
    assert learned.measured(wallet(code=b"other"), Gas(50_000)).gas < first
    for _ in range(100):
        learned.mined(b"code", 80_000)
    assert learned.measured(wallet(), Gas(0)).gas == 80_000 * 5 // 4 + 30_000


def test_so_many_codes_are_remembered_and_those_asked_for_last() -> None:
    learned = WalletGas(codes_max=3)
    for number in range(3):
        learned.mined(bytes([number]), 300_000)
    learned.measured(wallet(code=b"\0"), Gas(0))
    learned.mined(b"new", 300_000)
    assert len(learned) == 3
    assert learned.measured(wallet(code=b"\0"), Gas(0)).gas > learned.measured(wallet(code=b"\1"), Gas(0)).gas


def test_a_transaction_gets_the_gas_that_its_data_costs_at_least() -> None:
    data = b"\x01" * 8_000
    floor = 21_000 + 40 * 8_000
    assert WalletGas().measured(wallet(data=data), Gas(0)).gas == floor
    assert wallet(data=data, gas=floor - 1).call_gas == 0
    assert wallet(data=data, gas=floor).call_gas == floor - 21_000 - 16 * 8_000


def test_a_delegation_is_23_bytes_and_nothing_else() -> None:
    assert kind_of(b"\xef\x01\x00" + bytes(20)) is PayerKind.DELEGATED
    for code in (b"\xef\x01\x00" + bytes(21), b"\xef\x01\x00", b"\x60" * 23):
        assert kind_of(code) is PayerKind.CONTRACT


def test_a_probe_is_packed_and_what_it_brings_is_read() -> None:
    probe = Probe(call=Call(to=USDC, data=b"data"), gas=Gas(500_000))
    packed = probes.pack(probe)
    assert packed == probes.CREATION_CODE + (500_000).to_bytes(8, "big") + bytes.fromhex(USDC[2:]) + b"data"
    assert probes.gas(probe, packed) * 63 // 64 > 500_000 + 53_000
    assert probes.read(b"\x01" + (77).to_bytes(8, "big") + b"yes") == Reply(ok=True, data=b"yes", gas_used=Gas(77))
    assert probes.read(b"\x00" + bytes(8)) == Reply(ok=False, data=b"", gas_used=Gas(0))
    for nonsense in (b"", bytes(8), b"\x02" + bytes(8), bytes(9 + 513)):
        assert probes.read(nonsense) is None

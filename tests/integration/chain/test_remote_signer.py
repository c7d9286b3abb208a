"""Keys held by services, asked through the real client libraries: right signatures or faults, never anything else."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from eth_account import Account
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from facilitator.chain import remote_signer
from facilitator.chain.remote_signer import AwsKms, GcpKms, KeyService, RemoteSigner, Web3Signer, read_der, read_raw
from facilitator.chain.signer import SigningPolicy, SigningRefusedError
from facilitator.domain import abi
from facilitator.domain.transactions import Transaction
from facilitator.errors import SignerFault
from facilitator.units import Address, Gas, Wei
from tests.fixtures.key_services import MISDEEDS, KeyServices, serving
from tests.fixtures.payments import USDC
from tests.fixtures.vectors import PAYER, PAYER_KEY

ADDRESS = Address(PAYER.lower())
POLICY = SigningPolicy(chain_id=84532, assets=frozenset({USDC}), max_fee_max_wei=Wei(10**10))
ARN = "arn:aws:kms:eu-central-1:111122223333:key/mrk-1234"
VERSION = "projects/p/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"
MAKERS: dict[str, Callable[[str], KeyService]] = {
    "aws": lambda url: AwsKms(ARN, "eu-central-1", url),
    "gcp": lambda url: GcpKms(VERSION, url, anonymous=True),
    "web3signer": lambda url: Web3Signer(f"{url}/web3signer", ADDRESS, 84532, token="t0ken"),
}


def transaction(**changes: Any) -> Transaction:
    fields: dict[str, Any] = {
        "chain_id": 84532,
        "tx_nonce": 7,
        "to": USDC,
        "data": abi.TRANSFER_WITH_AUTHORIZATION + bytes(288),
        "gas": Gas(120_000),
        "max_fee_wei": Wei(10**9),
        "max_priority_fee_wei": Wei(10**6),
    }
    return Transaction(**fields | changes)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def services() -> KeyServices:
    return KeyServices(PAYER_KEY)


@pytest_asyncio.fixture(params=MAKERS)
async def signer(request: pytest.FixtureRequest, services: KeyServices) -> AsyncIterator[RemoteSigner]:
    async with serving(services) as url:
        made = RemoteSigner(MAKERS[request.param](url), ADDRESS, POLICY)
        yield made
        services.hang.set()
        await made.close()


@pytest.mark.parametrize("high_s", [False, True])
async def test_a_transaction_is_signed_as_the_key_itself_would(signer: RemoteSigner, services: KeyServices, *, high_s: bool) -> None:
    services.high_s = high_s
    signed = await signer.sign(transaction())
    assert Account.recover_transaction(signed.raw) == PAYER
    r, s = read_raw(b'{"result": "0x' + signed.raw.hex().encode() + b'"}')
    assert r > 0
    assert 0 < s <= remote_signer.GROUP_ORDER // 2


async def test_the_start_up_signature_is_of_a_transaction_that_can_never_be_executed(signer: RemoteSigner, services: KeyServices) -> None:
    await signer.prove()
    assert len(services.asked) == 1


@pytest.mark.parametrize("misdeed", MISDEEDS)
async def test_whatever_else_a_service_does_is_a_fault(signer: RemoteSigner, services: KeyServices, misdeed: str) -> None:
    services.misdeed = misdeed
    with pytest.raises(SignerFault) as caught:
        await signer.sign(transaction())
    assert caught.value.retryable
    with pytest.raises(SignerFault):
        await signer.prove()
    services.misdeed = None
    assert Account.recover_transaction((await signer.sign(transaction())).raw) == PAYER


async def test_a_service_that_hangs_is_given_up(signer: RemoteSigner, services: KeyServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_signer, "SIGNING_S", 0.3)
    services.hanging = True
    with pytest.raises(SignerFault):
        await signer.sign(transaction())


@pytest.mark.parametrize(
    "changes",
    [
        {"chain_id": 8453},
        {"value_wei": Wei(1)},
        {"to": Address("0x" + "22" * 20)},
        {"data": b"\xa9\x05\x9c\xbb" + bytes(64)},
        {"to": ADDRESS, "data": b"\x01"},
    ],
)
async def test_a_service_is_not_even_asked_for_what_is_outside_the_policy(
    signer: RemoteSigner, services: KeyServices, changes: dict[str, Any]
) -> None:
    with pytest.raises(SigningRefusedError):
        await signer.sign(transaction(**changes))
    assert services.asked == []


async def test_a_web3signer_is_told_every_field_and_the_token(services: KeyServices) -> None:
    async with serving(services) as url:
        signer = RemoteSigner(MAKERS["web3signer"](url), ADDRESS, POLICY)
        await signer.sign(transaction())
        await signer.close()
    [(headers, body)] = services.asked
    assert headers["Authorization"] == "Bearer t0ken"
    assert body["method"] == "eth_signTransaction"
    assert body["params"][0]["nonce"] == "0x7"


@given(st.binary(max_size=200))
def test_any_bytes_for_der_are_numbers_or_a_fault(content: bytes) -> None:
    try:
        r, s = read_der(content)
    except SignerFault:
        return
    assert 0 <= r < 2**256
    assert 0 <= s < 2**256


@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda raw: b'{"result": "0x02' + raw.hex().encode() + b'"}')))
def test_any_answer_of_a_web3signer_is_numbers_or_a_fault(content: bytes) -> None:
    with contextlib.suppress(SignerFault):
        read_raw(content)

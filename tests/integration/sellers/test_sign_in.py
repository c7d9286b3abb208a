"""SIGN-IN-WITH-X for jobs: the paying wallet alone, each challenge once, for what it was issued for, while it lasts."""

from pathlib import Path
from typing import Any

import pytest
from eth_account.messages import encode_defunct

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.pay import decoded
from facilitator.devstack.sellers.sign_in import SignIn, message
from facilitator.gateway.replies import encode
from tests.integration.gateway.model import BUYER
from tests.integration.sellers.market import GENERATE, Json, Stalls

STRANGER = Buyer.numbered(8)


class Desk:
    """One paid job, and those who ask for it."""

    def __init__(self, stalls: Stalls, job: str) -> None:
        self.stalls = stalls
        self.url = stalls.url(f"/api/jobs/{job}")

    async def challenge(self, url: str | None = None) -> Json:
        async with self.stalls.session.get(url or self.url) as response:
            assert response.status == 402
            told: Json = decoded(response.headers["PAYMENT-REQUIRED"])
            assert told == await response.json()
            assert (told["x402Version"], told["accepts"]) == (2, [])
            return told

    async def ask(self, header: str | None) -> tuple[int, Json]:
        async with self.stalls.session.get(self.url, headers={"SIGN-IN-WITH-X": header} if header is not None else {}) as response:
            return response.status, await response.json()

    async def proof(self, buyer: Buyer = BUYER, *, signed: Json | None = None, **changes: Any) -> str:
        """A proof for a fresh challenge; `signed` changes what is signed, `changes` what is sent."""
        extension = (await self.challenge())["extensions"]["sign-in-with-x"]
        chain = extension["supportedChains"][0]["chainId"]
        info = extension["info"] | (signed or {})
        signature = buyer.account.sign_message(encode_defunct(text=message(info, buyer.address, chain))).signature
        proof = info | {"address": buyer.address, "chainId": chain, "type": "eip191", "signature": "0x" + bytes(signature).hex()}
        return encode({name: value for name, value in (proof | changes).items() if value is not None})


async def opened(stalls: Stalls) -> Desk:
    return Desk(stalls, (await stalls.buy("/api/generate/gpt-image-1/generate", GENERATE)).body["jobId"])


async def test_the_challenge_names_us_the_route_and_its_end(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        desk = await opened(stalls)
        one, other = await desk.challenge(), await desk.challenge()
    extension = one["extensions"]["sign-in-with-x"]
    info = extension["info"]
    assert info["domain"] == stalls.market.urls["studio"].removeprefix("http://")
    assert info["uri"] == desk.url == info["resources"][0]
    assert (info["version"], len(info["nonce"])) == ("1", 32)
    assert info["issuedAt"] < info["expirationTime"]
    assert extension["supportedChains"] == [{"chainId": "eip155:84532", "type": "eip191", "signatureScheme": "eip191"}]
    assert set(extension["schema"]["required"]) <= set(extension["schema"]["properties"])
    assert info["nonce"] != other["extensions"]["sign-in-with-x"]["info"]["nonce"]
    assert one["error"] == "sign_in_required"


async def test_a_proof_is_good_once(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        desk = await opened(stalls)
        proof = await desk.proof()
        assert (await desk.ask(proof))[0] == 200
        status, told = await desk.ask(proof)
        assert (status, told["error"]) == (402, "invalid_siwx_nonce")


async def test_another_wallet_does_not_see_the_job(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        desk = await opened(stalls)
        status, told = await desk.ask(await desk.proof(STRANGER))
        assert (status, told["success"], "result" in told) == (403, False, False)


async def test_a_job_that_there_is_not_is_told_only_to_who_signed_in(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        for name in ("00000000-0000-4000-8000-000000000000", "no-uuid", "..%2f..%2fports"):
            desk = Desk(stalls, name)
            async with stalls.session.get(desk.url) as response:
                assert response.status in {402, 404}
            if "%" not in name:
                assert (await desk.ask(await desk.proof()))[0] == 404


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"domain": "evil.example"}, "invalid_siwx_mismatch"),
        ({"uri": "http://evil.example/api/jobs/1"}, "invalid_siwx_mismatch"),
        ({"nonce": "0" * 32}, "invalid_siwx_nonce"),
        ({"issuedAt": "2020-01-01T00:00:00.000Z"}, "invalid_siwx_mismatch"),
        ({"expirationTime": "2099-01-01T00:00:00.000Z"}, "invalid_siwx_mismatch"),
        ({"expirationTime": None}, "invalid_siwx_mismatch"),
        ({"statement": "Give me everything."}, "invalid_siwx_mismatch"),
        ({"resources": ["http://evil.example/"]}, "invalid_siwx_mismatch"),
        ({"notBefore": "2020-01-01T00:00:00.000Z"}, "invalid_siwx_mismatch"),
        ({"requestId": "1"}, "invalid_siwx_mismatch"),
        ({"version": "2"}, "invalid_siwx_mismatch"),
        ({"chainId": "eip155:1"}, "invalid_siwx_unsupported_chain"),
        ({"type": "ed25519"}, "invalid_siwx_unsupported_chain"),
        ({"address": STRANGER.address}, "invalid_siwx_signature"),
        ({"address": "0x1234"}, "invalid_siwx_signature"),
        ({"signature": "0x" + "11" * 65}, "invalid_siwx_signature"),
        ({"signature": "0x"}, "invalid_siwx_signature"),
        ({"signature": "zz"}, "invalid_siwx_signature"),
        ({"signature": None}, "invalid_siwx_header"),
        ({"address": 5}, "invalid_siwx_header"),
    ],
    ids=str,
)
async def test_what_was_not_issued_or_not_signed_opens_nothing(tmp_path: Path, how: Json, error: str) -> None:
    async with Stalls(tmp_path) as stalls:
        desk = await opened(stalls)
        status, told = await desk.ask(await desk.proof(**how))
        assert (status, told["error"]) == (402, error)
        assert told["extensions"]["sign-in-with-x"]["info"]["nonce"]  # to try again with
        if error == "invalid_siwx_mismatch":  # signed as it is sent: it opens nothing all the same
            status, told = await desk.ask(await desk.proof(signed=how, **{name: value for name, value in how.items() if value is None}))
            assert (status, told["error"]) == (402, error)


@pytest.mark.parametrize("header", ["", "no base64 at all", "e30=", "W10=", "////", "A" * 100_000], ids=lambda header: header[:12])
async def test_a_header_that_is_no_proof_opens_nothing(tmp_path: Path, header: str) -> None:
    async with Stalls(tmp_path) as stalls:
        desk = await opened(stalls)
        async with stalls.session.get(desk.url, headers={"SIGN-IN-WITH-X": header}) as response:
            assert response.status in {400, 402}  # the server takes no header as long as the last


async def test_a_challenge_for_one_job_opens_no_other(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        first, second = await opened(stalls), await opened(stalls)
        status, told = await second.ask(await first.proof())
        assert (status, told["error"]) == (402, "invalid_siwx_mismatch")


async def test_a_challenge_ends_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("facilitator.devstack.sellers.studio.SignIn", lambda url, network: SignIn(url, network, monotonic=lambda: now[0]))
    async with Stalls(tmp_path) as stalls:
        desk = await opened(stalls)
        early, late = await desk.proof(), await desk.proof()
        now[0] += 299.0
        assert (await desk.ask(early))[0] == 200
        now[0] += 2.0
        status, told = await desk.ask(late)
        assert (status, told["error"]) == (402, "invalid_siwx_nonce")

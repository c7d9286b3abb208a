"""Every answer that our codec can write is read by the official facilitator clients, in Python and in TypeScript.

Not the schemas alone: the clients themselves, with an HTTP answer before them, for what they do around their schemas
(statuses, null, what counts as an error) decides what a seller's server sees.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import pytest
from x402.http import FacilitatorConfig, HTTPFacilitatorClientSync
from x402.http.facilitator_client import FacilitatorResponseError
from x402.schemas import PaymentPayload, PaymentRequirements
from x402.schemas.v1 import PaymentPayloadV1, PaymentRequirementsV1

from facilitator.devstack.install import node_program
from facilitator.protocol.codec import encode_settle, encode_supported, encode_verify
from facilitator.protocol.messages import SettleResult, Supported, SupportedKind, VerifyResult, Version
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.units import Address, Network, TxHash
from tests.fixtures.vectors import PAYER, v1_request, v2_request
from tests.fixtures.waiting import PATIENCE_S

HERE: Final = Path(__file__).parent
ADDRESS: Final = Address(PAYER.lower())
TX_HASH: Final = TxHash("0x" + "cd" * 32)
NICKNAME: Final[dict[Version, str]] = {1: "base-sepolia", 2: "eip155:84532"}
VERSIONS: Final[tuple[Version, ...]] = (1, 2)
KINDS: Final = (
    SupportedKind(scheme="exact", network=Network("eip155:84532")),
    SupportedKind(scheme="exact", network=Network("eip155:8453"), extra={"note": "kept"}),
)

Operation = Literal["verify", "settle", "supported"]


@dataclass(frozen=True)
class Case:
    """One answer, the version it is in, and the members that a client must find in it."""

    name: str
    operation: Operation
    version: Version
    body: bytes
    members: dict[str, Any]


def verify_cases() -> Iterator[Case]:
    for version in VERSIONS:
        yield Case(
            f"verify-v{version}-valid",
            "verify",
            version,
            encode_verify(VerifyResult(payer=ADDRESS), version),
            {"isValid": True, "payer": PAYER},
        )
        for reason in Reason:
            for payer, shown in ((ADDRESS, PAYER), (None, "")):
                refusal = Refusal(reason=reason, message=f"why {reason.name}")
                body = encode_verify(VerifyResult(payer=payer, refusal=refusal), version)
                word = reason.v1 if version == 1 else reason.v2
                members = {"isValid": False, "payer": shown, "invalidReason": word, "invalidMessage": refusal.message}
                yield Case(f"verify-v{version}-{reason.name}-{'payer' if payer else 'nobody'}", "verify", version, body, members)


def settle_cases() -> Iterator[Case]:
    for version in VERSIONS:
        network = NICKNAME[version]
        paid = SettleResult(payer=ADDRESS, tx_hash=TX_HASH, log_index=3, settlement_id="0190")
        members: dict[str, Any] = {"success": True, "transaction": TX_HASH, "network": network, "payer": PAYER}
        members["extra"] = {"logIndex": 3, "settlementId": "0190"}
        yield Case(f"settle-v{version}-success", "settle", version, encode_settle(paid, version, network), members)
        for reason in Reason:
            for tx_hash in (TX_HASH,) if reason is Reason.SETTLEMENT_PENDING else (None, TX_HASH):
                refusal = Refusal(reason=reason, message=f"why {reason.name}")
                body = encode_settle(SettleResult(payer=ADDRESS, refusal=refusal, tx_hash=tx_hash), version, network)
                word = reason.v1 if version == 1 else reason.v2
                failed = {"success": False, "transaction": tx_hash or "", "network": network, "payer": PAYER}
                failed |= {"errorReason": word, "errorMessage": refusal.message}
                yield Case(f"settle-v{version}-{reason.name}-{'hash' if tx_hash else 'unsent'}", "settle", version, body, failed)


def supported_cases() -> Iterator[Case]:
    body = encode_supported(Supported(kinds=KINDS, extensions=(), signers={"eip155:*": (ADDRESS,)}))
    kinds: list[dict[str, Any]] = [
        {"x402Version": 2, "scheme": "exact", "network": "eip155:84532"},
        {"x402Version": 2, "scheme": "exact", "network": "eip155:8453", "extra": {"note": "kept"}},
        {"x402Version": 1, "scheme": "exact", "network": "base-sepolia"},
        {"x402Version": 1, "scheme": "exact", "network": "base", "extra": {"note": "kept"}},
    ]
    yield Case("supported", "supported", 2, body, {"kinds": kinds, "extensions": [], "signers": {"eip155:*": [PAYER]}})
    nothing = encode_supported(Supported(kinds=(), extensions=("bazaar",), signers={}))
    yield Case("supported-nothing", "supported", 2, nothing, {"kinds": [], "extensions": ["bazaar"], "signers": {}})


CASES: Final = [*verify_cases(), *settle_cases(), *supported_cases()]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def python_reads(case: Case, body: bytes, status: int = 200) -> dict[str, Any]:
    """What the facilitator client of PyPI `x402` makes of an answer, as a JSON object without nulls."""
    answer = httpx.MockTransport(lambda _: httpx.Response(status, content=body, headers={"Content-Type": "application/json"}))
    with httpx.Client(transport=answer) as http:
        client = HTTPFacilitatorClientSync(FacilitatorConfig(url="http://facilitator.test", http_client=http))
        if case.operation == "supported":
            return client.get_supported().model_dump(by_alias=True, exclude_none=True)
        payload, requirements = asked(case.version)
        read = (client.verify if case.operation == "verify" else client.settle)(payload, requirements)
        return read.model_dump(by_alias=True, exclude_none=True)


def asked(version: Version) -> tuple[PaymentPayload | PaymentPayloadV1, PaymentRequirements | PaymentRequirementsV1]:
    if version == 1:
        tree = v1_request()
        return PaymentPayloadV1.model_validate(tree["paymentPayload"]), PaymentRequirementsV1.model_validate(tree["paymentRequirements"])
    tree = v2_request()
    return PaymentPayload.model_validate(tree["paymentPayload"]), PaymentRequirements.model_validate(tree["paymentRequirements"])


def typescript_reads(directory: Path, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the clients of npm make of answers: `{"read": …}` or `{"error": …}` for each, in order."""
    program = shutil.copy(HERE / "clients" / "read_answers.mjs", directory)
    (directory / "node_modules").symlink_to(HERE / "npm" / "node_modules", target_is_directory=True)
    done = subprocess.run(
        [node_program(), program],
        input="".join(json.dumps(line) + "\n" for line in asked),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(asked), done.stderr
    return answers


@every_case
def test_the_python_client_reads_an_answer_whole(case: Case) -> None:
    assert python_reads(case, case.body) == case.members


@pytest.fixture(scope="module")
def typescript(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What every TypeScript client made of every case, by (client, case): one Node.js for all."""
    every = [(client, case) for client in ("core", "legacy") for case in CASES]
    lines = [
        {"client": client, "operation": case.operation, "version": case.version, "status": 200, "body": case.body.decode()}
        for client, case in every
    ]
    answers = typescript_reads(tmp_path_factory.mktemp("typescript"), lines)
    return {(client, case.name): answer for (client, case), answer in zip(every, answers, strict=True)}


@every_case
@pytest.mark.parametrize("client", ["core", "legacy"])
def test_the_typescript_clients_read_an_answer_whole(client: str, case: Case, typescript: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert typescript[client, case.name] == {"read": case.members}


NO_ANSWER: Final = {
    "cut": (200, CASES[0].body[:-4]),
    "null": (200, b"null"),
    "empty": (200, b""),
    "unavailable": (503, b'{"error":"store_unavailable","message":"the database is away","requestId":"r"}'),
    "unauthorized": (401, b'{"error":"unauthorized","message":"no key","requestId":"r"}'),
    "malformed": (400, b'{"error":"Missing paymentPayload or paymentRequirements","isValid":false,"invalidReason":"invalid_payload"}'),
}


def test_what_is_no_answer_is_an_error_in_every_client_and_never_a_payment(tmp_path: Path) -> None:
    lines = [
        {"client": client, "operation": operation, "status": status, "body": body.decode()}
        for client in ("core", "legacy")
        for operation in ("verify", "settle")
        for status, body in NO_ANSWER.values()
    ]
    for line, answer in zip(lines, typescript_reads(tmp_path, lines), strict=True):
        assert "error" in answer, (line, answer)
    by_operation = {"verify": CASES[0], "settle": next(case for case in CASES if case.operation == "settle")}
    for case in by_operation.values():
        for status, body in NO_ANSWER.values():
            with pytest.raises(FacilitatorResponseError if status == 200 else ValueError, match="Facilitator"):
                python_reads(case, body, status)

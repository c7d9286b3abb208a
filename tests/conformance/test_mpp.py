"""npm `mppx`, the reference implementation of MPP, reads what the kit writes: challenges and their binding, receipts, discovery."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.install import node_program
from facilitator.devstack.sellers.openapi import document
from facilitator.devstack.sellers.studio import GenerateRequest
from facilitator.gateway.mpp import Asked, Scope, challenge, read_credential, render_receipt
from facilitator.gateway.payments import Payment
from facilitator.gateway.prices import Resource, Terms, find_token, parse_payee
from facilitator.units import Atomic, UnixSeconds
from tests.fixtures.mpp import answered, header
from tests.fixtures.waiting import PATIENCE_S

HERE: Final = Path(__file__).parent
NOW: Final = UnixSeconds(1_790_000_000)
SECRET: Final = "s" * 32
SCOPE: Final = Scope(realm="studio.example", secret=SECRET.encode())
ASKED: Final = Asked(method="POST", target="/generate", body=b"{}")
RESOURCE: Final = Resource(url="", description='Bilder, "groß" \\ \u2028 \x7f 🗼', mime_type="")
PAYEE: Final = "0x2222222222222222222222222222222222222222"
TERMS: Final = Terms(token=find_token("base"), pay_to=parse_payee(PAYEE), amount_atomic=Atomic(9_000), max_timeout_s=300)


def mppx_reads(directory: Path, **told: Any) -> dict[str, Any]:
    program = shutil.copy(HERE / "clients" / "read_mpp.mjs", directory)
    (directory / "node_modules").symlink_to(HERE / "npm" / "node_modules", target_is_directory=True)
    done = subprocess.run(
        [node_program(), program], input=json.dumps(told), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_mppx_reads_challenge_receipt_and_document_and_finds_them_right(tmp_path: Path) -> None:
    issued = challenge(SCOPE, ASKED, TERMS, RESOURCE, NOW)
    payment = read_credential(SCOPE, ASKED, [header(answered(Buyer.numbered(1), issued))["Authorization"]], [TERMS], RESOURCE, NOW)
    assert isinstance(payment, Payment)
    asset = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
    described = document({"m": "/m"}, GenerateRequest, dollars=(9_000, 200_000), currency=asset, base_url="https://studio.example")
    read = mppx_reads(tmp_path, challenge=issued, secret=SECRET, receipt=render_receipt(payment, "0x" + "ab" * 32, NOW), document=described)
    assert read["bound"] is True  # it wrote `request` down again as RFC 8785 has it, and made the same HMAC
    assert read["challenge"]["request"] == {
        "amount": "9000",
        "currency": asset,
        "recipient": PAYEE,
        "description": RESOURCE.description,
        "methodDetails": {"chainId": 8453, "credentialTypes": ["authorization"], "decimals": 6},
    }
    assert read["challenge"]["expires"] == "2026-09-21T14:18:20Z"
    receipt = {"method": "evm", "reference": "0x" + "ab" * 32, "status": "success", "timestamp": "2026-09-21T14:13:20Z"}
    assert receipt.items() <= read["receipt"].items()
    assert read["faults"] == []

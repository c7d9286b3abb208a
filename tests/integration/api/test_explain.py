"""`facilitator explain` over what people copy, with and without a chain to ask."""

import base64
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from facilitator.config import load
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer, facilitator_request, requirements
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.explain import Line, explain
from tests.fixtures.wallets import Misdeed, delegated, deployed, misbehave, undeployed
from tests.integration.api.test_cli import Shell, shell

__all__ = ["shell"]
NewBuyer = Callable[..., Awaitable[Buyer]]
SELLER, RIVAL = dev_account("seller", 8).address, dev_account("rival", 8).address
TRANSFER = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"


def asked(version: Any = 2, **changes: Any) -> dict[str, Any]:
    return requirements(version, pay_to=SELLER, amount_atomic=10_000) | changes


def signed(version: Any = 2, **options: Any) -> dict[str, Any]:
    payment: dict[str, Any] = Buyer.numbered(1).pay(version, asked(version), **({"valid_before": int(time.time()) + 600} | options))
    return payment


def header(payment: dict[str, Any]) -> bytes:
    return base64.b64encode(json.dumps(payment).encode())


async def lines_of(text: bytes, terms: bytes | None = None, rpc_url: str | None = None) -> list[Line]:
    return await explain(text, terms, None, rpc_url)


def verdicts(lines: list[Line]) -> dict[str, str]:
    return {line.subject: line.verdict for line in lines}


GOOD = {"shape": "ok", "payment": "ok", "terms": "ok", "signature": "ok", "time": "ok", "chain": "skip"}
FORMS: dict[str, Callable[[int, dict[str, Any]], bytes]] = {
    "payload": lambda _, payment: json.dumps(payment).encode(),
    "request body": lambda version, payment: json.dumps(facilitator_request(payment, asked(version))).encode(),
    "header": lambda _, payment: header(payment),
    "header with its name": lambda version, payment: (
        (b"PAYMENT-SIGNATURE: " if version == 2 else b"x-payment: ") + header(payment) + b"\r\n"
    ),
    "header in a log line of JSON": lambda _, payment: b'"x-payment": "' + header(payment) + b'"',
    "curl option": lambda _, payment: b"-H 'X-PAYMENT: " + header(payment) + b"'",
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("form", FORMS)
async def test_every_form_that_people_copy_is_read(form: str, version: int) -> None:
    assert verdicts(await lines_of(FORMS[form](version, signed(version)))) == GOOD


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "JSON"),
        (b"[1]", "base64"),
        (b"{", "expected JSON"),
        (b"PAYMENT-SIGNATURE: !!", "cut short"),
        (header({"x402Version": 2})[:-3], "cut short"),
        (b'{"x402Version": 2}', "$.accepted"),
        (b'{"x402Version": 7, "payload": {}}', ""),
        ("ключ".encode(), "ASCII"),
    ],
)
async def test_what_cannot_be_read_is_one_line_that_says_why(text: bytes, says: str) -> None:
    [line] = await lines_of(text)
    assert (line.verdict, line.subject) == ("fail", "shape")
    assert says in line.what
    assert line.code


async def test_everything_that_is_wrong_is_told_not_only_the_first() -> None:
    payment = signed(valid_before=int(time.time()) - 60)
    terms = asked(payTo="0x" + "44" * 20, amount="20000", extra={"name": "USD Coin", "version": "2"})
    lines = await lines_of(json.dumps(payment).encode(), json.dumps(terms).encode())
    failing = [line for line in lines if line.verdict == "fail"]
    assert [line.code for line in failing] == [
        "invalid_exact_evm_token_name_mismatch",
        "invalid_exact_evm_recipient_mismatch",
        "invalid_exact_evm_payload_authorization_value_mismatch",
        "invalid_exact_evm_payload_authorization_valid_before",
    ]
    assert "expected exactly 20000 (0.02 USDC), got 10000 (0.01 USDC)" in failing[2].what
    assert "s ago" in failing[3].what


async def test_a_wallets_signature_is_judged_by_its_code_where_there_is_a_chain_to_ask(chain: Anvil, token: Token) -> None:
    wallet = await deployed(chain.node, 620_000)
    key = await delegated(chain.node, dev_account("explained", 1), sponsor=dev_account("explained", 2))
    await token.fund([wallet.address, key.address], amount_atomic=10_000)

    async def told(buyer: Buyer, rpc_url: str | None) -> dict[str, str]:
        payment = buyer.pay(2, asked(), valid_before=int(time.time()) + 600)
        return verdicts(await lines_of(json.dumps(payment).encode(), rpc_url=rpc_url))

    alone = GOOD | {"signature": "fail", "wallet": "skip"}
    by_its_code = {subject: "ok" for subject in GOOD if subject != "signature"} | {"wallet": "ok"}
    assert [await told(wallet, None), await told(wallet, chain.rpc_url)] == [alone, by_its_code]
    assert [await told(key, None), await told(key, chain.rpc_url)] == [GOOD, by_its_code]
    for buyer in (wallet, key):
        await misbehave(chain.node, buyer.address, Misdeed.SAY_NO)
        assert await told(buyer, chain.rpc_url) == by_its_code | {"wallet": "fail", "chain": "fail"}
    unwrapped = undeployed(620_001)
    assert (await told(unwrapped, chain.rpc_url))["wallet"] == "fail", "none is deployed unless a configuration says so"


async def test_with_a_chain_the_balance_and_the_transaction_that_used_the_nonce_are_told(
    chain: Anvil, token: Token, new_buyer: NewBuyer
) -> None:
    await token.set_gas_money(RIVAL, 10**18)
    buyer = await new_buyer(amount_atomic=10_000)
    payment = buyer.pay(2, asked(), valid_before=int(time.time()) + 600)
    text = json.dumps(payment).encode()
    assert verdicts(await lines_of(text, rpc_url=chain.rpc_url)) == GOOD | {"chain": "ok"}

    terms = payment["payload"]["authorization"]
    raw = [terms["from"], terms["to"], int(terms["value"]), int(terms["validAfter"]), int(terms["validBefore"])]
    secrets = [bytes.fromhex(terms["nonce"][2:]), bytes.fromhex(payment["payload"]["signature"][2:])]
    tx_hash = await token.transact(RIVAL, TRANSFER, *raw, *secrets)

    lines = await lines_of(text, rpc_url=chain.rpc_url)
    assert [line.code for line in lines if line.subject == "chain"] == [
        "invalid_exact_evm_nonce_already_used",
        "invalid_exact_evm_insufficient_balance",
    ]
    assert any(line.subject == "nonce" and tx_hash in line.what for line in lines)


async def test_a_chain_that_does_not_answer_is_said_and_is_no_verdict() -> None:
    lines = await lines_of(json.dumps(signed()).encode(), rpc_url="http://127.0.0.1:1")
    assert verdicts(lines)["chain"] == "skip"
    assert not any(line.verdict == "fail" for line in lines)


def test_the_command_needs_neither_key_nor_configuration(tmp_path: Path, shell: Shell) -> None:
    shell.environment.pop("FACILITATOR_CONFIG")
    file = tmp_path / "header.txt"
    file.write_bytes(b"PAYMENT-SIGNATURE: " + header(signed()))
    done = shell.run("explain", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok    shape      x402 version 2")

    file.write_bytes(header(signed(valid_before=int(time.time()) - 60)))
    done = shell.run("explain", str(file), "--json")
    assert done.returncode == 1
    assert {line["subject"]: line["verdict"] for line in json.loads(done.stdout)}["time"] == "fail"


async def test_a_configuration_names_the_tokens_and_the_chain(shell: Shell, chain: Anvil, new_buyer: NewBuyer) -> None:
    shell.file.write_text(shell.file.read_text("utf-8").replace("http://127.0.0.1:1", chain.rpc_url), "utf-8")
    config = load(shell.file, shell.environment).config
    payment = (await new_buyer()).pay(2, asked(), valid_before=int(time.time()) + 600)
    assert verdicts(await explain(json.dumps(payment).encode(), None, config, None)) == GOOD | {"chain": "ok"}

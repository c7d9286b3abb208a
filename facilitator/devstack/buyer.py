"""A buyer: signs x402 `exact` payments over EIP-3009, in v1 and v2, with eth-account, as the official clients do.

Independent of the service's own codecs on purpose, so that tests meet bytes that the service did not make.
"""

import base64
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.token import BASE_SEPOLIA_USDC

Json = dict[str, Any]
"""A JSON object of the wire."""

BASE_SEPOLIA: Final = 84532

_TYPES: Final = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}


def requirements(version: Literal[1, 2], *, pay_to: str, amount_atomic: int, **changes: object) -> Json:
    """What a seller asks on Base Sepolia, as the wire has it in that version; `changes` replace or add members."""
    terms: Json = {
        "scheme": "exact",
        "payTo": pay_to,
        "asset": BASE_SEPOLIA_USDC,
        "maxTimeoutSeconds": 300,
        "extra": {"name": "USDC", "version": "2"},
    }
    if version == 1:
        terms |= {"network": "base-sepolia", "maxAmountRequired": str(amount_atomic)}
        terms |= {"resource": "http://127.0.0.1/report", "description": "report", "mimeType": "application/json"}
    else:
        terms |= {"network": f"eip155:{BASE_SEPOLIA}", "amount": str(amount_atomic)}
    return terms | changes


@dataclass(frozen=True, slots=True)
class Buyer:
    """One payer with a key of its own."""

    account: LocalAccount
    chain_id: int = BASE_SEPOLIA

    @classmethod
    def numbered(cls, index: int) -> "Buyer":
        """The `index`-th buyer of the local stack."""
        return cls(dev_account("buyer", index))

    @property
    def address(self) -> str:
        """Its address, EIP-55."""
        return str(self.account.address)

    def authorize(
        self,
        terms: Mapping[str, Any],
        *,
        valid_after: int = 0,
        valid_before: int | None = None,
        auth_nonce: str | None = None,
        **changes: str,
    ) -> Json:
        """Sign for `terms` (v1 or v2): the scheme's part of a payment, `signature` and `authorization`.

        By default valid from 1970 until `maxTimeoutSeconds` from now, with a random auth nonce. `changes` replace members
        of the authorization before it is signed, such as `value="1"`.
        """
        if valid_before is None:
            valid_before = int(time.time()) + int(terms["maxTimeoutSeconds"])
        authorization = {
            "from": self.address,
            "to": to_checksum_address(terms["payTo"]),
            "value": str(terms["amount"] if "amount" in terms else terms["maxAmountRequired"]),
            "validAfter": str(valid_after),
            "validBefore": str(valid_before),
            "nonce": auth_nonce or "0x" + secrets.token_hex(32),
        } | changes
        domain = {
            "name": terms["extra"]["name"],
            "version": terms["extra"]["version"],
            "chainId": self.chain_id,
            "verifyingContract": to_checksum_address(terms["asset"]),
        }
        numbers = {name: int(authorization[name]) for name in ("value", "validAfter", "validBefore")}
        message = authorization | numbers | {"nonce": bytes.fromhex(authorization["nonce"][2:])}
        signed = self.account.sign_typed_data(domain, _TYPES, message)
        return {"signature": "0x" + bytes(signed.signature).hex(), "authorization": authorization}

    def pay(self, version: Literal[1, 2], terms: Mapping[str, Any], **how: Any) -> Json:  # noqa: ANN401 - passed to authorize
        """A whole payment payload for `terms`, which must be of that version; `how` as in `authorize`."""
        payload = self.authorize(terms, **how)
        if version == 1:
            return {"x402Version": 1, "scheme": terms["scheme"], "network": terms["network"], "payload": payload}
        resource = {"url": "http://127.0.0.1/report", "description": "report", "mimeType": "application/json"}
        return {"x402Version": 2, "resource": resource, "accepted": dict(terms), "payload": payload}


def payment_header(payment: Mapping[str, Any]) -> tuple[str, str]:
    """Name and value of the HTTP header that carries a payment payload of either version to a seller."""
    name = "X-PAYMENT" if payment["x402Version"] == 1 else "PAYMENT-SIGNATURE"
    return name, base64.b64encode(json.dumps(payment, separators=(",", ":")).encode()).decode("ascii")


def facilitator_request(payment: Mapping[str, Any], terms: Mapping[str, Any]) -> Json:
    """The body of `/verify` and `/settle` for a payment payload and the seller's terms."""
    return {"x402Version": payment["x402Version"], "paymentPayload": dict(payment), "paymentRequirements": dict(terms)}

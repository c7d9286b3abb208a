"""SIGN-IN-WITH-X (x402 extension `sign-in-with-x`): a wallet proves who it is, for routes that cost nothing but are not for everybody.

The challenge comes in a 402 that asks for no money; the wallet signs it as an EIP-4361 message (EIP-191). A challenge is good
for one use, for one address of ours, for five minutes. What is signed is compared with what was issued, member by member.
"""

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
from aiohttp import web
from eth_account import Account
from eth_account.messages import encode_defunct

from facilitator.gateway.payments import DEMAND_HEADER
from facilitator.gateway.prices import Json
from facilitator.gateway.replies import encode, json_response
from facilitator.protocol.codec import Malformed, decode_header

HEADER: Final = "SIGN-IN-WITH-X"
EXTENSION: Final = "sign-in-with-x"

_GOOD_FOR_S: Final = 300.0
_CHALLENGES_MAX: Final = 10_000
_STATEMENT: Final = "Sign in to see what you paid for."
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_STRING: Final = {"type": "string"}
_SIGNED: Final = ("domain", "address", "uri", "version", "chainId", "type", "nonce", "issuedAt", "signature")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Challenge:
    info: Json
    until: float
    """Monotonic."""


class _Proof(msgspec.Struct, rename="camel"):
    """The header's content. Members that were not issued are not allowed."""

    domain: str
    address: str
    uri: str
    version: str
    chain_id: str
    type: str
    sign_nonce: str = msgspec.field(name="nonce")
    issued_at: str
    signature: str
    statement: str | None = None
    expiration_time: str | None = None
    not_before: str | None = None
    request_id: str | None = None
    resources: list[str] | None = None


class SignIn:
    """Issues challenges and judges what was made of them, for one seller."""

    def __init__(self, base_url: str, network: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`base_url` is where wallets see the seller; `network` a CAIP-2 id, in the name of which they sign."""
        self._base_url = base_url
        self._domain = base_url.partition("://")[2]
        self._network = network
        self._monotonic = monotonic
        self._open: OrderedDict[str, _Challenge] = OrderedDict()

    def challenge(self, request: web.Request, error: str) -> web.Response:
        """402 without an offer: whoever signs this may come in. `error` says what was wrong with an earlier try."""
        issued = datetime.now(UTC)
        uri = f"{self._base_url}{request.path}"
        info: Json = {
            "domain": self._domain,
            "uri": uri,
            "version": "1",
            "nonce": secrets.token_hex(16),
            "issuedAt": _time(issued.timestamp()),
            "expirationTime": _time(issued.timestamp() + _GOOD_FOR_S),
            "statement": _STATEMENT,
            "resources": [uri],
        }
        now = self._monotonic()
        while self._open and (len(self._open) >= _CHALLENGES_MAX or next(iter(self._open.values())).until < now):
            self._open.popitem(last=False)
        self._open[str(info["nonce"])] = _Challenge(info=info, until=now + _GOOD_FOR_S)
        told: Json = {
            "x402Version": 2,
            "error": error,
            "resource": {"url": uri, "description": "for the wallet that paid", "mimeType": "application/json"},
            "accepts": [],
            "extensions": {
                EXTENSION: {
                    "info": info,
                    "supportedChains": [{"chainId": self._network, "type": "eip191", "signatureScheme": "eip191"}],
                    "schema": _schema(),
                }
            },
        }
        return json_response(402, told, {DEMAND_HEADER: encode(told)})

    def who(self, request: web.Request) -> str | web.Response:
        """The address that signed in, in lower case; or what to answer instead. A challenge is spent by its first use, good or bad."""
        values = request.headers.getall(HEADER, [])
        if not values:
            return self.challenge(request, "sign_in_required")
        proof = _read(values[0]) if len(values) == 1 else None
        if proof is None:
            return self.challenge(request, "invalid_siwx_header")
        issued = self._open.pop(proof.sign_nonce, None)
        if issued is None or issued.until < self._monotonic():
            return self.challenge(request, "invalid_siwx_nonce")
        if issued.info["uri"] != f"{self._base_url}{request.path}" or _says(proof) != issued.info:
            return self.challenge(request, "invalid_siwx_mismatch")
        if proof.chain_id != self._network or proof.type != "eip191":
            return self.challenge(request, "invalid_siwx_unsupported_chain")
        if _ADDRESS.fullmatch(proof.address) is None or not _signed(proof):
            return self.challenge(request, "invalid_siwx_signature")
        return proof.address.lower()


def message(info: Mapping[str, object], address: str, network: str) -> str:
    """The EIP-4361 text that a wallet signs for a challenge."""
    lines = [f"{info['domain']} wants you to sign in with your Ethereum account:", address, ""]
    lines += [str(info["statement"]), ""] if info.get("statement") else [""]
    lines += [f"URI: {info['uri']}", f"Version: {info['version']}", f"Chain ID: {network.partition(':')[2]}", f"Nonce: {info['nonce']}"]
    lines += [f"Issued At: {info['issuedAt']}"]
    lines += [
        f"{label}: {info[name]}"
        for label, name in (("Expiration Time", "expirationTime"), ("Not Before", "notBefore"), ("Request ID", "requestId"))
        if info.get(name)
    ]
    resources = info.get("resources")
    if isinstance(resources, list):
        lines += ["Resources:", *(f"- {resource}" for resource in resources)]
    return "\n".join(lines)


def _read(header: str) -> _Proof | None:
    content = decode_header(header)
    if isinstance(content, Malformed):
        return None
    try:
        return msgspec.json.decode(content, type=_Proof)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _says(proof: _Proof) -> Json:
    """What a proof repeats of its challenge."""
    told: Json = msgspec.to_builtins(proof)
    return {name: value for name, value in told.items() if value is not None and name not in {"address", "chainId", "type", "signature"}}


def _signed(proof: _Proof) -> bool:
    try:
        signer = Account.recover_message(
            encode_defunct(text=message(_says(proof), proof.address, proof.chain_id)),
            signature=bytes.fromhex(proof.signature.removeprefix("0x")),
        )
    except Exception:  # noqa: BLE001 - eth-account has no one type for a signature that is none
        return False
    return str(signer).lower() == proof.address.lower()


def _schema() -> Json:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": dict.fromkeys((*_SIGNED, "statement", "expirationTime"), _STRING)
        | {"resources": {"type": "array", "items": _STRING}},
        "required": list(_SIGNED),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""`facilitator explain`: why a payment is refused, field by field. Needs no key, no service and no database.

It reads what people have at hand: a request body, a payment payload, or a PAYMENT-SIGNATURE or X-PAYMENT header as it stands
in a log. The rules are the service's own; here they go on after the first refusal. It changes nothing and sends nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from facilitator.app import build_client
from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import Clock, SystemClock
from facilitator.config import Config
from facilitator.domain import abi
from facilitator.domain.facts import Now
from facilitator.domain.wallets import Wallet
from facilitator.errors import Fault
from facilitator.protocol import v1
from facilitator.protocol.address import checksum_address
from facilitator.protocol.codec import Malformed, Refused, decode_header, decode_request
from facilitator.protocol.messages import Authorization, Version
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.protocol.strict_json import HostileError, load
from facilitator.schemes.exact_eip3009 import ExactEip3009
from facilitator.schemes.usdc import USDC
from facilitator.telemetry import redact_text
from facilitator.units import Network

_RPC_S: Final = 10.0
_SEARCHED_BLOCKS: Final = 50_000
"""Blocks searched for the transaction that used a nonce: about a day of Base."""
_SEARCHED_AT_ONCE: Final = 2_000
_HEADER_NAME: Final = re.compile(r"^.{0,20}?(?:payment-signature|x-payment)[\s:='\"]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    verdict: Literal["ok", "fail", "skip"]
    subject: str
    what: str
    code: str = ""
    """The protocol's word for the refusal, in the payment's version."""

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.verdict:<4}  {self.subject:<10} {redact_text(self.what)}" + (f"  [{self.code}]" if self.code else "")


@dataclass(frozen=True, slots=True)
class _Read:
    """What the file held, as the body of a request."""

    body: bytes
    note: str


def read(text: bytes, requirements: bytes | None = None) -> _Read | Line:
    """A request body from what people copy; a failing line when it is none of the forms.

    `requirements` is the seller's offer, an entry of `accepts`; without it, a v2 payload is held against the terms that it
    says it accepted, and a v1 payload against what was signed.
    """
    try:
        found = load(text) if text.lstrip().startswith(b"{") else _of_header(text)
        asked = None if requirements is None else load(requirements)
    except HostileError as error:
        return Line("fail", "shape", str(error) if error.path is None else f"{error.path}: {error}", Reason.INVALID_PAYLOAD.v2)
    if not isinstance(found, dict):
        return Line("fail", "shape", "expected a JSON object, or a header that holds one", Reason.INVALID_PAYLOAD.v2)
    if "paymentPayload" in found:
        whole = {**found, "paymentRequirements": asked} if asked is not None else found
        return _Read(msgspec.json.encode(whole), "a request body")
    if asked is not None:
        return _body(found, asked, "a payment payload, held against the requirements given")
    if found.get("x402Version") == 2:
        if found.get("accepted") is None:
            return Line("fail", "shape", "$.accepted: expected the terms that the buyer accepted, got nothing", Reason.INVALID_PAYLOAD.v2)
        return _body(found, found.get("accepted"), "a payment payload, held against the terms that it accepted")
    note = "a payment payload of v1, held against what was signed: give --requirements for the seller's terms"
    return _body(found, _as_signed(found), note)


def _of_header(text: bytes) -> object:
    """The JSON in a header's value; the header's name, quotes and spaces around it do not matter."""
    try:
        value = _HEADER_NAME.sub("", text.decode("ascii").strip()).strip("'\" \t\r\n")
    except UnicodeDecodeError:
        raise HostileError("expected a JSON object, or a base64 header in ASCII") from None
    decoded = decode_header(value)
    if isinstance(decoded, Malformed):
        raise HostileError(f"{decoded.message}; a header that was cut short in a log cannot be read")
    return load(decoded)


def _body(payload: Mapping[str, object], requirements: object, note: str) -> _Read:
    version = payload.get("x402Version")
    return _Read(msgspec.json.encode({"x402Version": version, "paymentPayload": payload, "paymentRequirements": requirements}), note)


def _as_signed(payload: Mapping[str, object]) -> dict[str, object] | None:
    """Requirements that ask for what a v1 payload signed: the token is the network's USDC. None when that cannot be read."""
    network = v1.parse_network(str(payload.get("network")))
    token = next((token for token in USDC if token.network == network), None)
    scheme_part = payload.get("payload")
    terms = scheme_part.get("authorization") if isinstance(scheme_part, dict) else None
    if token is None or not isinstance(terms, dict):
        return None
    return {
        "scheme": payload.get("scheme"),
        "network": payload.get("network"),
        "maxAmountRequired": terms.get("value"),
        "asset": checksum_address(token.address),
        "payTo": terms.get("to"),
        "maxTimeoutSeconds": 60,
        "extra": {"name": token.name, "version": token.version},
    }


async def explain(text: bytes, requirements: bytes | None, config: Config | None, rpc_url: str | None) -> list[Line]:
    """All that can be said about a payment: by the built-in USDC or by `config`, with the chain's word where there is one to ask."""
    found = read(text, requirements)
    if isinstance(found, Line):
        return [found]
    scheme = ExactEip3009(USDC) if config is None else ExactEip3009(config.tokens, wallets=config.wallets)
    clock = SystemClock()
    lines, version, authorization = explain_terms(found, scheme)
    if authorization is None:
        return lines
    evm = _client(authorization.network, config, rpc_url, clock)
    if evm is None:
        moment = Now(head=clock.now(), wall=None)
        skipped = Line("skip", "chain", "code, nonce, balance, freezes and simulation were not asked for: give --rpc-url or --config")
        return [*lines, *explain_time(authorization, moment, scheme, version), skipped]
    try:
        told = await explain_chain(authorization, evm, scheme, clock, version)
    except Fault as fault:
        return [*lines, Line("skip", "chain", f"the chain could not be asked: {fault}")]
    finally:
        await evm.close()
    guessed = {"signature", "wallet"} if any(line.subject == "wallet" for line in told) else {"wallet"}
    return [*(line for line in lines if line.subject not in guessed), *told]


def _client(network: Network, config: Config | None, rpc_url: str | None, clock: Clock) -> EvmClient | None:
    """Whom to ask, if anybody. Raises ConfigFault for a URL that is none."""
    if rpc_url is not None:
        return EvmClient(network, RpcClient([rpc_url], clock))
    configured = next((each for each in config.networks if each.id == network), None) if config else None
    return build_client(configured, config, clock) if config and configured else None


def explain_terms(found: _Read, scheme: ExactEip3009) -> tuple[list[Line], Version, Authorization | None]:
    """What can be said without clock and chain. The authorization is None when there is nothing more to look at."""
    decoded = decode_request(found.body)
    if isinstance(decoded, Malformed):
        where = "" if decoded.path is None else f"{decoded.path}: "
        return [Line("fail", "shape", where + decoded.message, decoded.reason.v2)], 2, None
    if isinstance(decoded, Refused):
        return [_refused("shape", decoded.refusal, decoded.version)], decoded.version, None
    authorization = scheme.read(decoded)
    if isinstance(authorization, Refusal):
        return [_refused("shape", authorization, decoded.version)], decoded.version, None
    amount, asset = authorization.amount_atomic, checksum_address(authorization.asset)
    payer, pay_to = checksum_address(authorization.payer), checksum_address(authorization.pay_to)
    lines = [
        Line("ok", "shape", f"x402 version {decoded.version}: {found.note}"),
        Line("ok", "payment", f"{amount} units of {asset} on {authorization.network} from {payer} to {pay_to}"),
    ]
    in_terms = list(scheme.faults_in_terms(authorization, decoded.requirements))
    lines += _said("terms", in_terms, decoded.version, "asset, EIP-712 domain, payTo and amount agree")
    if any(refusal.reason is Reason.INVALID_ASSET for refusal in in_terms):
        return lines, decoded.version, None
    refusal = scheme.check_signature(authorization)
    if refusal is None:
        lines.append(Line("ok", "signature", "made by the payer's own key over these terms"))
    else:
        lines.append(_refused("signature", refusal, decoded.version))
        lines.append(Line("skip", "wallet", "if the payer is a smart wallet, its code may take this signature"))
    return lines, decoded.version, authorization


def explain_time(authorization: Authorization, now: Now, scheme: ExactEip3009, version: Version) -> list[Line]:
    """The validity window at a moment."""
    left_s = authorization.valid_before - now.latest
    return _said("time", list(scheme.faults_in_time(authorization, now)), version, f"valid now and for {left_s} s more")


async def explain_chain(authorization: Authorization, evm: EvmClient, scheme: ExactEip3009, clock: Clock, version: Version) -> list[Line]:
    """The validity window by the newest block, and all that the chain has against the payment. Raises Fault."""
    await evm.connect(evm.deadline_in(_RPC_S))
    code, lines = await _explain_code(authorization, evm, scheme, version)
    wallet = scheme.wallet(authorization, code)
    wallet = wallet if isinstance(wallet, Wallet) else None
    facts = await evm.answer(scheme.ask(authorization, wallet), evm.deadline_in(_RPC_S))
    lines += explain_time(authorization, Now(head=facts.head.timestamp, wall=clock.now()), scheme, version)
    refusals = list(scheme.faults_in_facts(authorization, facts, wallet))
    lines += _said("chain", refusals, version, f"block {facts.head.number} would make the transfer")
    if any(refusal.reason is Reason.NONCE_USED for refusal in refusals):
        lines.append(await _who_used_it(authorization, evm, facts.head.number))
    return lines


async def _explain_code(authorization: Authorization, evm: EvmClient, scheme: ExactEip3009, version: Version) -> tuple[bytes, list[Line]]:
    """The code at the payer, and what it says of the signature; nothing is said of a key. Raises Fault."""
    facts = await evm.answer(scheme.ask_wallet(authorization), evm.deadline_in(_RPC_S))
    code, key = facts.replies[0].data, scheme.check_signature(authorization)
    if not code and key is None:
        return code, []
    unsigned = key or Refusal(reason=Reason.SIGNATURE, message="")
    judge = scheme.judge_wallet(authorization, facts, unsigned)
    if isinstance(judge, Wallet):
        return code, [Line("ok", "wallet", f"the code of this {judge.kind.value} wallet takes the signature")]
    return code, [] if judge is unsigned else [_refused("wallet", judge, version)]


async def _who_used_it(authorization: Authorization, evm: EvmClient, head: int) -> Line:
    """The transaction that used or cancelled the nonce, looked for from the newest block back."""
    last = head
    while last >= max(0, head - _SEARCHED_BLOCKS):
        first = max(0, last - _SEARCHED_AT_ONCE + 1)
        logs = await evm.logs(
            evm.deadline_in(_RPC_S),
            addresses=[authorization.asset],
            topics=abi.nonce_topics(authorization.payer, authorization.auth_nonce),
            from_block=first,
            to_block=last,
        )
        for log in logs:
            if (use := abi.read_authorized(log)) is not None:
                verb = "cancelled" if use.canceled else "used"
                return Line("fail", "nonce", f"{verb} by transaction {log.tx_hash} in block {log.block_number}", "")
        last = first - 1
    return Line("skip", "nonce", f"no transaction of the last {_SEARCHED_BLOCKS} blocks used it: it is older")


def _said(subject: str, refusals: list[Refusal], version: Version, good: str) -> list[Line]:
    return [_refused(subject, refusal, version) for refusal in refusals] or [Line("ok", subject, good)]


def _refused(subject: str, refusal: Refusal, version: Version) -> Line:
    return Line("fail", subject, refusal.message, refusal.reason.v1 if version == 1 else refusal.reason.v2)

"""Scheme `exact` over EIP-3009: the payer signs TransferWithAuthorization, a relayer sends it, the token moves the amount.

Rules and words follow docs/protocol.md. It must never believe a request where configuration
knows better: which contract is the token, and what its EIP-712 domain is (docs/architecture.md decision 7). Payers with code are
refused until contract signatures are judged.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Final, NoReturn, TypeVar

from facilitator.domain import abi
from facilitator.domain.facts import Call, CodeOf, Facts, Now, Question, Reply, Trial
from facilitator.protocol.address import checksum_address
from facilitator.protocol.messages import Authorization, Payment, Requirements
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes import diagnosis, signatures
from facilitator.schemes.scheme import Token
from facilitator.units import (
    ZERO_ADDRESS,
    Address,
    Atomic,
    AuthNonce,
    Network,
    UnixSeconds,
    chain_id_of,
    parse_address,
    parse_bytes32,
    parse_uint256,
)

NAME: Final = "exact"
SIGNATURE_BYTES_MAX: Final = 16 * 1024
"""Longest signature read; a contract payer's may be long, but calldata costs us gas."""
_GOT_MAX: Final = 80
"""Longest piece of a request that a message repeats."""

REVERT_REASONS: Final = {
    "Pausable: paused": Reason.TOKEN_PAUSED,
    "EnforcedPause": Reason.TOKEN_PAUSED,
    "Blacklistable: account is blacklisted": Reason.ACCOUNT_BLACKLISTED,
    "FiatTokenV2: authorization is not yet valid": Reason.NOT_YET_VALID,
    "FiatTokenV2: authorization is expired": Reason.EXPIRED,
    "FiatTokenV2: authorization is used or canceled": Reason.NONCE_USED,
    "FiatTokenV2: invalid signature": Reason.SIGNATURE,
    "ECRecover: invalid signature": Reason.SIGNATURE,
    "ECRecover: invalid signature length": Reason.SIGNATURE,
    "ECRecover: invalid signature 's' value": Reason.SIGNATURE,
    "ECRecover: invalid signature 'v' value": Reason.SIGNATURE,
    "ECDSAInvalidSignature": Reason.SIGNATURE,
    "ECDSAInvalidSignatureLength": Reason.SIGNATURE,
    "ECDSAInvalidSignatureS": Reason.SIGNATURE,
    "ERC20: transfer amount exceeds balance": Reason.INSUFFICIENT_BALANCE,
    "ERC20InsufficientBalance": Reason.INSUFFICIENT_BALANCE,
}
"""Decoded revert reasons that have a reason of the protocol. Whole texts: nothing is guessed from a word in a sentence."""

_HEX: Final = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
_ADDRESS: Final = "an address: 0x and 40 hex digits"
_DECIMAL: Final = "a decimal string"

T = TypeVar("T")


class ExactEip3009:
    """The rules over the configured tokens."""

    name = NAME

    def __init__(self, tokens: Iterable[Token], forbidden_payers: Container[Address] = frozenset()) -> None:
        """`forbidden_payers` are our own relayers: no payment may be drawn on them."""
        self._tokens: Mapping[tuple[Network, Address], Token] = {(token.network, token.address): token for token in tokens}
        self._networks = frozenset(network for network, _ in self._tokens)
        self._forbidden_payers = forbidden_payers

    def read(self, payment: Payment) -> Authorization | Refusal:
        """Route and parse: scheme and network agree, the payload has its shape; numbers, hex and signature are normalised."""
        try:
            self._route(payment)
            return self._parse(payment)
        except _RefusedError as refused:
            return refused.refusal

    def check_terms(self, authorization: Authorization, requirements: Requirements) -> Refusal | None:
        """Static terms: payTo can be paid, asset policy, EIP-712 domain data, recipient, amount."""
        return next(self.faults_in_terms(authorization, requirements), None)

    def faults_in_terms(self, authorization: Authorization, requirements: Requirements) -> Iterator[Refusal]:
        """All that is wrong with the static terms, in order of precedence; for an unknown asset nothing more can be said."""
        pay_to = requirements.pay_to
        if pay_to in {ZERO_ADDRESS, requirements.asset}:
            # The seller's mistake, whether or not the buyer signed for it. FiatToken refuses both: it blacklists itself.
            got = "the zero address" if pay_to == ZERO_ADDRESS else "the token contract itself"
            yield _refuse(Reason.INVALID_REQUIREMENTS, "paymentRequirements.payTo", "an account that can be paid", got)
        token = self._tokens.get((requirements.network, requirements.asset))
        if token is None:
            served = ", ".join(checksum_address(address) for network, address in self._tokens if network == requirements.network)
            expected = f"a token served on {requirements.network} ({served})"
            yield _refuse(Reason.INVALID_ASSET, "paymentRequirements.asset", expected, checksum_address(requirements.asset))
            return
        yield from _domain_faults(token, requirements.extra)
        if authorization.pay_to != pay_to:
            expected, got = checksum_address(pay_to), checksum_address(authorization.pay_to)
            yield _refuse(Reason.RECIPIENT_MISMATCH, "payload.authorization.to", f"payTo {expected}", got)
        if authorization.amount_atomic != requirements.amount_atomic:
            expected, got = _money(requirements.amount_atomic, token), _money(authorization.amount_atomic, token)
            yield _refuse(Reason.AMOUNT_MISMATCH, "payload.authorization.value", f"exactly {expected}", got)

    def check_signature(self, authorization: Authorization) -> Refusal | None:
        """Did the payer's own key sign it? A refusal may yet be a contract payer: ask for its code before believing it."""
        flaw = signatures.flaw(authorization.signature)
        if flaw is not None:
            return _refuse(Reason.SIGNATURE, "payload.signature", *flaw)
        token = self._tokens[authorization.network, authorization.asset]
        digest = signatures.transfer_digest(authorization, token.name, token.version)
        signer = signatures.recover(digest, authorization.signature)
        if signer == authorization.payer:
            return None
        got = "a signature that no key can make" if signer is None else f"a signature by {checksum_address(signer)} (or over other terms)"
        if signer is not None and (domain := diagnosis.signed_for(authorization, token)) is not None:
            got = f"a signature that would be valid with {domain}; here it is name = {token.name!r}, version = {token.version!r}"
            got += f", chainId = {chain_id_of(token.network)}, verifyingContract = {checksum_address(token.address)}"
        return _refuse(Reason.SIGNATURE, "payload.signature", f"a signature by from {checksum_address(authorization.payer)}", got)

    def ask_payer_code(self, authorization: Authorization) -> tuple[Question, ...]:
        """The one question that tells a bad signature from a contract payer."""
        return (CodeOf(address=authorization.payer),)

    def judge_payer_code(self, authorization: Authorization, facts: Facts, refusal: Refusal) -> Refusal:
        """The refusal to answer with when the local signature check gave `refusal`."""
        (code,) = facts.replies
        return _refuse_smart_wallet(authorization, code) or refusal

    def check_time(self, authorization: Authorization, now: Now) -> Refusal | None:
        """The validity window against the later of chain and wall time (docs/architecture.md decision 8)."""
        return next(self.faults_in_time(authorization, now), None)

    def faults_in_time(self, authorization: Authorization, now: Now) -> Iterator[Refusal]:
        """Both ends of the window."""
        latest = now.latest
        skew = "" if now.wall is None else f"; block time {now.head}, wall clock {now.wall - now.head:+d} s from it"
        if authorization.valid_before < latest + now.life_min_s:  # some blocks may pass until inclusion
            expected = f"at least {latest + now.life_min_s} (now {latest} and {now.life_min_s} s{skew})"
            got = f"{authorization.valid_before}, {_distance(authorization.valid_before - latest)}"
            yield _refuse(Reason.EXPIRED, "payload.authorization.validBefore", expected, got)
        if authorization.valid_after >= latest:
            ahead_s = authorization.valid_after - latest
            expected, got = f"less than now {latest}{skew}", f"{authorization.valid_after}, {_distance(ahead_s)}"
            yield _refuse(Reason.NOT_YET_VALID, "payload.authorization.validAfter", expected, got)

    def trial(self, authorization: Authorization) -> Trial:
        """The payment itself, simulated: a served token that makes it has the nonce unused, the money there and nobody frozen."""
        return Trial(payer=authorization.payer, call=self.call(authorization))

    def ask(self, authorization: Authorization) -> tuple[Question, ...]:
        """The payer's code, the token's word on nonce, balance, blacklist and pause, and the payment itself, simulated."""
        token, payer = authorization.asset, authorization.payer
        return (
            CodeOf(address=payer),
            Call(to=token, data=abi.authorization_state(payer, authorization.auth_nonce)),
            Call(to=token, data=abi.balance_of(payer)),
            Call(to=token, data=abi.is_blacklisted(payer)),
            Call(to=token, data=abi.is_blacklisted(authorization.pay_to)),
            Call(to=token, data=abi.PAUSED),
            self.call(authorization),  # last: what burns all its gas burns no other call's
        )

    def judge(self, authorization: Authorization, facts: Facts) -> Refusal | None:
        """Rule on the chain's answers to `ask`, in order of precedence. Assumes that `check_time` passed."""
        return next(self.faults_in_facts(authorization, facts), None)

    def faults_in_facts(self, authorization: Authorization, facts: Facts) -> Iterator[Refusal]:
        """All that the chain has against it, in order of precedence. The simulation is the last word when nothing else is."""
        code, state, balance, payer_frozen, pay_to_frozen, paused, simulation = facts.replies
        token = self._tokens.get((authorization.network, authorization.asset))
        known = [
            _refuse_smart_wallet(authorization, code),
            _judge_nonce(authorization, state, balance),
            *_judge_freezes(authorization, paused, payer_frozen, pay_to_frozen),
            _judge_balance(authorization, token, balance),
        ]
        found = [refusal for refusal in known if refusal is not None]
        yield from found
        if not found and (refusal := _judge_simulation(authorization, facts, simulation)) is not None:
            yield refusal

    def call(self, authorization: Authorization) -> Call:
        """The call that makes the payment when a relayer sends it."""
        if len(authorization.signature) == signatures.SIGNATURE_LENGTH:
            return Call(to=authorization.asset, data=abi.transfer_with_authorization(authorization))
        return Call(to=authorization.asset, data=abi.transfer_with_authorization_bytes(authorization))

    def _route(self, payment: Payment) -> None:
        """Scheme and network of both sides agree and are ours."""
        requirements = payment.requirements
        if payment.scheme != requirements.scheme:
            _fail(Reason.SCHEME_MISMATCH, "scheme", requirements.scheme, _show(payment.scheme))
        if payment.scheme != NAME:
            _fail(Reason.UNSUPPORTED_SCHEME, "scheme", NAME, _show(payment.scheme))
        if payment.network != requirements.network:
            _fail(Reason.NETWORK_MISMATCH, "network", requirements.network, _show(payment.network))
        if payment.network not in self._networks:
            _fail(Reason.UNSUPPORTED_NETWORK, "network", " or ".join(sorted(self._networks)), _show(payment.network))

    def _parse(self, payment: Payment) -> Authorization:
        """The payload as an authorization."""
        method = payment.requirements.extra.get("assetTransferMethod")
        if method is not None and method != "eip3009":
            _fail(Reason.UNSUPPORTED_PAYLOAD_TYPE, "paymentRequirements.extra.assetTransferMethod", "eip3009", _show(method))
        for key in ("permit2Authorization", "delegationManager"):
            if key in payment.payload:
                _fail(Reason.UNSUPPORTED_PAYLOAD_TYPE, "payload", "an EIP-3009 authorization", f"one with {key}")
        terms = payment.payload.get("authorization")
        if not isinstance(terms, Mapping):
            _fail(Reason.INVALID_EXACT_PAYLOAD, "payload.authorization", "an object", _show(terms))
        authorization = Authorization(
            scheme=NAME,
            network=payment.network,
            asset=payment.requirements.asset,
            payer=_field(terms, "from", parse_address, _ADDRESS),
            pay_to=_field(terms, "to", parse_address, _ADDRESS),
            amount_atomic=Atomic(_field(terms, "value", parse_uint256, _DECIMAL)),
            valid_after=UnixSeconds(_field(terms, "validAfter", parse_uint256, _DECIMAL)),
            valid_before=UnixSeconds(_field(terms, "validBefore", parse_uint256, _DECIMAL)),
            auth_nonce=AuthNonce(_field(terms, "nonce", parse_bytes32, "32 bytes: 0x and 64 hex digits")),
            signature=_read_signature(payment.payload.get("signature")),
        )
        if authorization.payer in self._forbidden_payers:
            got = "a relayer of this facilitator"
            _fail(Reason.INVALID_EXACT_PAYLOAD, "payload.authorization.from", "a buyer's account", got)
        return authorization


class _RefusedError(Exception):
    """Carries a refusal out of nested parsing to `read`, and no further."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def _field(terms: Mapping[object, object], key: str, parse: Callable[[str], T], shape: str) -> T:
    """One member of `payload.authorization`, read strictly."""
    where, value = f"payload.authorization.{key}", terms.get(key)
    if not isinstance(value, str):
        _fail(Reason.INVALID_EXACT_PAYLOAD, where, shape, _show(value))
    try:
        return parse(value)
    except ValueError as error:  # its text says what was expected
        raise _RefusedError(Refusal(reason=Reason.INVALID_EXACT_PAYLOAD, message=f"{where}: {error}, got {_show(value)}")) from None


def _read_signature(value: object) -> bytes:
    """The signature in its one spelling. It is never shown, so messages tell its length only."""
    where, shape = "payload.signature", "0x and an even number of hex digits"
    if value is None:
        _fail(Reason.MISSING_SIGNATURE, where, shape, "nothing")
    if not isinstance(value, str):
        _fail(Reason.INVALID_EXACT_PAYLOAD, where, shape, _show(value))
    if value in {"", "0x"}:
        _fail(Reason.MISSING_SIGNATURE, where, shape, _show(value))
    if len(value) > 2 + 2 * SIGNATURE_BYTES_MAX:
        _fail(Reason.INVALID_EXACT_PAYLOAD, where, f"at most {SIGNATURE_BYTES_MAX} bytes", f"{len(value)} characters")
    if len(value) % 2 or not _HEX.fullmatch(value):
        _fail(Reason.INVALID_EXACT_PAYLOAD, where, shape, f"{len(value)} characters that are not")
    return signatures.normalise(bytes.fromhex(value[2:]))


def _domain_faults(token: Token, extra: Mapping[str, object]) -> Iterator[Refusal]:
    """The seller must name the token's EIP-712 domain as it is: buyers sign with what `extra` says."""
    for key, configured, mismatch in (
        ("name", token.name, Reason.TOKEN_NAME_MISMATCH),
        ("version", token.version, Reason.TOKEN_VERSION_MISMATCH),
    ):
        where, value = f"paymentRequirements.extra.{key}", extra.get(key)
        if not isinstance(value, str) or not value:
            yield _refuse(Reason.MISSING_EIP712_DOMAIN, where, f"the text {configured!a}", _show(value or None))
        elif value != configured:
            yield _refuse(mismatch, where, ascii(configured), _show(value))


def _refuse_smart_wallet(authorization: Authorization, code: Reply) -> Refusal | None:
    """A payer with code (contract, or EIP-7702 delegation) is judged by its code, not by its key."""
    if not code.data:
        return None
    kind = "an EIP-7702 delegation" if code.data.startswith(b"\xef\x01\x00") else f"{len(code.data)} bytes of code"
    expected = "an account without code: smart wallets are not supported"
    return _refuse(
        Reason.SMART_WALLET_UNSUPPORTED, "payload.authorization.from", expected, f"{checksum_address(authorization.payer)} with {kind}"
    )


def _judge_nonce(authorization: Authorization, state: Reply, balance: Reply) -> Refusal | None:
    """The auth_nonce must be unused, and the token must be one that knows of auth_nonces."""
    used = abi.read_bool(state.data) if state.ok else None
    if used is None:
        asset = checksum_address(authorization.asset)
        if state.ok and balance.ok and not state.data and not balance.data:  # calls without code succeed with nothing
            return _refuse(Reason.ASSET_NOT_DEPLOYED, "paymentRequirements.asset", "a contract", f"{asset}, where no code lies")
        got = f"{asset}, which does not answer authorizationState"
        return _refuse(Reason.EIP3009_NOT_SUPPORTED, "paymentRequirements.asset", "an EIP-3009 token", got)
    if used:
        got = f"{authorization.auth_nonce}, which the token has as used or cancelled"
        return _refuse(Reason.NONCE_USED, "payload.authorization.nonce", "an unused nonce", got)
    return None


def _judge_freezes(authorization: Authorization, paused: Reply, payer: Reply, pay_to: Reply) -> Iterator[Refusal]:
    """Paused token, frozen accounts. A token that lacks these functions has no such state; the simulation is its judge."""
    if paused.ok and abi.read_bool(paused.data):
        yield _refuse(Reason.TOKEN_PAUSED, "paymentRequirements.asset", "a token that is not paused", checksum_address(authorization.asset))
    for where, account, reply in (
        ("payload.authorization.from", authorization.payer, payer),
        ("paymentRequirements.payTo", authorization.pay_to, pay_to),
    ):
        if reply.ok and abi.read_bool(reply.data):
            got = f"{checksum_address(account)}, which the token's issuer has blacklisted"
            yield _refuse(Reason.ACCOUNT_BLACKLISTED, where, "an account that may move the token", got)


def _judge_balance(authorization: Authorization, token: Token | None, balance: Reply) -> Refusal | None:
    """Enough of the token. A contract without balanceOf is left to the simulation."""
    balance_atomic = abi.read_uint(balance.data) if balance.ok else None
    if balance_atomic is None or balance_atomic >= authorization.amount_atomic:
        return None
    expected, got = _money(authorization.amount_atomic, token), _money(balance_atomic, token)
    return _refuse(Reason.INSUFFICIENT_BALANCE, "payload.authorization.from", f"a balance of at least {expected}", got)


def _judge_simulation(authorization: Authorization, facts: Facts, simulation: Reply) -> Refusal | None:
    """The payment itself, run at the newest block, must not revert."""
    if simulation.ok:
        return None
    text = abi.revert_reason(simulation.data)
    reason = REVERT_REASONS.get(text or "", Reason.SIMULATION_FAILED)
    if reason is Reason.NOT_YET_VALID and authorization.valid_after >= facts.head.timestamp:
        return None  # valid by the wall clock and so in the next block, while the simulation still runs in the last one
    return _refuse(reason, "the simulated transfer", "success", f"revert: {text or 'no reason given'}")


def _money(amount_atomic: int, token: Token | None) -> str:
    """An amount as it stands on the wire, and what it is: `10000 (0.01 USDC)`. Which decimals were meant is the usual mistake."""
    if token is None:
        return str(amount_atomic)
    whole, part = divmod(amount_atomic, 10**token.decimals)
    text = f"{whole}.{part:0{token.decimals}d}".rstrip("0").rstrip(".") if token.decimals else str(whole)
    return f"{amount_atomic} ({text} {token.name})"


def _distance(seconds: int) -> str:
    """How far from now."""
    return f"{seconds} s from now" if seconds >= 0 else f"{-seconds} s ago"


def _refuse(reason: Reason, where: str, expected: str, got: str) -> Refusal:
    """A refusal that says field, expected and got, for people and as evidence."""
    message = f"{where}: expected {expected}, got {got}"
    return Refusal(reason=reason, message=message, evidence={"field": where, "expected": expected, "got": got})


def _fail(reason: Reason, where: str, expected: str, got: str) -> NoReturn:
    """Refuse from within the parsing."""
    raise _RefusedError(_refuse(reason, where, expected, got))


def _show(value: object) -> str:
    """A piece of a request as a message may repeat it: short, ASCII, its JSON type plain."""
    match value:
        case None:
            shown = "nothing"
        case str():
            shown = ascii(value[:_GOT_MAX]) + (f"… ({len(value)} characters)" if len(value) > _GOT_MAX else "")
        case bool():
            shown = f"the JSON word {str(value).lower()}"
        case int() if abs(value) < 10**_GOT_MAX:
            shown = f"the JSON number {value}"
        case int() | float():
            shown = "a JSON number"
        case Mapping():
            shown = "an object"
        case _:
            shown = "an array"
    return shown

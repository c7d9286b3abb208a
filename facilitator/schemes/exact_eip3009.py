"""Scheme `exact` over EIP-3009: the payer signs TransferWithAuthorization, a relayer sends it, the token moves the amount.

Rules and words follow docs/protocol.md. It must never believe a request where configuration
knows better: which contract is the token, and what its EIP-712 domain is (docs/architecture.md decision 7). For a payer with
code its code decides, never its key: the token asks nobody else.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Final, NoReturn, TypeVar

from facilitator.domain import abi
from facilitator.domain.batching import ran_out
from facilitator.domain.facts import Call, CodeOf, Facts, Now, Probe, Question, Reply, Trial
from facilitator.domain.wallets import SIGNATURE_BYTES_MAX, PayerKind, Rules, Wallet
from facilitator.protocol.address import checksum_address
from facilitator.protocol.messages import Authorization, Payment, Requirements
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes import diagnosis, signatures
from facilitator.schemes.scheme import Token
from facilitator.schemes.smart_wallets import SmartWallets
from facilitator.schemes.words import distance, money, refuse, show
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

_ADDRESS: Final = "an address: 0x and 40 hex digits"
_DECIMAL: Final = "a decimal string"

T = TypeVar("T")


class ExactEip3009:
    """The rules over the configured tokens."""

    name = NAME

    def __init__(self, tokens: Iterable[Token], forbidden_payers: Container[Address] = frozenset(), wallets: Rules | None = None) -> None:
        """`forbidden_payers` are our own relayers: no payment may be drawn on them. `wallets` says which smart wallets may pay."""
        self._tokens: Mapping[tuple[Network, Address], Token] = {(token.network, token.address): token for token in tokens}
        self._domains: Mapping[tuple[Network, Address], bytes] = {
            place: signatures.domain_separator(token.name, token.version, chain_id_of(token.network), token.address)
            for place, token in self._tokens.items()
        }
        self._networks = frozenset(network for network, _ in self._tokens)
        self._forbidden_payers = forbidden_payers
        self._wallets = SmartWallets(wallets or Rules())

    def features(self, network: Network) -> Mapping[str, object] | None:
        """Which smart wallets may pay on this network."""
        return {"smartWallets": standards} if (standards := self._wallets.standards(network)) else None

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
            yield refuse(Reason.INVALID_REQUIREMENTS, "paymentRequirements.payTo", "an account that can be paid", got)
        token = self._tokens.get((requirements.network, requirements.asset))
        if token is None:
            served = ", ".join(checksum_address(address) for network, address in self._tokens if network == requirements.network)
            expected = f"a token served on {requirements.network} ({served})"
            yield refuse(Reason.INVALID_ASSET, "paymentRequirements.asset", expected, checksum_address(requirements.asset))
            return
        yield from _domain_faults(token, requirements.extra)
        if authorization.pay_to != pay_to:
            expected, got = checksum_address(pay_to), checksum_address(authorization.pay_to)
            yield refuse(Reason.RECIPIENT_MISMATCH, "payload.authorization.to", f"payTo {expected}", got)
        if authorization.amount_atomic != requirements.amount_atomic:
            expected, got = money(requirements.amount_atomic, token), money(authorization.amount_atomic, token)
            yield refuse(Reason.AMOUNT_MISMATCH, "payload.authorization.value", f"exactly {expected}", got)

    def check_signature(self, authorization: Authorization) -> Refusal | None:
        """Did the payer's own key sign it? A refusal may yet be a contract payer: ask for its code before believing it."""
        signature = signatures.normalise(authorization.signature)
        flaw = signatures.flaw(signature)
        if flaw is not None:
            return refuse(Reason.SIGNATURE, "payload.signature", *flaw)
        token = self._tokens[authorization.network, authorization.asset]
        signer = signatures.recover(self._digest(authorization), signature)
        if signer == authorization.payer:
            return None
        got = "a signature that no key can make" if signer is None else f"a signature by {checksum_address(signer)} (or over other terms)"
        if signer is not None and (domain := diagnosis.signed_for(authorization, signature, token)) is not None:
            got = f"a signature that would be valid with {domain}; here it is name = {token.name!r}, version = {token.version!r}"
            got += f", chainId = {chain_id_of(token.network)}, verifyingContract = {checksum_address(token.address)}"
        return refuse(Reason.SIGNATURE, "payload.signature", f"a signature by from {checksum_address(authorization.payer)}", got)

    def refuse_unasked(self, authorization: Authorization, refusal: Refusal) -> Refusal | None:
        """The refusal of a signature that no wallet can help, for none may pay; None: the chain must be asked."""
        return self._wallets.refuse_unasked(authorization, refusal)

    def ask_wallet(self, authorization: Authorization) -> tuple[Question, ...]:
        """The questions that tell a bad signature from one that a contract judges: the payer's code, and what it says."""
        return self._wallets.ask(authorization, self._digest(authorization))

    def judge_wallet(self, authorization: Authorization, facts: Facts, refusal: Refusal) -> Wallet | Refusal:
        """The wallet whose code took the signature; else the refusal, where the local check gave `refusal`."""
        return self._wallets.judge(authorization, facts.replies, refusal)

    def wallet(self, authorization: Authorization, code: bytes) -> Wallet | Refusal | None:
        """What pays when this code lies at the payer: a wallet, nothing for a reason, or None: the payer's key."""
        if not code and not abi.is_enveloped(authorization.signature):
            return None
        return self._wallets.at(authorization, code, own_key=self.check_signature(authorization) is None)

    def check_time(self, authorization: Authorization, now: Now) -> Refusal | None:
        """The validity window against the later of chain and wall time (docs/architecture.md decision 8)."""
        if authorization.valid_before >= now.latest + now.life_min_s and authorization.valid_after < now.latest:
            return None  # as a rule
        return next(self.faults_in_time(authorization, now), None)

    def faults_in_time(self, authorization: Authorization, now: Now) -> Iterator[Refusal]:
        """Both ends of the window."""
        latest = now.latest
        if authorization.valid_before < latest + now.life_min_s:  # some blocks may pass until inclusion
            expected = f"at least {latest + now.life_min_s} (now {latest} and {now.life_min_s} s{_skew(now)})"
            got = f"{authorization.valid_before}, {distance(authorization.valid_before - latest)}"
            yield refuse(Reason.EXPIRED, "payload.authorization.validBefore", expected, got)
        if authorization.valid_after >= latest:
            ahead_s = authorization.valid_after - latest
            expected, got = f"less than now {latest}{_skew(now)}", f"{authorization.valid_after}, {distance(ahead_s)}"
            yield refuse(Reason.NOT_YET_VALID, "payload.authorization.validAfter", expected, got)

    def trial(self, authorization: Authorization) -> Trial | None:
        """The payment itself, simulated: a served token that makes it has the nonce unused, the money there and nobody frozen.

        None for a signature that can be no key's.
        """
        if len(authorization.signature) not in {signatures.SIGNATURE_LENGTH, signatures.COMPACT_LENGTH}:
            return None
        return Trial(payer=authorization.payer, call=self.call(authorization))

    def ask(self, authorization: Authorization, wallet: Wallet | None = None) -> tuple[Question, ...]:
        """The payer's code, the token's word on nonce, balance, blacklist and pause, and the payment itself, simulated."""
        token, payer = authorization.asset, authorization.payer
        return (
            CodeOf(address=payer),
            Call(to=token, data=abi.authorization_state(payer, authorization.auth_nonce)),
            Call(to=token, data=abi.balance_of(payer)),
            Call(to=token, data=abi.is_blacklisted(payer)),
            Call(to=token, data=abi.is_blacklisted(authorization.pay_to)),
            Call(to=token, data=abi.PAUSED),
            Probe(call=wallet.call, gas=wallet.call_gas)
            if wallet
            else self.call(authorization),  # last: what burns its gas burns no other's
        )

    def judge(self, authorization: Authorization, facts: Facts, wallet: Wallet | None = None) -> Refusal | None:
        """Rule on the chain's answers to `ask`, in order of precedence. Assumes that `check_time` passed."""
        return next(self.faults_in_facts(authorization, facts, wallet), None)

    def faults_in_facts(self, authorization: Authorization, facts: Facts, wallet: Wallet | None = None) -> Iterator[Refusal]:
        """All that the chain has against it, in order of precedence. The simulation is the last word when nothing else is."""
        code, state, balance, payer_frozen, pay_to_frozen, paused, simulation = facts.replies
        token = self._tokens.get((authorization.network, authorization.asset))
        payer = self.wallet(authorization, code.data)
        known = [
            payer if isinstance(payer, Refusal) else None,
            _judge_nonce(authorization, state, balance),
            *_judge_freezes(authorization, paused, payer_frozen, pay_to_frozen),
            _judge_balance(authorization, token, balance),
        ]
        found = [refusal for refusal in known if refusal is not None]
        yield from found
        if not found and (refusal := _judge_simulation(authorization, facts, simulation, wallet)) is not None:
            yield refusal

    def call(self, authorization: Authorization) -> Call:
        """The call that makes the payment of a payer without code when a relayer sends it; a wallet brings its own."""
        signature = signatures.normalise(authorization.signature)
        if len(signature) == signatures.SIGNATURE_LENGTH:
            return Call(to=authorization.asset, data=abi.transfer_with_authorization(authorization, signature))
        return Call(to=authorization.asset, data=abi.transfer_with_authorization_bytes(authorization, signature))

    def _digest(self, authorization: Authorization) -> bytes:
        return signatures.digest_in(authorization, self._domains[authorization.network, authorization.asset])

    def _route(self, payment: Payment) -> None:
        """Scheme and network of both sides agree and are ours."""
        requirements = payment.requirements
        if payment.scheme != requirements.scheme:
            _fail(Reason.SCHEME_MISMATCH, "scheme", requirements.scheme, show(payment.scheme))
        if payment.scheme != NAME:
            _fail(Reason.UNSUPPORTED_SCHEME, "scheme", NAME, show(payment.scheme))
        if payment.network != requirements.network:
            _fail(Reason.NETWORK_MISMATCH, "network", requirements.network, show(payment.network))
        if payment.network not in self._networks:
            _fail(Reason.UNSUPPORTED_NETWORK, "network", " or ".join(sorted(self._networks)), show(payment.network))

    def _parse(self, payment: Payment) -> Authorization:
        """The payload as an authorization."""
        method = payment.requirements.extra.get("assetTransferMethod")
        if method is not None and method != "eip3009":
            _fail(Reason.UNSUPPORTED_PAYLOAD_TYPE, "paymentRequirements.extra.assetTransferMethod", "eip3009", show(method))
        for key in ("permit2Authorization", "delegationManager"):
            if key in payment.payload:
                _fail(Reason.UNSUPPORTED_PAYLOAD_TYPE, "payload", "an EIP-3009 authorization", f"one with {key}")
        terms = payment.payload.get("authorization")
        if not isinstance(terms, dict):
            _fail(Reason.INVALID_EXACT_PAYLOAD, "payload.authorization", "an object", show(terms))
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
    value = terms.get(key)
    if not isinstance(value, str):
        _fail(Reason.INVALID_EXACT_PAYLOAD, f"payload.authorization.{key}", shape, show(value))
    try:
        return parse(value)
    except ValueError as error:  # its text says what was expected
        message = f"payload.authorization.{key}: {error}, got {show(value)}"
        raise _RefusedError(Refusal(reason=Reason.INVALID_EXACT_PAYLOAD, message=message)) from None


def _read_signature(value: object) -> bytes:
    """The signature as it came: a contract may judge it. It is never shown, so messages tell its length only."""
    where, shape = "payload.signature", "0x and an even number of hex digits"
    if value is None:
        _fail(Reason.MISSING_SIGNATURE, where, shape, "nothing")
    if not isinstance(value, str):
        _fail(Reason.INVALID_EXACT_PAYLOAD, where, shape, show(value))
    if value in {"", "0x"}:
        _fail(Reason.MISSING_SIGNATURE, where, shape, show(value))
    if len(value) > 2 + 2 * SIGNATURE_BYTES_MAX:
        _fail(Reason.INVALID_EXACT_PAYLOAD, where, f"at most {SIGNATURE_BYTES_MAX} bytes", f"{len(value)} characters")
    try:
        signature = bytes.fromhex(value[2:])
    except ValueError:
        signature = b""
    if value[:2] != "0x" or 2 * len(signature) != len(value) - 2:  # spaces are left out
        _fail(Reason.INVALID_EXACT_PAYLOAD, where, shape, f"{len(value)} characters that are not")
    if abi.is_enveloped(signature) and abi.read_envelope(signature) is None:
        _fail(
            Reason.INVALID_EXACT_PAYLOAD, where, "abi.encode(address, bytes, bytes) before the suffix of ERC-6492", "other bytes before it"
        )
    return signature


def _skew(now: Now) -> str:
    """How far the two clocks are apart, for people."""
    return "" if now.wall is None else f"; block time {now.head}, wall clock {now.wall - now.head:+d} s from it"


def _domain_faults(token: Token, extra: Mapping[str, object]) -> Iterator[Refusal]:
    """The seller must name the token's EIP-712 domain as it is: buyers sign with what `extra` says."""
    for key, configured, mismatch in (
        ("name", token.name, Reason.TOKEN_NAME_MISMATCH),
        ("version", token.version, Reason.TOKEN_VERSION_MISMATCH),
    ):
        where, value = f"paymentRequirements.extra.{key}", extra.get(key)
        if not isinstance(value, str) or not value:
            yield refuse(Reason.MISSING_EIP712_DOMAIN, where, f"the text {configured!a}", show(value or None))
        elif value != configured:
            yield refuse(mismatch, where, ascii(configured), show(value))


def _judge_nonce(authorization: Authorization, state: Reply, balance: Reply) -> Refusal | None:
    """The auth_nonce must be unused, and the token must be one that knows of auth_nonces."""
    used = abi.read_bool(state.data) if state.ok else None
    if used is None:
        asset = checksum_address(authorization.asset)
        if state.ok and balance.ok and not state.data and not balance.data:  # calls without code succeed with nothing
            return refuse(Reason.ASSET_NOT_DEPLOYED, "paymentRequirements.asset", "a contract", f"{asset}, where no code lies")
        got = f"{asset}, which does not answer authorizationState"
        return refuse(Reason.EIP3009_NOT_SUPPORTED, "paymentRequirements.asset", "an EIP-3009 token", got)
    if used:
        got = f"{authorization.auth_nonce}, which the token has as used or cancelled"
        return refuse(Reason.NONCE_USED, "payload.authorization.nonce", "an unused nonce", got)
    return None


def _judge_freezes(authorization: Authorization, paused: Reply, payer: Reply, pay_to: Reply) -> Iterator[Refusal]:
    """Paused token, frozen accounts. A token that lacks these functions has no such state; the simulation is its judge."""
    if paused.ok and abi.read_bool(paused.data):
        yield refuse(Reason.TOKEN_PAUSED, "paymentRequirements.asset", "a token that is not paused", checksum_address(authorization.asset))
    for where, account, reply in (
        ("payload.authorization.from", authorization.payer, payer),
        ("paymentRequirements.payTo", authorization.pay_to, pay_to),
    ):
        if reply.ok and abi.read_bool(reply.data):
            got = f"{checksum_address(account)}, which the token's issuer has blacklisted"
            yield refuse(Reason.ACCOUNT_BLACKLISTED, where, "an account that may move the token", got)


def _judge_balance(authorization: Authorization, token: Token | None, balance: Reply) -> Refusal | None:
    """Enough of the token. A contract without balanceOf is left to the simulation."""
    balance_atomic = abi.read_uint(balance.data) if balance.ok else None
    if balance_atomic is None or balance_atomic >= authorization.amount_atomic:
        return None
    expected, got = money(authorization.amount_atomic, token), money(balance_atomic, token)
    return refuse(Reason.INSUFFICIENT_BALANCE, "payload.authorization.from", f"a balance of at least {expected}", got)


def _judge_simulation(authorization: Authorization, facts: Facts, simulation: Reply, wallet: Wallet | None) -> Refusal | None:
    """The payment itself, run at the newest block, must not revert."""
    if simulation.ok:
        return None
    text = abi.revert_reason(simulation.data)
    reason = REVERT_REASONS.get(text or "", Reason.SIMULATION_FAILED)
    if reason is Reason.NOT_YET_VALID and authorization.valid_after >= facts.head.timestamp:
        return None  # valid by the wall clock and so in the next block, while the simulation still runs in the last one
    got = f"revert: {text or 'no reason given'}"
    if wallet is None:
        return refuse(reason, "the simulated transfer", "success", got)
    if ran_out(simulation.gas_used, wallet.call_gas):
        return refuse(Reason.SIMULATION_FAILED, "the simulated transfer", f"success with {wallet.gas} gas in all", f"{got}, all gas used")
    whose = "delegates to (EIP-7702), whatever its key signed" if wallet.kind is PayerKind.DELEGATED else "is (ERC-1271)"
    return refuse(reason, "the simulated transfer", f"success by the word of the code that the payer {whose}", got)


def _fail(reason: Reason, where: str, expected: str, got: str) -> NoReturn:
    """Refuse from within the parsing."""
    raise _RefusedError(refuse(reason, where, expected, got))

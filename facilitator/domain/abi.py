"""The token's and Multicall3's calls, returns and events as bytes: packed by hand, held equal to eth-abi by tests.

It reads `contracts/abi/*.json` once at import and nothing else: every selector and event topic comes from there, so a
function that the published interface lacks stops the import. It must never judge a payment. Returns of foreign
contracts are read leniently where real contracts are sloppy (solc 0.6 leaves dirt in the padding of revert strings) and
give None, never an exception, where they are no such value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from facilitator.domain.facts import Call, Reply
from facilitator.protocol.address import keccak256
from facilitator.protocol.messages import Authorization
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, Gas, Network, TxHash, UnixSeconds

MULTICALL3_ADDRESS: Final = Address("0xca11bde05977b3631167028862be2a173976ca11")
"""The same on every chain that has it."""
GAS_PRICE_ORACLE_ADDRESS: Final = Address("0x420000000000000000000000000000000000000f")
"""The OP Stack's predeploy."""


class _Parameter(msgspec.Struct, frozen=True):
    """An input or output of the JSON ABI."""

    type: str
    components: tuple["_Parameter", ...] = ()

    @property
    def canonical(self) -> str:
        """The type as it stands in a signature: tuples by their members."""
        if not self.type.startswith("tuple"):
            return self.type
        return f"({','.join(component.canonical for component in self.components)}){self.type.removeprefix('tuple')}"


class _Entry(msgspec.Struct, frozen=True):
    """A function, event or constructor of the JSON ABI."""

    type: str
    name: str = ""
    inputs: tuple[_Parameter, ...] = ()

    @property
    def signature(self) -> str:
        """Name and argument types, the text whose hash is selector or topic."""
        return f"{self.name}({','.join(parameter.canonical for parameter in self.inputs)})"


def _directory() -> Traversable:
    """Where the ABI files are: package data of an installed wheel, or `contracts/abi` of a checkout."""
    packed = files("facilitator").joinpath("_abi")
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / "contracts" / "abi"


@cache
def _hashes(contract: str, kind: str) -> dict[str, bytes]:
    """Hash of each signature of one kind (`function`, `event`) in a contract's published interface."""
    entries = msgspec.json.decode(_directory().joinpath(f"{contract}.json").read_bytes(), type=tuple[_Entry, ...])
    return {entry.signature: keccak256(entry.signature.encode("ascii")) for entry in entries if entry.type == kind}


def _selector(contract: str, signature: str) -> bytes:
    """First four bytes of the hash of a function that the interface has."""
    return _hashes(contract, "function")[signature][:4]


def _topic(contract: str, signature: str) -> str:
    """Topic 0 of an event that the interface has."""
    return "0x" + _hashes(contract, "event")[signature].hex()


TRANSFER_WITH_AUTHORIZATION: Final = _selector(
    "FiatTokenV2_2", "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
)
TRANSFER_WITH_AUTHORIZATION_BYTES: Final = _selector(
    "FiatTokenV2_2", "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
)
AUTHORIZATION_STATE: Final = _selector("FiatTokenV2_2", "authorizationState(address,bytes32)")
BALANCE_OF: Final = _selector("FiatTokenV2_2", "balanceOf(address)")
IS_BLACKLISTED: Final = _selector("FiatTokenV2_2", "isBlacklisted(address)")
PAUSED: Final = _selector("FiatTokenV2_2", "paused()")
DOMAIN_SEPARATOR: Final = _selector("FiatTokenV2_2", "DOMAIN_SEPARATOR()")
NAME: Final = _selector("FiatTokenV2_2", "name()")
VERSION: Final = _selector("FiatTokenV2_2", "version()")
DECIMALS: Final = _selector("FiatTokenV2_2", "decimals()")
AGGREGATE3: Final = _selector("Multicall3", "aggregate3((address,bool,bytes)[])")
_L1_FEE_UPPER_BOUND: Final = _selector("GasPriceOracle", "getL1FeeUpperBound(uint256)")
_OPERATOR_FEE: Final = _selector("GasPriceOracle", "getOperatorFee(uint256)")
LATEST_ROUND_DATA: Final = _selector("AggregatorV3Interface", "latestRoundData()")
IS_VALID_SIGNATURE: Final = _selector("ERC1271", "isValidSignature(bytes32,bytes)")
"""Selector, and what a contract returns that takes the signature (ERC-1271)."""
GET_CURRENT_BLOCK_TIMESTAMP: Final = _selector("Multicall3", "getCurrentBlockTimestamp()")

TRANSFER_TOPIC: Final = _topic("FiatTokenV2_2", "Transfer(address,address,uint256)")
AUTHORIZATION_USED_TOPIC: Final = _topic("FiatTokenV2_2", "AuthorizationUsed(address,bytes32)")
AUTHORIZATION_CANCELED_TOPIC: Final = _topic("FiatTokenV2_2", "AuthorizationCanceled(address,bytes32)")
UPGRADED_TOPIC: Final = _topic("FiatTokenProxy", "Upgraded(address)")

_ADDRESS_PADDING: Final = bytes(12)
_SIGNATURE_OFFSET: Final = (7 * 32).to_bytes(32, "big")
_ENVELOPE_SUFFIX: Final = bytes.fromhex("6492") * 16


# --- calls ---


def _address(address: Address) -> bytes:
    """An address as a word."""
    return _ADDRESS_PADDING + bytes.fromhex(address[2:])


def _uint(number: int) -> bytes:
    """A uint256 as a word."""
    return number.to_bytes(32, "big")


def _dynamic(data: bytes) -> bytes:
    """`bytes` as it stands in the tail: length, data, zeros to the next word."""
    return _uint(len(data)) + data + bytes(-len(data) % 32)


def _authorization_words(authorization: Authorization) -> bytes:
    """The six arguments that both overloads share."""
    return b"".join(
        (
            _address(authorization.payer),
            _address(authorization.pay_to),
            _uint(authorization.amount_atomic),
            _uint(authorization.valid_after),
            _uint(authorization.valid_before),
            bytes.fromhex(authorization.auth_nonce[2:]),
        )
    )


def transfer_with_authorization(authorization: Authorization, signature: bytes) -> bytes:
    """Calldata of the v, r, s overload, 292 bytes. `signature` is a key's: 65 bytes r ‖ s ‖ v."""
    assert len(signature) == 65
    return TRANSFER_WITH_AUTHORIZATION + _authorization_words(authorization) + _uint(signature[64]) + signature[:64]


def transfer_with_authorization_bytes(authorization: Authorization, signature: bytes) -> bytes:
    """Calldata of the `bytes` overload (FiatToken 2.2 and later), for signatures of any length."""
    words = _authorization_words(authorization)
    return TRANSFER_WITH_AUTHORIZATION_BYTES + words + _SIGNATURE_OFFSET + _dynamic(signature)


def is_valid_signature(digest: bytes, signature: bytes) -> bytes:
    """Calldata that asks a contract whether it takes this signature over 32 bytes (ERC-1271)."""
    return IS_VALID_SIGNATURE + digest + _uint(2 * 32) + _dynamic(signature)


def read_payments(call: Call, network: Network, scheme: str) -> tuple[Authorization, ...]:
    """The authorizations that a transaction of ours carries out, alone, through Multicall3, or after its wallet's deployment.

    Empty for any other calldata.
    """
    if call.to != MULTICALL3_ADDRESS:
        calls: Sequence[Call] = (call,)
    elif (pair := read_deploy_and_pay(call.data)) is not None:
        calls = pair[1:]
    else:
        calls = read_aggregate3_calls(call.data) or ()
    found = [_read_transfer(each, network, scheme) for each in calls]
    return tuple(each for each in found if each is not None)


def _read_transfer(call: Call, network: Network, scheme: str) -> Authorization | None:
    """The authorization in calldata that one of the two overloads made; None for any other bytes, however they decode."""
    words = [_word_at(call.data, 4 + 32 * index) for index in range(7)]
    payer, pay_to, amount, valid_after, valid_before, auth_nonce, last = (word if word is not None else -1 for word in words)
    signature: bytes | None = None
    if call.data[:4] == TRANSFER_WITH_AUTHORIZATION and 0 <= last < 2**8:
        signature = call.data[4 + 32 * 7 :] + bytes((last,))
    elif call.data[:4] == TRANSFER_WITH_AUTHORIZATION_BYTES:
        signature = _bytes_at(call.data, 4 + last)
    if signature is None or not (0 <= payer < 2**160 and 0 <= pay_to < 2**160):
        return None
    authorization = Authorization(
        scheme=scheme,
        network=network,
        asset=call.to,
        payer=Address(f"0x{payer:040x}"),
        pay_to=Address(f"0x{pay_to:040x}"),
        amount_atomic=Atomic(amount),
        valid_after=UnixSeconds(valid_after),
        valid_before=UnixSeconds(valid_before),
        auth_nonce=AuthNonce(f"0x{auth_nonce:064x}"),
        signature=signature,
    )
    short = call.data[:4] == TRANSFER_WITH_AUTHORIZATION
    if short and len(signature) != 65:
        return None
    made = (transfer_with_authorization if short else transfer_with_authorization_bytes)(authorization, signature)
    return authorization if made == call.data else None


def authorization_state(payer: Address, auth_nonce: AuthNonce) -> bytes:
    """Calldata that asks whether the payer's auth_nonce is used or cancelled."""
    return AUTHORIZATION_STATE + _address(payer) + bytes.fromhex(auth_nonce[2:])


def l1_fee_upper_bound(unsigned_bytes: int) -> bytes:
    """Calldata that asks the OP Stack's oracle for the most that L1 charges for an unsigned transaction of this size (Fjord)."""
    return _L1_FEE_UPPER_BOUND + _uint(unsigned_bytes)


def operator_fee(gas: Gas) -> bytes:
    """Calldata that asks the OP Stack's oracle for the operator's fee for so much gas, by the formula in force."""
    return _OPERATOR_FEE + _uint(gas)


def balance_of(account: Address) -> bytes:
    """Calldata that asks for a token balance."""
    return BALANCE_OF + _address(account)


def is_blacklisted(account: Address) -> bytes:
    """Calldata that asks whether the token's issuer has frozen the account."""
    return IS_BLACKLISTED + _address(account)


def aggregate3(calls: Sequence[Call]) -> bytes:
    """Calldata of Multicall3's aggregate3, in which a reverting call does not revert the others."""
    return _aggregate3([(call, True) for call in calls])


def deploy_and_pay(deployment: Call, payment: Call) -> bytes:
    """Calldata of Multicall3's aggregate3 that pays or reverts; the deployment before may fail, for somebody may have been faster."""
    return _aggregate3([(deployment, True), (payment, False)])


def _aggregate3(calls: Sequence[tuple[Call, bool]]) -> bytes:
    """Each call with whether it may fail."""
    items = [_address(call.to) + _uint(int(may_fail)) + _uint(96) + _dynamic(call.data) for call, may_fail in calls]
    offsets: list[bytes] = []
    offset = 32 * len(items)
    for item in items:
        offsets.append(_uint(offset))
        offset += len(item)
    return b"".join((AGGREGATE3, _uint(32), _uint(len(items)), *offsets, *items))


def read_aggregate3_calls(data: bytes) -> tuple[Call, ...] | None:
    """The calls in calldata that `aggregate3` made, all allowed to fail; None for any other bytes, however they decode."""
    calls = _calls_of(data)
    return calls if calls is not None and aggregate3(calls) == data else None


def read_deploy_and_pay(data: bytes) -> tuple[Call, Call] | None:
    """Deployment and payment in calldata that `deploy_and_pay` made; None for any other bytes, however they decode."""
    calls = _calls_of(data)
    return (calls[0], calls[1]) if calls is not None and len(calls) == 2 and deploy_and_pay(calls[0], calls[1]) == data else None


def _calls_of(data: bytes) -> tuple[Call, ...] | None:
    """Targets and data in calldata of aggregate3."""
    calls: list[Call] = []
    count = _word_at(data, 4 + 32)
    if data[:4] != AGGREGATE3 or count is None or count * 32 > len(data):
        return None
    for index in range(count):
        item = 4 + 64 + int.from_bytes(data[4 + 64 + 32 * index : 4 + 96 + 32 * index], "big")
        target, called = _word_at(data, item), _bytes_at(data, item + 96)
        if target is None or target >= 2**160 or called is None:
            return None
        calls.append(Call(to=Address(f"0x{target:040x}"), data=called))
    return tuple(calls)


# --- signatures of wallets that are not deployed yet ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A signature as ERC-6492 wraps it, and how the wallet that is to judge it is deployed."""

    deployment: Call
    """Factory and what to call it with."""
    signature: bytes = field(repr=False)
    """What the deployed wallet judges."""


def is_enveloped(signature: bytes) -> bool:
    """Does it end as ERC-6492 has it?"""
    return signature.endswith(_ENVELOPE_SUFFIX)


def read_envelope(signature: bytes) -> Envelope | None:
    """The parts of a signature that `is_enveloped`; None when it is `abi.encode(address, bytes, bytes)` of none, or of another envelope."""
    wrapped = signature[: -len(_ENVELOPE_SUFFIX)]
    factory = _word_at(wrapped, 0)
    calldata, inner = _bytes_at(wrapped, _word_at(wrapped, 32)), _bytes_at(wrapped, _word_at(wrapped, 64))
    if factory is None or factory >= 2**160 or calldata is None or inner is None or is_enveloped(inner):
        return None
    return Envelope(deployment=Call(to=Address(f"0x{factory:040x}"), data=calldata), signature=inner)


# --- returns ---


def read_uint(data: bytes) -> int | None:
    """A returned uint256, None when it is none. Longer data is cut, as Solidity's own decoder does."""
    return int.from_bytes(data[:32], "big") if len(data) >= 32 else None


def read_bool(data: bytes) -> bool | None:
    """A returned bool, None when it is none."""
    number = read_uint(data)
    return bool(number) if number in {0, 1} else None


def read_string(data: bytes) -> str | None:
    """A returned string, None when it is none. The padding may hold anything; bytes that are not UTF-8 are replaced."""
    raw = _bytes_at(data, read_uint(data))
    return None if raw is None else raw.decode("utf-8", "replace")


def read_aggregate3(data: bytes) -> tuple[Reply, ...] | None:
    """The replies of aggregate3, None when this is not its return (there is no Multicall3, or it lied)."""
    start = read_uint(data)
    if start is None:
        return None
    count = _word_at(data, start)
    base = start + 32
    if count is None or base + 32 * count > len(data):
        return None
    replies: list[Reply] = []
    for index in range(count):
        item = base + int.from_bytes(data[base + 32 * index : base + 32 * index + 32], "big")
        success, offset = _word_at(data, item), _word_at(data, item + 32)
        if success not in {0, 1} or offset is None:
            return None
        returned = _bytes_at(data, item + offset)
        if returned is None:
            return None
        replies.append(Reply(ok=success == 1, data=returned))
    return tuple(replies)


def _word_at(data: bytes, position: int) -> int | None:
    """The integer at a position, None beyond the end."""
    return int.from_bytes(data[position : position + 32], "big") if position + 32 <= len(data) else None


def _bytes_at(data: bytes, position: int | None) -> bytes | None:
    """The `bytes` whose length stands at a position, None beyond the end. Padding may be missing or dirty."""
    length = None if position is None else _word_at(data, position)
    if position is None or length is None or position + 32 + length > len(data):
        return None
    return data[position + 32 : position + 32 + length]


_ERROR: Final = keccak256(b"Error(string)")[:4]
_PANIC: Final = keccak256(b"Panic(uint256)")[:4]
_CUSTOM_ERRORS: Final = {
    keccak256(signature.encode("ascii"))[:4]: signature.partition("(")[0]
    for signature in (
        "ERC20InsufficientBalance(address,uint256,uint256)",
        "EnforcedPause()",
        "ECDSAInvalidSignature()",
        "ECDSAInvalidSignatureLength(uint256)",
        "ECDSAInvalidSignatureS(bytes32)",
    )
}
"""Errors of OpenZeppelin 5 (EIP-6093 among them), which successors of FiatToken may use in place of texts."""
_REASON_MAX: Final = 200


def revert_reason(data: bytes) -> str | None:
    """Why a call reverted: the text of `Error(string)`, the name of a known custom error, else its selector; None without data.

    The text is the contract's: cut to 200 characters, and what does not print is replaced.
    """
    selector, rest = data[:4], data[4:]
    if len(selector) < 4:
        return None
    if selector == _ERROR:
        text = read_string(rest)
        if text is not None:
            return "".join(character if character.isprintable() else "?" for character in text[:_REASON_MAX])
    if selector == _PANIC and len(rest) >= 32:
        return f"Panic({int.from_bytes(rest[:32], 'big'):#x})"
    return _CUSTOM_ERRORS.get(selector, f"custom error 0x{selector.hex()}")


# --- events ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A contract's log, from a receipt or from `eth_getLogs`."""

    address: Address
    topics: tuple[str, ...]
    """Each 0x and 64 lower-case hex digits; the first names the event."""
    data: bytes
    log_index: int
    """Position in its block, not in its transaction."""
    tx_hash: TxHash
    block_number: int
    block_hash: BlockHash
    """All zero while only a flashblock has it."""
    removed: bool = False
    """The log's block was reorganised away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """ERC-20 Transfer."""

    sender: Address
    recipient: Address
    amount_atomic: Atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorized:
    """EIP-3009 AuthorizationUsed, or AuthorizationCanceled when `canceled`."""

    authorizer: Address
    auth_nonce: AuthNonce
    canceled: bool


class PaymentTerms(Protocol):
    """What a payment's logs are held against: an Authorization, or a settlement read back from the store."""

    @property
    def asset(self) -> Address:
        """The token."""
        ...

    @property
    def payer(self) -> Address:
        """Who pays."""
        ...

    @property
    def pay_to(self) -> Address:
        """Who is paid."""
        ...

    @property
    def amount_atomic(self) -> Atomic:
        """How much."""
        ...

    @property
    def auth_nonce(self) -> AuthNonce:
        """The payer's nonce."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentProof:
    """The payment happened: AuthorizationUsed with its matching Transfer right behind (docs/architecture.md decision 4)."""

    log: Log
    """The AuthorizationUsed log: its transaction hash and log index are the proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedOtherwise:
    """The auth_nonce was used, but no Transfer with these terms follows: other terms, or a token that breaks EIP-3009."""

    log: Log
    """The AuthorizationUsed log."""
    transfer: Transfer | None
    """What was transferred in its place, when the next log tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled:
    """The payer cancelled the authorization: it can never pay."""

    log: Log
    """The AuthorizationCanceled log."""


def read_transfer(log: Log) -> Transfer | None:
    """The Transfer that a log says, None when it is another event."""
    if len(log.topics) != 3 or log.topics[0] != TRANSFER_TOPIC or len(log.data) != 32:
        return None
    return Transfer(
        sender=_address_of(log.topics[1]), recipient=_address_of(log.topics[2]), amount_atomic=Atomic(int.from_bytes(log.data, "big"))
    )


def read_authorized(log: Log) -> Authorized | None:
    """The AuthorizationUsed or AuthorizationCanceled that a log says, None when it is another event."""
    if len(log.topics) != 3 or log.topics[0] not in {AUTHORIZATION_USED_TOPIC, AUTHORIZATION_CANCELED_TOPIC}:
        return None
    canceled = log.topics[0] == AUTHORIZATION_CANCELED_TOPIC
    return Authorized(authorizer=_address_of(log.topics[1]), auth_nonce=AuthNonce(log.topics[2]), canceled=canceled)


def find_payment(logs: Sequence[Log], terms: PaymentTerms) -> PaymentProof | UsedOtherwise | Canceled | None:
    """What became of an authorization according to these logs; None when they do not mention it.

    The logs must include the token's Transfers, as those of a whole receipt or of `payment_topics` do. Logs of other
    contracts and removed logs prove nothing.
    """
    own = {(log.block_hash, log.tx_hash, log.log_index): log for log in logs if log.address == terms.asset and not log.removed}
    payer_topic = topic_of(terms.payer)
    for log in own.values():
        if len(log.topics) != 3 or log.topics[2] != terms.auth_nonce or log.topics[1] != payer_topic:
            continue
        if log.topics[0] == AUTHORIZATION_CANCELED_TOPIC:
            return Canceled(log=log)
        if log.topics[0] == AUTHORIZATION_USED_TOPIC:
            follower = own.get((log.block_hash, log.tx_hash, log.log_index + 1))
            transfer = None if follower is None else read_transfer(follower)
            if transfer == Transfer(sender=terms.payer, recipient=terms.pay_to, amount_atomic=terms.amount_atomic):
                return PaymentProof(log=log)
            return UsedOtherwise(log=log, transfer=transfer)
    return None


def payment_topics(payers: Sequence[Address] = ()) -> tuple[Sequence[str], ...]:
    """Topics for `eth_getLogs` that bring all that `find_payment` needs; of these payers only, when any are given."""
    events = (AUTHORIZATION_USED_TOPIC, AUTHORIZATION_CANCELED_TOPIC, TRANSFER_TOPIC)
    return (events, tuple(topic_of(payer) for payer in payers)) if payers else (events,)


def nonce_topics(payer: Address, auth_nonce: AuthNonce) -> tuple[str | Sequence[str], ...]:
    """Topics for `eth_getLogs` that bring the one log of this authorization, used or cancelled."""
    return ((AUTHORIZATION_USED_TOPIC, AUTHORIZATION_CANCELED_TOPIC), topic_of(payer), auth_nonce)


def topic_of(address: Address) -> str:
    """An address as an indexed argument stands in a log's topics."""
    return "0x" + "00" * 12 + address[2:]


def _address_of(topic: str) -> Address:
    """The address in a topic."""
    return Address("0x" + topic[-40:])

"""Why a payment is refused: one Reason per cause, in order of precedence, and its word in each protocol version.

A refusal is a value, never an exception. Schemes and loops name a `Reason`; only the codecs turn it into a wire word,
so that a rule is written once for v1 and v2. Words follow docs/protocol.md.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self


class Reason(Enum):
    """Every cause of refusal: (v2 word, v1 word, may the same payment succeed later).

    Members stand in order of judgement: when two things are wrong, the earlier member is what the caller hears.
    """

    v2: str
    v1: str
    retryable: bool

    # shape of the message
    INVALID_PAYLOAD = ("invalid_payload", "invalid_payload", False)
    INVALID_REQUIREMENTS = ("invalid_payment_requirements", "invalid_payment_requirements", False)
    INVALID_VERSION = ("invalid_x402_version", "invalid_x402_version", False)
    # routing
    SCHEME_MISMATCH = ("invalid_exact_evm_scheme", "unsupported_scheme", False)
    UNSUPPORTED_SCHEME = ("unsupported_scheme", "unsupported_scheme", False)
    NETWORK_MISMATCH = ("invalid_exact_evm_network_mismatch", "invalid_network", False)
    UNSUPPORTED_NETWORK = ("invalid_network", "invalid_network", False)
    # shape of the scheme's payload
    UNSUPPORTED_PAYLOAD_TYPE = ("unsupported_payload_type", "unsupported_payload_type", False)
    INVALID_EXACT_PAYLOAD = ("invalid_exact_evm_payload", "invalid_payload", False)
    MISSING_SIGNATURE = ("invalid_exact_evm_payload_missing_signature", "invalid_exact_evm_payload_signature", False)
    # static terms
    INVALID_ASSET = ("invalid_payment_requirements", "invalid_payment_requirements", False)  # noqa: PIE796 (one word, two causes)
    MISSING_EIP712_DOMAIN = ("invalid_exact_evm_missing_eip712_domain", "invalid_exact_evm_missing_eip712_domain", False)
    TOKEN_NAME_MISMATCH = ("invalid_exact_evm_token_name_mismatch", "invalid_exact_evm_token_name_mismatch", False)
    TOKEN_VERSION_MISMATCH = ("invalid_exact_evm_token_version_mismatch", "invalid_exact_evm_token_version_mismatch", False)
    RECIPIENT_MISMATCH = ("invalid_exact_evm_recipient_mismatch", "invalid_exact_evm_payload_recipient_mismatch", False)
    AMOUNT_MISMATCH = (
        "invalid_exact_evm_payload_authorization_value_mismatch",
        "invalid_exact_evm_payload_authorization_value",
        False,
    )
    # signature
    SIGNATURE = ("invalid_exact_evm_signature", "invalid_exact_evm_payload_signature", False)
    SMART_WALLET_UNSUPPORTED = ("smart_wallet_unsupported", "smart_wallet_unsupported", False)
    UNDEPLOYED_WALLET = ("invalid_exact_evm_payload_undeployed_smart_wallet", "invalid_exact_evm_payload_undeployed_smart_wallet", False)
    FACTORY_NOT_ALLOWED = ("eip6492_factory_not_allowed", "eip6492_factory_not_allowed", False)
    DEPLOYMENT_FAILED = ("smart_wallet_deployment_failed", "smart_wallet_deployment_failed", False)
    # own record
    PAYMENT_IDENTIFIER_CONFLICT = ("payment_identifier_conflict", "payment_identifier_conflict", False)
    DUPLICATE_SETTLEMENT = ("duplicate_settlement", "duplicate_settlement", False)
    SETTLEMENT_PENDING = ("settlement_pending", "settlement_pending", True)
    SETTLEMENT_EXTERNAL = ("settlement_external", "settlement_external", False)
    AUTHORIZATION_CANCELED = ("authorization_canceled", "authorization_canceled", False)
    AUTHORIZATION_CONFLICT = ("authorization_conflict", "authorization_conflict", False)
    # what it did before
    PAYER_COOLING_DOWN = ("payer_cooling_down", "payer_cooling_down", True)
    # time
    EXPIRED = (
        "invalid_exact_evm_payload_authorization_valid_before",
        "invalid_exact_evm_payload_authorization_valid_before",
        False,
    )
    NOT_YET_VALID = (
        "invalid_exact_evm_payload_authorization_valid_after",
        "invalid_exact_evm_payload_authorization_valid_after",
        True,
    )
    # sanctions lists, in the words of Coinbase's hosted facilitator
    PAYER_SCREENED = (
        "invalid_exact_evm_payload_authorization_from_address_kyt",
        "invalid_exact_evm_payload_authorization_from_address_kyt",
        False,
    )
    PAY_TO_SCREENED = (
        "invalid_exact_evm_payload_authorization_to_address_kyt",
        "invalid_exact_evm_payload_authorization_to_address_kyt",
        False,
    )
    # chain facts
    ASSET_NOT_DEPLOYED = ("asset_not_deployed_contract", "asset_not_deployed_contract", False)
    EIP3009_NOT_SUPPORTED = ("invalid_exact_evm_eip3009_not_supported", "invalid_exact_evm_eip3009_not_supported", False)
    NONCE_USED = ("invalid_exact_evm_nonce_already_used", "invalid_exact_evm_nonce_already_used", False)
    TOKEN_PAUSED = ("token_paused", "token_paused", True)
    ACCOUNT_BLACKLISTED = ("account_blacklisted", "account_blacklisted", False)
    INSUFFICIENT_BALANCE = ("invalid_exact_evm_insufficient_balance", "insufficient_funds", True)
    SIMULATION_FAILED = (
        "invalid_exact_evm_transaction_simulation_failed",
        "invalid_exact_evm_transaction_simulation_failed",
        True,
    )
    # the transaction
    TRANSACTION_FAILED = ("invalid_exact_evm_transaction_failed", "invalid_transaction_state", True)
    TRANSFER_EVENT_MISMATCH = ("invalid_exact_evm_transfer_event_mismatch", "invalid_exact_evm_transfer_event_mismatch", False)

    def __new__(cls, v2: str, v1: str, retryable: bool) -> Self:  # noqa: FBT001
        """Give each member an identity of its own, for two causes may share a wire word."""
        member = object.__new__(cls)
        member._value_ = len(cls.__members__)
        member.v2, member.v1, member.retryable = v2, v1, retryable
        return member


PASSING: Final = frozenset({Reason.TOKEN_PAUSED, Reason.NOT_YET_VALID})
"""Conditions that end without anybody doing anything for this payment: what is queued waits for that until its time is up.

| refusal by chain facts | final for what is queued? |
|---|---|
| SMART_WALLET_UNSUPPORTED, UNDEPLOYED_WALLET, FACTORY_NOT_ALLOWED, DEPLOYMENT_FAILED | final: wallets do not change by waiting |
| SIGNATURE of a wallet | final: what its code says now counts, whatever it may say later |
| ASSET_NOT_DEPLOYED, EIP3009_NOT_SUPPORTED | final: code does not come by waiting |
| PAYER_SCREENED, PAY_TO_SCREENED | final: lists rarely shorten, and the payer may ask again |
| EXPIRED, NONCE_USED | final: time and nonces do not come back |
| TOKEN_PAUSED | temporary: an issuer pauses for all, and ends it |
| NOT_YET_VALID | temporary: the node that simulated is behind the head that judged |
| ACCOUNT_BLACKLISTED | final: it ends by a decision about this account, or never |
| INSUFFICIENT_BALANCE | final: only the payer can help it, and may ask again |
| SIMULATION_FAILED | final: a revert that nobody knows the end of |
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A payment is refused: the payer or the seller erred, or the chain says no."""

    reason: Reason
    message: str
    """For people: which field, what was expected, what came. Never a signature, never a URL."""
    evidence: dict[str, str] = field(default_factory=dict)
    """Facts behind the message, by glossary name, as text."""

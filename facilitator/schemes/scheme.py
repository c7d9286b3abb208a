"""What a payment scheme is: it reads a payload, asks the chain's questions, judges, and says which call pays.

The one seam between the engine and the rules of a scheme. A scheme is pure: no I/O, no clock, no log. The engine calls
the methods in the order in which they stand here, which is the order of judgement (docs/architecture.md decision 5).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from facilitator.domain.facts import Call, Facts, Now, Question, Trial
from facilitator.domain.wallets import Wallet
from facilitator.protocol.messages import Authorization, Payment, Requirements, SupportedKind
from facilitator.protocol.reasons import Refusal
from facilitator.units import Address, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that the operator serves. Configured, never believed from a request (docs/architecture.md decision 7)."""

    network: Network
    address: Address
    name: str
    """EIP-712 domain name: "USDC" on Base Sepolia, "USD Coin" on Base."""
    version: str
    """EIP-712 domain version."""
    decimals: int


class Scheme(Protocol):
    """The rules of one (scheme, transfer method) over the configured tokens."""

    @property
    def name(self) -> str:
        """The scheme's word on the wire, such as `exact`."""
        ...

    def features(self, network: Network) -> Mapping[str, object] | None:
        """What `/supported` says of this scheme on this network beside its name."""
        ...

    def read(self, payment: Payment) -> Authorization | Refusal:
        """Route and parse: scheme and network agree, the payload has its shape; numbers, hex and signature are normalised."""
        ...

    def check_terms(self, authorization: Authorization, requirements: Requirements) -> Refusal | None:
        """Static terms: asset policy, EIP-712 domain data, recipient, amount."""
        ...

    def check_signature(self, authorization: Authorization) -> Refusal | None:
        """Did the payer's own key sign it? A refusal may yet be a contract payer: ask for its code before believing it."""
        ...

    def refuse_unasked(self, authorization: Authorization, refusal: Refusal) -> Refusal | None:
        """The refusal of a signature that no wallet can help, for none may pay; None: the chain must be asked.

        `refusal` is what the local check gave.
        """
        ...

    def ask_wallet(self, authorization: Authorization) -> tuple[Question, ...]:
        """The questions that tell a bad signature from one that a contract judges: the payer's code, and what it says."""
        ...

    def judge_wallet(self, authorization: Authorization, facts: Facts, refusal: Refusal) -> Wallet | Refusal:
        """The wallet whose code took the signature; else the refusal, where the local check gave `refusal`."""
        ...

    def wallet(self, authorization: Authorization, code: bytes) -> Wallet | Refusal | None:
        """What pays when this code lies at the payer: a wallet, nothing for a reason, or None: the payer's key."""
        ...

    def check_time(self, authorization: Authorization, now: Now) -> Refusal | None:
        """The validity window against chain and wall time."""
        ...

    def trial(self, authorization: Authorization) -> Trial | None:
        """The one question whose yes is enough to pay. A no says nothing yet: `ask`, and `judge`. None: a key cannot have signed."""
        ...

    def ask(self, authorization: Authorization, wallet: Wallet | None = None) -> tuple[Question, ...]:
        """Everything the chain must say about this payment, simulation included. The first reply is the payer's code."""
        ...

    def judge(self, authorization: Authorization, facts: Facts, wallet: Wallet | None = None) -> Refusal | None:
        """Rule on the chain's answers to `ask`, in order of precedence."""
        ...

    def call(self, authorization: Authorization) -> Call:
        """The call that makes the payment of a payer without code when a relayer sends it; a wallet brings its own."""
        ...


class Registry:
    """The schemes that are served, by their word on the wire."""

    def __init__(self, schemes: Iterable[Scheme], tokens: Iterable[Token]) -> None:
        """`tokens` are those of every network; a network without one is not served."""
        self._schemes: Mapping[str, Scheme] = {scheme.name: scheme for scheme in schemes}
        self.tokens: Mapping[tuple[Network, Address], Token] = {(token.network, token.address): token for token in tokens}
        self.networks: tuple[Network, ...] = tuple(dict.fromkeys(token.network for token in self.tokens.values()))

    def find(self, name: str) -> Scheme | None:
        """The scheme of that name, or None when it is not served."""
        return self._schemes.get(name)

    def kinds(self, networks: Iterable[Network]) -> tuple[SupportedKind, ...]:
        """Every scheme on each of these networks."""
        return tuple(
            SupportedKind(scheme=scheme.name, network=network, extra=scheme.features(network))
            for network in networks
            for scheme in self._schemes.values()
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all schemes served."""
        return tuple(self._schemes)

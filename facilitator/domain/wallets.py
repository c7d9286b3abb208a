"""Payers whose signature a contract judges: what kinds there are, which call pays, and how much gas it may take.

A wallet's code may tell a simulation from a block in a dozen ways, so no simulation bounds what it costs when it is mined:
the gas limit of its transaction does, and that never lies above a maximum that the operator names.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Literal

from facilitator.domain.facts import Call
from facilitator.units import Address, Gas, Network

Mode = Literal["off", "deployed", "counterfactual"]

SIGNATURE_BYTES_MAX: Final = 8 * 1024
"""Longest signature that is read: passkeys need some 700 bytes, one with a deployment 2,500."""
WALLET_GAS: Final = Gas(500_000)
"""What the official Python facilitator allows every payment; a passkey on a chain without the precompile takes some 430,000."""
DEPLOYMENT_GAS: Final = Gas(1_500_000)
_TRANSACTION_GAS: Final = 21_000
_ZERO_GAS, _BYTE_GAS = 4, 16
_ZERO_FLOOR, _BYTE_FLOOR = 10, 40
_ROOM: Final = 30_000
"""Gas beyond a quarter more than was measured: somebody else's transfer to the same recipient comes or does not come first."""
_CODES_MAX: Final = 1024
_DELEGATION: Final = b"\xef\x01\x00"


class PayerKind(Enum):
    """Whose code judges the payer's signature. The words of the metrics."""

    CONTRACT = "contract"
    """A contract's own (ERC-1271)."""
    DELEGATED = "delegated"
    """That to which a key's account delegates (EIP-7702); the key's own signature alone does not count."""
    COUNTERFACTUAL = "counterfactual"
    """A contract's that the payment itself deploys first (ERC-6492)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which wallets may pay."""

    mode: Mode = "deployed"
    gas_max: Gas = WALLET_GAS
    """Highest gas limit of a transaction that a wallet's code has a part in."""
    deployment_gas_max: Gas = DEPLOYMENT_GAS
    """The same of one that deploys the wallet first."""
    factories: frozenset[tuple[Network, Address]] = frozenset()
    """Contracts that may be called to deploy one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """A payer of this sort, with the call that pays: what was simulated is what is signed."""

    kind: PayerKind
    call: Call = field(repr=False)
    gas: Gas
    """Gas limit of the transaction: the most there may be, until it was measured."""
    code: bytes = field(repr=False)
    """What its gas is learned by: the hash of the code at the payer, or of its factory's address."""

    @property
    def call_gas(self) -> Gas:
        """What is left of the limit for the call itself; nothing, where the limit is too low for its data."""
        data = self.call.data
        return Gas(self.gas - _base_gas(data)) if self.gas >= max(_base_gas(data), _floor_gas(data)) else Gas(0)


def kind_of(code: bytes) -> PayerKind:
    """The kind of a payer at whose address this code lies."""
    return PayerKind.DELEGATED if len(code) == 23 and code.startswith(_DELEGATION) else PayerKind.CONTRACT


class WalletGas:
    """What wallets' transactions may take, learned by code: what this one just took in its simulation, or what its like took mined.

    In memory, for nothing hangs on it: every judgement measures anew, and the maximum holds whatever was learned. Many wallets
    share the code of their proxy, so a stranger may raise what another's transaction is allowed, never above the maximum.
    """

    def __init__(self, codes_max: int = _CODES_MAX) -> None:
        self._codes_max = codes_max
        self._taken: OrderedDict[bytes, int] = OrderedDict()
        """Gas of whole transactions, by code; the one asked for longest ago is forgotten first."""

    def __len__(self) -> int:
        """Codes that are known."""
        return len(self._taken)

    def measured(self, wallet: Wallet, call_gas_used: Gas) -> Wallet:
        """The wallet with the gas limit that its transaction gets. `wallet.gas` must be the most there may be."""
        data = wallet.call.data
        if wallet.code in self._taken:
            self._taken.move_to_end(wallet.code)
        need = max(_base_gas(data) + call_gas_used, self._taken.get(wallet.code, 0))
        return replace(wallet, gas=Gas(min(wallet.gas, max(_floor_gas(data), need * 5 // 4 + _ROOM))))

    def mined(self, code: bytes, gas_used: int) -> None:
        """A payment that this code let pass took so much; what was learned before fades."""
        before = self._taken.pop(code, 0)
        self._taken[code] = max(gas_used, before - before // 16)
        while len(self._taken) > self._codes_max:
            self._taken.popitem(last=False)


def _base_gas(data: bytes) -> int:
    """What a transaction with this data costs before anything runs (EIP-2028)."""
    zeros = data.count(0)
    return _TRANSACTION_GAS + _ZERO_GAS * zeros + _BYTE_GAS * (len(data) - zeros)


def _floor_gas(data: bytes) -> int:
    """The least limit that a transaction with this data may have (EIP-7623)."""
    zeros = data.count(0)
    return _TRANSACTION_GAS + _ZERO_FLOOR * zeros + _BYTE_FLOOR * (len(data) - zeros)

"""What things are called on a page: networks, assets, states, reasons, kinds of incidents. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

from facilitator.domain.discrepancies import CLASSES
from facilitator.domain.schedules import USD, USD_DECIMALS
from facilitator.domain.states import State
from facilitator.protocol import v1
from facilitator.protocol.reasons import Reason
from facilitator.schemes.scheme import Token
from facilitator.schemes.usdc import USDC
from facilitator.units import Address, Network

_CIRCLES: Final = frozenset((token.network, token.address) for token in USDC)
_NATIVE: Final = "native"
_NATIVE_DECIMALS: Final = 18
STATES: Final[Mapping[State, str]] = {
    State.QUEUED: "No transaction carries it; it waits for a relayer.",
    State.SUBMITTED: "A signed transaction that carries it is on record.",
    State.PRECONFIRMED: "Seen in a block that is not sealed yet.",
    State.INCLUDED: "Paid: the proof is in a sealed block.",
    State.SAFE: "The block is derived from data on L1.",
    State.FINALIZED: "Final: the block can no longer be reorganised away.",
    State.WITHDRAWN: "Its caller's deadline came while nothing was signed.",
    State.FAILED: "Not paid; the authorization was not used.",
    State.EXPIRED: "Not paid; the authorization can never be used any more.",
    State.EXTERNAL: "Somebody else executed the authorization.",
    State.CANCELLED: "The payer cancelled the authorization.",
    State.CONFLICT: "The authorization's nonce was used with other terms.",
}
"""What a state says to somebody who has not read docs/states.md."""


class Assets:
    """Units and decimals of what the books hold, by the journal's name of it; those that are configured no more have neither."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        known = {_journal_name(each.network, each.address): each for each in (*USDC, *tokens)}
        self._decimals = {name: token.decimals for name, token in known.items()}
        self._units = {name: token.name for name, token in known.items()} | {_journal_name(*key): "USDC" for key in _CIRCLES}

    def unit(self, asset: str | None) -> str:
        """`USDC`, `USD`, `ETH`; the token's address when we do not know it."""
        if asset is None:
            return ""
        network, _, name = asset.partition("/")
        if name == _NATIVE:
            return coin(Network(network))
        return "USD" if asset == USD else self._units.get(asset, name)

    def decimals(self, asset: str | None) -> int | None:
        """None when it is not known: amounts are shown in atomic units then."""
        if asset is not None and asset.endswith(f"/{_NATIVE}"):
            return _NATIVE_DECIMALS
        return USD_DECIMALS if asset == USD else self._decimals.get(asset or "")

    def token_unit(self, network: Network, address: Address) -> str:
        """`unit` of a token."""
        return self.unit(_journal_name(network, address))

    def token_decimals(self, network: Network, address: Address) -> int | None:
        """`decimals` of a token."""
        return self.decimals(_journal_name(network, address))


def _journal_name(network: Network, address: Address) -> str:
    return f"{network}/{address}"


def network(of: str) -> str:
    """`Base Sepolia`; the CAIP-2 id when it has no name."""
    nickname = v1.render_network(Network(of))
    return of if nickname is None else nickname.replace("-", " ").title()


_COINS: Final[Mapping[str, str]] = {
    "avalanche": "AVAX", "avalanche-fuji": "AVAX", "celo": "CELO", "flare": "FLR", "iotex": "IOTX", "monad": "MON", "monad-testnet": "MON",
    "peaq": "PEAQ", "polygon": "POL", "polygon-amoy": "POL", "sei": "SEI", "sei-testnet": "SEI", "story": "IP", "educhain": "EDU",
}  # fmt: skip


def coin(of: Network) -> str:
    """The network's own coin, in which gas is paid."""
    return _COINS.get(v1.render_network(of) or "", "ETH")


def reason(name: str) -> str:
    """The wire's word for why, with spaces."""
    word = Reason[name].v2 if name in Reason.__members__ else name.lower()
    return word.replace("_", " ")


def words(name: str) -> str:
    """`unexpected_use` as `Unexpected use`."""
    text = name.replace("_", " ").lower()
    return text[:1].upper() + text[1:]


def class_text(name: str) -> str:
    """What a class of discrepancies means."""
    text = CLASSES[name]
    return text[:1].upper() + text[1:]

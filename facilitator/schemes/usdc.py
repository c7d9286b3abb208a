"""Circle's native USDC as tokens that are served."""

from typing import Final

from facilitator.protocol.usdc import DECIMALS, DEPLOYMENTS, VERSION
from facilitator.schemes.scheme import Token

USDC: Final = tuple(
    Token(network=each.network, address=each.address, name=each.name, version=VERSION, decimals=DECIMALS) for each in DEPLOYMENTS
)

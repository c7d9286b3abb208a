"""The signer of a client program: the key EVM_PRIVATE_KEY, or with WALLET_ADDRESS a smart wallet that this key owns.

Its signatures are the key's behind WALLET_PREFIX; with WALLET_FACTORY and WALLET_CALLDATA they say how the wallet is deployed (ERC-6492).
"""

import os
from typing import Any

from eth_abi.abi import encode
from eth_account import Account
from x402.mechanisms.evm.signers import EthAccountSigner


class WalletSigner:
    """What the SDK asks of a signer (`ClientEvmSigner`)."""

    def __init__(self, owner: EthAccountSigner, address: str) -> None:
        self._owner = owner
        self.address = address

    def sign_typed_data(self, *message: Any) -> bytes:
        """The wallet's signature."""
        signature = bytes.fromhex(os.environ["WALLET_PREFIX"][2:]) + bytes(self._owner.sign_typed_data(*message))
        if "WALLET_FACTORY" not in os.environ:
            return signature
        calldata = bytes.fromhex(os.environ["WALLET_CALLDATA"][2:])
        return encode(["address", "bytes", "bytes"], [os.environ["WALLET_FACTORY"], calldata, signature]) + bytes.fromhex("6492") * 16


def signer() -> EthAccountSigner | WalletSigner:
    """As the environment says."""
    owner = EthAccountSigner(Account.from_key(os.environ["EVM_PRIVATE_KEY"]))
    return WalletSigner(owner, os.environ["WALLET_ADDRESS"]) if "WALLET_ADDRESS" in os.environ else owner

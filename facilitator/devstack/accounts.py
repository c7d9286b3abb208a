"""Accounts of the local stack whose keys everybody can compute. Never use them on a public chain."""

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak


def dev_account(role: str, index: int = 0) -> LocalAccount:
    """The `index`-th account of a role such as `buyer` or `relayer`: the same one on every machine."""
    account: LocalAccount = Account.from_key(keccak(text=f"facilitator devstack {role} {index}"))
    return account

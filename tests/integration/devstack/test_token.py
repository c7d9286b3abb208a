"""The token on the local chain is Circle's own, at the real address, and obeys its roles."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from eth_utils.abi import function_abi_to_4byte_selector

from facilitator.devstack.buyer import Buyer, requirements
from facilitator.devstack.children import StackFault
from facilitator.devstack.install import NPM_DIRECTORY
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import BASE_SEPOLIA_USDC, MULTICALL3, Token, install_token

REPOSITORY = Path(__file__).parents[3]
ARTIFACTS = NPM_DIRECTORY / "node_modules" / "@offchainlabs" / "stablecoin-evm" / "artifacts" / "hardhat" / "contracts"
# EIP-712 domain (USDC, 2, 84532, 0x036CbD53842c5426634e7929541eC2318f3dCF7e), as Base Sepolia answers it.
BASE_SEPOLIA_DOMAIN_SEPARATOR = "0x71f17a3b2ff373b803d70a5a07c046c1a2bc8e89c09ef722fcb047abe94c9818"
# (USD Coin, 2, 8453, 0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913), as Base answers it.
BASE_DOMAIN_SEPARATOR = "0x02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"
IMPLEMENTATION_SLOT = "0x7050c9e0f4ca769c69bd3a8ef740bc37934f8e2c036e5a723fd8ee048ed3f8c3"
PAY_TO = "0x" + "22" * 20
NOBODY = Buyer.numbered(10**6).address


async def test_the_token_is_usdc_of_base_sepolia(token: Token) -> None:
    assert token.asset == BASE_SEPOLIA_USDC
    assert await token.domain_separator() == BASE_SEPOLIA_DOMAIN_SEPARATOR
    assert [await token.read(f"{field}()", "string") for field in ("name", "symbol", "version")] == ["USDC", "USDC", "2"]
    assert await token.read("decimals()", "uint8") == 6


async def test_the_token_can_stand_as_that_of_another_network(start_chain: Callable[..., Awaitable[Anvil]]) -> None:
    base = await start_chain(chain_id=8453)
    asset = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
    token = await install_token(base.rpc_url, asset=asset, name="USD Coin")
    assert await token.domain_separator() == BASE_DOMAIN_SEPARATOR


async def test_the_token_is_initialised_through_v2_2_for_good(token: Token) -> None:
    await token.set_gas_money(NOBODY, 10**18)
    for initialise, arguments in (
        ("initializeV2(string)", ["again"]),
        ("initializeV2_1(address)", [PAY_TO]),
        ("initializeV2_2(address[],string)", [[], "AGAIN"]),
    ):
        with pytest.raises(StackFault, match="reverted"):
            await token.transact(NOBODY, initialise, *arguments)


async def test_installing_twice_changes_nothing(chain: Anvil, token: Token, new_buyer: Callable[..., Awaitable[Buyer]]) -> None:
    buyer = await new_buyer(amount_atomic=7)
    again = await install_token(chain.rpc_url)
    assert again == token
    assert await again.balance_of(buyer.address) == 7


async def test_the_proxy_names_its_implementation_where_usdc_does(chain: Anvil, token: Token) -> None:
    stored = str(await chain.node.call("eth_getStorageAt", token.asset, IMPLEMENTATION_SLOT, "latest"))
    code = str(await chain.node.call("eth_getCode", "0x" + stored[-40:], "latest"))
    compiled = json.loads((ARTIFACTS / "v2" / "FiatTokenV2_2.sol" / "FiatTokenV2_2.json").read_text())
    assert len(code) == len(compiled["deployedBytecode"]) == 2 + 2 * 23_464
    assert "__$" not in code


async def test_multicall3_has_every_function_of_its_abi(chain: Anvil) -> None:
    code = bytes.fromhex(str(await chain.node.call("eth_getCode", MULTICALL3, "latest"))[2:])
    abi = json.loads((REPOSITORY / "contracts" / "abi" / "Multicall3.json").read_text())
    assert len(abi) == 16
    for function in abi:
        assert b"\x63" + function_abi_to_4byte_selector(function) in code, function["name"]  # PUSH4 of the dispatcher


@pytest.mark.parametrize("source", ["v2/FiatTokenV2_2", "v1/FiatTokenProxy"])
def test_the_abi_files_are_those_of_the_pinned_package(source: str) -> None:
    name = source.rpartition("/")[2]
    published = json.loads((ARTIFACTS / f"{source}.sol" / f"{name}.json").read_text())["abi"]
    assert json.loads((REPOSITORY / "contracts" / "abi" / f"{name}.json").read_text()) == published


async def test_a_blacklisted_account_cannot_be_paid_until_it_is_let_off(token: Token) -> None:
    account = Buyer.numbered(10**6 + 1).address
    await token.set_blacklisted(account, blacklisted=True)
    with pytest.raises(StackFault, match="reverted"):
        await token.mint(account, 1)
    await token.set_blacklisted(account, blacklisted=False)
    await token.mint(account, 1)
    assert await token.balance_of(account) == 1


async def test_a_paused_token_moves_nothing(start_chain: Callable[..., Awaitable[Anvil]]) -> None:
    token = Token.at((await start_chain()).rpc_url)
    await token.pause()
    with pytest.raises(StackFault, match="reverted"):
        await token.mint(NOBODY, 1)
    await token.unpause()
    await token.mint(NOBODY, 1)


@pytest.mark.parametrize("mining", [{"automine": False}, {"block_time_s": 60}], ids=["on demand", "by the clock"])
async def test_the_token_comes_to_chains_that_do_not_mine_by_themselves(
    start_chain: Callable[..., Awaitable[Anvil]], mining: dict[str, object]
) -> None:
    token = Token.at((await start_chain(**mining)).rpc_url)
    assert await token.domain_separator() == BASE_SEPOLIA_DOMAIN_SEPARATOR


async def test_an_authorization_that_somebody_altered_is_refused(token: Token, new_buyer: Callable[..., Awaitable[Buyer]]) -> None:
    buyer = await new_buyer(amount_atomic=10)
    payload = buyer.authorize(requirements(2, pay_to=PAY_TO, amount_atomic=5))
    signed, signature = payload["authorization"], bytes.fromhex(payload["signature"][2:])
    with pytest.raises(StackFault, match="invalid signature"):
        await token.read(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            "bool",
            *(signed["from"], signed["to"], 6, 0, int(signed["validBefore"]), bytes.fromhex(signed["nonce"][2:]), signature),
        )

import pytest

from facilitator.protocol import v1
from facilitator.units import Network


@pytest.mark.parametrize(
    ("nickname", "network"),
    [
        ("ethereum", "eip155:1"),
        ("sepolia", "eip155:11155111"),
        ("base", "eip155:8453"),
        ("base-sepolia", "eip155:84532"),
        ("abstract", "eip155:2741"),
        ("abstract-testnet", "eip155:11124"),
        ("avalanche", "eip155:43114"),
        ("avalanche-fuji", "eip155:43113"),
        ("iotex", "eip155:4689"),
        ("sei", "eip155:1329"),
        ("sei-testnet", "eip155:1328"),
        ("polygon", "eip155:137"),
        ("polygon-amoy", "eip155:80002"),
        ("peaq", "eip155:3338"),
        ("story", "eip155:1514"),
        ("educhain", "eip155:41923"),
        ("skale-base-sepolia", "eip155:324705682"),
        ("megaeth", "eip155:4326"),
        ("monad", "eip155:143"),
        ("monad-testnet", "eip155:10143"),
        ("stable", "eip155:988"),
        ("stable-testnet", "eip155:2201"),
        ("celo", "eip155:42220"),
        ("flare", "eip155:14"),
    ],
)
def test_a_nickname_and_its_network_are_each_others_name(nickname: str, network: str) -> None:
    assert v1.parse_network(nickname) == network
    assert v1.render_network(Network(network)) == nickname


def test_no_two_nicknames_mean_the_same_network() -> None:
    assert len(v1.NICKNAME_BY_NETWORK) == len(v1.CHAIN_ID_BY_NICKNAME) == 24


@pytest.mark.parametrize("text", ["", "Base", "base ", "base-goerli", "eip155:8453", "8453", "solana"])
def test_other_text_names_no_network_in_v1(text: str) -> None:
    assert v1.parse_network(text) is None


def test_a_network_without_nickname_cannot_be_named_in_v1() -> None:
    assert v1.render_network(Network("eip155:50")) is None

"""Node messages told apart, one fixture for each, and what must never appear in ours."""

import pytest

from facilitator.chain import rpc
from facilitator.chain.rpc import NodeError, RpcClient, RpcError, classify
from facilitator.clock import SystemClock
from facilitator.errors import ConfigFault

MESSAGES = [
    # geth and op-geth
    (-32000, "already known", NodeError.ALREADY_KNOWN),
    (-32000, "nonce too low: next nonce 5, tx nonce 4", NodeError.NONCE_TOO_LOW),
    (-32000, "nonce too high", NodeError.NONCE_TOO_HIGH),
    (-32000, "gapped-nonce tx from delegated accounts", NodeError.NONCE_TOO_HIGH),
    (-32000, "replacement transaction underpriced", NodeError.REPLACEMENT_UNDERPRICED),
    (-32000, "future transaction tries to replace pending", NodeError.REPLACEMENT_UNDERPRICED),
    (-32000, "transaction underpriced: gas tip cap 0, minimum needed 1000000", NodeError.UNDERPRICED),
    (-32000, "max fee per gas less than block base fee: address 0x11, maxFeePerGas: 1, baseFee: 7", NodeError.UNDERPRICED),
    (-32000, "insufficient funds for gas * price + value: balance 0, tx cost 21000, overshot 21000", NodeError.INSUFFICIENT_FUNDS),
    (-32000, "txpool is full", NodeError.TXPOOL_FULL),
    (-32000, "in-flight transaction limit reached for delegated accounts", NodeError.TXPOOL_FULL),
    (-32000, "exceeds block gas limit", NodeError.GAS_LIMIT),
    (-32000, "transaction gas limit too high (cap: 16777216, tx: 20000000)", NodeError.GAS_LIMIT),
    (-32000, "intrinsic gas too low: gas 20000, minimum needed 21000", NodeError.GAS_LIMIT),
    (-32000, "oversized data: transaction size 131073, limit 131072", NodeError.INVALID_TRANSACTION),
    (-32000, "invalid chain id for signer: have 1 want 8453", NodeError.INVALID_TRANSACTION),
    (-32000, "invalid sender", NodeError.INVALID_TRANSACTION),
    (-32000, "transaction type not supported", NodeError.INVALID_TRANSACTION),
    (-32000, "rlp: element is larger than containing list", NodeError.INVALID_TRANSACTION),
    (-32000, "max priority fee per gas higher than max fee per gas", NodeError.INVALID_TRANSACTION),
    (3, "execution reverted: Pausable: paused", NodeError.REVERTED),
    (-32000, "execution reverted", NodeError.REVERTED),
    (-32015, "VM execution error.", NodeError.REVERTED),
    (3, "execution reverted: ECRecover: invalid signature length", NodeError.REVERTED),
    (-32000, "execution reverted: nonce too low, already known", NodeError.REVERTED),
    (-32000, "out of gas", NodeError.OUT_OF_GAS),
    (-32000, "gas required exceeds allowance (600000)", NodeError.OUT_OF_GAS),
    (-32000, "header not found", NodeError.STATE_UNAVAILABLE),
    (-32000, "missing trie node 1234 (path ) state 0x12 is not available, not found", NodeError.STATE_UNAVAILABLE),
    (-32000, "finalized block not found", NodeError.STATE_UNAVAILABLE),
    (-32000, "execution aborted (timeout = 5s)", NodeError.TIMEOUT),
    (-32601, "the method eth_foo does not exist/is not available", NodeError.METHOD_UNSUPPORTED),
    (-32602, "invalid argument 0: hex string without 0x prefix", NodeError.INVALID_PARAMS),
    (-32600, "batch too large", NodeError.BATCH_TOO_LARGE),
    (-32005, "query returned more than 10000 results", NodeError.RANGE_TOO_LARGE),
    # reth
    (-32000, "already imported", NodeError.ALREADY_KNOWN),
    (-32003, "nonce too low: next nonce 7, tx nonce 3", NodeError.NONCE_TOO_LOW),
    (-32003, "transaction gas limit is greater than the cap", NodeError.GAS_LIMIT),
    (-32001, "block not found: 0x1234", NodeError.STATE_UNAVAILABLE),
    (-32602, "query exceeds max block range 100000", NodeError.RANGE_TOO_LARGE),
    (-32614, "eth_getLogs is limited to a 10,000 range", NodeError.RANGE_TOO_LARGE),
    # anvil 1.7.1, as it answered
    (-32003, "transaction already imported", NodeError.ALREADY_KNOWN),
    (-32003, "nonce too low", NodeError.NONCE_TOO_LOW),
    (-32003, "Insufficient funds for gas * price + value", NodeError.INSUFFICIENT_FUNDS),
    (-32003, "replacement transaction underpriced", NodeError.REPLACEMENT_UNDERPRICED),
    (-32003, "max fee per gas less than block base fee", NodeError.UNDERPRICED),
    (-32000, "intrinsic gas too low", NodeError.GAS_LIMIT),
    (-32003, "invalid chain id for signer", NodeError.INVALID_TRANSACTION),
    (-32602, "Failed to decode transaction", NodeError.INVALID_TRANSACTION),
    (-32603, "EVM error OutOfGas", NodeError.OUT_OF_GAS),
    (-32602, "BlockOutOfRangeError: block height is 6 but requested was 16", NodeError.STATE_UNAVAILABLE),
    (-32601, "Method not found", NodeError.METHOD_UNSUPPORTED),
    # other clients, and providers in front of them
    (-32010, "AlreadyKnown", NodeError.ALREADY_KNOWN),
    (-32010, "OldNonce, Current nonce: 5, nonce of rejected tx: 3", NodeError.NONCE_TOO_LOW),
    (-32010, "FeeTooLow, MaxFeePerGas too low", NodeError.UNDERPRICED),
    (-32005, "daily request count exceeded, request rate limited", NodeError.RATE_LIMITED),
    (429, "Your app has exceeded its compute units per second capacity", NodeError.RATE_LIMITED),
    (-32005, "limit exceeded", NodeError.RATE_LIMITED),
    (-32007, "50/second request limit reached", NodeError.RATE_LIMITED),
    (-32016, "over rate limit", NodeError.RATE_LIMITED),
    (-32603, "Internal error", NodeError.INTERNAL),
    (-32014, "maximum 10 calls in 1 batch", NodeError.BATCH_TOO_LARGE),
    (-32000, "something that no node has said before", NodeError.UNKNOWN),
]


@pytest.mark.parametrize(("code", "message", "kind"), MESSAGES)
def test_a_node_message_has_its_meaning(code: int, message: str, kind: NodeError) -> None:
    assert classify(code, message) is kind


def test_every_meaning_has_a_fixture() -> None:
    assert {kind for _, _, kind in MESSAGES} == set(NodeError)


def test_every_pattern_of_the_table_has_a_fixture() -> None:
    used = {
        next((kind, pattern.pattern) for pattern, kind in rpc._TABLE if pattern.search(message.lower()))
        for _, message, kind in MESSAGES
        if kind not in {NodeError.UNKNOWN, NodeError.INTERNAL, NodeError.INVALID_PARAMS} and message != "limit exceeded"
    }
    assert {pattern for _, pattern in used} == {pattern for pattern, _ in rpc.NODE_MESSAGES}


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "host:8545", "http://", "wss://user:secret@host", "http://[secret", "https://user:secret@"]
)
def test_an_url_that_cannot_be_used_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigFault) as caught:
        RpcClient([url], SystemClock())
    assert "secret" not in str(caught.value)


def test_no_url_at_all_is_refused() -> None:
    with pytest.raises(ConfigFault):
        RpcClient([], SystemClock())


def test_an_endpoint_is_known_by_host_and_port_only() -> None:
    client = RpcClient(["https://user:secret@rpc.example/v2/secret?key=secret", "http://127.0.0.1:8545"], SystemClock())
    assert client.endpoints == ("rpc.example:443", "127.0.0.1:8545")


async def test_a_client_closes_unstarted_and_twice() -> None:
    client = RpcClient(["http://127.0.0.1:1"], SystemClock())
    await client.close()
    await client.close()


def test_an_errors_message_holds_no_url_and_is_short() -> None:
    body = rpc._ErrorBody(code=-32005, message="limited: see https://provider.example/key/secret for more " + "x" * 500)
    error = rpc._read_error(body)
    assert isinstance(error, RpcError)
    assert "secret" not in error.message
    assert len(error.message) <= 200

"""A JSON-RPC caller for the local chain: for setting it up and for tests. The service has its own in `chain/rpc.py`."""

from dataclasses import dataclass

import aiohttp

from facilitator.devstack.children import StackFault


@dataclass(frozen=True, slots=True)
class Node:
    """One endpoint. Every call has a connection of its own, so it may be used from any event loop."""

    url: str

    async def call(self, method: str, *params: object) -> object:
        """Call and return the `result`. Raises StackFault with the node's message."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with aiohttp.ClientSession() as session, session.post(self.url, json=request) as response:
            answer = await response.json()
        if "error" in answer:
            raise StackFault("node_error", f"{method}: {answer['error'].get('message')}")
        return answer.get("result")

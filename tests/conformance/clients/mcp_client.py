"""Calls the tool of MCP_SERVER, a program on stdio, with RESOURCE_ORDER, through the MCP client of PyPI `x402`; prints one JSON line.

The session is the official MCP SDK's.
"""

import asyncio
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from eth_account import Account
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from x402 import x402Client
from x402.mcp import x402MCPClient
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner


class Calls:
    """The SDK's session as x402's client calls it: parameters as one dictionary, `_meta` among them."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def call_tool(self, params: dict[str, Any], **_: object) -> SimpleNamespace:
        request = types.CallToolRequest(params=types.CallToolRequestParams.model_validate(params))
        result = await self._session.send_request(types.ClientRequest(request), types.CallToolResult)
        told = result.model_dump(by_alias=True, mode="json")
        return SimpleNamespace(
            content=told["content"], isError=result.isError, structuredContent=result.structuredContent, _meta=told.get("_meta")
        )


async def buy() -> dict[str, object]:
    """Pay, and tell what came back."""
    client = x402Client()
    register_exact_evm_client(client, EthAccountSigner(Account.from_key(os.environ["EVM_PRIVATE_KEY"])))
    environment = {"RESOURCE_URL": os.environ["RESOURCE_URL"], "PATH": os.environ["PATH"]}
    server = StdioServerParameters(command=sys.executable, args=[os.environ["MCP_SERVER"]], env=environment)
    async with stdio_client(server) as (reading, writing), ClientSession(reading, writing) as session:
        await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        result = await x402MCPClient(Calls(session), client).call_tool("buy", json.loads(os.environ["RESOURCE_ORDER"]))
    receipt = result.payment_response.model_dump(by_alias=True, exclude_none=True) if result.payment_response else None
    body = json.loads(result.content[0]["text"])
    return {"tools": tools, "error": result.is_error, "body": body, "payment_response": receipt, "paid": result.payment_made}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(buy())) + "\n")

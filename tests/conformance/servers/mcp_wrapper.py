"""An MCP server on stdio with one tool, `buy`, which stands for one paid route: POST RESOURCE_URL with the tool's arguments.

It holds no key and asks no facilitator: the route's demand becomes the tool's error, the payment in the call's `_meta` goes
to the route as PAYMENT-SIGNATURE, and the route's receipt comes back in the result's `_meta`.
"""

import asyncio
import base64
import json
import os
from typing import Any

import httpx
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

server: Server = Server("one paid route")


@server.list_tools()
async def list_tools() -> list[types.Tool]:
    """The one tool."""
    return [types.Tool(name="buy", description="what the route sells", inputSchema={"type": "object"})]


@server.call_tool()
async def call_tool(_: str, arguments: dict[str, Any]) -> types.CallToolResult:
    """Ask the route, with the payment that came."""
    meta = server.request_context.meta
    payment = (meta.model_extra or {}).get("x402/payment") if meta else None
    headers = {} if payment is None else {"PAYMENT-SIGNATURE": base64.b64encode(json.dumps(payment).encode()).decode()}
    async with httpx.AsyncClient(timeout=120, trust_env=False) as http:
        response = await http.post(os.environ["RESOURCE_URL"], json=arguments, headers=headers)
    demand, receipt = (response.headers.get(name) for name in ("PAYMENT-REQUIRED", "PAYMENT-RESPONSE"))
    told = json.loads(base64.b64decode(demand)) if demand else response.json()
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=json.dumps(told))],
        structuredContent=told,
        isError=response.status_code != 200,
        _meta={"x402/payment-response": json.loads(base64.b64decode(receipt))} if receipt else None,
    )


async def main() -> None:
    """Serve until the other side ends."""
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


if __name__ == "__main__":
    asyncio.run(main())

"""The sample sellers before a facilitator in miniature, for tests that are about the sellers."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from aiohttp.test_utils import TestServer

from facilitator.devstack.pay import Bought, buy, demanded, hand_over, new_session
from facilitator.devstack.sellers.market import Market
from facilitator.devstack.sellers.models.local import LOCAL
from facilitator.devstack.sellers.models.model import Models
from facilitator.protocol.messages import Version
from tests.integration.gateway.model import BUYER, HASTY, SELLER, Model

Json = dict[str, Any]

CHAT: Json = {"model": "openai/gpt-5-mini", "messages": [{"role": "user", "content": "What is 6 * 7?"}]}
IMAGE: Json = {"model": "openai/gpt-image-1", "prompt": "a lighthouse", "size": "128x128"}
GENERATE: Json = {"prompt": "a lighthouse"}
ROUTER: Json = {"prompt": "a lighthouse", "width": 128, "height": 128}


class Stalls:
    """`async with Stalls(tmp_path) as stalls`: all three sellers, selling to `BUYER`."""

    def __init__(self, directory: Path, **models: Any) -> None:
        self.model = Model()
        self._directory = directory
        self._models: Models = replace(LOCAL, **models)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        facilitator = await self._stack.enter_async_context(TestServer(self.model.application()))
        self.market = Market(
            str(facilitator.make_url("")), "key", SELLER, self._directory / "market", models=self._models, client_settings=HASTY
        )
        self._stack.push_async_callback(self.market.stop)
        await self.market.start()
        self.session = await self._stack.enter_async_context(new_session())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def url(self, path: str) -> str:
        """Of a route of any of them."""
        seller = "twos" if path.startswith("/api/ai") else "xrouter" if path.startswith("/v1") else "studio"
        return self.market.urls[seller] + path

    @property
    def describe(self) -> Json:
        """An order for a description that can be served."""
        return {"imageUrl": self.market.sample_url}

    async def buy(self, path: str, order: Json, version: Version = 2) -> Bought:
        """Buy once."""
        self.model.told_with_key, self.model.recorded = None, False  # another payment
        return await buy(self.session, BUYER, self.url(path), version, order)

    async def ask(
        self, path: str, order: object, *, paid: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Json, Mapping[str, str]]:
        """POST without a payment, or with one."""
        if paid is not None:
            bought = await hand_over(self.session, self.url(path), paid, order)  # type: ignore[arg-type]
            return bought.status, bought.body, {}
        how: dict[str, Any] = {"data": order} if isinstance(order, bytes) else {"json": order}
        async with self.session.post(self.url(path), **how, headers=headers) as response:
            return response.status, await response.json(), response.headers

    async def get(self, url: str) -> tuple[int, bytes, Mapping[str, str]]:
        async with self.session.get(url) as response:
            return response.status, await response.read(), response.headers

    async def payment(self, path: str, order: Json) -> Json:
        """A payment that is good for an order."""
        return BUYER.pay(2, await demanded(self.session, self.url(path), 2, order))

"""What the demo buys, in this order: the sample paid API in both versions of x402, then every paid route of the sample sellers."""

from dataclasses import dataclass
from typing import Final

from facilitator.devstack.buyer import Json
from facilitator.devstack.ensemble import Ensemble
from facilitator.devstack.gateway import ROUTES
from facilitator.protocol.messages import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """One thing to buy."""

    seller: str
    """In the style of whom."""
    url: str
    version: Version
    order: Json | None = None
    """Body of a POST; None: a GET."""
    makes_job: bool = False
    """The answer names a job, which the paying wallet signs in for."""


def purchases(everything: Ensemble) -> tuple[Purchase, ...]:
    """One round."""
    own = [Purchase(seller="sample API", url=everything.gateway_url + each.path, version=version) for each in ROUTES for version in _BOTH]
    urls = everything.market.urls
    question = {"role": "user", "content": "What is 6 * 7?"}
    chat: Json = {"model": "openai/gpt-5-mini", "messages": [question], "max_tokens": 64}
    image: Json = {"model": "black-forest-labs/flux-1.1-pro", "prompt": "a lighthouse at dusk", "size": "512x512"}
    describe: Json = {"imageUrl": everything.market.sample_url}
    generate: Json = {"prompt": "a lighthouse at dusk", "quality": "low", "size": "1024x1024"}
    router: Json = {"prompt": "a lighthouse at dusk", "width": 512, "height": 512, "seed": 7}
    return (
        *own,
        Purchase(seller="2s.io style", url=urls["twos"] + "/api/ai/chat", version=2, order=chat),
        Purchase(seller="2s.io style", url=urls["twos"] + "/api/ai/image", version=2, order=image),
        Purchase(seller="2s.io style", url=urls["twos"] + "/api/ai/describe-image", version=2, order=describe),
        Purchase(
            seller="StableStudio style",
            url=urls["studio"] + "/api/generate/gpt-image-1/generate",
            version=2,
            order=generate,
            makes_job=True,
        ),
        *(Purchase(seller="x-router style", url=urls["xrouter"] + "/v1/images/generate", version=v, order=router) for v in _BOTH),
    )


_BOTH: Final[tuple[Version, ...]] = (2, 1)

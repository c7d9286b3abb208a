"""The models that need nothing: a renderer, a describer and a chat of this package."""

from typing import Final

from facilitator.devstack.sellers.models import describer, renderer, rules
from facilitator.devstack.sellers.models.model import Models

LOCAL: Final = Models(
    draw=renderer.draw,
    describe=describer.describe,
    chat=rules.chat,
    served_by={"draw": renderer.SERVED_BY, "describe": describer.SERVED_BY, "chat": rules.SERVED_BY},
)

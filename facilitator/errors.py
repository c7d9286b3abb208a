"""Faults: the world failed, nobody is to blame for the payment.

A refusal is a value (`protocol.reasons.Refusal`), a bug is any other exception. A Fault never says that a payment
failed; it says that we cannot tell or cannot act now. `retryable` tells whether the same request may succeed later.
"""


class Fault(Exception):
    """The world failed. `evidence` holds facts for the log and the error answer, never secrets.

    `kind` is a short constant word for logs and metrics, such as `timeout`.
    """

    retryable = True

    def __init__(self, kind: str, message: str, **evidence: object) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.evidence = evidence

    def __str__(self) -> str:
        """The message and its evidence, for a log line or a terminal."""
        if not self.evidence:
            return self.message
        return f"{self.message} ({', '.join(f'{key}={value}' for key, value in self.evidence.items())})"


class ChainFault(Fault):
    """A chain endpoint did not answer, answered nonsense, or refused for a reason of its own."""


class SignerFault(Fault):
    """A key service did not sign, or signed something else. Nothing left this process."""


class StoreFault(Fault):
    """Postgres is away, slow or refused a write."""


class ScreeningFault(Fault):
    """A sanctions list is stale or cannot be read, and the tenant takes no payment unscreened. Nothing was signed."""


class OverloadFault(Fault):
    """A bounded queue is full or slow. The request was refused before anything was signed; come back later.

    `retry_after_s` is when, as far as that can be told.
    """

    def __init__(self, kind: str, message: str, *, retry_after_s: int | None = None, **evidence: object) -> None:
        super().__init__(kind, message, **evidence)
        self.retry_after_s = retry_after_s


class ConfigFault(Fault):
    """The configuration is wrong: the message says where, what was expected, what came and what to do."""

    retryable = False

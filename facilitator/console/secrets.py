"""The console's random secrets: of sessions, links and sign-ins. The database knows hashes only."""

import hashlib
import hmac
import re
import secrets
from typing import Final

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


def new_secret() -> str:
    """256 random bits, as they go into a cookie or a link."""
    return secrets.token_urlsafe(32)


def is_secret(text: str) -> bool:
    """Whether it has the form of one."""
    return _SECRET.fullmatch(text) is not None


def hash_of(secret: str) -> bytes:
    """What the database knows of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def derived(secret: str, purpose: str) -> str:
    """Another secret that only the holder of this one can make."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()

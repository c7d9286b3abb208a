"""Tokens that a caller signs for one request (JWT, RFC 7519), as CDP's clients make them, against a registered public key.

A token names its key (`kid` and `sub`), one method and address of ours (`uris`), lives 120 s at most and is used once
(`nonce` in its header, or `jti`). The algorithm is the key's, never the token's choice.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

LIFE_MAX_S: Final = 120
_SKEW_S: Final = 5
"""How far a caller's clock may be ahead of ours."""
KEPT_S: Final = LIFE_MAX_S + _SKEW_S + 1
"""How long a use is remembered: no token is valid any later."""
_LENGTH_MAX: Final = 4096
_USE_LENGTH_MAX: Final = 128
_SEEN_MAX: Final = 200_000

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


def parse_public_key(pem: str) -> str:
    """The same key in one spelling. Raises ValueError unless it is Ed25519 or P-256 in PEM."""
    key = _load(pem)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@lru_cache(maxsize=1024)
def _load(pem: str) -> PublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)):
        return key
    raise ValueError("expected a public key in PEM, Ed25519 or P-256 (never the private one)")


def key_id_of(token: str) -> str | None:
    """The key that a token says it is signed with; None for what is no token. Nothing is checked yet."""
    if len(token) > _LENGTH_MAX or token.count(".") != 2 or not token.isascii():
        return None
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError:
        return None
    return kid if isinstance(kid, str) else None


def single_use(token: str, key_id: str, public_key: str, uris: Sequence[str], now: int) -> str | None:
    """The token's word for its one use. None: it opens nothing.

    `uris` are this request's method and address, `POST host/path`, in each spelling that is ours.
    """
    key = _load(public_key)
    algorithm = "EdDSA" if isinstance(key, Ed25519PublicKey) else "ES256"
    try:
        whole = jwt.decode_complete(
            token,
            key,
            algorithms=[algorithm],
            options={"require": ["exp", "sub"], "verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False},
        )
    except (jwt.PyJWTError, ValueError):
        return None
    claims, header = whole["payload"], whole["header"]
    ends, starts = claims["exp"], claims.get("nbf", claims.get("iat", now))
    if not all(type(moment) is int for moment in (ends, starts)):
        return None
    if not (starts - _SKEW_S <= now < ends <= now + LIFE_MAX_S + _SKEW_S and ends - starts <= LIFE_MAX_S):
        return None
    bound = claims.get("uris", [claims.get("uri")])
    if claims["sub"] != key_id or not isinstance(bound, list) or not any(uri in bound for uri in uris):
        return None
    use = header.get("nonce", claims.get("jti"))
    if not isinstance(use, str) or not 8 <= len(use) <= _USE_LENGTH_MAX:
        return None
    return use


class Uses:
    """Tokens that were used and could be used again; bounded, and when it is full nothing more is let in."""

    def __init__(self, most: int = _SEEN_MAX) -> None:
        self._most = most
        self._until: OrderedDict[tuple[str, str], int] = OrderedDict()

    def first(self, key_id: str, use: str, now: int) -> bool:
        """Whether this is the first use; from now on it is not."""
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if (key_id, use) in self._until or len(self._until) >= self._most:
            return False
        self._until[key_id, use] = now + KEPT_S  # so the oldest entry ends first
        return True

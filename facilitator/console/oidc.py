"""Signing in with OpenID Connect: the code flow with PKCE, as a relying party. (OpenID Connect Core 1.0 §3.1; RFC 7636; RFC 9207)

Everything of one attempt (`state`, the nonce, the code verifier) is derived from one secret in the browser's cookie, so
nothing is kept here. An answer counts only with that cookie, and its ID token only when issuer, audience, nonce, times and
signature are right. It must never log a code or a token.
"""

import asyncio
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import jwt
from aiohttp import encode_basic_auth

from facilitator.clock import Clock
from facilitator.console.roles import Role
from facilitator.console.secrets import derived

_ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
_TIMEOUT_S: Final = 10.0
_FRESH_S: Final = 3600.0
"""How long metadata and keys are believed."""
_KEYS_AGAIN_S: Final = 30.0
"""A key id that is not known is looked for again at most so often."""
_SKEW_S: Final = 30
_BODY_BYTES_MAX: Final = 1 << 20
_PERSON_MAX: Final = 200
_PRECEDENCE: Final[tuple[Role, ...]] = ("admin", "finance", "auditor", "viewer")
"""Whoever could be several is the first."""


class SignInFault(Exception):
    """Somebody is not signed in; the words say why, without a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What the provider knows us as, and what its words mean here."""

    issuer: str
    client_id: str
    client_secret: str | None
    """None: a public client, held by PKCE alone."""
    scopes: tuple[str, ...]
    person_claim: str
    role_claim: str
    roles: Mapping[Role, tuple[str, ...]]
    """Values of the role claim that make somebody this."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who came back."""

    person: str
    role: Role


@dataclass(frozen=True, slots=True)
class _Metadata:
    authorization: str
    token: str
    keys: str
    posts_secret: bool


class Provider:
    """One OpenID provider."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._metadata: _Metadata | None = None
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._looking = asyncio.Lock()

    async def authorization_url(self, flow: str, redirect_uri: str) -> str:
        """Where to send the browser. Raises SignInFault when the provider cannot be asked."""
        metadata = await self._known()
        challenge = urlsafe_b64encode(sha256(derived(flow, "verifier").encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._client.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._client.scopes),
            "state": derived(flow, "state"),
            "nonce": derived(flow, "nonce"),
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{metadata.authorization}{'&' if urlsplit(metadata.authorization).query else '?'}{urlencode(query)}"

    async def redeem(self, flow: str | None, redirect_uri: str, answer: Mapping[str, str]) -> Person:
        """Who came back with this answer; `flow` is None when the browser has none. Raises SignInFault."""
        if flow is None:
            raise SignInFault("this browser did not ask for it, or too long ago")
        if not hmac.compare_digest(answer.get("state", "").encode(), derived(flow, "state").encode()):
            raise SignInFault("the answer belongs to another attempt")
        if answer.get("iss", self._client.issuer) != self._client.issuer:
            raise SignInFault("the answer came from another provider")
        if "error" in answer or "code" not in answer:
            raise SignInFault("the provider refused" + (f" ({answer['error'][:64]!a})" if "error" in answer else ""))
        form = {
            "grant_type": "authorization_code",
            "code": answer["code"],
            "redirect_uri": redirect_uri,
            "code_verifier": derived(flow, "verifier"),
            "client_id": self._client.client_id,
        }
        metadata = await self._known()
        login = None
        if self._client.client_secret is not None and metadata.posts_secret:
            form["client_secret"] = self._client.client_secret
        elif self._client.client_secret is not None:  # (RFC 6749 §2.3.1)
            login = encode_basic_auth(quote(self._client.client_id, safe=""), quote(self._client.client_secret, safe=""), "utf-8")
        granted = await _fetch("POST", metadata.token, data=form, login=login)
        token = granted.get("id_token")
        if not isinstance(token, str):
            raise SignInFault("the provider gave no ID token")
        return self._person(await self._claims(token, derived(flow, "nonce")))

    async def _claims(self, token: str, expected: str) -> dict[str, Any]:
        """Of an ID token that is right. (OpenID Connect Core 1.0 §3.1.3.7)"""
        try:
            head = jwt.get_unverified_header(token)
            key = await self._key(head.get("kid"))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._client.client_id,
                issuer=self._client.issuer,
                leeway=_SKEW_S,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise SignInFault(f"the ID token is wrong ({type(error).__name__})") from None
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), expected.encode()):
            raise SignInFault("the ID token belongs to another attempt")
        if claims.get("azp", self._client.client_id) != self._client.client_id:
            raise SignInFault("the ID token was made for another client")
        return claims

    def _person(self, claims: Mapping[str, Any]) -> Person:
        client = self._client
        person = claims.get(client.person_claim)
        if not isinstance(person, str) or not 0 < len(person) <= _PERSON_MAX or not person.isprintable():
            raise SignInFault(f"the provider does not say who you are (claim {client.person_claim})")
        if client.person_claim == "email" and claims.get("email_verified") is False:
            raise SignInFault("the provider has not verified your address")
        said = claims.get(client.role_claim, [])
        values = {value for value in (said if isinstance(said, list) else [said]) if isinstance(value, str)}
        for role in _PRECEDENCE:
            if values.intersection(client.roles[role]):
                return Person(person, role)
        raise SignInFault(f"{person} has no role in this console (claim {client.role_claim})")

    # ---- metadata and keys

    async def _known(self) -> _Metadata:
        async with self._looking:
            if self._metadata is None or self._clock.monotonic() - self._read_at > _FRESH_S:
                await self._read()
        assert self._metadata is not None
        return self._metadata

    async def _key(self, kid: str | None) -> jwt.PyJWK:
        await self._known()
        async with self._looking:
            if kid not in self._keys and self._clock.monotonic() - self._read_at > _KEYS_AGAIN_S:
                await self._read()  # keys were changed
        found = self._keys.get(kid) if kid is not None or len(self._keys) != 1 else next(iter(self._keys.values()))
        if found is None:
            raise SignInFault("the ID token is signed with a key that the provider does not publish")
        return found

    async def _read(self) -> None:
        """Metadata and keys anew. (OpenID Connect Discovery 1.0 §4)"""
        issuer = self._client.issuer
        said = await _fetch("GET", issuer.rstrip("/") + "/.well-known/openid-configuration")
        if said.get("issuer") != issuer:
            raise SignInFault("the provider calls itself otherwise than console.oidc.issuer")
        try:
            metadata = _Metadata(
                _address(str(said["authorization_endpoint"]), issuer),
                _address(str(said["token_endpoint"]), issuer),
                _address(str(said["jwks_uri"]), issuer),
                said.get("token_endpoint_auth_methods_supported") == ["client_secret_post"],
            )
        except KeyError as missing:
            raise SignInFault(f"the provider's metadata lack {missing}") from None
        keys: dict[str | None, jwt.PyJWK] = {}
        for entry in (await _fetch("GET", metadata.keys)).get("keys", []):
            try:
                key = jwt.PyJWK.from_dict(entry)
            except (jwt.PyJWTError, AttributeError, KeyError):
                continue  # of a kind that we do not use
            if entry.get("use", "sig") == "sig" and key.algorithm_name in _ALGORITHMS:
                keys[key.key_id] = key
        self._metadata, self._keys, self._read_at = metadata, keys, self._clock.monotonic()


def _address(url: str, issuer: str) -> str:
    """An endpoint: by https, unless the issuer itself is not (on this machine, see the configuration)."""
    if urlsplit(url).scheme not in {"https", urlsplit(issuer).scheme}:
        raise SignInFault("an endpoint of the provider is not https")
    return url


async def _fetch(method: str, url: str, data: Mapping[str, str] | None = None, login: str | None = None) -> dict[str, Any]:
    """A JSON object from the provider; no redirect is followed. Raises SignInFault."""
    try:
        headers = {"Accept": "application/json"} | ({"Authorization": login} if login else {})
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.request(method, url, data=data, headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise SignInFault(f"the provider answered with status {answer.status}")
            body = b""
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > _BODY_BYTES_MAX:
                    raise SignInFault("the provider's answer is too large")
            found = json.loads(body)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise SignInFault(f"the provider cannot be asked ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise SignInFault("the provider's answer is no JSON object")
    return found

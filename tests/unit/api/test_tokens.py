"""Signed tokens as plain values: who signed, for which request, for how long, how often."""

from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from facilitator.api.tokens import LIFE_MAX_S, Uses, key_id_of, parse_public_key, single_use

NOW = 1_800_000_000
KEY_ID = "abcdefghijkl"
URI = "POST pay.example/settle"
KEYS: dict[str, Any] = {"EdDSA": ed25519.Ed25519PrivateKey.generate(), "ES256": ec.generate_private_key(ec.SECP256R1())}


def public(key: Any) -> str:
    text: str = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return text


def token(algorithm: str = "EdDSA", *, key: Any = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """As CDP's clients make one; a change to None leaves a claim out."""
    claims = {"sub": KEY_ID, "iss": "cdp", "uris": [URI], "iat": NOW, "nbf": NOW, "exp": NOW + 120, **changes}
    present = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(
        present, key or KEYS[algorithm], algorithm=algorithm, headers={"kid": KEY_ID, "nonce": "0123456789abcdef", **(header or {})}
    )


def opens(text: str, algorithm: str = "EdDSA", *, uri: str = URI, now: int = NOW) -> bool:
    return single_use(text, KEY_ID, public(KEYS[algorithm]), [uri], now) is not None


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_of_the_registered_key_for_this_request_opens(algorithm: str) -> None:
    text = token(algorithm)
    assert key_id_of(text) == KEY_ID
    assert opens(text, algorithm)
    assert single_use(text, KEY_ID, public(KEYS[algorithm]), ["POST other/settle", URI], NOW) == "0123456789abcdef"


def test_a_token_of_another_key_or_algorithm_opens_nothing() -> None:
    assert not opens(token("ES256"), "EdDSA")
    assert not opens(token(key=ed25519.Ed25519PrivateKey.generate()))
    assert not opens(token("HS256", key="k" * 40)), "a public key is no shared secret"
    unsigned = jwt.encode(
        {"sub": KEY_ID, "uris": [URI], "exp": NOW + 60}, None, algorithm="none", headers={"kid": KEY_ID, "nonce": "0" * 16}
    )
    assert not opens(unsigned)
    head, claims, signature = token().split(".")
    assert not opens(f"{head}.{claims}.{signature[:-4]}AAAA")


def test_a_token_is_bound_to_method_host_and_path() -> None:
    for uri in ("GET pay.example/settle", "POST pay.example/verify", "POST pay.example/", "POST evil.example/settle"):
        assert not opens(token(), uri=uri)
    assert not opens(token(uris=None))
    assert not opens(token(uris=[]))
    assert not opens(token(uris=URI)), "a list, or a substring would do"
    assert opens(token(uris=["POST pay.example/verify", URI]))
    assert opens(token(uris=None, uri=URI)), "as older clients name it"
    assert single_use(token(), KEY_ID, public(KEYS["EdDSA"]), [], NOW) is None, "without an address of ours no token opens"


def test_a_token_lives_two_minutes_at_most() -> None:
    assert opens(token(), now=NOW + 119)
    assert not opens(token(), now=NOW + 120)
    assert opens(token(), now=NOW - 5), "clocks differ a little"
    assert not opens(token(), now=NOW - 6)
    assert not opens(token(exp=NOW + LIFE_MAX_S + 1))
    assert not opens(token(nbf=NOW - 3600, exp=NOW + 60)), "a long life that is nearly over is long"
    assert not opens(token(iat=None, nbf=None, exp=NOW + 3600))
    assert not opens(token(exp=None))
    assert not opens(token(exp=float(NOW + 60)))


def test_a_token_names_its_key_and_its_one_use() -> None:
    assert not opens(token(sub="somebodyelse"))
    assert not opens(token(sub=None))
    assert not opens(token(header={"nonce": "short"}))
    assert not opens(token(header={"nonce": "x" * 129}))
    assert opens(token(header={"nonce": "f" * 32}))
    plain = {"sub": KEY_ID, "uris": [URI], "nbf": NOW, "exp": NOW + 60}
    assert not opens(jwt.encode(plain, KEYS["EdDSA"], algorithm="EdDSA", headers={"kid": KEY_ID}))
    assert opens(jwt.encode(plain | {"jti": "f" * 32}, KEYS["EdDSA"], algorithm="EdDSA", headers={"kid": KEY_ID}))


@pytest.mark.parametrize("text", ["", "..", "a.b.c", "x" * 5000, "e30.e30.", "fk_abcdefghijkl_" + "s" * 43, "\ud800.a.b", "é.é.é"])
def test_what_is_no_token_names_no_key(text: str) -> None:
    assert key_id_of(text) is None


def test_a_use_is_the_first_once_while_its_token_could_be_valid() -> None:
    uses = Uses(most=2)
    assert uses.first("a", "one", NOW)
    assert not uses.first("a", "one", NOW + LIFE_MAX_S + 5)
    assert uses.first("b", "one", NOW), "of another key"
    assert not uses.first("b", "two", NOW), "full: nothing more is let in rather than something forgotten"
    assert uses.first("b", "two", NOW + LIFE_MAX_S + 6)
    assert len(uses._until) == 1


def test_only_public_keys_of_the_two_kinds_are_taken() -> None:
    for key in KEYS.values():
        assert parse_public_key(public(key) + "\n") == public(key)
    private = KEYS["EdDSA"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    others = [public(ec.generate_private_key(ec.SECP384R1())), public(rsa.generate_private_key(65537, 2048)), private, "", "no key"]
    for text in others:
        with pytest.raises(ValueError, match="never the private one"):
            parse_public_key(text)

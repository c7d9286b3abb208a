"""Which payment is this? The identity of an authorization and the fingerprint of its terms (docs/architecture.md decision 1, 5)."""

import hashlib

import msgspec

from facilitator.protocol.messages import Authorization
from facilitator.units import Address, AuthNonce, Network


class AuthKey(msgspec.Struct, frozen=True, order=True):
    """The identity of a payment. Never the signature, which has many spellings; never a hash of a body."""

    network: Network
    asset: Address
    payer: Address
    auth_nonce: AuthNonce


def key_of(authorization: Authorization) -> AuthKey:
    """The identity under which this authorization can be paid once."""
    return AuthKey(authorization.network, authorization.asset, authorization.payer, authorization.auth_nonce)


def fingerprint(authorization: Authorization) -> bytes:
    """SHA-256 of the canonical, version-free terms: two requests with equal fingerprints ask for the same thing.

    Signature, resource, extra and extensions stay out: they may differ between honest repeats.
    """
    terms = (
        authorization.scheme,
        authorization.network,
        authorization.asset,
        str(authorization.amount_atomic),
        authorization.pay_to,
        authorization.payer,
        authorization.auth_nonce,
        str(authorization.valid_after),
        str(authorization.valid_before),
    )
    return hashlib.sha256("\n".join(terms).encode()).digest()

"""A payment of our own, again and again, down the way of everybody's: does judging work, and, where it is configured, paying?

The first needs nothing: a key made on the spot has no money, and `insufficient_funds` is the right answer of every part on the way.
The second pays one atomic unit from the configured account to itself. Its auth_nonce follows from the account and the hour, so that all
replicas together make one such payment in `canary_settle_s`: that is its budget, and it is the identity of payments that holds it.
"""

from typing import Final
from uuid import uuid4

import structlog
from coincurve import PrivateKey
from msgspec.structs import replace

from facilitator.chain.signer import address_of
from facilitator.clock import Clock
from facilitator.errors import Fault
from facilitator.metrics import CANARY_AT, CANARY_FAILURES, CANARY_INTERVAL, CANARY_SECONDS
from facilitator.protocol.address import keccak256
from facilitator.protocol.messages import Authorization, Payment, Requirements
from facilitator.protocol.reasons import Reason
from facilitator.schemes import exact_eip3009
from facilitator.schemes.scheme import Token
from facilitator.schemes.signatures import sign, transfer_digest
from facilitator.settlement.admission import Admitter, Caller, IdempotencyConflict
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.restraints import LimitReached
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import beat
from facilitator.settlement.verification import Verifier
from facilitator.store import tenants
from facilitator.store.db import Db
from facilitator.store.tenants import Tenant
from facilitator.units import Atomic, AuthNonce, UnixSeconds

TENANT: Final = Tenant(tenant_id="canary")
"""In whose name it pays: what it costs stands under this tenant in the books."""
_LIFE_S: Final = 600
"""How much longer than the time for which it is made a payment may be carried out."""

log = structlog.get_logger(__name__)


class Canary:
    """One network's."""

    def __init__(
        self, chain: ServedNetwork, token: Token, verifier: Verifier, admitter: Admitter, db: Db, clock: Clock, settings: Settings
    ) -> None:
        self._chain = chain
        self._token = token
        self._verifier = verifier
        self._admitter = admitter
        self._db = db
        self._clock = clock
        self._settings = settings
        self._settled = -1
        """The last stretch of `canary_settle_s` whose payment was seen to be made."""
        self._show("verify", settings.canary_verify_s)
        if chain.canary is not None:
            self._show("settle", settings.canary_settle_s)

    async def run(self) -> None:
        """Judge a payment every `canary_verify_s`; make one in each stretch of `canary_settle_s`, tried as often until it is made."""
        while True:
            beat("canary", self._chain.network)
            await self._clock.sleep(self._settings.canary_verify_s)
            await self.verify()
            if self._chain.canary is not None:
                await self.settle(self._chain.canary)

    async def verify(self) -> None:
        """A payer without money must be refused for that, by the token's own word."""
        began = self._clock.monotonic()
        key = PrivateKey()
        payment = self._payment(key, AuthNonce("0x" + keccak256(uuid4().bytes).hex()), UnixSeconds(self._clock.now() + _LIFE_S))
        try:
            refusal = (await self._verifier.judge(TENANT, payment)).refusal
            outcome = "valid" if refusal is None else refusal.reason.name.lower()
            self._tell("verify", outcome, began, well=refusal is not None and refusal.reason is Reason.INSUFFICIENT_BALANCE)
        except Fault as fault:
            self._tell("verify", fault.kind, began, well=False)

    async def settle(self, key: PrivateKey) -> None:
        """This stretch's payment must be on chain, whichever replica made it."""
        stretch_s = int(self._settings.canary_settle_s)
        stretch = self._clock.now() // stretch_s
        if stretch == self._settled:
            return
        began = self._clock.monotonic()
        name = f"facilitator canary {self._chain.network} {self._token.address} {stretch_s} {stretch}"
        payment = self._payment(key, AuthNonce("0x" + keccak256(name.encode()).hex()), UnixSeconds((stretch + 1) * stretch_s + _LIFE_S))
        try:
            await tenants.create_tenant(self._db, TENANT)
            answer = await self._admitter.settle(Caller(tenant=TENANT, request_id=f"canary-{stretch}"), payment, None)
        except Fault as fault:
            self._tell("settle", fault.kind, began, well=False)
        except (IdempotencyConflict, LimitReached) as limit:  # somebody gave this tenant limits
            self._tell("settle", type(limit).__name__, began, well=False)
        else:
            if answer.ticket is not None:
                self._admitter.delivered(answer.ticket)
            refusal = answer.result.refusal
            well = refusal is None or refusal.reason is Reason.DUPLICATE_SETTLEMENT
            self._tell("settle", "success" if refusal is None else refusal.reason.name.lower(), began, well=well)
            self._settled = stretch if well else self._settled

    def _payment(self, key: PrivateKey, auth_nonce: AuthNonce, valid_before: UnixSeconds) -> Payment:
        """Such an authorization as buyers send it."""
        token, authorization = self._token, authorize(key, self._token, auth_nonce, valid_before)
        return Payment(
            version=2,
            wire_network=token.network,
            scheme=authorization.scheme,
            network=token.network,
            payload={
                "signature": "0x" + authorization.signature.hex(),
                "authorization": {
                    "from": authorization.payer,
                    "to": authorization.pay_to,
                    "value": str(authorization.amount_atomic),
                    "validAfter": str(authorization.valid_after),
                    "validBefore": str(valid_before),
                    "nonce": auth_nonce,
                },
            },
            requirements=Requirements(
                scheme=authorization.scheme,
                network=token.network,
                asset=token.address,
                pay_to=authorization.pay_to,
                amount_atomic=authorization.amount_atomic,
                max_timeout_s=_LIFE_S,
                extra={"name": token.name, "version": token.version},
            ),
        )

    def _show(self, path: str, interval_s: float) -> None:
        CANARY_INTERVAL.labels(self._chain.network, path).set(interval_s)
        CANARY_AT.labels(self._chain.network, path).set(0)
        CANARY_FAILURES.labels(self._chain.network, path)

    def _tell(self, path: str, outcome: str, began: float, *, well: bool) -> None:
        CANARY_SECONDS.labels(self._chain.network, path).observe(self._clock.monotonic() - began)
        if well:
            CANARY_AT.labels(self._chain.network, path).set(self._clock.now())
        else:
            CANARY_FAILURES.labels(self._chain.network, path).inc()
            log.warning("canary.failed", network=self._chain.network, path=path, outcome=outcome)


def authorize(key: PrivateKey, token: Token, auth_nonce: AuthNonce, valid_before: UnixSeconds) -> Authorization:
    """One atomic unit from this account to itself."""
    payer = address_of(key)
    unsigned = Authorization(
        scheme=exact_eip3009.NAME,
        network=token.network,
        asset=token.address,
        payer=payer,
        pay_to=payer,
        amount_atomic=Atomic(1),
        valid_after=UnixSeconds(0),
        valid_before=valid_before,
        auth_nonce=auth_nonce,
        signature=b"",
    )
    return replace(unsigned, signature=sign(transfer_digest(unsigned, token.name, token.version), key))

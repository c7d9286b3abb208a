"""Would this payment settle? The order of judgement, for /verify and for admission alike (docs/architecture.md decision 5).

Shape → static terms → signature → own record → restraints → time → sanctions lists → chain facts → simulation. Nonce, payer
and terms are public once used, so nobody learns anything from our record before the signature is judged.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import msgspec

from facilitator import tracing
from facilitator.clock import Clock
from facilitator.domain import abi
from facilitator.domain.facts import CodeOf, Facts, Head, Question
from facilitator.domain.identity import fingerprint, key_of
from facilitator.domain.limits import Looks, Rate
from facilitator.domain.states import State
from facilitator.domain.wallets import PayerKind, Wallet
from facilitator.errors import ChainFault, StoreFault
from facilitator.metrics import UNRECORDED_VERIFICATIONS, VERIFICATIONS, WALLET_VERIFICATIONS, series
from facilitator.protocol.address import checksum_address
from facilitator.protocol.messages import Authorization, Payment, VerifyResult
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes.scheme import Registry, Scheme
from facilitator.schemes.signatures import SIGNATURE_LENGTH
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.records import RecordReader
from facilitator.settlement.restraints import LimitReached, Restraints
from facilitator.settlement.settings import Settings
from facilitator.store.settlements import Asked, Found, Settlement, decode_answer
from facilitator.store.tenants import Tenant
from facilitator.units import Address, Network


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A payment whose signature holds: what was signed, under which scheme, on which chain."""

    authorization: Authorization
    scheme: Scheme
    chain: ServedNetwork
    tenant_id: str
    """Whose gas budget it is."""
    wallet: Wallet | None = None
    """What judged the signature, where no key did."""


class Verdict(NamedTuple):
    """Whether a payment can be made now, and how."""

    refusal: Refusal | None
    head: Head | None
    """The newest block, by which it was judged. None when time alone refused."""
    wallet: Wallet | None = None
    """What pays, and with how much gas; None for a payer without code."""


class Verifier:
    """Fetches what the pure rules ask for, in their order, and hands back their ruling."""

    def __init__(
        self,
        registry: Registry,
        networks: Mapping[Network, ServedNetwork],
        records: RecordReader,
        restraints: Restraints,
        clock: Clock,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._networks = networks
        self._records = records
        self._restraints = restraints
        self._clock = clock
        self._settings = settings
        self._plain: OrderedDict[tuple[Network, Address], float] = OrderedDict()
        """Payers seen without code, and until when that is believed of them."""
        self._looks = Looks(
            Rate(per_second=settings.stranger_looks_per_s, burst=settings.stranger_looks_burst),
            Rate(per_second=settings.stranger_looks_total_per_s, burst=settings.stranger_looks_total_burst),
        )

    async def verify(self, tenant: Tenant, payment: Payment, need_wei: int) -> VerifyResult:
        """Judge a payment, which may cost `need_wei` to make, without changing anything.

        Raises ChainFault when the chain cannot be asked, LimitReached when the tenant may have no new one made.
        """
        result = await self.judge(tenant, payment, need_wei)
        outcome = "valid" if result.refusal is None else result.refusal.reason.name.lower()
        known = payment.network in self._networks
        scheme = payment.scheme if self._registry.find(payment.scheme) else "other"
        series(VERIFICATIONS, payment.network if known else "other", scheme, outcome).inc()
        return result

    async def judge(self, tenant: Tenant, payment: Payment, need_wei: int = 0) -> VerifyResult:
        """The same, and nobody is told that it was asked."""
        deadline = self._clock.monotonic() + self._settings.verify_deadline_s
        judged = await self.judge_signed(tenant, payment, deadline)
        if isinstance(judged, Refusal):
            return VerifyResult(payer=None, refusal=judged)
        authorization = judged.authorization
        try:
            asked = Asked(key=key_of(authorization), tenant_id=tenant.tenant_id, payment_identifier=payment.payment_identifier)
            found = await self._records.read(asked)
        except StoreFault:
            UNRECORDED_VERIFICATIONS.inc()
            found = Found()
        if found.by_identifier is not None and (conflict := identifier_conflict(found, fingerprint(authorization))) is not None:
            return VerifyResult(payer=authorization.payer, refusal=conflict)
        record = found.record
        if record is not None and (ruling := self.judge_record(record, tenant.tenant_id, authorization)) is not None:
            return VerifyResult(payer=authorization.payer, refusal=ruling if isinstance(ruling, Refusal) else None)
        self._restraints.judge_tenant(tenant, authorization.network, need_wei, goes_on=False)
        if (resting := self._restraints.judge_payer(tenant, authorization.payer)) is not None:
            return VerifyResult(payer=authorization.payer, refusal=resting)
        verdict = await self.judge_chain(judged, deadline, accept_unscreened=tenant.accept_unscreened)
        return VerifyResult(payer=authorization.payer, refusal=verdict.refusal)

    async def judge_signed(self, tenant: Tenant, payment: Payment, deadline: float) -> Judged | Refusal:
        """Shape, static terms and signature. Asks the chain only when the payer's own key did not sign.

        Raises LimitReached when that was too often in vain of late.
        """
        with tracing.span("signature"):
            scheme = self._registry.find(payment.requirements.scheme)
            if scheme is None:
                return Refusal(
                    reason=Reason.UNSUPPORTED_SCHEME,
                    message=f"scheme: expected one of {', '.join(self._registry.names)}, got {payment.requirements.scheme[:64]!r}",
                )
            authorization = scheme.read(payment)
            if isinstance(authorization, Refusal):
                return authorization
            chain = self._networks.get(authorization.network)
            if chain is None or chain.findings:
                return Refusal(
                    reason=Reason.UNSUPPORTED_NETWORK,
                    message=f"network: expected one of {', '.join(self.networks_served())}, got {authorization.network}",
                )
            if (finding := chain.withdrawn.get(authorization.asset)) is not None:
                return Refusal(
                    reason=Reason.INVALID_ASSET, message=f"asset: expected one that is served, got one that is withdrawn: {finding}"
                )
            refusal = scheme.check_terms(authorization, payment.requirements)
            if refusal is not None:
                return refusal
            judged = Judged(authorization=authorization, scheme=scheme, chain=chain, tenant_id=tenant.tenant_id)
            refusal = scheme.check_signature(authorization)
            return judged if refusal is None else await self._judge_by_code(judged, refusal, deadline)

    async def _judge_by_code(self, judged: Judged, refusal: Refusal, deadline: float) -> Judged | Refusal:
        """Does the payer's code take what its key did not sign? `refusal` is what is wrong with it as a key's.

        Whoever makes up signatures makes us ask: no more often in vain than `stranger_looks_per_s`. What is in doubt then is not
        refused, it is put off. A signature of a key's length is asked about in two steps, the cheaper one first: as a rule it
        is nothing else than a bad one.
        """
        authorization, scheme, chain = judged.authorization, judged.scheme, judged.chain
        payer = (authorization.network, authorization.payer)
        like_a_keys = len(authorization.signature) <= SIGNATURE_LENGTH
        if (certain := scheme.refuse_unasked(authorization, refusal)) is not None:
            return certain
        if like_a_keys and self._plain.get(payer, float("-inf")) > self._clock.monotonic():
            return refusal
        if (breach := self._looks.take(judged.tenant_id, self._clock.monotonic())) is not None:
            raise LimitReached(breach)
        if like_a_keys and not await self._has_code(authorization, chain, deadline):
            self._remember_plain(payer)
            return refusal
        facts = await chain.doubts.answer(scheme.ask_wallet(authorization), deadline)
        chain.head.observe(facts.head)
        wallet = scheme.judge_wallet(authorization, facts, refusal)
        if isinstance(wallet, Refusal):
            return wallet
        if (unpaid := self._refuse_deployment(judged, wallet)) is not None:
            return unpaid
        self._looks.give_back(judged.tenant_id)
        return msgspec.structs.replace(judged, wallet=wallet)

    @staticmethod
    async def _has_code(authorization: Authorization, chain: ServedNetwork, deadline: float) -> bool:
        """Does code lie at the payer?"""
        facts = await chain.answers.answer((CodeOf(address=authorization.payer),), deadline)
        chain.head.observe(facts.head)
        return bool(facts.replies[0].data)

    def _refuse_deployment(self, judged: Judged, wallet: Wallet | None) -> Refusal | None:
        """No wallet is given away where nothing bounds what that costs: the tenant must have a gas budget."""
        if wallet is None or wallet.kind is not PayerKind.COUNTERFACTUAL or self._restraints.has_budget(judged.tenant_id):
            return None
        return Refusal(
            reason=Reason.UNDEPLOYED_WALLET,
            message="payload.authorization.from: expected a wallet that is deployed, for this tenant has no gas budget to deploy one "
            f"(gasWeiPerDay or gasUsdPerDay of its limits); got {checksum_address(judged.authorization.payer)} without code",
        )

    def _remember_plain(self, payer: tuple[Network, Address]) -> None:
        """Wrong signatures of one payer, however many, cost one question in a while."""
        self._plain[payer] = self._clock.monotonic() + self._settings.plain_payer_ttl_s
        self._plain.move_to_end(payer)
        while len(self._plain) > self._settings.plain_payers_max:
            self._plain.popitem(last=False)

    def judge_record(self, record: Settlement, tenant_id: str, authorization: Authorization) -> Refusal | bool | None:
        """What our own record says of a repeat: a refusal, True for "it may still be answered", None for "ask the chain"."""
        state = State(record.state)
        if state in {State.WITHDRAWN, State.FAILED}:
            return None
        same = record.tenant_id == tenant_id and record.fingerprint == fingerprint(authorization)
        if same and state in {State.EXPIRED, State.EXTERNAL, State.CANCELLED, State.CONFLICT} and record.answer:
            refusal = recorded_refusal(record)
            if refusal is not None:
                return refusal
        if same and record.answer_state != "spent":
            return True
        return duplicate(record)

    async def judge_chain(self, judged: Judged, deadline: float, *, accept_unscreened: bool) -> Verdict:
        """Time, sanctions lists, chain facts, simulation: one round trip for a good payment of a key, more for a wallet and for a no.

        Raises ChainFault, and ScreeningFault for a payment that only a list that cannot be read stands against.
        """
        with tracing.span("chain facts", network=judged.authorization.network):
            screen, authorization = judged.chain.screen, judged.authorization
            now = judged.chain.head.now()
            if now is not None and judged.chain.head.wall_trusted:
                early = judged.scheme.check_time(judged.authorization, now)
                if early is not None and early.reason is Reason.EXPIRED:
                    return Verdict(early, None)
            if screen is not None and (named := screen.named(authorization)) is not None:
                return Verdict(named, None)
            verdict = await self._try(judged, deadline) or await self._judge_facts(judged, deadline)
            if verdict.refusal is not None and verdict.refusal.reason is Reason.NONCE_USED and self._settings.nonce_search_blocks:
                assert verdict.head is not None
                verdict = verdict._replace(refusal=await self._name_use(judged, verdict.refusal, verdict.head, deadline))
            if verdict.refusal is None and screen is not None:
                screen.judge(authorization, accept_unscreened=accept_unscreened)
            return verdict

    async def _try(self, judged: Judged, deadline: float) -> Verdict | None:
        """The one question whose yes is enough, beside what sanctions oracles are asked. None: there is more to find out."""
        screen, authorization = judged.chain.screen, judged.authorization
        trial = judged.scheme.trial(authorization) if judged.wallet is None else None
        lists = screen.questions(authorization) if screen is not None else ()
        questions: tuple[Question, ...] = lists if trial is None else (trial, *lists)
        refusal, head, made = None, None, False
        if questions:
            facts = await judged.chain.answers.answer(questions, deadline)
            refusal, head, made = self._check_time(judged, facts.head), facts.head, trial is not None and facts.replies[0].ok
            if screen is not None:
                screen.hear([authorization], facts, start=len(questions) - len(lists))
        if screen is not None:
            refusal = refusal or screen.listed(authorization)
        return Verdict(refusal, head) if made or refusal is not None else None

    async def _judge_facts(self, judged: Judged, deadline: float) -> Verdict:
        """Why it would not be made; or what it takes, where code judges the payer's signature."""
        facts, refusal, wallet = await judge_facts(judged.chain.doubts, judged.scheme, judged.authorization, judged.wallet, deadline)
        refusal = self._check_time(judged, facts.head) or refusal or self._refuse_deployment(judged, wallet)
        if wallet is not None:
            series(WALLET_VERIFICATIONS, judged.chain.network, wallet.kind.value, "refused" if refusal else "valid").inc()
            if facts.replies[-1].ok:  # what is valid from the next block on was stopped by the token before the code ran: it keeps the most
                wallet = judged.chain.wallet_gas.measured(wallet, facts.replies[-1].gas_used)
        return Verdict(refusal, facts.head, wallet)

    async def _name_use(self, judged: Judged, refusal: Refusal, head: Head, deadline: float) -> Refusal:
        """The same refusal with the transaction that used or cancelled the nonce, when the last blocks have it."""
        authorization = judged.authorization
        try:
            logs = await judged.chain.evm.logs(
                deadline,
                addresses=[authorization.asset],
                topics=abi.nonce_topics(authorization.payer, authorization.auth_nonce),
                from_block=max(0, head.number - self._settings.nonce_search_blocks),
                to_block=head.number,
            )
        except ChainFault:
            return refusal  # it is used, whoever did it
        for log in logs:
            if (use := abi.read_authorized(log)) is not None:
                verb = "cancelled" if use.canceled else "used"
                message = f"{refusal.message}; {verb} by transaction {log.tx_hash} in block {log.block_number}"
                return replace(refusal, message=message, evidence={**refusal.evidence, "tx_hash": log.tx_hash})
        return refusal

    @staticmethod
    def _check_time(judged: Judged, head: Head) -> Refusal | None:
        """The time of the newest block, this one perhaps."""
        judged.chain.head.observe(head)
        now = judged.chain.head.now()
        assert now is not None
        return judged.scheme.check_time(judged.authorization, now)

    def networks_served(self) -> list[Network]:
        """Networks that passed their start-up checks."""
        return [network for network, chain in self._networks.items() if not chain.findings]


class Answers(Protocol):
    """Who answers a scheme's questions: one endpoint's word, or that of all who are asked side by side."""

    async def answer(self, questions: Sequence[Question], deadline: float) -> Facts:
        """All of them, from one block. Raises ChainFault."""
        ...


async def judge_facts(
    answers: Answers, scheme: Scheme, authorization: Authorization, wallet: Wallet | None, deadline: float
) -> tuple[Facts, Refusal | None, Wallet | None]:
    """What the chain has against a payment that `wallet` is to make; asked once more when it is another payer by now.

    The refusal says nothing of time. Raises ChainFault.
    """
    facts = await answers.answer(scheme.ask(authorization, wallet), deadline)
    payer = scheme.wallet(authorization, facts.replies[0].data)
    found = payer if isinstance(payer, Wallet) else None
    if found != wallet and not isinstance(payer, Refusal):
        wallet = found
        facts = await answers.answer(scheme.ask(authorization, wallet), deadline)
    return facts, scheme.judge(authorization, facts, wallet), wallet


def duplicate(record: Settlement) -> Refusal:
    """This payment is on record already, and its one success is or will be told to somebody else."""
    paid = f"it is carried by transaction {record.tx_hash}" if record.tx_hash else "no transaction carries it yet"
    return Refusal(
        reason=Reason.DUPLICATE_SETTLEMENT,
        message=f"expected an authorization that was not settled before; this one is on record as {record.state}: {paid}",
    )


def identifier_conflict(found: Found, asked: bytes) -> Refusal | None:
    """The payment's identifier belongs to another payment of this tenant. `asked` is the fingerprint of this one."""
    if found.by_identifier is None or found.by_identifier.fingerprint == asked:
        return None
    return Refusal(
        reason=Reason.PAYMENT_IDENTIFIER_CONFLICT,
        message="payment-identifier: expected one of this payment's own, got one that another payment of this tenant bears",
    )


def recorded_refusal(record: Settlement) -> Refusal | None:
    """The refusal that a settlement ended with; None when its tenant accepts what another sender executed."""
    assert record.answer is not None
    answer = decode_answer(record.answer)
    if answer.success:
        return None
    return Refusal(reason=Reason[answer.reason or "TRANSACTION_FAILED"], message=answer.message or "")

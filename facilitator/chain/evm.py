"""One EVM chain: answers questions in one round trip, sends transactions, reads receipts, logs and heads.

It must never judge what it reads, and never read an error as an absence: what a node did not say raises `ChainFault`.
Every `deadline` is a reading of the clock's `monotonic()`; `deadline_in(seconds)` makes one.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import msgspec

from facilitator.chain.rpc import NodeError, Result, RpcCall, RpcClient, RpcError
from facilitator.domain import abi, probes, trials
from facilitator.domain.abi import Log
from facilitator.domain.facts import Call, CodeOf, Facts, Head, Probe, Question, Reply, Trial
from facilitator.domain.fees import is_jovian, operator_fee
from facilitator.errors import ChainFault, ConfigFault
from facilitator.schemes.scheme import Token
from facilitator.schemes.signatures import domain_separator
from facilitator.units import Address, BlockHash, Gas, Network, TxHash, UnixSeconds, Wei, chain_id_of

Tag = Literal["latest", "safe", "finalized", "pending"]

UNSEALED: Final = BlockHash("0x" + "00" * 32)
"""Block hash of a flashblock receipt: preconfirmed, not in a sealed block."""
_CALL_GAS: Final = Gas(600_000)
_CALL_GAS_MAX: Final = Gas(25_000_000)
_IN_POOL: Final = frozenset({NodeError.ALREADY_KNOWN})
_IN_DOUBT: Final = frozenset(
    {
        NodeError.RATE_LIMITED,
        NodeError.TIMEOUT,
        NodeError.INTERNAL,
        NodeError.UNKNOWN,
        NodeError.STATE_UNAVAILABLE,
        NodeError.METHOD_UNSUPPORTED,
        NodeError.BATCH_TOO_LARGE,
        NodeError.RANGE_TOO_LARGE,
    }
)
"""Errors of a send after which the transaction may or may not be in a pool."""
_PASSING: Final = frozenset({NodeError.RATE_LIMITED, NodeError.STATE_UNAVAILABLE, NodeError.TIMEOUT})
"""Errors that say nothing about what the endpoint can run."""
_TRIALS_REST_S: Final = 60.0
"""How long trials are asked one by one after an endpoint could not run them together."""
_NO_SYNC: Final = frozenset({NodeError.METHOD_UNSUPPORTED, NodeError.INVALID_PARAMS})
"""Errors of a synchronous send after which the endpoint is not asked for one again."""
_POOLED_CODES: Final = frozenset({4, 5})
"""EIP-7966: in the pool, but not in a block in time (4) or not executable yet (5). With 6, a gap, it is not in the pool."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one chain is asked."""

    call_gas: Gas = _CALL_GAS
    """Gas that each call of `answer` adds to the bound of the one `eth_call`."""
    call_gas_max: Gas = _CALL_GAS_MAX
    """Highest gas of one `eth_call`; below the cap of every node we know (geth 50M, anvil 30M)."""
    logs_max: int = 10_000
    """More logs in one answer than this is a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A transaction is in a block. Its success proves no payment: only its logs do (docs/architecture.md decision 4)."""

    tx_hash: TxHash
    succeeded: bool
    """Receipt status 1."""
    block_number: int
    block_hash: BlockHash
    """All zero while only a flashblock has it."""
    gas_used: Gas
    effective_gas_price_wei: Wei
    """What was paid for a unit of gas, tip included."""
    l1_fee_wei: Wei | None
    """OP Stack: the L1 data fee, paid on top of gas. None on chains that have none."""
    operator_fee_wei: Wei | None
    """OP Stack since Isthmus: the operator's fee, paid on top of both. None where there is none."""
    logs: tuple[Log, ...]

    @property
    def sealed(self) -> bool:
        """In a sealed block, not only in a flashblock."""
        return self.block_hash != UNSEALED

    @property
    def proof(self) -> object:
        """What other nodes must have of it too: where it stands and what it did."""
        return self.tx_hash, self.block_hash, self.logs

    @property
    def fee_wei(self) -> Wei:
        """All that the relayer paid for the transaction."""
        return Wei(self.gas_used * self.effective_gas_price_wei + (self.l1_fee_wei or 0) + (self.operator_fee_wei or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Which logs: of these contracts, of `block_hash` alone or from `from_block` to `to_block`, both included."""

    addresses: Sequence[Address]
    topics: Sequence[str | Sequence[str] | None] = ()
    """Several alternatives for one topic are a list, None is any."""
    from_block: int = 0
    to_block: int | Tag = "latest"
    block_hash: BlockHash | None = None

    def call(self) -> RpcCall:
        """As the node is asked."""
        criteria: dict[str, object] = {"address": list(self.addresses), "topics": list(self.topics)}
        if self.block_hash is not None:
            criteria["blockHash"] = self.block_hash
        else:
            to_block = hex(self.to_block) if isinstance(self.to_block, int) else self.to_block
            criteria |= {"fromBlock": hex(self.from_block), "toBlock": to_block}
        return RpcCall("eth_getLogs", (criteria,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one look brought. What could not be had is a fault in its place and hides nothing else."""

    logs: tuple[Log, ...] | ChainFault
    receipts: list[Receipt | ChainFault | None]
    """None: this node has not seen it in a block, which is no proof of absence."""
    tx_counts: list[int | ChainFault]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account as a node sees it."""

    head: Head
    mined: int
    """Transactions of it in blocks: the next tx_nonce that no block has used."""
    pending: int
    """The same as the pool sees it; on Base it omits the pool."""
    balance_wei: Wei
    has_code: bool
    """A contract, or a delegated account (EIP-7702)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOutcome:
    """What the network said to a raw transaction. Doubt is not an outcome: it raises."""

    error: NodeError | None
    """None when a node took it; ALREADY_KNOWN when one had it; else why every node refused it."""
    message: str = ""
    """The refusing node's words, for the log."""

    @property
    def in_pool(self) -> bool:
        """At least one node holds the transaction now."""
        return self.error is None or self.error in _IN_POOL


class EvmClient:
    """One chain through its RPC endpoints. `connect` first: it checks that they speak for the right chain."""

    def __init__(self, network: Network, rpc: RpcClient, settings: Settings | None = None) -> None:
        """The client owns `rpc` and closes it."""
        self.network = network
        self.rpc = rpc
        self.multicall = True
        """Is Multicall3 at its address? `connect` finds out; without it calls are asked one by one in the same batch."""
        self._apart_until = float("-inf")
        """Until then each trial is a call of its own: an endpoint could not run creation code in an `eth_call`."""
        self._settings = settings or Settings()

    async def close(self) -> None:
        """Close connections."""
        await self.rpc.close()

    def deadline_in(self, seconds: float) -> float:
        """The deadline that lies `seconds` from now."""
        return self.rpc.deadline_in(seconds)

    async def connect(self, deadline: float) -> Head:
        """Check the chain id and look for Multicall3. Raises ConfigFault when the endpoint serves another chain."""
        calls = (RpcCall("eth_chainId"), RpcCall("eth_getCode", (abi.MULTICALL3_ADDRESS, "latest")), _HEAD_CALL)
        chain_id, code, head = await self._batch(calls, deadline)
        expected, got = chain_id_of(self.network), _integer(_decode(_TEXT, chain_id))
        if got != expected:
            raise ConfigFault("wrong_chain", f"the RPC endpoint of {self.network} serves another chain", expected=expected, got=got)
        self.multicall = bool(_bytes(_decode(_TEXT, code)))
        if len(self.rpc.endpoints) > 1:
            await self._check_each(expected, deadline)
        return _head(_decode(_BLOCK, head))

    async def _check_each(self, expected: int, deadline: float) -> None:
        """No endpoint that answers may serve another chain; one that is away is asked again at the next `connect`."""
        views = [self._by(rpc) for rpc in self.rpc.alone()]
        answers = await asyncio.gather(*(view.chain_id(deadline) for view in views), return_exceptions=True)
        for view, got in zip(views, answers, strict=True):
            if isinstance(got, BaseException) and not isinstance(got, ChainFault):
                raise got
            if isinstance(got, int) and got != expected:
                message = f"the RPC endpoint {view.rpc.endpoints[0]} of {self.network} serves another chain"
                raise ConfigFault("wrong_chain", message, expected=expected, got=got)

    async def answer(self, questions: Sequence[Question], deadline: float) -> Facts:
        """Answer all questions in one HTTP request, read at the newest block (or at its child, when that arrives meanwhile).

        Raises ChainFault when any of them has no answer; a call that reverts is an answer.
        """
        (facts,) = await self.answer_each((questions,), deadline)
        if isinstance(facts, ChainFault):
            raise facts
        return facts

    async def answer_each(self, asked: Sequence[Sequence[Question]], deadline: float) -> list[Facts | ChainFault]:
        """Answer several callers in one HTTP request, each as `answer` would, and one caller's fault is no other's.

        Trials share a call in which each is undone before the next (`domain.trials`). A probe is an `eth_call` of its own, and
        so are the other calls of each caller: no caller's contract burns another's gas, and what one payment's simulation
        moves is not there for the next. Raises ChainFault when the request as a whole has no answer.
        """
        tried = dict.fromkeys(question for questions in asked for question in questions if isinstance(question, Trial))
        shared = [trial for trial in tried if self._shares(trial)]
        lone = [trial for trial in tried if not self._shares(trial)]
        groups = [shared[start : start + trials.TRIALS_MAX] for start in range(0, len(shared), trials.TRIALS_MAX)]
        payers = [trial.payer for trial in lone]
        codes = dict.fromkeys([question.address for questions in asked for question in questions if isinstance(question, CodeOf)] + payers)
        requests = [
            _HEAD_CALL,
            *(RpcCall("eth_getCode", (address, "latest")) for address in codes),
            *(_trials_call(group, self._settings.call_gas_max) for group in groups),
            *(_eth_call(trial.call, hex(self._settings.call_gas)) for trial in lone),
        ]
        parts: list[slice] = []
        for questions in asked:
            start = len(requests)
            requests += self._eth_calls([question for question in questions if isinstance(question, Call)])
            requests += [_probe_call(question) for question in questions if isinstance(question, Probe)]
            parts.append(slice(start, len(requests)))
        results = await self._batch_each(requests, deadline)
        head = _head(_decode(_BLOCK, _known(results[0], "eth_getBlockByNumber")))
        answers = iter(results[1:])
        code_of = {address: next(answers) for address in codes}
        outcome_of: dict[Trial, Result | RpcError | Reply] = {}
        for group in groups:
            outcomes = _trial_outcomes(next(answers), len(group))
            if outcomes is None:
                self._apart_until = self.deadline_in(_TRIALS_REST_S)
                return await self.answer_each(asked, deadline)
            outcome_of.update(zip(group, outcomes, strict=True))
        outcome_of.update(zip(lone, answers, strict=False))
        return [self._facts(head, questions, code_of, outcome_of, results[part]) for questions, part in zip(asked, parts, strict=True)]

    def _shares(self, trial: Trial) -> bool:
        """May this trial share a call?"""
        return trials.fits(trial) and self.deadline_in(0.0) >= self._apart_until

    def weigh(self, questions: Sequence[Question]) -> int:
        """How many JSON-RPC calls these questions add to a request, which carries two more: its head, and the trials that share."""
        calls = others = 0
        for question in questions:
            match question:
                case Trial():
                    others += 0 if self._shares(question) else 2
                case Call():
                    calls += 1
                case _:
                    others += 1
        return others + (min(calls, 1) if self.multicall else calls)

    def witnesses(self) -> "tuple[EvmClient, ...]":
        """This chain by the word of each endpoint that answers and is not far behind: what did not happen needs all of them."""
        views = self.rpc.witnesses()
        if len(views) == 1:
            return (self,)
        return tuple(self._by(rpc) for rpc in views)

    def _by(self, rpc: RpcClient) -> "EvmClient":
        view = EvmClient(self.network, rpc, self._settings)
        view.multicall = self.multicall
        return view

    async def furthest_head(self, deadline: float) -> Head:
        """Ask every endpoint how far it is, and prefer those that are not behind from here on. The furthest head."""
        asked = await asyncio.gather(*(self._by(rpc).head(deadline) for rpc in self.rpc.alone()), return_exceptions=True)
        for answer in asked:
            if isinstance(answer, BaseException) and not isinstance(answer, ChainFault):
                raise answer
        heads = [head if isinstance(head, Head) else None for head in asked]
        self.rpc.note_heights([head.number if head else None for head in heads])
        if not any(heads):
            raise ChainFault("no_endpoint", "no RPC endpoint says how far the chain is")
        return max((head for head in heads if head), key=lambda head: head.number)

    async def head(self, deadline: float) -> Head:
        """The newest block."""
        return await self.block_at("latest", deadline)

    async def block_at(self, tag: Tag, deadline: float) -> Head:
        """The block that a tag names now. Raises ChainFault when the node has none (a young chain has no finalized block)."""
        block = await self._block("eth_getBlockByNumber", tag, deadline)
        if block is None:
            raise ChainFault("no_block", f"the node has no {tag} block", tag=tag)
        return block

    async def block(self, number: int, deadline: float) -> Head | None:
        """The canonical block of that number, None when the chain is not that long."""
        return await self._block("eth_getBlockByNumber", hex(number), deadline)

    async def blocks(self, numbers: Sequence[int], deadline: float) -> list[Head | ChainFault | None]:
        """The canonical blocks of these numbers, in one HTTP request up to the batch limit; each as `block`, or its own fault."""
        requests = [RpcCall("eth_getBlockByNumber", (hex(number), False)) for number in numbers]
        return [_each(_read_block, result, "eth_getBlockByNumber") for result in await self._batch_each(requests, deadline)]

    async def block_by_hash(self, block_hash: BlockHash, deadline: float) -> Head | None:
        """The block of that hash, None when the node does not know it; a node may also know blocks that are not canonical."""
        return await self._block("eth_getBlockByHash", block_hash, deadline)

    async def send_raw(self, raw: bytes, deadline: float) -> SendOutcome:
        """Send to every endpoint at once; returns as soon as one has it. Sending the same bytes again is harmless.

        Raises ChainFault when no endpoint has said that it holds the transaction and at least one may hold it all the same.
        """
        call = RpcCall("eth_sendRawTransaction", ("0x" + raw.hex(),))
        answers = await self.rpc.broadcast(call, deadline, _holds)
        for answer in answers:
            if not isinstance(answer, (RpcError, ChainFault)):
                return SendOutcome(error=None)
        errors = [answer for answer in answers if isinstance(answer, RpcError)]
        known = next((error for error in errors if error.kind in _IN_POOL), None)
        if known is not None:
            return SendOutcome(error=known.kind, message=known.message)
        fault = next((answer for answer in answers if isinstance(answer, ChainFault)), None)
        doubt = next((error for error in errors if error.kind in _IN_DOUBT), None)
        if fault is not None:
            raise fault
        if doubt is not None:
            raise doubt.as_fault(call.method)
        return SendOutcome(error=errors[0].kind, message=errors[0].message)

    async def send_raw_sync(self, raw: bytes, wait_ms: int, deadline: float) -> SendOutcome:
        """As `send_raw`, but the first endpoint that can (EIP-7966) answers once the transaction is in a block, or after `wait_ms`.

        What it answers then is a hint to look, no more: even a receipt proves nothing here. Whatever else it says, the
        transaction goes to every endpoint by `send_raw`; an endpoint without the method is not asked for it again.
        """
        sender = self.rpc.sync_sender()
        if sender is None:
            return await self.send_raw(raw, deadline)
        call = RpcCall("eth_sendRawTransactionSync", ("0x" + raw.hex(), wait_ms))
        if len(self.rpc.endpoints) > 1:
            told, _ = await asyncio.gather(self.send_raw(raw, deadline), self._send_kept(sender, call, deadline))
            return told
        if await self._send_kept(sender, call, deadline):
            return SendOutcome(error=None)
        return await self.send_raw(raw, deadline)

    async def _send_kept(self, sender: RpcClient, call: RpcCall, deadline: float) -> bool:
        """Wait at one node for the transaction's block, or the end of its patience. Does it say that it has the transaction?"""
        try:
            (answer,) = await sender.batch([call], deadline)
        except ChainFault:
            return False  # unknown is not failed: the same bytes go out the usual way
        if isinstance(answer, RpcError) and answer.kind in _NO_SYNC:
            sender.no_sync()
        return not isinstance(answer, RpcError) or answer.code in _POOLED_CODES

    async def receipts(self, tx_hashes: Sequence[TxHash], deadline: float) -> list[Receipt | None]:
        """Receipts in order, in one HTTP request up to the batch limit. None: this node has not seen it in a block.

        None is no proof of absence: another node, or the next block, may have it.
        """
        receipts = []
        for receipt in (await self.see(None, tx_hashes, (), deadline)).receipts:
            if isinstance(receipt, ChainFault):
                raise receipt
            receipts.append(receipt)
        return receipts

    async def confirmed(self, receipts: Sequence[Receipt], witnesses: int, deadline: float) -> set[TxHash]:
        """Which of these receipts as many endpoints have, each asked alone: the same block, the same logs."""
        hashes = [receipt.tx_hash for receipt in receipts]
        asked = await asyncio.gather(
            *(evm.see(None, hashes, (), deadline) for evm in self.witnesses()),
            return_exceptions=True,
        )
        seen: Counter[object] = Counter()
        for sight in asked:
            if isinstance(sight, Sight):
                seen.update(receipt.proof for receipt in sight.receipts if isinstance(receipt, Receipt))
            elif not isinstance(sight, ChainFault):
                raise sight
        return {receipt.tx_hash for receipt in receipts if seen[receipt.proof] >= witnesses}

    async def see(self, query: LogQuery | None, tx_hashes: Sequence[TxHash], senders: Sequence[Address], deadline: float) -> Sight:
        """Logs, receipts, and how many transactions these accounts have in blocks: one HTTP request up to the batch limit.

        Raises ChainFault when a request as a whole has no answer.
        """
        requests = [] if query is None else [query.call()]
        requests += [RpcCall("eth_getTransactionReceipt", (tx_hash,)) for tx_hash in tx_hashes]
        requests += [RpcCall("eth_getTransactionCount", (sender, "latest")) for sender in senders]
        results = await self._batch_each(requests, deadline) if requests else []
        logs: tuple[Log, ...] | ChainFault = () if query is None else _each(self._read_logs, results.pop(0), "eth_getLogs")
        return Sight(
            logs=logs,
            receipts=[_read_receipt(result) for result in results[: len(tx_hashes)]],
            tx_counts=[_each(_read_integer, result, "eth_getTransactionCount") for result in results[len(tx_hashes) :]],
        )

    async def logs(
        self,
        deadline: float,
        *,
        addresses: Sequence[Address],
        topics: Sequence[str | Sequence[str] | None] = (),
        from_block: int = 0,
        to_block: int | Tag = "latest",
        block_hash: BlockHash | None = None,
    ) -> tuple[Log, ...]:
        """Logs in chain order, asked as in `LogQuery`. Raises ChainFault (`range_too_large`) when the node wants a shorter range."""
        query = LogQuery(addresses=addresses, topics=topics, from_block=from_block, to_block=to_block, block_hash=block_hash)
        call = query.call()
        return self._read_logs(await self.rpc.call(call.method, call.params, deadline))

    def _read_logs(self, result: Result) -> tuple[Log, ...]:
        """Logs in chain order, within bounds."""
        found = _decode(_LOGS, result)
        if len(found) > self._settings.logs_max:
            raise ChainFault(NodeError.RANGE_TOO_LARGE.value, "more logs than are taken at once", logs_max=self._settings.logs_max)
        return tuple(sorted((_log(log) for log in found), key=lambda log: (log.block_number, log.log_index)))

    async def call_at(self, call: Call, number: int, deadline: float) -> Reply:
        """One call at the canonical block of that number. Raises ChainFault when no node has come to that block."""
        (result,) = await self.rpc.batch([_eth_call(call, hex(self._settings.call_gas), hex(number))], deadline)
        return _call_reply(result)

    async def transaction_count(self, address: Address, tag: Tag, deadline: float) -> int:
        """How many transactions the account has sent: its next tx_nonce as `tag` sees it. On Base `pending` omits the pool."""
        return _integer(_decode(_TEXT, await self.rpc.call("eth_getTransactionCount", (address, tag), deadline)))

    async def account(self, address: Address, deadline: float) -> Account:
        """All that has to be known of a relayer before it signs, in one HTTP request."""
        calls = [
            _HEAD_CALL,
            RpcCall("eth_getTransactionCount", (address, "latest")),
            RpcCall("eth_getTransactionCount", (address, "pending")),
            RpcCall("eth_getBalance", (address, "latest")),
            RpcCall("eth_getCode", (address, "latest")),
        ]
        head, latest, pending, balance, code = await self._batch(calls, deadline)
        return Account(
            head=_head(_decode(_BLOCK, head)),
            mined=_read_integer(latest),
            pending=_read_integer(pending),
            balance_wei=Wei(_read_integer(balance)),
            has_code=bool(_bytes(_decode(_TEXT, code))),
        )

    async def balance(self, address: Address, deadline: float, tag: Tag = "latest") -> Wei:
        """The account's coins."""
        return Wei(_integer(_decode(_TEXT, await self.rpc.call("eth_getBalance", (address, tag), deadline))))

    async def balance_at(self, address: Address, block_number: int, deadline: float) -> Wei:
        """The account's coins at the end of a block. Raises ChainFault where the node keeps no state of it."""
        return Wei(_integer(_decode(_TEXT, await self.rpc.call("eth_getBalance", (address, hex(block_number)), deadline))))

    async def balances(self, addresses: Sequence[Address], deadline: float) -> list[Wei]:
        """Coins of several accounts, in one request up to the batch limit."""
        results = await self._batch([RpcCall("eth_getBalance", (address, "latest")) for address in addresses], deadline)
        return [Wei(_integer(_decode(_TEXT, result))) for result in results]

    async def chain_id(self, deadline: float) -> int:
        """The chain id that the endpoint itself names."""
        return _integer(_decode(_TEXT, await self.rpc.call("eth_chainId", (), deadline)))

    async def token_domain(self, token: Token, deadline: float) -> tuple[str, ...]:
        """What is wrong with a configured token: no code, another EIP-712 domain, other decimals. Empty when nothing is."""
        questions: tuple[Question, ...] = (
            CodeOf(address=token.address),
            *(Call(to=token.address, data=data) for data in (abi.DOMAIN_SEPARATOR, abi.NAME, abi.VERSION, abi.DECIMALS)),
        )
        code, separator, name, version, decimals = (await self.answer(questions, deadline)).replies
        if not code.data:
            return (f"no contract lies at {token.address}",)
        findings: list[str] = []
        expected = domain_separator(token.name, token.version, chain_id_of(token.network), token.address)
        if not separator.ok or separator.data != expected:
            domain = f"the EIP-712 domain of name {token.name!r}, version {token.version!r} is 0x{expected.hex()}"
            got = f"0x{separator.data.hex()}" if separator.ok and len(separator.data) == 32 else "no answer"
            names = f"the contract calls itself {_string_or_none(name)!r}, version {_string_or_none(version)!r}"
            findings.append(f"{domain}, DOMAIN_SEPARATOR() is {got}; {names}")
        places = abi.read_uint(decimals.data) if decimals.ok else None
        if places != token.decimals:
            findings.append(f"{token.decimals} decimals are configured, decimals() is {places}")
        return tuple(findings)

    async def _block(self, method: str, which: str, deadline: float) -> Head | None:
        """One block header."""
        found = _decode(_MAYBE_BLOCK, await self.rpc.call(method, (which, False), deadline))
        return None if found is None else _head(found)

    async def _batch(self, calls: Sequence[RpcCall], deadline: float) -> list[Result]:
        """Results of reads none of which may fail; lists above the batch limit go out as several requests at once."""
        results = await self._batch_each(calls, deadline)
        return [_known(result, call.method) for call, result in zip(calls, results, strict=True)]

    async def _batch_each(self, calls: Sequence[RpcCall], deadline: float) -> list[Result | RpcError]:
        """The same, each with an answer of its own."""
        size = self.rpc.settings.batch_max
        parts = [calls[start : start + size] for start in range(0, len(calls), size)]
        if len(parts) == 1:
            answered = [await self.rpc.batch(parts[0], deadline)]
        else:
            answered = await asyncio.gather(*(self.rpc.batch(part, deadline) for part in parts))
        return [result for results in answered for result in results]

    def _eth_calls(self, calls: Sequence[Call]) -> list[RpcCall]:
        """One caller's calls: bundled by Multicall3 where there is one."""
        if not calls:
            return []
        gas = hex(min(self._settings.call_gas_max, self._settings.call_gas * (len(calls) + 1)))
        if self.multicall:
            return [_eth_call(Call(to=abi.MULTICALL3_ADDRESS, data=abi.aggregate3(calls)), gas)]
        return [_eth_call(call, gas) for call in calls]

    def _facts(
        self,
        head: Head,
        questions: Sequence[Question],
        code_of: Mapping[Address, Result | RpcError],
        outcome_of: Mapping[Trial, Result | RpcError | Reply],
        results: Sequence[Result | RpcError],
    ) -> Facts | ChainFault:
        """One caller's facts; the fault, when one of its questions has no answer. `results` are those of its own calls."""
        try:
            kinds = [type(question) for question in questions]
            probed = kinds.count(Probe)
            own, apart = results[: len(results) - probed], iter(results[len(results) - probed :])
            calls = iter(self._call_replies(own, kinds.count(Call)))
            replies: list[Reply] = []
            for question in questions:
                match question:
                    case Trial():
                        replies.append(_trial_reply(outcome_of[question], code_of.get(question.payer)))
                    case CodeOf(address=address):
                        replies.append(_code_reply(code_of[address]))
                    case Probe():
                        replies.append(_probe_reply(next(apart)))
                    case Call():
                        replies.append(next(calls))
        except ChainFault as fault:
            return fault
        return Facts(head=head, replies=tuple(replies))

    def _call_replies(self, results: Sequence[Result | RpcError], count: int) -> Sequence[Reply]:
        """Replies to the calls: from Multicall3's one result, or from a result each."""
        if count and self.multicall:
            replies = abi.read_aggregate3(_bytes(_decode(_TEXT, _known(results[0], "eth_call"))))
            if replies is None or len(replies) != count:
                raise ChainFault("bad_answer", "Multicall3 did not answer every call: is it deployed on this chain?", network=self.network)
            return replies
        return [_call_reply(result) for result in results]


class _Block(msgspec.Struct, frozen=True, rename="camel"):
    """A block on the wire. A pending one, without hash and number, is refused."""

    number: str
    hash: str
    timestamp: str
    gas_limit: str
    gas_used: str
    base_fee_per_gas: str = "0x0"
    extra_data: str = "0x"
    blob_gas_used: str | None = None


class _WireLog(msgspec.Struct, frozen=True, rename="camel"):
    """A log on the wire, of a receipt or of `eth_getLogs`."""

    address: str
    topics: tuple[str, ...]
    data: str
    log_index: str
    transaction_hash: str
    block_number: str
    block_hash: str
    removed: bool = False


class _WireReceipt(msgspec.Struct, frozen=True, rename="camel"):
    """A receipt on the wire."""

    transaction_hash: str
    status: str
    block_number: str
    block_hash: str
    gas_used: str
    logs: tuple[_WireLog, ...]
    effective_gas_price: str = "0x0"
    l1_fee: str | None = None
    operator_fee_scalar: str | None = None
    operator_fee_constant: str | None = None
    da_footprint_gas_scalar: str | None = None
    """Only receipts since Jovian have it."""


_TEXT: Final = msgspec.json.Decoder(str)
_BLOCK: Final = msgspec.json.Decoder(_Block)
_MAYBE_BLOCK: Final = msgspec.json.Decoder(_Block | None)
_RECEIPT: Final = msgspec.json.Decoder(_WireReceipt | None)
_LOGS: Final = msgspec.json.Decoder(list[_WireLog])
_HEAD_CALL: Final = RpcCall("eth_getBlockByNumber", ("latest", False))


def _eth_call(call: Call, gas: str, block: str = "latest") -> RpcCall:
    """A read-only call, at the newest block unless told otherwise."""
    parameters: Mapping[str, str] = {"to": call.to, "data": "0x" + call.data.hex(), "gas": gas}
    return RpcCall("eth_call", (parameters, block))


def _trials_call(group: Sequence[Trial], gas_max: Gas) -> RpcCall:
    """The shared call: creation code, and nobody to send it to."""
    gas = min(gas_max, trials.GAS * len(group) + trials.GAS_OF_CREATION)
    return RpcCall("eth_call", ({"data": "0x" + trials.pack(group).hex(), "gas": hex(gas)}, "latest"))


def _probe_call(probe: Probe) -> RpcCall:
    """Creation code, and nobody to send it to."""
    data = probes.pack(probe)
    return RpcCall("eth_call", ({"data": "0x" + data.hex(), "gas": hex(probes.gas(probe, data))}, "latest"))


def _probe_reply(result: Result | RpcError) -> Reply:
    """The reply of a probe. A node that cannot run its code is a fault: nobody else's word takes its place."""
    reply = probes.read(_bytes(_decode(_TEXT, _known(result, "eth_call"))))
    if reply is None:
        raise ChainFault("bad_answer", "the node does not run creation code in an eth_call")
    return reply


def _trial_outcomes(result: Result | RpcError, count: int) -> Sequence[Reply | RpcError] | None:
    """A reply, or the endpoint's passing trouble, for each trial of a shared call. None: it cannot run such calls."""
    if isinstance(result, RpcError):
        return [result] * count if result.kind in _PASSING else None
    return trials.read(_bytes(_decode(_TEXT, result)), count)


def _trial_reply(outcome: Result | RpcError | Reply, payer_code: Result | RpcError | None) -> Reply:
    """The reply of a trial that shared a call, or of one that was asked alone beside its payer's code."""
    if isinstance(outcome, Reply):
        return outcome
    if payer_code is not None and _code_reply(payer_code).data:
        return Reply(ok=False, data=b"")  # whatever its code made of the call
    return Reply(ok=_call_reply(outcome).ok, data=b"")


def _code_reply(result: Result | RpcError) -> Reply:
    """The reply of `CodeOf`."""
    return Reply(ok=True, data=_bytes(_decode(_TEXT, _known(result, "eth_getCode"))))


def _call_reply(result: Result | RpcError) -> Reply:
    """The reply of a call that was asked alone. Only a revert is an answer, every other error is a fault."""
    if isinstance(result, RpcError):
        if result.kind in {NodeError.REVERTED, NodeError.OUT_OF_GAS}:
            return Reply(ok=False, data=result.data or b"")
        raise result.as_fault("eth_call")
    return Reply(ok=True, data=_bytes(_decode(_TEXT, result)))


def _holds(answer: Result | RpcError) -> bool:
    """Tell whether the endpoint that said this holds the transaction."""
    return not isinstance(answer, RpcError) or answer.kind in _IN_POOL


def _known(result: Result | RpcError, method: str) -> Result:
    """The result, or the node's error as a fault."""
    if isinstance(result, RpcError):
        raise result.as_fault(method)
    return result


def _decode(decoder: msgspec.json.Decoder[T], result: Result) -> T:
    """The result in its expected shape, or a fault."""
    try:
        return decoder.decode(result)
    except msgspec.MsgspecError as error:
        raise ChainFault("bad_answer", f"the node's result has another shape than expected: {error}") from None


def _integer(text: str) -> int:
    """A JSON-RPC quantity."""
    if not text.startswith("0x"):
        raise ChainFault("bad_answer", "the node sent a number that is not 0x and hex digits")
    try:
        return int(text, 16)
    except ValueError:
        raise ChainFault("bad_answer", "the node sent a number that is not 0x and hex digits") from None


def _bytes(text: str) -> bytes:
    """JSON-RPC data."""
    if not text.startswith("0x"):
        raise ChainFault("bad_answer", "the node sent data that is not 0x and hex digits")
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        raise ChainFault("bad_answer", "the node sent data that is not 0x and hex digits") from None


def read_head(wire: Result) -> Head:
    """A block header from its JSON, as `eth_subscribe` brings it. Raises ChainFault for another shape."""
    return _head(_decode(_BLOCK, wire))


def _head(block: _Block) -> Head:
    """A block as the rest of the code knows it."""
    extra_data = _bytes(block.extra_data)
    return Head(
        number=_integer(block.number),
        block_hash=BlockHash(block.hash.lower()),
        timestamp=UnixSeconds(_integer(block.timestamp)),
        base_fee_wei=Wei(_integer(block.base_fee_per_gas)),
        extra_data=extra_data,
        gas_used=_integer(block.gas_used),
        gas_limit=_integer(block.gas_limit),
        da_footprint_gas=_integer(block.blob_gas_used) if block.blob_gas_used is not None and is_jovian(extra_data) else 0,
    )


def _log(log: _WireLog) -> Log:
    """A log as the rest of the code knows it."""
    return Log(
        address=Address(log.address.lower()),
        topics=tuple(topic.lower() for topic in log.topics),
        data=_bytes(log.data),
        log_index=_integer(log.log_index),
        tx_hash=TxHash(log.transaction_hash.lower()),
        block_number=_integer(log.block_number),
        block_hash=BlockHash(log.block_hash.lower()),
        removed=log.removed,
    )


def _receipt(receipt: _WireReceipt) -> Receipt:
    """A receipt as the rest of the code knows it."""
    return Receipt(
        tx_hash=TxHash(receipt.transaction_hash.lower()),
        succeeded=_integer(receipt.status) == 1,
        block_number=_integer(receipt.block_number),
        block_hash=BlockHash(receipt.block_hash.lower()),
        gas_used=Gas(_integer(receipt.gas_used)),
        effective_gas_price_wei=Wei(_integer(receipt.effective_gas_price)),
        l1_fee_wei=None if receipt.l1_fee is None else Wei(_integer(receipt.l1_fee)),
        operator_fee_wei=_operator_fee(receipt),
        logs=tuple(_log(log) for log in receipt.logs),
    )


def _operator_fee(receipt: _WireReceipt) -> Wei | None:
    """From the parameters that the receipt carries; nodes leave out those that are both zero."""
    if receipt.operator_fee_scalar is None and receipt.operator_fee_constant is None:
        return None
    scalar, constant = _integer(receipt.operator_fee_scalar or "0x0"), _integer(receipt.operator_fee_constant or "0x0")
    return operator_fee(_integer(receipt.gas_used), scalar, constant, jovian=receipt.da_footprint_gas_scalar is not None)


def _each(read: Callable[[Result], T], result: Result | RpcError, method: str) -> T | ChainFault:
    """One result of several, or why it cannot be read."""
    try:
        return read(_known(result, method))
    except ChainFault as fault:
        return fault


def _read_receipt(result: Result | RpcError) -> Receipt | ChainFault | None:
    """One receipt, or why it cannot be read."""

    def read(result: Result) -> Receipt | None:
        wire = _decode(_RECEIPT, result)
        return None if wire is None else _receipt(wire)

    return _each(read, result, "eth_getTransactionReceipt")


def _read_block(result: Result) -> Head | None:
    """One block header, None when the chain is not that long."""
    wire = _decode(_MAYBE_BLOCK, result)
    return None if wire is None else _head(wire)


def _read_integer(result: Result) -> int:
    """One quantity."""
    return _integer(_decode(_TEXT, result))


def _string_or_none(reply: Reply) -> str | None:
    """A returned string, None when the contract has no such function."""
    return abi.read_string(reply.data) if reply.ok else None

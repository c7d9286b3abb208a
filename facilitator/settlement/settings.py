"""What an operator may tune about settling. Every queue, wait and batch has its bound here."""

from dataclasses import dataclass
from typing import Literal

from facilitator.domain.confirmation import ConfirmLevel
from facilitator.domain.wallets import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The `[settlement]` table. Times in seconds, fees in wei."""

    confirm_level: ConfirmLevel = "latest"
    """How deep a payment must be before `/settle` answers success: `latest`, `safe` or `finalized`; a tenant may have its own."""
    preconfirmed_payment_max_atomic: int = 10_000_000
    """Most that one payment may be worth to be answered from a flashblock, for tenants who opted in; above it waits for `latest`."""
    preconfirmed_total_max_atomic: int = 100_000_000
    """Most that one tenant's unsealed payments in one token may be worth together; what exceeds it waits for `latest`."""
    receipt_witnesses: int = 1
    """RPC endpoints that must have the same receipt in the same block before a payment counts as made; each answers anew,
    so above 1 every success waits for one more round trip."""
    deadline_s: float = 20.0
    """Longest wait of a `/settle` caller; then `settlement_pending` with the hash."""
    verify_deadline_s: float = 5.0
    """Longest time a verification may take, chain included."""
    plain_payer_ttl_s: float = 10.0
    """How long a payer seen without code counts as a plain account, whose wrong signatures are refused without asking the chain."""
    plain_payers_max: int = 10_000
    """Such payers remembered."""
    stranger_looks_per_s: float = 10.0
    """How often a second one tenant may have the chain asked for the code of a payer whose key did not sign; more get 429. What
    finds a wallet that takes the signature does not count, nor does `smart_wallets = "off"` ever ask."""
    stranger_looks_burst: int = 200
    """Such looks at once."""
    stranger_looks_total_per_s: float = 50.0
    """The same of all tenants of this process together."""
    stranger_looks_total_burst: int = 1000
    """Such looks at once. Half of them are kept for tenants who have used less than half of their own."""
    nonce_search_blocks: int = 2000
    """Blocks searched for the transaction that used a nonce, to name it in the refusal; 0 names none."""
    batching: Literal["off", "adaptive"] = "adaptive"
    """Whether several payments may share a transaction under load."""
    smart_wallets: Mode = "deployed"
    """Payers whose signature their code judges: `off` refuses them, `deployed` takes contracts (ERC-1271) and delegated keys
    (EIP-7702), `counterfactual` also deploys those of `networks[].wallet_factories` with their first payment (ERC-6492)."""
    wallet_gas_max: int = 500_000
    """Most gas that the transaction of a smart wallet may take, and so what its code can cost; what needs more is refused."""
    deployment_gas_max: int = 1_500_000
    """The same of a transaction that deploys the wallet first."""
    wallet_waiting_max: int = 8
    """Payments of one smart wallet that wait for their turn: one goes after the other. More get 503."""
    queue_max: int = 2000
    """Settlements admitted or waiting to be admitted in this process; beyond it `/settle` answers 503."""
    queue_wait_max_s: float = 5.0
    """Longest that a payment should wait to be sent: when the oldest has waited longer, or a new one would, `/settle` answers 503."""
    group_max: int = 100
    """Settlements in one write-ahead commit."""
    batch_min: int = 5
    """Up to this many payments that wait together go in transactions of their own, if there is room."""
    batch_max: int = 50
    """Most payments in one transaction."""
    batch_calldata_bytes_max: int = 120_000
    """Most calldata of one transaction; pools take 128 KiB of a whole transaction."""
    batch_life_min_s: int = 10
    """A payment with less life left than this never shares a transaction."""
    linger_ms: int = 0
    """How long a group waits for more payments to share with; 0 sends at once."""
    slots_soft: int = 4
    """Open transactions of one relayer that the builder takes in the next block."""
    slots_max: int = 16
    """Most open transactions of one relayer, in a burst."""
    relayer_rest_s: float = 0.5
    """First rest of a relayer whose transactions are refused (full pool, no money, too low a fee, rate limit); doubles, jittered."""
    relayer_rest_max_s: float = 30.0
    """Longest such rest."""
    relayer_reserve_wei: int = 0
    """Gas money that a relayer keeps: below it, and what its open transactions may cost, it opens no slot."""
    balance_poll_s: float = 10.0
    """How often relayers' coins are read."""
    lease_ttl_s: float = 10.0
    """How long a relayer lease lasts without renewal, on database time."""
    lease_renew_s: float = 3.0
    """How often it is renewed."""
    lease_trust_s: float = 7.0
    """How long after the last renewal this process goes on signing."""
    answer_doubt_s: float = 6.0
    """How long a success told by another replica counts as possibly lost on its way; above that replica's `delivery_timeout_s`."""
    poll_s: float = 0.05
    """How often the next block is looked for once it is due, while transactions are in flight."""
    queue_poll_s: float = 1.0
    """How often the queue in Postgres is looked at without a notification."""
    send_sync_ms: int = 0
    """How long a node may keep a first send until the transaction is in a block (EIP-7966), to tell of it at once; 0 never asks."""
    resend_s: float = 1.0
    """Age at which an unmined transaction is sent again, byte for byte."""
    bump_blocks: int = 2
    """Blocks that a relayer's lowest open transaction may miss before it is outbid."""
    canary_verify_s: float = 30.0
    """How often a payment of our own is judged: one that has no money, so that the right answer is known."""
    canary_settle_s: float = 3600.0
    """On networks with a `canary`: all replicas together make one payment of its account to itself in so long, and pay its gas."""
    survey_s: float = 5.0
    """How often the gauges of the whole ledger are read from it."""
    finality_poll_s: float = 15.0
    """How often included settlements are held against the safe and finalized blocks."""
    watched_max: int = 200
    """Auth nonces of failed and withdrawn settlements that one round looks at."""
    wall_skew_max_s: int = 30
    """A wall clock further than this from a moving head is not believed."""
    max_head_age_s: int = 10
    """A head older than this while a transaction waits means that the chain is halted."""
    fee_multiplier: int = 8
    """Head-room of max_fee over the next base fee; only base fee and tip are ever paid."""
    priority_fee_min_wei: int = 100_000
    """Least tip per gas; it rises while inclusion takes longer than two blocks. 2 % of Base's least base fee (0.005 gwei)."""
    priority_fee_cap_wei: int = 10_000_000
    """Most tip per gas; twice Base's least base fee."""
    max_fee_floor_wei: int = 50_000_000
    """Least max_fee per gas offered (0.05 gwei)."""
    max_fee_cap_wei: int = 10_000_000_000
    """Most max_fee per gas ever offered (10 gwei)."""
    payment_cost_cap_wei: int = 2_000_000_000_000_000
    """Most that a payment sent alone may cost, L1 and operator fee included (0.002 coins); above it new ones get 503. 0: no cap."""
    limits_poll_s: float = 1.0
    """How often gas budgets and strikes are read: a replica goes by them that late; that no budget is exceeded, the database sees to."""
    gas_rate_max_age_s: float = 3600.0
    """How old a dollar rate may be for a gas budget in dollars; without a fresh one its tenant's payments are refused."""
    payer_strikes_max: int = 5
    """Payments of one payer that cost gas and paid nobody, by its own doing, within `strike_window_s`, at which it rests."""
    tenant_strikes_max: int = 100
    """The same of one tenant's payers together, at which the tenant rests, unless as many of its payments were made meanwhile."""
    strike_window_s: float = 600.0
    """Time in which strikes count together."""
    cool_down_s: float = 600.0
    """How long nothing new is taken after the last of too many strikes."""
    struck_max: int = 10_000
    """Payers and tenants with strikes that a replica keeps in mind, those last struck."""
    l1_fee_poll_s: float = 12.0
    """How often L1 and operator fee are read from the chain; they change with the blocks of L1."""

"""Payments of our own transactions whose record was lost: put on record again by what the transaction says."""

from collections.abc import Sequence
from typing import Final

from facilitator.chain.strays import Stray
from facilitator.clock import Clock
from facilitator.domain.abi import read_payments
from facilitator.schemes import exact_eip3009
from facilitator.store import settlements, tenants
from facilitator.store.db import Session
from facilitator.store.settlements import Settlement
from facilitator.store.tenants import Tenant
from facilitator.units import Network

FOUND: Final = Tenant(tenant_id="found")
"""In whose name such payments stand: whom they were made for was lost too, and nobody can ask as this tenant."""


async def record_payments(session: Session, clock: Clock, network: Network, stray: Stray) -> Sequence[Settlement]:
    """The payments of a mined transaction that is on record: those that nobody else has on record become `submitted`, carried by it."""
    paid = read_payments(stray.call, network, exact_eip3009.NAME)
    if not paid or stray.block is None:
        return ()
    await tenants.create_tenant(session, FOUND)
    ids = [settlements.new_id(clock.now_ms()) for _ in paid]
    await settlements.record_found(session, FOUND.tenant_id, stray.signed.tx_hash, stray.block, ids, paid)
    return await settlements.records(session, ids, 0.0)

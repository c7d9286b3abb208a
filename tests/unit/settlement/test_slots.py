"""What an execution by another sender is to a tenant that accepts it, and to one that does not."""

from uuid import UUID

import pytest

from facilitator.domain.abi import Log
from facilitator.domain.states import State
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason
from facilitator.settlement.slots import Item, external
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, Network, TxHash, UnixSeconds

ADMITTED = 100
ADDRESS = Address("0x" + "11" * 20)
PROOF = TxHash("0x" + "22" * 32)


def item(*, accept_external: bool) -> Item:
    authorization = Authorization(
        scheme="exact",
        network=Network("eip155:84532"),
        asset=ADDRESS,
        payer=ADDRESS,
        pay_to=ADDRESS,
        amount_atomic=Atomic(1),
        valid_after=UnixSeconds(0),
        valid_before=UnixSeconds(1),
        auth_nonce=AuthNonce("0x" + "33" * 32),
        signature=b"",
    )
    return Item(
        traceparent=None,
        settlement_id=UUID(int=1),
        authorization=authorization,
        admitted_block=ADMITTED,
        confirm_level="latest",
        accept_external=accept_external,
    )


def used(block_number: int) -> Log:
    return Log(
        address=ADDRESS,
        topics=(),
        data=b"",
        log_index=7,
        tx_hash=PROOF,
        block_number=block_number,
        block_hash=BlockHash("0x" + "44" * 32),
    )


@pytest.mark.parametrize(
    ("accepts", "block_number", "success"),
    [(False, ADMITTED + 1, False), (True, ADMITTED + 1, True), (True, ADMITTED, False), (True, ADMITTED - 1, False)],
)
def test_only_what_came_after_the_request_is_a_success_and_only_for_who_accepts_it(
    accepts: bool,  # noqa: FBT001
    block_number: int,
    success: bool,  # noqa: FBT001
) -> None:
    ruling = external(used(block_number), item(accept_external=accepts))
    assert (ruling.state, ruling.reason, ruling.tx_hash) == (State.EXTERNAL, Reason.SETTLEMENT_EXTERNAL, PROOF)
    assert (ruling.answer.success, ruling.answer.tx_hash) == (success, PROOF)
    assert ruling.answer.reason == (None if success else "SETTLEMENT_EXTERNAL")

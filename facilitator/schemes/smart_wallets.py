"""Payers whose signature is judged by code: contracts (ERC-1271), delegated keys (EIP-7702), wallets still to be deployed (ERC-6492).

The token asks the code at the payer and nothing else, so a right signature by the account's own key counts for nothing where
that code says no. It must never let a payer name a contract that our transaction calls, but a factory that the operator lists.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from facilitator.domain import abi
from facilitator.domain.batching import ran_out
from facilitator.domain.facts import Call, CodeOf, Probe, Question, Reply
from facilitator.domain.wallets import PayerKind, Rules, Wallet, kind_of
from facilitator.protocol.address import checksum_address, keccak256
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes import signatures
from facilitator.schemes.words import refuse
from facilitator.units import ZERO_ADDRESS, Address, Network

_FROM: Final = "payload.authorization.from"
_SIGNATURE: Final = "payload.signature"
_TAKEN: Final = abi.IS_VALID_SIGNATURE + bytes(28)
"""What ERC-1271 has a contract return that takes a signature. The token demands all 32 bytes."""


class SmartWallets:
    """The operator's rules for such payers."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def standards(self, network: Network) -> list[str]:
        """What may judge a payer's signature on this network, beside its key."""
        if self._rules.mode == "off":
            return []
        deploys = self._rules.mode == "counterfactual" and any(listed == network for listed, _ in self._rules.factories)
        return ["erc1271", "eip7702", *(["erc6492"] if deploys else [])]

    def at(self, authorization: Authorization, code: bytes, *, own_key: bool) -> Wallet | Refusal:
        """The wallet that pays when this code lies at the payer, or none and a wrapped signature came. `own_key`: the payer's key signed.

        A contract's signature goes to the token's `bytes` overload, of 65 bytes too: that one is defined for contracts, where
        the v, r, s overload of older tokens recovers a key.
        """
        if self._rules.mode == "off":
            kind = f"{len(code)} bytes of code" if code else "a signature wrapped by ERC-6492"
            expected = "an account without code: smart wallets are not supported"
            return refuse(Reason.SMART_WALLET_UNSUPPORTED, _FROM, expected, f"{checksum_address(authorization.payer)} with {kind}")
        if not code:
            return self._undeployed(authorization)
        envelope = abi.read_envelope(authorization.signature) if abi.is_enveloped(authorization.signature) else None
        signature = envelope.signature if envelope else authorization.signature
        if own_key:  # then its spelling is no contract's business, and libraries of contracts know one
            signature = signatures.normalise(signature)
        data = abi.transfer_with_authorization_bytes(authorization, signature)
        call = Call(to=authorization.asset, data=data)
        return Wallet(kind=kind_of(code), call=call, gas=self._rules.gas_max, code=keccak256(code))

    def _undeployed(self, authorization: Authorization) -> Wallet | Refusal:
        """The wallet that a factory is to make first."""
        envelope = abi.read_envelope(authorization.signature)
        assert envelope is not None
        factory = envelope.deployment.to
        if self._rules.mode != "counterfactual":
            expected = "a wallet that is deployed: none is deployed here"
            return refuse(Reason.UNDEPLOYED_WALLET, _FROM, expected, f"{checksum_address(authorization.payer)} without code")
        if factory == ZERO_ADDRESS or not envelope.deployment.data:
            return refuse(Reason.UNDEPLOYED_WALLET, _SIGNATURE, "factory and calldata that deploy the wallet (ERC-6492)", "none")
        if (authorization.network, factory) not in self._rules.factories:
            expected = "a factory that this facilitator calls (networks.wallet_factories)"
            return refuse(Reason.FACTORY_NOT_ALLOWED, _SIGNATURE, expected, checksum_address(factory))
        payment = Call(to=authorization.asset, data=abi.transfer_with_authorization_bytes(authorization, envelope.signature))
        return Wallet(
            kind=PayerKind.COUNTERFACTUAL,
            call=Call(to=abi.MULTICALL3_ADDRESS, data=abi.deploy_and_pay(envelope.deployment, payment)),
            gas=self._rules.deployment_gas_max,
            code=keccak256(bytes.fromhex(factory[2:])),
        )

    def refuse_unasked(self, authorization: Authorization, refusal: Refusal) -> Refusal | None:
        """The refusal where no wallet may pay: nobody's code is asked for. None: it must be, for a contract may take any bytes."""
        if self._rules.mode != "off":
            return None
        length = len(authorization.signature)
        if length not in {signatures.SIGNATURE_LENGTH, signatures.COMPACT_LENGTH}:
            got = "a signature wrapped by ERC-6492" if abi.is_enveloped(authorization.signature) else f"{length} bytes"
            return refuse(Reason.SMART_WALLET_UNSUPPORTED, _SIGNATURE, "one of the payer's key: smart wallets are not supported", got)
        return replace(refusal, message=f"{refusal.message}; smart wallets are not supported")

    def ask(self, authorization: Authorization, digest: bytes) -> tuple[Question, ...]:
        """Which code lies at the payer, and what it says of the signature; of a wrapped one also once its factory was called."""
        code = CodeOf(address=authorization.payer)
        if self._rules.mode == "off":
            return (code,)
        envelope = abi.read_envelope(authorization.signature) if abi.is_enveloped(authorization.signature) else None
        signature = envelope.signature if envelope else authorization.signature
        asked = Call(to=authorization.payer, data=abi.is_valid_signature(digest, signature))
        deployed = Probe(call=asked, gas=self._rules.gas_max)
        if envelope is None or not isinstance(self.at(authorization, b"", own_key=False), Wallet):
            return code, deployed
        first = Call(to=abi.MULTICALL3_ADDRESS, data=abi.aggregate3([envelope.deployment, asked]))
        return code, deployed, Probe(call=first, gas=self._rules.deployment_gas_max)

    def judge(self, authorization: Authorization, replies: Sequence[Reply], refusal: Refusal) -> Wallet | Refusal:
        """The wallet whose code took the signature; else why not, where `refusal` is what is wrong with it as a key's."""
        code = replies[0].data
        if not code and not abi.is_enveloped(authorization.signature):
            return refusal
        wallet = self.at(authorization, code, own_key=False)
        if isinstance(wallet, Refusal):
            return wallet
        if code:
            return self._judge_word(authorization, code, replies[1]) or wallet
        return self._judge_deployed(authorization, replies[2]) or wallet

    def _judge_word(self, authorization: Authorization, code: bytes, said: Reply) -> Refusal | None:
        """What the code at the payer said of the signature."""
        if said.ok and said.data[:32] == _TAKEN:
            return None
        payer = checksum_address(authorization.payer)
        if kind_of(code) is PayerKind.DELEGATED:
            payer += f" (delegated to {checksum_address(Address('0x' + code[3:].hex()))}, EIP-7702)"
        if said.ok:
            got = "another answer than ERC-1271's yes" if said.data else "no answer: it knows no isValidSignature"
        else:
            got = f"all of {self._rules.gas_max} gas used" if ran_out(said.gas_used, self._rules.gas_max) else "a revert"
        if abi.is_enveloped(authorization.signature):
            got += "; the wallet is deployed, and what prepares it (ERC-6492) is not called"
        return refuse(Reason.SIGNATURE, _SIGNATURE, f"one that the code at {payer} takes", got)

    def _judge_deployed(self, authorization: Authorization, said: Reply) -> Refusal | None:
        """What factory and wallet did, in one call, one after the other."""
        payer, both = checksum_address(authorization.payer), abi.read_aggregate3(said.data) if said.ok else None
        if both is None or len(both) != 2:
            got = f"all of {self._rules.deployment_gas_max} gas used" if not said.ok else "no answer that could be read"
            return refuse(Reason.DEPLOYMENT_FAILED, _SIGNATURE, f"a factory call that deploys {payer}", got)
        deployment, word = both
        if word.ok and not word.data:
            got = "no code there after it" if deployment.ok else "a revert"
            return refuse(Reason.DEPLOYMENT_FAILED, _SIGNATURE, f"a factory call that deploys {payer}", got)
        if word.ok and word.data[:32] == _TAKEN:
            return None
        got = "another answer than ERC-1271's yes" if word.ok else "a revert"
        return refuse(Reason.SIGNATURE, _SIGNATURE, f"one that the code to be deployed at {payer} takes", got)

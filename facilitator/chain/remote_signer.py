"""Relayer keys that never are in this process: AWS KMS, GCP KMS, and signers that speak Web3Signer's JSON-RPC.

It must never trust what came back: the address is pinned by the operator, s is brought to its low half, the recovery bit is
found by trial, and a signature that does not recover to the pinned address over our own digest is a fault. Policy is
checked here, before anything is asked of a service (docs/architecture.md, signers).
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

import aiohttp
import msgspec
from coincurve.ecdsa import der_to_cdata, serialize_compact

from facilitator.chain.signer import SigningPolicy
from facilitator.domain.resubmission import NOOP_GAS
from facilitator.domain.transactions import DYNAMIC_FEE_TYPE, SignedTransaction, Transaction, assemble, signing_hash
from facilitator.errors import ConfigFault, SignerFault
from facilitator.schemes.signatures import GROUP_ORDER, recover
from facilitator.units import Address, Gas, Wei

SIGNING_S: Final = 5.0
"""Longest that a service may take for one signature."""
_THREADS: Final = 8
"""Signatures asked for side by side of a service whose library blocks."""
_LAST_NONCE: Final = 2**64 - 2
"""EIP-2681: the highest tx_nonce there is. A transaction with it will never be executed."""


class KeyService(Protocol):
    """Something that holds one key and signs with it. Answers are not to be trusted."""

    async def sign(self, transaction: Transaction, digest: bytes) -> tuple[int, int]:
        """The numbers r and s over `digest`, which is that of `transaction`. Raises SignerFault."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


class RemoteSigner:
    """A relayer whose key a service holds."""

    def __init__(self, service: KeyService, address: Address, policy: SigningPolicy) -> None:
        """`address` is the account that the operator expects; nothing else is ever signed for."""
        self._service = service
        self._policy = policy
        self.address = address

    def __repr__(self) -> str:
        """The address only."""
        return f"RemoteSigner({self.address})"

    async def prove(self) -> None:
        """Have the service sign a no-op that can never be executed. Raises SignerFault, also when its key is another account's."""
        nothing = Transaction(
            chain_id=self._policy.chain_id,
            tx_nonce=_LAST_NONCE,
            to=self.address,
            data=b"",
            gas=Gas(NOOP_GAS),
            max_fee_wei=Wei(0),
            max_priority_fee_wei=Wei(0),
        )
        await self.sign(nothing)

    async def sign(self, transaction: Transaction) -> SignedTransaction:
        """Sign in one round trip. Raises SigningRefusedError before asking, SignerFault when no right signature came."""
        self._policy.check(transaction, self.address)
        digest = signing_hash(transaction)
        try:
            async with asyncio.timeout(SIGNING_S):
                r, s = await self._service.sign(transaction, digest)
        except TimeoutError:
            raise SignerFault("timeout", f"the key service of {self.address} did not sign within {SIGNING_S:g} s") from None
        if 0 < r < GROUP_ORDER and 0 < s < GROUP_ORDER:
            s = min(s, GROUP_ORDER - s)
            compact = r.to_bytes(32, "big") + s.to_bytes(32, "big")
            for y_parity in (0, 1):
                if recover(digest, compact + bytes((27 + y_parity,))) == self.address:
                    return assemble(transaction, r=r, s=s, y_parity=y_parity)
        raise SignerFault("wrong_signature", f"what the key service answered is no signature of {self.address} over this transaction")

    async def close(self) -> None:
        """Let the service's connections go."""
        await self._service.close()


class AwsKms:
    """An asymmetric AWS KMS key of spec ECC_SECG_P256K1. Credentials come from botocore's own chain."""

    def __init__(self, key_id: str, region: str, endpoint: str | None = None) -> None:
        """`key_id` is an id or ARN. Raises ConfigFault when botocore is not installed."""
        try:
            import botocore.exceptions  # noqa: PLC0415 (an extra)
            import botocore.session  # noqa: PLC0415
            from botocore.config import Config  # noqa: PLC0415
        except ImportError:
            raise ConfigFault("no_aws", "aws-kms references need `pip install facilitator[aws]`") from None
        self._faults = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
        self._key_id = key_id
        options = Config(connect_timeout=SIGNING_S / 2, read_timeout=SIGNING_S / 2, retries={"total_max_attempts": 2, "mode": "standard"})
        session = botocore.session.get_session()
        self._client: Any = session.create_client("kms", region_name=region, endpoint_url=endpoint, config=options)
        self._threads = ThreadPoolExecutor(_THREADS, "aws-kms")

    async def sign(self, transaction: Transaction, digest: bytes) -> tuple[int, int]:
        """The numbers r and s over `digest`. Raises SignerFault."""
        del transaction
        return read_der(await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, digest))

    async def close(self) -> None:
        """End the threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _ask(self, digest: bytes) -> bytes:
        try:
            answer = self._client.sign(KeyId=self._key_id, Message=digest, MessageType="DIGEST", SigningAlgorithm="ECDSA_SHA_256")
        except self._faults as error:
            raise SignerFault("aws_kms", f"AWS KMS did not sign: {type(error).__name__}: {_first_line(error)}") from None
        return bytes(answer["Signature"])


class GcpKms:
    """A Google Cloud KMS key version of algorithm EC_SIGN_SECP256K1_SHA256. Credentials are the application's default ones."""

    def __init__(self, name: str, endpoint: str = "https://cloudkms.googleapis.com", *, anonymous: bool = False) -> None:
        """`name` is `projects/…/cryptoKeyVersions/N`. Raises ConfigFault without google-auth or credentials."""
        try:
            import google.auth  # noqa: PLC0415 (an extra)
            import google.auth.exceptions  # noqa: PLC0415
            from google.auth.credentials import AnonymousCredentials  # noqa: PLC0415
            from google.auth.transport.requests import AuthorizedSession  # noqa: PLC0415
            from requests.exceptions import RequestException  # noqa: PLC0415
        except ImportError:
            raise ConfigFault("no_gcp", "gcp-kms references need `pip install facilitator[gcp]`") from None
        try:
            scopes = ["https://www.googleapis.com/auth/cloudkms"]
            credentials: Any = AnonymousCredentials() if anonymous else google.auth.default(scopes=scopes)[0]  # type: ignore[no-untyped-call]
        except google.auth.exceptions.GoogleAuthError as error:
            raise ConfigFault("no_gcp_credentials", f"no Google Cloud credentials: {_first_line(error)}") from None
        self._faults = (RequestException, google.auth.exceptions.GoogleAuthError)
        self._session: Any = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        self._url = f"{endpoint}/v1/{name}:asymmetricSign"
        self._threads = ThreadPoolExecutor(_THREADS, "gcp-kms")

    async def sign(self, transaction: Transaction, digest: bytes) -> tuple[int, int]:
        """The numbers r and s over `digest`. Raises SignerFault."""
        del transaction
        return read_der(await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, digest))

    async def close(self) -> None:
        """End the threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    def _ask(self, digest: bytes) -> bytes:
        body = msgspec.json.encode({"digest": {"sha256": digest}})
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._session.post(self._url, data=body, headers=headers, timeout=SIGNING_S / 2, allow_redirects=False)
        except self._faults as error:
            raise SignerFault("gcp_kms", f"Google Cloud KMS could not be asked: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise SignerFault("gcp_kms", f"Google Cloud KMS did not sign: HTTP {answer.status_code}", status=answer.status_code)
        try:
            return msgspec.json.decode(answer.content, type=_GcpSignature).signature
        except msgspec.MsgspecError:
            raise SignerFault("gcp_kms", "Google Cloud KMS answered something else than a signature") from None


class _GcpSignature(msgspec.Struct):
    signature: bytes


class Web3Signer:
    """A signer that speaks `eth_signTransaction`, as Web3Signer does in eth1 mode."""

    def __init__(self, url: str, address: Address, chain_id: int, token: str | None = None) -> None:
        """`token` goes along as `Authorization: Bearer`."""
        self._url = url
        self._address = address
        self._chain_id = chain_id
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def sign(self, transaction: Transaction, digest: bytes) -> tuple[int, int]:
        """The numbers r and s of the raw transaction that came back, whatever else it says: the caller holds them against our digest."""
        del digest
        request = {
            "from": self._address,
            "to": transaction.to,
            "data": "0x" + transaction.data.hex(),
            "value": hex(transaction.value_wei),
            "nonce": hex(transaction.tx_nonce),
            "gas": hex(transaction.gas),
            "maxFeePerGas": hex(transaction.max_fee_wei),
            "maxPriorityFeePerGas": hex(transaction.max_priority_fee_wei),
            "chainId": hex(self._chain_id),
            "type": "0x2",
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_signTransaction", "params": [request]}
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers)
        try:
            async with self._session.post(self._url, json=body, allow_redirects=False) as answer:
                content = await answer.read()
        except aiohttp.ClientError as error:
            raise SignerFault("web3signer", f"the signer could not be asked: {type(error).__name__}") from None
        if answer.status != 200:
            raise SignerFault("web3signer", f"the signer did not sign: HTTP {answer.status}", status=answer.status)
        return read_raw(content)

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class _RawTransaction(msgspec.Struct):
    result: str = ""


def read_raw(content: bytes) -> tuple[int, int]:
    """The numbers r and s of the type-2 transaction that `eth_signTransaction` answered. Raises SignerFault."""
    import rlp  # noqa: PLC0415 (it brings pydantic: a fifth of the start, for those whose keys a Web3Signer holds)

    try:
        raw = bytes.fromhex(msgspec.json.decode(content, type=_RawTransaction).result.removeprefix("0x"))
        fields = rlp.decode(raw[1:]) if raw[:1] == DYNAMIC_FEE_TYPE else []
        r, s = fields[-2:]
        return int.from_bytes(r, "big"), int.from_bytes(s, "big")
    except (ValueError, TypeError, msgspec.MsgspecError, rlp.DecodingError):
        raise SignerFault("web3signer", "the signer answered something else than a signed type-2 transaction") from None


def read_der(signature: bytes) -> tuple[int, int]:
    """The numbers r and s of an ECDSA signature in DER. Raises SignerFault."""
    try:
        compact = serialize_compact(der_to_cdata(signature))
    except ValueError:
        raise SignerFault("bad_signature", "the key service answered something else than an ECDSA signature in DER") from None
    return int.from_bytes(compact[:32], "big"), int.from_bytes(compact[32:], "big")


def _first_line(error: Exception) -> str:
    """What a library says, short: it may quote requests."""
    return str(error).partition("\n")[0][:200]

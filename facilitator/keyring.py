"""Opens relayers' keys: from references to signers that keep to the policy. It never shows a key, and never quotes what may be one."""

import asyncio
from typing import Final

from coincurve import PrivateKey

from facilitator.chain.remote_signer import AwsKms, GcpKms, KeyService, RemoteSigner, Web3Signer
from facilitator.chain.signer import LocalSigner, SigningPolicy, load_key, load_signer
from facilitator.config import Config, NetworkSettings
from facilitator.errors import ConfigFault, SignerFault
from facilitator.references import KeyReference, Secret, ServiceKey
from facilitator.units import Wei, chain_id_of

REAL_MONEY: Final = frozenset({1, 10, 137, 8453, 42161, 43114})
"""Chain ids where a relayer's coins and the payers' tokens are worth something."""

KeptSigner = LocalSigner | RemoteSigner


async def build_signers(network: NetworkSettings, config: Config) -> list[KeptSigner]:
    """The relayers' keys. Raises ConfigFault that names the reference, never the secret; SignerFault when a service does not sign."""
    signers = [await open_signer(reference, network, config) for reference in network.relayers]
    addresses = [signer.address for signer in signers]
    for signer in signers:
        if addresses.count(signer.address) > 1:
            raise ConfigFault("relayer_twice", f"networks ({network.id}): two relayer references lead to the same key, {signer.address}")
    return signers


async def open_signer(reference: KeyReference, network: NetworkSettings, config: Config) -> KeptSigner:
    """The key that a reference leads to, tried once if a service holds it. Faults as `build_signers`."""
    policy = SigningPolicy(
        chain_id=chain_id_of(network.id),
        assets=frozenset(token.address for token in network.tokens),
        factories=frozenset(network.wallet_factories if config.settlement.smart_wallets == "counterfactual" else ()),
        max_fee_max_wei=Wei(config.settlement.max_fee_cap_wei),
    )
    try:
        if reference.secret is not None:
            return await asyncio.to_thread(_load, reference.secret, network, policy)
        assert reference.service is not None
        signer = RemoteSigner(_service(reference.service, policy.chain_id), reference.service.address, policy)
    except ConfigFault as fault:
        raise ConfigFault(fault.kind, f"networks ({network.id}), relayer {reference}: {fault.message}") from None
    try:
        await signer.prove()
    except SignerFault as fault:
        await signer.close()
        raise SignerFault(fault.kind, f"networks ({network.id}), relayer {reference}: {fault.message}") from None
    return signer


async def open_canary(network: NetworkSettings) -> PrivateKey | None:
    """The key of the account that pays itself, if there is one. Raises ConfigFault that names the reference, never the secret."""
    if (secret := network.canary) is None:
        return None
    try:
        password = None if secret.password is None else secret.password.read()
        return PrivateKey(await asyncio.to_thread(load_key, secret.read(), password))
    except ConfigFault as fault:
        raise ConfigFault(fault.kind, f"networks ({network.id}), canary {secret}: {fault.message}") from None


def parse_reference(text: str) -> KeyReference:
    """A relayer's reference. Raises ConfigFault that never quotes what came: it may be the key."""
    try:
        return KeyReference.parse(text)
    except ValueError as error:
        raise ConfigFault("bad_reference", f"relayer reference: {error}") from None


def _load(secret: Secret, network: NetworkSettings, policy: SigningPolicy) -> LocalSigner:
    text = secret.read()
    if secret.kind != "keystore" and not text.lstrip().startswith("{") and policy.chain_id in REAL_MONEY and not network.plain_keys:
        raise ConfigFault(
            "plain_key",
            "an unencrypted key where money is real: use keystore:/path?password=env:NAME, aws-kms:, gcp-kms: or web3signer:,"
            " or set plain_keys = true for this network",
        )
    return load_signer(text, policy, None if secret.password is None else secret.password.read())


def _service(key: ServiceKey, chain_id: int) -> KeyService:
    match key.kind:
        case "aws-kms":
            return AwsKms(key.where, key.where.split(":")[3], key.endpoint)
        case "gcp-kms":
            loopback = key.endpoint is not None and key.endpoint.startswith("http://127.0.0.1:")
            return GcpKms(key.where, key.endpoint, anonymous=loopback) if key.endpoint else GcpKms(key.where)
        case "web3signer":
            return Web3Signer(key.where, key.address, chain_id, key.token.read() if key.token else None)

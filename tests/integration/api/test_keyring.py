"""Relayer keys opened from a configuration: services are tried at once, and real money wants better than a plain key."""

from pathlib import Path
from typing import Any

import pytest

from facilitator.chain.remote_signer import RemoteSigner
from facilitator.chain.signer import LocalSigner
from facilitator.config import Config, load
from facilitator.errors import ConfigFault, SignerFault
from facilitator.keyring import build_signers
from tests.fixtures.key_services import KeyServices, serving
from tests.fixtures.vectors import PAYER, PAYER_KEY

CONFIG = """
[server]
listen = "127.0.0.1:0"
[database]
url = "env:DATABASE_URL"
[[networks]]
id = "{network}"
rpc_urls = ["http://127.0.0.1:1"]
relayers = ["{relayer}"]
{more}
"""


def configured(directory: Path, relayer: str, network: str = "eip155:84532", more: str = "") -> Config:
    file = directory / "facilitator.toml"
    file.write_text(CONFIG.format(network=network, relayer=relayer, more=more), "utf-8")
    return load(file, {}).config


async def signers_of(config: Config) -> list[Any]:
    return list(await build_signers(config.networks[0], config))


async def test_a_key_service_is_opened_and_tried(tmp_path: Path) -> None:
    services = KeyServices(PAYER_KEY)
    async with serving(services) as url:
        [signer] = await signers_of(configured(tmp_path, f"web3signer:{url}/web3signer?address={PAYER}"))
        assert isinstance(signer, RemoteSigner)
        assert signer.address == PAYER.lower()
        assert len(services.asked) == 1
        await signer.close()


async def test_a_key_service_with_another_key_is_refused_at_start(tmp_path: Path) -> None:
    async with serving(KeyServices(b"\x22" * 32)) as url:
        with pytest.raises(SignerFault, match="is no signature of 0x19e7"):
            await signers_of(configured(tmp_path, f"web3signer:{url}/web3signer?address={PAYER}"))


async def test_a_plain_key_is_for_networks_without_real_money(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYER", PAYER_KEY.hex())
    [signer] = await signers_of(configured(tmp_path, "env:RELAYER"))
    assert isinstance(signer, LocalSigner)
    with pytest.raises(ConfigFault, match="unencrypted key where money is real"):
        await signers_of(configured(tmp_path, "env:RELAYER", "eip155:8453"))
    [forced] = await signers_of(configured(tmp_path, "env:RELAYER", "eip155:8453", "plain_keys = true"))
    assert forced.address == PAYER.lower()

"""What an operator writes, and what is said about it: values, origins, faults that help, and no secret anywhere."""

from pathlib import Path

import pytest

from facilitator.config import ConfigProblems, Loaded, describe, load
from facilitator.domain.wallets import Rules
from facilitator.errors import ConfigFault
from facilitator.references import Secret, Url
from facilitator.schemes.usdc import USDC
from facilitator.units import Address, Network

GOOD = """
[server]
listen = "127.0.0.1:4022"
[database]
url = "env:DATABASE_URL"
[settlement]
deadline_s = 20
[[networks]]
id = "eip155:84532"
rpc_urls = ["http://127.0.0.1:8545"]
relayers = ["env:RELAYER_KEY_1", "keystore:/run/key.json?password=env:PASSWORD"]
"""
SCREENED = (
    GOOD
    + """
[screening]
known_listed = "0x5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"
"""
)
KEY = "0x" + "7c" * 32


def read(tmp_path: Path, text: str = GOOD, **environment: str) -> Loaded:
    file = tmp_path / "facilitator.toml"
    file.write_text(text, "utf-8")
    return load(file, environment)


def problems(tmp_path: Path, text: str, **environment: str) -> str:
    with pytest.raises(ConfigProblems) as raised:
        read(tmp_path, text, **environment)
    said = "\n".join(raised.value.problems)
    assert str(raised.value).startswith(raised.value.problems[0])
    return said


def test_file_environment_and_defaults_meet_and_each_value_knows_its_origin(tmp_path: Path) -> None:
    loaded = read(tmp_path, FACILITATOR__SETTLEMENT__DEADLINE_S="15", FACILITATOR__DATABASE__MIGRATE="true", UNRELATED="x")
    assert loaded.config.settlement.deadline_s == 15.0
    assert loaded.config.database.migrate is True
    assert (loaded.origins["settlement.deadline_s"].kind, loaded.origins["settlement.deadline_s"].place) == (
        "env",
        "FACILITATOR__SETTLEMENT__DEADLINE_S",
    )
    assert str(loaded.origins["server.listen"]) == "file facilitator.toml:3"
    assert str(loaded.origins["settlement.group_max"]) == "default"
    described = {path: (value, origin) for path, value, origin in describe(loaded)}
    assert described["database.url"] == ('"env:DATABASE_URL"', "file facilitator.toml:5")
    assert described["networks.0.relayers"][0] == '["env:RELAYER_KEY_1", "keystore:/run/key.json?password=env:PASSWORD"]'


def test_a_replica_may_have_no_relayer_keys_and_is_told_what_that_means(tmp_path: Path) -> None:
    line = 'relayers = ["env:RELAYER_KEY_1", "keystore:/run/key.json?password=env:PASSWORD"]'
    for text in (GOOD.replace(line, "relayers = []"), GOOD.replace(line, "")):
        loaded = read(tmp_path, text)
        assert loaded.config.networks[0].relayers == ()
        assert any("no relayers" in warning for warning in loaded.warnings)
    assert not any("no relayers" in warning for warning in read(tmp_path).warnings)
    assert "at least one entry" in problems(tmp_path, GOOD.replace('["http://127.0.0.1:8545"]', "[]"))


def test_an_optional_address_is_read(tmp_path: Path) -> None:
    feed = "0x71041dddad3595F9CEd3DcCFBe3D1F4b0a16Bb70"
    assert read(tmp_path, GOOD + f'rate_feed = "{feed}"').config.networks[0].rate_feed == feed.lower()
    assert "expected" in problems(tmp_path, GOOD + 'rate_feed = "0x71"')


@pytest.mark.parametrize("url", ["https://basescan.org", "https://basescan.org/", "https://explorer.example:8443/base-mainnet"])
def test_an_explorer_is_an_https_address(tmp_path: Path, url: str) -> None:
    assert read(tmp_path, GOOD + f'explorer_url = "{url}"').config.networks[0].explorer_url == url


@pytest.mark.parametrize(
    "url",
    ["http://basescan.org", "javascript:alert(1)", "https://", "https://me@basescan.org", "https://a.org?q=", "https://a b", "//a"],
)
def test_what_is_no_https_address_is_no_explorer(tmp_path: Path, url: str) -> None:
    assert "explorer_url" in problems(tmp_path, GOOD + f'explorer_url = "{url}"')


def test_everything_may_come_from_the_environment() -> None:
    loaded = load(
        None,
        {
            "FACILITATOR__DATABASE__URL": "env:DATABASE_URL",
            "FACILITATOR__NETWORKS__0__ID": "eip155:8453",
            "FACILITATOR__NETWORKS__0__RPC_URLS": "env:RPC_A, env:RPC_B",
            "FACILITATOR__NETWORKS__0__RELAYERS": "file:/run/secrets/relayer",
        },
    )
    (network,) = loaded.config.networks
    assert [str(url) for url in network.rpc_urls] == ["env:RPC_A", "env:RPC_B"]
    assert [token.name for token in network.tokens] == ["USD Coin"]


def test_the_built_in_table_holds_circles_usdc() -> None:
    by_network = {token.network: token for token in USDC}
    assert len(by_network) == len(USDC)
    base, sepolia = by_network["eip155:8453"], by_network["eip155:84532"]  # type: ignore[index]
    assert (base.address, base.name, base.version, base.decimals) == ("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913", "USD Coin", "2", 6)
    assert (sepolia.address, sepolia.name, sepolia.version) == ("0x036cbd53842c5426634e7929541ec2318f3dcf7e", "USDC", "2")


def test_an_asset_of_ones_own_joins_the_built_in_one_or_replaces_it(tmp_path: Path) -> None:
    own = '[[networks.assets]]\naddress = "0x{}"\nname = "Mine"\nversion = "1"\ndecimals = 18\n'
    joined = read(tmp_path, GOOD + own.format("ab" * 20)).config.tokens
    assert [token.name for token in joined] == ["USDC", "Mine"]
    replaced = read(tmp_path, GOOD + own.format("036CbD53842c5426634e7929541eC2318f3dCF7e")).config.tokens
    assert [token.name for token in replaced] == ["Mine"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("deadline_s = 20", "deadlin_s = 20"), "facilitator.toml:7: settlement.deadlin_s: unknown key; did you mean deadline_s?"),
        (("[server]", "[servr]"), "facilitator.toml:3: servr: unknown key; did you mean server?"),
        (("deadline_s = 20", 'deadline_s = "20"'), 'settlement.deadline_s: expected a number, got text "20"'),
        (("deadline_s = 20", "deadline_s = true"), "expected a number, got true"),
        (("deadline_s = 20", "deadline_s = nan"), "expected a number"),
        (("deadline_s = 20", "deadline_s = inf"), "settlement.deadline_s must be finite"),
        (("deadline_s = 20", "queue_max = 1.5"), "expected an integer, got 1.5"),
        (("deadline_s = 20", "queue_max = 0"), "settlement.queue_max = 0 must be above zero"),
        (("deadline_s = 20", 'confirm_level = "finalised"'), "did you mean finalized?"),
        (("deadline_s = 20", 'confirm_level = "preconfirmed"'), "tenants opt into that; expected latest, safe or finalized"),
        (("deadline_s = 20", 'confirm_level = "safe"'), None),
        (("deadline_s = 20", "lease_trust_s = 10"), "settlement.lease_trust_s = 10.0 must be below settlement.lease_ttl_s = 10.0"),
        (("deadline_s = 20", "deadline_s = 4"), "settlement.verify_deadline_s = 5.0 must not be above settlement.deadline_s = 4.0"),
        (('"127.0.0.1:4022"', '"4022"'), 'server.listen: expected "host:port"'),
        (('"eip155:84532"', '"base-sepolia"'), "networks.0.id: expected a CAIP-2 chain id such as eip155:8453"),
        (('"eip155:84532"', '"eip155:31337"'), "no USDC is known for this network: add [[networks.assets]]"),
        (('["http://127.0.0.1:8545"]', "[]"), "networks.0.rpc_urls: expected at least one entry"),
        (('["http://127.0.0.1:8545"]', '["ftp://x"]'), "expected http://… or https://…"),
        (('"env:RELAYER_KEY_1", ', '"env:A", "env:A", '), "a relayer is listed twice"),
        (("deadline_s = 20", "canary_settle_s = 0.5"), "settlement.canary_settle_s = 0.5 must be at least 1"),
        (("deadline_s = 20", "send_sync_ms = 6000"), "settlement.send_sync_ms = 6000 must be below rpc.request_timeout_s = 5.0"),
        (
            ("[settlement]", '[tracing]\nendpoint = "http://a"\nsample_ratio = 1.5\n[settlement]'),
            "tracing.sample_ratio = 1.5 must not be above 1",
        ),
        (
            ("[settlement]", '[tracing]\nendpoint = "https://me:pw@a"\n[settlement]'),
            "tracing.endpoint: expected http://… or https://… without credentials",
        ),
        (("deadline_s = 20", 'smart_wallets = "all"'), "settlement.smart_wallets: expected one of"),
        (("deadline_s = 20", 'smart_wallets = "counterfactual"'), "no network names wallet_factories"),
        (("deadline_s = 20", "wallet_gas_max = 1000"), "settlement.wallet_gas_max = 1000 must lie between 120000 and 16777216"),
        (("deadline_s = 20", "deployment_gas_max = 20000000"), "must lie between 120000 and 16777216"),
        (
            ("[[networks]]", '[[networks]]\nwallet_factories = ["0x036CbD53842c5426634e7929541eC2318f3dCF7e"]'),
            "wallet_factories: 0x036CbD53842c5426634e7929541eC2318f3dCF7e deploys no wallets",
        ),
        (
            ("[[networks]]", '[[networks]]\nwallet_factories = ["0xcA11bde05977b3631167028862bE2a173976CA11"]'),
            "deploys no wallets",
        ),
        (("deadline_s = 20", "receipt_witnesses = 2"), "settlement.receipt_witnesses = 2 needs as many rpc_urls, got 1"),
        (('"env:RELAYER_KEY_1", ', '"aws-kms:alias/x", '), "expected aws-kms:arn:aws:kms:REGION:ACCOUNT:key/ID?address=0x"),
        (("[database]", "[access]\nmode = 'open'\n[database]"), None),
        (('"env:DATABASE_URL"', '"embedded:./var"'), None),
    ],
)
def test_what_does_not_fit_is_named_with_its_place_and_a_remedy(tmp_path: Path, change: tuple[str, str], said: str | None) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    if said is None:
        read(tmp_path, text)
    else:
        assert said in problems(tmp_path, text)


def test_open_access_and_the_embedded_database_are_for_loopback_only(tmp_path: Path) -> None:
    public = GOOD.replace("127.0.0.1:4022", "0.0.0.0:4022")
    read(tmp_path, public)
    assert 'access.mode = "open" lets everybody settle' in problems(tmp_path, public + '[access]\nmode = "open"\n')
    assert "an embedded database is for trying out" in problems(tmp_path, public.replace("env:DATABASE_URL", "embedded:./var"))
    read(tmp_path, GOOD.replace("127.0.0.1:4022", "[::1]:4022") + '[access]\nmode = "open"\n')


def test_two_listeners_do_not_share_a_port(tmp_path: Path) -> None:
    assert "give each its own port" in problems(tmp_path, GOOD + '[metrics]\nlisten = "127.0.0.1:4022"\n')
    read(tmp_path, GOOD + '[metrics]\nlisten = "127.0.0.1:4024"\n[console]\nlisten = "127.0.0.1:4023"\n')


@pytest.mark.parametrize(
    "change",
    [
        ("env:RELAYER_KEY_1", KEY),
        ("env:RELAYER_KEY_1", KEY[2:]),
        ("env:DATABASE_URL", f"postgresql://facilitator:{KEY}@db/facilitator"),
        ("env:DATABASE_URL", f"postgresql://db/facilitator?password={KEY}"),
        ("http://127.0.0.1:8545", f"https://user:{KEY}@rpc.example"),
        ("http://127.0.0.1:8545", f"https://rpc.example/v2/{KEY}"),
        ("http://127.0.0.1:8545", f"https://rpc.example/?apikey={KEY}"),
    ],
)
def test_a_literal_secret_is_refused_with_the_remedy_and_never_repeated(tmp_path: Path, change: tuple[str, str]) -> None:
    said = problems(tmp_path, GOOD.replace(*change))
    assert "must not stand in the configuration" in said
    assert "env:NAME" in said
    assert KEY[2:] not in said


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblems, match=r"and 2 more: run `facilitator config check`"):
        read(tmp_path, GOOD.replace("deadline_s", "deadlin_s") + "[log]\nlevel = 1\nformt = 2\n")


def test_what_is_required_is_asked_for() -> None:
    with pytest.raises(ConfigProblems) as raised:
        load(None, {})
    assert raised.value.problems == (
        "environment: database.url: is required; set it, or the variable FACILITATOR__DATABASE__URL",
        "environment: networks: is required; add [[networks]]",
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FACILITATOR__SETTLEMENT__DEDLINE_S", "1", "DEDLINE_S: settlement.dedline_s: unknown key; did you mean deadline_s?"),
        ("FACILITATOR__DATABASE__MIGRATE", "yes", 'expected true or false, got text "yes"'),
        ("FACILITATOR__SETTLEMENT__DEADLINE_S", "1e3", "expected a number"),
        ("FACILITATOR__NETWORKS__3__ID", "eip155:1", "expected a number from 0 to 1"),
        ("FACILITATOR__DATABASE__URL__X", "1", "this is no table"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, said: str) -> None:
    assert said in problems(tmp_path, GOOD, **{name: value})


def test_a_file_that_is_not_there_or_not_toml_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match="cannot read the configuration"):
        load(tmp_path / "none.toml", {})
    assert "not TOML" in problems(tmp_path, "[server\n")


def test_doubtful_settings_are_warned_of(tmp_path: Path) -> None:
    warnings = "\n".join(read(tmp_path, GOOD.replace("deadline_s = 20", "deadline_s = 29")).warnings)
    assert "clients of the Go SDK give up after 30 s" in warnings
    assert "one RPC URL only" in warnings


def test_factories_make_wallets_only_where_the_settings_say_so(tmp_path: Path) -> None:
    factory = "0x0BA5ED0c6AA8c49038F819E587E2633c4A9F428a"
    listed = GOOD.replace("[[networks]]", f'[[networks]]\nwallet_factories = ["{factory}"]')
    assert "wallet_factories are never called" in "\n".join(read(tmp_path, listed).warnings)
    deploying = listed.replace("deadline_s = 20", 'smart_wallets = "counterfactual"')
    assert "so no wallet is deployed" not in "\n".join(read(tmp_path, deploying).warnings)
    assert "so no wallet is deployed" in "\n".join(read(tmp_path, deploying + '\n[access]\nmode = "open"\n').warnings)
    rules = read(tmp_path, deploying).config.wallets
    assert rules == Rules(mode="counterfactual", factories=frozenset({(Network("eip155:84532"), Address(factory.lower()))}))
    assert read(tmp_path, GOOD).config.wallets == Rules()


def test_a_reference_reads_its_secret_when_asked_and_says_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "s3cret")
    assert Secret.parse("env:A_KEY").read() == "s3cret"
    monkeypatch.delenv("A_KEY")
    with pytest.raises(ConfigFault, match="environment variable A_KEY is not set"):
        Secret.parse("env:A_KEY").read()
    file = tmp_path / "key"
    file.write_text("s3cret\n", "utf-8")
    assert Secret.parse(f"file:{file}").read() == "s3cret"
    with pytest.raises(ConfigFault, match="cannot read"):
        Secret.parse(f"file:{file}.gone").read()
    assert "s3cret" not in repr(Url.parse(f"file:{file}", ("http",)))


def test_screening_is_off_without_its_table_and_needs_somebody_to_screen_by(tmp_path: Path) -> None:
    assert read(tmp_path).config.screening is None
    assert "nobody would be screened" in problems(tmp_path, SCREENED)
    good = read(tmp_path, SCREENED, FACILITATOR__SCREENING__LIST_FILE="/run/list.csv").config.screening
    assert good is not None
    assert good.list_file == "/run/list.csv"
    assert read(tmp_path, SCREENED, FACILITATOR__NETWORKS__0__SCREENING_ORACLE="0x" + "11" * 20).config.screening is not None
    assert "needs a [screening] table" in problems(tmp_path, GOOD, FACILITATOR__NETWORKS__0__SCREENING_ORACLE="0x" + "11" * 20)
    assert "known_listed" in problems(tmp_path, GOOD + '[screening]\nlist_file = "/run/list.csv"\n')


@pytest.mark.parametrize(
    ("key", "value", "finding"),
    [
        ("LIST_AGE_MAX_S", "5", "reload_s"),
        ("ORACLE_AGE_MAX_S", "20", "deadline_s"),
        ("ACCOUNTS_MAX", "0", "above zero"),
    ],
)
def test_bounds_of_screening_hold_together(tmp_path: Path, key: str, value: str, finding: str) -> None:
    oracle = {"FACILITATOR__NETWORKS__0__SCREENING_ORACLE": "0x" + "11" * 20, f"FACILITATOR__SCREENING__{key}": value}
    assert finding in problems(tmp_path, SCREENED, **oracle)

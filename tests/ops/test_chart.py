"""The chart: lint, schemas of Kubernetes, our policy, its own schema, and a configuration that the service itself takes."""

import copy
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import helm_python
import kubernetes_validate
import pytest
import yaml

from facilitator import cli
from tests.fixtures import prometheus
from tests.ops.boards import boards
from tests.ops.chart import CHART, VALUES, Objects, configurations, faults, of_kind, pods, rendered, values_of
from tests.ops.test_alerts import RULES

ROOT: Final = CHART.parents[1]
KUBERNETES: Final = ("1.28", "1.37")
"""Oldest and newest version that the manifests are held against."""
CUSTOM: Final = frozenset({"ServiceMonitor", "PrometheusRule", "HTTPRoute"})
LONG: Final = "r" + "e" * 51 + "l"
GOLDEN: Final = Path(__file__).with_name("golden")


@pytest.fixture(scope="module", params=VALUES)
def objects(request: pytest.FixtureRequest) -> dict[tuple[str, str], dict[str, Any]]:
    return rendered(values_of(request.param))


# --- form


@pytest.mark.parametrize("name", VALUES)
def test_lint_has_nothing_to_say_above_advice(name: str) -> None:
    found = helm_python.lint(CHART, values_of(name), strict=True)
    assert found["errors"] == []
    assert [message for message in found["messages"] if message["severity"] > 1] == []


def test_lint_objects_to_a_broken_template(tmp_path: Path) -> None:
    broken = copied(tmp_path)
    (broken / "templates" / "service.yaml").write_text("{{ include `facilitator.nowhere` . }}")
    assert helm_python.lint(broken, {}, strict=True)["errors"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(objects: Objects, version: str) -> None:
    for (kind, _), item in objects.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_refuses_a_misspelt_field(version: str) -> None:
    budget = next(iter(of_kind(rendered({}), "PodDisruptionBudget").values()))
    budget["spec"]["maxUnavailabel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(budget, version, strict=True)


def test_custom_resources_have_what_their_definitions_ask_for() -> None:
    """kubernetes-validate lets unknown kinds pass, so these are looked at here."""
    objects = rendered(values_of("everything"))
    assert {kind for kind, _ in objects} >= CUSTOM
    (monitor,) = of_kind(objects, "ServiceMonitor").values()
    assert (monitor["apiVersion"], set(monitor["spec"])) == ("monitoring.coreos.com/v1", {"jobLabel", "selector", "endpoints"})
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "path": "/metrics", "interval": "15s"}]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (route,) = of_kind(objects, "HTTPRoute").values()
    assert (route["apiVersion"], set(route["spec"])) == ("gateway.networking.k8s.io/v1", {"parentRefs", "hostnames", "rules"})
    assert {match["path"]["value"] for match in route["spec"]["rules"][0]["matches"]} == public_paths()
    (rule,) = of_kind(objects, "PrometheusRule").values()
    assert (rule["apiVersion"], set(rule["spec"])) == ("monitoring.coreos.com/v1", {"groups"})
    for group in rule["spec"]["groups"]:
        assert set(group) == {"name", "rules"}
        for one in group["rules"]:
            assert set(one) in (
                {"record", "expr"},
                {"alert", "expr", "labels", "annotations"},
                {"alert", "expr", "for", "labels", "annotations"},
            )


def test_monitoring_is_off_by_default_for_its_definitions_may_be_missing() -> None:
    assert not {kind for kind, _ in rendered({})} & CUSTOM


def test_names_fit_and_two_releases_share_none() -> None:
    for values in map(values_of, VALUES):
        first, second = rendered(values, release=LONG), rendered(values, release=LONG[:-1] + "k")
        assert all(len(name) <= 63 for _, name in first | second)
        assert not first.keys() & second.keys()
        labels = [str(value) for item in first.values() for value in item["metadata"]["labels"].values()]
        assert all(len(value) <= 63 for value in labels)


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert chart["appVersion"] == project["project"]["version"]


def test_the_default_objects_are_those_that_were_reviewed() -> None:
    """After a wanted change: `python -m tests.ops.test_chart` writes them anew, and the diff is what to review."""
    assert golden() == {path.name: path.read_text("utf-8") for path in GOLDEN.iterdir()}


def test_a_package_holds_rules_dashboards_and_schema(tmp_path: Path) -> None:
    with helm_python.Chart.load(helm_python.package(CHART, destination=tmp_path)) as packed:
        names = {file["name"] for file in packed.files}
        assert packed.schema is not None
    assert {"files/rules.yaml", *(f"dashboards/{name}.json" for name in boards())} <= names


# --- policy


def test_every_object_keeps_the_policy(objects: Objects) -> None:
    assert faults(objects) == []


def plant(change: Callable[[dict[str, Any]], object]) -> Callable[[Objects], None]:
    """Do something bad to the first Deployment's pod."""
    return lambda objects: change(next(iter(of_kind(objects, "Deployment").values()))["spec"]["template"]["spec"]) and None


PLANTED: Final[dict[str, Callable[[dict[tuple[str, str], dict[str, Any]]], object]]] = {
    "mounts a token": plant(lambda spec: spec.update(automountServiceAccountToken=True)),
    "may run as root": plant(lambda spec: spec["securityContext"].update(runAsUser=0)),
    "no seccomp": plant(lambda spec: spec["securityContext"].pop("seccompProfile")),
    "namespace of the host": plant(lambda spec: spec.update(hostNetwork=True)),
    "open to others": plant(lambda spec: spec["volumes"][1]["projected"].update(defaultMode=0o444)),
    "root is writable": plant(lambda spec: spec["containers"][0]["securityContext"].pop("readOnlyRootFilesystem")),
    "may gain privileges": plant(lambda spec: spec["containers"][0]["securityContext"].pop("capabilities")),
    "requests no resources": plant(lambda spec: spec["containers"][0]["resources"].pop("requests")),
    "memory limit": plant(lambda spec: spec["containers"][0]["resources"].pop("limits")),
    "is not pinned": plant(lambda spec: spec["containers"][0].update(image="facilitator:latest")),
    "a secret stands": plant(lambda spec: spec["containers"][0].update(env=[{"name": "RELAYER_KEY", "value": "0x1"}])),
    "no disruption budget": lambda objects: objects.pop(("PodDisruptionBudget", "pay-facilitator-api")),
    "share a node": plant(lambda spec: spec.pop("topologySpreadConstraints")),
    "probes": plant(lambda spec: spec["containers"][0].pop("readinessProbe")),
    "no configuration": lambda objects: objects.pop(("ConfigMap", "pay-facilitator-api")),
    "no service account": lambda objects: objects.pop(("ServiceAccount", "pay-facilitator")),
    "leads nowhere": plant(lambda spec: spec["containers"][0]["ports"].clear()),
    "before it exists": lambda objects: objects[("ConfigMap", "pay-facilitator-migrate")]["metadata"].pop("annotations"),
    "roll": lambda objects: objects[("Deployment", "pay-facilitator-api")]["spec"]["template"]["metadata"]["annotations"].clear(),
    "exactly one": lambda objects: objects[("Deployment", "pay-facilitator-api")]["spec"].pop("replicas"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_policy_notices(fault: str) -> None:
    objects = copy.deepcopy(rendered({}))
    PLANTED[fault](objects)
    assert any(fault in found for found in faults(objects)), fault


def test_a_pod_gets_the_secrets_that_its_role_needs_and_no_other() -> None:
    def mounted(owner: str) -> set[str]:
        (secrets,) = [volume for volume in found[owner]["spec"]["volumes"] if volume["name"] == "secrets"]
        return {item["path"] for source in secrets["projected"]["sources"] for item in source["secret"]["items"]}

    found = dict(pods(rendered(values_of("split-roles"))))
    database = {"facilitator-database/url"}
    rpc = {f"rpc-base/{key}" for key in ("first", "second", "websocket")}
    keys = {"relayers-sepolia/one", *(f"relayers-base/{key}" for key in ("one.json", "one-password", "two.json", "two-password"))}
    assert mounted("Job/pay-facilitator-migrate") == database
    assert mounted("Deployment/pay-facilitator-api") == database | rpc
    assert mounted("Deployment/pay-facilitator-relayer") == database | rpc | keys


def test_a_key_that_a_service_holds_needs_no_secret_but_the_token() -> None:
    found = rendered(values_of("minimal"))
    settings = tomllib.loads(configurations(found)["pay-facilitator-api"])
    assert [key.partition(":")[0] for key in settings["networks"][0]["relayers"]] == ["aws-kms", "web3signer"]
    (owner,) = dict(pods(found)).keys() - {"Pod/pay-facilitator-test"}
    sources = dict(pods(found))[owner]["spec"]["volumes"][1]["projected"]["sources"]
    assert [source["secret"]["name"] for source in sources] == ["db", "signer"]


def test_the_grace_period_covers_drain_callers_and_delivery(objects: Objects) -> None:
    settings = tomllib.loads(next(iter(configurations(objects).values())))["server"]
    wait_s = settings["drain_delay_s"] + settings["stop_grace_s"] + settings["delivery_timeout_s"]
    for item in of_kind(objects, "Deployment").values():
        assert item["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= math.ceil(wait_s) + 5


def test_only_the_protocol_is_routed_from_outside() -> None:
    (ingress,) = of_kind(rendered(values_of("everything")), "Ingress").values()
    paths = {path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]}
    assert paths == public_paths()
    assert not {"/metrics", "/healthz", "/readyz"} & paths


def public_paths() -> set[str]:
    return {"/verify", "/settle", "/supported", "/discovery", "/settlements", "/openapi.json"}


def test_outgoing_traffic_leads_to_names_the_database_and_the_internet_only() -> None:
    (policy,) = of_kind(rendered({}), "NetworkPolicy").values()
    names, database, internet = policy["spec"]["egress"]
    assert [port["port"] for port in names["ports"]] == [53, 53]
    assert [port["port"] for port in database["ports"]] == [5432]
    assert [port["port"] for port in internet["ports"]] == [443]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(internet["to"][0]["ipBlock"]["except"])
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_console_has_a_service_of_its_own_and_no_public_route() -> None:
    objects = rendered(values_of("everything"))
    assert objects[("Service", "pay-facilitator-console")]["spec"]["type"] == "ClusterIP"
    assert all('listen = "0.0.0.0:4023"' in text for name, text in configurations(objects).items() if name.endswith("-api"))
    assert ("Service", "pay-facilitator-console") not in rendered({})


def test_files_are_made_on_a_volume_of_a_named_size_where_the_console_is() -> None:
    values = values_of("everything")
    objects = rendered({**values, "console": {**values["console"], "exportsSize": "7Gi"}})
    for owner, pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0].get("volumeMounts", [])}
        if owner.startswith("Deployment/") and owner.endswith("-api"):
            assert volumes["exports"]["emptyDir"] == {"sizeLimit": "7Gi"}
            assert mounts["exports"] == "/exports"
        else:
            assert "exports" not in {*volumes, *mounts}, owner
    assert all('export_directory = "/exports"' in text for name, text in configurations(objects).items() if name.endswith("-api"))
    assert "exports" not in [volume["name"] for _, pod in pods(rendered({})) for volume in pod["spec"].get("volumes", [])]
    with pytest.raises(Exception, match="exportsSize"):
        rendered({**values, "console": {**values["console"], "exportsSize": "much"}})


# --- what is passed on


def test_a_tag_that_looks_like_a_number_or_a_word_of_yaml_stays_text() -> None:
    for tag in ("1.10", "y", "1e3", "null"):
        for _, pod in pods(rendered({"image": {"tag": tag}})):
            assert pod["spec"]["containers"][0]["image"] == f"facilitator:{tag}"


def test_the_rules_arrive_whole_with_links_that_lead_to_the_runbooks(tmp_path: Path) -> None:
    plain = rendered({"monitoring": {"prometheusRule": {"enabled": True}}})
    (rule,) = of_kind(plain, "PrometheusRule").values()
    assert rule["spec"] == yaml.safe_load(RULES.read_text("utf-8"))
    (rule,) = of_kind(rendered(values_of("everything")), "PrometheusRule").values()
    links = {one["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one}
    assert all(link.startswith("https://wiki.example/facilitator/operations.md#") for link in links)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    checked = prometheus.run("promtool", ["check", "rules", tmp_path / "rules.yaml"])
    assert checked.returncode == 0, checked.stdout


def test_the_dashboards_arrive_whole() -> None:
    held = rendered({"monitoring": {"dashboards": {"enabled": True}}})[("ConfigMap", "pay-facilitator-dashboards")]
    assert {name.removeprefix("facilitator-").removesuffix(".json"): json.loads(text) for name, text in held["data"].items()} == boards()
    assert held["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_a_new_configuration_rolls_the_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        return str(
            rendered(values)[("Deployment", "pay-facilitator-api")]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        )

    assert checksum({}) == checksum({"service": {"port": 81}})
    assert checksum({}) != checksum({"config": {"settlement": {"deadline_s": 19}}})


def test_the_service_itself_takes_every_configuration(objects: Objects, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the secrets where the pod has them, `facilitator config check` finds nothing to say."""
    for name, text in configurations(objects).items():
        moved = text.replace("/etc/facilitator/secrets", str(tmp_path))
        for path in re.findall(rf"(?:file|keystore):({re.escape(str(tmp_path))}[^\"?]+)", moved):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("something")
        (tmp_path / "facilitator.toml").write_text(moved)
        assert cli.main(["config", "check", "--config", str(tmp_path / "facilitator.toml")]) == 0, name
        said = capsys.readouterr()
        warned = [line for line in said.out.splitlines() if line.startswith("warn") and "one RPC URL only" not in line]
        assert said.err == ""
        assert all("no relayers" in line for line in warned), warned
        assert bool(warned) == ("relayers = []" in text)


def test_the_service_refuses_a_configuration_that_lacks_a_secret(tmp_path: Path) -> None:
    (tmp_path / "facilitator.toml").write_text(configurations(rendered({}))["pay-facilitator-api"])
    assert cli.main(["config", "check", "--config", str(tmp_path / "facilitator.toml")]) == 1


def test_the_notes_begin_with_three_commands(tmp_path: Path) -> None:
    text = (CHART / "templates" / "NOTES.txt").read_text("utf-8")
    assert re.findall(
        r"^[1-9]\. .*\n   (helm test|kubectl .* exec .*facilitator doctor|kubectl .* exec .*facilitator keys create)", text, re.MULTILINE
    )
    # Notes are not among what render() returns, so they are rendered as a ConfigMap's text.
    chart = copied(tmp_path)
    shown = '{"kind": "ConfigMap", "metadata": {"name": "notes"}, "data": {"notes": {{ tpl (.Files.Get "NOTES") . | toJson }}}}'
    (chart / "NOTES").write_text(text)
    (chart / "templates" / "notes.yaml").write_text(shown)
    with helm_python.Chart.load(chart) as loaded:
        (notes,) = [
            json.loads(file)["data"]["notes"] for path, file in loaded.render({}, name="pay", namespace="n").items() if "notes" in path
        ]
    assert "deploy/pay-facilitator-api -- facilitator doctor" in notes
    assert "52 s to answer" in notes


# --- the schema of values


def test_the_values_of_every_example_are_taken() -> None:
    with helm_python.Chart.load(CHART) as chart:
        for name in VALUES:
            chart.validate_schema(chart.merge_values(values_of(name)))


def violations() -> Iterator[tuple[str, dict[str, Any], list[str | int], Any]]:
    """For each rule of the schema, values that break it and nothing else: (rule, valid values, where, what)."""
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    valid = whole_values()
    yield from _broken(schema, schema, valid, valid, [], "values")


def whole_values() -> dict[str, Any]:
    """Values in which every part of the schema is used."""
    with helm_python.Chart.load(CHART) as chart:
        valid: dict[str, Any] = chart.merge_values(values_of("everything"))
    split = values_of("split-roles")
    valid["networks"] = split["networks"]
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    valid["config"] = _sample(schema["definitions"]["config"])
    valid["networks"][1]["settings"] = _sample(schema["definitions"]["networkSettings"])
    valid["nameOverride"], valid["image"]["tag"] = "pay", "1"
    return valid


def _sample(schema: dict[str, Any]) -> Any:
    """Something that the schema of a setting takes."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object":
            return {name: _sample(inner) for name, inner in schema["properties"].items()}
        case "array":
            return [_sample(schema["items"])]
        case "string":
            return "0x" + "00" * 20 if "pattern" in schema else "text"
        case kind:
            return {"boolean": True, "integer": 1, "number": 1.5}[kind]


WRONG: Final = {"string": 7, "integer": "x", "number": "x", "boolean": "x", "object": "x", "array": "x"}


def _broken(
    root: dict[str, Any], rule: dict[str, Any], valid: dict[str, Any], here: Any, path: list[str | int], name: str
) -> Iterator[tuple[str, dict[str, Any], list[str | int], Any]]:
    if "$ref" in rule:
        rule = root["definitions"][rule["$ref"].rpartition("/")[2]]
    for kind, value in (
        ("type", WRONG.get(rule.get("type", ""))),
        ("enum", "no such word" if "enum" in rule else None),
        ("pattern", "\n" if "pattern" in rule else None),
        ("minLength", "" if "minLength" in rule else None),
        ("minimum", rule["minimum"] - 1 if "minimum" in rule else None),
        ("maximum", rule["maximum"] + 1 if "maximum" in rule else None),
        ("minItems", [] if "minItems" in rule else None),
        ("oneOf", {} if "oneOf" in rule else None),
        ("additionalProperties", {**here, "noSuchKey": 1} if rule.get("additionalProperties") is False else None),
    ):
        if value is not None and path:
            yield f"{name}: {kind}", valid, path, value
    for needed in rule.get("required", ()):
        if path:
            yield f"{name}: {needed} required", valid, path, {**here, needed: None}  # Helm drops it
    for key, inner in rule.get("properties", {}).items():
        if isinstance(here, dict) and key in here:
            yield from _broken(root, inner, valid, here[key], [*path, key], f"{name}.{key}")
    if isinstance(here, list) and "items" in rule:
        for index, item in enumerate(here):
            yield from _broken(root, rule["items"], valid, item, [*path, index], f"{name}[{index}]")


def test_each_rule_of_the_schema_refuses_what_breaks_it() -> None:
    rules = list(violations())
    assert len(rules) > 300
    missed = []
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(whole_values())
        for rule, valid, path, value in rules:
            broken = copy.deepcopy(valid)
            place: Any = broken
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
            try:
                chart.validate_schema(broken)
            except helm_python.HelmError:
                continue
            missed.append(rule)
    assert missed == []


REFUSED: Final[dict[str, dict[str, Any]]] = {
    "noSuchKey": {"noSuchKey": 1},
    "password": {"database": {"password": "hunter2"}},
    "networks": {"networks": []},
    "credential": {
        "networks": [
            {"id": "eip155:1", "rpcUrls": [{"url": "https://u:p@rpc.example"}], "relayers": [{"secretName": "a", "secretKey": "b"}]}
        ]
    },
    "private key": {"networks": [{"id": "eip155:1", "rpcUrls": [{"url": "https://rpc.example"}], "relayers": ["0x" + "11" * 32]}]},
    "listen": {"config": {"server": {"listen": "0.0.0.0:1"}}},
    "open": {"config": {"access": {"mode": "open"}}},
    "unknown setting": {"config": {"settlement": {"dead_line_s": 1}}},
    "label": {"podLabels": {"app.kubernetes.io/component": "api"}},
    "environment": {"extraEnv": [{"name": "FACILITATOR__DATABASE__URL", "value": "postgresql://u:p@h/d"}]},
    "route": {"httpRoute": {"enabled": True}},
    "tag": {"image": {"tag": 1.1}},
}


@pytest.mark.parametrize("why", REFUSED)
def test_values_are_refused(why: str) -> None:
    with pytest.raises(helm_python.HelmError):
        rendered(REFUSED[why])


# ---


def copied(directory: Path) -> Path:
    """A chart of the test's own to break."""
    target = directory / "chart"
    for path in CHART.rglob("*"):
        if path.is_file():
            copy_to = target / path.relative_to(CHART)
            copy_to.parent.mkdir(parents=True, exist_ok=True)
            copy_to.write_bytes(path.read_bytes())
    return target


def golden() -> dict[str, str]:
    """The reviewed renders, monitoring left out: its files are tested by themselves."""
    return {f"{name}.yaml": yaml.safe_dump_all(rendered(values_of(name)).values(), sort_keys=True) for name in ("default", "split-roles")}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file, text in golden().items():
        (GOLDEN / file).write_text(text, "utf-8")

"""Every alert fires when it should and only then, has a page to follow, and rests on series that exist."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from facilitator import metrics
from tests.fixtures import prometheus
from tests.ops.alert_cases import SHOWN

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "helm" / "facilitator" / "files" / "rules.yaml"
OPERATIONS: Final = ROOT / "docs" / "operations.md"
CASES: Final = ("firing", "silent", "idle", "restarted")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


ALERTS: Final = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def exported() -> set[str]:
    """Every name that a scrape can hold."""
    names = set()
    for series in vars(metrics).values():
        if isinstance(series, Histogram):
            names |= {series._name + end for end in ("_bucket", "_sum", "_count")}
        elif isinstance(series, MetricWrapperBase):
            names.add(series._name + ("_total" if isinstance(series, Counter) else ""))
    return names


def fires(alert: str, case: str, *, wanted: bool) -> dict[str, Any]:
    """Is the alert firing at its minute? promtool repeats only the expression of what failed, so the case stands in it too."""
    expression = f'count(ALERTS{{alertname="{alert}",case!="{case}",alertstate="firing"}}) or vector(0)'
    return {"expr": expression, "eval_time": f"{SHOWN[alert].minute}m", "exp_samples": [{"labels": "{}", "value": int(wanted)}]}


def packed(case: str, step: int) -> list[list[str]]:
    """Alerts whose series of this case have no name in common: they may be shown theirs at once, which is much faster."""
    packs: list[tuple[set[str], list[str]]] = []
    for alert in (alert for alert in SHOWN if SHOWN[alert].step_minutes == step):
        names = {series.partition("{")[0] for series in getattr(SHOWN[alert], case)}
        for taken, alerts in packs:
            if not taken & names:
                taken.update(names)
                alerts.append(alert)
                break
        else:
            packs.append((names, [alert]))
    return [alerts for _, alerts in packs]


def judge(directory: Path, wanted: Mapping[str, bool]) -> set[tuple[str, str]]:
    """Show each alert its cases; those (alert, case) that did not do what is `wanted` of the case."""
    wrong = set()
    for step in {shown.step_minutes for shown in SHOWN.values()}:
        tests = [
            {
                "interval": f"{step}m",
                "input_series": [
                    {"series": name, "values": values} for alert in pack for name, values in getattr(SHOWN[alert], case).items()
                ],
                "promql_expr_test": [fires(alert, case, wanted=wanted[case]) for alert in pack],
            }
            for case in CASES
            for pack in packed(case, step)
        ]
        file = directory / "tests.yaml"
        file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": f"{step}m", "tests": tests}))
        done = prometheus.run("promtool", ["test", "rules", file])
        found = set(re.findall(r'alertname=\\"(\w+)\\",case!=\\"(\w+)\\"', done.stdout))
        assert bool(found) == (done.returncode != 0), done.stdout
        wrong |= found
    return wrong


def test_promtool_takes_the_rules() -> None:
    done = prometheus.run("promtool", ["check", "rules", RULES])
    assert done.returncode == 0, done.stdout


def test_promtool_refuses_a_broken_rule(tmp_path: Path) -> None:
    broken = tmp_path / "rules.yaml"
    broken.write_text(RULES.read_text("utf-8").replace("max by (network) (", "max by network (", 1))
    assert prometheus.run("promtool", ["check", "rules", broken]).returncode != 0


def test_each_alert_fires_for_its_cause_and_not_in_peace_without_traffic_or_at_a_restart(tmp_path: Path) -> None:
    assert judge(tmp_path, {case: case == "firing" for case in CASES}) == set()


def test_a_wrong_alert_is_noticed_in_every_case(tmp_path: Path) -> None:
    """The gate bites: asked for the contrary, promtool objects to each case."""
    assert judge(tmp_path, {case: case != "firing" for case in CASES}) == {(alert, case) for alert in SHOWN for case in CASES}


def test_no_alert_without_cases_and_no_cases_without_an_alert() -> None:
    assert set(SHOWN) == set(ALERTS)


def test_every_alert_says_how_grave_it_is_what_happens_and_where_to_read_on() -> None:
    for name, alert in ALERTS.items():
        assert re.fullmatch(r"([A-Z][a-z]+)+", name)
        assert alert["labels"] == {"severity": alert["labels"]["severity"]}
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_runbook(name: str) -> None:
    """What it means, how to look, what to do, when it ends."""
    text = OPERATIONS.read_text("utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    found = re.search(rf"^### {name}\n(.*?)(?=^### |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/operations.md has no section {name} under Alerts"
    parts = re.findall(r"^\*\*(Means|Look|Do|Ends)\.\*\* \S", found[1], re.MULTILINE)
    assert parts == ["Means", "Look", "Do", "Ends"], f"{name}: {parts}"
    named = set(re.findall(r"`(facilitator_[a-z_]+)", found[1]))
    assert named <= exported() | {name.removesuffix("_bucket") for name in exported()}, f"{name} names a series that does not exist"


def test_every_setting_that_a_runbook_names_exists() -> None:
    text = OPERATIONS.read_text("utf-8")
    settings = set(re.findall(r"^\| `([a-z_]+(?:\[\])?\.[a-z0-9_.\[\]]+)` \|", text, re.MULTILINE))
    tables = {name.partition(".")[0] for name in settings}
    named = set(re.findall(r"`([a-z_]+(?:\[\])?\.[a-z0-9_]+)`", text.partition("\n## Alerts\n")[2]))
    assert {name for name in named if name.partition(".")[0] in tables} - settings == set()


def test_no_runbook_for_an_alert_that_is_gone() -> None:
    text = OPERATIONS.read_text("utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == set(ALERTS)


def test_every_series_in_an_expression_exists() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        named = set(re.findall(r"\bfacilitator[a-z0-9_:]*", rule["expr"]))
        assert named, rule
        assert named <= exported() | recorded, rule

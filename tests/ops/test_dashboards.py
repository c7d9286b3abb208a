"""The dashboards as files: made by their script, whole, and true to what is exported. Their data is tested in test_live.py."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from tests.ops.boards import DASHBOARDS, boards, panels
from tests.ops.test_alerts import ALERTS, ROOT, exported, rules

UNITS = {"reqps", "ops", "percentunit", "short", "none", "s", "bool_yes_no"}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("helm_dashboards", ROOT / "helm" / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_their_script_makes() -> None:
    made: dict[Path, str] = generator().generated()
    assert {path: path.read_text("utf-8") for path in DASHBOARDS.iterdir()} == made, "run python helm/dashboards.py"


def test_the_four_boards_have_ids_of_their_own_and_a_choice_of_data_source() -> None:
    assert set(boards()) == {"service", "settlement-pipeline", "money", "dependencies"}
    assert len({board["uid"] for board in boards().values()}) == 4
    for board in boards().values():
        assert board["templating"]["list"][0]["type"] == "datasource"
        assert all(len(board["uid"]) <= 40 for board in boards().values())


def test_every_panel_has_unit_description_and_the_chosen_data_source() -> None:
    for name, panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, (name, panel["title"])
        assert len(panel["description"]) > 5, (name, panel["title"])
        assert all(target["datasource"]["uid"] == "${datasource}" for target in [panel, *panel["targets"]])


def test_every_panel_has_a_place_of_its_own() -> None:
    for board in boards().values():
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        titles = [panel["title"] for panel in board["panels"]]
        assert len(set(places)) == len(places) == len(set(titles))


def test_times_are_in_seconds_and_shares_in_parts_of_one() -> None:
    for _, panel in panels():
        expression, unit = panel["targets"][0]["expr"], panel["fieldConfig"]["defaults"]["unit"]
        assert ("histogram_quantile" in expression) <= (unit == "s"), panel["title"]
        assert panel["title"].startswith(("Share", "Connections", "Queue")) == (unit == "percentunit"), panel["title"]


def test_expressions_name_only_what_is_exported() -> None:
    known = exported() | {rule["record"] for rule in rules() if "record" in rule}
    for name, panel in panels():
        for target in panel["targets"]:
            assert set(re.findall(r"\bfacilitator[a-z0-9_:]*", target["expr"])) <= known, (name, panel["title"])


def test_runbook_links_lead_to_alerts_and_every_alert_is_seen_somewhere() -> None:
    linked = {link["title"]: link["url"] for _, panel in panels() for link in panel["links"]}
    assert set(linked) <= set(ALERTS)
    assert all(url == f"docs/operations.md#{alert.lower()}" for alert, url in linked.items())
    unseen = {"RateStale", "LoopFaulting", "LoopCrashed", "NetworkWithdrawn", "RpcAllDown", "VerifyBudgetBurnFast", "VerifyBudgetBurnSlow"}
    assert set(ALERTS) - set(linked) <= unseen

"""Rules, alerts and configurations, by Prometheus's own tools; dashboards against the code that they come from."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from seatrial.cli.main import _VERBS
from seatrial.spec.checks import CHECKS
from seatrial.spec.document import parse_yaml
from seatrial.watch.stack import configuration, files

from .conftest import PATH

PLACE = files()
ALERTS = [
    rule
    for group in parse_yaml((PLACE / "rules/alerts.yml").read_text(), "alerts")["groups"]
    for rule in group["rules"]
]
TESTS = parse_yaml((PLACE / "rules/tests/alerts.yml").read_text(), "tests")["tests"]
DASHBOARDS = sorted((PLACE / "dashboards").glob("*.json"))


def tool(*argv: str) -> str:
    program = shutil.which(argv[0], path=PATH)
    if program is None:
        pytest.skip(f"{argv[0]} is not installed: apt install prometheus prometheus-alertmanager")
    done = subprocess.run([program, *argv[1:]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.integration
@pytest.mark.parametrize("name", ["recording", "alerts"])
def test_promtool_runs_the_tests_of_the_rules(name: str) -> None:
    assert "SUCCESS" in tool("promtool", "test", "rules", str(PLACE / f"rules/tests/{name}.yml"))


@pytest.mark.integration
def test_promtool_and_amtool_read_every_file(tmp_path: Path) -> None:
    tool("promtool", "check", "rules", *map(str, (PLACE / "rules").glob("*.yml")))
    shutil.copytree(PLACE / "rules", tmp_path / "rules")
    text = configuration(
        (PLACE / "prometheus/prometheus.yml").read_text(), ["n1:9431"], ["n1:9400", "n2:9400"], 9093
    )
    assert text.count("9400") == 2
    (tmp_path / "prometheus.yml").write_text(text)
    tool("promtool", "check", "config", str(tmp_path / "prometheus.yml"))
    tool("promtool", "check", "config", "--syntax-only", str(PLACE / "prometheus/slurm.yml"))
    # Debian's promtool is built without Kubernetes' service discovery: all but that is read.
    text = (
        (PLACE / "kubernetes/scrape.yml")
        .read_text()
        .replace("kubernetes_sd_configs: [{role: pod}]", "static_configs: []")
    )
    (tmp_path / "scrape.yml").write_text(text)
    tool("promtool", "check", "config", "--syntax-only", str(tmp_path / "scrape.yml"))
    tool("amtool", "check-config", str(PLACE / "alertmanager/alertmanager.yml"))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_every_alert_is_tested_both_ways_and_says_what_to_do(alert: dict[str, Any]) -> None:
    asked = [t for test in TESTS for t in test["alert_rule_test"] if t["alertname"] == alert["alert"]]
    assert any(t["exp_alerts"] for t in asked) and any(not t["exp_alerts"] for t in asked)
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description", "runbook"} <= set(alert["annotations"])
    runbook = alert["annotations"]["runbook"]
    for verb in re.findall(r"seatrial (\w+)", runbook):
        assert verb in _VERBS
    for named in re.findall(r"--only ([\w,]+)", runbook):
        assert set(named.split(",")) <= set(CHECKS)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_what_the_code_makes(path: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="needs grafana-foundation-sdk")
    spec = importlib.util.spec_from_file_location("dashboards", PLACE / "dashboards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert sorted(module.BOARDS) == [p.stem for p in DASHBOARDS]
    assert path.read_text() == module.text_of(path.stem), "run deploy/monitoring/dashboards.py"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_have_places_for_their_panels(path: Path) -> None:
    board = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        where = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(where["x"], where["x"] + where["w"])
            for y in range(where["y"], where["y"] + where["h"])
        }
        assert not cells & taken, panel["title"]
        assert where["x"] + where["w"] <= 24 and panel["title"] and panel["targets"]
        taken |= cells
    assert board["uid"].startswith("seatrial-") and "null" not in path.read_text()

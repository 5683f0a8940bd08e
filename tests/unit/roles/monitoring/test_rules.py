# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Alerts fire when they should, and rules, limits, tests and the table of what is watched fit together.

promtool runs what is in the folder rules on made series.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
ROLE = ROOT / "roles/monitoring"
RULES = ROLE / "files/etc/prometheus/rules"
LIMITS = yaml.safe_load((ROLE / "vars/limits.yml").read_text())["__monitoring_limits"]
MADE = {
    path.name: yaml.safe_load(path.read_text()) for path in sorted(Path(__file__).with_name("rules").glob("*.test.yml"))
}
WATCHED = ROLE / "WATCHED.md"

# What rules may name beside records: what the collector and mailreport tell, node_exporter and Prometheus.
COLLECTOR = (ROLE / "files/usr/local/libexec/site_metrics.py").read_text()
REPORT = (ROOT / "roles/mail_report/files/mailreport/mailreport/metrics.py").read_text()
SITE = [
    *re.findall(r'^    "([a-z_]+)": \("(?:gauge|counter)"', COLLECTOR, re.M),
    *(f"mailreport_{name}" for name in re.findall(r'\b_one\(\s*"([a-z_]+)"', REPORT)),
    *re.findall(r'\bMetric\("([a-z_]+)"', REPORT),
]
NODE = [
    "node_cpu_seconds_total",
    "node_filesystem_avail_bytes",
    "node_filesystem_files",
    "node_filesystem_files_free",
    "node_filesystem_size_bytes",
    "node_load5",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
    "node_textfile_mtime_seconds",
    "node_time_seconds",
]
OWN = ["up"]
WORDS = {"and", "or", "unless", "offset", "bool", "avg", "count", "count_values", "max", "min", "sum"}

# What is in an expression beside names of metrics and words: labels in braces and in parentheses, durations, numbers
# and functions. Texts are gone before, as they may have braces in them.
TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
OTHER = re.compile(
    r"\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
    r"|\b[0-9][0-9.a-z]*\b|[A-Za-z_:][A-Za-z0-9_:]*(?=\s*\()"
)
NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")


def read_rules() -> list[dict[str, Any]]:
    """Give all rules of the files."""
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in read_rules() if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in read_rules() if "record" in rule}


def metrics(expression: str) -> set[str]:
    """Give the names of metrics in an expression."""
    return set(NAME.findall(OTHER.sub(" ", TEXT.sub("", expression)))) - WORDS


def rendered_limits(own: dict[str, float]) -> str:
    """Give the rule file of the limits as the role writes it."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string((ROLE / "templates/etc/prometheus/rules/limits.yml.j2").read_text())
    return template.render(ansible_managed="Ansible managed", __monitoring_limits=LIMITS, monitoring_limits=own)


def recorded(limits: str) -> dict[str, str]:
    """Give the expression of each recording rule in the text of a rule file."""
    return {rule["record"]: rule["expr"] for group in yaml.safe_load(limits)["groups"] for rule in group["rules"]}


def complete(test: dict[str, Any]) -> dict[str, Any]:
    """Add what an alert always says, its severity, its reason and its runbook, to what a test expects."""
    for case in test.get("alert_rule_test", []):
        rule = ALERTS[case["alertname"]]
        fixed = {name: text for name, text in rule["annotations"].items() if name != "summary"}
        case["exp_alerts"] = [
            {
                "exp_labels": {**rule["labels"], **alert["exp_labels"]},
                "exp_annotations": {**fixed, **alert["exp_annotations"]},
            }
            for alert in case["exp_alerts"]
        ]
    return test


def cases_of(name: str) -> list[dict[str, Any]]:
    """Give what a file of tests expects of alerts."""
    return [case for test in MADE[name]["tests"] for case in test.get("alert_rule_test", [])]


@pytest.fixture(scope="module")
def promtool():
    """A function that runs promtool in a folder and gives its exit code and what it printed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is missing: install the package prometheus, or Prometheus' own archive")

    def run(folder: Path, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [program, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder with the rule files as the role writes them."""
    for path in RULES.glob("*.yml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "limits.yml").write_text(rendered_limits({}))
    return tmp_path


def test_promtool_takes_the_rules(promtool, folder):
    code, text = promtool(folder, "check", "rules", *sorted(path.name for path in folder.iterdir()))
    assert code == 0, text


@pytest.mark.parametrize("name", MADE)
def test_alerts_fire_when_they_should(promtool, folder, name):
    made = copy.deepcopy(MADE[name])
    made["tests"] = list(map(complete, made["tests"]))
    # Prometheus evaluates groups side by side; promtool in any order, by which values would be a minute older or not.
    made["group_eval_order"] = [
        group["name"] for file in made["rule_files"] for group in yaml.safe_load((folder / file).read_text())["groups"]
    ]
    (folder / name).write_text(yaml.safe_dump(made, sort_keys=False))
    code, text = promtool(folder, "test", "rules", name)
    assert code == 0, text


def test_limits_are_those_of_the_site_first(promtool, folder):
    limits = rendered_limits({"host_load_per_cpu": 6.5, "certificate_seconds": 86400})
    values = recorded(limits)
    assert values["limit:host_load_per_cpu"] == "vector(6.5)"
    assert values["limit:certificate_seconds"] == "vector(86400)"
    assert values["limit:host_cpu_ratio"] == f"vector({LIMITS['host_cpu_ratio']['value']})"
    assert set(values) == {f"limit:{name}" for name in LIMITS}
    assert limits.startswith("# Ansible managed\n")
    (folder / "limits.yml").write_text(limits)
    code, text = promtool(folder, "check", "rules", "limits.yml")
    assert code == 0, text


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_limit_has_a_value_a_unit_and_a_reason_and_is_used(name):
    assert set(LIMITS[name]) == {"value", "unit", "reason"}
    assert isinstance(LIMITS[name]["value"], (int, float))
    assert LIMITS[name]["reason"].endswith(".")
    assert any(f"limit:{name}" in metrics(rule["expr"]) for rule in ALERTS.values())


def test_rules_name_what_there_is():
    known = {*SITE, *NODE, *OWN, *RECORDS, *(f"limit:{name}" for name in LIMITS)}
    unknown = {rule.get("alert", rule.get("record")): metrics(rule["expr"]) - known for rule in read_rules()}
    assert {name: missing for name, missing in unknown.items() if missing} == {}


def test_names_of_metrics_are_found():
    expression = (
        'max by (instance) (a_total{x="y}", z=~"b.*"}) > scalar(limit:c) * 3600 '
        'or on (d) label_replace(e:f:sum offset 1d, "g", "$1", "h", "(.+)") unless rate(i_total[5m]) == bool 1e3'
    )
    assert metrics(expression) == {"a_total", "limit:c", "e:f:sum", "i_total"}


def test_names_are_there_once():
    assert len(read_rules()) == len(ALERTS) + len(RECORDS)


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_says_what_why_and_what_to_do(name):
    rule = ALERTS[name]
    assert set(rule["annotations"]) == {"summary", "reason", "runbook"}
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert "{{ $labels." in rule["annotations"]["summary"]
    assert not re.search(r"\$value(?! \| humanize)", rule["annotations"]["summary"])
    for text in rule["annotations"].values():
        assert "\n" not in text.strip()
    assert rule["annotations"]["reason"].endswith(".")
    # Names of playbooks and modules that there are.
    for found in re.findall(r"tenfold\.stack\.(\w+)", rule["annotations"]["runbook"]):
        assert any((ROOT / path).exists() for path in (f"playbooks/{found}.yml", f"plugins/modules/{found}.py")), found


def test_no_limit_is_a_literal():
    """Only what is so by its meaning is compared with a number: down, more than one, the end of something."""
    meant = {"up == 0", "== 0", "== 1", "> 0", ">= 0", "> 1"}
    for name, rule in ALERTS.items():
        found = re.findall(r"[<>=!]=?\s*(?:bool\s+)?\d+(?:\.\d+)?", re.sub(r"\{[^}]*\}", "", rule["expr"]))
        assert {" ".join(text.split()) for text in found} <= meant, name


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_is_shown_to_fire_and_not_to(name):
    cases = [case for file in MADE for case in cases_of(file) if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases)


def watched() -> list[list[str]]:
    """Give the rows of the table, each a list of cells: thing, metrics, alerts, panels, tests."""
    lines = [line for line in WATCHED.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def quoted(cell: str) -> list[str]:
    """Give what is between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def panels() -> set[str]:
    """Give all panels as dashboard: title."""
    found = set()
    for path in (ROLE / "dashboards").glob("*.yml"):
        board = yaml.safe_load(path.read_text())
        found |= {f"{board['title']}: {panel['title']}" for row in board["rows"] for panel in row["panels"]}
    return found


def test_what_is_watched_is_there():
    known, there = {*SITE, *NODE, *OWN, *RECORDS}, panels()
    scenario = ROOT / "molecule/monitoring/tests/test_monitoring.py"
    functions = set(re.findall(r"^def (test_\w+)", scenario.read_text(), re.M)) if scenario.exists() else set()
    for thing, names, alerts, shown, tests in watched():
        assert set(quoted(names)) <= known, thing
        assert names
        assert set(quoted(alerts)) <= set(ALERTS), thing
        assert alerts
        assert set(quoted(shown)) <= there, thing
        assert shown
        files = {name for name in quoted(tests) if name.endswith(".test.yml")}
        assert files <= set(MADE), thing
        assert set(quoted(tests)) - files <= functions, thing


def test_every_alert_is_in_the_table_with_its_metric_and_its_test():
    rows = watched()
    assert {name for row in rows for name in quoted(row[2])} == set(ALERTS)
    tested = {file: {case["alertname"] for case in cases_of(file) if case["exp_alerts"]} for file in MADE}
    for row in rows:
        for name in quoted(row[2]):
            assert metrics(ALERTS[name]["expr"]) & set(quoted(row[1])), f"{row[0]}: {name} is of another metric"
            assert any(name in tested[path] for path in quoted(row[4]) if path in tested), f"{row[0]}: {name}"

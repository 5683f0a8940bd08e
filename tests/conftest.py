# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which scenarios run, and how long each took."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tested(scenario: Path) -> int:
    """Give how much a scenario tests, in bytes."""
    return sum(path.stat().st_size for path in scenario.rglob("test_*.py"))


# The longest first, as two run at a time: a long one at the end would run alone.
SCENARIOS = [path.parent.name for path in sorted(ROOT.glob("molecule/*/molecule.yml"), key=lambda p: -tested(p.parent))]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scenario", choices=SCENARIOS, help="run only this one of the scenarios")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scenario" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("scenario")
        metafunc.parametrize("scenario", [chosen] if chosen else SCENARIOS)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        (report, outcome)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call" and "test_scenarios.py::" in report.nodeid
    ]
    if reports:
        terminalreporter.section("wall time of the scenarios")
    for report, outcome in reports:
        name = report.nodeid.partition("[")[2].rstrip("]")
        seconds = dict(report.user_properties).get("seconds", report.duration)
        terminalreporter.write_line(f"{seconds:6.0f} s  {name}: {outcome}")

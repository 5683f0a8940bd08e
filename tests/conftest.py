# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the scenarios run, and how long each took.

A scenario waits for half of its time, so two run side by side where the machine allows that many test hosts. The other
tests take the place of one of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore

import pytest

ROOT = Path(__file__).resolve().parent.parent
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")  # of which two large scenarios take more than the usual 128

OTHERS = pytest.StashKey[Semaphore]()


# Scenarios with many hosts begin first, as two run at a time: a long one at the end would run alone.
LONGEST = ("mail", "pool", "site")
SCENARIOS = [*LONGEST, *sorted({path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")} - set(LONGEST))]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scenario", choices=SCENARIOS, help="run only this one of the scenarios")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == "test_scenarios.py")  # last, and else as they were


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scenario" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("scenario")
        metafunc.parametrize("scenario", [chosen] if chosen else SCENARIOS)


def running(scenario: str) -> bool:
    """Whether test hosts of a scenario exist."""
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"label=tenfold.scenario={scenario}"]
    return subprocess.run(command, check=True, capture_output=True).stdout != b""


def molecule_test(scenario: str, slots: Semaphore) -> tuple[int, Path, float]:
    """Run a scenario; give Molecule's status, the log and the seconds that it took."""
    log = Path(os.environ["TENFOLD_CACHE"]) / "logs" / f"{scenario}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with slots, log.open("wb") as output:
        start = time.monotonic()
        # `molecule test` removes the test hosts at its end and after a failure alike.
        command = [str(Path(sys.executable).with_name("molecule")), "test", "--scenario-name", scenario]
        status = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    return status, log, time.monotonic() - start


@pytest.fixture(scope="session", autouse=True)
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[tuple[int, Path, float]]]]:
    """The runs of all chosen scenarios: begun before the first test, and waited for by those that look at them."""
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [str(item.callspec.params["scenario"]) for item in functions if "scenario" in item.fixturenames]
    if not chosen or "TENFOLD_IMAGE_EL" not in os.environ:
        yield {}
        return
    places = 2 if int(INOTIFY.read_text()) > 128 else 1
    slots = Semaphore(places - 1)
    request.session.stash[OTHERS] = slots
    with ThreadPoolExecutor(max_workers=places) as executor:
        started = [name for name in chosen if not (name == "site" and running(name))]
        yield {name: executor.submit(molecule_test, name, slots) for name in started}
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def others_are_done(request: pytest.FixtureRequest) -> None:
    """Leave the place of the other tests to a scenario."""
    if slots := request.session.stash.get(OTHERS, None):
        slots.release()


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

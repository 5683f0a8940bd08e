# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every Molecule scenario: test hosts are made, converged, checked and removed, also when something failed.

A scenario waits for half of its time, so two run side by side where the machine allows that many test hosts.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 80  # lines of the log of a scenario that failed, and at most as many that name a failure
TELLING = re.compile(r"E  |FAILED |ERROR |fatal: |\[ERROR\]")
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")  # of which two large scenarios take more than the usual 128
ANSI = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\]8;[^\x07\x1b]*(\x07|\x1b\\))")  # colours and links


def running(scenario: str) -> bool:
    """Whether test hosts of a scenario exist."""
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"label=tenfold.scenario={scenario}"]
    return subprocess.run(command, check=True, capture_output=True).stdout != b""


def excerpt(log: str) -> list[str]:
    """Give why a scenario failed: the end before its hosts were removed, and each line that names a failure."""
    lines = ANSI.sub("", log).splitlines()
    removal = [number for number, line in enumerate(lines) if line.endswith("destroy: Executing")]
    before = lines[: removal[-1]] if len(removal) > 1 else lines  # the first removes what an earlier run left
    return [*before[-SHOWN:], "Failures named in the log:", *list(filter(TELLING.match, before))[-SHOWN:]]


def molecule_test(scenario: str) -> tuple[int, Path, float]:
    """Run a scenario; give Molecule's status, the log and the seconds that it took."""
    log = Path(os.environ["TENFOLD_CACHE"]) / "logs" / f"{scenario}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("wb") as output:
        # `molecule test` removes the test hosts at its end and after a failure alike.
        command = [str(Path(sys.executable).with_name("molecule")), "test", "--scenario-name", scenario]
        status = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    return status, log, time.monotonic() - start


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[tuple[int, Path, float]]]]:
    """The runs of all chosen scenarios: begun here, so that the next one runs while a test waits for its own."""
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [str(item.callspec.params["scenario"]) for item in functions if "scenario" in item.fixturenames]
    executor = ThreadPoolExecutor(max_workers=2 if int(INOTIFY.read_text()) > 128 else 1)
    yield {name: executor.submit(molecule_test, name) for name in chosen if not (name == "site" and running(name))}
    executor.shutdown(cancel_futures=True)


@pytest.mark.skipif(
    "TENFOLD_IMAGE_EL" not in os.environ, reason="no test hosts: run `make test`, which makes their images"
)
def test_scenario(
    scenario: str,
    runs: dict[str, Future[tuple[int, Path, float]]],
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    if scenario not in runs:
        pytest.skip("the example site runs, and a test would end it: `make clean` first")
    with capsys.disabled():
        print(f"\nscenario {scenario}: see {os.environ['TENFOLD_CACHE']}/logs/{scenario}.log", flush=True)
    status, log, seconds = runs[scenario].result()
    record_property("seconds", seconds)
    if status != 0:
        lines = excerpt(log.read_text(errors="replace"))
        pytest.fail("\n".join([*lines, f"{log}: molecule ended with status {status}"]), pytrace=False)

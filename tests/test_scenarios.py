# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every Molecule scenario: test hosts are made, converged, checked and removed, also when something failed.

They begin with the first test of all, one beside the other tests and then two side by side: see conftest.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 120  # lines of the log of a scenario that failed, and at most as many that name a failure
TELLING = re.compile(r"E  |FAILED |ERROR |fatal: |\[ERROR\]")
ANSI = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\]8;[^\x07\x1b]*(\x07|\x1b\\))")  # colours and links


def excerpt(log: str) -> list[str]:
    """Give why a scenario failed: the tests that did, else the end before its hosts were removed."""
    lines = ANSI.sub("", log).splitlines()
    removal = [number for number, line in enumerate(lines) if line.endswith("destroy: Executing")]
    before = lines[: removal[-1]] if len(removal) > 1 else lines  # the first removes what an earlier run left
    sections = [number for number, line in enumerate(before) if re.match(r"=+ .* =+$", line)]
    failures = [number for number in sections if before[number].strip("= ") == "FAILURES"]
    if failures:
        end = next((number for number in sections if number > failures[-1]), len(before))
        shown = before[failures[-1] : end]
    else:
        shown = before
    return [*shown[-SHOWN:], "Failures named in the log:", *list(filter(TELLING.match, before))[-SHOWN:]]


@pytest.mark.usefixtures("others_are_done")
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

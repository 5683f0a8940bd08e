#!/usr/bin/env python3
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the ingest of an hour of logs beside pflogsumm, which only sums up, on the same lines in the same run.

Prints a table and writes ``bench/results/mail_ingest.json``. The logs stay in --folder for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import make_logs

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "roles/mail_report/files/mailreport"
RESULTS = ROOT / "bench/results/mail_ingest.json"
HOUR = datetime.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
LINES_AN_HOUR = 37_000_000  # of 100 million mails a day
GOALS = {"lines per CPU-second": 8, "wall": 15}  # times pflogsumm's
INGEST = """
import sys
from pathlib import Path
from mailreport import ingest
from mailreport.settings import Settings
made = ingest.Hours(Settings(logs=Path(sys.argv[1]), lake=Path(sys.argv[2]), handover=(sys.argv[3],))).run()
assert made, "no hour was made"
"""


def own_python(folder: Path) -> Path:
    """Give a Python that has what the role installs, and no more: libraries load others that they find."""
    python = folder / "venv/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
        install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--require-hashes", "--requirement"]
        subprocess.run([python, *install, PROJECT / "requirements.txt"], check=True)
    return python


def measured(*command: str | Path, stdout: int | None = subprocess.DEVNULL) -> dict[str, float]:
    """Run a program; give its wall and CPU seconds, and the most memory that it and its children had, in MB."""
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([str(word) for word in command], stdout=stdout, env=environment)
    _pid, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "wall": time.monotonic() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss / 1024,
    }


def main() -> None:
    """Make the logs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache/mail_ingest", help="default: %(default)s")
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3, help="of the ingest; pflogsumm runs once")
    given = parser.parse_args()
    logs, lake = given.folder / f"logs-{given.lines}", given.folder / "lake"
    shutil.rmtree(logs, ignore_errors=True)
    print(f"making {given.lines} lines", flush=True)
    lines = make_logs.make(logs, HOUR, given.lines)
    whole = given.folder / "whole.log"
    with whole.open("wb") as file:
        for path in sorted(logs.glob("*/*.log")):
            file.write(path.read_bytes())
    print("pflogsumm", flush=True)
    theirs = measured("pflogsumm", whole)
    python = own_python(given.folder)
    measured(python, "-c", "from mailreport import postfix; postfix.parse(b'', '')")  # compiled, and kept
    ours = []
    for _run in range(given.runs):
        print("mailreport", flush=True)
        shutil.rmtree(lake, ignore_errors=True)
        ours.append(measured(python, "-c", INGEST, logs, lake, make_logs.FALLBACK))
    report({"lines": lines, "bytes": whole.stat().st_size, "pflogsumm": theirs, "mailreport": ours})
    whole.unlink()


def report(found: dict[str, Any]) -> None:
    """Print the table, and write what it is made of."""
    median = {name: statistics.median(run[name] for run in found["mailreport"]) for name in found["pflogsumm"]}
    print(f"\n{found['lines']} lines, {found['bytes'] / 1e6:.0f} MB, {os.cpu_count()} processors")
    print(f"{'':12}{'wall s':>10}{'CPU s':>10}{'lines/CPU-s':>14}{'memory MB':>12}")
    for name, run in {"pflogsumm": found["pflogsumm"], "mailreport": median}.items():
        print(f"{name:12}{run['wall']:10.1f}{run['cpu']:10.1f}{found['lines'] / run['cpu']:14.0f}{run['memory']:12.0f}")
    ratios = {
        "lines per CPU-second": found["pflogsumm"]["cpu"] / median["cpu"],
        "wall": found["pflogsumm"]["wall"] / median["wall"],
    }
    for name, goal in GOALS.items():
        print(f"{name}: {ratios[name]:.1f} times pflogsumm's (goal {goal})")
    hour = median["wall"] * LINES_AN_HOUR / found["lines"]
    print(f"an hour of 100 million mails a day, extrapolated: {hour:.0f} s (goal 60)")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**found, "ratios": ratios, "hour": hour}, indent=2) + "\n")


if __name__ == "__main__":
    main()

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the load program that the scenario pool uses: its report tells the truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from load import Load
from pymemcache.client.base import Client

PROGRAM = Path(__file__).resolve().parents[3] / "molecule/pool/load/load.py"


@pytest.fixture
def cache(start_node):
    """A client of a node."""
    return Client(("127.0.0.1", start_node().port), default_noreply=False)


def test_report_of_a_run(start_node, tmp_path):
    stop, report = tmp_path / "stop", tmp_path / "report"
    options = ["--proxy", f"127.0.0.1:{start_node().port}", "--keys", "100", "--until-file", stop, "--report", report]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the recipe is copied beside it in the scenario
    with subprocess.Popen([sys.executable, PROGRAM, *options], env=env) as process:
        while process.poll() is None and not (
            report.exists() and len(json.loads(report.read_text())["operations"]) == 5
        ):
            time.sleep(0.1)
        stop.touch()
    assert process.returncode == 0
    told = json.loads(report.read_text())
    assert told["ended"]
    assert (told["errors"], told["stale"], told["wrong"], told["messages"]) == (0, 0, 0, [])
    assert set(told["operations"]) == {"get", "set", "get_many", "delete", "incr"}
    assert sum(second["operations"] for second in told["timeline"]) == sum(told["operations"].values()) > 100
    assert told["hits"] > told["misses"] > 0
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p99"] <= told["latency_ms"]["max"]


def test_old_and_foreign_values_are_noticed(cache):
    load = Load(cache, keys=1)
    key = load.key()
    load.write(key)
    old = cache.get(key)
    load.write(key)
    load.get()
    assert (load.counts["hits"], load.counts["stale"], load.counts["wrong"]) == (1, 0, 0)
    cache.set(key, old)
    load.get()
    assert (load.counts["stale"], load.counts["wrong"]) == (1, 0)
    cache.set(key, b"other:1 1 x")
    load.get_many()
    assert (load.counts["stale"], load.counts["wrong"]) == (1, 1)
    load.delete()
    cache.set(key, old)
    load.get()
    assert load.counts["stale"] == 2


def test_increment_that_was_done_twice_is_noticed(cache, monkeypatch):
    monkeypatch.setattr("random.randrange", lambda _end: 0)
    load = Load(cache, keys=1)
    load.incr()
    load.incr()
    assert load.counts["wrong"] == 0
    cache.incr(f"{load.prefix}:counter:0", 1)
    load.incr()
    assert load.counts["wrong"] == 1


def test_errors_are_told():
    load = Load(Client(("127.0.0.1", 1)), keys=1)
    for _number in range(12):
        load.get()
    assert (load.counts["errors"], load.counts["misses"], len(load.told)) == (12, 0, 10)
    assert load.told[0]["message"].startswith("ConnectionRefusedError")

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dashboards ask for what there is, a real Prometheus understands them, and every panel shows something.

What Prometheus knows is made up here: each metric of the collector, of mailreport and of node_exporter that the role
gives, and what the rules record. So a label that a query needs and nobody gives is found, too.
"""

from __future__ import annotations

import ast
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import yaml

ROOT = Path(__file__).resolve().parents[4]
ROLE = ROOT / "roles/monitoring"
DASHBOARDS = sorted((ROLE / "files/grafana").glob("*.json"))
SOURCES = sorted((ROLE / "dashboards").glob("*.yml"))
COLLECTOR = ROLE / "files/usr/local/libexec/site_metrics.py"
REPORT = ROOT / "roles/mail_report/files/mailreport/mailreport/metrics.py"
MINUTES = 60
STEP = 15
POOL = {"pool": "cache.site.test"}

MAIL = {"mx-01": "primary", "mx-02": "primary", "fallback-01": "fallback"}
CACHES = ["cache-01", "cache-02", "cache-03"]
CLIENTS = ["client-01", "client-02"]
HOSTS = [*MAIL, "log-01", *CACHES, *CLIENTS]
QUEUES = {"maildrop": 0, "incoming": 4, "active": 20, "deferred": 40, "hold": 2, "corrupt": 0}
OUTCOMES = {"delivered": 900, "deferred": 60, "bounced": 14, "expired": 2}
DOMAINS = {"example.org": 1, "example.net": 0.6, "slow.test": 0.4, "example.com": 0.2}


def steady(value):
    """A value that stays."""
    return lambda at: value


def wave(mean, share=0.3, minutes=17.0, phase=0.0):
    """A value that goes up and down around its mean."""
    return lambda at: mean * (1 + share * math.sin(at / 60 / minutes * 2 * math.pi + phase))


def rising(rate, phase=0.0):
    """A counter: about as much a second."""
    return lambda at: rate * (at % 1e6 + 200 * math.sin(at / 300 + phase) + 1000)


def age(seconds):
    """A time that is always as long ago."""
    return lambda at: at - seconds


def made():
    """Each series: its metric, its labels, and its value by the time."""
    for number, host in enumerate(HOSTS):
        node = {"instance": host, "job": "node"}
        yield "up", node, steady(1)
        yield "instance:node_cpu:ratio", {"instance": host}, wave(0.1 + 0.05 * number, 0.5, phase=number)
        yield "instance:node_load:per_cpu", {"instance": host}, wave(0.3 + 0.1 * number, 0.4, phase=number)
        yield "instance:node_memory_used:ratio", {"instance": host}, wave(0.3 + 0.06 * number, 0.05, phase=number)
        yield (
            "instance:node_filesystem_used:ratio",
            {"instance": host, "mountpoint": "/"},
            wave(0.2 + 0.05 * number, 0.02),
        )
        disk = {**node, "mountpoint": "/", "fstype": "xfs", "device": "/dev/vda1"}
        yield "node_filesystem_files", disk, steady(1e6)
        yield "node_filesystem_files_free", disk, wave(8e5, 0.05, phase=number)
        for cpu in "01":
            for mode, rate in {"idle": 0.7, "user": 0.17, "system": 0.06, "iowait": 0.05, "softirq": 0.02}.items():
                yield "node_cpu_seconds_total", {**node, "cpu": cpu, "mode": mode}, rising(rate, len(mode))
        yield "node_disk_io_time_seconds_total", {**node, "device": "vda"}, rising(0.2)
        for device, rate in {"lo": 1e3, "eth0": 1e6}.items():
            yield "node_network_receive_bytes_total", {**node, "device": device}, rising(rate)
            yield "node_network_transmit_bytes_total", {**node, "device": device}, rising(rate / 3, 1)
        yield "node_time_seconds", node, age(0.02 * number)
        yield "site_metrics_timestamp_seconds", node, lambda at: at - at % 15
        kinds = {"mail_logs": host in MAIL or host == "log-01", "postfix": host in MAIL, "memcached": host in CACHES}
        for source in (kind for kind, there in kinds.items() if there):
            labels = {**node, "source": source, "name": "default"}
            yield "site_metrics_success", labels, steady(0 if (host, source) == ("cache-03", "memcached") else 1)
            yield "site_metrics_duration_seconds", labels, wave(0.02, 0.5, phase=number)
    for number, (host, tier) in enumerate(MAIL.items()):
        postfix = {"instance": host, "job": "node", "name": "postfix", "tier": tier}
        name = {key: postfix[key] for key in ("instance", "name", "tier")}
        size = 30 if tier == "fallback" else 1
        yield "postfix_up", postfix, steady(1)
        for queue, count in QUEUES.items():
            labels = {**postfix, "queue": queue}
            yield "postfix_queue_messages", labels, wave(count * size, 0.4, phase=number)
            yield "postfix_queue_bytes", labels, wave(count * size * 2e4, 0.4, phase=number)
            yield "postfix_queue_oldest_age_seconds", labels, wave(count * size * 40, 0.4, phase=number)
        yield "instance:postfix_queue_messages:sum", name, wave(66 * size, 0.4, phase=number)
        yield "instance:postfix_queue_waiting:sum", name, wave(64 * size, 0.4, phase=number)
        yield "instance:postfix_queue_volume_used:ratio", name, wave(0.1 + 0.1 * number, 0.2)
        yield "postfix_queue_volume_size_bytes", postfix, steady(2e10)
        yield "postfix_queue_volume_free_bytes", postfix, wave(1.6e10, 0.1)
        yield "postfix_queue_volume_files", postfix, steady(1e6)
        yield "postfix_queue_volume_files_free", postfix, wave(9e5, 0.05)
        yield "mail_logs_waiting_bytes", {"instance": host, "job": "node"}, wave(5e5 * (number + 1))
        yield "certificate_not_after_timestamp_seconds", {**postfix, "path": "/etc/pki/tls/certs/mx.crt"}, age(-4e6)
        received = {"instance": "log-01", "job": "node", "sender": host}
        yield "mail_logs_received_timestamp_seconds", received, age(20 + 10 * number)
        yield "sender:mail_logs_silence:seconds", {"instance": "log-01", "sender": host}, wave(20 + 10 * number)
    for tier, size in {"primary": 2, "fallback": 30}.items():
        yield "tier:postfix_queue_messages:sum", {"tier": tier}, wave(66 * size, 0.4)
        yield "tier:postfix_queue_oldest_age:max", {"tier": tier}, wave(1600 * size, 0.4)
    log = {"instance": "log-01", "job": "node"}
    for domain, share in DOMAINS.items():
        for outcome, count in OUTCOMES.items():
            yield "mailreport_attempts", {**log, "domain": domain, "outcome": outcome}, wave(count * share, 0.2)
        yield "domain:mail_deferred:ratio", {"domain": domain}, wave(0.06 / share, 0.3, phase=share)
    yield "mailreport_lag_seconds", log, wave(30)
    yield "mailreport_ingest_timestamp_seconds", log, age(200)
    yield "mailreport_newest_attempt_timestamp_seconds", log, age(12)
    yield "mailreport_metrics_timestamp_seconds", log, lambda at: at - at % 60
    yield "mailreport_unparsed_lines", log, steady(3)
    yield "mailreport_lake_bytes", log, wave(3e9, 0.05)
    yield "volume_size_bytes", {**log, "name": "lake"}, steady(1e11)
    yield "volume_free_bytes", {**log, "name": "lake"}, wave(8e10, 0.02)
    for number, host in enumerate(CACHES):
        node = {"instance": host, "job": "node", "name": "default", **POOL}
        name = {key: node[key] for key in ("instance", "name", "pool")}
        yield "memcached_up", node, steady(0 if host == "cache-03" else 1)
        yield "memcached_version", {**node, "version": "1.6.39"}, steady(1)
        yield "memcached_uptime_seconds", node, lambda at: at % 1e6
        for command, status in (("get", "hit"), ("get", "miss"), ("set", "hit"), ("delete", "hit")):
            rate = 900 if status == "hit" and command == "get" else 80
            yield "memcached_commands_total", {**node, "command": command, "status": status}, rising(rate, number)
        yield "instance:memcached_hits:ratio5m", name, wave(0.9, 0.05, phase=number)
        yield "instance:memcached_memory_used:ratio", name, wave(0.7 + 0.1 * number, 0.03)
        yield "memcached_current_items", node, wave(4e5, 0.1, phase=number)
        yield "memcached_current_bytes", node, wave(7e7, 0.1, phase=number)
        yield "memcached_limit_bytes", node, steady(1.05e8)
        yield "memcached_items_evicted_total", node, rising(2, number)
        yield "memcached_items_reclaimed_total", node, rising(1, number)
        yield "memcached_current_connections", node, wave(300 + 50 * number, 0.1)
        yield "memcached_max_connections", node, steady(1024)
        yield "memcached_connections_total", node, rising(3, number)
        yield "memcached_connections_rejected_total", node, steady(0)
        yield "memcached_connections_listener_disabled_total", node, steady(0)
        yield "memcached_read_bytes_total", node, rising(4e5, number)
        yield "memcached_written_bytes_total", node, rising(2e6, number)
    yield "pool:memcached_hits:ratio5m", POOL, wave(0.9, 0.03)
    yield "pool:memcached_evictions:rate5m", POOL, wave(6, 0.3)
    yield "pool:memcached_connections_used:ratio", POOL, wave(0.4, 0.1)
    for number, host in enumerate(CLIENTS):
        node = {"instance": host, "job": "node", "name": "default"}
        yield "memcached_proxy_up", node, steady(1)
        yield "memcached_proxy_current_connections", node, wave(40 + 9 * number)
        for command in ("mg", "ms"):
            yield "memcached_proxy_commands_total", {**node, "command": command, "status": "any"}, rising(300, number)
        view = {"instance": host, "job": "node", **POOL}
        for source in ("inventory", "proxy"):
            yield "pool_members", {**view, "source": source}, steady(3)
            yield "pool_members_digest", {**view, "source": source}, steady(187723572702975)
    alert = {"alertname": "MemcachedDown", "alertstate": "firing", "severity": "page", "instance": "cache-03"}
    yield "ALERTS", {**alert, "job": "node", "name": "default", **POOL}, steady(1)
    for limit, about in yaml.safe_load((ROLE / "vars/limits.yml").read_text())["__monitoring_limits"].items():
        yield f"limit:{limit}", {}, steady(about["value"])


def queries(board):
    """The title of each panel with its queries."""
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", ())]


def metrics(query):
    """The names in a query that are those of metrics; functions, labels and words of the language are none."""
    query = re.sub(r'"[^"]*"', "", query)
    query = re.sub(r"\{[^}]*\}", "", query)
    query = re.sub(r"\b(by|on|group_left|ignoring|without)\s*\([^)]*\)", "", query)
    words = {"or", "and", "unless", "bool", "offset", "by", "on", "group_left", "d", "m", "h", "e9"}
    return {name for name in re.findall(r"\b[a-zA-Z_][\w:]*(?!\w*\s*\()\b", query) if name not in words}


def records():
    """The series that the rules record, with what they are made of."""
    files = [yaml.safe_load(path.read_text()) for path in (ROLE / "files/etc/prometheus/rules").glob("*.yml")]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    return {rule["record"]: rule["expr"] for rule in rules if "record" in rule}


def collected():
    """The metrics of the collector."""
    for node in ast.parse(COLLECTOR.read_text()).body:
        if isinstance(node, ast.AnnAssign) and node.value and getattr(node.target, "id", "") == "FAMILIES":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{COLLECTOR} has no FAMILIES")


def program(name, *arguments):
    """Run a program of tools/."""
    command = [sys.executable, ROOT / f"tools/{name}.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def prometheus(serving, tmp_path_factory):
    """The address of a Prometheus that knows what is made here, and the time until which it does."""
    if not all(map(shutil.which, ("prometheus", "promtool"))):
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    end = int(time.time()) // STEP * STEP
    lines = []
    for name, labels, value in made():
        label = ",".join(f'{key}="{text}"' for key, text in labels.items())
        lines += [f"{name}{{{label}}} {value(at)} {at}\n" for at in range(end - MINUTES * 60, end + 1, STEP)]
    (folder / "made.txt").write_text("".join(lines) + "# EOF\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "made.txt", folder / "data"]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "prometheus.yml").write_text("{}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command.append(f"--web.listen-address={address}")
    with serving(command, folder, lambda: requests.get(f"http://{address}/-/ready", timeout=5).ok):
        yield f"http://{address}", end


def test_dashboards_are_current():
    done = program("dashboards", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.stem for path in DASHBOARDS] == [path.stem for path in SOURCES]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_places_of_their_own(path):
    board = json.loads(path.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        its = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not its & cells, panel["title"]
        assert max(x for x, y in its) < 24, panel["title"]
        cells |= its


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_asks_for_what_there_is(path):
    limits = {f"limit:{name}" for name in yaml.safe_load((ROLE / "vars/limits.yml").read_text())["__monitoring_limits"]}
    report = {f"mailreport_{name}" for name in re.findall(r'"(?:mailreport_)?([a-z_]+)"', REPORT.read_text())}
    known = {*records(), *limits, *report, *collected(), "up", "ALERTS"}
    asked = set().union(*(metrics(query) for title, query in queries(json.loads(path.read_text()))))
    assert [name for name in sorted(asked - known) if not name.startswith("node_")] == []


def test_everything_that_is_collected_is_on_a_dashboard():
    asked = set()
    for path in DASHBOARDS:
        asked |= set().union(*(metrics(query) for title, query in queries(json.loads(path.read_text()))))
    for name, query in records().items():  # what a record is made of is shown by it
        asked |= metrics(query) if name in asked else set()
    assert sorted(collected() - asked) == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_something(path, prometheus, tmp_path):
    address, end = prometheus
    options = ("--minutes", str(MINUTES), "--end", str(end), "--output", tmp_path)
    done = program("dashboard_pictures", address, path, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / path.stem}.png is written\n"  # and no query without data
    assert (tmp_path / f"{path.stem}.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_tell_what_gave_no_data_and_what_was_refused(prometheus, tmp_path):
    address, end = prometheus
    board = json.loads((ROLE / "files/grafana/mail_host.json").read_text())
    panel = next(panel for panel in board["panels"] if panel["title"] == "Memory used")
    board["panels"] = [panel]
    panel["targets"][0]["expr"] = "nobody_gives_this"
    file = tmp_path / "mail_host.json"
    file.write_text(json.dumps(board))
    options = ("--minutes", "10", "--end", str(end), "--variable", "instance=mx-02")
    done = program("dashboard_pictures", address, file, *options)
    assert done.stdout.splitlines()[1:] == ["  no data: Mail host, Memory used: nobody_gives_this"]
    panel["targets"][0]["expr"] = "rate(up)"
    file.write_text(json.dumps(board))
    done = program("dashboard_pictures", address, file, *options)
    assert done.returncode == 1
    assert "rate(up)" in done.stderr
    assert done.stderr.startswith("error: ")

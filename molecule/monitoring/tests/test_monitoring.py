# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus sees what happens on the hosts, tells of it in time, and nobody else may look."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
ROLE = REPOSITORY / "roles/monitoring"
HOSTS = ["cache-1", "client-1", "monitor-1", "mx-1", "mx-2"]
LOGIN = "prometheus:correct horse battery"
COLLECTOR = "/usr/local/libexec/site_metrics.py"
CA = "/etc/ssl/site/ca.crt"
SCORE = 2.0  # the exposure that `systemd-analyze security` may find at most
QUEUE = 100  # mails, twice as many as the inventory allows


def address_of(host: Any) -> str:
    return str(host.check_output("hostname -I").split()[0])


class Prometheus:
    """What Prometheus on the monitoring host tells."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.address = address_of(host)
        self._trust = ssl.create_default_context(cadata=host.file(CA).content_string)

    def status(self, url: str, login: str = "") -> int:
        """Give the status of an answer."""
        try:
            with self._open(url, login) as answer:
                return int(answer.status)
        except HTTPError as error:
            return error.code

    def api(self, path: str, port: int = 9090, **question: str) -> Any:
        """Give the answer to a question that needs the login."""
        with self._open(f"https://{self.address}:{port}{path}?{urlencode(question)}", LOGIN) as answer:
            return json.load(answer)

    def _open(self, url: str, login: str) -> Any:
        header = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}
        return urlopen(Request(url, headers=header), timeout=10, context=self._trust)

    def answers(self) -> bool:
        """Whether it has started."""
        try:
            return self.status(f"https://{self.address}:9090/-/ready", LOGIN) == 200
        except URLError:
            return False

    def ask(self, query: str) -> dict[str, float]:
        """Give the values of an expression by their instance."""
        found = self.api("/api/v1/query", query=query)["data"]["result"]
        return {one["metric"].get("instance", ""): float(one["value"][1]) for one in found}

    def one(self, query: str) -> float | None:
        values = list(self.ask(query).values())
        assert len(values) < 2, f"{query} gives {values}"
        return values[0] if values else None

    def firing(self, name: str) -> set[str]:
        """Give the instances for which an alert fires."""
        alerts = self.api("/api/v1/alerts")["data"]["alerts"]
        return {
            one["labels"].get("instance", "")
            for one in alerts
            if one["labels"]["alertname"] == name and one["state"] == "firing"
        }


def cost_of_a_run(host: Any, configuration: str) -> tuple[float, float, float, str]:
    """Run the collector once; give the seconds it took, those of a processor, its memory in MB, and what it told."""
    program = (
        "import resource, subprocess, sys, time; began = time.monotonic();"
        f"told = subprocess.check_output(['/usr/bin/python3', '-B', '{COLLECTOR}', sys.argv[1]], text=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024); print(told)"
    )
    figures, _newline, told = host.check_output("python3 -c %s %s", program, configuration).partition("\n")
    wall, processor, memory = map(float, figures.split())
    return wall, processor, memory, told


@pytest.fixture(scope="module")
def prometheus(hosts) -> Prometheus:
    return Prometheus(hosts["monitor-1"])


def test_it_looks_at_each_host_of_the_inventory(prometheus: Prometheus, until: Callable[..., float]) -> None:
    until(lambda: prometheus.ask('up{job="node"}') == dict.fromkeys(HOSTS, 1.0), 60)
    until(lambda: set(prometheus.ask("site_metrics_timestamp_seconds")) == set(HOSTS), 60)
    assert prometheus.ask("up == 0") == {}


def test_rules_and_configuration_are_in_order(prometheus: Prometheus) -> None:
    told = prometheus.host.run("promtool check config /etc/prometheus/prometheus.yml")
    print(told.stdout)
    assert told.rc == 0, told.stderr
    groups = prometheus.api("/api/v1/rules")["data"]["groups"]
    assert {group["name"] for group in groups} >= {"host", "mail_queues", "memcached", "limits"}
    assert [rule for group in groups for rule in group["rules"] if rule["health"] == "err"] == []


def test_verify_tells_that_all_is_well(play) -> None:
    told = play("verify")
    assert not told.failed, told.output
    print(told.output[told.output.find("node ") :][:1500])


@pytest.mark.parametrize(("name", "port"), [("mx-1", 9100), ("mx-2", 9100), ("monitor-1", 9090), ("monitor-1", 9093)])
def test_only_who_knows_the_password_may_look(hosts, prometheus: Prometheus, name: str, port: int) -> None:
    url = f"https://{address_of(hosts[name])}:{port}/metrics"
    assert prometheus.status(url) == 401
    assert prometheus.status(url, "prometheus:wrong") == 401
    assert prometheus.status(url, LOGIN) == 200
    assert prometheus.status(url.replace("https", "http"), LOGIN) == 400


@pytest.mark.parametrize("name", HOSTS)
def test_nothing_listens_wider_than_asked(hosts, name: str) -> None:
    listening = hosts[name].check_output("ss -Hltn | awk '{print $4}'").split()
    ours = {place for place in listening if re.search(r":(9090|9093|9094|9100)$", place)}
    assert ours
    assert {place.rpartition(":")[0] for place in ours} == {address_of(hosts[name])}


@pytest.mark.parametrize(
    ("name", "unit"),
    [(name, unit) for name in ("mx-1", "mx-2") for unit in ("prometheus-node-exporter", "site-metrics")]
    + [("monitor-1", "prometheus"), ("monitor-1", "prometheus-alertmanager")],
)
def test_services_are_in_a_sandbox(hosts, name: str, unit: str) -> None:
    told = hosts[name].check_output("systemd-analyze security --no-pager %s.service | tail -1", unit)
    score = float(re.search(r": ([0-9.]+) ", told)[1])
    print(f"{unit} on {name}: {score}")
    assert score <= SCORE
    if unit != "site-metrics":
        assert hosts[name].process.filter(user="prometheus")


def test_secrets_are_for_those_who_need_them(hosts) -> None:
    for name in HOSTS:
        file = hosts[name].file("/etc/prometheus/web.yml")
        assert (file.user, file.group, file.mode) == ("root", "prometheus", 0o640)
        assert "battery" not in file.content_string
    password = hosts["monitor-1"].file("/etc/prometheus/password")
    assert (password.user, password.group, password.mode) == ("root", "prometheus", 0o640)


def test_caches_and_their_users_are_seen(hosts, prometheus: Prometheus, until: Callable[..., float]) -> None:
    assert prometheus.ask("memcached_up") == {"cache-1": 1}
    assert prometheus.ask("memcached_proxy_up") == {"client-1": 1}
    before = prometheus.one('sum(memcached_commands_total{command="get",status="hit"})') or 0
    traffic = (
        "import pymemcache; c = pymemcache.Client('127.0.0.1:11211');"
        "c.set('a', 'b', noreply=False); [c.get('a') for _ in range(75)]; [c.get('none') for _ in range(25)]"
    )
    hosts["client-1"].check_output("python3 -c %s", traffic)
    until(lambda: prometheus.one('sum(memcached_commands_total{command="get",status="hit"})') == before + 75, 30)
    until(lambda: 0.7 < (prometheus.one("pool:memcached_hits:ratio5m") or 0) < 0.8, 60)
    # The node, the inventory and the proxy agree about who is in the pool.
    assert set(prometheus.ask("pool_members").values()) == {1}
    views = prometheus.api("/api/v1/query", query="pool_members_digest")["data"]["result"]
    assert {one["metric"]["source"] for one in views} == {"inventory", "proxy"}
    assert len({one["value"][1] for one in views}) == 1


def send(hosts, count: int) -> None:
    """Give the primary mails that it can't deliver, as nobody listens where they go."""
    program = (
        "import smtplib; s = smtplib.SMTP('127.0.0.1', 25);"
        f"[s.sendmail('a@site.test', ['b@[{address_of(hosts['client-1'])}]'], 'Subject: x\\n\\n' + 'y' * 500)"
        f" for _ in range({count})]"
    )
    hosts["mx-1"].check_output("python3 -c %s", program)


def test_what_goes_wrong_fires_its_alert_and_what_is_right_again_clears_it(
    hosts, prometheus: Prometheus, until: Callable[..., float]
) -> None:
    """A queue grows as the fallback tier is gone, a cache stops, and a host does not answer."""
    expected = {
        "PrimaryQueueHigh": {"mx-1"},
        "PostfixDown": {"mx-2"},
        "MemcachedDown": {"cache-1"},
        "InstanceDown": {"client-1"},
    }
    assert {name: prometheus.firing(name) for name in expected} == {name: set() for name in expected}
    stopped = {"mx-2": "postfix", "cache-1": "memcached@default", "client-1": "prometheus-node-exporter"}
    began = time.monotonic()
    for name, unit in stopped.items():
        hosts[name].check_output("systemctl stop %s", unit)
    send(hosts, QUEUE)
    until(lambda: prometheus.one('sum(postfix_queue_messages{instance="mx-1"})') == QUEUE, 60)
    seconds = {"seen": time.monotonic() - began}

    def all_told() -> bool:
        for name, instances in expected.items():
            if name not in seconds and prometheus.firing(name) == instances:
                seconds[name] = time.monotonic() - began
        return expected.keys() <= seconds.keys()

    until(all_told, 180)
    print("told after", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    (told,) = [
        one for one in prometheus.api("/api/v2/alerts", port=9093) if one["labels"]["alertname"] == "PrimaryQueueHigh"
    ]
    assert told["labels"]["severity"] == "page"
    assert {"summary", "reason", "runbook"} <= told["annotations"].keys()
    print(f"{told['annotations']['summary']}: {told['annotations']['runbook']}")
    assert prometheus.one('sum(postfix_queue_bytes{instance="mx-1"})') > QUEUE * 500
    assert prometheus.one('max(postfix_queue_oldest_age_seconds{instance="mx-1"})') > 0

    for name, unit in stopped.items():
        hosts[name].check_output("systemctl start %s", unit)
    hosts["mx-1"].check_output("postqueue -f")
    until(lambda: hosts["mx-1"].run("postqueue -p").stdout.startswith("Mail queue is empty"), 120)
    drained = time.monotonic()
    until(lambda: not any(prometheus.firing(name) for name in expected), 120)
    print(f"cleared {time.monotonic() - drained:.0f} s after the queue was drained to the fallback tier")
    # They are in the fallback tier, of whose tier they are told, and where that many are no news.
    until(lambda: prometheus.one('sum(postfix_queue_messages{tier="fallback"})') >= QUEUE, 30)
    assert prometheus.firing("FallbackQueueGrowing") == set()


def pid_of(host: Any, unit: str) -> str:
    return str(host.check_output("systemctl show --value --property=MainPID %s", unit))


def test_a_change_only_reaches_what_reads_it(hosts, prometheus: Prometheus, play, until: Callable[..., float]) -> None:
    """A limit needs a reload of Prometheus, other collectors a restart of the exporter."""
    server = hosts["monitor-1"]
    units = ("prometheus", "prometheus-alertmanager", "prometheus-node-exporter")
    before = {unit: pid_of(server, unit) for unit in units}
    changed = {"monitoring_limits": {"primary_queue_messages": 60}, "monitoring_collectors": ["cpu", "loadavg"]}
    assert play("converge", "--limit=monitor-1,localhost", **changed).changes
    after = {unit: pid_of(server, unit) for unit in units}
    assert [unit for unit in units if after[unit] != before[unit]] == ["prometheus-node-exporter"]
    until(lambda: prometheus.one("limit:primary_queue_messages") == 60, 30)
    # As the inventory has it.
    assert play("converge", "--limit=monitor-1,localhost").changes
    until(lambda: prometheus.one("limit:primary_queue_messages") == 50, 30)


@pytest.mark.parametrize(
    ("variables", "sentences"),
    [
        (
            {
                "monitoring_limits": {"queue": 5, "primary_queue_messages": "many"},
                "monitoring_servers": [],
                "monitoring_tls_key": "/none",
                "monitoring_password": "short",
                "monitoring_programs": {},
                "monitoring_install": "archives",
                "monitoring_keep_size": "much",
            },
            [
                "No rule has the limit queue: the names for monitoring_limits are ",
                "The limit primary_queue_messages in monitoring_limits is to be a number, not many.",
                "add a host to the group monitoring_server",
                "There is no /none on monitor-1",
                "monitoring_password is to have 12 characters",
                "No checksum is known for node_exporter",
                "such as 50GB, or empty, not much.",
            ],
        ),
        ({"monitoring_tls_certificate": "", "monitoring_tls_key": ""}, ["would be sent in the clear"]),
        (
            {"monitoring_rules": {"mine": [{"name": "a", "rules": [{"alert": "B", "expr": "up ="}]}]}},
            ["Prometheus refuses its configuration, the old one stays in use"],
        ),
        (
            {"monitoring_alertmanager_config": {"route": {"receiver": "x"}, "receivers": [{"name": "y"}]}},
            ["Alertmanager refuses its configuration, the old one stays in use"],
        ),
    ],
)
def test_bad_input_stops_before_anything_is_changed(
    hosts, play, variables: dict[str, Any], sentences: list[str]
) -> None:
    state = "cat /etc/prometheus/*.yml /etc/prometheus/rules/* | sha256sum; systemctl show -P MainPID prometheus"
    before = hosts["monitor-1"].check_output(state)
    refusal = play("converge", "--limit=monitor-1,localhost", **variables).refusal
    assert [sentence for sentence in sentences if sentence not in refusal] == []
    assert hosts["monitor-1"].check_output(state) == before


def test_dashboards_have_what_they_ask_for(prometheus: Prometheus, tmp_path: Path) -> None:
    """Their queries are taken, and pictures of them drawn; those of what runs here have values."""
    (tmp_path / "ca.crt").write_text(prometheus.host.file(CA).content_string)
    (tmp_path / "password").write_text(LOGIN.partition(":")[2])
    command = [
        sys.executable,
        REPOSITORY / "tools/dashboard_pictures.py",
        f"https://{prometheus.address}:9090",
        ROLE / "files/grafana",
    ]
    options = [
        "--user=prometheus",
        f"--password={tmp_path}/password",
        f"--ca={tmp_path}/ca.crt",
        f"--output={tmp_path}",
    ]
    done = subprocess.run(
        [*command, "--minutes=15", *options], capture_output=True, text=True, timeout=120, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.glob("*.png")} == {"cache_pool", "fleet", "mail_host", "mail_tiers"}
    # There is no log host here, nothing is wrong now, and nothing was there a day ago.
    excused = r"mail_logs|mailreport|mail_deferred|volume_|ALERTS|[=!<>]= [01]|offset|limit:"
    silent = [line for line in done.stdout.splitlines() if "no data:" in line]
    assert [line for line in silent if not re.search(excused, line)] == []


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_a_deep_queue_is_told_of_in_time(hosts, prometheus: Prometheus, count: int) -> None:
    """The queue is one of files with names and depths as Postfix has them, which no Postfix works on."""
    host = hosts["mx-1"]
    program = (
        "import os, sys; root = '/srv/queue/deferred'; count = int(sys.argv[1]);"
        "[os.makedirs(f'{root}/{d:X}', exist_ok=True) for d in range(16)];"
        "[open(f'{root}/{n % 16:X}/{n:X}', 'wb').write(b'x' * 700) for n in range(count)]"
    )
    host.check_output("python3 -c %s %s", program, str(count))
    told = {"postfix": [{"name": "deep", "tier": "primary", "queue_directory": "/srv/queue"}]}
    host.check_output("printf %%s %s > /srv/deep.json", json.dumps(told))
    runs = sorted(cost_of_a_run(host, "/srv/deep.json") for _run in range(3))
    wall, processor, memory, told_of = runs[1]
    assert re.search(rf'postfix_queue_messages{{.*queue="deferred"}} {count}\n', told_of)
    print(f"{count} queued mails: {wall:.2f} s, {processor:.2f} CPU-s, {memory:.0f} MB a run of the collector")
    assert processor < 4
    if count == 100_000:
        host.check_output("rm -r /srv/queue")


def test_what_it_costs_a_host(hosts, prometheus: Prometheus) -> None:
    """CPU and memory of all exporters, for a look every 15 s."""
    pids = {name: pid_of(hosts[name], "prometheus-node-exporter") for name in ("mx-1", "cache-1")}

    def used(name: str) -> float:
        ticks = hosts[name].check_output("cut -d' ' -f14,15 /proc/%s/stat; getconf CLK_TCK", pids[name]).split()
        return (int(ticks[0]) + int(ticks[1])) / int(ticks[2])

    first, began = {name: used(name) for name in pids}, time.monotonic()
    time.sleep(20)
    looks = (time.monotonic() - began) / 5  # the interval of the inventory
    for name, pid in pids.items():
        exporter = (used(name) - first[name]) / looks
        memory = int(hosts[name].check_output("awk '/^VmRSS/ {print $2}' /proc/%s/status", pid)) / 1024
        _wall, collector, peak, _told = cost_of_a_run(hosts[name], "/etc/site-metrics.json")
        share = (exporter + collector) / 15
        print(
            f"{name}: node_exporter {exporter * 1000:.0f} ms a look and {memory:.0f} MB, collector "
            f"{collector * 1000:.0f} ms a run and {peak:.0f} MB meanwhile: {share:.2%} of a processor at a look in 15 s"
        )
        assert share < 0.05
    seconds = prometheus.ask('scrape_duration_seconds{job="node"}')
    print("scrape:", ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in sorted(seconds.items())))


def test_can_be_removed_and_made_again(hosts, prometheus: Prometheus, play, until: Callable[..., float]) -> None:
    """On a host of each family, with packages and with archives. The series of Prometheus stay."""
    limit = "--limit=mx-1,monitor-1,localhost"
    assert play("converge", limit, monitoring_state="absent").changes
    for name in ("mx-1", "monitor-1"):
        assert hosts[name].run("ss -Hltn | grep -E ':(9090|9093|9100) '").rc == 1
        assert hosts[name].run("systemctl cat site-metrics.timer prometheus-node-exporter.service").rc == 1
    assert hosts["monitor-1"].file("/var/lib/prometheus/metrics2/wal").is_directory
    assert play("converge", limit, monitoring_state="absent").changes == 0
    assert play("converge", limit).changes
    assert hosts["mx-1"].run("systemctl is-active site-metrics.timer prometheus-node-exporter.service").rc == 0
    until(lambda: prometheus.answers() and prometheus.ask("postfix_up") == {"mx-1": 1, "mx-2": 1}, 60)

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collector tells of real memcacheds, queue folders, certificates and files, and of those that fail."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import resource
import runpy
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = ROOT / "roles/monitoring/files/usr/local/libexec/site_metrics.py"
QUEUE = ROOT / "plugins/module_utils/postfix_queue.py"
DIGITS = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"
POSTFIX = {"name": "postfix", "tier": "primary"}


@pytest.fixture(scope="module")
def program():
    """The functions of the program. It finds postfix_queue beside itself, here it's still elsewhere."""
    sys.path.insert(0, str(QUEUE.parent))
    try:
        yield types.SimpleNamespace(**runpy.run_path(str(PROGRAM)))
    finally:
        sys.path.remove(str(QUEUE.parent))


@pytest.fixture
def limits(program, monkeypatch):
    """Shorter times, to wait less."""
    monkeypatch.setitem(program.collect.__globals__, "LIMIT", 2.0)
    monkeypatch.setitem(program.collect.__globals__, "PATIENCE", 1.0)


def samples(text: str) -> dict[str, float]:
    """Values by metric and labels as they are written, each of which is there once."""
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    found = {name: float(value) for name, _space, value in lines}
    assert len(found) == len(lines)
    return found


def told(program, **configuration) -> dict[str, float]:
    return samples(program.collect(configuration))


# Postfix


def queue_id(when: float, inode: int) -> str:
    """A long queue id as Postfix makes it."""

    def number(value: int, width: int) -> str:
        digits = ""
        for _digit in range(width):
            value, digit = divmod(value, len(DIGITS))
            digits = DIGITS[digit] + digits
        return digits

    seconds, fraction = divmod(when, 1)
    return f"{number(int(seconds), 6)}{number(int(fraction * 1e6), 4)}z{number(inode, 5)}"


def put(directory: Path, queue: str, age: float, size: int, mode: int = 0o700) -> None:
    """Put a mail into a queue, in the folder of its hash where Postfix has some."""
    name = queue_id(time.time() - age, next(INODES))
    folder = directory / queue / name[6] if queue == "deferred" else directory / queue
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x" * size)
    (folder / name).chmod(mode)


INODES = itertools.count(1000)


@pytest.fixture
def queues(tmp_path):
    """Postfix's folder with empty queues."""
    for name in ("maildrop", "incoming", "active", "deferred", "hold", "corrupt", "pid", "private"):
        (tmp_path / "spool" / name).mkdir(parents=True)
    return tmp_path / "spool"


@pytest.fixture
def master(queues, tmp_path):
    """A process that looks like Postfix's first one."""
    shutil.copy("/bin/sleep", tmp_path / "master")
    process = subprocess.Popen([tmp_path / "master", "60"])
    while Path(f"/proc/{process.pid}/comm").read_text() != "master\n":  # the kernel names it a moment later
        time.sleep(0.01)
    (queues / "pid/master.pid").write_text(f"{process.pid:>10}\n")
    yield process
    process.kill()
    process.wait()


def test_counts_mails_by_queue(program, queues):
    put(queues, "deferred", 7200, 3000)
    put(queues, "deferred", 60, 500)
    put(queues, "active", 5, 100)
    put(queues, "incoming", 1, 100, mode=0o600)  # still being sent
    found = told(program, postfix=[{**POSTFIX, "queue_directory": str(queues)}])
    name = '{name="postfix",tier="primary",queue="%s"}'
    assert found["postfix_queue_messages" + name % "deferred"] == 2
    assert found["postfix_queue_bytes" + name % "deferred"] == 3500
    assert found["postfix_queue_oldest_age_seconds" + name % "deferred"] == pytest.approx(7200, abs=5)
    assert found["postfix_queue_messages" + name % "active"] == 1
    for metric in ("messages", "bytes", "oldest_age_seconds"):
        for queue in ("maildrop", "incoming", "hold", "corrupt"):
            assert found[f"postfix_queue_{metric}" + name % queue] == 0
    assert found['site_metrics_success{source="postfix",name="postfix"}'] == 1


def test_tells_the_room_that_a_queue_has(program, queues):
    found = told(program, postfix=[{**POSTFIX, "queue_directory": str(queues)}])
    volume = os.statvfs(queues)
    labels = '{name="postfix",tier="primary"}'
    assert found[f"postfix_queue_volume_size_bytes{labels}"] == volume.f_blocks * volume.f_frsize
    assert found[f"postfix_queue_volume_files{labels}"] == volume.f_files
    assert 0 < found[f"postfix_queue_volume_free_bytes{labels}"] < volume.f_blocks * volume.f_frsize
    assert 0 <= found[f"postfix_queue_volume_files_free{labels}"] <= volume.f_files


def test_postfix_runs_when_its_first_process_does(program, queues, master):
    assert program.master_runs(str(queues))
    master.kill()
    master.wait()
    assert not program.master_runs(str(queues))


@pytest.mark.parametrize("content", [None, "", f"{os.getpid()}\n"])  # the last one is another program's by now
def test_postfix_does_not_run_without_its_first_process(program, queues, content):
    if content is not None:
        (queues / "pid/master.pid").write_text(content)
    found = told(program, postfix=[{**POSTFIX, "queue_directory": str(queues)}])
    assert found['postfix_up{name="postfix",tier="primary"}'] == 0
    assert found['site_metrics_success{source="postfix",name="postfix"}'] == 1


def test_a_folder_without_queues_is_a_failure(program, tmp_path, capsys):
    for directory in (tmp_path, tmp_path / "none"):
        found = told(program, postfix=[{**POSTFIX, "queue_directory": str(directory)}])
        assert found['postfix_up{name="postfix",tier="primary"}'] == 0
        assert found['site_metrics_success{source="postfix",name="postfix"}'] == 0
        assert not [name for name in found if name.startswith("postfix_queue_messages")]
        assert "postfix postfix: FileNotFoundError: " in capsys.readouterr().err


def test_what_was_counted_of_an_endless_queue_is_told(program, queues, limits, monkeypatch, capsys):
    mail = program.postfix_queue.Mail("deferred", 10, 0.0, [], [])
    monkeypatch.setattr(program.postfix_queue, "walk", lambda _directory: itertools.repeat(mail))
    found = told(program, postfix=[{**POSTFIX, "queue_directory": str(queues)}])
    assert found['postfix_queue_messages{name="postfix",tier="primary",queue="deferred"}'] > 1000
    assert found['site_metrics_success{source="postfix",name="postfix"}'] == 0
    assert re.search(r"only the first \d+ mails were counted", capsys.readouterr().err)


def test_a_deep_queue_takes_little_time(queues, tmp_path, install, capsys):
    for number in range(10_000):
        put(queues, "deferred", number, 1)
    config = install({"postfix": [{**POSTFIX, "queue_directory": str(queues)}]})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(config.command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert samples(done.stdout)['postfix_queue_messages{name="postfix",tier="primary",queue="deferred"}'] == 10_000
    with capsys.disabled():
        print(f"\n{used:.2f} s of CPU for 10000 queue files")
    assert used < 1


# memcached


@pytest.fixture
def start(start_memcached):
    """A function that starts a memcached and gives the configuration that reaches it."""

    def start(*arguments: str, unix: bool = False) -> dict[str, object]:
        return place_of(start_memcached(*arguments, unix=unix))

    return start


def place_of(memcached) -> dict[str, object]:
    return {"name": "default", "pool": "cache.site.test", "address": "127.0.0.1", **memcached.options}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_tells_the_statistics_of_memcached(program, start_memcached):
    memcached = start_memcached("-m", "70", "-c", "200")
    text = "set a 0 0 1\n1\nset b 0 0 1\n2\nget a\nget a\nget none\ngets a\ncas a 0 0 1 999\n5\n"
    text += "incr a 1\ntouch b 60\ndelete b\ndelete b"
    memcached.raw(text.replace("\n", "\r\n").encode())
    found = told(program, memcached=[place_of(memcached)])
    labels = 'name="default",pool="cache.site.test"'
    for command, status, count in (
        ("get", "hit", 3),
        ("get", "miss", 1),
        ("set", "hit", 2),
        ("cas", "badval", 1),
        ("incr", "hit", 1),
        ("touch", "hit", 1),
        ("delete", "hit", 1),
        ("delete", "miss", 1),
        ("decr", "miss", 0),
    ):
        assert found[f'memcached_commands_total{{{labels},command="{command}",status="{status}"}}'] == count
    expected = {
        "up": 1,
        "current_items": 1,
        "limit_bytes": 70 << 20,
        "max_connections": 200,
        "items_evicted_total": 0,
        "items_reclaimed_total": 0,
        "connections_rejected_total": 0,
        "connections_listener_disabled_total": 0,
    }
    for metric, value in expected.items():
        assert found[f"memcached_{metric}{{{labels}}}"] == value
    for metric in ("current_bytes", "current_connections", "connections_total", "read_bytes_total"):
        assert found[f"memcached_{metric}{{{labels}}}"] > 0
    for metric in ("uptime_seconds", "written_bytes_total"):
        assert f"memcached_{metric}{{{labels}}}" in found
    (version,) = [name for name in found if name.startswith("memcached_version")]
    assert re.fullmatch(rf'memcached_version{{{labels},version="[\d.]+"}}', version)


def test_reaches_a_unix_socket(program, start):
    found = told(program, memcached=[start(unix=True)])
    assert found['memcached_up{name="default",pool="cache.site.test"}'] == 1


@pytest.mark.parametrize(
    ("users", "up"), [("monitor:sesame\nother:x\n", 1), ("monitor:wrong\n", 0), ("nonsense\n", 0), (None, 0)]
)
def test_logs_in_by_the_file_of_passwords(program, start, tmp_path, capsys, users, up):
    (tmp_path / "server").write_text("other:x\nmonitor:sesame\n")
    place = start("-Y", str(tmp_path / "server"))
    if users:
        (tmp_path / "users").write_text(users)
        place["auth_file"] = str(tmp_path / "users")
    found = told(program, memcached=[place])
    assert found['memcached_up{name="default",pool="cache.site.test"}'] == up
    assert found['site_metrics_success{source="memcached",name="default"}'] == up
    assert "sesame" not in capsys.readouterr().err


def test_a_password_is_not_sent_where_none_is_asked_for(program, start, tmp_path):
    (tmp_path / "users").write_text("monitor:sesame\n")
    found = told(program, memcached=[{**start(), "auth_file": str(tmp_path / "users")}])
    assert found['memcached_up{name="default",pool="cache.site.test"}'] == 1
    assert found['memcached_current_items{name="default",pool="cache.site.test"}'] == 0


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    """A folder with a CA, ca.crt, and host.crt and host.key of it for cache.site.test, which ends in 100 days."""
    folder = tmp_path_factory.mktemp("pems")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", cwd=folder)
    openssl("req", *new_key, "-keyout", "host.key", "-out", "host.csr", "-subj", "/CN=host", cwd=folder)
    (folder / "names").write_text("subjectAltName=DNS:cache.site.test\n")
    signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "100", "-extfile", "names"]
    openssl("x509", "-req", "-in", "host.csr", *signing, "-out", "host.crt", cwd=folder)
    return folder


@pytest.mark.parametrize(
    ("server", "tls", "up"),
    [
        ("", {}, 1),
        ("", {"ca": "ca.crt", "hostname": "cache.site.test"}, 1),
        ("", {"ca": "ca.crt"}, 1),
        ("", {"ca": "ca.crt", "hostname": "other.site.test"}, 0),
        ("", None, 0),
        (",ssl_ca_cert={ca.crt},ssl_verify_mode=2", {"certificate": "host.crt", "key": "host.key"}, 1),
        (",ssl_ca_cert={ca.crt},ssl_verify_mode=2", {}, 0),
    ],
)
def test_talks_tls(program, start, pems, server, tls, up):
    extended = "ssl_chain_cert={host.crt},ssl_key={host.key}" + server
    place = start("-Z", "-o", re.sub(r"{([^}]+)}", lambda found: str(pems / found[1]), extended))
    files = ("ca", "certificate", "key")
    place["tls"] = tls and {key: str(pems / value) if key in files else value for key, value in tls.items()}
    if tls == {}:
        place["tls"] = {"ca": "", "certificate": "", "key": "", "hostname": ""}
    found = told(program, memcached=[place])
    assert found['memcached_up{name="default",pool="cache.site.test"}'] == up
    assert found['site_metrics_success{source="memcached",name="default"}'] == up


@pytest.mark.parametrize("place", [{"address": "127.0.0.1"}, {"socket": "/nonexistent/socket"}])
@pytest.mark.parametrize("service", ["memcached", "memcached_proxy"])
def test_that_nothing_listens_is_an_answer(program, place, service):
    port = {"port": free_port()} if "address" in place else {}
    found = told(program, **{service: [{"name": "default", "pools": ["cache.site.test"], **place, **port}]})
    assert [value for name, value in found.items() if name.startswith(f"{service}_up")] == [0]
    assert found[f'site_metrics_success{{source="{service}",name="default"}}'] == 1
    assert not [name for name in found if name.startswith("pool_members")]


# The proxy


class Script(socketserver.StreamRequestHandler):
    """Answers each command by a table; what is missing there is not answered."""

    def handle(self):
        assert isinstance(self.server, Scripted)
        for line in self.rfile:
            if answer := self.server.answers.get(line.decode().strip()):
                self.wfile.write(answer.replace("\n", "\r\n").encode())


class Scripted(socketserver.ThreadingTCPServer):
    """A server with a table of answers."""

    daemon_threads = True

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        super().__init__(("127.0.0.1", 0), Script)


@pytest.fixture
def scripted():
    """A function that starts a server with a table of answers and gives its place."""
    servers = []

    def start(answers: dict[str, str]) -> dict[str, object]:
        server = Scripted(answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return {"name": "default", "address": "127.0.0.1", "port": server.server_address[1]}

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


MEMBERS = ["192.0.2.2 11211", "192.0.2.10 11211", "192.0.2.1 11211"]
DIGEST = hashlib.sha256(b"192.0.2.1 11211\n192.0.2.10 11211\n192.0.2.2 11211\n").hexdigest()


def proxy(separator=":", **members: str) -> dict[str, str]:
    """What a proxy answers; members by the names of pools."""
    answers = {
        "stats": "STAT version 1.6.45\nSTAT curr_connections 7\nSTAT proxy_conn_requests 12\nEND\n",
        "stats proxy": "STAT active_req_limit 0\nSTAT cmd_mg 0\nSTAT cmd_get 12\nSTAT cmd_set 3\nEND\n",
    }
    for pool in ("cache", "sessions"):
        key = f"memcached_proxy{separator}{pool}"
        text = members.get(pool)
        answers[f"get {key}"] = f"VALUE {key} 0 {len(text)}\n{text}\nEND\n" if text else "END\n"
    return answers


def inventory(pool: str, members: list[str]) -> dict[str, object]:
    return {"pool": pool, "source": "inventory", "members": members}


@pytest.mark.parametrize("separator", [":", "/"])
def test_tells_what_a_proxy_does_and_whom_it_knows(program, scripted, separator):
    place = scripted(proxy(separator, cache=f"{DIGEST} 3"))
    found = told(
        program,
        memcached_proxy=[{**place, "pools": ["cache", "sessions"], "separator": separator}],
        members=[inventory("cache", MEMBERS), inventory("sessions", MEMBERS[:1])],
    )
    assert found['memcached_proxy_up{name="default"}'] == 1
    assert found['memcached_proxy_current_connections{name="default"}'] == 7
    assert found['memcached_proxy_commands_total{name="default",command="get",status="any"}'] == 12
    assert found['pool_members{pool="cache",source="inventory"}'] == 3
    assert found['pool_members_digest{pool="cache",source="inventory"}'] == int(DIGEST[:12], 16)
    for metric in ("pool_members", "pool_members_digest"):
        cache, sessions = (f'{metric}{{pool="{pool}",source=' for pool in ("cache", "sessions"))
        assert found[f'{cache}"proxy"}}'] == found[f'{cache}"inventory"}}']
        assert found[f'{sessions}"proxy"}}'] == 0 != found[f'{sessions}"inventory"}}']


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_of_two_proxies_the_one_that_lags_behind_is_seen(program, scripted, order):
    places = [scripted(proxy(cache=f"{DIGEST} 3")), scripted(proxy(cache=f"{'0' * 64} 2"))]
    proxies = [{**places[index], "name": f"p{index}", "pools": ["cache"]} for index in order]
    found = told(program, memcached_proxy=proxies, members=[inventory("cache", MEMBERS)])
    assert found['pool_members{pool="cache",source="proxy"}'] == 2


def test_the_digest_is_that_which_the_proxy_tells(program):
    assert program.membership(MEMBERS) == (3, int(DIGEST[:12], 16))
    assert program.membership(reversed(MEMBERS)) == program.membership(MEMBERS)
    assert float(program.membership(MEMBERS).digest) == program.membership(MEMBERS).digest


# Logs, certificates, volumes


def write(path: Path, size: int = 0, modified: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    if modified is not None:
        os.utime(path, (modified, modified))


def test_tells_what_waits_to_be_sent(program, tmp_path):
    for name, size in (("log-01.00000001", 300), ("log-01.00000012", 50), ("log-01.qi", 400), ("journal.state", 70)):
        write(tmp_path / name, size)
    assert told(program, mail_logs={"spool": str(tmp_path)})["mail_logs_waiting_bytes"] == 350


def test_tells_when_lines_came(program, tmp_path):
    write(tmp_path / "mx-01/2026-01-01T05.log", modified=1000)
    write(tmp_path / "mx-01/2026-01-01T04.log", modified=2000)  # a late line
    write(tmp_path / "mx-01/2026-01-01T03.log.gz", modified=9000)  # no longer written
    write(tmp_path / "mx-02/2026-01-01T03.log.gz", modified=500)
    write(tmp_path / "mx-02/.2026-01-01T03.log.gz", modified=9000)
    found = told(program, mail_logs={"folder": str(tmp_path), "senders": ["mx-01", "mx-02", "mx-03"]})
    seen = [found[f'mail_logs_received_timestamp_seconds{{sender="mx-0{number}"}}'] for number in (1, 2, 3)]
    assert seen == [2000, 500, 0]


def test_logs_that_are_not_there_are_a_failure(program, tmp_path):
    found = told(program, mail_logs={"spool": f"{tmp_path}/no", "folder": f"{tmp_path}/no", "senders": ["mx-01"]})
    for name in ("spool", "folder"):
        assert found[f'site_metrics_success{{source="mail_logs",name="{name}"}}'] == 0
    assert not [name for name in found if name.startswith("mail_logs_")]


def test_tells_when_the_first_certificate_of_a_file_expires(program, pems, tmp_path, capsys):
    chain = tmp_path / "chain.pem"
    chain.write_text((pems / "host.crt").read_text() + (pems / "ca.crt").read_text())
    (tmp_path / "empty").write_text("")
    paths = {"host": chain, "ca": pems / "ca.crt", "empty": tmp_path / "empty", "none": tmp_path / "none"}
    found = told(program, certificates=[{"name": name, "path": str(path)} for name, path in paths.items()])
    for name, days in (("host", 100), ("ca", 30)):
        expires = found[f'certificate_not_after_timestamp_seconds{{name="{name}",path="{paths[name]}"}}']
        assert expires == pytest.approx(time.time() + days * 86400, abs=120)
    success = {name: found[f'site_metrics_success{{source="certificate",name="{name}"}}'] for name in paths}
    assert success == {"host": 1, "ca": 1, "empty": 0, "none": 0}
    assert capsys.readouterr().err.count("can't be read") == 2


def test_tells_the_room_of_volumes(program, tmp_path):
    found = told(program, volumes=[{"name": "lake", "path": str(tmp_path)}, {"name": "gone", "path": "/nonexistent"}])
    volume = os.statvfs(tmp_path)
    assert found['volume_size_bytes{name="lake"}'] == volume.f_blocks * volume.f_frsize
    assert 0 < found['volume_free_bytes{name="lake"}'] < found['volume_size_bytes{name="lake"}']
    assert found['site_metrics_success{source="volume",name="gone"}'] == 0


# Other programs' metrics

GOOD = r"""# HELP mailreport_attempts Attempts, in \"the\" last hour.
# TYPE mailreport_attempts gauge
mailreport_attempts{domain="a.test",outcome="delivered"} 12
mailreport_attempts{domain="b, \"quoted\" \\ }",outcome="delivered",} +1.5e3
# a remark

mailreport_lag_seconds NaN
mailreport_oldest{} -Inf
# TYPE mailreport_delay histogram
mailreport_delay_bucket{le="+Inf"} 3
mailreport_delay_sum 1.5
mailreport_delay_count 3
"""


def test_takes_over_the_metrics_of_a_file(program, tmp_path):
    (tmp_path / "metrics.prom").write_text(GOOD)
    text = program.collect({"files": [str(tmp_path / "metrics.prom")]})
    assert text.endswith(GOOD)
    assert samples(text)[f'site_metrics_success{{source="file",name="{tmp_path}/metrics.prom"}}'] == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a 1\nb", "no end"),
        ("a 1\n1a 2\n", "line 2 is not a metric"),
        ("a 1_000\n", "line 1 is not a metric"),
        ("a1\n", "line 1 is not a metric"),
        ("a 1 1700000000000\n", "line 1 is not a metric, or has a time"),
        ('a{b="c} 1\n', "line 1 is not a metric"),
        ('a{b="c\\d"} 1\n', "line 1 is not a metric"),
        ('a{b="c",b="d"} 1\n', "label twice"),
        ('a{b="c",d="e"} 1\na{d="e",b="c"} 2\n', "line 2 gives a a second value"),
        ("# TYPE a gauge\n# TYPE a gauge\na 1\n", "line 2 is a second TYPE of a"),
        ("# TYPE a gouge\na 1\n", "no type that is known"),
        ("a 1\n# TYPE a gauge\n", "line 2 comes after a value of a"),
        ("memcached_up 1\n", "told by others"),
        ("# HELP site_metrics_success x\n", "told by others"),
        ("process_cpu_seconds_total 1\n", "told by others"),
        ("é 1\n", "line 1 is not a metric"),
        ("a 1\n" + "#" * (1 << 20), "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_would_hide_all_metrics_is_left_out(program, tmp_path, capsys, content, problem):
    (tmp_path / "metrics.prom").write_text(content)
    found = told(program, files=[str(tmp_path / "metrics.prom")])
    assert found.pop(f'site_metrics_success{{source="file",name="{tmp_path}/metrics.prom"}}') == 0
    assert {name.partition("{")[0] for name in found} == {
        "site_metrics_duration_seconds",
        "site_metrics_timestamp_seconds",
    }
    assert problem in capsys.readouterr().err


def test_of_two_files_with_the_same_metric_the_first_is_taken(program, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"shared 1\nonly_{name} 1\n")
    found = told(program, files=[str(tmp_path / "a"), str(tmp_path / "b")])
    assert {"shared", "only_a"} <= found.keys() and "only_b" not in found
    assert found[f'site_metrics_success{{source="file",name="{tmp_path}/b"}}'] == 0


# All of it


@pytest.fixture
def install(tmp_path):
    """A function that writes a configuration and gives the command, as the role has it on the host."""
    for file in (PROGRAM, QUEUE):
        shutil.copy(file, tmp_path)

    def install(configuration: dict[str, object]) -> types.SimpleNamespace:
        (tmp_path / "config.json").write_text(json.dumps(configuration))
        (tmp_path / "out").mkdir(exist_ok=True)
        command = [sys.executable, str(tmp_path / "site_metrics.py"), str(tmp_path / "config.json")]
        return types.SimpleNamespace(command=command, output=tmp_path / "out/site.prom")

    return install


def test_writes_a_file_that_others_can_read(install, tmp_path):
    installed = install({"volumes": [{"name": "lake", "path": str(tmp_path)}]})
    installed.output.write_text("old")
    subprocess.run([*installed.command, "--output", str(installed.output)], check=True, umask=0o077)
    assert [path.name for path in installed.output.parent.iterdir()] == ["site.prom"]
    assert installed.output.stat().st_mode & 0o777 == 0o644
    text = installed.output.read_text()
    assert text.startswith("# HELP volume_size_bytes Size of")
    assert samples(text)["site_metrics_timestamp_seconds"] == pytest.approx(time.time(), abs=60)


def test_those_that_hang_harm_no_other(program, scripted, start, queues, limits, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    hanging = scripted({})
    begin = time.monotonic()
    found = told(
        program,
        memcached=[{**hanging, "name": "hanging"}, start()],
        memcached_proxy=[hanging],
        postfix=[{**POSTFIX, "queue_directory": str(queues)}],
        files=[str(tmp_path / "pipe")],
    )
    assert time.monotonic() - begin < 5
    success = {name.partition("{")[2]: value for name, value in found.items() if "success" in name}
    assert success == {
        'source="memcached",name="hanging"}': 0,
        'source="memcached",name="default"}': 1,
        'source="memcached_proxy",name="default"}': 0,
        'source="postfix",name="postfix"}': 1,
        f'source="file",name="{tmp_path}/pipe"}}': 0,
    }
    assert found['memcached_up{name="hanging",pool=""}'] == 0
    assert found['memcached_up{name="default",pool="cache.site.test"}'] == 1
    assert found['memcached_proxy_up{name="default"}'] == 0
    told_of = capsys.readouterr().err
    assert "memcached hanging: TimeoutError: timed out" in told_of
    assert f"file {tmp_path}/pipe: no end within 2 s" in told_of
    assert found[f'site_metrics_duration_seconds{{source="file",name="{tmp_path}/pipe"}}'] == 2


def test_a_program_that_hangs_ends(install, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    installed = install({"files": [str(tmp_path / "pipe")]})
    Path(installed.command[1]).write_text(PROGRAM.read_text().replace("LIMIT = 5.0", "LIMIT = 0.3"))
    done = subprocess.run(installed.command, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0
    assert samples(done.stdout)[f'site_metrics_success{{source="file",name="{tmp_path}/pipe"}}'] == 0


def test_an_incomplete_description_fails_alone(program, tmp_path):
    found = told(program, memcached=[{"name": "a"}, {}], volumes=[{"name": "lake", "path": str(tmp_path)}])
    assert [value for name, value in found.items() if "success" in name] == [0, 0, 1]


def test_the_journal_learns_how_grave_a_problem_is(program, monkeypatch, capsys):
    for stream, start in ((None, "volume gone: "), ("8:1234", "<4>volume gone: ")):
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        if stream:
            monkeypatch.setenv("JOURNAL_STREAM", stream)
        told(program, volumes=[{"name": "gone", "path": "/nonexistent"}])
        assert capsys.readouterr().err.startswith(start)


def test_nothing_to_watch_is_told_as_such(program):
    assert list(told(program)) == ["site_metrics_timestamp_seconds"]


def test_each_metric_is_explained(program, scripted, queues):
    text = program.collect(
        {
            "postfix": [{"name": 'odd "\\', "tier": "none", "queue_directory": str(queues)}],
            "memcached_proxy": [{**scripted(proxy()), "pools": ["cache"]}],
        }
    )
    assert r'postfix_up{name="odd \"\\",tier="none"} 0' in text
    kind = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"# HELP (\w+) \S.*\.", line):
            kind = match[1]
        elif line.startswith("#"):
            counts = kind.endswith("_total")
            assert line == f"# TYPE {kind} {'counter' if counts else 'gauge'}"
        else:
            assert re.match(rf"{kind}[{{ ]", line)
    own = program.parse.__globals__
    own_families, own["FAMILIES"] = own["FAMILIES"], {}
    try:
        assert "postfix_up" in program.parse(text).families  # what it writes it would take, too
    finally:
        own["FAMILIES"] = own_families

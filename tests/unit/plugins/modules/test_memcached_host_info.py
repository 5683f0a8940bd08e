# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the memcached_host_info module, with real listeners and a scripted systemctl."""

from __future__ import annotations

import contextlib
import grp
import io
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time

import pytest
from ansible_collections.tenfold.stack.plugins.modules import memcached_host_info

USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def look(run_module, tmp_path):
    """A function that runs the module with a prefix in tmp_path."""

    def look(**options):
        return run_module(memcached_host_info, {"prefix": str(tmp_path / "opt"), **options})

    return look


# Listeners


@pytest.fixture(scope="module")
def sockets():
    """Bound sockets: by protocol and address."""
    with contextlib.ExitStack() as stack:
        made = {}
        for protocol, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
            for family, address in (
                (socket.AF_INET, "127.0.0.1"),
                (socket.AF_INET, "0.0.0.0"),
                (socket.AF_INET6, "::1"),
                (socket.AF_INET6, "::"),
            ):
                try:
                    one = stack.enter_context(socket.socket(family, kind))
                    one.bind((address, 0))
                except OSError:  # no IPv6 here
                    continue
                if protocol == "tcp":
                    one.listen()
                made[protocol, address] = one
        yield made


def find(result, protocol, port):
    return [entry for entry in result["listeners"] if (entry["protocol"], entry["port"]) == (protocol, port)]


def test_listeners_are_found_with_their_processes(look, sockets):
    result = look()
    assert result["changed"] is False
    with open("/proc/self/comm") as comm:
        process = comm.read().strip()
    for (protocol, address), one in sockets.items():
        port = one.getsockname()[1]
        assert find(result, protocol, port) == [
            {
                "protocol": protocol,
                "address": address,
                "port": port,
                "user": USER,
                "pid": os.getpid(),
                "process": process,
                "unit": memcached_host_info.unit_of("self"),
            }
        ]


def test_connections_and_sockets_that_do_not_listen_are_left_out(look, sockets):
    server = sockets["tcp", "127.0.0.1"]
    with socket.create_connection(server.getsockname()) as client, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        result = look()
        assert find(result, "tcp", client.getsockname()[1]) == []
        assert find(result, "tcp", bound.getsockname()[1]) == []
        assert len(find(result, "tcp", server.getsockname()[1])) == 1


def test_a_shared_socket_is_named_by_its_oldest_process(look, sockets):
    server = sockets["tcp", "127.0.0.1"]
    command = [sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[server.fileno()]) as child:
        assert child.stdout is not None
        child.stdout.readline()
        oldest = min(child.pid, os.getpid())  # numbers may start anew
        assert [entry["pid"] for entry in find(look(), "tcp", server.getsockname()[1])] == [oldest]
        child.communicate(b"\n")


def test_a_process_that_can_not_be_told_is_null(look, sockets, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("/fd"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(memcached_host_info.os, "scandir", refuse)
    (entry,) = find(look(), "tcp", sockets["tcp", "127.0.0.1"].getsockname()[1])
    assert (entry["user"], entry["pid"], entry["process"], entry["unit"]) == (USER, None, None, None)


@pytest.mark.skipif(sys.byteorder != "little", reason="the digits are those of a little-endian machine")
@pytest.mark.parametrize(
    ("digits", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("0A01A8C0", "192.168.1.10"),
        ("00000000000000000000000000000000", "::"),
        ("00000000000000000000000001000000", "::1"),
        ("B80D01200000000000000000EFBE0000", "2001:db8::beef"),
    ],
)
def test_the_addresses_of_the_kernel(digits, address):
    assert memcached_host_info.decode_address(digits) == address


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:2BCB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 00000000:2BCC 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 00000000:FFFF 00000000:0000 0A 00000000:00000000 00:00000000 00000000 4000000 0 4713 1 0 100 0 0 10 0
"""


def test_a_table_of_the_kernel(tmp_path):
    (tmp_path / "tcp").write_text(TABLE)
    assert memcached_host_info.read_sockets(str(tmp_path / "tcp"), "0A") == [
        {"address": "0.0.0.0", "port": 11211, "user": pwd.getpwuid(0).pw_name, "inode": "4711"},
        {"address": "0.0.0.0", "port": 65535, "user": "4000000", "inode": "4713"},
    ]
    assert [entry["inode"] for entry in memcached_host_info.read_sockets(str(tmp_path / "tcp"), "01")] == ["4712"]


def test_a_kernel_without_a_protocol_has_no_sockets_of_it(tmp_path):
    assert memcached_host_info.read_sockets(str(tmp_path / "tcp6"), "0A") == []


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/system-memcached.slice/memcached@default.service\n", "memcached@default.service"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/cache.service\n", "cache.service"),
        ("0::/docker/4711/system.slice/cache.service/workers\n", "cache.service"),
        ("2:cpu:/\n1:name=systemd:/system.slice/grüße.service\n", "grüße.service"),
        ("0::/init.scope\n", None),
        ("", None),
    ],
)
def test_the_unit_of_a_process(monkeypatch, cgroup, unit):
    def read(path, **options):
        assert path == "/proc/4711/cgroup"
        return io.TextIOWrapper(io.BytesIO(cgroup.encode()), **options)

    monkeypatch.setattr(memcached_host_info, "open", read, raising=False)
    assert memcached_host_info.unit_of("4711") == unit


def test_a_process_that_is_gone_has_no_unit_and_no_name():
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert memcached_host_info.unit_of(str(gone.pid)) is None
    assert memcached_host_info.comm_of(str(gone.pid)) is None


# Releases and users


def test_releases_and_the_one_in_use(look, tmp_path):
    assert [look()[key] for key in ("release", "releases")] == [None, []]
    for name in ("2-b", "1-a", ".1-a-scratch"):
        (tmp_path / "opt" / name).mkdir(parents=True)
    (tmp_path / "opt/file").touch()
    (tmp_path / "opt/current").symlink_to("1-a")
    assert [look()[key] for key in ("release", "releases")] == ["1-a", ["1-a", "2-b"]]


def test_users_that_exist(look):
    assert look(users=["no-such-user", USER])["users"] == [USER]


@pytest.mark.parametrize(("name", "active"), [("firewalld", True), ("firewalled", False)])
def test_firewalld_is_found_by_its_process(look, monkeypatch, name, active):
    monkeypatch.setattr(memcached_host_info, "comm_of", lambda pid: name if pid == str(os.getpid()) else "other")
    assert look()["firewalld_active"] is active


def test_the_memory_is_that_of_the_host(look):
    with open("/proc/meminfo", encoding="ascii") as file:
        total = int(file.readline().split()[1])  # MemTotal, in kB
    assert look()["memory"] == total // 1024


# Files


@pytest.fixture
def file(tmp_path):
    """A file, and its description."""
    (tmp_path / "file").write_text("one")
    (tmp_path / "file").chmod(0o640)
    group = grp.getgrgid((tmp_path / "file").stat().st_gid).gr_name
    return {"path": str(tmp_path / "file"), "content": "one", "owner": USER, "group": group, "mode": "0640"}


@pytest.mark.parametrize("difference", [{"content": "two"}, {"mode": "0644"}, {"group": "no-such-group"}])
def test_files_that_are_not_as_described(look, file, difference):
    assert look(files=[file])["differing_files"] == []
    missing = {**file, "path": "/nowhere/at/all"}
    assert look(files=[{**file, **difference}, missing])["differing_files"] == [file["path"], missing["path"]]


@pytest.mark.parametrize("difference", [{"mode": "u=rw"}, {"path": "relative"}, {"path": "/dev/null"}])
def test_a_file_that_can_not_be_is_told(look, file, difference):
    path = difference.get("path", file["path"])
    result = look(files=[{**file, **difference}])
    assert result["failed"]
    assert path in result["msg"]


# Instances


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """A function that sets what systemctl shows. Its calls are lines of the file `calls`."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    tool = folder / "systemctl"

    def script(*units, status=0):
        output = "\n\n".join("\n".join(f"{key}={value}" for key, value in unit.items()) for unit in units)
        (tmp_path / "shown").write_text(f"{output}\n")
        tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat {tmp_path}/shown\nexit {status}\n')
        tool.chmod(0o755)
        return tmp_path / "calls"

    return script


HERE = os.getpid()
GONE = 2**22 + 1  # no process has such an id


def unit(active="active", enabled="enabled", pid=HERE, seconds_ago=100.0, reloaded_seconds_ago=None):
    """What systemd tells of a unit."""

    def moment(seconds):
        return int((time.monotonic() - seconds) * 1e6) if pid else 0

    return {
        "MainPID": pid,
        "InvocationID": f"invocation-{pid}",
        "ExecMainStartTimestampMonotonic": moment(seconds_ago),
        "StateChangeTimestampMonotonic": moment(reloaded_seconds_ago or seconds_ago),
        "ActiveState": active,
        "UnitFileState": enabled,
    }


STOPPED = unit("inactive", "", pid=0)


def test_the_states_of_instances_in_one_call(look, systemctl):
    calls = systemctl(unit(), STOPPED, unit("activating", "disabled"), unit(pid=GONE))
    result = look(instances=[{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}])
    unchanged = {
        "outdated": False, "unread": False, "configured": False, "mounted": False, "cold": None, "release": None
    }  # fmt: skip
    with open("/proc/self/cmdline") as cmdline:
        here = {**unchanged, "command": cmdline.read().split("\0")[1:-1]}
    none = {**unchanged, "command": None}
    assert result["instances"] == {
        "a": {"active": True, "user": USER, "enabled": True, **here},
        "b": {"active": False, "user": None, "enabled": False, **none},
        "c": {"active": False, "user": USER, "enabled": False, **here},
        "d": {"active": True, "user": None, "enabled": True, **none},
    }
    (call,) = calls.read_text().splitlines()
    assert call.startswith("show --property=")
    assert call.endswith(" -- memcached@a.service memcached@b.service memcached@c.service memcached@d.service")


def test_without_instances_systemctl_is_not_called(look, systemctl):
    calls = systemctl(status=1)
    assert look()["instances"] == {}
    assert not calls.exists()


def test_a_systemctl_that_fails_is_told(look, systemctl):
    systemctl(status=1)
    result = look(instances=[{"name": "a"}])
    assert result["failed"]
    assert "systemctl show" in result["cmd"]


@pytest.fixture
def aged(tmp_path):
    """A function that makes a file or link in the prefix, changed some seconds ago."""
    (tmp_path / "opt").mkdir()

    def make(name, seconds, target=None):
        path = tmp_path / "opt" / name
        if target:
            path.symlink_to(target)
        else:
            path.touch()
        changed = time.time() - seconds
        os.utime(path, (changed, changed), follow_symlinks=False)
        return str(path)

    return make


@pytest.mark.parametrize(("seconds", "outdated"), [(90, True), (110, False)])
def test_a_file_that_changed_after_the_start_makes_it_outdated(look, systemctl, aged, seconds, outdated):
    systemctl(unit(seconds_ago=100), unit(seconds_ago=100))
    files = [aged("old", 1000), aged("file", seconds), "/nowhere"]
    states = look(instances=[{"name": "a", "files": files}, {"name": "b"}])["instances"]
    assert (states["a"]["outdated"], states["b"]["outdated"]) == (outdated, False)


@pytest.mark.parametrize(("seconds", "outdated"), [(90, True), (110, False)])
def test_a_switch_after_the_start_makes_it_outdated(look, systemctl, aged, seconds, outdated):
    aged("1-a", 0)  # the age of the link counts, not that of the release
    aged("current", seconds, target="1-a")
    systemctl(unit(seconds_ago=100))
    assert look(instances=[{"name": "a"}])["instances"]["a"]["outdated"] is outdated


@pytest.mark.parametrize(("seconds", "outdated"), [(90, True), (110, False)])
def test_a_unit_that_changed_after_the_start_makes_it_outdated(look, systemctl, aged, monkeypatch, seconds, outdated):
    monkeypatch.setattr(memcached_host_info, "UNITS", os.path.dirname(aged("other@.service", seconds)))
    systemctl(unit(seconds_ago=100))
    assert look(instances=[{"name": "a"}], service="other")["instances"]["a"]["outdated"] is outdated


@pytest.mark.parametrize(
    ("seconds", "reloaded", "unread"), [(90, None, True), (110, None, False), (90, 80, False), (70, 80, True)]
)
def test_a_file_that_changed_after_the_last_reload_is_unread(look, systemctl, aged, seconds, reloaded, unread):
    systemctl(unit(seconds_ago=100, reloaded_seconds_ago=reloaded))
    (state,) = look(instances=[{"name": "a", "reread_files": [aged("file", seconds)]}])["instances"].values()
    assert (state["unread"], state["outdated"], state["configured"]) == (unread, False, True)


def test_an_instance_with_any_of_its_files_is_configured(look, systemctl, aged, tmp_path):
    systemctl(STOPPED, STOPPED)
    link = aged("link", 0, target="nowhere")
    states = look(instances=[{"name": "a", "files": ["/nowhere", link]}, {"name": "b", "files": ["/nowhere"]}])
    assert [states["instances"][name]["configured"] for name in ("a", "b")] == [True, False]


def test_what_does_not_run_is_not_outdated(look, systemctl, aged):
    systemctl(STOPPED)
    (state,) = look(instances=[{"name": "a", "files": [aged("new", 0)], "reread_files": [aged("other", 0)]}])[
        "instances"
    ].values()
    assert (state["outdated"], state["unread"]) == (False, False)


def test_the_release_that_a_process_runs(look, systemctl, tmp_path):
    """Not the one in use now, and not a program elsewhere."""
    program = tmp_path / "opt/1-a/bin/memcached"
    program.parent.mkdir(parents=True)
    shutil.copy("/usr/bin/sleep", program)
    (tmp_path / "opt/current").symlink_to("1-a")
    with subprocess.Popen([tmp_path / "opt/current/bin/memcached", "60"]) as process:
        try:
            (tmp_path / "opt/current").unlink()
            (tmp_path / "opt/current").symlink_to("2-b")
            systemctl(unit(pid=process.pid))
            (state,) = look(instances=[{"name": "a"}])["instances"].values()
        finally:
            process.kill()
    assert (state["release"], state["command"]) == ("1-a", ["60"])


@pytest.mark.parametrize(("folder", "mounted"), [("/proc", True), ("/proc/self", False), ("/nowhere", False)])
def test_whether_memory_is_mounted(look, systemctl, folder, mounted):
    systemctl(STOPPED)
    (state,) = look(instances=[{"name": "a", "memory_folder": folder}])["instances"].values()
    assert state["mounted"] is mounted


@pytest.mark.parametrize(("status", "cold"), [(0, True), (1, False)])
def test_whether_it_began_cold_is_in_the_journal(look, systemctl, tmp_path, status, cold):
    calls = systemctl(unit(), unit())
    journal = tmp_path / "path/journalctl"
    journal.write_text(f'#!/bin/sh\necho journal "$@" >> {calls}\nexit {status}\n')
    journal.chmod(0o755)
    states = look(instances=[{"name": "a", "items_expected": True}, {"name": "b"}])["instances"]
    assert (states["a"]["cold"], states["b"]["cold"]) == (cold, None)
    (call,) = [line for line in calls.read_text().splitlines() if line.startswith("journal")]
    assert call.endswith(f"--grep=starting with a clean cache _SYSTEMD_INVOCATION_ID=invocation-{HERE}")

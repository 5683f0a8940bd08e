# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which process the lab's connection enters, and when it leaves a command to docker.

Containers are played by processes.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLUGIN = ROOT / "molecule/shared/connection/namespaces.py"
DOCKER = """\
#!/bin/sh
echo "$1" >> {folder}/asked
cat {folder}/inspected
"""
ENTERED = ["mount", "uts", "ipc", "net", "pid"]

pytestmark = pytest.mark.skipif(not shutil.which("nsenter"), reason="needs nsenter")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "docker").write_text(DOCKER.format(folder=tmp_path))
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "asked").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return types.SimpleNamespace(**runpy.run_path(str(PLUGIN)))


@pytest.fixture
def asked(tmp_path):
    """A function that tells what docker was asked."""
    return lambda: (tmp_path / "asked").read_text().split()


@pytest.fixture
def start(tmp_path):
    """A function that starts a process which docker calls the first one of a container, and gives it."""
    started = []

    def start(identity: str = "/") -> subprocess.Popen[bytes]:  # which every process has in the path of its group
        process = subprocess.Popen(["sleep", "60"], env={"PATH": "/bin", "HOME": "/root"})
        started.append(process)
        (tmp_path / "inspected").write_text(f"{process.pid} {identity}\n")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_first_process_is_asked_for_once(plugin, asked, start):
    process = start()
    for _time in range(3):
        words, environment = plugin.entry("c", "root")
        assert f"--target={process.pid}" in words
        assert {f"--{name}" for name in ENTERED} <= set(words)
        assert environment == {"PATH": "/bin", "HOME": "/root"}  # nothing of this process's own
    assert asked() == ["inspect"]


def test_the_control_group_is_that_of_the_process(plugin, start):
    pid = str(start().pid)
    group = Path(plugin.control_group(pid))
    if not group.exists():
        pytest.skip("control groups are not to be seen here")
    assert pid in group.read_text().split()
    assert str(group) in plugin.entry("c", "root")[0]


def test_only_the_capabilities_of_the_container_are_kept(plugin, start):
    status = Path(f"/proc/{start().pid}/status").read_text()
    mask = int(status.partition("CapBnd:")[2].split()[0], 16)
    (kept,) = [word for word in plugin.entry("c", "root")[0] if word.startswith("--bounding-set=-all")]
    assert kept.split(",")[1:] == [f"+cap_{bit}" for bit in range(64) if mask >> bit & 1]


def test_a_container_that_was_started_again_has_another_process(plugin, asked, start):
    first = start()
    assert plugin.first_process("c") == str(first.pid)
    first.kill()
    first.wait()
    second = start()
    assert plugin.first_process("c") == str(second.pid)
    assert asked() == ["inspect", "inspect"]


@pytest.mark.parametrize("note", ["", "1", "{pid} / 1", "1 another-container 1"])
def test_a_note_is_not_believed_blindly(plugin, start, tmp_path, note):
    """It may be half written, or the number may be another process's by now."""
    process = start()
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes/c").write_text(note.format(pid=process.pid))
    assert plugin.first_process("c") == str(process.pid)


@pytest.mark.parametrize("inspected", ["", "0 id", "{pid} another-machines"])
def test_what_does_not_run_here_is_left_to_docker(plugin, start, tmp_path, inspected):
    (tmp_path / "inspected").write_text(inspected.format(pid=start().pid))
    assert plugin.entry("c", "root") == (["docker", "exec", "--interactive", "--user=root", "c", "/bin/sh", "-c"], None)


def test_other_users_are_left_to_docker(plugin, asked, start, monkeypatch):
    start()
    assert plugin.entry("c", "deploy")[0][:4] == ["docker", "exec", "--interactive", "--user=deploy"]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert plugin.entry("c", "root")[0][:2] == ["docker", "exec"]
    assert asked() == []


def test_a_command_is_the_child_of_a_shell_and_its_status_is_told(plugin):
    command = subprocess.Popen([*plugin.FORK, 'echo "$PPID"; exit 7'], stdout=subprocess.PIPE, text=True)
    assert (command.communicate()[0], command.returncode) == (f"{command.pid}\n", 7)

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the lab reaches its test hosts: by entering a container's namespaces, at a tenth of the cost of `docker exec`.

A command gets what `docker exec` would give it: the container's environment, a session of its own, and no capability
that the container hasn't. It shares the container's part of the processors, so that a play doesn't starve the daemons.
What can't be entered is left to `docker exec`: a remote engine's containers, or any if this is not root. It also serves
users other than root, whose groups it knows.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: namespaces
short_description: Enter the namespaces of a container of this machine
description:
  - Runs commands in the namespaces of a container, and where that can't be by C(docker exec).
  - A password for becoming another user can't be given.
author: Tenfold contributors
extends_documentation_fragment: connection_pipelining
options:
  remote_addr:
    description: The container's name.
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
  remote_user:
    description: The user in the container.
    default: root
    vars:
      - name: ansible_user
"""

ENTER = ["--mount", "--uts", "--ipc", "--net", "--pid", "--no-fork", "--"]
# nsenter's own fork stops with its child, which a container that ends stops before it kills it: neither would ever end.
# A shell doesn't. It stays outside with its number, and so must not be replaced by the command, its only child.
FORK = ["/bin/sh", "-c", '/bin/sh -c "$1"; exit', "sh"]
JOIN = ["/bin/sh", "-c", '{ echo $$ > "$0"; } 2> /dev/null; exec "$@"']


def started(pid: str, container: str) -> str:
    """Give when a process of a container was started, in ticks since the machine's start.

    :raises ValueError: it belongs to something else.
    :raises OSError: there is no such process.
    """
    process = Path("/proc", pid)
    if container not in (process / "cgroup").read_text():
        raise ValueError(f"{pid} is no process of {container}")
    return (process / "stat").read_text().rpartition(")")[2].split()[19]


def first_process(container: str) -> str | None:
    """Give the number of a container's first process; None if its namespaces can't be entered from here.

    The engine is asked once after each start of the container: a note in the lab's cache keeps what it said.
    """
    if os.geteuid() != 0:
        return None
    note = Path(os.environ["TENFOLD_CACHE"], "processes", container)
    try:
        pid, identity, since = note.read_text().split()
        if started(pid, identity) == since:
            return pid
    except (OSError, ValueError):
        pass  # not asked yet, somebody is writing, or the container ended
    inspect = ["docker", "inspect", "--format={{.State.Pid}} {{.Id}}", container]
    try:
        pid, identity = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.split()
        since = started(pid, identity)
        if not os.path.samefile("/proc/self/ns/user", f"/proc/{pid}/ns/user"):
            return None  # its root isn't this one
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None  # it runs on another machine, or not at all, which docker can tell better
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{pid} {identity} {since}\n")
    return pid


def control_group(pid: str) -> str:
    """Give the file by which another process joins that which tells a process its share of the processors."""
    groups = [line.split(":", 2) for line in Path("/proc", pid, "cgroup").read_text().splitlines()]
    for _number, controllers, path in groups:
        if "cpu" in controllers.split(","):
            return f"/sys/fs/cgroup/{controllers}{path.rstrip('/')}/cgroup.procs"
    return f"/sys/fs/cgroup{groups[-1][2].rstrip('/')}/cgroup.procs"  # the one group of version 2


def entry(container: str, user: str) -> tuple[list[str], dict[str, str] | None]:
    """Give the words to put before a shell command for a container, and their environment if not this one's."""
    setpriv, nsenter = shutil.which("setpriv"), shutil.which("nsenter")
    pid = first_process(container) if user == "root" and setpriv and nsenter else None
    if pid is None:
        return ["docker", "exec", "--interactive", f"--user={user}", container, "/bin/sh", "-c"], None
    environment = Path("/proc", pid, "environ").read_bytes().decode().split("\0")
    (bounds,) = [line for line in Path("/proc", pid, "status").read_text().splitlines() if line.startswith("CapBnd:")]
    mask = int(bounds.split()[1], 16)
    # Of root's capabilities only these survive the start of the next program. Among them is what it needs to enter.
    kept = ",".join(["-all", *(f"+cap_{bit}" for bit in range(mask.bit_length()) if mask >> bit & 1)])
    words = [
        *JOIN,
        control_group(pid),
        str(setpriv),
        "--groups=0",
        f"--bounding-set={kept}",
        str(nsenter),
        f"--target={pid}",
        *ENTER,
        *FORK,
    ]
    return words, dict(pair.split("=", 1) for pair in environment if "=" in pair)


def run(container: str, user: str, command: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a shell command in a container; give its status, and output and errors as bytes.

    Options are those of `subprocess.run`: nothing is put in and all is kept if they don't tell otherwise.
    """
    words, environment = entry(container, user)
    usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    if "stdin" not in options:
        usual["input"] = b""
    return subprocess.run([*words, command], env=environment, check=False, **(usual | options))


class Connection(ConnectionBase):
    """Ansible's view of it: commands with their input, and files."""

    transport = "namespaces"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True  # there is nothing to keep
        return self

    def _run(self, command: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        return run(self.get_option("remote_addr"), self.get_option("remote_user"), command, **options)

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a command; give its status, output and errors."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = self._run(cmd, input=in_data or b"")
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file to the container."""
        super().put_file(in_path, out_path)
        with open(in_path, "rb") as file:
            self._copied(out_path, self._run(f"cat > {shlex.quote(out_path)}", stdin=file))

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file from the container."""
        super().fetch_file(in_path, out_path)
        with open(out_path, "wb") as file:
            self._copied(in_path, self._run(f"cat {shlex.quote(in_path)}", stdout=file))

    def _copied(self, path: str, done: subprocess.CompletedProcess[Any]) -> None:
        if done.returncode != 0:
            raise AnsibleConnectionFailure(f"{path} on {self.get_option('remote_addr')}: {done.stderr.decode()}")

    def close(self) -> None:
        """End nothing: there is nothing to keep."""
        self._connected = False

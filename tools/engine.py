"""Find, install, start and stop the Docker engine that the test hosts run in.

The rules that keep this safe on a machine that other people use too:

* an engine that answers is used as it is, and never stopped from here;
* a second ``dockerd`` is never started beside a running one (it would take the first one's bridge);
* only the process that this checkout started is ever ended: its pid *and* command line must match.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("docker.io", "iptables", "ca-certificates")
START_TIMEOUT = 60  # seconds until a freshly started engine has to answer
STOP_TIMEOUT = 60
# systemd in a container takes about five of these. Linux gives root 128: not enough for two scenarios at once.
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INSTANCES = 512


class EngineError(RuntimeError):
    """The engine can't be had; the message says what to do about it."""


def answers() -> bool:
    """Tell whether an engine answers to the docker client as this environment sets it up."""
    if not shutil.which("docker"):
        return False
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def up(state: Path) -> str:
    """Make an engine answer.

    :param state: directory for the lock, the pid file and the log; made when missing.
    :return: one sentence on what was found or done.
    :raises EngineError: no engine answers and none could be installed or started.
    """
    if answers():
        return "an engine answers already: using it"
    if os.environ.get("DOCKER_HOST"):
        raise EngineError(
            f"no Docker engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}: "
            "start it, or unset DOCKER_HOST to use one on this machine"
        )
    if os.geteuid() != 0:
        raise EngineError(
            "no Docker engine answers: start one (for example 'sudo systemctl start docker') and "
            "make sure that this user may use it; only root can be helped further from here"
        )
    with _locked(state):
        if answers():
            return "another run started the engine: using it"
        installed = _install()
        if Path("/run/systemd/system").is_dir():
            subprocess.run(["systemctl", "start", "docker"], check=True)
            how = "started by systemd"
        else:
            how = _start_daemon(state)
    return f"{'installed and ' if installed else ''}{how}"


def down(state: Path) -> str:
    """End the engine if, and only if, `up` started it as a process of its own.

    :param state: the directory that `up` was given.
    :return: one sentence on what was done.
    """
    pidfile = state / "dockerd.pid"
    if not pidfile.exists():
        return "the engine was not started from here: left running"
    pid = int(pidfile.read_text())
    if not _is_dockerd(pid):
        pidfile.unlink()
        return "the engine that was started from here is gone already"
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while _is_dockerd(pid):
        if time.monotonic() > deadline:
            raise EngineError(f"dockerd (pid {pid}) did not end within {STOP_TIMEOUT} s after TERM")
        time.sleep(0.2)
    pidfile.unlink()
    _restore_inotify(state)
    return "ended the engine that was started from here"


def _install() -> bool:
    if shutil.which("dockerd"):
        return False
    if not shutil.which("apt-get"):
        raise EngineError("no Docker engine on this machine: install one for your distribution")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineError(f"{' '.join(command)} failed: {done.stderr.strip()[-800:]}")
    return True


def _start_daemon(state: Path) -> str:
    if running := [pid for pid in _pids() if _is_dockerd(pid)]:
        raise EngineError(
            f"dockerd runs (pid {running[0]}) but does not answer: look at its log, or end it, "
            "then try again; a second one is not started beside it"
        )
    _raise_inotify(state)
    log = state / "dockerd.log"
    with log.open("ab") as out:
        daemon = subprocess.Popen(["dockerd"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    (state / "dockerd.pid").write_text(f"{daemon.pid}\n")
    deadline = time.monotonic() + START_TIMEOUT
    while not answers():
        if daemon.poll() is not None or time.monotonic() > deadline:
            (state / "dockerd.pid").unlink(missing_ok=True)
            daemon.terminate()
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise EngineError(f"dockerd did not start; the end of {log}:\n{tail}")
        time.sleep(0.2)
    return f"started (pid {daemon.pid}, log {log})"


def _raise_inotify(state: Path) -> None:
    before = INOTIFY.read_text()
    if int(before) < INSTANCES:
        (state / "inotify").write_text(before)
        try:
            INOTIFY.write_text(f"{INSTANCES}\n")
        except OSError:  # not ours to change, in a container; scenarios run one at a time then
            (state / "inotify").unlink()


def _restore_inotify(state: Path) -> None:
    kept = state / "inotify"
    if kept.exists():
        INOTIFY.write_text(kept.read_text())
        kept.unlink()


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _is_dockerd(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False
    return Path(os.fsdecode(command)).name == "dockerd"


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

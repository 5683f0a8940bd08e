# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of several parts share: a network of their own, servers that run for a while, and memcacheds."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import getpass
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8914, 1  # of Linux

Serving = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session", autouse=True)
def own_network() -> Iterator[None]:
    """Let these tests have a network of their own: the loopback interface alone.

    Scenarios begin and end meanwhile, and Chromium breaks off what it loads when a network comes or goes.
    """
    system = ctypes.CDLL(None)
    with open("/proc/thread-self/ns/net") as before:  # threads that run already stay where they are
        if os.geteuid() != 0 or system.unshare(CLONE_NEWNET) != 0:
            yield
            return
        with socket.socket() as asking:
            fcntl.ioctl(asking, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        yield
        system.setns(before.fileno(), CLONE_NEWNET)


@pytest.fixture(scope="session")
def serving() -> Serving:
    """Run a server, from when it answers to the end of a block. A failure tells its log."""

    @contextlib.contextmanager
    def serving(
        command: Sequence[str | Path],
        folder: Path,
        answers: Callable[[], bool],
        turns: int = 150,
        pause: float = 0.1,
        stop: Callable[[subprocess.Popen[bytes]], None] = subprocess.Popen.terminate,
        **options: Any,
    ) -> Iterator[None]:
        """Start it in a folder, where its log goes.

        :param answers: whether it serves; while it doesn't, it may raise OSError.
        :param turns: how often to ask, with a pause in seconds after each.
        :param stop: what ends it.
        :param options: of `subprocess.Popen`.
        """
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, **options)
        try:
            for _turn in range(turns):
                with contextlib.suppress(OSError):
                    if answers():
                        break
                assert server.poll() is None, log.read_text()
                time.sleep(pause)
            else:
                pytest.fail(f"{command} does not serve: {log.read_text()}")
            yield
        finally:
            stop(server)
            server.wait(20)

    return serving


class Memcached:
    """A running memcached: options holds the module options that reach it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def connect(self) -> socket.socket:
        """A connection to it, as a plain socket."""
        if "socket" not in self.options:
            return socket.create_connection(("127.0.0.1", self.options["port"]), timeout=5)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.options["socket"])
        return connection

    def answers(self) -> bool:
        """Whether it takes connections, or else OSError."""
        self.connect().close()
        return True

    def raw(self, command: bytes) -> bytes:
        """What it answers, without TLS and login, to raw protocol text."""
        with self.connect() as connection:
            connection.sendall(command + b"\r\nquit\r\n")
            with connection.makefile("rb") as answer:
                return answer.read()


@pytest.fixture(scope="session")
def start_memcached(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Memcached]]:
    """A function that starts a memcached with some arguments, until the end of the session."""
    binary = shutil.which("memcached", path="/usr/bin:/usr/local/bin:/bin")
    if binary is None:
        pytest.skip("memcached is not installed (package memcached)")
    with contextlib.ExitStack() as running:

        def start(*arguments: str, unix: bool = False) -> Memcached:
            directory = tmp_path_factory.mktemp("memcached")
            options: dict[str, Any] = {}
            if unix:
                options["socket"] = str(directory / "s")
                listen = ["-s", options["socket"]]
            else:
                with socket.create_server(("127.0.0.1", 0)) as free:
                    options["port"] = free.getsockname()[1]
                listen = ["-l", "127.0.0.1", "-p", str(options["port"])]
            # memcached refuses to run as root unless it is told to.
            command = [binary, "-u", getpass.getuser(), "-t", "1", *listen, *arguments]
            memcached = Memcached(options)
            # It takes two seconds to end by itself.
            stop = subprocess.Popen.kill
            running.enter_context(serving(command, directory, memcached.answers, turns=250, pause=0.02, stop=stop))
            return memcached

        yield start

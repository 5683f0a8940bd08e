# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A name server and nodes that the tests change and stop as they like."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path += [str(ROOT / "examples/clients/python"), str(ROOT / "molecule/pool/load")]


class NameServer(socketserver.ThreadingUDPServer):
    """Answers from `records`: texts of records by name and type. A name without any does not exist."""

    daemon_threads = True

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl = 300
        self.answers = True
        self.queries = 0
        super().__init__(("127.0.0.1", 0), _Query)

    def resolver(self) -> dns.resolver.Resolver:
        """Give a resolver that asks this server."""
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], self.server_address[1]
        resolver.lifetime = 2.0
        return resolver

    def pool(self, name: str, members: dict[str, tuple[str, int, int]]) -> None:
        """Serve a pool's SRV records: address, port and weight by label."""
        self.records = {(f"{label}.{name}", "A"): [address] for label, (address, _port, _weight) in members.items()}
        self.records[f"_memcached._tcp.{name}", "SRV"] = [
            f"0 {weight} {port} {label}.{name}." for label, (_address, port, weight) in members.items()
        ]


class _Query(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, NameServer)
        server.queries += 1
        if not server.answers:
            return
        data, connection = self.request
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if found := server.records.get((name, kind)):
            answer.answer.append(dns.rrset.from_text(question.name, server.ttl, "IN", kind, *found))
        elif not any(known == name for known, _kind in server.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        connection.sendto(answer.to_wire(), self.client_address)


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """A name server without records."""
    with NameServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


class Node:
    """A memcached that can be stopped and started again on its port."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it serves."""
        # memcached refuses to run as root unless it is told to.
        command = [self._binary, "-u", getpass.getuser(), "-t", "1", "-l", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command)
        end = time.monotonic() + 15
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.02)
        raise RuntimeError(f"{command} did not start")

    def stop(self) -> None:
        """Stop it as a crash would."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def start_node() -> Iterator[Callable[[], Node]]:
    """A function that starts a node, until the end of the test."""
    binary = shutil.which("memcached", path="/usr/bin:/usr/local/bin:/bin")
    if binary is None:
        pytest.skip("memcached is not installed (package memcached)")
    nodes: list[Node] = []

    def start() -> Node:
        nodes.append(Node(binary))
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()

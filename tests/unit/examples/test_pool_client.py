# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the Python recipe: libmemcached's placement, members by DNS, and patience with real nodes."""

from __future__ import annotations

import collections
import json
import logging
import shutil
import socketserver
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dns.resolver
import pytest
from pool_client import KetamaRing, PoolClient
from pymemcache.client.hash import HashClient
from pymemcache.exceptions import MemcacheUnexpectedCloseError

ROOT = Path(__file__).resolve().parents[3]
VECTORS = Path(__file__).with_name("vectors.json")  # libmemcached's answers, through php-memcached
POOLS = json.loads(VECTORS.read_text())["pools"]
NAME = "cache.site.test"
TEN = {"a": ("192.0.2.1", 11211, 10), "b": ("192.0.2.2", 11212, 10)}


def members_of(client: PoolClient) -> set[str]:
    """The nodes that a client places keys on."""
    return {client.hasher.get_node(f"key:{number}") for number in range(500)}


# The ring


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: f"{len(pool['weights'])}-{min(pool['weights'])}")
def test_ring_places_keys_as_libmemcached_does(pool):
    ring = KetamaRing(pool["weights"])
    nodes = list(pool["weights"])
    placed = [nodes.index(ring.get_node(f"key:{number}")) for number in range(len(pool["owners"]))]
    assert placed == pool["owners"]


def _has_php() -> bool:
    """Whether there is a PHP with php-memcached."""
    php = shutil.which("php")
    return php is not None and b"\nmemcached\n" in subprocess.run([php, "-m"], capture_output=True, check=False).stdout


@pytest.mark.skipif(not _has_php(), reason="php-memcached is not installed here: the scenario pool has it")
def test_php_places_keys_as_the_vectors_say():
    load = ROOT / "molecule/pool/load/load.php"
    done = subprocess.run(["php", load, "--check-vectors", VECTORS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout == f"{len(POOLS)} pools agree\n"


def test_ring_serves_a_plain_hash_client():
    pool = next(pool for pool in POOLS if len(pool["weights"]) == 10)
    client = HashClient(list(pool["weights"]), hasher=KetamaRing)
    nodes = list(pool["weights"])
    placed = [nodes.index(client.hasher.get_node(f"key:{number}".encode())) for number in range(200)]
    assert placed == pool["owners"]
    client.hasher.remove_node(nodes[-1])
    assert client.hasher.get_node("key:0") == KetamaRing(dict.fromkeys(nodes[:-1], 1)).get_node("key:0")


def test_tenth_node_takes_about_a_tenth_of_the_keys():
    keys = [f"key:{number}" for number in range(5000)]
    moved, largest = [], []
    for network in range(20):  # each set of addresses makes another ring
        nodes = [f"10.1.{network}.{number}:11211" for number in range(1, 11)]
        before, after = KetamaRing(dict.fromkeys(nodes[:-1], 1)), KetamaRing(dict.fromkeys(nodes, 1))
        owners = {key: after.get_node(key) for key in keys}
        changed = [key for key in keys if before.get_node(key) != owners[key]]
        assert {owners[key] for key in changed} == {nodes[-1]}
        moved.append(len(changed) / len(keys) * 10)
        largest.append(max(collections.Counter(owners.values()).values()) / len(keys) * 10)
    assert 0.95 <= statistics.mean(moved) <= 1.05
    assert max(moved) <= 1.35
    assert statistics.mean(largest) <= 1.2
    assert max(largest) <= 1.35


def test_empty_ring_has_no_node():
    assert KetamaRing().get_node("key") is None


# Members by DNS


@pytest.fixture
def client(name_server) -> Callable[..., PoolClient]:
    """A function that makes a client of the pool."""
    return lambda **options: PoolClient(NAME, resolver=name_server.resolver(), **options)


def test_members_and_weights_are_the_srv_records(name_server, client):
    name_server.pool(NAME, {"a": ("192.0.2.1", 11211, 10), "b": ("192.0.2.2", 11212, 30), "c": ("192.0.2.3", 11211, 0)})
    ring = KetamaRing({"192.0.2.1:11211": 10, "192.0.2.2:11212": 30, "192.0.2.3:11211": 1})
    found = client().hasher
    assert [found.get_node(str(number)) for number in range(500)] == [ring.get_node(str(n)) for n in range(500)]


def test_member_is_placed_by_its_lowest_address(name_server, client):
    name_server.pool(NAME, TEN)
    name_server.records[f"b.{NAME}", "A"] = ["192.0.2.20", "192.0.2.9"]
    assert members_of(client()) == {"192.0.2.1:11211", "192.0.2.9:11212"}


def test_member_with_ipv6_only(name_server, client):
    name_server.pool(NAME, TEN)
    del name_server.records[f"b.{NAME}", "A"]
    name_server.records[f"b.{NAME}", "AAAA"] = ["2001:db8::2"]
    assert members_of(client()) == {"192.0.2.1:11211", "2001:db8::2:11212"}


def test_name_without_srv_records_gives_its_addresses(name_server, client):
    name_server.records[NAME, "A"] = ["192.0.2.1", "192.0.2.2"]
    assert members_of(client(port=11213)) == {"192.0.2.1:11213", "192.0.2.2:11213"}


def test_pool_has_to_answer_first(name_server, client):
    with pytest.raises(dns.resolver.NXDOMAIN):
        client()
    name_server.answers = False
    with pytest.raises(dns.resolver.LifetimeTimeout):
        client()


def _down(server: Any) -> None:
    server.answers = False


def _nothing(server: Any) -> None:
    server.records = {}


def _no_srv(server: Any) -> None:
    del server.records[f"_memcached._tcp.{NAME}", "SRV"]
    server.records[NAME, "A"] = ["192.0.2.1"]


def _no_address(server: Any) -> None:
    del server.records[f"b.{NAME}", "A"]


@pytest.mark.parametrize("failure", [_down, _nothing, _no_srv, _no_address])
def test_failed_answer_keeps_the_members(name_server, client, caplog, failure):
    name_server.pool(NAME, TEN)
    cache = client()
    before = members_of(cache)
    failure(name_server)
    with caplog.at_level(logging.WARNING):
        cache.renew()
    assert members_of(cache) == before
    assert f"keeping the 2 members of {NAME}" in caplog.text


def test_change_is_seen_when_the_answer_is_old(name_server, client, start_node):
    nodes = [start_node() for _number in range(3)]
    members = {f"n{node.port}": ("127.0.0.1", node.port, 10) for node in nodes}
    names = {f"127.0.0.1:{node.port}" for node in nodes}
    leaving = f"n{nodes[0].port}"
    name_server.ttl = 1
    name_server.pool(NAME, {label: member for label, member in members.items() if label != leaving})
    cache = client()
    assert members_of(cache) == names - {f"127.0.0.1:{nodes[0].port}"}

    def wait_for(expected):
        end = time.monotonic() + 20
        while members_of(cache) != expected and time.monotonic() < end:
            cache.get("key")
            time.sleep(0.05)
        assert members_of(cache) == expected

    name_server.pool(NAME, members)
    wait_for(names)
    assert cache.set_many({f"key:{number}": b"x" for number in range(100)}) == []
    del members[f"n{nodes[1].port}"]
    name_server.pool(NAME, members)
    wait_for(names - {f"127.0.0.1:{nodes[1].port}"})
    cache.renew()
    assert set(cache.clients) == members_of(cache), "the connection of the node that left is closed"


def test_commands_do_not_wait_for_a_name_server_that_is_down(name_server, client, start_node):
    name_server.ttl = 1
    name_server.pool(NAME, {"a": ("127.0.0.1", start_node().port, 10)})
    cache = client()
    cache.set("key", "value")
    name_server.answers = False
    asked = name_server.queries
    slowest = 0.0
    end = time.monotonic() + 3
    while time.monotonic() < end:
        start = time.monotonic()
        assert cache.get("key") == b"value"
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.02)
    assert name_server.queries > asked
    assert slowest < 1.5


def test_idle_client_asks_before_it_uses_old_members(name_server, client, start_node):
    old, new = start_node(), start_node()
    name_server.pool(NAME, {"a": ("127.0.0.1", old.port, 10)})
    cache = client()
    name_server.pool(NAME, {"a": ("127.0.0.1", new.port, 10)})
    old.stop()
    cache._due -= 400  # as if that many seconds had passed
    assert cache.set("key", "value")


def test_threads_share_a_client_while_members_change(name_server, client, start_node):
    members = {f"n{number}": ("127.0.0.1", start_node().port, 10) for number in range(3)}
    name_server.pool(NAME, members)
    cache = client(use_pooling=True)
    end = time.monotonic() + 2

    def work(thread):
        done = 0
        while time.monotonic() < end:
            keys = {f"{thread}:{number}": b"%d" % number for number in range(20)}
            assert cache.set_many(keys) == []
            assert keys.items() >= cache.get_many(keys).items()
            done += 1
        return done

    with ThreadPoolExecutor() as pool:
        workers = [pool.submit(work, thread) for thread in range(4)]
        for number in range(20):
            name_server.pool(NAME, dict(list(members.items())[number % 2 :]))
            cache.renew()
            time.sleep(0.1)
        assert min(worker.result() for worker in workers) > 0


# Patience


@pytest.fixture
def node(name_server, start_node) -> Any:
    """The one node of the pool."""
    node = start_node()
    name_server.pool(NAME, {"a": ("127.0.0.1", node.port, 10)})
    return node


@pytest.mark.parametrize(
    ("command", "arguments", "result"),
    [("set", ["key", b"1"], True), ("get", ["key"], None), ("incr", ["key", 1], None), ("add", ["key", b"1"], True)],
)
def test_command_waits_for_a_node_that_restarts(client, node, command, arguments, result):
    cache = client()
    cache.set("key", b"0")
    node.stop()
    restart = threading.Timer(0.5, node.start)
    restart.start()
    start = time.monotonic()
    try:
        assert getattr(cache, command)(*arguments) == result
        assert time.monotonic() - start >= 0.4
    finally:
        restart.join()


@pytest.mark.parametrize(
    ("command", "arguments", "result"),
    [("set", ["key", b"1"], True), ("get", ["key"], None), ("incr", ["key", 1], None)],
)
def test_restart_between_commands_is_not_noticed(client, node, command, arguments, result):
    cache = client()
    cache.set("key", b"0")
    node.stop()
    node.start()
    assert getattr(cache, command)(*arguments) == result


def test_patience_ends_with_an_error(client, node):
    cache = client(patience=0.3)
    cache.set("key", b"0")
    node.stop()
    start = time.monotonic()
    with pytest.raises(OSError):
        cache.get("key")
    assert time.monotonic() - start >= 0.3
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1 port \d+ has been away for more than 0\.3 s"):
        cache.incr("key", 1)
    assert time.monotonic() - start < 0.3, "later commands fail at once"
    cache.close()
    node.start()
    time.sleep(1.1)
    assert cache.set("key", b"1")


def test_failure_is_a_miss_where_errors_are_not_wanted(client, node):
    cache = client(patience=0.1, ignore_exc=True)
    node.stop()
    assert cache.get("key") is None
    assert cache.get_many(["key", "other"]) == {}
    assert cache.set("key", b"1") is False
    assert cache.set_many({"key": b"1", "other": b"2"}) == ["key", "other"]


class Breaking(socketserver.ThreadingTCPServer):
    """A node that does what it is asked to and is gone before it answers."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.commands: list[str] = []
        super().__init__(("127.0.0.1", 0), _Break)


class _Break(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, Breaking)
        for line in self.rfile:
            command = line.split()[0].decode()
            if command != "version":
                server.commands.append(command)
                return
            self.wfile.write(b"VERSION 1.6.38\r\n")


@pytest.fixture
def breaking(name_server) -> Iterator[Breaking]:
    """The one node of the pool, which never answers."""
    with Breaking() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        name_server.pool(NAME, {"a": ("127.0.0.1", server.server_address[1], 10)})
        yield server
        server.shutdown()


@pytest.mark.parametrize("command", ["add", "append", "cas", "decr", "incr", "prepend", "replace"])
def test_command_that_may_have_been_done_is_not_sent_twice(client, breaking, command):
    special: dict[str, list[Any]] = {"incr": [1], "decr": [1], "cas": [b"1", b"7"]}
    with pytest.raises((MemcacheUnexpectedCloseError, ConnectionError)):
        getattr(client(patience=0.3), command)("key", *special.get(command, [b"1"]))
    assert breaking.commands == [command]


def test_command_that_can_be_repeated_is_sent_again(client, breaking):
    with pytest.raises((MemcacheUnexpectedCloseError, ConnectionError)):
        client(patience=1.0).get("key")
    assert len(breaking.commands) > 1

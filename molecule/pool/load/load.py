#!/usr/bin/env python3
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use a pool as an application does, over one connection to each node, and report what was seen.

A value names its key and version, and no other program uses its keys, so that a wrong or old value is noticed. An old
one is natural after a key has moved to another node and back: it is counted as stale, not as an error.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any

import dns.resolver
from pool_client import KetamaRing, PoolClient
from pymemcache.client.base import Client

PADDING = b"." * 200
LIFETIME = 3600  # seconds
ERRORS_TOLD = 10
BATCH = 20  # operations
SHARES = {"get": 80, "set": 8, "get_many": 6, "delete": 2, "incr": 4}  # in a hundred operations


class Load:
    """A cache's user: it knows which version of each value it has written."""

    def __init__(self, cache: Any, keys: int) -> None:
        self.cache = cache
        self.keys = keys
        self.prefix = f"{socket.gethostname()}-{os.getpid()}"
        self.sent: dict[str, int] = collections.defaultdict(int)  # the newest version that was sent
        self.stored: dict[str, int] = collections.defaultdict(int)  # no older version may be seen
        self.counters: dict[str, tuple[int, int]] = {}  # the last value, and how many answers were lost since
        self.operations: collections.Counter[str] = collections.Counter()
        self.counts = dict.fromkeys(["errors", "hits", "misses", "stale", "wrong"], 0)
        self.told: list[dict[str, Any]] = []
        self.timeline: list[dict[str, Any]] = []
        self.latencies: collections.Counter[int] = collections.Counter()  # by microseconds of two digits
        self.longest = 0.0

    def key(self) -> str:
        return f"{self.prefix}:{random.randrange(self.keys)}"

    def do(self, name: str, *arguments: Any) -> Any:
        """Do one command. Its error is counted, and its answer is then None."""
        self.operations[name] += 1
        start = time.perf_counter()
        try:
            return getattr(self.cache, name)(*arguments)
        except Exception as error:
            self.counts["errors"] += 1
            if len(self.told) < ERRORS_TOLD:
                message = f"{type(error).__name__}: {error}"
                self.told.append({"time": time.time(), "operation": name, "message": message})
            return None
        finally:
            took = time.perf_counter() - start
            self.longest = max(self.longest, took)
            self.latencies[_two_digits(int(took * 1e6))] += 1

    def write(self, key: str) -> None:
        self.sent[key] += 1
        if self.do("set", key, b"%s %d %s" % (key.encode(), self.sent[key], PADDING), LIFETIME):
            self.stored[key] = self.sent[key]

    def check(self, key: str, value: bytes) -> None:
        self.counts["hits"] += 1
        name, version, _padding = value.split(b" ", 2)
        if name.decode() != key or int(version) > self.sent[key]:
            self.counts["wrong"] += 1
        elif int(version) < self.stored[key]:
            self.counts["stale"] += 1

    def missed(self, key: str) -> None:
        self.counts["misses"] += 1
        self.write(key)

    def get(self) -> None:
        errors, key = self.counts["errors"], self.key()
        if (value := self.do("get", key)) is not None:
            self.check(key, value)
        elif self.counts["errors"] == errors:
            self.missed(key)

    def get_many(self) -> None:
        keys = {self.key() for _number in range(10)}
        found = self.do("get_many", list(keys))
        if found is None:
            return
        for key, value in found.items():
            self.check(key, value)
        for key in keys - found.keys():
            self.missed(key)

    def set(self) -> None:
        self.write(self.key())

    def delete(self) -> None:
        key = self.key()
        if self.do("delete", key) is not None:
            self.stored[key] = self.sent[key] + 1
            self.sent[key] += 1

    def incr(self) -> None:
        key = f"{self.prefix}:counter:{random.randrange(100)}"
        last, lost = self.counters.get(key, (0, 0))
        errors = self.counts["errors"]
        value = self.do("incr", key, 1)
        if self.counts["errors"] > errors:
            self.counters[key] = last, lost + 1
        elif value is None:  # it continues where it was, as an application would read it from its database
            self.do("set", key, str(last), LIFETIME)
        else:
            self.counts["wrong"] += value > last + lost + 1
            self.counts["stale"] += value <= last
            self.counters[key] = (value, 0) if value > last else (last, lost)

    def fill(self) -> None:
        """Write every key once."""
        for number in range(self.keys):
            self.write(f"{self.prefix}:{number}")

    def run(self, rate: float, until: Path | None, report: Path) -> None:
        """Work at so many operations a second until the file appears; write the report each second and at the end."""
        started = time.time()
        before = {**self.counts, "operations": 0}
        kinds, weights = list(SHARES), list(SHARES.values())
        second = math.floor(started)
        while True:
            due = time.monotonic() + BATCH / rate
            for kind in random.choices(kinds, weights, k=BATCH):
                getattr(self, kind)()
            time.sleep(max(due - time.monotonic(), 0))
            if (now := math.floor(time.time())) == second:
                continue
            counts = {**self.counts, "operations": self.operations.total()}
            self.timeline.append({"time": second, **{name: counts[name] - before[name] for name in counts}})
            before, second = counts, now
            ended = until is not None and until.exists()
            self.write_report(report, started, ended)
            if ended:
                return

    def write_report(self, path: Path, started: float, ended: bool) -> None:
        now = time.time()
        report = {
            "started": started,
            "written": now,
            "ended": ended,
            "operations": dict(self.operations),
            "rate": self.operations.total() / (now - started),
            **self.counts,
            "messages": self.told,
            "hit_rate": self.counts["hits"] / max(self.counts["hits"] + self.counts["misses"], 1),
            "latency_ms": {
                **{name: self.percentile(share) for name, share in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)]},
                "max": self.longest * 1000,
            },
            "timeline": self.timeline,
        }
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(report))
        new.replace(path)

    def percentile(self, share: float) -> float:
        left = share * self.latencies.total()
        for microseconds, count in sorted(self.latencies.items()):
            left -= count
            if left <= 0:
                return microseconds / 1000
        return 0.0


def _two_digits(number: int) -> int:
    scale = 10 ** max(len(str(number)) - 2, 0)
    return number // scale * scale


def check_vectors(path: Path) -> str:
    """Compare the ring with libmemcached's answers.

    :return: what to tell.
    """
    pools = json.loads(path.read_text())["pools"]
    for pool in pools:
        ring, nodes = KetamaRing(pool["weights"]), list(pool["weights"])
        if [nodes.index(ring.get_node(f"key:{n}") or "") for n in range(len(pool["owners"]))] != pool["owners"]:
            sys.exit(f"the ring of {nodes} differs")
    return f"{len(pools)} pools agree"


def connect(options: argparse.Namespace) -> Any:
    if options.direct:
        resolver = None
        if options.dns:
            resolver = dns.resolver.Resolver(configure=False)
            resolver.nameservers, resolver.lifetime = [options.dns], 1.0
        return PoolClient(options.direct, resolver=resolver)
    host, _colon, port = options.proxy.rpartition(":")
    return Client((host, int(port)), connect_timeout=10, timeout=10, no_delay=True, default_noreply=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--direct", metavar="POOL", help="find the pool's members in DNS")
    way.add_argument("--proxy", metavar="HOST:PORT", help="leave that to a proxy")
    way.add_argument("--check-vectors", type=Path, metavar="FILE", help="compare the ring with these, and end")
    parser.add_argument("--dns", metavar="ADDRESS", help="ask this name server instead of the system's")
    parser.add_argument("--keys", type=int, default=20000, help="how many keys are used")
    parser.add_argument("--fill", action="store_true", help="write every key once, ahead of all other operations")
    parser.add_argument("--rate", type=float, default=math.inf, help="at most so many operations a second")
    parser.add_argument("--until-file", type=Path, metavar="PATH", help="end when this file appears")
    parser.add_argument("--report", type=Path, default=Path("report.json"), help="where the report is written")
    options = parser.parse_args()
    if options.check_vectors:
        print(check_vectors(options.check_vectors))
    else:
        load = Load(connect(options), options.keys)
        if options.fill:
            load.fill()
        load.run(options.rate, options.until_file, options.report)


if __name__ == "__main__":
    main()

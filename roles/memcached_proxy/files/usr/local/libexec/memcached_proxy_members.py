# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the members of memcached's pools, as DNS tells them, in files for the proxy.

A change is only taken over when it was seen several times in a row, and a failed or empty answer never: a name server
that stumbles must not move keys.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import dns.exception
import dns.resolver

Members = list[tuple[str, int]]


class Source(Protocol):
    """Where members are asked for."""

    def members(self, pool: str, port: int) -> Members:
        """Give the members of a pool.

        :raises LookupError: there is no answer that names all of them.
        """


class Dns:
    """The service records of a pool, or else the addresses of its name."""

    def __init__(self, servers: list[str], port: int) -> None:
        self._resolver = dns.resolver.Resolver(configure=not servers)
        if servers:
            self._resolver.nameservers = servers
            self._resolver.port = port
        self._resolver.lifetime = 5

    def members(self, pool: str, port: int) -> Members:
        found = [
            (address, int(record.port))
            for record in self._ask(f"_memcached._tcp.{pool}", "SRV")
            for address in self._addresses(record.target.to_text())[:1]
        ]
        return found or [(address, port) for address in self._addresses(pool)]

    def _addresses(self, name: str) -> list[str]:
        """Give the addresses of a name in an order that is the same for all: the first is a member's place."""
        for kind in ("A", "AAAA"):
            if addresses := [record.address for record in self._ask(name, kind)]:
                return sorted(addresses, key=lambda address: int(ipaddress.ip_address(address)))
        raise LookupError(f"{name} has no address")

    def _ask(self, name: str, kind: str) -> list[Any]:
        try:
            return list(self._resolver.resolve(f"{name.rstrip('.')}.", kind))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError) as error:
            raise LookupError(f"{name} {kind}: {error}") from error


class Pool:
    """A pool and its file."""

    def __init__(self, folder: Path, name: str, port: int, confirmations: int) -> None:
        self.name = name
        self._port = port
        self._path = folder / name
        self._confirmations = confirmations
        self._candidate: str | None = None
        self._seen = 0
        self._failing = False

    @property
    def known(self) -> bool:
        """Whether there are members, if only those of before."""
        return self._path.exists()

    def look(self, source: Source) -> None:
        """Ask for the members, and write them when they are sure."""
        try:
            members = source.members(self.name, self._port)
        except LookupError as error:
            self._candidate = None
            if not self._failing:
                tell(f"{self.name}: the members are not known, those of before stay in use: {error}")
            self._failing = True
            return
        self._failing = False
        text = render(members)
        if self.known and self._path.read_text() == text:
            self._candidate = None
            return
        self._seen = self._seen + 1 if text == self._candidate else 1
        self._candidate = text
        if self._seen >= self._confirmations or not self.known:
            self._write(text)
            tell(f"{self.name}: {', '.join(f'{address} port {port}' for address, port in members)}")

    def _write(self, text: str) -> None:
        descriptor, scratch = tempfile.mkstemp(dir=self._path.parent, prefix=".")
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o644)
            file.write(text)
        os.replace(scratch, self._path)


def render(members: Members) -> str:
    """Give the form that the proxy reads: a digest of the lines, and a line for each member."""
    lines = "".join(sorted(f"{address} {port}\n" for address, port in members))
    return f"# {hashlib.sha256(lines.encode()).hexdigest()}\n{lines}"


def tell(message: str) -> None:
    """Write to the journal."""
    print(message, file=sys.stderr, flush=True)


def main() -> int:
    """Keep the files up to date, or with ``--once`` look once and tell whether each pool has members."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--once", action="store_true")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text())
    source = Dns(config["servers"], config["port"])
    folder = Path(config["folder"])
    pools = [Pool(folder, each["name"], each["port"], config["confirmations"]) for each in config["pools"]]
    while True:
        for pool in pools:
            pool.look(source)
        if arguments.once:
            return 0 if all(pool.known for pool in pools) else 1
        time.sleep(config["interval"])


if __name__ == "__main__":
    sys.exit(main())

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A memcached pool that is found by DNS, for pymemcache 3.5 and later with dnspython.

The pool's name gives its members, libmemcached's ring places the keys, and a node that restarts is waited for.

    cache = PoolClient("cache.example.net")
    cache.set("item:1", "value", expire=600)

It is a HashClient: one thread uses it at a time, or several with ``use_pooling=True``. A process that forks makes it
after the fork.
"""

from __future__ import annotations

import bisect
import hashlib
import ipaddress
import logging
import math
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import dns.exception
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver
from pymemcache.client.base import PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.exceptions import MemcacheUnexpectedCloseError

Server = tuple[str, int]

DEFAULT_PORT = 11211  # libmemcached leaves it out of the names on its ring
RETRY_DNS = 5.0  # seconds after a failed answer
IDLE = 5.0  # seconds that the members may be overdue before a command waits for the new ones
PROBE = 1.0  # seconds between two attempts at a node that patience has given up
PAUSE = 0.01, 0.1  # seconds before the second attempt, and at most before later ones

AWAY = (OSError, MemcacheUnexpectedCloseError)
# A lost answer does not tell whether these were done, so they are never sent twice.
ONCE = frozenset(["add", "append", "cas", "decr", "incr", "prepend", "replace"])

logger = logging.getLogger(__name__)


class KetamaRing:
    """libmemcached's weighted ketama ring with MD5, as the ``hasher`` of a HashClient.

    :param weights: nodes (``address:port``) with their weights.
    """

    def __init__(self, weights: Mapping[str, int] | None = None) -> None:
        self._weights = dict(weights or {})
        self._place()

    def add_node(self, node: str) -> None:
        """Add a node with the weight 1."""
        self._weights[node] = 1
        self._place()

    def remove_node(self, node: str) -> None:
        """Remove a node."""
        del self._weights[node]
        self._place()

    def get_node(self, key: str | bytes) -> str | None:
        """Give the node that holds a key, None on an empty ring."""
        if not self._points:
            return None
        point = _md5_points(key if isinstance(key, bytes) else key.encode())[0]
        return self._nodes[bisect.bisect_left(self._points, point) % len(self._points)]

    def _place(self) -> None:
        total = sum(self._weights.values())
        ring = []
        for node, weight in self._weights.items():
            host, _colon, port = node.rpartition(":")
            name = host if int(port) == DEFAULT_PORT else node
            for index in range(_hashes(weight, total, len(self._weights))):
                ring += [(point, node) for point in _md5_points(f"{name}-{index}".encode())]
        ring.sort()
        self._points, self._nodes = [point for point, _node in ring], [node for _point, node in ring]


def _md5_points(data: bytes) -> tuple[int, ...]:
    return struct.unpack("<4I", hashlib.md5(data, usedforsecurity=False).digest())


def _hashes(weight: int, total: int, count: int) -> int:
    """How many hashes, of four points each, a server gets: 40, but 39 for each of 25, 47, 50 … equal ones.

    That is the rounding of libmemcached's single precision.
    """
    share = _single(_single(weight) / _single(total))
    return math.floor(_single(_single(_single(share * 160) / 4 * count) + 1e-10))


def _single(number: float) -> float:
    return struct.unpack("f", struct.pack("f", number))[0]


class PoolClient(HashClient):
    """A HashClient over the members that a pool's name has now.

    :param pool: the name. It has to answer when the client is made; later an empty or failed answer changes nothing.
    :param service: the members and their weights are the SRV records of ``_service._tcp.pool``.
    :param port: of the members of a name without SRV records: those are its addresses.
    :param patience: for how many seconds a node may be away before its commands fail. The keys stay on it.
    :param resolver: another one than the system's.
    :param options: of HashClient. With ``ignore_exc=True`` a failed command is a miss instead of an error.
    """

    clients: dict[str, Any]

    def __init__(
        self,
        pool: str,
        *,
        service: str = "memcached",
        port: int = DEFAULT_PORT,
        patience: float = 5.0,
        resolver: dns.resolver.Resolver | None = None,
        **options: Any,
    ) -> None:
        if resolver is None:
            resolver = dns.resolver.Resolver()
            resolver.lifetime = 1.0
            resolver.use_edns(0, 0, 1232)  # without it 50 members do not fit into an answer
        self._pool, self._service, self._port = pool, service, port
        self._resolver, self._patience = resolver, patience
        self._has_srv: bool | None = None
        self._weights: dict[str, int] = {}
        self._away: dict[Server, tuple[float, float]] = {}  # since when, and no attempt before
        self._lock = threading.Lock()
        # Without answers to writes, one to a node that is away would be lost without an error.
        settings = {"connect_timeout": 1.0, "timeout": 1.0, "no_delay": True, "default_noreply": False, **options}
        super().__init__([], hasher=KetamaRing, **settings)
        self._apply(*self._look_up())

    def renew(self) -> None:
        """Ask DNS for the members now. A failed answer is logged and changes nothing."""
        with self._lock:
            try:
                self._apply(*self._look_up())
            except (dns.exception.DNSException, OSError) as error:
                logger.warning("keeping the %d members of %s: %s", len(self._weights), self._pool, error)
                self._due = time.monotonic() + RETRY_DNS

    def _look_up(self) -> tuple[dict[Server, int], float]:
        """Give the members with their weights, and the rest of the TTL. Raises DNSException unless all are known."""
        if self._has_srv is not False:
            try:
                answer = self._resolver.resolve(f"_{self._service}._tcp.{self._pool}", "SRV")
            except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
                if self._has_srv:  # the name's addresses would be the members at another port
                    raise
            else:
                members = {(self._address(record.target, answer), record.port): record.weight for record in answer}
                self._has_srv = True
                return members, answer.expiration - time.time()
        answer = self._addresses(dns.name.from_text(self._pool))
        self._has_srv = False
        return {(record.address, self._port): 1 for record in answer}, answer.expiration - time.time()

    def _address(self, target: dns.name.Name, answer: dns.resolver.Answer) -> str:
        """Give the one address that places a member: its lowest, as DNS gives them in any order."""
        sent = answer.response.get_rrset(answer.response.additional, target, dns.rdataclass.IN, dns.rdatatype.A)
        return min((record.address for record in sent or self._addresses(target)), key=ipaddress.ip_address)

    def _addresses(self, name: dns.name.Name) -> dns.resolver.Answer:
        try:
            return self._resolver.resolve(name, "A")
        except dns.resolver.NoAnswer:
            return self._resolver.resolve(name, "AAAA")

    def _apply(self, members: Mapping[Server, int], ttl: float) -> None:
        weights = {f"{host}:{port}": max(weight, 1) for (host, port), weight in members.items()}
        # Another thread may be using a member that left: its connection ends one renewal later.
        clients = {node: client for node, client in self.clients.items() if node in weights or node in self._weights}
        ended = [client for node, client in self.clients.items() if node not in clients]
        for server in members:
            if (node := self._make_client_key(server)) not in clients:
                clients[node] = (PooledClient if self.use_pooling else self.client_class)(server, **self.default_kwargs)
        self.clients = clients  # before the ring that leads to them
        if weights != self._weights:
            logger.info("%s has the members %s", self._pool, ", ".join(sorted(weights)))
            self.hasher = KetamaRing(weights)
        self._weights = weights
        for client in ended:
            client.close()
        self._due = time.monotonic() + max(ttl, 1.0)

    def close(self) -> None:
        """Close all connections. The next command opens its own again."""
        for client in self.clients.values():
            client.close()

    disconnect_all = close

    # The rest takes the place of HashClient's own answer to failures, which is to place the keys elsewhere.

    def _get_client(self, key: str | bytes) -> Any:
        late = time.monotonic() - self._due
        if late >= 0:
            self._due = math.inf  # one renewal at a time
            if late > IDLE:
                self.renew()
            else:
                threading.Thread(target=self.renew, daemon=True).start()
        return super()._get_client(key)

    def _safely_run_func(self, client: Any, func: Callable[..., Any], missing: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if func.__name__ not in ONCE:
                return self._patiently(client.server, func, *args, **kwargs)
            self._patiently(client.server, client.version)  # this renews a connection that a restart has closed
            return func(*args, **kwargs)
        except Exception:
            if not self.ignore_exc:
                raise
            return missing

    def _safely_run_set_many(self, client: Any, values: Mapping[Any, Any], *args: Any, **kwargs: Any) -> list[Any]:
        return self._safely_run_func(client, client.set_many, list(values), values, *args, **kwargs)

    def _patiently(self, server: Server, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        pause, longest = PAUSE
        since, again = self._away.get(server, (None, 0.0))
        if time.monotonic() < again:
            raise ConnectionError(f"{server[0]} port {server[1]} has been away for more than {self._patience} s")
        while True:
            try:
                result = func(*args, **kwargs)
            except AWAY:
                now = time.monotonic()
                since = since or now
                given_up = now - since >= self._patience
                self._away[server] = since, now + PROBE if given_up else 0.0
                if given_up:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                self._away.pop(server, None)
                return result

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the memcached modules share: connection options, one client, and typed statistics."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.common.text.converters import to_bytes, to_text

try:
    from pymemcache import exceptions as memcache_errors
    from pymemcache.client.base import Client
except ImportError:
    PYMEMCACHE_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    PYMEMCACHE_IMPORT_ERROR = None

KEY_BYTES_MAX = 250
"""Longest key memcached accepts, in bytes."""

RELATIVE_EXPIRE_MAX = 30 * 24 * 60 * 60
"""Longest lifetime, in seconds, that memcached reads as "from now"; above it is a Unix time."""

UNIX_TIME_MAX = 2**31 - 1
"""Latest Unix time memcached takes: it keeps expiry times in 32 signed bits (January 2038)."""

NEVER = -1
"""The remaining lifetime, as memcached states it, of an item that does not expire."""

# Numbers are recognised by their form, so statistics of later memcached versions get a type too.
# These hold text whatever it looks like: a version "1.6", a socket named "11211".
TEXT_STATS = frozenset(
    {
        "binding_protocol",
        "domain_socket",
        "hash_algorithm",
        "inter",
        "libevent",
        "memory_file",
        "ssl_ca_cert",
        "ssl_chain_cert",
        "ssl_ciphers",
        "ssl_key",
        "ssl_min_version",
        "stat_key_prefix",
        "umask",
        "version",
    }
)

# memcached's protocol description calls these booleans, and it writes them as 0 and 1.
ZERO_ONE_STATS = frozenset({"accepting_conns", "hash_is_expanding", "slab_reassign_running"})

SWITCHES = {"yes": True, "on": True, "no": False, "off": False}

# How memcached writes that it has none, depending on the setting and the version.
NO_VALUE = frozenset({"NULL", "(null)", ""})

CONNECTION_CONSTRAINTS: dict[str, Any] = {
    "mutually_exclusive": [("socket", "host"), ("socket", "port")],
    "required_together": [("login_user", "login_password")],
    "required_by": {"client_key": "client_cert"},
}
"""Keyword arguments for AnsibleModule that go with connection_argument_spec()."""


class MemcachedError(Exception):
    """A failure whose text is a sentence for the user: what is wrong and what to do."""


@dataclass(frozen=True)
class Item:
    """One stored item.

    value is the stored bytes; flags the number kept with them. ttl is the remaining lifetime in
    seconds, NEVER for an item that does not expire, None when the server cannot tell.
    """

    value: bytes
    flags: int
    ttl: int | None


def connection_argument_spec() -> dict[str, dict[str, Any]]:
    """The options of the memcached_client documentation fragment, for an AnsibleModule."""
    return {
        "host": {"type": "str", "default": "127.0.0.1"},
        "port": {"type": "int", "default": 11211},
        "socket": {"type": "path"},
        "timeout": {"type": "float", "default": 5.0},
        "connect_timeout": {"type": "float", "default": 5.0},
        "tls": {"type": "bool", "default": False},
        "tls_hostname": {"type": "str"},
        "validate_certs": {"type": "bool", "default": True},
        "ca_path": {"type": "path"},
        "client_cert": {"type": "path"},
        "client_key": {"type": "path", "no_log": False},
        "login_user": {"type": "str"},
        "login_password": {"type": "str", "no_log": True},
    }


def key_bytes(key: str) -> bytes:
    """The key as memcached gets it. Raises MemcachedError when memcached would refuse it."""
    raw = to_bytes(key, errors="surrogate_or_strict")
    if not raw:
        raise MemcachedError("The key is empty: give it at least one character.")
    if len(raw) > KEY_BYTES_MAX:
        raise MemcachedError(
            f"The key is {len(raw)} bytes long, and memcached takes at most {KEY_BYTES_MAX}: "
            "use a shorter key, for example a hash of this one."
        )
    if any(byte <= 0x20 or byte == 0x7F for byte in raw):
        raise MemcachedError(
            f"The key {key!r} holds a space or a control character, which memcached does not "
            "allow in keys: replace it, for example by an underscore."
        )
    return raw


def expiry_time(expire: int, server_time: int) -> int:
    """The number that tells memcached "in expire seconds" (0: never).

    memcached reads a number above 30 days as a Unix time, hence a long lifetime is sent as one,
    counted from server_time, the server's clock. Raises MemcachedError past January 2038.
    """
    if expire <= RELATIVE_EXPIRE_MAX:
        return expire
    if server_time + expire > UNIX_TIME_MAX:
        raise MemcachedError(
            f"The item would expire in {expire} seconds, after the 19th of January 2038, the last "
            "day memcached can store: give expire in seconds from now (not as a Unix time), or 0 "
            "for an item that never expires."
        )
    return server_time + expire


def parse_ttl(reply: bytes) -> int | None:
    """The remaining lifetime in the reply to "mg <key> t", None when the reply has none.

    Servers before 1.6 do not know the command, and the first 1.6 versions answer in another form.
    """
    match = re.fullmatch(rb"HD t(-1|[0-9]+)", reply.strip())
    return int(match.group(1)) if match else None


def typed_stat(name: str, value: str) -> int | float | bool | str | None:
    """One statistic as the type it has; a "NULL" or an empty one is None."""
    if value in NO_VALUE:
        return None
    if name in TEXT_STATS:
        return value
    if value in SWITCHES:
        return SWITCHES[value]
    if name in ZERO_ONE_STATS and value in ("0", "1"):
        return value == "1"
    if re.fullmatch(r"-?[0-9]+", value):
        return int(value)
    if re.fullmatch(r"-?[0-9]+\.[0-9]+", value):
        return float(value)
    return value


def typed_stats(raw: dict[str, str]) -> dict[str, Any]:
    """A reply of the stats command, by name, with typed values."""
    return {name: typed_stat(name, value) for name, value in raw.items()}


def slab_class_stats(raw: dict[str, str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The replies of "stats items" and "stats slabs", taken apart by slab class.

    Returns a list of dictionaries in the order of their slab_class (an int), each with that class's
    typed statistics, and a dictionary of the statistics that belong to no class.
    """
    classes: dict[int, dict[str, Any]] = {}
    totals: dict[str, Any] = {}
    for name, value in raw.items():
        match = re.fullmatch(r"(?:items:)?([0-9]+):(.+)", name)
        if match:
            number = int(match.group(1))
            stats = classes.setdefault(number, {"slab_class": number})
            stats[match.group(2)] = typed_stat(match.group(2), value)
        else:
            totals[name] = typed_stat(name, value)
    return [classes[number] for number in sorted(classes)], totals


class _BytesAndFlags:
    """Serializer for pymemcache: bytes are stored as they are, and read together with flags."""

    def serialize(self, key: bytes, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, key: bytes, value: bytes, flags: int) -> tuple[bytes, int]:
        return value, flags


class _NamedTlsContext(ssl.SSLContext):
    """A TLS context that expects one server name.

    pymemcache expects the address it connects to, which here is an already resolved one.
    """

    server_name: str

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        kwargs["server_hostname"] = self.server_name
        return super().wrap_socket(*args, **kwargs)


def tls_context(params: dict[str, Any]) -> ssl.SSLContext | None:
    """The TLS context for the connection options, None without TLS.

    Raises MemcachedError for options that contradict each other and for unusable files.
    """
    given = [name for name in ("tls_hostname", "ca_path", "client_cert") if params[name]]
    if not params["tls"]:
        if given:
            raise MemcachedError(f"{given[0]} has no use without TLS: set tls to true as well, or leave it out.")
        return None
    if params["socket"]:
        raise MemcachedError("memcached offers no TLS on a Unix socket: leave out tls, or give host and port.")
    context = _NamedTlsContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = params["tls_hostname"] or params["host"]
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not params["validate_certs"]:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        if params["ca_path"]:
            context.load_verify_locations(cafile=params["ca_path"])
        else:
            context.load_default_certs()
    except OSError as exc:
        raise MemcachedError(
            f"The certificates in ca_path {params['ca_path']} cannot be read ({exc}): give a PEM "
            "file on the host the module runs on, readable by the task's user."
        ) from exc
    if params["client_cert"]:
        try:
            # An empty pass phrase: OpenSSL would otherwise ask for one on the terminal, and wait.
            context.load_cert_chain(params["client_cert"], params["client_key"], password="")
        except (OSError, ValueError) as exc:
            key_file = params["client_key"] or params["client_cert"]
            raise MemcachedError(
                f"The certificate in client_cert {params['client_cert']} cannot be used with the "
                f"key in {key_file} ({exc}): give PEM files that belong together, with a key that "
                "has no pass phrase, readable by the task's user."
            ) from exc
    return context


class MemcachedClient:
    """A connection to one memcached, whose methods all raise MemcachedError when they fail.

    params holds the values of connection_argument_spec(); warn takes a warning for the user.
    Keys are the bytes of key_bytes(). version is the server's version, after connect().
    """

    def __init__(self, params: dict[str, Any], warn: Callable[[str], None]) -> None:
        for name in ("timeout", "connect_timeout"):
            if params[name] <= 0:
                raise MemcachedError(f"{name} is {params[name]}: give seconds greater than 0.")
        if not 0 < params["port"] < 65536:
            raise MemcachedError(f"port is {params['port']}: give a number from 1 to 65535.")
        for name in ("login_user", "login_password"):
            if " " in (params[name] or ""):
                raise MemcachedError(
                    f"{name} holds a space, which memcached takes for the end of a name or "
                    "password: choose another one for the authentication file."
                )
        self._params = params
        self._warn = warn
        self._tls = tls_context(params)
        self._client: Any = None
        self.version = ""
        if params["socket"]:
            self.address = f"the socket {params['socket']}"
        else:
            self.address = f"{params['host']} port {params['port']}"

    def __enter__(self) -> MemcachedClient:
        self.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect to the first of the host's addresses that answers, and log in if it asks."""
        with self._sentences():
            failure: OSError | None = None
            for server in self._servers():
                self._client = Client(
                    server,
                    serde=_BytesAndFlags(),
                    timeout=self._params["timeout"],
                    connect_timeout=self._params["connect_timeout"],
                    default_noreply=False,
                    tls_context=self._tls,
                )
                try:
                    self._log_in()
                    return
                except OSError as exc:
                    failure = exc
            if failure:
                raise failure

    def close(self) -> None:
        """Close the connection; nothing happens when there is none."""
        if self._client is not None:
            self._client.close()

    def fetch(self, key: bytes) -> Item | None:
        """The item with this key, None when there is none."""
        with self._sentences():
            found = self._client.get(key)
            if found is None:
                return None
            value, flags = found
            return Item(value, flags, parse_ttl(self._request(b"mg " + key + b" t")[-1]))

    def store(self, key: bytes, value: bytes, expiry: int, flags: int) -> None:
        """Store an item. expiry is a result of expiry_time()."""
        with self._sentences():
            try:
                self._client.set(key, value, expire=expiry, flags=flags)
            except memcache_errors.MemcacheServerError as exc:
                # The largest value is less than the limit, by the key and memcached's own fields.
                if "too large" in str(exc):
                    raise self._too_large(value) from exc
                raise

    def touch(self, key: bytes, expiry: int) -> bool:
        """Set the expiry (a result of expiry_time()) of an item; False when there is none."""
        with self._sentences():
            return bool(self._client.touch(key, expire=expiry))

    def delete(self, key: bytes) -> bool:
        """Delete an item; False when there was none."""
        with self._sentences():
            return bool(self._client.delete(key))

    def stats(self, section: str = "") -> dict[str, str]:
        """The reply of "stats <section>", by name, untyped.

        pymemcache's own call loses part of it: it cuts values at spaces, makes slab_automove 2 a
        boolean, and version 3.5.0 fails at an empty value.
        """
        with self._sentences():
            *lines, end = self._request(f"stats {section}".rstrip().encode())
            if end != b"END":
                raise MemcachedError(
                    f"memcached at {self.address} does not give these statistics: it answered "
                    f"{to_text(end)!r} to 'stats {section}'."
                )
            # "STAT <name> <value>", where the value may be missing or have spaces.
            fields = [[*to_text(line).split(" ", 2), ""] for line in lines]
            return {field[1]: field[2] for field in fields}

    def server_time(self) -> int:
        """The server's clock, as a Unix time in seconds."""
        return int(self.stats()["time"])

    def ensure_fits(self, value: bytes) -> None:
        """Raise MemcachedError for a value that is larger than the server's largest item.

        memcached drops the stored item when it refuses a new value, so this is asked beforehand.
        """
        if len(value) > self._item_size_max():
            raise self._too_large(value)

    def _item_size_max(self) -> int:
        return int(self.stats("settings")["item_size_max"])

    def _too_large(self, value: bytes) -> MemcachedError:
        return MemcachedError(
            f"The value is {len(value)} bytes long, too large for memcached at {self.address}: its "
            f"largest item, key and some 50 bytes of its own included, is {self._item_size_max()} "
            "bytes (item_size_max). Store less, or start the instance with a larger -I."
        )

    def _servers(self) -> list[str | tuple[str, int]]:
        """What to hand to pymemcache, in the order to try.

        pymemcache tries only one address of a host name, and "localhost" often means ::1 first.
        """
        if self._params["socket"]:
            return [f"unix:{self._params['socket']}"]
        found = socket.getaddrinfo(self._params["host"], self._params["port"], type=socket.SOCK_STREAM)
        return [(str(address[4][0]), int(address[4][1])) for address in found]

    def _log_in(self) -> None:
        """Open the connection, and log in with memcached's ASCII authentication if it asks.

        A login is a "set" of user and password. A server without authentication would store it for
        all to read, so a harmless command comes first, to see whether a login is needed.
        """
        user = self._params["login_user"]
        try:
            self._read_version()
        except memcache_errors.MemcacheClientError as exc:
            if "unauthenticated" not in str(exc):
                raise
            if user is None:
                raise MemcachedError(
                    f"memcached at {self.address} asks for a login: set login_user and "
                    "login_password to an entry of its authentication file."
                ) from exc
        else:
            if user is not None:
                self._warn(
                    f"memcached at {self.address} asks for no login, so login_user and "
                    "login_password were not sent: it runs without an authentication file."
                )
            return
        try:
            self._client.set(b"login", to_bytes(f"{user} {self._params['login_password']}"))
        except memcache_errors.MemcacheClientError as exc:
            raise MemcachedError(
                f"memcached at {self.address} refused the login of {user}: compare login_user and "
                "login_password with its authentication file."
            ) from exc
        self._read_version()

    def _read_version(self) -> None:
        self.version = to_text(self._client.version())

    def _request(self, command: bytes) -> list[bytes]:
        """Send a command that pymemcache has no (or no lossless) call for.

        Returns the lines of the reply: those that begin with "STAT ", and the one after them.
        """
        if self._client.sock is None:
            self.connect()
        self._client.sock.sendall(command + b"\r\n")
        lines: list[bytes] = []
        with self._client.sock.makefile("rb") as reply:
            for line in reply:
                lines.append(line.rstrip(b"\r\n"))
                if not line.startswith(b"STAT "):
                    return lines
        raise memcache_errors.MemcacheUnexpectedCloseError()

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn the exceptions of sockets, TLS and pymemcache into a MemcachedError."""
        try:
            yield
        except memcache_errors.MemcacheUnexpectedCloseError as exc:
            raise MemcachedError(self._describe(ConnectionResetError())) from exc
        except memcache_errors.MemcacheError as exc:
            answer = exc.args[0] if exc.args else type(exc).__name__
            raise MemcachedError(
                f"memcached at {self.address} refused the command: {to_text(answer)}. Look at the "
                "instance's log and at its memory and item limits."
            ) from exc
        except OSError as exc:
            raise MemcachedError(self._describe(exc)) from exc

    def _describe(self, exc: OSError) -> str:
        """The sentence for a failure of the connection."""
        params = self._params
        if isinstance(exc, ssl.SSLCertVerificationError):
            source = f"ca_path {params['ca_path']}" if params["ca_path"] else "the system's CAs"
            return (
                f"The certificate of memcached at {self.address} was refused "
                f"({exc.verify_message}), checked with {source} for the name "
                f"{params['tls_hostname'] or params['host']}: give the CA's file as ca_path, and "
                "as tls_hostname a name the certificate is made for."
            )
        if isinstance(exc, ssl.SSLError):
            certificate = params["client_cert"] or "none"
            return (
                f"TLS with memcached at {self.address} failed ({exc.reason or exc}): check that "
                "the instance runs with TLS, and, if it asks for a client's certificate, "
                f"client_cert (now: {certificate})."
            )
        if isinstance(exc, socket.timeout):
            return (
                f"memcached at {self.address} did not answer within connect_timeout "
                f"({params['connect_timeout']} s) or timeout ({params['timeout']} s): check the "
                "address, the firewall and whether it expects TLS, or allow more time."
            )
        if isinstance(exc, socket.gaierror):
            return f"The host name {params['host']} has no address ({exc.strerror}): check host."
        if isinstance(exc, ConnectionRefusedError):
            return (
                f"Nothing listens at {self.address}: start the memcached instance, or give the address it listens on."
            )
        if isinstance(exc, (ConnectionResetError, BrokenPipeError)):
            hint = (
                "set client_cert if it asks for a client's certificate, and tls to false if it expects no TLS"
                if params["tls"]
                else "set tls to true if it expects TLS"
            )
            return (
                f"memcached at {self.address} closed the connection: {hint}, and check its log and "
                "its connection limit."
            )
        if params["socket"] and isinstance(exc, FileNotFoundError):
            return (
                f"There is no socket {params['socket']}: start the memcached instance, or give the "
                "path it was started with (-s)."
            )
        if params["socket"] and isinstance(exc, PermissionError):
            return (
                f"The task's user may not open the socket {params['socket']}: use become, or start "
                "the instance with a wider access mask (-a)."
            )
        return f"The connection to memcached at {self.address} failed: {exc}."


def open_client(module: AnsibleModule) -> MemcachedClient:
    """The client for a module's connection options, to be used in a with statement.

    Ends the module when pymemcache is missing; raises MemcachedError for unusable options.
    """
    if PYMEMCACHE_IMPORT_ERROR:
        module.fail_json(
            msg=missing_required_lib("pymemcache")
            + ". Install the package python3-pymemcache (on Enterprise Linux it is in EPEL), or "
            "pymemcache with pip.",
            exception=PYMEMCACHE_IMPORT_ERROR,
        )
    return MemcachedClient(module.params, module.warn)

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may see the page: passwords or the proxy's word, a limit of tries, and tokens for forms."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flask import Flask, Request, request, session
from flask.sessions import SecureCookieSessionInterface
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.security import check_password_hash

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROLES = ("reader", "admin")
# Checked where there is no such user, so that the time taken does not tell. No password has this hash.
_NOBODY = f"scrypt:32768:8:1$nobody${'0' * 128}"
_PROXIED = "mailreport.proxied"
_OWN_PATH = re.compile(r"/(?![/\\])[!-~]*")


@dataclass(frozen=True)
class User:
    """Who asks."""

    name: str
    role: str
    mark: str = ""  # changes with the password: sessions of an old password end

    @property
    def is_admin(self) -> bool:
        """Tell whether the user may see the audit log."""
        return self.role == "admin"


class Users:
    """The users file: `{"alice": {"password": "scrypt:…", "role": "reader"}}`, read each time, as it may change."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, name: str, password: str) -> User | None:
        """Give the user if the password is right."""
        entry = self._entries().get(name, {})
        right = check_password_hash(entry.get("password") or _NOBODY, password)
        return self.get(name) if right else None

    def get(self, name: str) -> User | None:
        """Give the user of a name."""
        entry = self._entries().get(name)
        if entry is None:
            return None
        mark = hashlib.sha256(entry.get("password", "").encode()).hexdigest()[:16]
        return User(name, entry["role"] if entry.get("role") in ROLES else "reader", mark)

    def _entries(self) -> dict[str, dict[str, str]]:
        return json.loads(self._path.read_bytes())


class Lockout:
    """Counts tries to log in, in a file that all of the server's processes share.

    A name from one address has `tries` in so many minutes; a name from everywhere, and an address for all names, ten
    times as many: neither can one guess from many places, nor easily lock others out.
    """

    def __init__(self, path: Path, tries: int, minutes: int) -> None:
        self._path = path
        self._tries = tries
        self._seconds = minutes * 60
        with self._transaction() as db:
            db.execute("CREATE TABLE IF NOT EXISTS tries (key TEXT NOT NULL, time REAL NOT NULL)")

    def count(self, name: str, address: str) -> bool:
        """Count a try, before the password is looked at; tell whether it is allowed."""
        limits = self._limits(name, address)
        now = time.time()
        with self._transaction() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM tries WHERE time < ?", (now - self._seconds,))
            for key, limit in limits.items():
                if db.execute("SELECT count(*) FROM tries WHERE key = ?", (key,)).fetchone()[0] >= limit:
                    return False
            db.executemany("INSERT INTO tries VALUES (?, ?)", [(key, now) for key in limits])
        return True

    def forget(self, name: str, address: str) -> None:
        """Forget the tries of a name from an address: the password was right."""
        with self._transaction() as db:
            db.execute("DELETE FROM tries WHERE key = ?", (next(iter(self._limits(name, address))),))

    def _limits(self, name: str, address: str) -> dict[str, int]:
        name, network = name.casefold()[:200], _network(address)
        many = 10 * self._tries
        return {f"both {network} {name}": self._tries, f"name {name}": many, f"address {network}": many}

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=10)
        with closing(db), db:
            yield db


def _network(address: str) -> str:
    """Give what one attacker is likely to have: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a UNIX socket has none
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


class Proxy:
    """Believes what the site's proxies say of a request, and nobody else."""

    def __init__(self, app: WSGIApplication, addresses: Iterable[str]) -> None:
        self._direct = app
        self._proxied = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=1)
        self._networks = [ipaddress.ip_network(address) for address in addresses]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[_PROXIED] = self._is_proxy(environ.get("REMOTE_ADDR", ""))
        return (self._proxied if environ[_PROXIED] else self._direct)(environ, start_response)

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed  # of a socket that takes both families
        return any(parsed in network for network in self._networks)


class Sessions(SecureCookieSessionInterface):
    """Sessions in signed cookies, which go over TLS only where the request came over TLS."""

    def get_cookie_secure(self, app: Flask) -> bool:
        """Tell whether the cookie needs TLS."""
        return request.is_secure


def named_by_proxy(users: Users, header: str) -> User | None:
    """Give the user that the site's proxy names; a user that the file does not have is a reader."""
    if not header or not request.environ.get(_PROXIED):
        return None
    name = request.headers.get(header, "").encode("latin-1").decode(errors="replace").strip()[:200]
    return (users.get(name) or User(name, "reader")) if name else None


def logged_in(users: Users) -> User | None:
    """Give the user of the session, if the password is still the same."""
    user = users.get(session["user"]) if "user" in session else None
    return user if user and hmac.compare_digest(user.mark, session.get("mark", "")) else None


def log_in(user: User) -> None:
    """Start a session."""
    session.clear()  # nothing that was there before the login is believed
    session.permanent = True
    session["user"], session["mark"] = user.name, user.mark


def token() -> str:
    """Give the session's token, which forms that change something send back."""
    if "token" not in session:
        session["token"] = secrets.token_urlsafe(16)
    return session["token"]


def has_token(asked: Request) -> bool:
    """Tell whether a form came from this session's page."""
    return "token" in session and hmac.compare_digest(session["token"].encode(), asked.form.get("token", "").encode())


def own_path(target: str) -> str:
    """Give a path of this site to go to after the login: the target if it is one, else nothing."""
    # Browsers take "//", "/\\" and a "/" before control characters for the start of another site's name.
    return target if _OWN_PATH.fullmatch(target) else ""

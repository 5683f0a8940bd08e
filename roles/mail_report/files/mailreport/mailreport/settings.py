# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings, from a TOML file."""

from __future__ import annotations

import ipaddress
import sys
import tomllib
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

CONFIG = Path("/etc/mailreport/mailreport.toml")


class SettingsError(ValueError):
    """What is wrong with the file, and where."""


@dataclass(frozen=True)
class WebSettings:
    """The page's."""

    title: str = "Where is my mail?"
    bind: str = "127.0.0.1:8480"
    workers: int = 2
    certificate: Path | None = None  # with it the page serves TLS by itself
    key: Path | None = None
    users_file: Path = Path("/etc/mailreport/users.json")
    secret_file: Path = Path("/etc/mailreport/secret")
    lockout_file: Path = Path("/var/lib/mailreport/lockout.sqlite")
    audit_log: Path = Path("/var/log/mailreport/audit.log")
    proxy_header: str = ""  # in which the site's proxy names the user
    proxy_addresses: tuple[str, ...] = ()  # who may set it
    session_minutes: int = 480
    lockout_tries: int = 5
    lockout_minutes: int = 15
    rows: int = 100
    download_rows: int = 100_000
    timeout_s: int = 60  # of one question
    zone: str = "UTC"
    stale_minutes: int = 90  # after which the page says that logs are old


@dataclass(frozen=True)
class PrometheusSettings:
    """Those of the site's Prometheus, which the page about the hosts asks."""

    url: str = ""  # "" for none
    ca: Path | None = None  # whose certificates are trusted; those that the system trusts if there is none
    user: str = ""
    password_file: Path | None = None  # read at each question, as a password may be renewed


@dataclass(frozen=True)
class Settings:
    """All of them."""

    logs: Path  # holds <host>/2026-11-21T14.log
    lake: Path
    lakes: Path | None = None  # a folder with the lakes of several log hosts, to answer from all
    handover: tuple[str, ...] = ()  # names or addresses of relays that are hosts of our own
    keep_days: int = 30
    keep_bytes: int = 0  # 0 for no limit
    workers: int = 0  # 0 for as many as there are processors
    memory: str = "2GB"
    engine: Literal["duckdb", "clickhouse", "spark"] = "duckdb"
    engine_url: str = ""
    engine_url_file: Path | None = None  # that holds engine_url, as that may have a password in it
    engine_lake: str = ""  # where the engine's server has the lake or the lakes; "" for the same place
    web: WebSettings = field(default_factory=WebSettings)
    prometheus: PrometheusSettings = field(default_factory=PrometheusSettings)

    @property
    def asked(self) -> Path:
        """Give the folder that questions are about."""
        return self.lakes or self.lake

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        :raises SettingsError: it is not there, not TOML, or has a wrong key or value.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}.") from error
        except ValueError as error:
            raise SettingsError(f"{path}: not TOML: {error}") from error
        settings: Self = _made(cls, content, f"{path}: ")
        if settings.engine_url_file:
            try:
                url = settings.engine_url_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SettingsError(
                    f"{path}: engine_url_file: {settings.engine_url_file}: {error.strerror}."
                ) from error
            settings = replace(settings, engine_url=url)
        if settings.engine != "duckdb" and not settings.engine_url:
            raise SettingsError(f"{path}: engine_url: say where {settings.engine} is.")
        if (settings.web.certificate is None) != (settings.web.key is None):
            raise SettingsError(f"{path}: web.certificate and web.key: give both or none.")
        if problem := _problem(settings.prometheus):
            raise SettingsError(f"{path}: prometheus.{problem}")
        return settings


def _problem(prometheus: PrometheusSettings) -> str:
    """Tell what is wrong with the settings of Prometheus, "" if nothing is."""
    if not prometheus.url:
        return "" if prometheus == PrometheusSettings() else "url: say where Prometheus is."
    try:
        url = urlsplit(prometheus.url)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or url.query or url.fragment:
        return f"url: {prometheus.url!r} is not the address of a Prometheus, such as https://mon-01.site.test:9090."
    if "@" in url.netloc:
        return "url: user and password have settings of their own: prometheus.user and prometheus.password_file."
    if (prometheus.user == "") != (prometheus.password_file is None):
        return "user and prometheus.password_file: give both or none."
    if ":" in prometheus.user:
        return "user: a name with a : in it cannot be sent."
    if prometheus.user and url.scheme == "http" and not _is_loopback(url.hostname):
        return f"url: the password would be sent in the clear to {url.hostname}: let it begin with https."
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _made(kind: Any, content: dict[str, Any], where: str) -> Any:
    """Make a dataclass from a table of the file."""
    known = {one.name: one for one in fields(kind)}
    if unknown := sorted(content.keys() - known.keys()):
        raise SettingsError(f"{where}{unknown[0]}: there is no such setting. There are {', '.join(known)}.")
    if missing := [name for name, one in known.items() if _is_needed(one) and name not in content]:
        raise SettingsError(f"{where}{missing[0]}: is needed.")
    types = get_type_hints(kind)
    return kind(**{name: _value(types[name], value, f"{where}{name}") for name, value in content.items()})


def _is_needed(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _value(kind: Any, value: Any, where: str) -> Any:
    """Give a value in the type of its setting."""
    if is_dataclass(kind) and isinstance(value, dict):
        return _made(kind, value, f"{where}.")
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise SettingsError(f"{where}: {value!r} is none of {', '.join(get_args(kind))}.")
    if kind is int and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if kind is str and isinstance(value, str):
        return value
    if Path in (kind, *get_args(kind)) and isinstance(value, str) and Path(value).is_absolute():
        return Path(value)
    if get_origin(kind) is tuple and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise SettingsError(f"{where}: {value!r} is not {_WANTED.get(kind, 'the whole path of a file')}.")


_WANTED = {int: "a number from 0", str: "a text", tuple[str, ...]: "a list of texts"} | dict.fromkeys(
    (WebSettings, PrometheusSettings), "a table"
)


def main() -> int:
    """Check the files that are named; give 1 if one is refused."""
    try:
        for name in sys.argv[1:]:
            Settings.read(Path(name))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Derive what is to be watched on a host from what the other roles do there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.tenfold.stack.plugins.filter.memcached import listeners, nearest
from ansible_collections.tenfold.stack.plugins.filter.pool import pool_members

Watched = dict[str, Any]

# Variables of the roles as they are by default: hostvars have only what the inventory sets. A test holds them
# against the roles.
DEFAULTS: dict[str, Any] = {
    "mail_logs_folder": "/var/log/mail-logs",
    "mail_logs_state": "present",
    "mail_logs_tls_certificate": "",
    "mail_report_lake": "/var/lib/mailreport/lake",
    "mail_report_page": True,
    "mail_report_state": "present",
    "mail_report_tls_certificate": "",
    "memcached_instances": [{"name": "default"}],
    "memcached_listen": ["127.0.0.1"],
    "memcached_port": 11211,
    "memcached_proxy_listen": ["127.0.0.1"],
    "memcached_proxy_port": 11211,
    "memcached_proxy_separator": ":",
    "memcached_proxy_socket": "",
    "memcached_proxy_state": "started",
    "memcached_service": "memcached",
    "memcached_state": "started",
    "monitoring_tls_certificate": "",
    "postfix_instances": [],
    "postfix_state": "present",
    "postfix_tier": "none",
    "postfix_tls_certificate": "",
}
POSTFIX_QUEUE = "/var/spool/postfix"
MAIL_LOGS_SPOOL = "/var/lib/mail-logs"
MAIL_LOGS_CERTIFICATE = "/etc/mail-logs/tls/host.crt"
MAIL_REPORT_METRICS = "/var/lib/mailreport/metrics.prom"


class _Host:
    """The variables of a host with the roles' defaults, and what is known of the site."""

    def __init__(
        self,
        variables: Mapping[str, Any],
        group_names: Iterable[str],
        groups: Mapping[str, Sequence[str]],
        hostvars: Mapping[str, Mapping[str, Any]],
        environment_folder: str,
        leaving: Iterable[str] | str,
    ) -> None:
        self._variables = variables
        self.group_names = set(group_names)
        self.groups = groups
        self.hostvars = hostvars
        self.environment_folder = environment_folder
        self.leaving = leaving
        self.name = variables["inventory_hostname"]

    def __getitem__(self, variable: str) -> Any:
        return self._variables.get(variable, DEFAULTS[variable])

    def get(self, variable: str, default: Any) -> Any:
        """Give a variable whose default is not the same everywhere."""
        return self._variables.get(variable, default)

    def runs(self, role: str) -> bool:
        """Tell whether what a role does is there, and not removed."""
        return bool(self[f"{role}_state"] != "absent")

    @property
    def pools(self) -> list[Mapping[str, Any]]:
        """The pools of memcached."""
        given = self.get("pools", [])
        if "memcached_proxy" in self.group_names:
            given = self.get("memcached_proxy_pools", given)
        return [pool for pool in given if pool.get("service") == "memcached" and pool.get("state") != "absent"]


def monitoring_watched(
    host_vars: Mapping[str, Any],
    group_names: Iterable[str],
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
    environment_folder: str,
    pool_leaving: Iterable[str] | str = (),
) -> Watched:
    """Give what the collector of metrics is to look at on a host.

    :param host_vars: ``hostvars`` of the host. Where they don't set a variable, its role's default counts.
    :param group_names: the groups that the host is in.
    :param groups: ``groups`` of the inventory.
    :param hostvars: ``hostvars``, for the members of pools.
    :param environment_folder: where the platform keeps the environment files of services.
    :param pool_leaving: names of hosts that are about to leave their pools, as a list or separated by commas.
    :return: the configuration of ``site_metrics.py``, with the keys ``postfix``, ``memcached``, ``memcached_proxy``,
        ``members``, ``mail_logs``, ``certificates``, ``volumes`` and ``files``, each only if it is not empty.
    :raises AnsibleFilterError: an instance of memcached listens nowhere.
    """
    host = _Host(host_vars, group_names, groups, hostvars, environment_folder, pool_leaving)
    watched = {
        "postfix": list(_postfix(host)),
        "memcached": list(_memcached(host)),
        "memcached_proxy": list(_proxies(host)),
        "members": list(_members(host)),
        "mail_logs": _mail_logs(host),
        "certificates": list(_certificates(host)),
        "volumes": list(_volumes(host)),
        "files": [MAIL_REPORT_METRICS] if _reports(host) else [],
    }
    return {key: value for key, value in watched.items() if value}


def _postfix(host: _Host) -> Iterator[Watched]:
    tier = host["postfix_tier"]
    if not host.runs("postfix") or not (host.group_names & {"mail_primary", "mail_fallback"} or tier != "none"):
        return
    yield {"name": "postfix", "tier": tier, "queue_directory": POSTFIX_QUEUE}
    for instance in host["postfix_instances"]:
        name = instance["name"]
        yield {
            "name": f"postfix-{name}",
            "tier": instance.get("tier", tier),
            "queue_directory": f"{POSTFIX_QUEUE}-{name}",
        }


def _instances(host: _Host) -> list[dict[str, Any]]:
    """Give the instances of memcached with what matters here."""
    if "memcached" not in host.group_names:
        return []
    defaults = {name: host[f"memcached_{name}"] for name in ("listen", "port", "state", "service")}
    instances = [{**defaults, **instance} for instance in host["memcached_instances"]]
    return [instance for instance in instances if instance["state"] != "absent"]


def _memcached(host: _Host) -> Iterator[Watched]:
    for instance in _instances(host):
        name, service = instance["name"], instance["service"]
        sockets = [] if instance.get("socket") else listeners(instance)
        ports = {socket["port"] for socket in sockets}
        pools = [pool for pool in host.pools if pool["group"] in host.group_names and int(pool["port"]) in ports]
        tls = instance.get("tls")
        if tls and (plain := [entry for entry in instance["listen"] if str(entry).startswith("notls:")]):
            tls, sockets = None, listeners({**instance, "listen": plain})
        yield {
            "name": name,
            "pool": pools[0]["name"] if pools else "",
            **_place(sockets, instance.get("socket")),
            "tls": _client(tls) if tls else None,
            "auth_file": f"{host.environment_folder}/{service}-{name}.auth" if instance.get("auth") else "",
        }


def _place(sockets: Sequence[Mapping[str, Any]], path: str | None = None) -> Watched:
    """Give where a host reaches a service of its own: best on the loopback, whose address it always has."""
    if path:
        return {"address": "", "port": 0, "socket": path}
    places = [nearest([socket]) for socket in sockets]
    loopback = [place for place in places if place["address"].startswith("127.") or place["address"] == "::1"]
    return {**(loopback or places)[0], "socket": ""}


def _client(tls: Mapping[str, Any]) -> Watched:
    """Give how to talk TLS to an instance of the same host.

    It is not checked who answers: the instance's ``ca`` is that of its clients, its own certificate may be of another.
    Where clients need a certificate, that of the instance is one.
    """
    asks = tls.get("verify_clients")
    return {
        "ca": "",
        "certificate": tls["certificate"] if asks else "",
        "key": tls["key"] if asks else "",
        "hostname": "",
    }


def _proxies(host: _Host) -> Iterator[Watched]:
    if "memcached_proxy" not in host.group_names or not host.runs("memcached_proxy"):
        return
    common = {"pools": [pool["name"] for pool in host.pools], "separator": host["memcached_proxy_separator"]}
    place = {"name": "memcached_proxy", "listen": host["memcached_proxy_listen"], "port": host["memcached_proxy_port"]}
    yield {"name": "default", **_place(listeners(place)), **common}
    if path := host["memcached_proxy_socket"]:
        yield {"name": "socket", **_place([], path), **common}


def _members(host: _Host) -> Iterator[Watched]:
    if not host.group_names & {"memcached", "memcached_proxy", "pool_dns"}:
        return
    leaving = host.leaving
    if "memcached_proxy" in host.group_names:
        leaving = host.get("memcached_proxy_leaving", leaving)
    for pool in host.pools:
        try:
            members = pool_members(pool, host.groups, host.hostvars, leaving)
        except AnsibleFilterError:
            continue  # who they are is not known, and the roles that need to know tell so
        yield {
            "pool": pool["name"],
            "source": "inventory",
            "members": [f"{member['address']} {member['port']}" for member in members],
        }


def _senders(host: _Host) -> list[str]:
    """Give the hosts that send their logs. Without one that takes them, none does."""
    mail_hosts = [*host.groups.get("mail_primary", ()), *host.groups.get("mail_fallback", ())]
    senders = list(dict.fromkeys(host.get("mail_logs_senders", mail_hosts)))
    return senders if host.runs("mail_logs") and _receivers(host) else []


def _receivers(host: _Host) -> list[str]:
    return list(host.get("mail_logs_receivers", host.groups.get("mail_log_server", ())))


def _takes_logs(host: _Host) -> bool:
    return host.runs("mail_logs") and host.name in _receivers(host)


def _mail_logs(host: _Host) -> Watched:
    watched: Watched = {}
    if host.name in _senders(host):
        watched["spool"] = MAIL_LOGS_SPOOL
    if _takes_logs(host):
        watched["folder"] = host["mail_logs_folder"]
        watched["senders"] = _senders(host)
    return watched


def _reports(host: _Host) -> bool:
    return "mail_log_server" in host.group_names and host.runs("mail_report")


def _certificates(host: _Host) -> list[Watched]:
    """Give each file once, by the name of the first that uses it."""
    found: dict[str, str] = {}

    def add(name: str, path: str | None) -> None:
        if path:
            found.setdefault(str(path), name)

    if list(_postfix(host)):
        add("postfix", host["postfix_tls_certificate"])
        for instance in host["postfix_instances"]:
            add(f"postfix-{instance['name']}", instance.get("tls_certificate"))
    for instance in _instances(host):
        add(f"memcached-{instance['name']}", (instance.get("tls") or {}).get("certificate"))
    if _mail_logs(host):
        add("mail_logs", host["mail_logs_tls_certificate"] or MAIL_LOGS_CERTIFICATE)
    if _reports(host) and host["mail_report_page"]:
        add("mail_report", host["mail_report_tls_certificate"])
    add("monitoring", host["monitoring_tls_certificate"])
    return [{"name": name, "path": path} for path, name in found.items()]


def _volumes(host: _Host) -> Iterator[Watched]:
    if _takes_logs(host):
        yield {"name": "mail_logs", "path": host["mail_logs_folder"]}
    if _reports(host):
        yield {"name": "lake", "path": host["mail_report_lake"]}


class FilterModule:
    """Filters of the role monitoring."""

    def filters(self) -> dict[str, Any]:
        return {"monitoring_watched": monitoring_watched}

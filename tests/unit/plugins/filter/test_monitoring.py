# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is watched on a host, also on each of the example site as Ansible sees it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from ansible_collections.tenfold.stack.plugins.filter import monitoring, postfix

monitoring_watched = monitoring.FilterModule().filters()["monitoring_watched"]
ROOT = Path(__file__).resolve().parents[4]
CACHE = {"name": "cache.site.test", "group": "memcached", "port": 11211, "service": "memcached"}
SESSIONS = {"name": "sessions.site.test", "group": "sessions", "port": "11212", "service": "memcached"}
MX = {"name": "mx.site.test", "group": "mail_primary", "port": 25, "service": "smtp"}
GROUPS = {
    "memcached": ["cache-01", "cache-02"],
    "sessions": ["cache-02"],
    "memcached_proxy": ["client-01"],
    "pool_dns": ["dns-01"],
    "mail_primary": ["mx-01"],
    "mail_fallback": ["fallback-01"],
    "mail_log_server": ["log-01"],
}
HOSTS = ["cache-01", "cache-02", "client-01", "dns-01", "mx-01", "fallback-01", "log-01", "other"]


def watched(name, groups=None, leaving=(), addresses=True, folder="/etc/sysconfig", **given):
    """What is watched on a host with some variables."""
    groups = GROUPS if groups is None else groups
    hostvars = {
        host: {
            "inventory_hostname": host,
            "pools": [CACHE, SESSIONS, MX],
            **({"pool_addresses": [f"192.0.2.{number}"]} if addresses else {}),
        }
        for number, host in enumerate(HOSTS, 1)
    }
    hostvars[name].update(given)
    names = [group for group, hosts in groups.items() if name in hosts]
    found = monitoring_watched(hostvars[name], names, groups, hostvars, folder, leaving)
    assert all(found.values())
    return found


def inventory(pool, *members):
    return {"pool": pool, "source": "inventory", "members": list(members)}


ALL_MEMBERS = [
    inventory("cache.site.test", "192.0.2.1 11211", "192.0.2.2 11211"),
    inventory("sessions.site.test", "192.0.2.2 11212"),
]


def test_a_host_of_no_role_has_nothing_to_watch():
    assert watched("other") == {}


# Defaults


def test_defaults_are_those_of_the_roles():
    roles = ("mail_logs", "mail_report", "memcached", "memcached_proxy", "monitoring", "postfix")
    theirs = {}
    for role in roles:
        theirs.update(yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text()))
    assert {name: theirs[name] for name in monitoring.DEFAULTS} == monitoring.DEFAULTS


def test_paths_are_those_of_the_roles():
    logs = yaml.safe_load((ROOT / "roles/mail_logs/vars/main.yml").read_text())
    assert logs["__mail_logs_spool"] == monitoring.MAIL_LOGS_SPOOL
    made = logs["__mail_logs_certificate"].partition(" or ")[2].removesuffix(" }}")
    assert made == "__mail_logs_config ~ '/tls/host.crt'"
    assert logs["__mail_logs_config"] + "/tls/host.crt" == monitoring.MAIL_LOGS_CERTIFICATE
    report = yaml.safe_load((ROOT / "roles/mail_report/vars/main.yml").read_text())
    assert f"{report['__mail_report_home']}/metrics.prom" == monitoring.MAIL_REPORT_METRICS


# Postfix


@pytest.mark.parametrize(
    ("host", "given", "tiers"),
    [
        ("mx-01", {"postfix_tier": "primary"}, ["primary"]),
        ("fallback-01", {"postfix_tier": "fallback"}, ["fallback"]),
        ("mx-01", {}, ["none"]),
        ("other", {"postfix_tier": "primary"}, ["primary"]),
        ("other", {"postfix_tier": "none"}, []),
        ("mx-01", {"postfix_tier": "primary", "postfix_state": "absent"}, []),
    ],
)
def test_who_runs_postfix(host, given, tiers):
    assert [instance["tier"] for instance in watched(host, **given).get("postfix", [])] == tiers


def test_further_instances_of_postfix():
    found = watched(
        "mx-01", postfix_tier="primary", postfix_instances=[{"name": "bulk"}, {"name": "a", "tier": "none"}]
    )
    assert found["postfix"] == [
        {"name": "postfix", "tier": "primary", "queue_directory": "/var/spool/postfix"},
        {"name": "postfix-bulk", "tier": "primary", "queue_directory": "/var/spool/postfix-bulk"},
        {"name": "postfix-a", "tier": "none", "queue_directory": "/var/spool/postfix-a"},
    ]


@pytest.mark.parametrize("given", [{}, {"name": "bulk"}])
def test_queues_are_where_the_role_has_them(given, monkeypatch):
    for function in ("_tables", "_parameters", "_services"):
        monkeypatch.setattr(postfix, function, lambda *_arguments: [])
    described = postfix.postfix_instance({"networks": [], **given}, {}, {})
    found = watched("mx-01", postfix_instances=[given] if given else [])
    assert found["postfix"][-1]["queue_directory"] == described["queue"]


# memcached


def memcached(*instances, host="cache-01", **given):
    return watched(host, memcached_instances=list(instances), **given).get("memcached", [])


def test_memcached_as_it_is_by_default():
    found = watched("cache-01")
    assert found == {
        "memcached": [
            {
                "name": "default",
                "pool": "cache.site.test",
                "address": "127.0.0.1",
                "port": 11211,
                "socket": "",
                "tls": None,
                "auth_file": "",
            }
        ],
        "members": ALL_MEMBERS,
    }


@pytest.mark.parametrize(
    ("listen", "place"),
    [
        (["192.0.2.1"], ("192.0.2.1", 11211)),
        (["192.0.2.1", "127.0.0.1"], ("127.0.0.1", 11211)),
        (["192.0.2.1:11219", "[::1]:11220"], ("::1", 11220)),
        (["*"], ("127.0.0.1", 11211)),
        (["::"], ("::1", 11211)),
    ],
)
def test_memcached_is_asked_where_the_host_reaches_it(listen, place):
    (instance,) = watched("cache-01", memcached_listen=listen)["memcached"]
    assert (instance["address"], instance["port"]) == place


def test_an_instance_belongs_to_the_pool_with_its_port():
    found = memcached(
        {"name": "default"}, {"name": "sessions", "port": 11212}, {"name": "x", "port": 1}, host="cache-02"
    )
    assert [instance["pool"] for instance in found] == ["cache.site.test", "sessions.site.test", ""]
    # That pool is not of this host's group.
    assert [instance["pool"] for instance in memcached({"name": "sessions", "port": 11212})] == [""]
    assert [instance["pool"] for instance in memcached({"name": "a"}, pools=[{**CACHE, "state": "absent"}])] == [""]


def test_an_instance_on_a_socket():
    (found,) = memcached({"name": "local", "socket": "/run/memcached-local/s"})
    assert (found["socket"], found["address"], found["pool"]) == ("/run/memcached-local/s", "", "")


@pytest.mark.parametrize("folder", ["/etc/sysconfig", "/etc/default"])
def test_passwords_are_not_told_but_where_they_are(folder):
    users = [{"user": "app", "password": "sesame"}]
    found = watched(
        "cache-01", folder=folder, memcached_service="cache", memcached_instances=[{"name": "a", "auth": users}]
    )
    assert found["memcached"][0]["auth_file"] == f"{folder}/cache-a.auth"
    assert "sesame" not in str(found)


TLS = {"certificate": "/pki/cache.crt", "key": "/pki/cache.key", "ca": "/pki/ca.crt"}


def test_tls_of_memcached():
    found = watched("cache-01", memcached_instances=[{"name": "a", "tls": TLS}])
    assert found["memcached"][0]["tls"] == {"ca": "", "certificate": "", "key": "", "hostname": ""}
    assert found["certificates"] == [{"name": "memcached-a", "path": "/pki/cache.crt"}]
    (asking,) = memcached({"name": "a", "tls": {**TLS, "verify_clients": True}})
    assert asking["tls"] == {"ca": "", "certificate": "/pki/cache.crt", "key": "/pki/cache.key", "hostname": ""}


def test_without_tls_where_an_instance_has_such_a_port():
    (found,) = memcached({"name": "a", "listen": ["192.0.2.1", "notls:127.0.0.1:11213"], "tls": TLS})
    assert (found["address"], found["port"], found["tls"]) == ("127.0.0.1", 11213, None)
    assert found["pool"] == "cache.site.test"


def test_absent_memcacheds_are_left_out():
    assert [one["name"] for one in memcached({"name": "a"}, {"name": "b", "state": "absent"})] == ["a"]
    assert memcached({"name": "a"}, memcached_state="absent") == []
    started = memcached({"name": "a"}, {"name": "b", "state": "started"}, memcached_state="absent")
    assert [one["name"] for one in started] == ["b"]


def test_an_instance_that_listens_nowhere_is_told():
    with pytest.raises(AnsibleFilterError, match=r"instance a listens nowhere"):
        memcached({"name": "a", "listen": []})


# The proxy and the members


def test_the_proxy():
    assert watched("client-01") == {
        "memcached_proxy": [
            {
                "name": "default",
                "address": "127.0.0.1",
                "port": 11211,
                "socket": "",
                "pools": ["cache.site.test", "sessions.site.test"],
                "separator": ":",
            }
        ],
        "members": ALL_MEMBERS,
    }


def test_a_proxy_with_settings_of_its_own():
    found = watched(
        "client-01",
        memcached_proxy_listen=["0.0.0.0"],
        memcached_proxy_port=11311,
        memcached_proxy_socket="/run/memcached-proxy-socket/s",
        memcached_proxy_pools=[SESSIONS],
        memcached_proxy_separator="/",
    )
    default, unix = found["memcached_proxy"]
    assert (default["address"], default["port"], default["separator"]) == ("127.0.0.1", 11311, "/")
    assert (unix["name"], unix["socket"]) == ("socket", "/run/memcached-proxy-socket/s")
    assert unix["pools"] == ["sessions.site.test"]
    assert found["members"] == ALL_MEMBERS[1:]


def test_an_absent_proxy_is_left_out():
    assert "memcached_proxy" not in watched("client-01", memcached_proxy_state="absent")


@pytest.mark.parametrize("host", ["cache-01", "client-01", "dns-01"])
def test_members_without_those_that_leave(host):
    found = watched(host, groups={**GROUPS, "sessions": ["cache-01", "cache-02"]}, leaving="cache-02")
    assert found["members"] == [
        inventory("cache.site.test", "192.0.2.1 11211"),
        inventory("sessions.site.test", "192.0.2.1 11212"),
    ]


def test_a_proxy_may_be_told_otherwise_who_leaves():
    found = watched("client-01", memcached_proxy_pools=[CACHE], memcached_proxy_leaving=["cache-01"])
    assert found["members"] == [inventory("cache.site.test", "192.0.2.2 11211")]


def test_members_that_are_not_known_are_left_out():
    for host in ("cache-01", "client-01", "dns-01"):
        assert "members" not in watched(host, addresses=False)


# Logs and the report


def test_a_host_that_sends_logs():
    found = watched("mx-01")
    assert found["mail_logs"] == {"spool": "/var/lib/mail-logs"}
    assert found["certificates"] == [{"name": "mail_logs", "path": "/etc/mail-logs/tls/host.crt"}]


def test_a_host_that_takes_logs_and_reports():
    assert watched("log-01", mail_report_tls_certificate="/pki/report.crt") == {
        "mail_logs": {"folder": "/var/log/mail-logs", "senders": ["mx-01", "fallback-01"]},
        "certificates": [
            {"name": "mail_logs", "path": "/etc/mail-logs/tls/host.crt"},
            {"name": "mail_report", "path": "/pki/report.crt"},
        ],
        "volumes": [
            {"name": "mail_logs", "path": "/var/log/mail-logs"},
            {"name": "lake", "path": "/var/lib/mailreport/lake"},
        ],
        "files": ["/var/lib/mailreport/metrics.prom"],
    }


def test_logs_elsewhere():
    found = watched(
        "log-01",
        mail_logs_folder="/srv/logs",
        mail_logs_senders=["mx-01"],
        mail_logs_tls_certificate="/pki/host.crt",
        mail_report_lake="/srv/lake",
        mail_report_tls_certificate="/pki/host.crt",
    )
    assert found["mail_logs"] == {"folder": "/srv/logs", "senders": ["mx-01"]}
    assert [volume["path"] for volume in found["volumes"]] == ["/srv/logs", "/srv/lake"]
    assert found["certificates"] == [{"name": "mail_logs", "path": "/pki/host.crt"}]  # each file once


def test_what_is_absent_on_a_log_host():
    assert "mail_logs" not in watched("mx-01", mail_logs_state="absent")
    assert "certificates" not in watched("mx-01", mail_logs_state="absent")
    assert [volume["name"] for volume in watched("log-01", mail_logs_state="absent")["volumes"]] == ["lake"]
    found = watched("log-01", mail_report_state="absent", mail_report_tls_certificate="/pki/report.crt")
    assert [volume["name"] for volume in found["volumes"]] == ["mail_logs"]
    assert "files" not in found
    assert [one["name"] for one in found["certificates"]] == ["mail_logs"]
    found = watched("log-01", mail_report_page=False, mail_report_tls_certificate="/pki/report.crt")
    assert [one["name"] for one in found["certificates"]] == ["mail_logs"]


def test_without_a_log_host_nobody_sends():
    groups = {name: hosts for name, hosts in GROUPS.items() if name != "mail_log_server"}
    assert watched("mx-01", groups=groups) == {
        "postfix": [{"name": "postfix", "tier": "none", "queue_directory": "/var/spool/postfix"}]
    }


def test_the_exporter_has_one_too():
    assert watched("other", monitoring_tls_certificate="/pki/host.crt") == {
        "certificates": [{"name": "monitoring", "path": "/pki/host.crt"}]
    }


def test_certificates_of_postfix():
    further = [{"name": "bulk", "tls_certificate": "/pki/bulk.crt"}, {"name": "same"}]
    found = watched("mx-01", postfix_tls_certificate="/pki/mx.crt", postfix_instances=further)
    assert found["certificates"][:2] == [
        {"name": "postfix", "path": "/pki/mx.crt"},
        {"name": "postfix-bulk", "path": "/pki/bulk.crt"},
    ]
    assert "certificates" not in watched("other", postfix_tls_certificate="/pki/mx.crt")


# The example site, whose variables Ansible itself evaluates


@pytest.fixture(scope="module")
def site():
    """What is watched on each host of the example site."""
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[str(ROOT / "playbooks/inventory/site.yml")])
    variables = VariableManager(loader=loader, inventory=inventory)
    hostvars = HostVars(inventory, variables, loader)
    for number, host in enumerate(sorted(inventory.hosts), 1):
        facts = {"default_ipv4": {"address": f"198.51.100.{number}", "network": "198.51.100.0"}}
        variables.set_host_facts(host, facts)
    groups = inventory.get_groups_dict()
    return {
        host: monitoring_watched(hostvars[host], hostvars[host]["group_names"], groups, hostvars, "/etc/sysconfig")
        for host in inventory.hosts
    }


def test_what_is_watched_in_the_example_site(site):
    kinds = {
        "cache": ["memcached", "members"],
        "client": ["memcached_proxy", "members"],
        "dns": ["members"],
        "mx": ["postfix", "mail_logs", "certificates"],
        "fallback": ["postfix", "mail_logs", "certificates"],
        "log": ["mail_logs", "certificates", "volumes", "files"],
    }
    expected = {host: kinds.get(host.partition("-")[0], []) for host in site}
    assert {host: list(found) for host, found in site.items()} == expected


def test_the_example_sites_values(site):
    assert [one["pool"] for one in site["cache-01"]["memcached"]] == ["cache.site.test"]
    assert [one["address"] for one in site["cache-01"]["memcached"]] == ["127.0.0.1"]
    assert [one["tier"] for host in ("mx-01", "fallback-01") for one in site[host]["postfix"]] == [
        "primary",
        "fallback",
    ]
    assert site["log-01"]["mail_logs"]["senders"] == ["mx-01", "mx-02", "fallback-01", "fallback-02"]
    assert [one["path"] for one in site["log-01"]["certificates"]] == [
        "/etc/mail-logs/tls/host.crt",
        "/etc/pki/tls/certs/report.crt",
    ]
    ((members,),) = [{json.dumps(site[host]["members"]) for host in ("cache-10", "client-01", "client-02", "dns-01")}]
    (pool,) = json.loads(members)
    assert (pool["pool"], len(pool["members"])) == ("cache.site.test", 10)
    assert all(re.fullmatch(r"198\.51\.100\.\d+ 11211", member) for member in pool["members"])

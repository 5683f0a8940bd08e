# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the filters of the role postfix."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.tenfold.stack.plugins.filter import postfix

VARS = Path(__file__).resolve().parents[4] / "roles/postfix/vars"
ROLE = yaml.safe_load((VARS / "main.yml").read_text())

DEFAULTS = {
    "tier": "none",
    "fallback_relay": [],
    "slow_domains": [],
    "instances": [],
    "hostname": "mx-01.example.net",
    "listen": ["all"],
    "port": 25,
    "networks": ["127.0.0.0/8", "::1/128"],
    "proxy_port": 0,
    "proxy_clients": [],
    "main": {},
    "master": {},
    **{name: {} for name in postfix.TABLES},
    "header_checks": [],
    "tls_certificate": "",
    "tls_key": "",
    "tls_ca": "/etc/ca.pem",
    "tls_level_in": "none",
    "tls_level_out": "may",
    "submission": False,
    "submission_port": 587,
    "queue_volume": {},
    "queue_minfree": 20480000,
    "evacuate_to": "",
}
PRIMARY = {"tier": "primary", "fallback_relay": ["[fallback.example.net]"]}
PLATFORM = {
    "version": "3.7.11",
    "map_type": "lmdb",
    "ipv6": True,
    "parameters": {"biff": "no"},
    "services": ROLE["__postfix_services"],
    "tiers": yaml.safe_load((VARS / "tiers.yml").read_text())["__postfix_tiers"],
}
HOST = {"names": ["mx-01", "mx.example.net"], "missing_files": [], "submission_users": []}
HASH = "{SHA512-CRYPT}$6$salt$hash"
LOGINS = {
    "submission": True,
    "tls_certificate": "/etc/a.crt",
    "tls_key": "/etc/a.key",
    "tls_level_in": "may",
}


def instance(given=None, platform=None, **variables):
    return postfix.postfix_instance(given or {}, {**DEFAULTS, **variables}, {**PLATFORM, **(platform or {})})


def service(found, key):
    return next(service for service in found["services"] if service["key"] == key)


def problems(host=None, **variables):
    return postfix.postfix_problems([instance(**variables)], {**HOST, **(host or {})})


# What is written


def test_parameters_are_those_of_the_host_then_the_tier_then_the_user():
    found = instance(**PRIMARY, main={"smtp_connect_timeout": "9s", "queue_run_delay": None, "biff": True})[
        "parameters"
    ]
    assert found["smtp_fallback_relay"] == "[fallback.example.net]"
    assert (found["smtp_connect_timeout"], found["biff"]) == ("9s", "yes")
    assert "queue_run_delay" not in found
    assert list(found) == sorted(found)


def test_lists_are_joined():
    found = instance(main={"smtpd_helo_restrictions": ["permit_mynetworks", "reject"]})["parameters"]
    assert found["smtpd_helo_restrictions"] == "permit_mynetworks, reject"


@pytest.mark.parametrize(
    ("ipv6", "networks", "protocols"), [(True, "127.0.0.0/8, [::1]/128", "all"), (False, "127.0.0.0/8", "ipv4")]
)
def test_a_host_without_ipv6_uses_none(ipv6, networks, protocols):
    found = instance(platform={"ipv6": ipv6})["parameters"]
    assert (found["mynetworks"], found["inet_protocols"]) == (networks, protocols)


@pytest.mark.parametrize(("version", "known"), [("3.5.25", False), ("3.6.4", False), ("3.7.0", True), ("3.10.1", True)])
def test_a_setting_is_left_out_where_postfix_does_not_know_it(version, known):
    assert ("smtp_per_request_deadline" in instance(platform={"version": version}, **PRIMARY)["parameters"]) is known


def test_an_unknown_tier_has_no_settings():
    assert "smtp_connect_timeout" not in instance()["parameters"]


def test_a_primary_routes_slow_domains_to_the_fallback_tier_and_a_fallback_slows_them():
    slow = {"slow_domains": ["a.test", "b.test"], "transport": {"b.test": "discard:"}}
    primary = instance(**PRIMARY, **slow)
    assert primary["tables"][0]["entries"] == ["a.test\tfallback:[fallback.example.net]", "b.test\tdiscard:"]
    assert service(primary, "fallback/unix")["options"]["smtp_fallback_relay"] == ""
    fallback = instance(tier="fallback", **slow)
    assert fallback["tables"][0]["entries"] == ["a.test\tslow:", "b.test\tdiscard:"]
    assert service(fallback, "slow/unix")["process_limit"] == 20
    assert instance(**slow)["tables"][0]["entries"] == ["b.test\tdiscard:"]


def test_processes_are_those_of_the_tier():
    assert service(instance(**PRIMARY), "smtp/unix")["process_limit"] == 500
    fallback = instance(tier="fallback", proxy_port=10025, proxy_clients=["192.0.2.1"])
    assert [service(fallback, key)["process_limit"] for key in ("25/inet", "10025/inet")] == [1000, 1000]
    assert service(instance(), "smtp/unix")["process_limit"] == "-"


def test_the_ports():
    found = instance(port=2525, proxy_port=10025, proxy_clients=["192.0.2.1"], **LOGINS)
    assert [s["name"] for s in found["services"] if s["type"] == "inet"] == ["2525", "10025", "587"]
    assert service(found, "10025/inet")["options"] == {
        "smtpd_upstream_proxy_protocol": "haproxy",
        "syslog_name": "postfix/lb",
    }
    assert service(found, "587/inet")["options"]["smtpd_tls_security_level"] == "encrypt"
    assert service(found, "587/inet")["options"]["smtpd_relay_restrictions"] == "permit_sasl_authenticated,reject"
    assert service(instance(), "25/inet")["name"] == "smtp"


def test_services_of_the_user():
    found = instance(
        master={
            "smtp/inet": {"process_limit": 7, "options": {"smtpd_client_restrictions": ["a", "b"]}},
            "lmtp/unix": None,
            "bulk/unix": {"command": "smtp", "private": True, "chroot": False, "wakeup": None},
        }
    )
    assert service(found, "25/inet")["process_limit"] == 7
    assert service(found, "25/inet")["options"] == {"smtpd_client_restrictions": "a, b"}
    bulk = service(found, "bulk/unix")
    assert (bulk["private"], bulk["chroot"], bulk["wakeup"], bulk["options"]) == ("y", "n", "-", {})
    assert "lmtp/unix" not in [service["key"] for service in found["services"]]
    with pytest.raises(AnsibleFilterError, match="mapping"):
        instance(master={"bulk/unix": "smtp"})


@pytest.mark.parametrize(("kind", "suffix"), [("lmdb", ".lmdb"), ("hash", ".db")])
def test_tables_have_the_type_of_the_platform(kind, suffix):
    found = instance(platform={"map_type": kind}, aliases={"postmaster": "root"}, client_access={"192.0.2.1": "REJECT"})
    access, aliases = found["tables"]
    assert access["made"] == f"/etc/postfix/client_access{suffix}"
    assert access["command"] == ["postmap", f"{kind}:{{root}}/etc/postfix/client_access"]
    assert aliases["entries"] == ["postmaster:\troot"]
    assert aliases["command"][0] == "postalias"
    assert found["parameters"]["alias_maps"] == f"{kind}:/etc/postfix/aliases"
    assert found["parameters"]["smtpd_client_restrictions"] == f"check_client_access {kind}:/etc/postfix/client_access"
    assert {table["variable"] for table in found["no_tables"]} == {
        "postfix_transport",
        "postfix_relay_domains",
        "postfix_sender_access",
        "postfix_recipient_access",
        "postfix_header_checks",
    }


def test_header_checks_keep_their_order():
    found = instance(header_checks=[{"pattern": "/b/", "action": "REJECT b"}, {"pattern": "/a/", "action": "HOLD"}])
    assert found["tables"][0]["entries"] == ["/b/ REJECT b", "/a/ HOLD"]
    assert found["parameters"]["header_checks"] == "regexp:/etc/postfix/header_checks"


def test_a_host_that_evacuates_sends_all_to_one_place_and_takes_nothing():
    found = instance(**PRIMARY, transport={"a.test": "slow:"}, evacuate_to="[192.0.2.9]:25", main={"relayhost": "[x]"})
    parameters = found["parameters"]
    assert parameters["relayhost"] == "[192.0.2.9]:25"
    assert (parameters["transport_maps"], parameters["smtp_fallback_relay"]) == ("", "")
    assert parameters["master_service_disable"] == "inet"
    assert service(found, "qmgr/unix")["wakeup"] == 10


def test_further_instances():
    others = [{"name": "bulk", "port": 2525, "main": {"biff": "yes"}}]
    variables = {
        "instances": others,
        "proxy_port": 10025,
        "proxy_clients": ["192.0.2.1"],
        "queue_volume": {"src": "/q"},
    }
    first, second = instance(**variables), instance(others[0], **variables)
    assert first["parameters"]["multi_instance_directories"] == "/etc/postfix-bulk"
    assert "multi_instance_name" not in first["parameters"]
    assert second["parameters"]["multi_instance_name"] == "postfix-bulk"
    assert second["parameters"]["queue_directory"] == "/var/spool/postfix-bulk"
    assert (second["port"], second["proxy_port"], second["queue_volume"]) == (2525, 0, {})
    assert second["parameters"]["myhostname"] == "mx-01.example.net"
    assert second["parameters"]["biff"] == "yes"


# What is refused


@pytest.mark.parametrize(
    "variables",
    [
        {},
        PRIMARY,
        {"tier": "fallback", "networks": ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"]},
        {"proxy_port": 10025, "proxy_clients": ["192.0.2.1", "2001:db8::1"]},
        {"listen": ["192.0.2.1", "::1"]},
        {"main": {"smtpd_relay_restrictions": "permit_mynetworks permit_sasl_authenticated defer_unauth_destination"}},
        {"main": {"smtpd_relay_restrictions": "", "smtpd_recipient_restrictions": "reject_unauth_destination, permit"}},
        {"main": {"mynetworks": "!10.1.0.0/16 10.0.0.0/8"}},
        {"main": {"mine": "reject", "smtpd_relay_restrictions": "permit_mynetworks, ${mine}"}},
        {"main": {"message_size_limit": 0}},
        {"evacuate_to": "[192.0.2.9]", "tier": "primary"},
        {"queue_volume": {"src": "UUID=1", "fstype": "xfs", "opts": "noatime"}},
        {"transport": {"a.test": "smtp:[192.0.2.1]:2525", "b.test": ":[192.0.2.1]", "c.test": "error:no"}},
    ],
)
def test_what_is_good_is_not_refused(variables):
    assert problems(**variables) == []


def test_good_logins_are_not_refused():
    for hashed in (HASH, "$6$salt$hash", "{BLF-CRYPT}$2y$05$x"):
        assert problems({"submission_users": [{"name": "web", "password": hashed}]}, **LOGINS) == []


REFUSED = [
    ({"hostname": "a b"}, "postfix_hostname"),
    ({"listen": ["eth0"]}, "postfix_listen names eth0"),
    ({"listen": []}, "postfix_listen is empty"),
    ({"port": 0}, "postfix_port is 0"),
    ({"port": 70000}, "postfix_port is 70000"),
    ({"proxy_port": 25, "proxy_clients": ["192.0.2.1"]}, "postfix_port and postfix_proxy_port are both 25"),
    ({**PRIMARY, "fallback_relay": ["[a b]"]}, "write it as [host]"),
    ({"tls_certificate": "/a"}, "postfix_tls_certificate and postfix_tls_key go together"),
    ({"tls_level_in": "encrypt"}, "without a certificate"),
    # open relays
    ({"networks": ["0.0.0.0/0"]}, "0.0.0.0/0 may relay"),
    ({"networks": ["::/0"]}, "::/0 may relay"),
    ({"networks": ["0.0.0.0/1", "128.0.0.0/1"]}, "128.0.0.0/1 may relay"),
    ({"networks": ["10.0.0.1/8"]}, "bits beside its prefix"),
    ({"networks": ["cidr:/etc/postfix/all"]}, "is no network"),
    ({"main": {"mynetworks": "0.0.0.0/0"}}, "0.0.0.0/0 may relay"),
    ({"main": {"smtpd_relay_restrictions": "permit"}}, "permit comes before"),
    ({"main": {"smtpd_relay_restrictions": "permit_mynetworks"}}, "nothing rejects"),
    ({"main": {"smtpd_relay_restrictions": None}}, "nothing rejects"),
    ({"main": {"smtpd_relay_restrictions": "check_client_access lmdb:/x, reject"}}, "check_client_access, which may"),
    ({"main": {"smtpd_relay_restrictions": "permit_tls_all_clientcerts, reject"}}, "permit_tls_all_clientcerts"),
    ({"main": {"all": "permit", "smtpd_relay_restrictions": "$all, reject"}}, "permit comes before"),
    (
        {"main": {"smtpd_restriction_classes": "mine", "mine": "permit", "smtpd_relay_restrictions": "mine, reject"}},
        "the class mine",
    ),
    ({"main": {"relay_domains": "static:ALL"}}, "may be any domain"),
    ({"relay_domains": {"*": "OK"}}, "open relay"),
    ({"master": {"26/inet": {"command": "smtpd", "options": {"mynetworks": "0.0.0.0/0"}}}}, "26/inet"),
    (
        {"master": {"26/inet": {"command": "smtpd", "options": {"smtpd_relay_restrictions": "permit"}}}},
        "Port 26 would be an open relay",
    ),
    (
        {"master": {"26/inet": {"command": "smtpd", "options": {"smtpd_upstream_proxy_protocol": "haproxy"}}}},
        "use postfix_proxy_port",
    ),
    ({"main": {"smtpd_upstream_proxy_protocol": "haproxy"}}, "use postfix_proxy_port"),
    ({"proxy_port": 10025}, "name the balancers in postfix_proxy_clients"),
    ({"proxy_port": 10025, "proxy_clients": ["vip-01"]}, "postfix_proxy_clients names vip-01"),
    ({"proxy_port": 10025, "proxy_clients": ["0.0.0.0/0"]}, "name only the balancers"),
    # services and tables
    ({"master": {"bulk": {"command": "smtp"}}}, "write it as name/type"),
    ({"master": {"bulk/unix": {"command": "smtp", "maxproc": 5}}}, "maxproc of bulk/unix"),
    ({"master": {"bulk/unix": {"command": "snmp"}}}, "no daemon of Postfix"),
    ({"master": {"bulk/unix": {"command": "smtp", "process_limit": "many"}}}, "process_limit of bulk/unix"),
    ({"master": {"bulk/unix": {"command": "smtp", "chroot": "no"}}}, "chroot of bulk/unix"),
    ({"client_access": {"a b": "OK"}}, "a key has no spaces"),
    ({"sender_access": {"a@b": ""}}, "give it one line"),
    ({"transport": {"a.test": "smtp:a\nb.test smtp:b"}}, "give it one line"),
    ({"transport": {"a.test": "[192.0.2.1]"}}, "transport:nexthop"),
    ({"transport": {"a.test": "bulk:"}}, "define bulk/unix"),
    ({"header_checks": [{"pattern": "/a/", "action": "X\n/b/ Y"}]}, "several lines"),
    # tiers
    ({"tier": "primary"}, "needs the fallback tier"),
    ({**PRIMARY, "main": {"smtp_fallback_relay": None}}, "needs the fallback tier"),
    (
        {"tier": "primary", "slow_domains": ["a.test"], "main": {"smtp_fallback_relay": "[192.0.2.1]"}},
        "postfix_slow_domains are routed",
    ),
    ({**PRIMARY, "fallback_relay": ["[MX.example.net]:25"]}, "this host or its own pool"),
    ({"tier": "fallback", "fallback_relay": ["[other.example.net]"]}, "has nothing behind it"),
    ({"tier": "fallback", "main": {"smtp_fallback_relay": "[other.example.net]"}}, "has nothing behind it"),
    (
        {"tier": "fallback", "master": {"smtp/unix": {"options": {"smtp_fallback_relay": "[other.example.net]"}}}},
        "has nothing behind it",
    ),
    ({"main": {"relayhost": "[mx.example.net]"}}, "relayhost in postfix_main names"),
    ({"evacuate_to": "[mx.example.net]:25"}, "postfix_evacuate_to names"),
    ({"transport": {"a.test": "smtp:[mx-01.example.net]"}}, "postfix_transport names"),
    # the queue
    ({"queue_minfree": 15_000_000}, "set it to 15360000 or more"),
    ({"main": {"message_size_limit": 50_000_000}}, "set it to 75000000 or more"),
    ({"main": {"queue_minfree": 0}}, "set it to 15360000 or more"),
    ({"queue_volume": {"src": "/dev/vdb", "type": "xfs"}}, "takes src, fstype and opts"),
    ({"queue_volume": {"fstype": "xfs"}}, "name a device"),
    ({"queue_volume": {"src": "/q", "fstype": "tmpfs"}}, "in memory"),
    ({"queue_volume": {"src": "/var/spool/postfix/"}}, "the queue itself"),
]


@pytest.mark.parametrize(("variables", "sentence"), REFUSED)
def test_what_is_wrong_is_refused(variables, sentence):
    found = problems(**variables)
    assert any(sentence in problem for problem in found), found
    assert all(problem.endswith(".") for problem in found)


@pytest.mark.parametrize(
    ("variables", "users", "sentence"),
    [
        ({**LOGINS, "tls_certificate": "", "tls_key": "", "tls_level_in": "none"}, [HASH], "needs TLS"),
        (LOGINS, [], "has no users"),
        (LOGINS, ["secret"], "is not hashed"),
        (LOGINS, ["{PLAIN}secret"], "is not hashed"),
        (LOGINS, [f"{HASH}:0:0"], "is not hashed"),
    ],
)
def test_logins_without_tls_or_hashes_are_refused(variables, users, sentence):
    found = problems({"submission_users": [{"name": "web", "password": text} for text in users]}, **variables)
    assert any(sentence in problem for problem in found)
    assert "secret" not in "".join(found)


def test_missing_files_are_refused():
    found = problems({"missing_files": ["/etc/a.key"]}, tls_certificate="/etc/a.crt", tls_key="/etc/a.key")
    assert found == ["/etc/a.key is not on the host: put it there before, or change postfix_tls_key."]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"name": "bulk"}, "both listen on port 25"),
        ({"name": "bulk", "listen": ["192.0.2.1"]}, "both listen on port 25"),
        ({"name": "Bulk mail", "port": 26}, "small letters"),
        ({"name": "bulk", "port": 26, "networks": ["0.0.0.0/0"]}, "(instance bulk)."),
        ({"name": "bulk", "port": 26, "submission": True}, "only for the default instance"),
    ],
)
def test_instances_that_collide_are_refused(given, sentence):
    instances = [instance(instances=[given]), instance(given, instances=[given])]
    assert any(sentence in problem for problem in postfix.postfix_problems(instances, HOST))


def test_two_instances_of_one_name_are_refused():
    instances = [instance(), *(instance({"name": "bulk", "port": port}) for port in (26, 27))]
    assert postfix.postfix_problems(instances, HOST) == [
        "Two elements of postfix_instances are called bulk: rename one."
    ]


def test_instances_on_addresses_of_their_own_may_share_a_port():
    instances = [instance(listen=["192.0.2.1"]), instance({"name": "bulk", "listen": ["192.0.2.2"]})]
    assert postfix.postfix_problems(instances, HOST) == []


KNOWN = """\
compatibility_level = 0
default_process_limit = 100
disable_vrfy_command = no
mail_version = 3.7.11
smtp_connect_timeout = 30s
smtp_tls_policy_maps =
"""


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("default_process_limit", "many", "a number"),
        ("smtp_connect_timeout", "3 seconds", "a time"),
        ("smtp_connect_timeout", "3y", "a time"),
        ("disable_vrfy_command", "maybe", "yes or no"),
        ("disable_vrfy_command", "", "yes or no"),
    ],
)
def test_values_of_a_wrong_form_are_told(name, value, form):
    main = postfix.postfix_value_problems([instance(main={name: value})], KNOWN)
    assert len(main) == 1
    assert main[0].startswith(f"{name} can't be {value!r}: it takes {form}")
    assert main[0].endswith("Change postfix_main.")
    master = {"smtp/unix": {"options": {name: value}}}
    assert "Change smtp/unix of postfix_master." in postfix.postfix_value_problems([instance(master=master)], KNOWN)[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compatibility_level", "3.6"),
        ("default_process_limit", 200),
        ("default_process_limit", "$other"),
        ("smtp_connect_timeout", 5),
        ("smtp_connect_timeout", "5m"),
        ("disable_vrfy_command", True),
        ("smtp_tls_policy_maps", "anything"),
        ("no_such_parameter", "anything"),
    ],
)
def test_values_of_a_good_form_are_not(name, value):
    assert postfix.postfix_value_problems([instance(main={name: value})], KNOWN) == []

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tenfold.stack.plugins.filter.pool import FilterModule

FILTERS = FilterModule().filters()
endpoint = FILTERS["endpoint"]
pool_members = FILTERS["pool_members"]
pool_hosts = FILTERS["pool_hosts"]
pool_answers = FILTERS["pool_answers"]
pool_vip_hosts = FILTERS["pool_vip_hosts"]
POOL = {"name": "cache.example.net", "group": "memcached", "port": "11211"}


def host(address, **given):
    return {"ansible_facts": {"default_ipv4": {"address": address}}, **given}


def members(hosts, **given):
    return pool_members(POOL, {"memcached": list(hosts)}, hosts, **given)


def test_members_come_in_the_order_of_their_names():
    found = members({"cache-02": host("192.0.2.2"), "cache-01": host("192.0.2.1", pool_weight="5")})
    assert found == [
        {
            "host": "cache-01",
            "label": "cache-01",
            "address": "192.0.2.1",
            "addresses": ["192.0.2.1"],
            "port": 11211,
            "weight": 5,
        },
        {
            "host": "cache-02",
            "label": "cache-02",
            "address": "192.0.2.2",
            "addresses": ["192.0.2.2"],
            "port": 11211,
            "weight": 10,
        },
    ]


def test_given_addresses_need_no_facts():
    (member,) = members({"a": {"pool_addresses": ["192.0.2.9", "2001:db8::9"]}})
    assert (member["address"], member["addresses"]) == ("192.0.2.9", ["192.0.2.9", "2001:db8::9"])


@pytest.mark.parametrize("leaving", [["a", "c"], "a,c", "a, c", "a c"])
def test_those_that_leave_are_left_out(leaving):
    hosts = {name: host(f"192.0.2.{index}") for index, name in enumerate("abc")}
    assert [member["host"] for member in members(hosts, leaving=leaving)] == ["b"]


@pytest.mark.parametrize(
    ("hosts", "labels"),
    [
        (["a.example.net", "b.example.net"], ["a", "b"]),
        (["a.east.example", "a.west.example"], ["a-east-example", "a-west-example"]),
        (["Cache_01"], ["cache-01"]),
        (["192.0.2.1"], ["192-0-2-1"]),
    ],
)
def test_labels_can_be_used_in_dns(hosts, labels):
    found = members({name: host(f"192.0.2.{index}") for index, name in enumerate(hosts)})
    assert [member["label"] for member in found] == labels


@pytest.mark.parametrize("unknown", [{}, {"ansible_facts": {}}, {"ansible_facts": {"default_ipv4": {}}}])
def test_a_host_without_an_address_is_named(unknown):
    with pytest.raises(AnsibleFilterError, match=r"address of cache-01 is not known: .*pool_addresses"):
        members({"cache-01": unknown})


def test_a_pool_without_its_group_is_told():
    with pytest.raises(AnsibleFilterError, match=r"cache.example.net .* group memcached, which the inventory does not"):
        pool_members(POOL, {}, {})


def test_two_members_at_one_address_are_told():
    with pytest.raises(AnsibleFilterError, match=r"a and b .* same address 192.0.2.1: correct pool_addresses"):
        members({"a": host("192.0.2.1"), "b": host("192.0.2.1")})


@pytest.mark.parametrize("leaving", [["a", "b"], "b, a", ["a", "b", "elsewhere"]])
def test_the_last_member_stays(leaving):
    hosts = {name: host(f"192.0.2.{index}") for index, name in enumerate("ab")}
    with pytest.raises(AnsibleFilterError, match=r"nobody would be left in the pool cache.example.net: keep .* a, b"):
        members(hosts, leaving=leaving)


def test_a_pool_has_a_port():
    with pytest.raises(AnsibleFilterError, match=r"the pool mx has no port: give it one in pools"):
        pool_members({"name": "mx", "group": "mail"}, GROUPS, {})


def test_a_pool_may_be_empty_from_the_beginning():
    assert members({}) == []


GROUPS = {"memcached": ["b", "a"], "mail": ["m", "a"], "other": ["o"]}
POOLS = [POOL, {"name": "mx.example.net", "group": "mail", "port": 25}]


def test_hosts_of_all_pools():
    assert pool_hosts(POOLS, GROUPS) == ["a", "b", "m"]
    assert pool_hosts(POOLS, GROUPS, leaving="a") == ["b", "m"]
    assert pool_hosts([*POOLS, {"name": "gone", "group": "gone", "port": 1, "state": "absent"}], GROUPS) == [
        "a",
        "b",
        "m",
    ]


def test_who_leaves_has_to_be_there():
    with pytest.raises(AnsibleFilterError, match=r"c, o can't leave, being in no pool: .* groups are mail, memcached"):
        pool_hosts(POOLS, GROUPS, leaving="o,c,a")


def test_one_pool_must_not_lose_all_while_another_has_some():
    with pytest.raises(AnsibleFilterError, match=r"nobody would be left in the pool mx.example.net"):
        pool_hosts(POOLS, GROUPS, leaving=["a", "m"])


MAIL = {"name": "mx.example.net", "group": "mail", "port": "25", "service": "smtp"}
MAIL_GROUPS = {"mail": ["mx-2", "mx-1"], "front": ["lb-2", "lb-1"], "memcached": ["lb-3"]}
MAIL_HOSTS = {
    name: host(f"192.0.2.{number}") for number, name in enumerate(("mx-1", "mx-2", "lb-1", "lb-2", "lb-3"), 1)
}


def answers(vip=None, leaving=()):
    pool = {**MAIL, "vip": vip} if vip is not None else MAIL
    found = pool_answers(pool, MAIL_GROUPS, MAIL_HOSTS, leaving)
    return [(answer["label"], answer["addresses"], answer["port"], answer["weight"]) for answer in found]


@pytest.mark.parametrize("vip", [None, {}, {"kind": "dns"}, {"kind": "dns", "group": "front"}])
def test_without_a_balancer_the_members_answer(vip):
    assert answers(vip) == [("mx-1", ["192.0.2.1"], 25, 10), ("mx-2", ["192.0.2.2"], 25, 10)]
    assert answers(vip, "mx-1") == [("mx-2", ["192.0.2.2"], 25, 10)]


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_with_a_balancer_its_hosts_answer(kind):
    vip = {"kind": kind, "group": "front"}
    assert answers(vip, "mx-1") == [("lb-1", ["192.0.2.3"], 25, 10), ("lb-2", ["192.0.2.4"], 25, 10)]


def test_virtual_addresses_answer():
    vip = {"kind": "haproxy", "group": "front", "addresses": ["192.0.2.250", "2001:db8::1"]}
    assert answers(vip) == [("vip-1", ["192.0.2.250"], 25, 10), ("vip-2", ["2001:db8::1"], 25, 10)]


def test_a_balancer_without_members_is_of_no_use():
    vip = {"kind": "haproxy", "group": "front", "addresses": ["192.0.2.250"]}
    with pytest.raises(AnsibleFilterError, match=r"nobody would be left in the pool mx.example.net"):
        answers(vip, "mx-1,mx-2")


def test_hosts_of_all_balancers():
    pools = [
        POOL,
        {**MAIL, "vip": {"kind": "haproxy", "group": "front"}},
        {**MAIL, "vip": {"kind": "nginx", "group": "memcached"}},
        {**MAIL, "vip": {"kind": "dns", "group": "mail"}},
        {**MAIL, "state": "absent", "vip": {"kind": "nginx", "group": "gone"}},
    ]
    assert pool_vip_hosts(pools, MAIL_GROUPS) == ["lb-1", "lb-2", "lb-3"]
    assert pool_vip_hosts([POOL, MAIL], MAIL_GROUPS) == []


def test_a_balancer_runs_somewhere():
    with pytest.raises(AnsibleFilterError, match=r"mx.example.net does not tell .* give its vip a group in pools"):
        pool_vip_hosts([{**MAIL, "vip": {"kind": "haproxy"}}], MAIL_GROUPS)
    with pytest.raises(AnsibleFilterError, match=r"the group nobody, which the inventory does not have"):
        pool_vip_hosts([{**MAIL, "vip": {"kind": "haproxy", "group": "nobody"}}], MAIL_GROUPS)


@pytest.mark.parametrize(
    ("address", "port", "joined"),
    [
        ("192.0.2.9", 9100, "192.0.2.9:9100"),
        ("mx-01.example.net", "9100", "mx-01.example.net:9100"),
        ("2001:db8::9", 9100, "[2001:db8::9]:9100"),
        ("fe80::1%eth0", 9100, "[fe80::1%eth0]:9100"),
        ("::", 9100, "[::]:9100"),
    ],
)
def test_an_endpoint_is_an_address_with_a_port(address, port, joined):
    assert endpoint(address, port) == joined

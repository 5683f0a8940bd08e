# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients of two pools see through HAProxy and nginx, while members and balancers come, go and fail."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

BALANCERS, MEMBERS = ("lb-1", "lb-2"), ("mx-1", "mx-2")
POOLS = {"mx.lab.test": "haproxy", "relay.lab.test": "nginx"}
SOCKETS = {"lb-1": "/var/lib/haproxy/stats", "lb-2": "/run/haproxy/admin.sock"}
CONFIGS = "/etc/haproxy/haproxy.cfg /etc/nginx/nginx.conf /etc/keepalived/keepalived.conf"
LOADS = " ".join(f"load-{balancer}" for balancer in POOLS.values())
CLIENTS = 4
CHECKS = 2 * 2 + 3  # seconds after which a member that is gone gets no new sessions: two checks, and one that hangs
ALL = {name: {} for name in BALANCERS}  # a play of the balancers only

pools = pytest.mark.parametrize("pool", POOLS)


@pytest.fixture(scope="module")
def own(hosts):
    """The addresses of the hosts by name."""
    return {
        name: host.check_output("ip -4 -o address show dev eth0 primary").split()[3].partition("/")[0]
        for name, host in hosts.items()
    }


@pytest.fixture(scope="module")
def addresses(own):
    """The virtual addresses by pool."""
    network = subprocess.check_output(
        ["docker", "network", "inspect", "--format={{(index .IPAM.Config 0).Subnet}}", "tenfold-pool_vip"], text=True
    )
    start = network.partition("/")[0].rpartition(".")[0]
    return {"mx.lab.test": f"{start}.250", "relay.lab.test": f"{start}.251"}


def greetings(host, address, count=10) -> list[list[str]]:
    """Give what greetings at an address say: the member, and the client that it saw."""
    ask = f"timeout 5 bash -c 'read -r line < /dev/tcp/{address}/25 && echo $line'"
    return [line.split()[1:] for line in host.run(f"for n in $(seq {count}); do {ask}; done").stdout.splitlines()]


def members(host, address) -> set[str]:
    """Give the members that serve at an address."""
    return {member for member, _client in greetings(host, address)}


def holder(hosts, address) -> list[str]:
    """Give the balancers that have an address."""
    return [name for name in BALANCERS if f" {address}/" in hosts[name].check_output("ip -4 -o address")]


@contextmanager
def load(host, addresses) -> Iterator[dict[str, dict[str, Any]]]:
    """Submit mails to all pools meanwhile; gives a dictionary that has the outcome by pool afterwards."""
    outcomes: dict[str, dict[str, Any]] = {}
    run = "systemd-run --quiet --unit=load-{0} --property=StandardOutput=truncate:/tmp/{0} python3 /srv/load/load.py"
    host.check_output(
        " && ".join(f"{run.format(POOLS[pool])} {address} {CLIENTS}" for pool, address in addresses.items())
    )
    try:
        time.sleep(1)
        yield outcomes
        time.sleep(1)
    finally:
        host.check_output(f"systemctl stop {LOADS}")
        outcomes.update({pool: json.loads(host.check_output("cat /tmp/%s", POOLS[pool])) for pool in addresses})


@contextmanager
def session(address, member):
    """Keep a session with a member; gives a function that tells whether it still works, and ends it."""
    program = f"""
import socket, sys
while True:
    link = socket.create_connection(({address!r}, 25), 10)
    lines = link.makefile("rw", newline="\\r\\n")
    if lines.readline().split()[1] == {member!r}:
        break
    link.close()
print("there", flush=True)
sys.stdin.readline()
lines.write("QUIT\\r\\n")
lines.flush()
print(lines.readline()[:3], flush=True)
"""
    process = subprocess.Popen(
        ["docker", "exec", "--interactive", "tenfold-pool_vip-client", "python3", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"

        def end() -> bool:
            return process.communicate("\n", timeout=20)[0].strip() == "221"

        yield end
    finally:
        process.kill()


# What clients see


@pools
def test_members_see_the_client(hosts, own, addresses, pool):
    seen = greetings(hosts["client"], addresses[pool], 20)
    assert {member for member, _client in seen} == set(MEMBERS)
    assert {client for _member, client in seen} == {own["client"]}


def test_direct_clients_are_served_too(hosts, own):
    assert greetings(hosts["client"], own["mx-1"], 1) == [["mx-1", own["client"]]]


def test_both_members_get_about_half(hosts, addresses, capsys):
    with load(hosts["client"], addresses) as outcomes:
        time.sleep(3)
    for pool, outcome in outcomes.items():
        with capsys.disabled():
            print(f"\n{POOLS[pool]}: mails in 5 s by {CLIENTS} clients: {outcome['members']}")
        assert outcome["failures"] == []
        assert min(outcome["members"].get(name, 0) for name in MEMBERS) > sum(outcome["members"].values()) / 4


@pools
def test_one_host_has_the_address(hosts, addresses, pool):
    assert len(holder(hosts, addresses[pool])) == 1


@pytest.mark.parametrize("balancer", BALANCERS)
def test_they_listen_only_at_the_addresses(hosts, addresses, balancer):
    lines = hosts[balancer].check_output("ss -Hltun | awk '{print $5}'").split()
    assert {line for line in lines if not line.startswith("127.")} == {f"{a}:25" for a in addresses.values()}


@pytest.mark.parametrize("balancer", BALANCERS)
def test_only_root_may_ask_haproxy(hosts, balancer):
    program = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    host = hosts[balancer]
    host.check_output("python3 -c %s %s", program, SOCKETS[balancer])
    for user in ("nobody", "haproxy"):
        refused = host.run("runuser -u %s -- python3 -c %s %s", user, program, SOCKETS[balancer])
        assert "PermissionError" in refused.stderr


@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("daemon", ["haproxy", "nginx"])
def test_sandbox(hosts, balancer, daemon):
    score = hosts[balancer].run("systemd-analyze security --no-pager %s.service", daemon).stdout
    assert float(re.findall(r"exposure level for \S+: ([\d.]+)", score)[0]) <= 5


def test_names_answer_with_the_addresses(hosts, own, addresses):
    ask = f"dig +short @{own['client']}"
    for pool, address in addresses.items():
        assert hosts["client"].check_output(f"{ask} {pool}") == address
        assert hosts["client"].check_output(f"{ask} _smtp._tcp.{pool} SRV") == f"0 10 25 vip-1.{pool}."
        assert hosts["client"].check_output(f"{ask} vip-1.{pool}") == address


# Members come and go


def test_a_member_that_is_killed(hosts, addresses, until, capsys):
    client = hosts["client"]
    with load(client, addresses) as outcomes:
        time.sleep(1)
        killed = time.time()
        hosts["mx-2"].check_output("systemctl kill --signal=KILL smtp")
        time.sleep(CHECKS + 3)
        back = time.time()
        hosts["mx-2"].check_output("systemctl start smtp")
        time.sleep(CHECKS)
    for pool, outcome in outcomes.items():
        after = [when - killed for when, _error in outcome["failures"]]
        with capsys.disabled():
            last = f", the last after {max(after):.2f} s" if after else ""
            done = sum(outcome["members"].values())
            print(f"\n{POOLS[pool]}: member killed and back: {len(after)} of {done} fail{last}")
        assert len(after) <= CLIENTS * 2, outcome["failures"]
        assert all(when < CHECKS for when in after)
        assert all(when < back for when, _error in outcome["failures"])
        until(lambda address=addresses[pool]: "mx-2" in members(client, address), 20)


def test_drain_and_add_fail_nothing(hosts, addresses, play, until, capsys):
    client = hosts["client"]
    mx, relay = addresses.values()
    with (
        ThreadPoolExecutor() as executor,
        load(client, addresses) as outcomes,
        session(mx, "mx-2") as end,
        session(relay, "mx-2") as end_nginx,
    ):
        start = time.monotonic()
        drain = executor.submit(play, "members", lab_entry="drain", pool_leaving="mx-2")
        gone = until(lambda: members(client, mx) == {"mx-1"}, 60)
        assert not drain.done(), "it waits for the session"
        assert end(), "the session was served to its end"
        gone_nginx = until(lambda: members(client, relay) == {"mx-1"}, 60) + gone
        assert not drain.done(), "it waits for the session behind nginx, too"
        assert end_nginx(), "that was served to its end"
        run = drain.result(timeout=120)
        assert not run.failed, run.output
        assert "there still are" not in run.told and "still serves" not in run.told
        drained = time.monotonic() - start
        hosts["mx-2"].check_output("systemctl stop smtp")
        time.sleep(2)
        hosts["mx-2"].check_output("systemctl start smtp")
        start = time.monotonic()
        assert play("members").changes == 4  # two files in one call, and two reloads, on each of two hosts
        for address in addresses.values():
            until(lambda address=address: "mx-2" in members(client, address), 20)
        added = time.monotonic() - start
    with capsys.disabled():
        print(
            f"\nno new session after {gone:.1f} s (HAProxy) and {gone_nginx:.1f} s (nginx), drained in {drained:.1f} s,"
            f" added in {added:.1f} s"
        )
    for outcome in outcomes.values():
        assert outcome["failures"] == []


def test_what_does_not_end_is_told(addresses, play):
    mx, relay = addresses.values()
    with session(mx, "mx-2") as end, session(relay, "mx-2") as end_nginx:
        run = play("members", lab_entry="drain", pool_leaving="mx-2", pool_vip_drain_timeout=2)
        assert not run.failed, run.output
        assert "After 2 s there still are 1 sessions with mx-2 of mx.lab.test." in run.told
        assert "After 2 s nginx still serves sessions that began before the change." in run.told
        assert end() and end_nginx(), "they go on after the reload"
    assert play("members", lab_entry="drain", pool_leaving="mx-2").changes == 0
    assert play("members").changes == 4


def test_members_changes_nothing_but_members(hosts, play):
    pids = "systemctl show --property=MainPID haproxy nginx keepalived"
    before = [hosts[name].check_output(pids) for name in BALANCERS]
    assert play("members").changes == 0
    assert play("members", "--check", pool_leaving="mx-1").changes == 4
    assert play("members", pool_leaving="mx-1").changes == 4
    for name in BALANCERS:
        assert "mx-1" not in hosts[name].check_output("cat /etc/haproxy/haproxy.cfg")
    assert play("members").changes == 4
    assert [hosts[name].check_output(pids) for name in BALANCERS] == before


def test_the_last_member_stays(play):
    assert "nobody would be left in the pool mx.lab.test" in play("members", pool_leaving="mx-1,mx-2").refusal


# Balancers that fail


def test_balancers_that_are_killed_come_back(hosts, addresses, capsys):
    holders = {pool: holder(hosts, address)[0] for pool, address in addresses.items()}
    with load(hosts["client"], addresses) as outcomes:
        killed = time.time()
        for pool, name in holders.items():
            hosts[name].check_output("systemctl kill --signal=KILL %s", POOLS[pool])
        time.sleep(6)
    for pool, outcome in outcomes.items():
        with capsys.disabled():
            away = max((when - killed for when, _error in outcome["failures"]), default=0)
            print(f"\n{POOLS[pool]} killed: {len(outcome['failures'])} sessions fail, the last after {away:.2f} s")
        assert hosts[holders[pool]].check_output("systemctl is-active %s", POOLS[pool]) == "active"
        assert all(when - killed < 5 for when, _error in outcome["failures"])


def test_the_addresses_leave_hosts_whose_balancers_stay_away(hosts, addresses, until, capsys):
    holders = {pool: holder(hosts, address)[0] for pool, address in addresses.items()}
    others = {pool: [name for name in BALANCERS if name != holders[pool]] for pool in addresses}
    killed = {}
    with load(hosts["client"], addresses) as outcomes:
        for pool, name in holders.items():
            killed[pool] = time.time()
            daemon = POOLS[pool]
            hosts[name].check_output(f"systemctl mask --runtime {daemon} && systemctl kill --signal=KILL {daemon}")
        for pool, address in addresses.items():
            until(lambda pool=pool, address=address: holder(hosts, address) == others[pool], 15)
        time.sleep(2)
    for pool, name in holders.items():
        hosts[name].check_output(f"systemctl unmask --runtime {POOLS[pool]} && systemctl restart {POOLS[pool]}")
    time.sleep(5)
    for pool, outcome in outcomes.items():
        last = max(when - killed[pool] for when, _error in outcome["failures"])
        with capsys.disabled():
            print(f"\n{POOLS[pool]} away: {len(outcome['failures'])} sessions fail, the last after {last:.2f} s")
        assert last < 8
        assert holder(hosts, addresses[pool]) == others[pool], "they stay where they are"


def test_the_addresses_leave_a_host_whose_keepalived_is_killed(hosts, addresses, until):
    address = addresses["mx.lab.test"]
    (name,) = holder(hosts, address)
    (other,) = set(BALANCERS) - {name}
    hosts[name].check_output("systemctl mask --runtime keepalived && systemctl stop keepalived")
    until(lambda: holder(hosts, address) == [other], 10)
    hosts[name].check_output("systemctl unmask --runtime keepalived && systemctl start keepalived")
    assert members(hosts["client"], address)


# What can go wrong


def pool_of(addresses, name="mx.lab.test", group="mail", **given):
    """Give a pool as the inventory has it, with other values for its vip. What is None is left out."""
    vip = {"kind": "haproxy", "group": "mail_vip", "addresses": addresses, "proxy_port": 10025, **given}
    vip = {key: value for key, value in vip.items() if value is not None}
    return {"name": name, "group": group, "service": "smtp", "port": 25, "vip": vip}


def test_what_can_not_be_changes_nothing(hosts, addresses, play):
    def state():
        show = f"sha256sum {CONFIGS}; systemctl show --property=MainPID haproxy nginx keepalived"
        return [hosts[name].check_output(show) for name in BALANCERS]

    mx, relay = ([address] for address in addresses.values())
    before = state()

    bad = ["192.0.2.999"]
    run = play(
        "converge",
        by_host={
            "lb-1": {"pool_vip_pools": [pool_of(bad)]},
            "lb-2": {"pool_vip_pools": [pool_of(bad, kind="nginx")]},
        },
    )
    for name, daemon in (("lb-1", "HAProxy"), ("lb-2", "nginx")):
        assert f"{daemon} refuses its configuration, the old one stays in use" in run.on(name).refusal
    assert state() == before

    wrong = [
        pool_of(mx, proxy_port=None),
        pool_of(mx, "twice.lab.test"),
        pool_of(relay, "port.lab.test", proxy_port=25),
        pool_of(["2001:db8::1"], "ipv6.lab.test"),
        pool_of(["192.0.2.1"], "empty.lab.test", "empty"),
    ]
    run = play(
        "converge",
        by_host={"lb-1": {"pool_vip_pools": wrong}, "lb-2": {"pool_vip_pools": [pool_of(mx, kind="magic")]}},
    )
    for message in (
        "mx.lab.test has no proxy_port in its vip: its members would see the address of the",
        f"The pools mx.lab.test and twice.lab.test are both to be reached at {mx[0]} port 25",
        "The proxy_port of the pool port.lab.test is its port",
        "The virtual address 2001:db8::1 can only be kept by hosts that have an address",
        "The pool empty.lab.test has no members: add hosts to its group",
    ):
        assert message in run.on("lb-1").refusal
    assert "value of kind must be one of: haproxy, nginx, dns, got: magic" in run.on("lb-2").refusal
    assert state() == before

    # Told before any host has a part in it. The other reasons are in the unit tests of the filter.
    nobody = pool_of(mx)
    nobody["vip"]["group"] = "nobody"
    run = play("converge", by_host=ALL, pools=[nobody])
    assert "to consist of the group nobody, which the inventory does not have" in run.refusal
    assert state() == before
    assert members(hosts["client"], mx[0]) == set(MEMBERS)


def test_what_somebody_set_up_is_left_alone(hosts, play):
    host = hosts["lb-2"]
    config = "/etc/haproxy/haproxy.cfg"
    kept = host.file(config).content_string
    host.check_output("printf 'defaults\n    mode http # precious\n' > %s", config)
    try:
        refusal = play("converge", by_host={"lb-2": {}}).refusal
        assert f"This host already runs a haproxy of its own: somebody changed {config}" in refusal
        assert play("converge", by_host={"lb-2": {"pool_vip_replace_config": True}}).changes > 0
        assert "precious" in host.check_output("cat %s.before-pool_vip-*", config)
    finally:
        host.check_output("rm -f %s.before-pool_vip-*", config)
    assert host.file(config).content_string == kept


def test_verify_tells_what_is_wrong(hosts, addresses, play, until):
    refusal = play("side_effect", pool_leaving="mx-2").refusal
    assert "it has other members than the inventory: run the play announce" in refusal
    assert "it has another configuration than the inventory: run the play announce" in refusal
    hosts["mx-2"].check_output("systemctl stop smtp")
    try:
        time.sleep(CHECKS)
        run = play("side_effect")
    finally:
        hosts["mx-2"].check_output("systemctl start smtp")
    assert run.refusal.count("mx-2 can not be reached or does not serve") >= 2
    assert len(re.findall(r"(?:mx|relay)\.lab\.test .* 1/2 +mx-2 can", run.output)) == 4
    for address in addresses.values():
        until(lambda address=address: "mx-2" in members(hosts["client"], address), 20)


# Other kinds. The play of one finds what that of the one before left.


def test_another_kind(hosts, addresses, play):
    assert play("converge", by_host=ALL, lab_relay_kind="haproxy").changes > 0
    for name in BALANCERS:
        assert hosts[name].run("systemctl is-active nginx").stdout.strip() == "inactive"
        assert hosts[name].run("systemctl is-enabled nginx").stdout.strip() == "disabled"
    assert members(hosts["client"], addresses["relay.lab.test"]) == set(MEMBERS)
    assert play("converge", by_host=ALL, lab_relay_kind="haproxy").changes == 0


def test_dns_needs_no_balancer(hosts, own, addresses, play):
    pool = pool_of([addresses["mx.lab.test"]], kind="dns")
    assert play("converge", pools=[pool]).changes > 0
    answer = hosts["client"].check_output(f"dig +short @{own['client']} mx.lab.test").split()
    assert set(answer) == {own[name] for name in MEMBERS}
    assert play("members", pools=[pool]).changes == 0
    for name in BALANCERS:
        assert hosts[name].run("systemctl is-active haproxy nginx keepalived").stdout.split() == ["inactive"] * 3


def test_balancers_without_virtual_addresses(hosts, own, play):
    assert play("converge", pools=[pool_of(None)]).changes > 0
    for name in BALANCERS:
        assert hosts[name].run("systemctl is-active keepalived").stdout.strip() == "inactive"
        assert {client for _member, client in greetings(hosts["client"], own[name])} == {own["client"]}
    answer = hosts["client"].check_output(f"dig +short @{own['client']} mx.lab.test").split()
    assert set(answer) == {own[name] for name in BALANCERS}

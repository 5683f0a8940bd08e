# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients of two pools see through HAProxy and nginx, while members and balancers come, go and fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import testinfra

INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"].rsplit("/", 1)[0]
SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
BALANCERS, MEMBERS = ("lb-1", "lb-2"), ("mx-1", "mx-2")
POOLS = {"mx.lab.test": "haproxy", "relay.lab.test": "nginx"}
SOCKETS = {"lb-1": "/var/lib/haproxy/stats", "lb-2": "/run/haproxy/admin.sock"}
CONFIGS = "/etc/haproxy/haproxy.cfg /etc/nginx/nginx.conf /etc/keepalived/keepalived.conf"
CLIENTS = 4
CHECKS = 2 * 2 + 3  # seconds after which a member that is gone gets no new sessions: two checks, and one that hangs

pools = pytest.mark.parametrize("pool", POOLS)


@pytest.fixture(scope="module")
def hosts():
    """The hosts by name."""
    names = (*BALANCERS, *MEMBERS, "client")
    return {name: testinfra.get_host(f"ansible://{name}", ansible_inventory=INVENTORY) for name in names}


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


@pytest.fixture
def as_converged():
    """Afterwards the hosts are as they were."""
    yield
    changes(play("converge"))


def play(name: str, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook of the scenario with other variables."""
    extra = [f"--extra-vars={json.dumps(variables)}"] if variables else []
    return subprocess.run(
        ["ansible-playbook", f"--inventory={INVENTORY}", str(SCENARIO / f"{name}.yml"), *arguments, *extra],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
    )


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Give all that a run said, in one line."""
    return " ".join((done.stdout + done.stderr).split())


def changes(done: subprocess.CompletedProcess[str]) -> int:
    """Give how many tasks changed something on any host, of a run that succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    return sum(map(int, re.findall(r"changed=(\d+)", done.stdout.rsplit("PLAY RECAP", 1)[1])))


def until(what, seconds: float) -> float:
    """Wait until something is true; give how long that took."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


def greeting(host, address) -> list[str]:
    """Give what the greeting at an address says: the member, and the client that it saw."""
    line = host.run("timeout 5 bash -c %s", f"read -r line < /dev/tcp/{address}/25 && echo $line").stdout
    return line.split()[1:]


def holder(hosts, address) -> list[str]:
    """Give the balancers that have an address."""
    return [name for name in BALANCERS if f" {address}/" in hosts[name].check_output("ip -4 -o address")]


@contextmanager
def load(host, address):
    """Submit mails meanwhile; gives a dictionary that has the outcome afterwards."""
    outcome: dict[str, Any] = {}
    host.check_output(
        "systemd-run --quiet --unit=load --property=StandardOutput=truncate:/tmp/load.json"
        " python3 /srv/load/load.py %s %s",
        address,
        str(CLIENTS),
    )
    try:
        time.sleep(1)
        yield outcome
        time.sleep(1)
    finally:
        host.check_output("systemctl stop load")
        outcome.update(json.loads(host.file("/tmp/load.json").content_string))


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
    seen = [greeting(hosts["client"], addresses[pool]) for _ in range(20)]
    assert {member for member, _client in seen} == set(MEMBERS)
    assert {client for _member, client in seen} == {own["client"]}


def test_direct_clients_are_served_too(hosts, own):
    assert greeting(hosts["client"], own["mx-1"]) == ["mx-1", own["client"]]


@pools
def test_both_members_get_about_half(hosts, addresses, pool, capsys):
    with load(hosts["client"], addresses[pool]) as outcome:
        time.sleep(3)
    with capsys.disabled():
        print(f"\n{POOLS[pool]}: mails in 5 s by {CLIENTS} clients: {outcome['members']}")
    assert outcome["failures"] == []
    assert min(outcome["members"].get(member, 0) for member in MEMBERS) > sum(outcome["members"].values()) / 4


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


@pools
def test_a_member_that_is_killed(hosts, addresses, pool, capsys):
    with load(hosts["client"], addresses[pool]) as outcome:
        time.sleep(2)
        killed = time.time()
        hosts["mx-2"].check_output("systemctl kill --signal=KILL smtp")
        time.sleep(CHECKS + 3)
        back = time.time()
        hosts["mx-2"].check_output("systemctl start smtp")
        time.sleep(CHECKS)
    after = [when - killed for when, _error in outcome["failures"]]
    with capsys.disabled():
        last = f", the last after {max(after):.2f} s" if after else ""
        print(f"\n{POOLS[pool]}: member killed and back: {len(after)} of {sum(outcome['members'].values())} fail{last}")
    assert len(after) <= CLIENTS * 2, outcome["failures"]
    assert all(when < CHECKS for when in after)
    assert all(when < back for when, _error in outcome["failures"])
    until(lambda: greeting(hosts["client"], addresses[pool])[0] == "mx-2", 20)


@pools
def test_drain_and_add_fail_nothing(hosts, addresses, pool, capsys, as_converged):
    with load(hosts["client"], addresses[pool]) as outcome, session(addresses[pool], "mx-2") as end:
        start = time.monotonic()
        drain = subprocess.Popen(
            [
                "ansible-playbook",
                f"--inventory={INVENTORY}",
                str(SCENARIO / "members.yml"),
                "--extra-vars=lab_entry=drain pool_leaving=mx-2",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
        )
        gone = until(lambda: all(greeting(hosts["client"], addresses[pool])[0] == "mx-1" for _ in range(10)), 60)
        assert drain.poll() is None, "it waits for the session"
        assert end(), "the session was served to its end"
        output = drain.communicate(timeout=120)[0]
        assert drain.returncode == 0, output
        assert "there still are" not in output and "still serves" not in output
        drained = time.monotonic() - start
        hosts["mx-2"].check_output("systemctl stop smtp")
        time.sleep(2)
        hosts["mx-2"].check_output("systemctl start smtp")
        start = time.monotonic()
        assert changes(play("members")) == 4  # two files in one call, and two reloads, on each of two hosts
        until(lambda: greeting(hosts["client"], addresses[pool])[0] == "mx-2", 20)
        added = time.monotonic() - start
    with capsys.disabled():
        print(
            f"\n{POOLS[pool]}: no new session after {gone:.1f} s, drained in {drained:.1f} s, added in {added:.1f} s,"
            f" {len(outcome['failures'])} of {sum(outcome['members'].values())} fail"
        )
    assert outcome["failures"] == []


def test_what_does_not_end_is_told(hosts, addresses, as_converged):
    with (
        session(addresses["mx.lab.test"], "mx-2") as end,
        session(addresses["relay.lab.test"], "mx-2") as end_nginx,
    ):
        done = play("members", lab_entry="drain", pool_leaving="mx-2", pool_vip_drain_timeout=2)
        assert done.returncode == 0, done.stdout
        assert "After 2 s there still are 1 sessions with mx-2 of mx.lab.test." in told(done)
        assert "After 2 s nginx still serves sessions that began before the change." in told(done)
        assert end() and end_nginx(), "they go on after the reload"
    assert changes(play("members", lab_entry="drain", pool_leaving="mx-2")) == 0


def test_members_changes_nothing_but_members(hosts, as_converged):
    pids = "systemctl show --property=MainPID haproxy nginx keepalived"
    before = [hosts[name].check_output(pids) for name in BALANCERS]
    assert changes(play("members")) == 0
    assert changes(play("members", "--check", pool_leaving="mx-1")) == 4
    assert changes(play("members", pool_leaving="mx-1")) == 4
    for name in BALANCERS:
        assert "mx-1" not in hosts[name].check_output("cat /etc/haproxy/haproxy.cfg")
    assert [hosts[name].check_output(pids) for name in BALANCERS] == before


def test_the_last_member_stays(hosts):
    done = play("members", pool_leaving="mx-1,mx-2")
    assert done.returncode != 0
    assert "nobody would be left in the pool mx.lab.test" in told(done)


# Balancers that fail


@pools
def test_a_balancer_that_is_killed_comes_back(hosts, addresses, pool, capsys):
    (name,) = holder(hosts, addresses[pool])
    with load(hosts["client"], addresses[pool]) as outcome:
        killed = time.time()
        hosts[name].check_output("systemctl kill --signal=KILL %s", POOLS[pool])
        time.sleep(6)
    with capsys.disabled():
        away = max((when - killed for when, _error in outcome["failures"]), default=0)
        print(f"\n{POOLS[pool]} killed: {len(outcome['failures'])} sessions fail, the last after {away:.2f} s")
    assert hosts[name].check_output("systemctl is-active %s", POOLS[pool]) == "active"
    assert all(when - killed < 5 for when, _error in outcome["failures"])


@pools
def test_the_addresses_leave_a_host_whose_balancer_stays_away(hosts, addresses, pool, capsys):
    (name,) = holder(hosts, addresses[pool])
    (other,) = set(BALANCERS) - {name}
    with load(hosts["client"], addresses[pool]) as outcome:
        hosts[name].check_output("systemctl mask --runtime %s", POOLS[pool])
        killed = time.time()
        hosts[name].check_output("systemctl kill --signal=KILL %s", POOLS[pool])
        until(lambda: holder(hosts, addresses[pool]) == [other], 15)
        time.sleep(2)
    hosts[name].check_output("systemctl unmask --runtime %s && systemctl restart %s", POOLS[pool], POOLS[pool])
    last = max(when - killed for when, _error in outcome["failures"])
    with capsys.disabled():
        print(f"\n{POOLS[pool]} away on {name}: {len(outcome['failures'])} sessions fail, the last after {last:.2f} s")
    assert last < 8
    time.sleep(5)
    assert holder(hosts, addresses[pool]) == [other], "they stay where they are"


def test_the_addresses_leave_a_host_whose_keepalived_is_killed(hosts, addresses):
    (name,) = holder(hosts, addresses["mx.lab.test"])
    (other,) = set(BALANCERS) - {name}
    hosts[name].check_output("systemctl mask --runtime keepalived")
    hosts[name].check_output("systemctl stop keepalived")
    until(lambda: holder(hosts, addresses["mx.lab.test"]) == [other], 10)
    hosts[name].check_output("systemctl unmask --runtime keepalived && systemctl start keepalived")
    assert greeting(hosts["client"], addresses["mx.lab.test"])


# What can go wrong


def pool_of(virtual, name="mx.lab.test", **given):
    """Give a pool as the inventory has it, with other values for its vip."""
    vip = {"kind": "haproxy", "group": "mail_vip", "addresses": [virtual[name]], "proxy_port": 10025, **given}
    return {
        "name": name,
        "group": "mail",
        "service": "smtp",
        "port": 25,
        "vip": {key: value for key, value in vip.items() if value is not None},
    }


@pytest.mark.parametrize(
    ("vip", "message"),
    [
        ({"addresses": ["192.0.2.999"]}, "HAProxy refuses its configuration, the old one stays in use"),
        ({"kind": "nginx", "addresses": ["192.0.2.999"]}, "nginx refuses its configuration, the old one stays in use"),
        ({"kind": "magic"}, "value of kind must be one of: haproxy, nginx, dns, got: magic"),
        ({"proxy_port": None}, "mx.lab.test has no proxy_port in its vip: its members would see the address of the"),
        ({"proxy_port": 25}, "The proxy_port of the pool mx.lab.test is its port"),
        (
            {"addresses": ["2001:db8::1"]},
            "The virtual address 2001:db8::1 can only be kept by hosts that have an address",
        ),
        ({"group": "nobody"}, "to consist of the group nobody, which the inventory does not have"),
        ({"group": None}, "does not tell which hosts run its balancer: give its vip a group"),
    ],
)
def test_what_can_not_be_changes_nothing(hosts, addresses, vip, message):
    def state():
        show = f"sha256sum {CONFIGS}; systemctl show --property=MainPID haproxy nginx keepalived"
        return [hosts[name].check_output(show) for name in BALANCERS]

    before = state()
    done = play("converge", pools=[pool_of(addresses, **vip)])
    assert done.returncode != 0
    assert message in told(done)
    assert state() == before
    assert greeting(hosts["client"], addresses["mx.lab.test"])


def test_a_place_is_for_one_pool(addresses):
    twice = [pool_of(addresses), {**pool_of(addresses), "name": "other.lab.test"}]
    empty = {**pool_of(addresses), "group": "empty"}
    for given, message in (
        (
            twice,
            f"The pools mx.lab.test and other.lab.test are both to be reached at {addresses['mx.lab.test']} port 25",
        ),
        ([empty], "The pool mx.lab.test has no members: add hosts to its group"),
    ):
        done = play("converge", pools=given)
        assert done.returncode != 0
        assert message in told(done)


def test_what_somebody_set_up_is_left_alone(hosts):
    host = hosts["lb-2"]
    config = "/etc/haproxy/haproxy.cfg"
    kept = host.file(config).content_string
    host.check_output("printf 'defaults\\n    mode http # precious\\n' > %s", config)
    try:
        done = play("converge")
        assert done.returncode != 0
        assert f"This host already runs a haproxy of its own: somebody changed {config}" in told(done)
        assert changes(play("converge", pool_vip_replace_config=True)) > 0
        assert "precious" in host.check_output("cat %s.before-pool_vip-*", config)
    finally:
        host.check_output("rm -f %s.before-pool_vip-*", config)
    assert host.file(config).content_string == kept


def test_verify_tells_what_is_wrong(hosts, addresses):
    hosts["mx-2"].check_output("systemctl stop smtp")
    try:
        time.sleep(CHECKS)
        done = play("side_effect")
    finally:
        hosts["mx-2"].check_output("systemctl start smtp")
    assert done.returncode != 0
    assert told(done).count("mx-2 can not be reached or does not serve") >= 2
    assert len(re.findall(r"(?:mx|relay)\.lab\.test .* 1/2 +mx-2 can", done.stdout)) == 4
    time.sleep(CHECKS)
    done = play("side_effect", pool_leaving="mx-2")
    assert "it has other members than the inventory: run the play announce" in told(done)
    assert "it has another configuration than the inventory: run the play announce" in told(done)


# Other kinds


def test_another_kind(hosts, addresses, as_converged):
    assert changes(play("converge", lab_relay_kind="haproxy")) > 0
    for name in BALANCERS:
        assert hosts[name].run("systemctl is-active nginx").stdout.strip() == "inactive"
        assert hosts[name].run("systemctl is-enabled nginx").stdout.strip() == "disabled"
    assert greeting(hosts["client"], addresses["relay.lab.test"])
    assert changes(play("converge", lab_relay_kind="haproxy")) == 0


def test_dns_needs_no_balancer(hosts, own, addresses, as_converged):
    pool = pool_of(addresses, kind="dns")
    assert changes(play("converge", pools=[pool])) > 0
    answer = hosts["client"].check_output(f"dig +short @{own['client']} mx.lab.test").split()
    assert set(answer) == {own[name] for name in MEMBERS}
    assert changes(play("members", pools=[pool])) == 0
    for name in BALANCERS:
        assert hosts[name].run("systemctl is-active haproxy nginx keepalived").stdout.split() == ["inactive"] * 3


def test_balancers_without_virtual_addresses(hosts, own, addresses, as_converged):
    play("converge", pools=[pool_of(addresses, addresses=None)])
    for name in BALANCERS:
        assert hosts[name].run("systemctl is-active keepalived").stdout.strip() == "inactive"
        assert greeting(hosts["client"], own[name])[1] == own["client"]
    answer = hosts["client"].check_output(f"dig +short @{own['client']} mx.lab.test").split()
    assert set(answer) == {own[name] for name in BALANCERS}

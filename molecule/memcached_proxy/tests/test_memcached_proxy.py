"""What becomes of keys and requests, seen by programs that use the proxy."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import testinfra

HERE = Path(__file__).resolve().parent
INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"].rsplit("/", 1)[0]
SCORE = 1.3  # the exposure that `systemd-analyze security` may find at most
DATA = "/etc/memcached-proxy/pools.lua"
TOLD = "/var/lib/memcached-proxy/cache.lab.test"


def host(name):
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=INVENTORY)


@pytest.fixture(scope="module")
def client():
    """A host whose proxy gets its members from the inventory."""
    return host("client-1")


@pytest.fixture(scope="module")
def dns_client():
    """A host whose proxy gets its members from DNS."""
    return host("client-2")


def address_of(name):
    return host(name).check_output("hostname -I").split()[0]


def talk(on, *lines, at="127.0.0.1"):
    """Say lines to a memcached, as a program on a host, and give the answers."""
    program = (
        "import socket,sys,time\n"
        "at=sys.argv[1]\n"
        "s=socket.socket(socket.AF_UNIX if at[0]=='/' else socket.AF_INET)\n"
        "s.settimeout(15); s.connect(at if at[0]=='/' else (at,11211))\n"
        "for line in sys.argv[2:]:\n"
        " s.sendall(line.encode().decode('unicode_escape').encode()); time.sleep(0.02); print(s.recv(65536).decode())\n"
    )
    answered = on.run("python3 -c %s %s " + " ".join(["%s"] * len(lines)), program, at, *lines)
    assert answered.rc == 0, answered.stderr
    return answered.stdout.split()


def wait_until(condition, seconds=15):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.2)


def run_entry(entry, target="client-1", **variables):
    """Use an entry point of the role; give its exit status and output."""
    extra = json.dumps({"entry": entry, "target": target, **variables})
    done = subprocess.run(
        ["ansible-playbook", f"--inventory={INVENTORY}", str(HERE / "entry.yml"), f"--extra-vars={extra}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trial(client):
    """Run a case of the trial with throw-away daemons on the client host."""
    program, lua = "/root/trial.py", "/etc/memcached-proxy/proxy.lua"
    text = (HERE.parent / "trial" / "trial.py").read_text()
    client.run_expect([0], "python3 -c %s %s %s", "import sys; open(sys.argv[1],'w').write(sys.argv[2])", program, text)

    def run(case):
        done = client.run(f"python3 {program} /opt/tenfold/memcached-proxy/current/bin/memcached {lua} {case}")
        assert done.rc == 0, done.stderr
        print(case, done.stdout)
        return json.loads(done.stdout)

    return run


def test_places_keys_as_libmemcached_does_and_moves_few(trial):
    told = trial("placement")
    assert told["misplaced_9"] == told["misplaced_10"] == told["misplaced_25"] == 0
    assert told["moved"] < 0.12  # a tenth is the least
    assert told["max_mean_10"] < 1.3


def test_changes_of_the_members_cause_no_errors_and_broken_files_do_no_harm(trial):
    told = trial("reloads")
    assert told["requests"] > 1000
    assert told.get("errors", 0) == 0
    assert max(told["took"]) < 2.5
    assert told["alive"]
    assert told["refused"] >= 4
    assert told["repaired"] < 2.5


def test_a_lost_node_is_replaced_for_a_short_time(trial):
    told = trial("killed")
    assert told["requests"] > 1000
    assert told.get("errors", 0) == told["later_errors"] == 0
    assert told["slowest"] < 7  # held as long as patience says, and no longer
    assert told["later"] < 1  # then at once
    assert 0 < told["left"] <= 10
    assert told["back"] < 3


def test_a_restart_is_not_noticed(trial):
    told = trial("restarted")
    assert told["requests"] > 1000
    assert told.get("errors", 0) == 0
    assert told["misplaced"] == 0


def test_counts_nothing_twice(trial):
    told = trial("counted")
    frozen = told["frozen"]
    assert frozen["acknowledged"] <= frozen["value"] <= frozen["acknowledged"] + frozen["unknown"]
    assert frozen["unknown"] <= 8
    assert told["held"] == "NOT_FOUND"  # the node came back empty
    assert told["held_took"] > 0.8
    assert told["too_large"] == "SERVER_ERROR object too large for cache"
    assert told["too_large_took"] < 1  # the node's own answer, which is not worth waiting


def test_two_copies_survive_a_node(trial):
    told = trial("copies")
    assert told["stored"] == told["two_each"] == told["written"] == told["changed"] == 2000
    assert told["misses"] == told["empty"] == 0
    assert told["sum"] == "7"
    assert told["gone"] == "END"
    assert told["compared"] == ["STORED", "new"]


def test_prefixes_have_pools_of_their_own_and_errors_come_at_once_without_patience(trial):
    told = trial("routes")
    assert told["own"] == 50
    assert told["spread"] == 3
    assert told["error"] == "SERVER_ERROR backend failure"
    assert told["error_took"] < 0.5


def test_real_nodes_hold_what_the_ring_says(client):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["trial", "memcached", "proxy.lua"])
        ring = runpy.run_path(str(HERE.parent / "trial" / "trial.py"))["ring"]
    place = ring([address_of(name) for name in ("cache-1", "client-1", "client-2")])
    keys = [f"placed:{number}" for number in range(30)]
    assert talk(client, *[f"set {key} 0 60 1\\r\\nx\\r\\n" for key in keys]) == ["STORED"] * 30
    for node in {place(key) for key in keys}:
        own = [key for key in keys if place(key) == node]
        assert talk(client, *[f"mg {key}\\r\\n" for key in own], at=node) == ["HD"] * len(own)


def test_both_hosts_and_the_socket_see_the_same(client, dns_client):
    socket = "/run/memcached-proxy-socket/memcached.sock"
    assert talk(client, "set both 0 60 3\\r\\nabc\\r\\n") == ["STORED"]
    assert talk(dns_client, "get both\\r\\n") == ["VALUE", "both", "0", "3", "abc", "END"]
    assert talk(client, "get both\\r\\n", at=socket) == ["VALUE", "both", "0", "3", "abc", "END"]
    assert talk(client, "set session:1 0 60 1\\r\\nx\\r\\n") == ["STORED"]
    assert talk(client, "mg session:1\\r\\n", at=address_of("cache-1")) == ["HD"]


def test_an_upgraded_node_costs_no_errors(client):
    """A real restart of a node's unit, while its keys are asked for."""
    program = (
        "import socket,time\n"
        "s=socket.create_connection(('127.0.0.1',11211),15); f=s.makefile('rb'); wrong=0; end=time.time()+8; n=0\n"
        "while time.time()<end:\n"
        " n+=1; s.sendall(b'set up:%d 0 60 1\\r\\nx\\r\\n'%(n%99)); wrong+=f.readline()!=b'STORED\\r\\n'\n"
        "print(n,wrong)\n"
    )
    node = host("cache-1")
    main_process = "systemctl show --property=MainPID --value memcached@default"
    before = node.check_output(main_process)
    node.run_expect(
        [0],
        "systemd-run --on-active=1 --timer-property=AccuracySec=10ms sh -c %s",
        "systemctl stop memcached@default; sleep 1.5; systemctl start memcached@default",
    )
    requests, wrong = map(int, client.check_output("python3 -c %s", program).split())
    assert requests > 100
    assert wrong == 0
    wait_until(lambda: node.service("memcached@default").is_running)
    assert node.check_output(main_process) != before


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("client-1", "memcached-proxy@default"),
        ("client-1", "memcached-proxy@socket"),
        ("client-2", "memcached-proxy@default"),
        ("client-2", "memcached-proxy-members"),
    ],
)
def test_is_sandboxed(name, unit):
    told = host(name).check_output(f"systemd-analyze security --no-pager {unit}.service | tail -1")
    assert float(told.split(": ")[1].split()[0]) <= SCORE, told


def test_members_are_told_in_one_call_and_applied_without_a_restart(client):
    def pid():
        return client.check_output("systemctl show --property=MainPID --value memcached-proxy@default")

    def used():
        return talk(client, "get memcached_proxy:cache.lab.test\\r\\n")[-2]

    before = pid()
    status, output = run_entry("members", memcached_proxy_leaving="client-2")
    assert status == 0, output
    assert output.count("tenfold.stack.memcached_proxy : ") <= 2  # the check of the arguments, and the call
    status, output = run_entry("applied", memcached_proxy_leaving="client-2")
    assert status == 0, output
    assert used() == "2"
    status, output = run_entry("members")
    assert status == 0, output
    wait_until(lambda: used() == "3", 5)
    assert pid() == before


def test_a_bad_configuration_replaces_nothing(client):
    before = client.file(DATA).content_string
    status, output = run_entry("members", memcached_proxy_routes=[{"prefix": "lost:", "pool": "nowhere"}])
    assert status != 0
    assert "leads to the unknown pool nowhere" in output
    assert client.file(DATA).content_string == before


def test_what_makes_no_sense_is_refused_before_anything_is_changed(client):
    before = client.check_output(f"stat -c %Y {DATA}")
    status, output = run_entry(
        "main",
        memcached_proxy_version="1.6.18",
        memcached_proxy_copies=4,
        first_weight=20,
        memcached_proxy_routes=[
            {"prefix": "a:", "pool": "cache.lab.test"},
            {"prefix": "a:", "pool": "nowhere"},
            {"prefix": "b", "pool": "cache.lab.test"},
            {"prefix": "memcached_proxy:", "pool": "cache.lab.test"},
        ],
        memcached_proxy_socket="/tmp/socket",
    )
    assert status != 0
    said = " ".join(output.split())
    for sentence in [
        "raise memcached_proxy_version (1.6.18)",
        "The pool cache.lab.test has 3 members, too few for 4 copies",
        "members of the pool cache.lab.test have different weights",
        "The prefix a: is taken",
        "The prefix memcached_proxy: is taken",
        "The prefix b is to end with :",
        "The prefix a: leads to nowhere, which is none of the pools",
        "memcached_proxy_socket is to be in /run/memcached-proxy-socket/",
    ]:
        assert sentence in said
    status, output = run_entry("main", memcached_proxy_pools=[])
    assert status != 0
    assert "No pool has the service memcached" in " ".join(output.split())
    assert client.check_output(f"stat -c %Y {DATA}") == before


class NameServer:
    """What the name server of the test host says."""

    def __init__(self, on):
        self.host = on
        self.plan = json.loads(on.file("/etc/name_server.json").content_string)

    def say(self, mode, records=None):
        plan = json.dumps({"mode": mode, "records": self.plan["records"] if records is None else records})
        program = "import sys,os; open('/etc/n','w').write(sys.argv[1]); os.replace('/etc/n','/etc/name_server.json')"
        self.host.run_expect([0], "python3 -c %s %s", program, plan)

    def without(self, name):
        service = "_memcached._tcp.cache.lab.test. SRV"
        return {**self.plan["records"], service: [each for each in self.plan["records"][service] if name not in each]}


@pytest.fixture
def name_server(dns_client):
    server = NameServer(dns_client)
    yield server
    server.say("answer")
    wait_until(lambda: dns_client.file(TOLD).content_string.count("11211") == 3)


@pytest.mark.parametrize("mode", ["empty", "fail", "silent", "flapping"])
def test_a_name_server_that_stumbles_moves_no_keys(dns_client, name_server, mode):
    before = dns_client.file(TOLD).content_string
    assert before.count("11211") == 3
    if mode == "flapping":
        name_server.say("answer", [name_server.plan["records"], name_server.without("client-2")])
    else:
        name_server.say(mode)
    for _ in range(12):
        assert dns_client.file(TOLD).content_string == before
        time.sleep(0.5)
    assert talk(dns_client, "get memcached_proxy:cache.lab.test\\r\\n")[-2] == "3"


def test_a_change_in_dns_is_applied(dns_client, name_server):
    name_server.say("answer", name_server.without("client-2"))
    wait_until(lambda: talk(dns_client, "get memcached_proxy:cache.lab.test\\r\\n")[-2] == "2", 8)
    # The same digest as from the inventory, so that `applied` can wait for it.
    status, output = run_entry("applied", target="client-2", memcached_proxy_leaving="client-2")
    assert status == 0, output


def test_verify_reports_each_instance(client):
    status, output = run_entry("verify")
    assert status == 0, output
    assert output.count("verdict: ok") == 2
    assert "members: 3, 1" in output
    client.run_expect([0], "systemctl stop memcached-proxy@socket")
    status, output = run_entry("verify")
    client.run_expect([0], "systemctl start memcached-proxy@socket")
    assert status == 0, output
    assert output.count("verdict: ok") == 1
    assert "Push a value by each route" in output


def test_can_be_removed_and_made_again(client):
    status, output = run_entry("main", memcached_proxy_state="absent")
    assert status == 0, output
    assert not client.file(DATA).exists
    assert client.check_output("ss -Hltn 'sport = :11211' | awk '{print $4}'") == f"{address_of('client-1')}:11211"
    status, output = run_entry("main")
    assert status == 0, output
    assert talk(client, "get memcached_proxy:cache.lab.test\\r\\n")[-2] == "3"

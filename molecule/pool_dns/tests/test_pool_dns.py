# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the name servers answer, to whom, and what becomes of it when members come, go, or something fails."""

from __future__ import annotations

import re
import statistics

import pytest

SERVERS = ["dns-1", "dns-2"]
SCORE = 2.5  # the exposure that `systemd-analyze security` may find at most
CACHE, RELAYS = "cache.lab.test", "mx.vip.lab.test"
KEYS = "/etc/named/keys"

MEMBERS = {"10.1.0.1", "10.1.0.2", "10.1.0.3"}
SERVICES = {
    "0 10 11211 cache-01.cache.lab.test.",
    "0 10 11211 cache-02.cache.lab.test.",
    "0 20 11211 cache-03.cache.lab.test.",
}


@pytest.fixture(scope="module")
def addresses(hosts):
    """Their addresses by name."""
    return {name: host.check_output("hostname -I").split()[0] for name, host in hosts.items()}


@pytest.fixture(scope="module")
def dig(hosts, addresses):
    """A function that asks a server from the other host and gives the lines of the short answer as a set."""

    def dig(server, *question, short=True):
        asker = hosts[next(name for name in SERVERS if name != server)]
        told = asker.run(
            "dig @%s +time=2 +tries=1 " + " ".join([*question, "+short" * short]), addresses[server]
        ).stdout
        return {line for line in told.splitlines() if line and line[0] != ";"} if short else told

    return dig


@pytest.fixture
def as_converged(play):
    """Afterwards the zone is as it was."""
    yield
    assert not play("records").failed


def nsupdate(host, server, *lines, key=None):
    """Send an update; give what nsupdate says."""
    commands = "\n".join([f"server {server}", "zone lab.test", *lines, "send", ""])
    option = f"-k {key}" if key else ""
    done = host.run(f"printf %s %s | nsupdate {option} 2>&1", "%s", commands)
    return done.stdout.strip()


def serial(dig, server="dns-1"):
    return int(dig(server, "lab.test", "SOA").pop().split()[2])


# What is answered


@pytest.mark.parametrize("server", SERVERS)
def test_a_pool_answers_with_exactly_its_members(dig, server):
    assert dig(server, CACHE) == MEMBERS
    assert dig(server, CACHE, "AAAA") == {"fd00::2"}
    assert dig(server, f"cache-02.{CACHE}") == {"10.1.0.2"}
    assert dig(server, f"_memcached._tcp.{CACHE}", "SRV") == SERVICES
    assert dig(server, RELAYS) == {"10.2.0.1", "10.2.0.2"}
    assert dig(server, f"_smtp._tcp.{RELAYS}", "SRV") == {f"0 10 25 {name}.{RELAYS}." for name in ("mx-1", "mx-2")}


@pytest.mark.parametrize("server", SERVERS)
def test_the_zone_names_its_servers(dig, addresses, server):
    assert dig(server, "lab.test", "NS") == {"dns-1.lab.test.", "dns-2.lab.test."}
    for name in SERVERS:
        assert dig(server, f"{name}.lab.test") == {addresses[name]}
    assert dig(server, "lab.test", "SOA").pop().startswith("dns-1.lab.test. hostmaster.lab.test. ")


def test_an_answer_with_services_brings_their_addresses(dig):
    told = dig("dns-1", f"_memcached._tcp.{CACHE}", "SRV", short=False)
    assert set(re.findall(r"IN\s+A\s+(\S+)", told)) == MEMBERS


# Who may ask what


@pytest.mark.parametrize("server", SERVERS)
def test_it_knows_nothing_else_and_does_not_tell_what_it_is(dig, server):
    told = dig(server, "example.com", short=False)
    assert "status: REFUSED" in told
    assert " ra" not in re.findall(r"flags:[^;]*;", told)[0]
    assert dig(server, "version.bind", "CH", "TXT") == set()


@pytest.mark.parametrize("server", SERVERS)
def test_the_zone_is_given_to_those_with_the_key_only(hosts, addresses, server):
    for host in hosts.values():
        assert "Transfer failed" in host.run("dig @%s lab.test AXFR", addresses[server]).stdout
    assert "Transfer failed" in hosts[server].run("dig @127.0.0.1 lab.test AXFR").stdout
    key = "/etc/bind/keys/pool-dns-transfer.key"
    if server == "dns-1":
        assert "cache-02" in hosts["dns-2"].run("dig -k %s @%s lab.test AXFR", key, addresses[server]).stdout


@pytest.mark.parametrize("server", SERVERS)
def test_updates_without_the_right_key_are_refused(hosts, addresses, dig, server):
    before = serial(dig)
    add = "update add evil.lab.test 5 A 192.0.2.66"
    for host in hosts.values():
        assert "REFUSED" in nsupdate(host, addresses[server], add)
        host.check_output("tsig-keygen stranger > /tmp/stranger.key")
        assert "BADKEY" in nsupdate(host, addresses[server], add, key="/tmp/stranger.key")
        # The right name with another secret.
        host.check_output("tsig-keygen pool-dns > /tmp/stranger.key")
        expected = "BADSIG" if server == "dns-1" else "BADKEY"
        assert expected in nsupdate(host, addresses[server], add, key="/tmp/stranger.key")
    transfer = f"{KEYS}/pool-dns-transfer.key"
    assert "REFUSED" in nsupdate(hosts["dns-1"], addresses["dns-1"], add, key=transfer)
    assert dig("dns-1", "evil.lab.test") == set()
    assert serial(dig) == before


def test_keys_of_users_may_do_what_they_were_given_for(hosts, dig):
    primary = hosts["dns-1"]
    soa = "update add lab.test 5 SOA evil. evil. 4000000000 1 1 1 1"
    for key, name, answer in (
        ("deployment", "web", ""),
        ("apps", "web", "REFUSED"),
        ("apps", "web.apps", ""),
    ):
        line = f"update add {name}.lab.test 5 TXT {key}"
        assert answer in nsupdate(primary, "127.0.0.1", line, key=f"{KEYS}/{key}.key")
        assert (dig("dns-1", f"{name}.lab.test", "TXT") == {f'"{key}"'}) is (answer == "")
        assert "REFUSED" in nsupdate(primary, "127.0.0.1", soa, key=f"{KEYS}/{key}.key")
        nsupdate(primary, "127.0.0.1", f"update delete {name}.lab.test", key=f"{KEYS}/deployment.key")


def test_keys_are_for_root_and_named_only(hosts):
    for name, folder, user in (("dns-1", KEYS, "named"), ("dns-2", "/etc/bind/keys", "bind")):
        host = hosts[name]
        files = host.check_output("ls %s", folder).split()
        own = {"apps.key", "deployment.key", "pool-dns.key"} if name == "dns-1" else set()
        assert set(files) == own | {"pool-dns-transfer.key"}
        for file in files:
            assert host.run("runuser -u nobody -- cat %s", f"{folder}/{file}").rc != 0
            assert host.run("runuser -u %s -- cat %s", user, f"{folder}/{file}").rc == 0


@pytest.mark.parametrize("server", SERVERS)
def test_it_listens_only_where_told(hosts, addresses, server):
    listening = hosts[server].check_output("ss -Hltun 'sport = 53' | awk '{print $1, $5}'")
    expected = {f"{kind} {address}:53" for kind in ("tcp", "udp") for address in ("127.0.0.1", addresses[server])}
    assert set(listening.splitlines()) == expected


@pytest.mark.parametrize("server", SERVERS)
def test_sandbox(hosts, server):
    told = hosts[server].run("systemd-analyze security --no-pager named.service").stdout
    assert float(re.findall(r"exposure level for \S+: ([\d.]+)", told)[0]) <= SCORE


def test_the_firewall_lets_the_secondary_and_the_clients_in(hosts, addresses):
    rules = hosts["dns-1"].check_output("firewall-cmd --list-rich-rules")
    allowed = set(re.findall(r'source address="([^"]+)" port port="53" protocol="(\w+)" accept', rules))
    sources = ("192.0.2.0/24", *addresses.values())
    assert allowed == {(source, kind) for source in sources for kind in ("tcp", "udp")}


# Members come and go


def test_one_call_adds_a_member_and_touches_nothing_else(hosts, dig, play, until, as_converged):
    before = serial(dig)
    run = play("records", lab_caches=4)
    assert run.changes == 1
    assert serial(dig) == before + 1
    journal = hosts["dns-1"].check_output("named-journalprint /var/named/dynamic/lab.test.zone.jnl")
    entries = [line.split() for line in journal.splitlines()]
    start = max(n for n, line in enumerate(entries) if line[0] == "del" and line[4] == "SOA")
    assert sorted((line[0], line[1], line[4]) for line in entries[start:]) == [
        ("add", f"_memcached._tcp.{CACHE}.", "SRV"),
        ("add", f"cache-04.{CACHE}.", "A"),
        ("add", f"{CACHE}.", "A"),
        ("add", "lab.test.", "SOA"),
        ("del", "lab.test.", "SOA"),
    ]
    assert re.findall(r"^\+(\S+)", run.output, re.M) == [
        "++",
        f"_memcached._tcp.{CACHE}.",
        f"cache-04.{CACHE}.",
        f"{CACHE}.",
    ]
    assert play("records", lab_caches=4).changes == 0
    assert serial(dig) == before + 1
    for server in SERVERS:
        until(lambda server=server: dig(server, CACHE) == MEMBERS | {"10.1.0.4"}, 2)


def test_a_host_that_leaves_is_taken_out(dig, play, until, as_converged):
    assert play("records", pool_leaving="cache-02").changes == 1
    for server in SERVERS:
        until(lambda server=server: dig(server, CACHE) == MEMBERS - {"10.1.0.2"}, 2)
        assert dig(server, CACHE, "AAAA") == dig(server, f"cache-02.{CACHE}") == set()
        assert len(dig(server, f"_memcached._tcp.{CACHE}", "SRV")) == 2


def test_a_pool_is_not_emptied(dig, play):
    before = serial(dig)
    for name in ("records", "converge"):
        run = play(name, pool_leaving="mx-1.lab.test,mx-2.lab.test")
        assert f"nobody would be left in the pool {RELAYS}: keep at least one of" in run.refusal
    assert serial(dig) == before


def test_records_of_others_survive(hosts, dig, play, until, as_converged):
    key = f"{KEYS}/deployment.key"
    add = ["update add printer.lab.test 60 A 192.0.2.9", f"update add {CACHE} 60 TXT ours"]
    assert nsupdate(hosts["dns-1"], "127.0.0.1", *add, key=key) == ""
    assert play("converge").changes == 0
    assert play("records", lab_caches=2).changes == 1
    for server in SERVERS:
        until(lambda server=server: dig(server, CACHE) == {"10.1.0.1", "10.1.0.2"}, 2)
        assert dig(server, "printer.lab.test") == {"192.0.2.9"}
        assert dig(server, CACHE, "TXT") == {'"ours"'}
    remove = ["update delete printer.lab.test", f"update delete {CACHE} TXT"]
    assert nsupdate(hosts["dns-1"], "127.0.0.1", *remove, key=key) == ""


def test_a_pool_is_removed(hosts, dig, play, until, as_converged):
    line = f"update add deep.er.{RELAYS} 60 TXT left"
    assert nsupdate(hosts["dns-1"], "127.0.0.1", line, key=f"{KEYS}/deployment.key") == ""
    cache = {"name": CACHE, "group": "caches", "port": 11211, "service": "memcached"}
    gone = {"name": RELAYS, "group": "relays", "port": 25, "state": "absent"}
    assert play("converge", pools=[cache, gone]).changes == 1
    for server in SERVERS:
        until(lambda server=server: "NXDOMAIN" in dig(server, RELAYS, short=False), 2)
        assert "NXDOMAIN" in dig(server, f"deep.er.{RELAYS}", "TXT", short=False)
        assert dig(server, CACHE) == MEMBERS


def test_check_mode_changes_nothing_and_tells(dig, play):
    before = serial(dig)
    run = play("converge", "--check", lab_caches=4, pool_dns_allow_query=["any"])
    assert run.changes == 5  # the configurations of both, their reloads, and the records
    assert re.search(rf"^\+cache-04\.{CACHE}\. 5 IN A 10\.1\.0\.4$", run.output, re.M)
    assert re.search(r"^\+ +allow-query { any; };$", run.output, re.M)
    assert (serial(dig), dig("dns-1", CACHE)) == (before, MEMBERS)


def test_sixty_members(dig, play, until, as_converged):
    members = {f"10.1.0.{n}" for n in range(1, 61)}
    assert play("records", lab_caches=60).changes == 1
    for server in SERVERS:
        until(lambda server=server: dig(server, CACHE) == members, 2)
        assert "Truncated" not in dig(server, CACHE, short=False), "with EDNS they fit"
        assert "flags: qr aa tc" in dig(server, CACHE, "+noedns", "+ignore", short=False), "without they do not"
        assert dig(server, CACHE, "+noedns", "+notcp") == members, "but TCP brings them"
        assert len(dig(server, f"_memcached._tcp.{CACHE}", "SRV")) == 60


PROBE = """
import sys, time, dns.message, dns.query, dns.tsigkeyring, dns.update, re
text = open('/etc/named/keys/deployment.key').read()
ring = dns.tsigkeyring.from_text({'deployment': ('hmac-sha256', re.search('secret "(.*)"', text)[1])})
for number in range(20):
    update = dns.update.UpdateMessage('lab.test', keyring=ring)
    update.replace('probe', 5, 'TXT', str(number))
    question = dns.message.make_query('probe.lab.test', 'TXT')
    start, times = time.monotonic(), []
    assert dns.query.tcp(update, '127.0.0.1', timeout=5).rcode() == 0
    for server in sys.argv[1:]:
        while True:
            answer = dns.query.udp(question, server, timeout=5).answer
            if answer and answer[0][0].strings[0] == b'%d' % number:
                break
            time.sleep(0.001)
        times.append(time.monotonic() - start)
    print(*times)
update = dns.update.UpdateMessage('lab.test', keyring=ring)
update.delete('probe')
dns.query.tcp(update, '127.0.0.1', timeout=5)
"""


def test_secondaries_know_at_once(hosts, addresses, capsys):
    told = hosts["dns-1"].check_output("python3 -c %s %s %s", PROBE, *addresses.values())
    primary, secondary = zip(*(map(float, line.split()) for line in told.splitlines()), strict=True)
    with capsys.disabled():
        for name, times in (("primary", primary), ("secondary", secondary)):
            median, worst = statistics.median(times) * 1000, max(times) * 1000
            print(f"\nfrom an update to the answer of the {name}: median {median:.1f} ms, at most {worst:.1f} ms")
    assert max(primary) < 1
    assert max(secondary) < 2


# What can go wrong


def test_named_that_is_killed_comes_back_with_all_records(hosts, dig, addresses, until):
    for server in SERVERS:
        host = hosts[server]
        line = f"update add last-words.lab.test 5 TXT {server}"
        nsupdate(hosts["dns-1"], "127.0.0.1", "update delete last-words.lab.test", line, key=f"{KEYS}/deployment.key")
        until(lambda server=server: dig(server, "last-words.lab.test", "TXT") == {f'"{server}"'}, 2)
        before = serial(dig, server)
        host.check_output("systemctl kill --signal=KILL --kill-who=main named")
        until(lambda server=server: dig(server, "lab.test", "SOA"), 15)
        assert dig(server, "last-words.lab.test", "TXT") == {f'"{server}"'}
        assert dig(server, CACHE) == MEMBERS
        assert serial(dig, server) == before
    nsupdate(hosts["dns-1"], "127.0.0.1", "update delete last-words.lab.test", key=f"{KEYS}/deployment.key")


def test_another_configuration_is_taken_over_without_a_restart(hosts, play, until):
    for server in SERVERS:
        hosts[server].check_output("ip address replace 10.99.0.1/32 dev lo")
    before = [hosts[server].check_output("systemctl show -P MainPID named") for server in SERVERS]
    address = "{{ ansible_facts['default_ipv4']['address'] }}"
    assert play("converge", pool_dns_listen=[address, "10.99.0.1"]).changes == 4  # two files, two reloads
    for server in SERVERS:
        until(lambda server=server: "10.99.0.1:53" in hosts[server].check_output("ss -Hlun 'sport = 53'"), 5)
    assert [hosts[server].check_output("systemctl show -P MainPID named") for server in SERVERS] == before
    for server in SERVERS:
        hosts[server].check_output("ip address delete 10.99.0.1/32 dev lo")
    assert play("converge").changes == 4


def test_what_can_not_be_changes_nothing(hosts, dig, play):
    def state():
        files = "/etc/named.conf /etc/bind/named.conf /etc/named/keys/* /etc/bind/keys/*"
        return [hosts[name].run(f"sha256sum {files}; systemctl show -P MainPID named").stdout for name in SERVERS]

    before = state()
    run = play("converge", pool_dns_allow_query=["nonsense."])
    assert "named refuses its configuration: change pool_dns_listen" in run.refusal
    assert state() == before

    wrong = {"pool_dns_zone": "", "pool_dns_max_addresses": 2, "pool_dns_update_keys": [{"name": "pool-dns"}]}
    run = play("converge", by_host={"dns-1": wrong, "dns-2": {"pool_dns_zone": "other.test"}})
    for message in (
        "Set pool_dns_zone to the name of the zone",
        f"The pool {CACHE} has more addresses than pool_dns_max_addresses, 2: raise it.",
        "The key pool-dns is the own one of the role",
    ):
        assert message in run.on("dns-1").refusal
    assert f"The pool {CACHE} is not below the zone other.test: change its name in pools" in run.on("dns-2").refusal
    assert state() == before
    assert dig("dns-1", CACHE) == MEMBERS


def test_a_bind_that_somebody_set_up_is_left_alone(hosts, play):
    host = hosts["dns-2"]
    config = "/etc/bind/named.conf"
    host.check_output("echo 'options { recursion yes; }; // precious' > %s", config)
    assert "This host already runs a BIND of its own" in play("converge", by_host={"dns-2": {}}).refusal
    assert "precious" in host.file(config).content_string
    assert play("converge", by_host={"dns-2": {"pool_dns_replace_config": True}}).changes > 0
    assert "precious" not in host.file(config).content_string
    assert "precious" in host.check_output("cat %s.before-pool_dns-*", config)


def test_verify_tells_what_is_wrong(hosts, play):
    told = play("side_effect", lab_caches=4).refusal
    assert f"it does not answer with 10 11211 cache-04.{CACHE}., 10.1.0.4" in told
    told = play("side_effect", lab_caches=2).refusal
    assert f"it still answers with 10.1.0.3, 20 11211 cache-03.{CACHE}." in told
    hosts["dns-2"].check_output("systemctl stop named")
    try:
        run = play("side_effect")
    finally:
        hosts["dns-2"].check_output("systemctl start named")
    assert "does not answer: look whether named runs and listens there" in run.refusal
    assert re.search(rf"dns-1 +{CACHE} .* ok$", run.output, re.M)

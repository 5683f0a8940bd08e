# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the dns_records module against a BIND of their own."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dns", reason="dnspython is not installed")
import dns.message
import dns.query
import dns.tsigkeyring
import dns.update
from ansible_collections.tenfold.stack.plugins.modules import dns_records

NAMED = shutil.which("named", path="/usr/sbin:/usr/bin:/sbin") or ""

ZONE = """\
$TTL 5
@ SOA dns-1 hostmaster.site.test. 1 3600 60 86400 5
@ NS dns-1
dns-1 A 127.0.0.1
printer A 192.0.2.200
"""
CONFIG = """\
include "{folder}/good.key";
options {{
    directory "{folder}"; pid-file none; session-keyfile none; listen-on port {port} {{ 127.0.0.1; }};
    listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; notify no;
}};
controls {{ }};
zone "site.test" {{
    type primary; file "site"; update-policy {{ grant good zonesub ANY; }}; allow-transfer {{ key good; }};
}};
zone "signed.test" {{
    type primary; file "signed"; update-policy {{ grant good zonesub ANY; }}; allow-transfer {{ key good; }};
    dnssec-policy default; inline-signing no;
}};
zone "fixed.test" {{ type primary; file "fixed"; allow-transfer {{ key good; }}; }};
zone "closed.test" {{ type primary; file "closed"; allow-transfer {{ none; }}; }};
zone "broken.test" {{ type primary; file "broken"; allow-transfer {{ key good; }}; }};
"""
SECRET = base64.b64encode(b"x" * 32).decode()

CACHE: dict[str, Any] = {
    "name": "cache.site.test",
    "service": "memcached",
    "members": [
        {"label": "cache-01", "addresses": ["192.0.2.1"], "port": 11211},
        {"label": "cache-02", "addresses": ["192.0.2.2", "2001:DB8:0::2"], "port": 11212, "weight": 20},
    ],
}
RELAYS: dict[str, Any] = {
    "name": "mx.vip.site.test",
    "members": [{"label": "mx-1", "addresses": ["192.0.2.11"], "port": 25}],
}
CACHE_RECORDS = [
    "_memcached._tcp.cache.site.test. 5 IN SRV 0 10 11211 cache-01.cache.site.test.",
    "_memcached._tcp.cache.site.test. 5 IN SRV 0 20 11212 cache-02.cache.site.test.",
    "cache-01.cache.site.test. 5 IN A 192.0.2.1",
    "cache-02.cache.site.test. 5 IN A 192.0.2.2",
    "cache-02.cache.site.test. 5 IN AAAA 2001:db8::2",
    "cache.site.test. 5 IN A 192.0.2.1",
    "cache.site.test. 5 IN A 192.0.2.2",
    "cache.site.test. 5 IN AAAA 2001:db8::2",
]


def write_key(path, name, secret=SECRET, algorithm="hmac-sha256"):
    path.write_text(f'key "{name}" {{\n\talgorithm {algorithm};\n\tsecret "{secret}";\n}};\n')
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A folder with keys: one that the server knows, one that it does not, and one with another secret."""
    write_key(tmp_path / "good.key", "good")
    write_key(tmp_path / "unknown.key", "unknown")
    write_key(tmp_path / "other.key", "good", base64.b64encode(b"y" * 32).decode())
    return tmp_path


class Named:
    """A running BIND with the zone site.test."""

    def __init__(self, folder):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (folder / "named.conf").write_text(CONFIG.format(folder=folder, port=self.port))
        for zone in ("site", "signed", "fixed", "closed"):
            (folder / zone).write_text(ZONE)
        (folder / "broken").write_text("this is no zone\n")
        self.log = folder / "log"

    def start(self):
        command = [NAMED, "-g", "-n", "1", "-c", str(self.folder / "named.conf")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait(self):
        end = time.monotonic() + 60
        while "running\n" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def options(self, *pools, **options):
        """The options of the module that reach it."""
        return {
            "zone": "site.test",
            "pools": list(pools),
            "port": self.port,
            "key_files": [str(self.folder / "none.key"), str(self.folder / "good.key")],
            **options,
        }

    def answers(self, name, kind="A"):
        """What it answers to the question for the records of a name."""
        answer = dns.query.tcp(dns.message.make_query(name, kind), "127.0.0.1", port=self.port, timeout=5).answer
        return {rdata.to_text() for rrset in answer for rdata in rrset}

    def update(self, *actions):
        """Change the zone as somebody else does: ("add", name, ttl, type, text), ("delete", name, type)."""
        update = dns.update.UpdateMessage("site.test", keyring=dns.tsigkeyring.from_text({"good": SECRET}))
        for action, *arguments in actions:
            getattr(update, action)(*arguments)
        assert dns.query.tcp(update, "127.0.0.1", port=self.port, timeout=5).rcode() == 0


@pytest.fixture
def named(folder):
    """A BIND that only this test uses."""
    if not NAMED:
        pytest.skip("BIND is not installed (package bind9)")
    server = Named(folder)
    server.start()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def run(run_module, named):
    """A function that runs the module with pools and other options."""
    named.wait()

    def run(*pools, check=False, **options):
        return run_module(dns_records, named.options(*pools, **options), check=check, diff=True)

    return run


# Keeping records


def test_members_get_their_records(run, named):
    result = run(CACHE)
    assert (result["changed"], result["added"], result["removed"]) == (True, CACHE_RECORDS, [])
    assert result["serial"] == 2
    assert named.answers("cache.site.test") == {"192.0.2.1", "192.0.2.2"}
    assert named.answers("cache.site.test", "AAAA") == {"2001:db8::2"}
    assert named.answers("cache-02.cache.site.test") == {"192.0.2.2"}
    assert named.answers("_memcached._tcp.cache.site.test", "SRV") == {
        "0 10 11211 cache-01.cache.site.test.",
        "0 20 11212 cache-02.cache.site.test.",
    }
    assert result["diff"] == {
        "before": "",
        "after": "".join(f"{line}\n" for line in CACHE_RECORDS),
        "before_header": "zone site.test.",
        "after_header": "zone site.test.",
    }


def test_when_nothing_differs_nothing_is_sent(run):
    run(CACHE, RELAYS)
    result = run(RELAYS, CACHE)
    assert (result["changed"], result["added"], result["removed"], result["serial"]) == (False, [], [], 2)
    assert result["diff"]["before"] == result["diff"]["after"] != ""


def test_only_what_differs_is_sent(run, named):
    run(CACHE, RELAYS)
    second, third = CACHE["members"][1], {"label": "cache-03", "addresses": ["192.0.2.3"], "port": 11211}
    result = run({**CACHE, "members": [{**second, "weight": 30}, third]}, RELAYS)
    assert result["added"] == [
        "_memcached._tcp.cache.site.test. 5 IN SRV 0 10 11211 cache-03.cache.site.test.",
        "_memcached._tcp.cache.site.test. 5 IN SRV 0 30 11212 cache-02.cache.site.test.",
        "cache-03.cache.site.test. 5 IN A 192.0.2.3",
        "cache.site.test. 5 IN A 192.0.2.3",
    ]
    assert result["removed"] == [
        "_memcached._tcp.cache.site.test. 5 IN SRV 0 10 11211 cache-01.cache.site.test.",
        "_memcached._tcp.cache.site.test. 5 IN SRV 0 20 11212 cache-02.cache.site.test.",
        "cache-01.cache.site.test. 5 IN A 192.0.2.1",
        "cache.site.test. 5 IN A 192.0.2.1",
    ]
    assert result["serial"] == 3, "one update"
    assert named.answers("cache.site.test") == {"192.0.2.2", "192.0.2.3"}
    assert named.answers("cache-01.cache.site.test") == set()


def test_another_ttl_is_a_change(run):
    run(RELAYS)
    result = run(RELAYS, ttl=60)
    assert result["added"] == ["mx-1.mx.vip.site.test. 60 IN A 192.0.2.11", "mx.vip.site.test. 60 IN A 192.0.2.11"]
    assert result["removed"] == ["mx-1.mx.vip.site.test. 5 IN A 192.0.2.11", "mx.vip.site.test. 5 IN A 192.0.2.11"]
    assert run(RELAYS, ttl=60)["changed"] is False


def test_check_mode_tells_and_changes_nothing(run, named):
    result = run(CACHE, check=True)
    assert (result["changed"], result["added"], result["serial"]) == (True, CACHE_RECORDS, 1)
    assert named.answers("cache.site.test") == set()


def test_names_in_capitals_are_the_same(run):
    run(CACHE)
    capitals = {
        **CACHE,
        "name": "Cache.SITE.test.",
        "members": [{**m, "label": m["label"].upper()} for m in CACHE["members"]],
    }
    assert run(capitals, zone="SITE.test.")["changed"] is False


def test_a_pool_of_many_members(run, named):
    # As many as BIND takes by default (max-records-per-type).
    members = [{"label": f"cache-{n}", "addresses": [f"10.0.0.{n}"], "port": 1} for n in range(1, 101)]
    assert len(run({**CACHE, "members": members})["added"]) == 300
    assert len(named.answers("cache.site.test")) == len(named.answers("_memcached._tcp.cache.site.test", "SRV")) == 100


def test_more_members_than_the_server_takes_change_nothing(run, named):
    run(RELAYS)
    members = [{"label": f"cache-{n}", "addresses": [f"10.0.0.{n}"], "port": 1} for n in range(1, 200)]
    result = run({**CACHE, "members": members}, {**RELAYS, "state": "absent"})
    assert "look in its log (journalctl -u named)" in result["msg"]
    assert named.answers("cache.site.test") == set()
    assert named.answers("mx.vip.site.test") == {"192.0.2.11"}


# Records of others


def test_records_of_others_stay(run, named):
    run(CACHE)
    named.update(
        ("add", "web", 300, "A", "192.0.2.99"),
        ("add", "cache", 300, "TXT", '"of the team"'),
        ("add", "xcache", 300, "A", "192.0.2.98"),
        ("add", "gone.cache", 300, "A", "192.0.2.97"),
    )
    result = run(CACHE, RELAYS)
    assert result["removed"] == ["gone.cache.site.test. 300 IN A 192.0.2.97"]
    assert named.answers("web.site.test") == {"192.0.2.99"}
    assert named.answers("cache.site.test", "TXT") == {'"of the team"'}
    assert named.answers("xcache.site.test") == {"192.0.2.98"}
    assert named.answers("printer.site.test") == {"192.0.2.200"}


def test_pools_that_are_not_named_stay(run, named):
    run(CACHE, RELAYS)
    assert run(RELAYS)["changed"] is False
    assert run()["changed"] is False
    assert named.answers("cache.site.test") == {"192.0.2.1", "192.0.2.2"}


def test_an_absent_pool_is_removed_with_all_below_it(run, named):
    run(CACHE, RELAYS)
    named.update(("add", "cache", 300, "TXT", '"of the team"'), ("add", "deep.er.cache", 300, "TXT", "too"))
    result = run({"name": "cache.site.test", "state": "absent"}, RELAYS)
    assert len(result["removed"]) == len(CACHE_RECORDS) + 2
    assert named.answers("cache.site.test", "ANY") == set()
    assert named.answers("deep.er.cache.site.test", "TXT") == set()
    assert named.answers("mx.vip.site.test") == {"192.0.2.11"}
    assert named.answers("printer.site.test") == {"192.0.2.200"}
    assert run({"name": "cache.site.test", "state": "absent"})["changed"] is False


def test_a_pool_below_an_absent_one_stays(run, named):
    run(RELAYS, {**CACHE, "name": "vip.site.test"})
    run({"name": "vip.site.test", "state": "absent"}, RELAYS)
    assert (named.answers("vip.site.test"), named.answers("mx.vip.site.test")) == (set(), {"192.0.2.11"})


def test_signatures_are_left_to_the_server(run, named):
    pool = {**RELAYS, "name": "mx.signed.test"}
    run(pool, zone="signed.test")
    assert any(text.startswith("A ") for text in named.answers("mx.signed.test", "RRSIG"))
    result = run({"name": "mx.signed.test", "state": "absent"}, zone="signed.test")
    assert result["removed"] == ["mx-1.mx.signed.test. 5 IN A 192.0.2.11", "mx.signed.test. 5 IN A 192.0.2.11"]
    assert named.answers("mx.signed.test", "ANY") == set()


def test_an_alias_in_the_way_is_told(run, named):
    named.update(("add", "cache", 300, "CNAME", "printer"))
    result = run(CACHE, RELAYS)
    assert "cache.site.test. is an alias (CNAME)" in result["msg"]
    assert named.answers("mx.vip.site.test") == set()
    assert run({"name": "cache.site.test", "state": "absent"})["changed"] is True


# The name servers


SERVERS = [
    {"label": "dns-1", "addresses": ["127.0.0.1"]},
    {"label": "dns-2", "addresses": ["192.0.2.53", "2001:db8::53"]},
]
SOA = {"contact": "hostmaster.site.test", "refresh": 3600, "retry": 60, "expire": 86400, "minimum": 5}


def test_name_servers_come_and_go(run, named):
    result = run(nameservers=SERVERS, soa=SOA)
    assert result["added"] == [
        "dns-2.site.test. 5 IN A 192.0.2.53",
        "dns-2.site.test. 5 IN AAAA 2001:db8::53",
        "site.test. 5 IN NS dns-2.site.test.",
    ]
    assert run(nameservers=SERVERS, soa=SOA)["changed"] is False
    # All of them are replaced: a server keeps the last NS record when it is told to remove it first.
    result = run(nameservers=[{"label": "ns", "addresses": ["192.0.2.54"]}])
    assert named.answers("site.test", "NS") == {"ns.site.test."}
    assert named.answers("dns-1.site.test") == named.answers("dns-2.site.test", "AAAA") == set()
    assert named.answers("printer.site.test") == {"192.0.2.200"}


def test_a_new_soa_is_taken_over(run, named):
    result = run(nameservers=SERVERS[1:], soa={**SOA, "minimum": 60}, ttl=60)
    assert result["serial"] == 2
    assert named.answers("site.test", "SOA") == {"dns-2.site.test. hostmaster.site.test. 2 3600 60 86400 60"}
    assert run(nameservers=SERVERS[1:], soa={**SOA, "minimum": 60}, ttl=60)["changed"] is False
    assert run(CACHE)["changed"] is True, "of an update of pools alone it is no part"
    assert named.answers("site.test", "SOA") == {"dns-2.site.test. hostmaster.site.test. 3 3600 60 86400 60"}


# Refusing


def test_a_pool_is_not_emptied_by_mistake(run, named):
    run(CACHE, RELAYS)
    result = run({**CACHE, "members": []}, {"name": "mx.vip.site.test", "state": "absent"})
    assert "the pool cache.site.test. would be left without members. Nothing was changed" in result["msg"]
    assert named.answers("cache.site.test") == {"192.0.2.1", "192.0.2.2"}
    assert named.answers("mx.vip.site.test") == {"192.0.2.11"}
    assert len(run({**CACHE, "members": []}, allow_empty=True)["removed"]) == len(CACHE_RECORDS)


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ([{**CACHE, "name": "cache.other.test"}], "the pool cache.other.test. is not below the zone site.test."),
        ([{**CACHE, "name": "site.test"}], "the pool site.test. is not below the zone site.test."),
        ([{"name": "xsite.test", "state": "absent"}], "the pool xsite.test. is not below the zone"),
        ([CACHE, CACHE], "the pool cache.site.test. is there twice"),
        (
            [CACHE, {**RELAYS, "name": "cache-01.cache.site.test"}],
            "is a pool and a member of the pool cache.site.test.",
        ),
        ([{**CACHE, "name": "dns-1.site.test"}], "the name server dns-1.site.test. is in the pool dns-1.site.test."),
        ([{**CACHE, "name": f"{'x' * 64}.site.test"}], "can't be a name in DNS"),
        ([{**CACHE, "members": [{"label": "a", "addresses": ["10.0.0.256"], "port": 1}]}], '"10.0.0.256" of '),
        (
            [{**CACHE, "members": [{"label": "a", "addresses": ["10.0.0.1"], "port": 70000}]}],
            "can't have the SRV record",
        ),
    ],
)
def test_what_can_not_be_is_told_before_anything_is_asked(run_module, folder, pools, message):
    options = {"zone": "site.test", "pools": pools, "key_files": [str(folder / "good.key")], "nameservers": SERVERS}
    assert message in run_module(dns_records, {**options, "port": 1})["msg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_files": ["{folder}/unknown.key"]}, "does not know the key unknown.: include its file in named.conf"),
        ({"key_files": ["{folder}/other.key"]}, "has another secret for the key good.: give both the same key file"),
        ({"zone": "elsewhere.test"}, "answers NOTAUTH for the zone elsewhere.test.: it is not authoritative"),
        ({"zone": "closed.test"}, "answers REFUSED for the zone closed.test.: allow the key good. in allow-transfer"),
        ({"zone": "fixed.test"}, "answers REFUSED for the zone fixed.test.: allow the key good. in update-policy"),
        ({"zone": "broken.test"}, "answers SERVFAIL for the zone broken.test.: it could not load or change the zone"),
    ],
)
def test_what_the_server_refuses_is_told(run, folder, options, message):
    pool = {**RELAYS, "name": f"mx.{options.get('zone', 'site.test')}"}
    if "key_files" in options:
        options = {"key_files": [path.format(folder=folder) for path in options["key_files"]]}
    result = run(pool, **options)
    assert result["failed"]
    assert result["msg"].startswith("the DNS server 127.0.0.1 port ")
    assert message in result["msg"]


def test_a_clock_that_differs_is_told(run, monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    assert "has another time than this host: synchronize their clocks" in run(CACHE)["msg"]


@pytest.mark.parametrize("listens", [True, False])
def test_a_server_that_is_away_is_told(run_module, folder, listens):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if listens:
            bound.listen()  # and never answers
        options = {"zone": "site.test", "pools": [CACHE], "key_files": [str(folder / "good.key")], "timeout": 0.2}
        result = run_module(dns_records, {**options, "port": bound.getsockname()[1]})
    assert "does not answer (" in result["msg"]
    assert result["msg"].endswith("start it, or correct server and port")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no key in "),
        ("", "does not hold a key"),
        ("\udcff", "can't be read"),
        ('key "a" { algorithm rot13; secret "AAAA"; };', "does not hold a key"),
        ('key "a" { algorithm hmac-sha256; };', "does not hold a key"),
        ('key "a" { algorithm hmac-sha256; secret "A"; };', "is not Base64"),
    ],
)
def test_a_key_file_without_a_key_is_told(run_module, tmp_path, text, message):
    path = tmp_path / "a.key"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    result = run_module(dns_records, {"zone": "site.test", "pools": [CACHE], "key_files": [str(path)]})
    assert message in result["msg"]
    assert str(path) in result["msg"]


def test_keys_of_other_algorithms_are_used(run_module, named, folder):
    write_key(folder / "good.key", "good", algorithm="hmac-sha512")
    named.process.kill()
    named.process.wait()
    named.start()
    result = run_module(dns_records, named.options(CACHE, patience=10))
    assert result["changed"] is True


def test_the_secret_is_told_nowhere(run, capsys):
    results = [run(CACHE), run(CACHE, zone="fixed.test"), run({**CACHE, "members": []})]
    assert SECRET not in str(results)
    assert SECRET not in str(capsys.readouterr())


# Others at the same time


def call(named, *pools, **options):
    """Run the module's work as often as wanted in threads, which can't share a standard output."""
    options = {"allow_empty": False, "nameservers": None, "soa": None, "ttl": 5, "server": "127.0.0.1", **options}
    wanted = [{"state": "present", "service": None, **pool} for pool in pools]
    for pool in wanted:
        pool["members"] = [{"weight": 10, **member} for member in pool["members"]]
    params = {"timeout": 5, "patience": 0, **options, **named.options(*wanted)}
    return dns_records.apply(SimpleNamespace(params=params, check_mode=False))


def test_a_change_between_reading_and_updating_is_seen(run, named, monkeypatch):
    run(CACHE)
    read = dns_records.Server.read
    reads = []

    def overtaken(server):
        records = read(server)
        reads.append(records)
        if len(reads) == 1:
            named.update(("delete", "cache", "A"), ("add", "cache", 5, "A", "192.0.2.66"))
        return records

    monkeypatch.setattr(dns_records.Server, "read", overtaken)
    result = run({**CACHE, "members": CACHE["members"][:1]})
    assert len(reads) == 2
    assert "cache.site.test. 5 IN A 192.0.2.66" in result["removed"]
    assert named.answers("cache.site.test") == {"192.0.2.1"}


def test_after_many_changes_by_others_it_gives_up(run, named, monkeypatch):
    read = dns_records.Server.read
    counter = iter(range(1000))

    def overtaken(server):
        records = read(server)
        named.update(("replace", "counter", 5, "TXT", str(next(counter))))
        return records

    monkeypatch.setattr(dns_records.Server, "read", overtaken)
    assert "was changed by somebody else 20 times" in run(CACHE)["msg"]
    assert named.answers("cache.site.test") == set()


def test_many_runs_at_the_same_time_all_count(named):
    named.wait()
    failures = []

    def work(number):
        members = [{"label": f"m-{number}", "addresses": [f"10.0.0.{number}"], "port": 1}]
        try:
            call(named, {"name": f"pool-{number}.site.test", "members": members})
        except dns_records.DnsError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in range(8):
        assert named.answers(f"pool-{number}.site.test") == {f"10.0.0.{number}"}


def test_it_waits_for_a_server_that_starts(run_module, named):
    named.wait()
    named.process.kill()
    named.process.wait()
    later = threading.Timer(1, named.start)
    later.start()
    try:
        assert run_module(dns_records, named.options(CACHE, patience=10))["changed"] is True
    finally:
        later.join()


def test_without_dnspython_its_absence_is_told(run_module, folder, monkeypatch):
    monkeypatch.setattr(dns_records, "DNSPYTHON_IMPORT_ERROR", "no such module")
    result = run_module(dns_records, {"zone": "site.test", "key_files": [str(folder / "good.key")]})
    assert "dnspython" in result["msg"]

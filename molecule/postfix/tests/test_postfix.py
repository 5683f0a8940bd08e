"""Mail on its way through the tiers, what may not get in, what is refused, and what becomes of the queue."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from typing import Any

import pytest

PASSWORD = "correct horse"

# Sends a mail and prints each answer's code and text: arguments are a JSON object.
CLIENT = """
import json, smtplib, socket, ssl, sys
o = json.loads(sys.argv[1])
class Client(smtplib.SMTP):
    def _get_socket(self, host, port, timeout):
        s = socket.create_connection((host, port), timeout)
        if o.get("proxy"):
            s.sendall(("PROXY TCP4 %s 192.0.2.250 40000 25\\r\\n" % o["proxy"]).encode())
        return s
try:
    c = Client(o["host"], o.get("port", 25), "client.test", timeout=20)
    c.ehlo()
    if o.get("tls"):
        print(*c.starttls(context=ssl._create_unverified_context())); c.ehlo()
    if o.get("password"):
        print(c.login("web", o["password"]))
    for n in range(o.get("count", 1)):
        c.sendmail("from@example.com", [o["to"]], "Subject: %s\\n\\ntext %d\\n" % (o.get("subject", "hello"), n))
        print("accepted")
except smtplib.SMTPRecipientsRefused as e:
    print(list(e.recipients.values())[0])
except Exception as e:
    print(type(e).__name__, e)
"""


@pytest.fixture(scope="module")
def send(hosts):
    """Give a function that sends mail from a host, and gives what the server said."""

    def send(sender: str, host: str, to: str, **options: Any) -> str:
        return hosts[sender].check_output("python3 -c %s %s", CLIENT, json.dumps({"host": host, "to": to, **options}))

    return send


def queued(host, folder: str = "/var/spool/postfix") -> int:
    """Give how many mails wait."""
    return int(host.check_output(f"cd {folder} && find incoming active deferred hold maildrop -type f | wc -l"))


def now(host) -> str:
    return host.check_output("date '+%Y-%m-%d %H:%M:%S'")


def lines(host, since: str, *words: str) -> list[str]:
    text = host.check_output("journalctl --no-pager -o short --since=%s", since)
    return [line for line in text.splitlines() if "postfix/" in line and all(word in line for word in words)]


# Mail on its way


def test_what_a_primary_cannot_deliver_goes_to_the_fallback_at_once(hosts, send, until):
    primary, fallback = hosts["mx-1"], hosts["fallback-1"]
    since = now(fallback)
    assert send("relay-1", "mx-1", "one@bin.test") == "accepted"
    until(lambda: lines(fallback, since, "to=<one@bin.test>", "relay=none", "status=sent"), 30)
    assert lines(primary, since, "postfix/smtp[", "to=<one@bin.test>", "relay=fallback-1", "status=sent")
    assert queued(primary) == 0


def test_a_slow_domain_goes_straight_to_the_fallback_which_has_a_transport_for_it(hosts, send, until):
    primary, fallback = hosts["mx-1"], hosts["fallback-1"]
    since = now(fallback)
    assert send("relay-1", "mx-1", "one@slow.test") == "accepted"
    until(lambda: lines(fallback, since, "postfix/slow/smtp[", "to=<one@slow.test>"), 30)
    assert lines(primary, since, "postfix/fallback/smtp[", "to=<one@slow.test>", "relay=fallback-1")
    assert not lines(primary, since, "postfix/smtp[", "slow.test")
    fallback.check_output("postsuper -d ALL")


def test_a_plain_relay_takes_only_its_domains_from_strangers(hosts, send):
    assert send("mx-1", "relay-1", "one@sink.test") == "accepted"
    assert "Relay access denied" in send("mx-1", "relay-1", "one@example.net")


def test_headers_are_checked(send):
    assert "not here" in send("relay-1", "mx-1", "one@bin.test", subject="something forbidden")


def test_queue_ids_are_never_used_twice(hosts, send, until):
    since = now(hosts["mx-1"])
    send("relay-1", "mx-1", "id@bin.test")
    until(lambda: lines(hosts["mx-1"], since, "to=<id@bin.test>"), 30)
    queue_id = lines(hosts["mx-1"], since, "to=<id@bin.test>")[0].split(": ")[1]
    assert len(queue_id) > 12


# The PROXY port


def test_the_balancer_tells_the_address_of_the_client(hosts, send):
    since = now(hosts["mx-1"])
    assert "Relay access denied" in send("relay-1", "mx-1", "one@example.net", port=10025, proxy="203.0.113.9")
    assert lines(hosts["mx-1"], since, "postfix/lb/smtpd[", "203.0.113.9")
    subnet = hosts["relay-1"].check_output("hostname -I").split()[0]
    assert send("relay-1", "mx-1", "one@bin.test", port=10025, proxy=subnet) == "accepted"


@pytest.mark.parametrize("sender", ["fallback-1", "mx-1"])
def test_nobody_else_reaches_the_proxy_port(send, sender):
    assert "ConnectionRefusedError" in send(sender, "mx-1", "one@bin.test", port=10025, proxy="127.0.0.1")


def test_the_guard_survives_what_flushes_all_tables(hosts, send):
    mx = hosts["mx-1"]
    # A real flush would also take what the containers' engine keeps there for its name server.
    flush = "-/usr/sbin/nft delete table inet postfix_proxy_guard"
    stands_in = "\\n".join(f"{when}=\\n{when}={flush}" for when in ("ExecStart", "ExecReload", "ExecStop"))
    added = mx.check_output("grep ^Exec /etc/systemd/system/nftables.service.d/postfix-proxy-guard.conf")
    mx.check_output(
        "mkdir -p /run/systemd/system/nftables.service.d;"
        f"printf '[Service]\\n{stands_in}\\n' > /run/systemd/system/nftables.service.d/a-flush.conf;"
        "systemctl daemon-reload"
    )
    assert mx.check_output("systemctl show -P ExecStartPost nftables")
    assert added.count("/etc/nftables/postfix_proxy_guard.nft") == 3
    try:
        for verb in ("start", "reload", "restart", "stop"):
            mx.check_output(f"systemctl {verb} nftables")
            assert "ConnectionRefusedError" in send("fallback-1", "mx-1", "x@bin.test", port=10025, proxy="127.0.0.1")
            assert mx.service("postfix").is_running
    finally:
        mx.check_output(
            "systemctl stop nftables; rm -r /run/systemd/system/nftables.service.d; systemctl daemon-reload"
        )


def test_without_the_guard_postfix_does_not_start(hosts):
    mx = hosts["mx-1"]
    mx.check_output(
        "systemctl stop postfix; mv /etc/nftables/postfix_proxy_guard.nft /root; systemctl stop postfix-proxy-guard"
    )
    try:
        assert mx.run("systemctl start postfix").rc != 0
        assert not mx.socket("tcp://0.0.0.0:10025").is_listening
    finally:
        mx.check_output("mv /root/postfix_proxy_guard.nft /etc/nftables; systemctl start postfix-proxy-guard postfix")
    assert mx.service("postfix").is_running


# Stories of the hosts. What `yield` gives is what became of a play with these variables. The hosts share the plays.

Story = Generator[dict[str, Any], Any, None]
PROCESSES = "systemctl show -P MainPID -P ActiveEnterTimestamp postfix postfix@-"
STATE = (
    f"{PROCESSES} && find /etc/postfix /etc/nftables /var/lib/tenfold -type f | sort | xargs sha256sum"
    " && stat -c %y /etc/postfix/*.lmdb && ls -A /root/.ansible/tmp"
)  # all that a refused change must leave as it is

# By host; all that the preflight refuses is in the unit tests of its filter.
REFUSED: dict[str, list[tuple[dict[str, Any], list[str]]]] = {
    "mx-1": [
        (
            {
                "postfix_networks": ["0.0.0.0/0"],
                "postfix_main": {"smtpd_relay_restrictions": "permit"},
                "postfix_proxy_clients": [],
                "postfix_tls_certificate": "/etc/none.crt",
                "postfix_tls_key": "/etc/none.key",
                "postfix_fallback_relay": [],
                "postfix_transport": {"a.test": "nowhere"},
            },
            [
                "0.0.0.0/0 may relay",
                "permit comes before",
                "name the balancers in postfix_proxy_clients",
                "/etc/none.crt is not on the host",
                "needs the fallback tier",
                "transport:nexthop",
            ],
        ),
        (
            {"postfix_main": {"smtp_conect_timeout": "3s"}},
            ["change postfix_main", "unused parameter: smtp_conect_timeout"],
        ),
    ],
    "fallback-1": [
        ({"postfix_fallback_relay": ["[fallback.vip.lab.test]"]}, ["mail would loop"]),
        (
            {"postfix_header_checks": [{"pattern": "/(/", "action": "REJECT"}, {"pattern": "/x", "action": "REJECT"}]},
            ["change postfix_header_checks", "Unmatched (", "no closing regexp delimiter"],
        ),
    ],
    "relay-1": [
        (
            {"postfix_main": {"smtp_connect_timeout": "soon"}},
            ["smtp_connect_timeout can't be 'soon'", "Change postfix_main"],
        ),
        ({"postfix_aliases": {"postmaster": "root", '"a': "root"}}, ["change postfix_aliases"]),  # postmap only warns
    ],
}


def refused(host, changes: list[tuple[dict[str, Any], list[str]]]) -> Story:
    """Refused changes harm nothing, and leave nothing to mend."""
    before = host.check_output(STATE)
    for variables, sentences in changes:
        refusal = (yield variables).refusal
        for sentence in sentences:
            assert sentence in refusal
        assert host.check_output(STATE) == before
    assert (yield {}).changes == 0


def test_what_is_refused_harms_nothing(hosts, send, side_by_side):
    side_by_side("converge", {name: refused(hosts[name], changes) for name, changes in REFUSED.items()})
    assert send("relay-1", "mx-1", "still@bin.test") == "accepted"


def tables_addresses_and_interruptions(relay, send, until) -> Story:
    """A table is only made anew when it changed, and only other addresses need a restart."""
    before = relay.check_output(PROCESSES)
    table = relay.check_output("stat -c %y /etc/postfix/relay_domains.lmdb")
    changed: dict[str, Any] = {"postfix_transport": {"sink.test": "discard:", "other.test": "discard:"}}
    assert (yield changed).changes > 0
    assert relay.check_output("stat -c %y /etc/postfix/relay_domains.lmdb") == table
    assert relay.check_output("postmap -q other.test lmdb:/etc/postfix/transport") == "discard:"
    assert relay.check_output(PROCESSES) == before
    assert (yield changed).changes == 0

    assert (yield {"postfix_listen": ["localhost"]}).changes > 0
    assert relay.check_output(PROCESSES) != before
    assert relay.socket("tcp://127.0.0.1:25").is_listening
    assert not relay.socket("tcp://0.0.0.0:25").is_listening
    assert (yield {}).changes > 0
    assert relay.socket("tcp://0.0.0.0:25").is_listening
    assert send("mx-1", "relay-1", "one@sink.test") == "accepted"

    # What an interrupted run did not tell Postfix is told by the next.
    since = now(relay)
    relay.check_output("echo interrupted > /var/lib/tenfold/postfix.told")
    assert (yield {}).changes > 0
    until(lambda: lines(relay, since, "daemon started"), 30)
    assert (yield {}).changes == 0


def instances(host, name: str, send, until) -> Story:
    """A further instance comes, and goes when its mail has left."""
    bulk: dict[str, Any] = {
        "postfix_instances": [
            {
                "name": "bulk",
                "tier": "none",
                "port": 2525,
                "relay_domains": {"bulk.test": "OK"},
                "listen": ["all"],
                "transport": {"bulk.test": "discard:"},
                "slow_domains": [],
                "networks": ["127.0.0.0/8"],
                "fallback_relay": [],
            }
        ]
    }
    assert (yield bulk).changes > 0
    assert (yield bulk).changes == 0
    assert send("fallback-1", name, "one@bulk.test", port=2525) == "accepted"
    assert "denied" in send("fallback-1", name, "one@example.net", port=2525)
    until(lambda: queued(host, "/var/spool/postfix-bulk") == 0, 30)
    host.check_output(
        "postmulti -i postfix-bulk -x postconf -e defer_transports=smtp && postmulti -i postfix-bulk -p reload"
    )
    assert send(name, "127.0.0.1", "stays@example.net", port=2525) == "accepted"
    until(lambda: queued(host, "/var/spool/postfix-bulk") == 1, 30)
    assert "1 mails are in its queue" in (yield {}).refusal
    host.check_output("postsuper -c /etc/postfix-bulk -d ALL")
    assert (yield {}).changes > 0
    assert not host.socket("tcp://0.0.0.0:2525").is_listening
    assert host.socket("tcp://0.0.0.0:25").is_listening
    assert (yield {}).changes == 0


def logins_and_no_proxy_port(mx, send) -> Story:
    """Users with a password may send over TLS. A PROXY port that is gone takes its guard with it."""
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True
    ).stdout.strip()
    submission: dict[str, Any] = {
        "postfix_tls_certificate": "/etc/pki/tls/lab.crt",
        "postfix_tls_key": "/etc/pki/tls/lab.key",
        "postfix_submission": True,
        "postfix_submission_users": [{"name": "web", "password": hashed}],
    }
    run = yield submission
    assert run.changes > 0
    assert hashed not in run.output
    assert (yield submission).changes == 0
    good: dict[str, Any] = {"port": 587, "tls": True}
    assert send("relay-1", "mx-1", "one@bin.test", password=PASSWORD, **good).splitlines()[-1] == "accepted"
    assert "authentication failed" in send("relay-1", "mx-1", "one@bin.test", password="wrong", **good)
    assert "denied" in send("relay-1", "mx-1", "one@bin.test", **good)
    assert "STARTTLS" in send("relay-1", "mx-1", "one@bin.test", port=587)

    assert (yield {"postfix_proxy_port": 0}).changes > 0
    assert not mx.socket("tcp://0.0.0.0:587").is_listening
    assert mx.run("nft list table inet postfix_proxy_guard").rc != 0
    assert not mx.socket("tcp://0.0.0.0:10025").is_listening
    assert mx.run("systemctl restart postfix").rc == 0
    assert (yield {}).changes > 0
    assert mx.socket("tcp://0.0.0.0:10025").is_listening


MAILS = 30


def queue_on_a_volume(fallback, send, until) -> Story:
    """The queue moves to a volume, and no mail is lost."""
    fallback.check_output("mkdir -p /srv/queue; touch /etc/fstab")
    hold: dict[str, Any] = {"postfix_main": {"defer_transports": "discard"}}
    assert (yield hold).changes > 0
    assert send("mx-1", "fallback-1", "one@bin.test", count=MAILS).count("accepted") == MAILS
    until(lambda: int(fallback.check_output("find /var/spool/postfix/deferred -type f | wc -l")) == MAILS, 30)
    ids = fallback.check_output("find /var/spool/postfix/deferred -type f -printf '%f\\n' | sort")

    # A run that was interrupted in the middle of the move.
    fallback.check_output(
        "systemctl stop postfix; mkdir -p /run/tenfold/postfix-queue;"
        "mount --bind /srv/queue /run/tenfold/postfix-queue; cd /var/spool/postfix;"
        "for f in $(find deferred defer -type f | head -9); do mkdir -p /srv/queue/${f%/*}; mv $f /srv/queue/$f; done"
    )
    volume: dict[str, Any] = {"postfix_queue_volume": {"src": "/srv/queue"}, **hold}
    assert (yield volume).changes > 0
    assert fallback.check_output("find /var/spool/postfix/deferred -type f -printf '%f\\n' | sort") == ids
    assert fallback.check_output("find /srv/queue/deferred -type f -printf '%f\\n' | sort") == ids
    assert fallback.run("mountpoint /run/tenfold/postfix-queue").rc != 0
    assert "/srv/queue /var/spool/postfix none bind" in fallback.file("/etc/fstab").content_string
    assert "/var/spool/postfix" in fallback.check_output("systemctl show -P RequiresMountsFor postfix")
    assert fallback.check_output("stat -c '%U:%G %a' /var/spool/postfix/maildrop") == "postfix:postdrop 730"
    assert "not owned" not in fallback.check_output("postfix check 2>&1")
    assert (yield volume).changes == 0
    assert fallback.check_output("postqueue -p | grep -c @bin.test") == str(MAILS)

    since = now(fallback)
    assert (yield {"postfix_queue_volume": volume["postfix_queue_volume"]}).changes > 0
    fallback.check_output("postqueue -f")
    until(lambda: queued(fallback) == 0, 30)
    assert len(lines(fallback, since, "to=<one@bin.test>", "status=sent")) == MAILS

    assert "would be left behind" in (yield {"postfix_queue_volume": {"src": "/srv/other"}}).refusal


def test_changes_are_made_and_taken_back(hosts, send, until, side_by_side):
    relay, mx, fallback = hosts["relay-1"], hosts["mx-1"], hosts["fallback-1"]
    side_by_side(
        "converge",
        {
            "relay-1": tables_addresses_and_interruptions(relay, send, until),
            "mx-1": instances(mx, "mx-1", send, until),
            "fallback-1": queue_on_a_volume(fallback, send, until),
        },
    )
    side_by_side(
        "converge",
        {"relay-1": instances(relay, "relay-1", send, until), "mx-1": logins_and_no_proxy_port(mx, send)},
    )


def test_a_host_is_drained_then_stopped_and_comes_back(hosts, send, play, until):
    primary, fallback = hosts["mx-1"], hosts["fallback-1"]
    as_it_was, absent = {"mx-1": {}}, {"mx-1": {"postfix_state": "absent"}}
    fallback.check_output("systemctl stop postfix")
    assert send("relay-1", "mx-1", "drained@bin.test", count=MAILS).count("accepted") == MAILS
    until(lambda: int(primary.check_output("find /var/spool/postfix/deferred -type f | wc -l")) == MAILS, 30)
    assert f"{MAILS} mails are in the queues of mx-1" in play("converge", by_host=absent).refusal
    refusal = play("drain", by_host=as_it_was, postfix_drain_timeout=4).refusal
    assert f"{MAILS} in /var/spool/postfix/" in refusal
    assert not primary.socket("tcp://0.0.0.0:25").is_listening

    fallback.check_output("systemctl start postfix")
    since = now(fallback)
    assert play("drain", by_host=as_it_was, postfix_drain_timeout=60).changes > 0
    assert queued(primary) == 0
    until(lambda: len(lines(fallback, since, "to=<drained@bin.test>", "status=sent")) == MAILS, 30)

    assert play("converge", by_host=absent).changes > 0
    assert (primary.service("postfix").is_running, primary.service("postfix").is_enabled) == (False, False)
    assert play("converge", by_host=absent).changes == 0
    assert play("converge", by_host=as_it_was).changes > 0
    assert primary.service("postfix").is_enabled
    assert send("relay-1", "mx-1", "back@bin.test") == "accepted"
    assert play("converge", by_host=as_it_was).changes == 0

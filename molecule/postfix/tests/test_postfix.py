"""Mail on its way through the tiers, what may not get in, what is refused, and what becomes of the queue."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import testinfra

INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"].rsplit("/", 1)[0]
SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
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
def hosts():
    """Give a function that gives a host by its name."""
    return lambda name: testinfra.get_host(f"ansible://{name}", ansible_inventory=INVENTORY)


@pytest.fixture(scope="module")
def send(hosts):
    """Give a function that sends mail from a host, and gives what the server said."""

    def send(sender: str, host: str, to: str, **options: Any) -> str:
        return hosts(sender).check_output("python3 -c %s %s", CLIENT, json.dumps({"host": host, "to": to, **options}))

    return send


def play(host: str, name: str = "converge.yml", **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook of the scenario on a host with other variables."""
    command = ["ansible-playbook", f"--inventory={INVENTORY}", f"--limit={host}", str(SCENARIO / name)]
    return subprocess.run(
        [*command, f"--extra-vars={json.dumps(variables)}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
    )


def changes(done: subprocess.CompletedProcess[str]) -> int:
    """Give how many tasks changed something, of a run that succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    recap = done.stdout.rsplit("PLAY RECAP", 1)[1]
    return int(recap.split("changed=")[1].split()[0])


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Give what a run that failed said, as one line."""
    assert done.returncode != 0, done.stdout
    return " ".join((done.stdout + done.stderr).split())


def queued(host, folder: str = "/var/spool/postfix") -> int:
    """Give how many mails wait."""
    return int(host.check_output(f"cd {folder} && find incoming active deferred hold maildrop -type f | wc -l"))


def wait_for(condition, seconds: int = 30) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.5)


def now(host) -> str:
    return host.check_output("date '+%Y-%m-%d %H:%M:%S'")


def lines(host, since: str, *words: str) -> list[str]:
    text = host.check_output("journalctl --no-pager -o short --since=%s", since)
    return [line for line in text.splitlines() if "postfix/" in line and all(word in line for word in words)]


# Mail on its way


def test_what_a_primary_cannot_deliver_goes_to_the_fallback_at_once(hosts, send):
    primary, fallback = hosts("mx-1"), hosts("fallback-1")
    since = now(fallback)
    assert send("relay-1", "mx-1", "one@bin.test") == "accepted"
    wait_for(lambda: lines(fallback, since, "to=<one@bin.test>", "relay=none", "status=sent"))
    assert lines(primary, since, "postfix/smtp[", "to=<one@bin.test>", "relay=fallback-1", "status=sent")
    assert queued(primary) == 0


def test_a_slow_domain_goes_straight_to_the_fallback_which_has_a_transport_for_it(hosts, send):
    primary, fallback = hosts("mx-1"), hosts("fallback-1")
    since = now(fallback)
    assert send("relay-1", "mx-1", "one@slow.test") == "accepted"
    wait_for(lambda: lines(fallback, since, "postfix/slow/smtp[", "to=<one@slow.test>"))
    assert lines(primary, since, "postfix/fallback/smtp[", "to=<one@slow.test>", "relay=fallback-1")
    assert not lines(primary, since, "postfix/smtp[", "slow.test")
    fallback.check_output("postsuper -d ALL")


def test_a_plain_relay_takes_only_its_domains_from_strangers(hosts, send):
    assert send("mx-1", "relay-1", "one@sink.test") == "accepted"
    assert "Relay access denied" in send("mx-1", "relay-1", "one@example.net")


def test_headers_are_checked(send):
    assert "not here" in send("relay-1", "mx-1", "one@bin.test", subject="something forbidden")


def test_queue_ids_are_never_used_twice(hosts, send):
    since = now(hosts("mx-1"))
    send("relay-1", "mx-1", "id@bin.test")
    wait_for(lambda: lines(hosts("mx-1"), since, "to=<id@bin.test>"))
    queue_id = lines(hosts("mx-1"), since, "to=<id@bin.test>")[0].split(": ")[1]
    assert len(queue_id) > 12


# The PROXY port


def test_the_balancer_tells_the_address_of_the_client(hosts, send):
    since = now(hosts("mx-1"))
    assert "Relay access denied" in send("relay-1", "mx-1", "one@example.net", port=10025, proxy="203.0.113.9")
    assert lines(hosts("mx-1"), since, "postfix/lb/smtpd[", "203.0.113.9")
    subnet = hosts("relay-1").check_output("hostname -I").split()[0]
    assert send("relay-1", "mx-1", "one@bin.test", port=10025, proxy=subnet) == "accepted"


@pytest.mark.parametrize("sender", ["fallback-1", "mx-1"])
def test_nobody_else_reaches_the_proxy_port(send, sender):
    assert "ConnectionRefusedError" in send(sender, "mx-1", "one@bin.test", port=10025, proxy="127.0.0.1")


def test_the_guard_survives_what_flushes_all_tables(hosts, send):
    mx = hosts("mx-1")
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
    mx = hosts("mx-1")
    mx.check_output(
        "systemctl stop postfix; mv /etc/nftables/postfix_proxy_guard.nft /root; systemctl stop postfix-proxy-guard"
    )
    try:
        assert mx.run("systemctl start postfix").rc != 0
        assert not mx.socket("tcp://0.0.0.0:10025").is_listening
    finally:
        mx.check_output("mv /root/postfix_proxy_guard.nft /etc/nftables; systemctl start postfix-proxy-guard postfix")
    assert mx.service("postfix").is_running


# What is refused. All that the preflight refuses is in the unit tests of its filter.


def state(host) -> dict[str, str]:
    """Give all that a refused change must leave as it is."""
    return {
        "process": host.check_output("systemctl show -P MainPID -P ActiveEnterTimestamp postfix postfix@-"),
        "files": host.check_output("find /etc/postfix /etc/nftables /var/lib/tenfold -type f | sort | xargs sha256sum"),
        "times": host.check_output("stat -c %y /etc/postfix/*.lmdb"),
        "litter": host.check_output("ls -A /root/.ansible/tmp"),
    }


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a parameter that there is not": (
        {"postfix_main": {"smtp_conect_timeout": "3s"}},
        ["change postfix_main", "unused parameter: smtp_conect_timeout"],
    ),
    "a time that is none": (
        {"postfix_main": {"smtp_connect_timeout": "soon"}},
        ["smtp_connect_timeout can't be 'soon'", "Change postfix_main"],
    ),
    "a pattern that is none": (
        {"postfix_header_checks": [{"pattern": "/(/", "action": "REJECT"}]},
        ["change postfix_header_checks", "Unmatched ("],
    ),
    "an action that is none": (
        {"postfix_header_checks": [{"pattern": "/x", "action": "REJECT"}]},
        ["change postfix_header_checks", "no closing regexp delimiter"],
    ),
    "a table that postmap only warns of": (
        {"postfix_aliases": {"postmaster": "root", '"a': "root"}},
        ["change postfix_aliases"],
    ),
    "a route that is none": (
        {"postfix_transport": {"a.test": "nowhere"}},
        ["postfix_transport", "transport:nexthop"],
    ),
    "an open relay by network": ({"postfix_networks": ["0.0.0.0/0"]}, ["open relay", "postfix_networks"]),
    "an open relay by parameter": (
        {"postfix_main": {"smtpd_relay_restrictions": "permit"}},
        ["open relay", "postfix_main"],
    ),
    "a PROXY port for all": ({"postfix_proxy_clients": []}, ["postfix_proxy_clients"]),
    "a certificate that there is not": (
        {"postfix_tls_certificate": "/etc/none.crt", "postfix_tls_key": "/etc/none.key"},
        ["/etc/none.crt is not on the host", "postfix_tls_certificate"],
    ),
    "a primary without a fallback": ({"postfix_fallback_relay": []}, ["postfix_fallback_relay"]),
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_refused_change_harms_nothing(hosts, send, change):
    mx = hosts("mx-1")
    variables, sentences = REFUSED[change]
    before = state(mx)
    done = play("mx-1", **variables)
    said = told(done)
    for sentence in sentences:
        assert sentence in said
    assert state(mx) == before
    assert send("relay-1", "mx-1", "still@bin.test") == "accepted"


def test_a_fallback_has_no_fallback(hosts):
    before = state(hosts("fallback-1"))
    assert "mail would loop" in told(play("fallback-1", postfix_fallback_relay=["[fallback.vip.lab.test]"]))
    assert state(hosts("fallback-1")) == before


def test_after_the_refusals_there_is_nothing_to_mend():
    assert changes(play("mx-1")) == 0


# Changes


def test_a_table_is_only_made_anew_when_it_changed_and_postfix_is_not_restarted(hosts, send):
    relay = hosts("relay-1")
    before = state(relay)
    table = relay.check_output("stat -c %y /etc/postfix/relay_domains.lmdb")
    changed: dict[str, Any] = {"postfix_transport": {"sink.test": "discard:", "other.test": "discard:"}}
    assert changes(play("relay-1", **changed)) > 0
    assert relay.check_output("stat -c %y /etc/postfix/relay_domains.lmdb") == table
    assert relay.check_output("postmap -q other.test lmdb:/etc/postfix/transport") == "discard:"
    assert state(relay)["process"] == before["process"]
    assert changes(play("relay-1", **changed)) == 0
    assert changes(play("relay-1")) > 0
    assert send("mx-1", "relay-1", "one@sink.test") == "accepted"


def test_other_addresses_restart_it(hosts):
    relay = hosts("relay-1")
    before = state(relay)["process"]
    assert changes(play("relay-1", postfix_listen=["localhost"])) > 0
    assert state(relay)["process"] != before
    assert relay.socket("tcp://127.0.0.1:25").is_listening
    assert not relay.socket("tcp://0.0.0.0:25").is_listening
    assert changes(play("relay-1")) > 0
    assert relay.socket("tcp://0.0.0.0:25").is_listening


def test_what_an_interrupted_run_did_not_tell_postfix_is_told_by_the_next(hosts):
    relay = hosts("relay-1")
    since = now(relay)
    relay.check_output("echo interrupted > /var/lib/tenfold/postfix.told")
    assert changes(play("relay-1")) > 0
    wait_for(lambda: lines(relay, since, "daemon started"))
    assert changes(play("relay-1")) == 0


def test_a_proxy_port_that_is_gone_takes_its_guard_with_it(hosts):
    mx = hosts("mx-1")
    assert changes(play("mx-1", postfix_proxy_port=0)) > 0
    assert mx.run("nft list table inet postfix_proxy_guard").rc != 0
    assert not mx.socket("tcp://0.0.0.0:10025").is_listening
    assert mx.run("systemctl restart postfix").rc == 0
    assert changes(play("mx-1")) > 0
    assert mx.socket("tcp://0.0.0.0:10025").is_listening


# Further instances


@pytest.mark.parametrize("name", ["relay-1", "mx-1"])
def test_further_instances_come_and_go(hosts, send, name):
    host = hosts(name)
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
    assert changes(play(name, **bulk)) > 0
    assert changes(play(name, **bulk)) == 0
    assert send("fallback-1", name, "one@bulk.test", port=2525) == "accepted"
    assert "denied" in send("fallback-1", name, "one@example.net", port=2525)
    wait_for(lambda: queued(host, "/var/spool/postfix-bulk") == 0)
    host.check_output(
        "postmulti -i postfix-bulk -x postconf -e defer_transports=smtp && postmulti -i postfix-bulk -p reload"
    )
    assert send(name, "127.0.0.1", "stays@example.net", port=2525) == "accepted"
    wait_for(lambda: queued(host, "/var/spool/postfix-bulk") == 1)
    assert "1 mails are in its queue" in told(play(name))
    host.check_output("postsuper -c /etc/postfix-bulk -d ALL")
    assert changes(play(name)) > 0
    assert not host.socket("tcp://0.0.0.0:2525").is_listening
    assert host.socket("tcp://0.0.0.0:25").is_listening
    assert changes(play(name)) == 0


# Logins


def test_users_with_a_password_may_send_over_tls(hosts, send):
    mx = hosts("mx-1")
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True
    ).stdout.strip()
    submission: dict[str, Any] = {
        "postfix_tls_certificate": "/etc/pki/tls/lab.crt",
        "postfix_tls_key": "/etc/pki/tls/lab.key",
        "postfix_submission": True,
        "postfix_submission_users": [{"name": "web", "password": hashed}],
    }
    done = play("mx-1", **submission)
    assert changes(done) > 0
    assert hashed not in done.stdout
    assert changes(play("mx-1", **submission)) == 0
    good: dict[str, Any] = {"port": 587, "tls": True}
    assert send("relay-1", "mx-1", "one@bin.test", password=PASSWORD, **good).splitlines()[-1] == "accepted"
    assert "authentication failed" in send("relay-1", "mx-1", "one@bin.test", password="wrong", **good)
    assert "denied" in send("relay-1", "mx-1", "one@bin.test", **good)
    assert "STARTTLS" in send("relay-1", "mx-1", "one@bin.test", port=587)
    assert changes(play("mx-1")) > 0
    assert not mx.socket("tcp://0.0.0.0:587").is_listening


# The queue


MAILS = 30


def test_the_queue_moves_to_a_volume_and_no_mail_is_lost(hosts, send):
    fallback = hosts("fallback-1")
    fallback.check_output("mkdir -p /srv/queue; touch /etc/fstab")
    hold: dict[str, Any] = {"postfix_main": {"defer_transports": "discard"}}
    assert changes(play("fallback-1", **hold)) > 0
    assert send("mx-1", "fallback-1", "one@bin.test", count=MAILS).count("accepted") == MAILS
    wait_for(lambda: int(fallback.check_output("find /var/spool/postfix/deferred -type f | wc -l")) == MAILS)
    ids = fallback.check_output("find /var/spool/postfix/deferred -type f -printf '%f\\n' | sort")

    # A run that was interrupted in the middle of the move.
    fallback.check_output(
        "systemctl stop postfix; mkdir -p /run/tenfold/postfix-queue;"
        "mount --bind /srv/queue /run/tenfold/postfix-queue; cd /var/spool/postfix;"
        "for f in $(find deferred defer -type f | head -9); do mkdir -p /srv/queue/${f%/*}; mv $f /srv/queue/$f; done"
    )
    volume: dict[str, Any] = {"postfix_queue_volume": {"src": "/srv/queue"}, **hold}
    assert changes(play("fallback-1", **volume)) > 0
    assert fallback.check_output("find /var/spool/postfix/deferred -type f -printf '%f\\n' | sort") == ids
    assert fallback.check_output("find /srv/queue/deferred -type f -printf '%f\\n' | sort") == ids
    assert fallback.run("mountpoint /run/tenfold/postfix-queue").rc != 0
    assert "/srv/queue /var/spool/postfix none bind" in fallback.file("/etc/fstab").content_string
    assert "/var/spool/postfix" in fallback.check_output("systemctl show -P RequiresMountsFor postfix")
    assert fallback.check_output("stat -c '%U:%G %a' /var/spool/postfix/maildrop") == "postfix:postdrop 730"
    assert "not owned" not in fallback.check_output("postfix check 2>&1")
    assert changes(play("fallback-1", **volume)) == 0
    assert fallback.check_output("postqueue -p | grep -c @bin.test") == str(MAILS)

    since = now(fallback)
    assert changes(play("fallback-1", postfix_queue_volume=volume["postfix_queue_volume"])) > 0
    fallback.check_output("postqueue -f")
    wait_for(lambda: queued(fallback) == 0)
    assert len(lines(fallback, since, "to=<one@bin.test>", "status=sent")) == MAILS

    assert "would be left behind" in told(play("fallback-1", postfix_queue_volume={"src": "/srv/other"}))


def test_a_host_is_drained_then_stopped_and_comes_back(hosts, send):
    primary, fallback = hosts("mx-1"), hosts("fallback-1")
    fallback.check_output("systemctl stop postfix")
    assert send("relay-1", "mx-1", "drained@bin.test", count=MAILS).count("accepted") == MAILS
    wait_for(lambda: int(primary.check_output("find /var/spool/postfix/deferred -type f | wc -l")) == MAILS)
    assert f"{MAILS} mails are in the queues of mx-1" in told(play("mx-1", postfix_state="absent"))
    assert f"{MAILS} in /var/spool/postfix/" in told(play("mx-1", "drain.yml", postfix_drain_timeout=4))
    assert not primary.socket("tcp://0.0.0.0:25").is_listening

    fallback.check_output("systemctl start postfix")
    since = now(fallback)
    assert changes(play("mx-1", "drain.yml", postfix_drain_timeout=60)) > 0
    assert queued(primary) == 0
    wait_for(lambda: len(lines(fallback, since, "to=<drained@bin.test>", "status=sent")) == MAILS)

    assert changes(play("mx-1", postfix_state="absent")) > 0
    assert (primary.service("postfix").is_running, primary.service("postfix").is_enabled) == (False, False)
    assert changes(play("mx-1", postfix_state="absent")) == 0
    assert changes(play("mx-1")) > 0
    assert primary.service("postfix").is_enabled
    assert send("relay-1", "mx-1", "back@bin.test") == "accepted"
    assert changes(play("mx-1")) == 0

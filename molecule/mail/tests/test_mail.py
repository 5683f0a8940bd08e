"""Mail passes two tiers behind two names, while hosts leave, return and are killed, and every mail is accounted for.

The tests follow each other: each finds the tiers as the one before left them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import testinfra

INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"].rsplit("/", 1)[0]
PRIMARIES, FALLBACKS = ["mx-01", "mx-02"], ["fallback-01", "fallback-02"]
MIX = "good=0.8,defer=0.08,drop=0.04,slow=0.03,flaky=0.03,refuse=0.02"
POSTFIX = "master|smtpd|cleanup|qmgr|smtp|bounce"  # its processes
RATE = 60  # mails a second; what the tests look at needs no more
ACCOUNT = "python3 /srv/mail/account.py --acknowledged {log} --sink /srv/mail/sink.log --queued {queued} --sets {sets}"


def host(name: str) -> Any:
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=INVENTORY)


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Wait until something is so; give how long that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not so after {seconds} s"
        time.sleep(0.5)
    return time.monotonic() - start


def playbook(name: str, **variables: Any) -> str:
    """Run a playbook of the collection that is to succeed, and tell how long it took."""
    start = time.monotonic()
    extra = [f"--extra-vars={json.dumps(variables)}"] if variables else []
    done = subprocess.run(
        ["ansible-playbook", f"--inventory={INVENTORY}", f"tenfold.stack.{name}", *extra],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"{name} {variables}: {time.monotonic() - start:.1f} s")
    return done.stdout


def changed(output: str) -> int:
    return sum(int(count) for count in re.findall(r"changed=(\d+)", output.rsplit("PLAY RECAP", 1)[1]))


class Load:
    """Submitters on the sink's host, which also are the senders that bounces go to."""

    def __init__(self, label: str, options: str) -> None:
        self.label = label
        self.sink = host("sink-01")
        self.sink.check_output(f"rm -f /srv/mail/{label}.end")  # of an earlier run
        files = f"--log /srv/mail/{label}.log --report /srv/mail/{label}.json --until-file /srv/mail/{label}.end"
        self.sink.check_output(
            f"systemd-run --unit={label} python3 /srv/mail/submit.py mx.vip.site.test {options} {files}"
        )

    def report(self) -> dict[str, Any]:
        return json.loads(self.sink.check_output(f"cat /srv/mail/{self.label}.json"))

    def wait(self) -> dict[str, Any]:
        wait_for(lambda: self.sink.run(f"systemctl is-active {self.label}").rc != 0, 150)
        report = self.report()
        assert report["done"]
        print(f"{self.label}: {report}")
        return report

    def end(self) -> dict[str, Any]:
        self.sink.check_output(f"touch /srv/mail/{self.label}.end")
        return self.wait()

    def account(self, directory: Path) -> dict[str, Any]:
        """Say where each acknowledged mail is."""
        ids = "".join(f"{one}\n" for name in PRIMARIES + FALLBACKS for one in queue(name))
        (directory / "queued").write_text(ids)
        container = "tenfold-mail-sink-01"
        queued, sets = f"/srv/mail/{self.label}.queued", f"/srv/mail/{self.label}.sets"
        subprocess.run(["docker", "cp", str(directory / "queued"), f"{container}:{queued}"], check=True)
        told = self.sink.run(ACCOUNT.format(log=f"/srv/mail/{self.label}.log", queued=queued, sets=sets)).stdout
        print(f"{self.label}: {told}")
        return json.loads(told)


@contextmanager
def load(label: str, directory: Path, options: str = f"--rate {RATE} --mix {MIX}") -> Iterator[dict[str, Any]]:
    """Let mail come in meanwhile; then all that was acknowledged is somewhere. Gives the counts, at the end."""
    running = Load(label, options)
    time.sleep(3)
    counts: dict[str, Any] = {}
    yield counts
    time.sleep(2)
    counts["submitted"] = running.end()
    time.sleep(5)  # what is on its way arrives, or is in a queue
    counts |= running.account(directory)
    assert counts["submitted"]["given_up"] == 0, counts["submitted"]
    assert counts["lost"] == 0, counts


def queue(name: str) -> list[str]:
    """Give the ids of the mails that a host has."""
    return host(name).check_output("python3 /srv/mail/queues.py ids").split()


def in_primaries() -> int:
    return sum(len(queue(name)) for name in PRIMARIES)


def balancer_warnings() -> str:
    """Give what HAProxy said of its servers."""
    return host("vip-01").check_output("journalctl -u haproxy -o short-iso-precise -g '^(Server|backend) ' || true")


def kill(name: str, processes: str, signal: str = "KILL") -> None:
    host(name).check_output(f"pkill -{signal} -x '{processes}'")


def test_good_mail_passes_the_primaries_only(tmp_path):
    start = time.time()
    running = Load("good", "--rate 50 --count 200 --mix good=1")
    running.wait()
    wait_for(lambda: running.account(tmp_path)["delivered"] == 200, 20)
    told = f"journalctl --since=@{start:.0f} -t postfix/smtpd -t postfix/lb/smtpd"
    assert "client=" not in " ".join(host(name).check_output(told) for name in FALLBACKS)


def test_primaries_see_the_client_and_not_the_balancer():
    sink = host("sink-01").check_output("hostname -I").split()
    for name in PRIMARIES:
        told = host(name).check_output("journalctl -o cat -t postfix/lb/smtpd")
        clients = set(re.findall(r"client=\S+\[([^]]+)\]", told))
        assert clients, name
        assert clients <= set(sink)


def test_bad_mail_leaves_the_primaries_and_good_mail_is_not_late(tmp_path):
    with load("mixed", tmp_path, f"--rate {RATE} --count 1800 --mix {MIX}") as counts:
        time.sleep(30)
        # Only mail that is being tried right now.
        assert in_primaries() < RATE
    domains = counts["domains"]
    assert domains["good"]["delivered"] == domains["good"]["acknowledged"] > 1000
    assert counts["good_delay"]["p99"] < 2
    for domain in ("defer", "drop"):
        assert domains[domain]["queued"] == domains[domain]["acknowledged"] > 0
    wait_for(lambda: in_primaries() == 0, 30)


def test_refused_mail_is_bounced_to_its_sender_and_a_second_try_is_made_by_the_fallback_tier(tmp_path):
    running = Load("fates", "--rate 20 --count 40 --mix refuse=0.5,flaky=0.5")
    running.wait()
    for name in FALLBACKS:
        wait_for(lambda: in_primaries() == 0, 30)
        host(name).check_output("postqueue -f")
    wait_for(lambda: running.account(tmp_path)["queued"] == 0, 30)
    counts = running.account(tmp_path)
    assert counts["domains"]["refuse"]["bounced"] == counts["domains"]["refuse"]["acknowledged"] > 0
    assert counts["domains"]["flaky"]["delivered"] == counts["domains"]["flaky"]["acknowledged"] > 0
    assert counts["delivered_and_bounced"] == 0


def test_hosts_leave_and_return_without_a_failed_submission(tmp_path):
    leaving = [PRIMARIES[1], FALLBACKS[1]]
    with load("leaving", tmp_path, f"--rate 20 --mix {MIX} --timeout 30") as counts:  # more would slow the plays down
        playbook("scale_in", pool_leaving=",".join(leaving))
        for name in leaving:
            assert queue(name) == []
            assert host(name).run("postfix status").rc != 0
        playbook("scale_out", pool_joining=",".join(leaving))
        # A tier that hangs for a while is slow, and not away.
        for signal in ("STOP", "CONT"):
            for name in PRIMARIES:
                kill(name, POSTFIX, signal)
            time.sleep(9)
    assert counts["submitted"]["failed_sessions"] == 0, f"{counts['submitted']}\n{balancer_warnings()}"
    assert counts["domains"]["good"]["delivered"] == counts["domains"]["good"]["acknowledged"]
    for name in leaving:
        host(name).check_output("postfix status")
    assert changed(playbook("scale_out")) == 0


def test_killed_daemons_lose_nothing(tmp_path):
    with load("killed", tmp_path) as counts:
        for name in ("mx-01", "fallback-01"):
            kill(name, POSTFIX)
            time.sleep(4)
            host(name).check_output("systemctl restart postfix")
            time.sleep(4)
        kill("vip-01", "haproxy")
        time.sleep(8)
    print({name: counts[name] for name in ("acknowledged", "delivered", "bounced", "queued", "lost", "duplicated")})
    assert counts["domains"]["good"]["delivered"] == counts["domains"]["good"]["acknowledged"]

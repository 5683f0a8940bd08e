# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What mail hosts log is on the log host, whatever fails meanwhile, and only they can write there."""

from __future__ import annotations

import json
import re
import shlex
import time
import uuid

import pytest

SENDERS = ["mx-1", "mx-2"]
FOLDER = "/var/log/mail-logs"
TLS = "/etc/mail-logs/tls"
CERTIFICATE = (f"{TLS}/host.crt", f"{TLS}/host.key")
SCORE = 1.5  # the exposure that `systemd-analyze security` may find at most
LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d):\d\d:\d\d\.\d{6}\+00:00 (\S+) (\S+\[\d+\]): (.*)")


class Logs:
    """What is on the log host."""

    def __init__(self, host, until):
        self.host = host
        self.until = until
        self.address = host.check_output("hostname -I").split()[0]

    def found(self, pattern: str, seconds: float = 10) -> list[tuple[str, str]]:
        """Wait for lines with a pattern; give the file and the text of each."""
        self.until(lambda: self.has(pattern), seconds)
        told = self.host.check_output("cd %s && grep -r -- %s *", FOLDER, pattern)
        return [(file, text) for file, _colon, text in (line.partition(":") for line in told.splitlines())]

    def has(self, pattern: str) -> bool:
        return self.host.run("grep -rq -- %s %s", pattern, FOLDER).rc == 0

    def arrived(self, name: str, mark: str) -> tuple[int, int]:
        """Give how many different numbered lines of a host are there, and how many more than once."""
        told = self.host.check_output(
            f"cat {FOLDER}/{name}/*.log | grep -o '{mark} [0-9]*' | sort | uniq -c"
            " | awk '{n++; d += $1 - 1} END {print n + 0, d + 0}'"
        )
        lines, repeated = map(int, told.split())
        return lines, repeated

    def complete(self, mark: str, count: int, names: list[str], seconds: float = 60) -> None:
        """Wait until all numbered lines of hosts are there, and print how many of them more than once."""
        for name in names:
            try:
                self.until(lambda name=name: self.arrived(name, mark)[0] >= count, seconds)
            finally:
                lines, repeated = self.arrived(name, mark)
                print(f"{name}: {lines} of {count} lines, {repeated} more than once")
            assert lines == count

    def relp(self, sender, message: str, *certificate: str) -> bool:
        """Send a message as it is from a host, and tell whether it was taken."""
        client = f"python3 /srv/relp.py {self.address} 20514 {TLS}/ca.crt {' '.join(certificate)}"
        done = sender.run(f"printf '%s\\n' {shlex.quote(message)} | {client}")
        print(done.stdout, done.stderr)
        return done.rc == 0 and done.stdout.splitlines()[1:] == ["200 OK"]


@pytest.fixture(scope="module")
def logs(hosts, until):
    return Logs(hosts["log-1"], until)


@pytest.fixture
def mark():
    """A word that stands in the lines of this test only."""
    return f"mark{uuid.uuid4().hex[:12]}"


def log(host, mark: str, count: int, pause: float | None = None) -> None:
    """Log numbered lines: as fast as it goes, or in the background with a pause after each hundred of them."""
    command = f"python3 /srv/load.py {mark} {count} {pause or 0}"
    host.check_output(command if pause is None else f"{command} >/dev/null 2>&1 &")


def main_process(host, unit: str) -> str:
    return host.check_output("systemctl show --property=MainPID --value %s", unit)


def tell(host, sender: str) -> None:
    """Send a mail."""
    host.check_output("printf 'Subject: hello\\n\\nhello\\n' | sendmail -f %s@lab.test root", sender)


# What arrives


def test_a_mail_is_in_the_file_of_its_host_and_hour(hosts, logs, mark):
    tell(hosts["mx-1"], mark)
    ((_file, line),) = logs.found(f"postfix/qmgr.* from=<{mark}@")
    queue_id = re.findall(r"]: (\w+): from=", line)[0]
    logs.found(f"{queue_id}: removed")
    lines = logs.found(queue_id)
    for program in ("pickup", "cleanup", "qmgr", "local"):
        assert any(f" postfix/{program}[" in text for _file, text in lines), lines
    for file, text in lines:
        parts = LINE.fullmatch(text)
        assert parts is not None, text
        assert file == f"mx-1/{parts[1]}.log"
        assert parts[2] == "mx-1"
    # When the journal took it, by the microsecond.
    entry = json.loads(
        hosts["mx-1"].check_output("journalctl -t postfix/qmgr -g %s -n 1 -o json", f"{queue_id}: removed")
    )
    microseconds = int(entry["__REALTIME_TIMESTAMP"]) % 1_000_000
    assert any(f".{microseconds:06d}+00:00 mx-1 " in text for _file, text in lines if text.endswith("removed"))


def test_postfix_in_a_chroot_is_heard_after_the_journal_was_restarted(hosts, logs, mark):
    mx = hosts["mx-2"]
    assert "cleanup/unix/chroot = y" in mx.check_output("postconf -F")
    tell(mx, mark)
    logs.found(f"postfix/qmgr.* from=<{mark}@")
    mx.check_output("systemctl restart systemd-journald")
    tell(mx, f"again-{mark}")
    ((_file, line),) = logs.found(f"postfix/qmgr.* from=<again-{mark}@")
    queue_id = re.findall(r"]: (\w+): from=", line)[0]
    assert any(" postfix/cleanup[" in text for _file, text in logs.found(queue_id))


def test_nothing_is_dropped_when_much_is_logged(hosts, logs, mark):
    count = 25_000
    for name in SENDERS:
        start = time.monotonic()
        log(hosts[name], mark, count)
        logged = time.monotonic() - start
        logs.complete(mark, count, [name])
        print(f"{name}: {count} lines, logged in {logged:.1f} s, were there after {time.monotonic() - start:.1f} s")


def test_a_line_is_kept_as_it_was(hosts, logs, mark):
    text = f"{mark} 'quoted\" \\ %n$ ö € {'x' * 1500} end"
    tag = "postfix-very-long-name-of-an-instance/submission/smtpd"
    program = "import sys, syslog; syslog.openlog(sys.argv[1], 0, syslog.LOG_MAIL); syslog.syslog(sys.argv[2])"
    hosts["mx-1"].check_output("python3 -c %s %s %s", program, tag, text)
    ((_file, line),) = logs.found(f"{mark}.* end")
    assert re.sub(r"\[\d+\]:", ":", line, count=1).endswith(f" mx-1 {tag}: {text}")


def test_only_mail_is_sent(hosts, logs, mark):
    program = (
        "import sys, syslog; syslog.syslog(syslog.LOG_AUTH, sys.argv[1]); syslog.syslog(syslog.LOG_MAIL, sys.argv[2])"
    )
    hosts["mx-1"].check_output("python3 -c %s %s %s", program, f"{mark}-auth", f"{mark}-mail")
    logs.found(f"{mark}-mail")
    assert not logs.has(f"{mark}-auth")


# What fails


def test_the_log_host_is_killed_under_load(hosts, logs, mark):
    count = 20_000
    for name in SENDERS:
        log(hosts[name], mark, count, pause=0.03)
    for _kill in range(3):
        time.sleep(1)
        assert logs.arrived("mx-1", mark)[0] < count, "the load is over"
        logs.host.check_output("kill -9 %s", main_process(logs.host, "mail-logs-receiver"))
        logs.host.check_output("systemctl start mail-logs-receiver")
    logs.complete(mark, count, SENDERS)


def test_an_outage_of_the_log_host_and_restarts_of_the_senders(hosts, logs, mark, until):
    count = 9_000
    for name in SENDERS:
        log(hosts[name], mark, count, pause=0.03)
    time.sleep(0.5)
    logs.host.check_output(
        "kill -9 %s; systemctl stop mail-logs-receiver", main_process(logs.host, "mail-logs-receiver")
    )
    queue = "cat /var/lib/mail-logs/log-1.0* | wc -c"
    for name in SENDERS:
        before = int(hosts[name].check_output(queue))
        hosts[name].check_output("systemctl restart mail-logs-sender")
        until(lambda name=name, before=before: int(hosts[name].check_output(queue)) > before, 10)
    hosts["mx-1"].check_output("kill -9 %s", main_process(hosts["mx-1"], "mail-logs-sender"))
    until(lambda: all(hosts[name].run("pgrep -f [l]oad.py").rc for name in SENDERS), 30)
    logs.host.check_output("systemctl start mail-logs-receiver")
    logs.complete(mark, count, SENDERS)


# Who may write


def test_a_client_needs_a_certificate_of_a_sender(hosts, logs, mark):
    mx = hosts["mx-2"]
    mx.check_output(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=mx-2 -addext subjectAltName=DNS:mx-2"
        " -keyout /srv/foreign.key -out /srv/foreign.crt"
    )
    message = f"<22>2026-11-18T01:02:03.000004+00:00 mx-2 x[1]: {mark}"
    assert not logs.relp(mx, message)
    assert not logs.relp(mx, message, "/srv/foreign.crt", "/srv/foreign.key")
    assert not logs.relp(logs.host, message, *CERTIFICATE), "it is of the right authority, but that of no sender"
    assert not logs.has(mark)
    assert logs.relp(mx, message, *CERTIFICATE)
    assert len(logs.found(mark)) == 1


def test_a_late_line_is_in_the_file_of_its_own_hour(hosts, logs, mark):
    assert logs.relp(hosts["mx-2"], f"<22>2026-11-18T23:30:00.500000+02:00 mx-2 late[1]: {mark}", *CERTIFICATE)
    expected = f"2026-11-18T21:30:00.500000+00:00 mx-2 late[1]: {mark}"
    assert logs.found(mark) == [("mx-2/2026-11-18T21.log", expected)]


@pytest.mark.parametrize("name", ["mx-1", "../mx-1", "../../../etc", "mx-1/../mx-1"])
def test_a_host_can_not_write_as_another(hosts, logs, mark, name):
    message = f"<22>2026-11-18T01:02:03.000004+00:00 {name} ../../mx-1/x[1]: {mark}"
    assert logs.relp(hosts["mx-2"], message, *CERTIFICATE)
    ((file, text),) = logs.found(mark)
    assert file == "mx-2/2026-11-18T01.log"
    assert text.startswith("2026-11-18T01:02:03.000004+00:00 mx-2 ")


def test_a_certificate_is_of_no_use_elsewhere(hosts, logs, mark):
    stolen = [path.replace(TLS, "/srv") for path in CERTIFICATE]
    for path, copy in zip(CERTIFICATE, stolen, strict=True):
        logs.host.check_output("echo %s > %s", hosts["mx-2"].check_output("cat %s", path), copy)
    assert logs.relp(logs.host, f"<22>2026-11-18T01:02:03.000004+00:00 mx-2 x[1]: {mark}", *stolen)
    assert [file for file, _text in logs.found(mark)] == [f"unknown-{logs.address}/2026-11-18T01.log"]


def test_only_the_group_can_read_the_logs(logs):
    logs.host.check_output("useradd reader && useradd --groups mail-logs colleague")
    file = logs.host.check_output(f"ls {FOLDER}/mx-1/*.log | head -1")
    assert logs.host.run("runuser -u colleague -- cat %s", file).rc == 0
    assert logs.host.run("runuser -u colleague -- rm -f %s", file).rc != 0
    assert logs.host.run("runuser -u colleague -- cat %s", f"{TLS}/host.key").rc != 0
    for path in (file, f"{TLS}/host.key"):
        assert logs.host.run("runuser -u reader -- cat %s", path).rc != 0


def test_keys_stay_where_they_belong(hosts):
    for name, host in hosts.items():
        assert host.file("/etc/mail-logs/ca/ca.key").exists is (name == "log-1")
        assert host.run("runuser -u mail-logs -- cat /etc/mail-logs/ca/ca.key").rc != 0
    assert len({host.check_output("sha256sum < %s", f"{TLS}/host.key") for host in hosts.values()}) == len(hosts)


@pytest.mark.parametrize(("name", "part"), [("log-1", "receiver"), ("mx-1", "sender"), ("mx-2", "sender")])
def test_sandbox(hosts, name, part):
    host, unit = hosts[name], f"mail-logs-{part}.service"
    status = host.check_output("cat /proc/%s/status", main_process(host, unit))
    assert re.findall(r"^Cap(?:Prm|Eff|Bnd):\s+(\w+)", status, re.M) == ["0" * 16] * 3
    assert re.findall(r"^Uid:\s+(\d+)", status, re.M) == [host.check_output("id -u mail-logs")]
    told = host.run("systemd-analyze security --no-pager %s", unit).stdout
    assert float(re.findall(r"exposure level for \S+: ([\d.]+)", told)[0]) <= SCORE


def test_the_firewall_lets_the_senders_in(hosts, logs):
    rules = logs.host.check_output("firewall-cmd --list-rich-rules")
    allowed = set(re.findall(r'source address="([^"]+)" port port="20514" protocol="tcp" accept', rules))
    assert allowed == {hosts[name].check_output("hostname -I").split()[0] for name in SENDERS}


# What is kept


def test_old_hours_are_compressed_and_removed(hosts, logs, mark):
    folder = f"{FOLDER}/mx-2"
    for number in (1, 2):  # the second comes when the first is compressed
        assert logs.relp(hosts["mx-2"], f"<22>2025-11-17T05:30:00+00:00 mx-2 late[1]: {mark} {number}", *CERTIFICATE)
        logs.host.check_output(
            f"cd {folder} && touch -d '-25 hours' 2025-11-17T05.log && touch -d '-31 days' 2025-10-17T05.log.gz"
        )
        logs.host.check_output("systemctl start mail-logs-keep")
    lines = logs.host.check_output("zcat %s/2025-11-17T05.log.gz", folder).splitlines()
    assert lines == [f"2025-11-17T05:30:00.000000+00:00 mx-2 late[1]: {mark} {number}" for number in (1, 2)]
    files = set(logs.host.check_output("ls -A %s", folder).split())
    # The files of the other tests are newer.
    assert {file for file in files if file.startswith("2025")} == {"2025-11-17T05.log.gz"}
    assert logs.host.check_output("systemctl is-active mail-logs-keep.timer") == "active"


# What changes


def test_a_configuration_that_rsyslog_refuses_is_not_used(hosts, logs, play, mark):
    files = "sha256sum /etc/mail-logs/*.conf"
    before = logs.host.check_output(files), main_process(logs.host, "mail-logs-receiver")
    run = play("converge", mail_logs_listen=['127.0.0.1" nonsense="1'])
    assert "rsyslog refuses the configuration of the receiver, the old one stays in use" in run.refusal
    assert (logs.host.check_output(files), main_process(logs.host, "mail-logs-receiver")) == before
    log(hosts["mx-1"], mark, 10)
    logs.complete(mark, 10, ["mx-1"])


def test_check_mode_tells_and_changes_nothing(hosts, play):
    look = "sha256sum /etc/mail-logs/*.conf /etc/mail-logs/tls/*; systemctl show --property=MainPID mail-logs-*.service"
    before = [host.check_output(look) for host in hosts.values()]
    run = play("converge", "--check", mail_logs_queue_size="5g")
    assert run.changes == 2  # both senders
    assert re.search(r'^\+.*maxDiskSpace="5g"', run.output, re.M)
    assert [host.check_output(look) for host in hosts.values()] == before


def test_certificates_are_renewed_before_they_end(hosts, logs, play, mark):
    look = "openssl x509 -noout -enddate -in %s"
    before = hosts["mx-1"].check_output(look, f"{TLS}/host.crt")
    other = main_process(hosts["mx-2"], "mail-logs-sender")
    # What is good for two years is by then in its last quarter.
    assert play("converge", "--limit=mx-1", mail_logs_certificate_days=4000).changes == 2  # with the restart
    assert hosts["mx-1"].check_output(look, f"{TLS}/host.crt") != before
    assert main_process(hosts["mx-2"], "mail-logs-sender") == other
    log(hosts["mx-1"], mark, 10)
    logs.complete(mark, 10, ["mx-1"])


def test_it_is_removed(hosts, play):
    mx = hosts["mx-2"]
    assert play("converge", "--limit=mx-2", mail_logs_state="absent").changes == 1
    assert mx.run("systemctl status mail-logs-sender").rc == 4, "systemd knows no such unit any more"
    assert not mx.file("/etc/systemd/journald.conf.d/mail-logs.conf").exists
    assert mx.file("/var/lib/mail-logs").exists
    assert play("converge", "--limit=mx-2", mail_logs_state="absent").changes == 0

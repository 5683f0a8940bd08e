# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the programs in tests/mail: sink and submitters against each other, and the accounting of what they saw."""

from __future__ import annotations

import contextlib
import json
import os
import smtplib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ROOT / "tests/mail"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{ROOT / 'plugins/module_utils'}"}
pytest.importorskip("aiosmtpd")


def program(name: str, *arguments: str | Path) -> list[str]:
    """The command of a program."""
    return [sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, arguments)]


def run(name: str, *arguments: str | Path, code: int = 0) -> str:
    """Run a program and give what it printed."""
    done = subprocess.run(program(name, *arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


class Lab:
    """A sink and the logs of all programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "sink.log"
        self.acknowledged = directory / "acknowledged.log"
        self.report = directory / "report.json"
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start the sink, each time at the same port."""
        words = program("sink", "--listen=127.0.0.1", f"--port={self.port}", "--slow=1", "--log", self.log)
        self.process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline().split()[1])

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def submit(self, *arguments: str) -> dict[str, Any]:
        """Submit mails and give the report."""
        logs = ("--log", self.acknowledged, "--report", self.report)
        printed = json.loads(run("submit", f"127.0.0.1:{self.port}", *logs, *arguments))
        assert printed == json.loads(self.report.read_text())
        assert printed["done"] is True
        return printed

    def account(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        """Account for what was submitted."""
        logs = ("--acknowledged", self.acknowledged, "--sink", self.log)
        return json.loads(run("account", *logs, *arguments, code=code))

    def lines(self) -> list[list[str]]:
        """What the sink accepted."""
        return [line.split() for line in self.log.read_text().splitlines()]


@pytest.fixture
def lab(tmp_path):
    """A sink that runs."""
    lab = Lab(tmp_path)
    yield lab
    lab.kill()


def test_each_domain(lab):
    mix = "good=0.6,slow=0.1,flaky=0.1,defer=0.1,refuse=0.1"
    report = lab.submit("--rate=400", "--count=400", f"--mix={mix}", "--give-up=1.5")
    result = lab.account()
    assert result["lost"] == result["duplicated"] == result["unacknowledged"] == 0
    assert result["delivered"] == result["acknowledged"] == report["acknowledged"]
    assert set(result["domains"]) == {"good", "slow", "flaky"}
    assert report["acknowledged"] + report["refused"] + report["given_up"] == 400
    assert report["refused"] == report["errors"]["550"] > 10
    assert report["errors"]["451"] == report["failed_sessions"] > report["given_up"] > 10
    # Flaky mails and nothing else were taken at the second try.
    tries = [line.split()[2:] for line in lab.acknowledged.read_text().splitlines()]
    assert set(map(tuple, tries)) == {("good", "1"), ("slow", "1"), ("flaky", "2")}
    delays = {name: float(delay) for _time, _kind, name, _host, delay in lab.lines()}
    slow = [line.split()[1] for line in lab.acknowledged.read_text().splitlines() if " slow " in line]
    assert min(delays[name] for name in slow) >= 1
    assert 0 < result["good_delay"]["p50"] <= result["good_delay"]["p99"] <= result["good_delay"]["max"] < 1


def test_the_rate_is_kept(lab):
    report = lab.submit("--rate=200", "--duration=2")
    assert 398 <= report["acknowledged"] <= 402
    assert 1.9 < report["seconds"] < 3


def test_delays_at_the_start_are_told_apart(lab):
    lab.submit("--rate=100", "--count=10")
    acknowledged = [line.split() for line in lab.acknowledged.read_text().splitlines()]
    delays = {name: float(delay) for _time, _kind, name, _host, delay in lab.lines()}
    warm = sorted(float(moment) for moment, *_rest in acknowledged)[4]
    early = [delays[name] for moment, name, *_rest in acknowledged if float(moment) < warm]
    result = lab.account(f"--warm={warm:.6f}")
    assert result["good_delay_at_start"]["max"] == max(early)
    assert result["good_delay"]["max"] == max(delay for delay in delays.values() if delay not in early)


def test_a_name_may_stand_for_many_domains(lab):
    report = lab.submit("--rate=400", "--count=20", "--many=good=3")
    assert report["refused"] == 20  # the sink knows good.sink.test, and not good1 to good3


def test_a_killed_sink_loses_nothing(lab):
    def crash() -> None:
        time.sleep(1)
        lab.kill()
        time.sleep(0.5)
        lab.start()

    crashing = threading.Thread(target=crash)
    crashing.start()
    report = lab.submit("--rate=300", "--count=900")
    crashing.join()
    assert report["acknowledged"] == 900
    assert report["failed_sessions"] >= report["retries"] > 0
    result = lab.account()
    assert (result["delivered"], result["lost"], result["duplicated_first_try"]) == (900, 0, 0)


def test_what_is_missing_twice_or_queued(lab, tmp_path):
    lab.submit("--rate=500", "--count=20")
    names = [line[2] for line in lab.lines()]
    kept = lab.log.read_text().splitlines(keepends=True)
    lab.log.write_text("".join(kept[3:] + kept[5:7]))
    queued = tmp_path / "queued"
    queued.write_text(f"{names[0]}\n{names[9]}\nm000000{0:08}\n")
    address = f"b-{names[1]}@bounces.sink.test"
    with smtplib.SMTP("127.0.0.1", lab.port) as bounce:
        bounce.sendmail("", [address], f"Subject: failed\r\n\r\nX-Load: {names[1]} 5\r\n")
    with lab.log.open("a") as log:
        log.write(kept[2][:-1])  # a line that isn't whole
    result = lab.account("--queued", queued, "--sets", tmp_path / "sets", code=1)
    sets = json.loads((tmp_path / "sets").read_text())
    assert sets["queued"] == [names[0]]
    assert sets["bounced"] == [names[1]]
    assert sets["lost"] == [names[2]]
    assert sets["duplicated"] == sorted(names[5:7])
    assert (result["delivered"], result["extra_copies"], result["acknowledged"]) == (17, 2, 20)
    assert result["domains"]["good"]["lost"] == 1


def test_a_mail_that_was_taken_but_not_acknowledged_is_no_loss(lab):
    """The server breaks off after the end of data, once."""
    lab.submit("--rate=100", "--count=3")
    first = lab.acknowledged.read_text().splitlines(keepends=True)
    lab.acknowledged.write_text("".join(first[:2]))
    result = lab.account()
    assert (result["acknowledged"], result["delivered"], result["unacknowledged"], result["lost"]) == (2, 2, 1, 0)


def test_a_server_that_answers_5xx_is_not_the_end_of_a_mail(lab):
    """A greeting with 554 says nothing of a mail: it is tried again."""
    with socket.create_server(("127.0.0.1", 0)) as refusing:
        lab.port = refusing.getsockname()[1]

        def refuse() -> None:
            with contextlib.suppress(OSError):
                while True:
                    refusing.accept()[0].sendall(b"554 not now\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        report = lab.submit("--rate=10", "--count=2", "--give-up=0.5", "--timeout=1")
    assert (report["refused"], report["given_up"], report["acknowledged"]) == (0, 2, 0)


def test_a_submitter_ends_when_a_file_appears(lab, tmp_path):
    threading.Timer(1, (tmp_path / "stop").touch).start()
    report = lab.submit("--rate=50", "--until-file", str(tmp_path / "stop"))
    assert 40 < report["acknowledged"] < 150


@pytest.mark.parametrize(("text", "said"), [("good=0.5", "make 0.5, not 1"), ("good=x", "invalid mix value")])
def test_shares_that_are_no_shares(lab, text, said):
    words = program("submit", "127.0.0.1", "--log=l", "--report=r", f"--mix={text}")
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def record(kind: str, value: str) -> bytes:
    """One record of a queue file."""
    return f"{kind}{chr(len(value))}{value}".encode()


def test_ids_in_queues(tmp_path):
    one, two, three = (f"m12345{number:08}" for number in range(3))
    files = {
        "deferred/A/A1": [("R", f"{one}@good.sink.test")],
        "active/A2": [("R", f"b-{two}@bounces.sink.test"), ("R", "postmaster@site.test")],
        "active/A3": [("D", f"{three}@refuse.sink.test")],
        "incoming/A4": [],
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(record(*words) for words in content))
        path.chmod(0o700)
    printed = run("queues", "ids", "--queue", tmp_path)
    assert sorted(printed.split()) == [one, two, three]
    rows = [line.split() for line in run("queues", "watch", "--queue", tmp_path, "--seconds=1.5").splitlines()]
    assert [count for _time, count in rows] == ["4", "4"]

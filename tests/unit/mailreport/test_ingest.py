# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hours of logs become files of the lake: whole, once, the same each time, and again when a log changes."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
from mailreport import cli, ingest, maintain
from mailreport.lake import TABLES, Lake
from mailreport.settings import Settings

HOSTS = ("mx-01", "mx-02", "fallback-01")
FIRST = (datetime.now() - timedelta(days=1)).replace(hour=10, minute=0, second=0, microsecond=0)
HOURS = 3


def made_logs(folder: Path, mails: int = 60, seed: int = 1) -> None:
    """Write logs of three hours: mails are deferred again and again, over the ends of hours."""
    chance = random.Random(seed)
    lines: dict[str, list[tuple[datetime, str]]] = {host: [] for host in HOSTS}
    for number in range(mails):
        host = chance.choice(HOSTS)
        moment = FIRST + timedelta(hours=HOURS * number / mails)
        queue_id = f"4Q{number:08d}z1"

        def add(service: str, text: str, host: str = host, queue_id: str = queue_id) -> None:
            nonlocal moment
            moment += timedelta(seconds=chance.uniform(0.001, 2))
            lines[host].append((moment, f"postfix/{service}[{chance.randint(1, 9)}]: {queue_id}: {text}"))

        add("smtpd", f"client=c.test[192.0.2.{number % 250}]")
        add("qmgr", f"from=<s{number}@a.test>, size=100, nrcpt=1 (queue active)")
        to = f"to=<r{number % 20}@d{number % 3}.test>, relay=x[192.0.2.1]:25, delay=1, delays=1/0/0/0"
        for _retry in range(chance.choice([0, 0, 3])):
            add("smtp", f"{to}, dsn=4.0.0, status=deferred (450 later)")
            moment += timedelta(minutes=25)
        add("smtp", f"{to}, dsn=2.0.0, status=sent (250 ok)")
        add("qmgr", "removed")
    for host, texts in lines.items():
        for moment, text in sorted(texts):
            path = folder / host / f"{moment:%Y-%m-%dT%H}.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(f"{moment.isoformat(timespec='microseconds')}+00:00 {host} {text}\n")


@pytest.fixture
def hours(tmp_path) -> ingest.Hours:
    made_logs(tmp_path / "logs")
    return ingest.Hours(Settings(logs=tmp_path / "logs", lake=tmp_path / "lake"))


def query(sql: str) -> list[tuple[Any, ...]]:
    return duckdb.connect().execute(sql).fetchall()


def rows(lake: Lake, table: str = "attempts") -> list[tuple[Any, ...]]:
    """Give all rows that readers see."""
    files = lake.files(table, FIRST - timedelta(days=2), FIRST + timedelta(days=2))
    return query(f"FROM read_parquet({[str(path) for path in files]}) ORDER BY ALL") if files else []


def digests(folder: Path) -> dict[str, str]:
    """Give what is in each file of the lake."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def expected(logs: Path) -> int:
    return sum(path.read_text().count(" status=") for path in logs.rglob("*.log"))


def test_every_hour_once(hours) -> None:
    done = hours.run()
    assert len(done) >= HOURS
    assert len(rows(hours.lake)) == expected(hours.settings.logs)
    assert {row[8] for row in rows(hours.lake)} == {f"s{number}@a.test" for number in range(60)}, "joined over hours"
    assert hours.run() == []


def test_again_gives_the_same_bytes(hours) -> None:
    done = hours.run()
    before = digests(hours.lake.root)
    for hour in done:
        hours.manifest(hour).unlink()
    assert hours.run() == done
    assert digests(hours.lake.root) == before


def test_files_are_sorted_and_counted(hours) -> None:
    for hour in hours.run():
        manifest = json.loads(hours.manifest(hour).read_text())
        path = hours.lake.hour("attempts", hour)
        recipients = [row[0] for row in query(f"SELECT recipient FROM '{path}'")]
        assert recipients == sorted(recipients)
        assert manifest["attempts"] == len(recipients)
        logs = {host: hours.settings.logs / host / f"{hour:%Y-%m-%dT%H}.log" for host in manifest["hosts"]}
        assert {host: entry["sha256"] for host, entry in manifest["hosts"].items()} == {
            host: hashlib.sha256(path.read_bytes()).hexdigest() for host, path in logs.items()
        }
        path = hours.lake.hour("rollups", hour)
        totals = query(f"SELECT dimension, sum(attempts) FROM '{path}' WHERE dimension <> 'error' GROUP BY 1")
        assert dict(totals) == dict.fromkeys(("all", "domain", "relay", "host"), len(recipients))


def test_late_lines_make_their_hour_again(hours) -> None:
    hours.run()
    before = len(rows(hours.lake))
    path = hours.settings.logs / "mx-01" / f"{FIRST:%Y-%m-%dT%H}.log"
    stamp = f"{(FIRST + timedelta(minutes=59)).isoformat()}.000001+00:00"
    with path.open("a") as file:
        file.write(
            f"{stamp} mx-01 postfix/smtp[1]: 4Q99999999z1: to=<late@d.test>, relay=none, delay=1, "
            "delays=1/0/0/0, dsn=4.0.0, status=deferred (450 late)\n"
        )
    done = hours.run()
    assert done[0] == FIRST
    assert len(rows(hours.lake)) == before + 1


@pytest.mark.parametrize("late", [False, True])
def test_a_log_that_was_compressed_is_the_same(hours, late) -> None:
    hours.run()
    path = hours.settings.logs / "mx-01" / f"{FIRST:%Y-%m-%dT%H}.log"
    closed = path.rename(f"{path}.closed")
    assert hours.run() == []
    lines = closed.read_bytes().splitlines(keepends=True)
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(b"".join(lines[:-1] if late else lines))
    if late:
        path.write_bytes(lines[-1])
    closed.unlink()
    assert hours.run() == []
    before = digests(hours.lake.root)
    hours.manifest(FIRST).unlink()
    assert hours.run() == [FIRST]
    assert digests(hours.lake.root) == before


def test_the_hour_that_goes_on_is_left(hours) -> None:
    assert hours.run(now=FIRST + timedelta(hours=2, minutes=59)) == [FIRST, FIRST + timedelta(hours=1)]


RUN = """
import sys
from pathlib import Path
from zoneinfo import ZoneInfo
from mailreport import ingest, maintain
from mailreport.settings import Settings
ingest.Hours(Settings(logs=Path(sys.argv[1]), lake=Path(sys.argv[2]))).run()
"""


def test_killed_at_any_moment(hours, tmp_path) -> None:
    """kill -9, again and again: what is visible is whole, and the next run ends it. Prints what came of it."""
    whole = ingest.Hours(Settings(logs=hours.settings.logs, lake=tmp_path / "whole"))
    whole.run()
    command = [sys.executable, "-c", RUN, str(hours.settings.logs), str(hours.settings.lake)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.monotonic()
    subprocess.run(command, env=environment, check=True)
    seconds = time.monotonic() - start
    chance = random.Random(1)
    killed, wanted = 0, int(os.environ.get("TENFOLD_KILLS", "4"))
    while killed < wanted:
        for manifest in (hours.lake.root / "manifests").rglob("*.json"):
            if chance.random() < 0.5:
                manifest.unlink()
        process = subprocess.Popen(command, env=environment)
        time.sleep(chance.uniform(0.5, 1) * seconds)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:  # it takes less time now
            seconds *= 0.9
        # Readers see whole files, at any time.
        for table in TABLES:
            rows(hours.lake, table)
        hours.run()
        assert digests(hours.lake.root) == digests(whole.lake.root)
    print(f"killed {killed} times, 0 rows lost or doubled")


class Disk:
    """A file system with so much room as it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def give(self, share: float, of: int) -> None:
        """Give it a share of some bytes, and not less than lies there."""
        size = max(int(share * of), self.used())
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def used(self) -> int:
        told = os.statvfs(self.folder)
        return (told.f_blocks - told.f_bfree) * told.f_frsize


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr}")
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_harms_nothing(hours, disk, capsys) -> None:
    """The lake lies on a volume that is too small for it, at one step of the work or another."""
    whole = {}
    needed = 0
    for compacted in (False, True):
        hours.run()
        if compacted:
            maintain.compact(hours, FIRST + timedelta(days=2))
        whole[compacted] = digests(hours.lake.root)
        needed = max(needed, sum(path.stat().st_size for path in hours.lake.root.rglob("*")))
    config = disk.folder.with_name("mailreport.toml")
    lake = disk.folder / "lake"
    config.write_text(f'logs = "{hours.settings.logs}"\nlake = "{lake}"\n')
    small = ingest.Hours(dataclasses.replace(hours.settings, lake=lake))
    refused = 0
    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 1, 1.2):
        disk.give(share, needed)
        if cli.main(["--config", str(config), "ingest"]):
            refused += 1
            told = capsys.readouterr().err
            assert "No space left on device" in told
            assert "Traceback" not in told
        for table in TABLES:
            rows(small.lake, table)  # readers see whole files
    assert refused >= 3
    disk.give(100, needed)
    assert cli.main(["--config", str(config), "ingest"]) == 0
    assert digests(lake) == whole[False]
    # An hour that is made again leaves what was there.
    there = rows(small.lake)
    small.manifest(FIRST).unlink()
    disk.give(0, needed)
    assert cli.main(["--config", str(config), "ingest"]) == 2
    assert rows(small.lake) == there
    disk.give(100, needed)
    assert cli.main(["--config", str(config), "ingest"]) == 0
    assert digests(lake) == whole[False]
    disk.give(0, needed)
    with pytest.raises((OSError, duckdb.Error), match="No space left on device"):
        maintain.compact(small, FIRST + timedelta(days=2))
    disk.give(100, needed)
    maintain.compact(small, FIRST + timedelta(days=2))
    assert digests(lake) == whole[True]


def test_follow_keeps_the_hour_that_goes_on(hours) -> None:
    follower = ingest.Follower(hours)
    path = hours.settings.logs / "mx-01" / f"{FIRST:%Y-%m-%dT%H}.log"
    for other in hours.settings.logs.rglob("*.log"):
        if other != path:
            other.unlink()
    lines = path.read_bytes().splitlines(keepends=True)
    wanted = len(re.findall(rb" status=", b"".join(lines)))
    path.write_bytes(b"")
    now = FIRST + timedelta(minutes=59)
    seen = 0
    for number in range(0, len(lines), 7):
        with path.open("ab") as file:
            file.write(b"".join(lines[number : number + 7]) + lines[0][:20])  # the last line is not whole yet
        seen += follower.look(now)
        path.write_bytes(b"".join(lines[: number + 7]))
    assert seen == wanted == len(rows(hours.lake))
    assert follower.look(now) == 0
    joined = {(row[3], row[8]) for row in rows(hours.lake)}
    # A new process begins again, and the closed hour takes the place of its parts.
    assert ingest.Follower(hours).look(now) == wanted == len(rows(hours.lake))
    hours.run()
    assert hours.lake.parts(FIRST) == []
    assert {(row[3], row[8]) for row in rows(hours.lake)} == joined
    assert len(rows(hours.lake)) == wanted


def test_logs_that_came_another_way(tmp_path) -> None:
    settings = Settings(logs=tmp_path / "logs", lake=tmp_path / "lake")
    log = tmp_path / "mail.log"
    text = (
        "mx postfix/smtp[1]: ABCDE1: to=<a@b.test>, relay=none, delay=1, delays=1/0/0/0, dsn=4.0.0, status=deferred (x)"
    )
    log.write_text(f"Dec 31 23:59:59 {text}\nno stamp\nJan  1 00:30:00 {text}\n")
    written = ingest.bring_in(settings, [log], "mx-09", 2026, ZoneInfo("Europe/Prague"))
    assert [path.name for path in written] == ["2025-12-31T22.log", "2025-12-31T23.log"]
    assert written[0].read_text() == f"2025-12-31T22:59:59+00:00 {text}\nno stamp\n"
    assert ingest.bring_in(settings, [log], "mx-09", 2026, ZoneInfo("Europe/Prague")) == written
    log.write_text(log.read_text().replace("deferred", "bounced"))
    with pytest.raises(FileExistsError, match="choose another name"):
        ingest.bring_in(settings, [log], "mx-09", 2026, ZoneInfo("Europe/Prague"))


@pytest.mark.parametrize("at_once", [1_000_000, 5])
def test_days_become_one_file(hours, monkeypatch, at_once) -> None:
    monkeypatch.setattr(ingest, "RANGE", at_once)
    hours.run()
    tables = {table: rows(hours.lake, table) for table in TABLES}
    now = FIRST + timedelta(days=2)
    assert [path.parent.parent.name for path in maintain.compact(hours, now)] == list(TABLES)
    assert {table: rows(hours.lake, table) for table in TABLES} == tables
    assert [path.name for path in hours.lake.files("attempts", FIRST, FIRST + timedelta(hours=1))] == ["day.parquet"]
    assert maintain.compact(hours, now) == []
    day = hours.lake.day("attempts", FIRST.date()) / "day.parquet"
    recipients = [row[0] for row in query(f"SELECT recipient FROM '{day}'")]
    assert recipients == sorted(recipients)
    # An hour that is made again goes into the day's file.
    test_late_lines_make_their_hour_again(hours)
    assert not list((hours.lake.root / "attempts").rglob("hour=*"))
    assert len(rows(hours.lake)) == len(tables["attempts"]) + 1
    assert not list(hours.temporary.glob("*"))


def test_an_interrupted_compaction_counts_nothing_twice(hours) -> None:
    hours.run()
    before = rows(hours.lake)
    singles = {path: path.read_bytes() for path in (hours.lake.root / "attempts").rglob("hour=*")}
    maintain.compact(hours, FIRST + timedelta(days=2))
    for path, data in singles.items():
        path.write_bytes(data)
    assert rows(hours.lake) == before
    maintain.compact(hours, FIRST + timedelta(days=2))
    assert not any(path.exists() for path in singles)


def test_the_oldest_days_go(hours) -> None:
    hours.run()
    keeping = ingest.Hours(dataclasses.replace(hours.settings, keep_bytes=10**9))
    assert maintain.forget(keeping) == []
    assert (
        maintain.forget(ingest.Hours(dataclasses.replace(hours.settings, keep_days=1)), FIRST + timedelta(days=1)) == []
    )
    held = maintain.days(hours)
    assert maintain.forget(ingest.Hours(dataclasses.replace(hours.settings, keep_bytes=1))) == held
    assert rows(hours.lake) == []
    assert maintain.days(hours) == []

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lake: where its Parquet files lie, what is in them, and how one is replaced.

```
attempts/day=2026-11-21/hour=14.parquet          one hour, sorted by recipient
attempts/day=2026-11-21/hour=15.part-000001.parquet    the hour that goes on, in parts, until it is closed
attempts/day=2026-11-20/day.parquet              a day that was compacted; hours beside it no longer count
rollups/…  rejects/…  unparsed/…                 the same
manifests/day=2026-11-21/hour=14.json            what the hour was made from
.followed  .ingested                             their time: until when lines were followed, when the ingest ended
```

A file appears as a whole or not at all: readers need no lock. All times are UTC, without a zone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa

_HOUR = re.compile(r"hour=(?P<hour>\d\d)(?P<part>\.part-\d+)?\.parquet")
_TIME = pa.timestamp("us")

# One row is one attempt to deliver to one recipient, or the end of the attempts when the mail expired.
ATTEMPTS = pa.schema(
    [
        ("time", _TIME),
        ("host", pa.string()),  # that wrote the log
        ("instance", pa.string()),  # of Postfix: the log's tag up to the first slash
        ("queue_id", pa.string()),
        (
            "arrived",
            _TIME,
        ),  # when the mail's first line was logged, in whole seconds; tells mails of one queue id apart
        ("message_id", pa.string()),
        ("client", pa.string()),  # name of who submitted it; "" if it was made on the host
        ("client_address", pa.string()),
        ("sender", pa.string()),  # in lower case, "" for bounces
        ("recipient", pa.string()),  # in lower case
        ("recipient_domain", pa.string()),
        ("original_recipient", pa.string()),  # before it was rewritten; "" if it was not
        ("relay", pa.string()),  # name as logged, "none" or "local"
        ("relay_address", pa.string()),
        ("relay_port", pa.int32()),  # 0 if there is none
        ("delay_ms", pa.int32()),  # from arrival; then its four parts
        ("delay_before_ms", pa.int32()),  # until the queue manager took it
        ("delay_queue_ms", pa.int32()),  # in the active queue
        ("delay_connect_ms", pa.int32()),
        ("delay_send_ms", pa.int32()),
        ("dsn", pa.string()),
        ("status", pa.string()),  # as logged, in lower case; "expired" for the end of the attempts
        ("outcome", pa.string()),  # one of OUTCOMES
        ("response", pa.string()),  # the whole text
        ("reason", pa.string()),  # why the servers before this one did not take it
        ("next_queue_id", pa.string()),  # what the relay says it is queued as
        ("size", pa.int64()),  # bytes of the mail
        ("recipients", pa.int32()),  # of the mail, when it was queued
    ]
)
OUTCOMES = (
    "delivered",
    "handed_over",  # to a host of our own, such as one of the fallback tier: not delivered yet
    "deferred",  # will be tried again
    "bounced",  # refused for good
    "expired",  # tried until its time was over
    "probe",  # an address was verified, no mail sent
)
# Mails that were not taken.
REJECTS = pa.schema(
    [
        ("time", _TIME),
        ("host", pa.string()),
        ("instance", pa.string()),
        ("service", pa.string()),  # smtpd, postscreen, cleanup …
        ("queue_id", pa.string()),  # "" for NOQUEUE
        ("action", pa.string()),  # reject, milter-reject, hold, discard, warn …
        ("stage", pa.string()),  # CONNECT, RCPT …
        ("client", pa.string()),
        ("client_address", pa.string()),
        ("sender", pa.string()),
        ("recipient", pa.string()),
        ("recipient_domain", pa.string()),
        ("helo", pa.string()),
        ("dsn", pa.string()),
        ("response", pa.string()),
    ]
)
# Lines that no rule knows.
UNPARSED = pa.schema([("time", _TIME), ("host", pa.string()), ("line", pa.string())])
# Attempts of five minutes, counted once for each dimension. Sorted by dimension, key, bucket.
ROLLUPS = pa.schema(
    [
        ("dimension", pa.string()),  # one of DIMENSIONS
        ("key", pa.string()),  # the domain, relay … ; "" for all
        ("bucket", _TIME),  # start of the five minutes
        ("outcome", pa.string()),
        (
            "delay_class",
            pa.int32(),
        ),  # floor(2 * log2(delay_ms)), -1 for 0 ms: the delay is in [2^(c/2), 2^((c+1)/2)) ms
        ("attempts", pa.int64()),
    ]
)
DIMENSIONS = ("all", "domain", "relay", "host", "error")
BUCKET = timedelta(minutes=5)
TABLES = {"attempts": ATTEMPTS, "rejects": REJECTS, "unparsed": UNPARSED, "rollups": ROLLUPS}


class Lake:
    """The files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def day(self, table: str, day: date) -> Path:
        """Give the folder of a day."""
        return self.root / table / f"day={day}"

    def hour(self, table: str, hour: datetime) -> Path:
        """Give the file of an hour that is closed."""
        return self.day(table, hour.date()) / f"hour={hour:%H}.parquet"

    def part(self, table: str, hour: datetime, number: int) -> Path:
        """Give the file of a part of an hour that goes on."""
        return self.day(table, hour.date()) / f"hour={hour:%H}.part-{number:06}.parquet"

    def parts(self, hour: datetime) -> list[Path]:
        """Give the parts of an hour that are there, of all tables."""
        return [
            path for table in TABLES for path in self.day(table, hour.date()).glob(f"hour={hour:%H}.part-*.parquet")
        ]

    def manifest(self, hour: datetime) -> Path:
        """Give the file that tells what an hour was made from."""
        return self.day("manifests", hour.date()) / f"hour={hour:%H}.json"

    def lines(self, now: datetime) -> tuple[int, int]:
        """Count the lines of the hours of the last day that are closed: all of them, and those that no rule knows."""
        lines = unparsed = 0
        for number in range(24):
            with contextlib.suppress(FileNotFoundError):
                manifest = json.loads(self.manifest(now - timedelta(hours=number)).read_text())
                lines += manifest["lines"]
                unparsed += manifest["unparsed"]
        return lines, unparsed

    def mark(self, work: str, at: float) -> None:
        """Note a time of some work, in seconds since the epoch."""
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f".{work}"
        path.touch()
        os.utime(path, (at, at))

    def marked(self, work: str) -> float:
        """Give the time that was noted last; 0 if there is none."""
        try:
            return (self.root / f".{work}").stat().st_mtime
        except FileNotFoundError:
            return 0

    def files(self, table: str, begin: datetime, end: datetime) -> list[Path]:
        """Give the files that hold all rows from begin to end (not included), and maybe more; oldest first.

        A file may be replaced or removed right after: who finds one missing asks again.
        """
        found = []
        day = begin.date()
        while datetime.combine(day, datetime.min.time()) < end:
            found += [path for start, path in self._files_of(table, day) if start < end and _ends(path, start) > begin]
            day += timedelta(days=1)
        return found

    def newest_hour(self) -> datetime | None:
        """Give the newest hour that is closed."""
        for day in sorted((self.root / "manifests").glob("day=*"), reverse=True):
            for hour in sorted(day.glob("hour=??.json"), reverse=True):
                return datetime.strptime(f"{day.name} {hour.name}", "day=%Y-%m-%d hour=%H.json")
        return None

    def _files_of(self, table: str, day: date) -> Iterator[tuple[datetime, Path]]:
        """Give start and path of the files of a day that count."""
        folder = self.day(table, day)
        start = datetime.combine(day, datetime.min.time())
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return
        if "day.parquet" in names:
            yield start, folder / "day.parquet"
            return
        closed = {name for name in names if _HOUR.fullmatch(name) and ".part-" not in name}
        for name in names:
            if (match := _HOUR.fullmatch(name)) and (name in closed or f"hour={match['hour']}.parquet" not in closed):
                yield start + timedelta(hours=int(match["hour"])), folder / name


class Lakes:
    """The lakes of several log hosts, as folders of one. Each mail host is in one of them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, table: str, begin: datetime, end: datetime) -> list[Path]:
        """Give the files of all lakes that hold all rows from begin to end (not included), and maybe more."""
        return [path for lake in self._lakes() for path in lake.files(table, begin, end)]

    def newest_hour(self) -> datetime | None:
        """Give the newest hour that all lakes have closed."""
        return min((hour for lake in self._lakes() if (hour := lake.newest_hour())), default=None)

    def _lakes(self) -> list[Lake]:
        """Give those that have a mail: one may be new."""
        return [Lake(folder.parent) for folder in sorted(self.root.glob("*/attempts"))]


def _ends(path: Path, start: datetime) -> datetime:
    """Give when the time of a file ends."""
    return start + (timedelta(days=1) if path.name == "day.parquet" else timedelta(hours=1))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file takes its place, on disk for good, if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)

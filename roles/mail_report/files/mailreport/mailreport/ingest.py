# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hours of logs to the lake: each hour is made once it is over, and again when its logs or the hour before change.

``<logs>/<host>/2026-11-21T14.log`` (maybe ``.log.gz``) are the lines of one host and one hour, in UTC. Mails that are
still in the queue at the end of an hour go on in the next: their lines are kept in
``carried/<host>/2026-11-21T14.log``. An hour's manifest, which tells what it was made from, is written last: until it
is there, the hour is not done.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from mailreport import kernels, logs, postfix, rollup
from mailreport.lake import TABLES, Lake, replacing
from mailreport.logs import AGES, STAMP
from mailreport.settings import Settings

HOUR = timedelta(hours=1)
RANGE = 1_500_000  # rows of a day that are sorted at a time; they take about a kilobyte each


class Form(NamedTuple):
    """How a file is written."""

    rows: int  # of a group. A look-up of one recipient reads a group of each file, and its notes of all groups
    level: int  # of zstd


HOUR_FORM = Form(16_384, 1)  # the usual level, 3, takes longer for files that are no smaller
# Written once and read for a month, most of which goes into the notes of all groups.
DAY_FORM = Form(65_536, 9)
# Total orders of the tables, so that the same rows make the same bytes. Few and short keys sort fast, and what more
# tells attempts apart is needed for those of one microsecond only.
ORDER = {
    "attempts": "recipient, time, hash(host, instance, queue_id, arrived, relay, status, response, reason)",
    "rejects": "recipient, time, host, instance, service, queue_id, response",
    "unparsed": "time, host, line",
    "rollups": "dimension, key, bucket, outcome, delay_class",
}
PARSED = ("attempts", "rejects", "unparsed")  # tables that the parser makes
Progress = Callable[[str], None]


class Source(NamedTuple):
    """A host's files of one hour, and how many bytes of log they hold."""

    host: str
    paths: tuple[Path, ...]
    size: int


class Read(NamedTuple):
    """What a source became."""

    parsed: postfix.Parsed
    digest: str
    carried_in: str


class Hours:
    """The hours of a site: their logs, and what was made of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lake = Lake(settings.lake)
        self.temporary = settings.lake / ".temporary"

    def sources(self) -> dict[datetime, dict[str, Source]]:
        """Find the logs of all hours that are kept, oldest first."""
        oldest = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=self.settings.keep_days)
        found = logs.names(self.settings.logs, oldest)
        return {
            hour: {host: _source(self.settings.logs / host, names) for host, names in hosts.items()}
            for hour, hosts in found.items()
        }

    def run(self, now: datetime | None = None, progress: Progress = lambda text: None) -> list[datetime]:
        """Make the hours that are over and not done, and those that changed since; give them."""
        now = now or datetime.now(UTC).replace(tzinfo=None)
        done = []
        carried: dict[str, str] = {}  # what the hours until then carried on, by host
        with self.lock("ingest"):
            shutil.rmtree(self.temporary, ignore_errors=True)
            for hour, sources in self.sources().items():
                if hour + HOUR > now:
                    break
                # The hours before the first one are no longer there, what they carried on is.
                carried |= {host: _digest(self.carried(host, hour)) for host in sources.keys() - carried.keys()}
                if not self.is_done(hour, sources, carried):
                    self.make(hour, sources, progress)
                    done.append(hour)
                entries = json.loads(self.manifest(hour).read_text())["hosts"]
                carried |= {host: entry["carried_out"] for host, entry in entries.items()}
        return done

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Wait until no other process does the same work on the lake."""
        self.lake.root.mkdir(parents=True, exist_ok=True)
        with (self.lake.root / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_done(self, hour: datetime, sources: Mapping[str, Source], carried: Mapping[str, str]) -> bool:
        """Tell if the hour was made from what is there now, and from what was carried on to it."""
        try:
            manifest = json.loads(self.manifest(hour).read_text())
        except FileNotFoundError:
            return False
        made = {host: (entry["bytes"], entry["carried_in"]) for host, entry in manifest["hosts"].items()}
        return made == {host: (source.size, carried[host]) for host, source in sources.items()}

    def manifest(self, hour: datetime) -> Path:
        """Give the file that tells what an hour was made from."""
        return self.lake.manifest(hour)

    def carried(self, host: str, before: datetime) -> bytes:
        """Give the lines that matter to an hour of a host, from the last hour before it that has a log."""
        folder = self.lake.root / "carried" / host
        names = sorted(path.name for path in folder.glob("*.log")) if folder.is_dir() else []
        earlier = [name for name in names if name < f"{before:{STAMP}}.log"]
        return (folder / earlier[-1]).read_bytes() if earlier else b""

    def make(self, hour: datetime, sources: Mapping[str, Source], progress: Progress) -> None:
        """Make one hour, one task for each host."""
        start = time.monotonic()
        total = sum(source.size for source in sources.values())
        self.temporary.mkdir(parents=True, exist_ok=True)
        hosts: dict[str, Any] = {}
        files: dict[str, list[Path]] = {table: [] for table in TABLES}
        finished = 0
        with ThreadPoolExecutor(self.settings.workers or os.cpu_count()) as pool:
            largest_first = sorted(sources.values(), key=lambda source: -source.size)
            for source, read in zip(
                largest_first, pool.map(lambda one: self.read(hour, one), largest_first), strict=True
            ):
                parsed = read.parsed
                hosts[source.host] = {
                    "bytes": source.size,
                    "sha256": read.digest,
                    "carried_in": read.carried_in,
                    "carried_out": _digest(parsed.carried),
                    "lines": parsed.lines,
                    "foreign": parsed.foreign,
                    **{table: getattr(parsed, table).num_rows for table in PARSED},
                }
                # On disk, and not in memory, until all hosts are read.
                for table in PARSED:
                    files[table].append(_spill(getattr(parsed, table), self.temporary / f"{source.host}.{table}.arrow"))
                finished += source.size
                progress(f"{hour:{STAMP}}: {finished * 100 // max(1, total)} % of {total / 1e6:.0f} MB read")
        progress(f"{hour:{STAMP}}: writing")
        self.write(hour, {table: map(_mapped, files[table]) for table in PARSED})
        counts = {name: sum(entry[name] for entry in hosts.values()) for name in ("bytes", "lines", "foreign", *PARSED)}
        with replacing(self.manifest(hour)) as path:
            path.write_text(json.dumps({"hour": f"{hour:{STAMP}}", **counts, "hosts": hosts}, indent=1, sort_keys=True))
        for part in self.lake.parts(hour):
            part.unlink()
        shutil.rmtree(self.temporary)
        seconds = time.monotonic() - start
        progress(f"{hour:{STAMP}}: {counts['lines']} lines, {counts['attempts']} attempts in {seconds:.1f} s\n")

    def read(self, hour: datetime, source: Source) -> Read:
        """Parse the log of one host, and keep what the next hour must know."""
        before = self.carried(source.host, hour)
        buffer = np.empty(len(before) + source.size, np.uint8)
        buffer[: len(before)] = np.frombuffer(before, np.uint8)
        at = len(before)
        for path in source.paths:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                while at < len(buffer) and (count := file.readinto(buffer.data[at:])):
                    at += count
        digest = hashlib.sha256(buffer.data[len(before) : at]).hexdigest()
        parsed = postfix.parse(buffer[:at], source.host, self.settings.handover, len(before))
        with replacing(self.lake.root / "carried" / source.host / f"{hour:{STAMP}}.log") as path:
            path.write_bytes(parsed.carried)
        return Read(parsed, digest, _digest(before))

    @contextmanager
    def engine(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give an engine that keeps to the settings."""
        options: dict[str, Any] = {"memory_limit": self.settings.memory, "temp_directory": str(self.temporary)}
        if self.settings.workers:
            options["threads"] = str(self.settings.workers)
        with duckdb.connect(config=options) as engine:
            yield engine

    def write(self, hour: datetime, tables: Mapping[str, Iterable[pa.Table]], part: int | None = None) -> None:
        """Write the rows of an hour, in place of those that it had, or as one more part of the hour that goes on."""
        with self.engine() as engine:
            for name, rows in tables.items():
                engine.register(name, pa.concat_tables([TABLES[name].empty_table(), *rows]))
            engine.execute(f"CREATE VIEW rollups AS {rollup.SQL}")
            for name in ("rejects", "unparsed", "rollups", "attempts"):
                day = self.lake.day(name, hour.date()) / "day.parquet"
                if part is None and day.exists():
                    column = "bucket" if name == "rollups" else "time"
                    others = f"FROM {rows_of([day])} WHERE date_trunc('hour', {column}) <> TIMESTAMP '{hour}'"
                    self.save_day(engine, name, f"FROM {name} UNION ALL {others}", [day], day)
                else:
                    path = self.lake.hour(name, hour) if part is None else self.lake.part(name, hour, part)
                    save(engine, f"FROM {name} ORDER BY {ORDER[name]}", path)

    def save_day(
        self, engine: duckdb.DuckDBPyConnection, table: str, query: str, files: Sequence[Path], path: Path
    ) -> None:
        """Write the rows of a day, one range of recipients after another: all at once takes ten times the room.

        :param files: that hold most of what the query gives. They are sorted, so that their own notes tell the ranges.
        """
        edges = ranges(engine, files) if ORDER[table].startswith("recipient,") else []
        if not edges:
            save(engine, f"FROM ({query}) ORDER BY {ORDER[table]}", path, DAY_FORM)
            return
        parts = []
        for number, (first, last) in enumerate(pairwise(["", *edges, ""])):
            parts.append(self.temporary / f"{table}-{number}.parquet")
            where, values = "recipient >= $first", {"first": first}
            if last:
                where, values["last"] = f"{where} AND recipient < $last", last
            save(engine, f"FROM ({query}) WHERE {where} ORDER BY {ORDER[table]}", parts[-1], values=values)
        save(engine, f"FROM {rows_of(parts)}", path, DAY_FORM)
        for part in parts:
            part.unlink()


def ranges(engine: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> list[str]:
    """Give recipients that part the rows of sorted files into ranges of about so many that fit into memory."""
    found = engine.execute(
        """SELECT stats_min_value, row_group_num_rows FROM parquet_metadata($files)
        WHERE path_in_schema = 'recipient' AND stats_min_value <> '' ORDER BY 1""",
        {"files": [str(path) for path in files]},
    )
    edges: list[str] = []
    count = 0
    for recipient, rows in found.fetchall():
        if count >= RANGE and recipient not in edges[-1:]:
            edges.append(recipient)
            count = 0
        count += rows
    return edges


def rows_of(files: Iterable[Path]) -> str:
    """Give SQL for the rows of some files. The names of their folders are no columns."""
    return f"read_parquet([{', '.join(map(_quoted, files))}], hive_partitioning = false)"


def save(
    engine: duckdb.DuckDBPyConnection,
    query: str,
    path: Path,
    form: Form = HOUR_FORM,
    values: Mapping[str, str] | None = None,
) -> None:
    """Write what a query gives, with values for its ``$name``."""
    with replacing(path) as temporary:
        options = f"FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL {form.level}, ROW_GROUP_SIZE {form.rows}"
        engine.execute(f"COPY ({query}) TO {_quoted(temporary)} ({options})", values)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


class Follower:
    """Keeps hours that are not over in the lake, in parts: each look adds the lines that are new."""

    def __init__(self, hours: Hours) -> None:
        self.hours = hours
        self.read: dict[datetime, dict[str, int]] = {}  # bytes of each host's log
        self.carried: dict[str, bytes] = {}

    def look(self, now: datetime | None = None) -> int:
        """Add what is new since the last look; give the number of attempts."""
        start = time.time()
        now = now or datetime.now(UTC).replace(tzinfo=None)
        count = 0
        for hour, sources in self.hours.sources().items():
            if not self.hours.manifest(hour).exists() and hour <= now:
                count += self._add(hour, sources)
        self.hours.lake.mark("followed", start)  # what was written until then is in the lake
        return count

    def _add(self, hour: datetime, sources: Mapping[str, Source]) -> int:
        """Add the new lines of an hour."""
        if hour not in self.read:
            # Parts of a process that ended hold nothing that is not in the logs.
            for path in self.hours.lake.parts(hour):
                path.unlink()
        offsets = self.read.setdefault(hour, {})
        parsed = []
        for host, source in sources.items():
            with source.paths[-1].open("rb") as file:
                file.seek(offsets.get(host, 0))
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            if new:
                before = self.carried[host] if host in self.carried else self.hours.carried(host, hour)
                parsed.append(postfix.parse(before + new, host, self.hours.settings.handover, len(before)))
                self.carried[host] = parsed[-1].carried
                offsets[host] = offsets.get(host, 0) + len(new)
        if parsed:
            tables = {table: [getattr(one, table) for one in parsed] for table in PARSED}
            self.hours.write(hour, tables, part=len(self.hours.lake.parts(hour)))
        return sum(one.attempts.num_rows for one in parsed)


def bring_in(
    settings: Settings, files: Iterable[Path], host: str, year: int | None = None, zone: tzinfo = UTC
) -> list[Path]:
    """Split logs that came another way, oldest first, into the hourly files of a host; give these.

    Time stamps become those of the receiver. An hourly file that says something else already is left as it is.

    :raises FileExistsError: there is such a file.
    """
    buffer = np.frombuffer(bytearray().join(map(_content, files)), np.uint8)
    year = year or datetime.now(zone).year
    lines, form, last_year = kernels.stamps(buffer, year)
    if last_year > year and form == kernels.LOCAL:
        lines = kernels.stamps(buffer, 2 * year - last_year)[0]
    if form == kernels.LOCAL:
        lines[:, 2] = postfix.to_utc(lines[:, 2], zone)
    hours: dict[datetime, list[bytes]] = {}
    for start, end, microseconds, text in lines.tolist():
        moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC)
        stamp = moment.replace(tzinfo=None).isoformat().encode()
        if form == kernels.EXACT:
            stamp += b".%06d" % (microseconds % 1_000_000)
        line = stamp + b"+00:00" + buffer[text:end].tobytes() if text > start else buffer[start:end].tobytes()
        hours.setdefault(moment.replace(tzinfo=None, minute=0, second=0), []).append(line)
    written = []
    for hour, found in hours.items():
        path = settings.logs / host / f"{hour:{STAMP}}.log"
        log = b"\n".join(found) + b"\n"
        if path.exists() and path.read_bytes() != log:
            raise FileExistsError(
                f"{path} is there, and differs: choose another name for the host, or move the file away"
            )
        with replacing(path) as temporary:
            temporary.write_bytes(log)
        written.append(path)
    return written


def _source(folder: Path, names: Iterable[str]) -> Source:
    """Give what a host has of an hour."""
    paths = sorted((folder / name for name in names), key=lambda path: AGES.index(path.suffix))
    return Source(folder.name, tuple(paths), sum(map(_size, paths)))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _size(path: Path) -> int:
    """Give how many bytes of log a file holds."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")  # the end of gzip's own format; modulo 4 GiB


def _content(path: Path) -> bytes:
    """Give the log in a file."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def _spill(table: pa.Table, path: Path) -> Path:
    """Write a table that is needed later."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


def _mapped(path: Path) -> pa.Table:
    """Give a table that lies on disk."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus is to know of the lake, in its text format.

All is about this host's own lake, also where questions are answered from those of several log hosts, or by another
engine: Prometheus has the numbers of each host, and adds them up. It is asked each minute, and must cost little: of
files, names and times are looked at, and attempts are counted from the roll-ups.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mailreport import logs
from mailreport.engines import EngineError
from mailreport.lake import TABLES, Lake, replacing
from mailreport.output import visible
from mailreport.questions import HOUR, Questions
from mailreport.settings import Settings

DOMAINS = 50  # with the most attempts


class Metric(NamedTuple):
    """A name, what it is, and its values by their labels."""

    name: str
    what: str
    values: list[tuple[Mapping[str, str], float]]


def tell(settings: Settings, now: datetime) -> tuple[list[Metric], list[str]]:
    """Give the metrics at a time (naive UTC), and a sentence for each part that cannot be told: it is left out."""
    part_of = _Parts(settings, now)
    told: list[Metric] = []
    problems = []
    for part in (part_of.ingest, part_of.lag, part_of.attempts, part_of.size):
        try:
            told += part()
        except (EngineError, OSError, ValueError, KeyError) as error:  # a damaged manifest is one of the last two
            problems.append(f"{part.__name__} cannot be told: {error!r}")
    # Without it, a file that nobody replaces any more would look as if all went well.
    told.append(_one("metrics_timestamp_seconds", "When these metrics were made.", _epoch(now)))
    return told, problems


def text(metrics: list[Metric]) -> str:
    """Give metrics in Prometheus' text format. All are gauges."""
    return "".join(line + "\n" for metric in metrics for line in _lines(metric))


def write(path: Path, content: str) -> None:
    """Replace a file by others' to read."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
        temporary.chmod(0o644)  # whatever the mask of who runs it


class _Parts:
    """What is told, in parts that do not harm each other."""

    def __init__(self, settings: Settings, now: datetime) -> None:
        self._settings, self._now, self._lake = settings, now, Lake(settings.lake)

    def ingest(self) -> Iterator[Metric]:
        """Tell of the hours that are made."""
        ended = self._lake.marked("ingested")
        if hour := self._lake.newest_hour():
            ended = max(ended, self._lake.manifest(hour).stat().st_mtime)
        if ended:
            yield _one("ingest_timestamp_seconds", "When the hours of logs that were over had been made.", ended)
        lines, unparsed = self._lake.lines(self._now)
        yield _one("lines", "Lines of logs in the hours of the last day that are made.", lines)
        yield _one("unparsed_lines", "Those of them that no rule knows.", unparsed)

    def lag(self) -> Iterator[Metric]:
        """Tell how far the lake is behind the logs."""
        lag = max(0.0, self._newest() - self._covered())
        yield _one("lag_seconds", "How far the lake is behind the newest line of the logs.", lag)

    def attempts(self) -> Iterator[Metric]:
        """Tell of the attempts of the last hour that the lake knows."""
        questions = Questions.of(replace(self._settings, engine="duckdb", lakes=None))
        if newest := questions.newest(self._now):
            what = "When the newest attempt of the last week in the lake was made."
            yield _one("newest_attempt_timestamp_seconds", what, _epoch(newest))
        end = datetime.fromtimestamp(self._covered(), UTC).replace(tzinfo=None)
        values: list[tuple[Mapping[str, str], float]] = [
            ({"domain": domain, "outcome": outcome}, count)
            for domain, counts in questions.most(end - HOUR, self._now + HOUR, "domain", DOMAINS).items()
            for outcome, count in counts.items()
        ]
        what = f"Attempts of the last hour that the lake knows, to the {DOMAINS} domains with the most."
        yield Metric("mailreport_attempts", what, values)

    def size(self) -> Iterator[Metric]:
        """Tell how large the lake is, as its limit is meant."""
        size = 0
        for table in (*TABLES, "manifests"):
            for folder in (self._lake.root / table).glob("day=*"):
                with os.scandir(folder) as files:
                    for file in files:
                        with contextlib.suppress(FileNotFoundError):  # another took its place
                            size += file.stat().st_size
        yield _one("lake_bytes", "Bytes of the files of the lake.", size)

    @cached_property
    def _waiting(self) -> dict[datetime, logs.Names]:
        """Give the logs of hours that have begun and are not made. The follower has them in the lake, if it runs."""
        # What the lake has forgotten is behind it.
        days = [path.name.removeprefix("day=") for path in (self._lake.root / "manifests").glob("day=*")]
        kept = self._now - timedelta(days=self._settings.keep_days)
        found = logs.names(self._settings.logs, datetime.fromisoformat(min(days)) if days else kept)
        return {
            hour: hosts for hour, hosts in found.items() if hour <= self._now and not self._lake.manifest(hour).exists()
        }

    def _covered(self) -> float:
        """Give until when the lines of the logs are in the lake, in seconds since the epoch.

        A site that is quiet has nothing that waits. Late lines of hours that are made are not looked at: the next
        hour brings them in.
        """
        now = _epoch(self._now)
        return min(now, max(_epoch(min(self._waiting)), self._lake.marked("followed"))) if self._waiting else now

    def _newest(self) -> float:
        """Give when the newest line of what waits came, in seconds since the epoch; 0 if nothing waits."""
        newest = 0.0
        for hosts in self._waiting.values():
            for host, names in hosts.items():
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # it was closed or compressed meanwhile
                        newest = max(newest, (self._settings.logs / host / name).stat().st_mtime)
        return newest


def _one(name: str, what: str, value: float) -> Metric:
    return Metric(f"mailreport_{name}", what, [({}, value)])


def _epoch(time: datetime) -> float:
    return time.replace(tzinfo=UTC).timestamp()


def _lines(metric: Metric) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.what}"
    yield f"# TYPE {metric.name} gauge"
    for labels, value in metric.values:
        told = ",".join(f'{name}="{_escaped(its)}"' for name, its in labels.items())
        braced = f"{{{told}}}" if told else ""
        yield f"{metric.name}{braced} {value}"


def _escaped(value: str) -> str:
    """Give a label's value. Who sends mail chooses the names of domains: they must not end a line."""
    return visible(value).replace("\\", r"\\").replace('"', r"\"")

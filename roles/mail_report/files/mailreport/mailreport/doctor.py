# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with logs and lake, and what to do about it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from mailreport.engines import EngineError
from mailreport.ingest import Hours, Source
from mailreport.questions import HOUR, Questions
from mailreport.settings import Settings

Sources = Mapping[datetime, Mapping[str, Source]]

OK, WARNING, ERROR = range(3)
UNPARSED = 0.001  # of all lines, at most
FREE, LEAST_FREE = 0.1, 0.02  # of the disk
LATE = timedelta(minutes=30)  # after its end an hour is made
INGEST = "Run `mailreport ingest` and see what it says; `systemctl status mailreport-ingest.timer` runs it each hour."


class Finding(NamedTuple):
    """What was looked at, and what to do if it is not well."""

    level: int
    what: str
    do: str = ""


def examine(settings: Settings, questions: Questions, now: datetime) -> Iterator[Finding]:
    """Look at everything."""
    hours = Hours(settings)
    try:
        sources = hours.sources()
    except OSError as error:
        yield Finding(
            ERROR, f"{settings.logs} cannot be read: {error.strerror}", "Look at the setting logs, and its owner."
        )
    else:
        yield _logs(settings, sources, now)
        yield _made(hours, sources, now)
    yield _unparsed(hours, now)
    yield _disk(settings)
    yield _answers(questions, now)


def _logs(settings: Settings, sources: Sources, now: datetime) -> Finding:
    """Tell which hosts' logs are old."""
    newest: dict[str, float] = {}
    for found in sources.values():
        for source in found.values():
            changed = max(path.stat().st_mtime for path in source.paths)
            newest[source.host] = max(newest.get(source.host, 0), changed)
    if not newest:
        return Finding(
            ERROR, f"no host has a log in {settings.logs}", "Let hosts send their logs there: role mail_logs."
        )
    limit = (now - timedelta(minutes=settings.web.stale_minutes)).replace(tzinfo=UTC).timestamp()
    stale = [
        f"{host} (since {datetime.fromtimestamp(time, UTC):%F %R} UTC)"
        for host, time in sorted(newest.items())
        if time < limit
    ]
    if stale:
        return Finding(WARNING, f"no new lines from {_listed(stale)}", "Look at Postfix and rsyslog there.")
    return Finding(OK, f"logs of {len(newest)} hosts are fresh")


def _made(hours: Hours, sources: Sources, now: datetime) -> Finding:
    """Tell which hours are not in the lake."""
    over = [hour for hour in sources if hour + HOUR + LATE <= now]
    missing = [hour for hour in over if not hours.manifest(hour).exists()]
    if missing:
        return Finding(
            ERROR, f"{len(missing)} hours of logs are not in the lake: {_listed(map(_named, missing))}", INGEST
        )
    lost = [hour for hour in over if not hours.lake.files("attempts", hour, hour + HOUR)]
    if lost:
        return Finding(
            ERROR,
            f"{len(lost)} hours have a manifest and no rows: {_listed(map(_named, lost))}",
            "Run `mailreport ingest --hour` with each.",
        )
    silent = [hour for hour in _between(over) if hour not in sources]
    if silent:
        return Finding(
            WARNING,
            f"{len(silent)} hours have no log of any host: {_listed(map(_named, silent))}",
            "Look at this host's rsyslog in these hours. What the senders still hold arrives later.",
        )
    return Finding(OK, f"{len(over)} hours of logs are in the lake")


def _unparsed(hours: Hours, now: datetime) -> Finding:
    """Tell if there are many lines that no rule knows."""
    lines, unparsed = hours.lake.lines(now)
    what = f"{unparsed} of {lines} lines of the last day are known to no rule"
    if unparsed > UNPARSED * lines:
        return Finding(WARNING, what, "Look at them on the page, under unparsed lines, and report those of Postfix.")
    return Finding(OK, what)


def _disk(settings: Settings) -> Finding:
    """Tell if the disk gets full."""
    try:
        usage = shutil.disk_usage(settings.lake)
    except OSError as error:
        return Finding(
            ERROR, f"{settings.lake} cannot be read: {error.strerror}", "Look at the setting lake, and its owner."
        )
    share = usage.free / usage.total
    what = f"{usage.free / 1e9:.0f} GB, {share:.0%} of the lake's disk are free"
    if share < FREE:
        level = ERROR if share < LEAST_FREE else WARNING
        return Finding(level, what, "Keep fewer days (keep_days, keep_bytes), or enlarge the disk.")
    return Finding(OK, what)


def _answers(questions: Questions, now: datetime) -> Finding:
    """Tell if the engine answers, and how new its answer is."""
    name = questions.engine.name
    try:
        hosts = questions.freshness(now).hosts
    except EngineError as error:
        return Finding(
            ERROR, f"{name} gives no answer: {error}", "Look at the settings engine, engine_url and engine_lake."
        )
    if not hosts:
        return Finding(WARNING, f"{name} finds no mail of the last week in the lake", f"Send one. {INGEST}")
    newest = max(hosts.values())
    what = f"{name} answers; the newest attempt is of {newest:%F %T} UTC"
    if now - newest > 2 * HOUR + LATE:
        return Finding(WARNING, what, INGEST)
    return Finding(OK, what)


def _between(hours: Sequence[datetime]) -> Iterator[datetime]:
    """Give all hours from the first to the last."""
    if hours:
        for number in range((hours[-1] - hours[0]) // HOUR):
            yield hours[0] + number * HOUR


def _named(hour: datetime) -> str:
    return f"{hour:%Y-%m-%dT%H}"


def _listed(names: Iterable[str]) -> str:
    """Name the first few."""
    first = list(itertools.islice(names, 6))
    return ", ".join(first[:5]) + (" …" if first[5:] else "")

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lake's age: days that are over become one file each, and the oldest days go."""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from mailreport.ingest import Hours, rows_of
from mailreport.lake import TABLES


def days(hours: Hours) -> list[date]:
    """Give the days that the lake holds, oldest first."""
    names = {path.name for table in (*TABLES, "manifests") for path in (hours.lake.root / table).glob("day=*")}
    return sorted(date.fromisoformat(name.removeprefix("day=")) for name in names)


def compact(hours: Hours, now: datetime | None = None) -> list[Path]:
    """Make one file of the hours of each day that ended more than a day ago; give the files.

    Late lines of such a day are written into that file. Readers no longer count the hours beside it, so that they are
    removed after it is there; what an interrupted run left is removed by the next.
    """
    before = (now or datetime.now(UTC).replace(tzinfo=None)).date() - timedelta(days=1)
    made = []
    with hours.lock("ingest"):
        for day in days(hours):
            for table in TABLES if day < before else ():
                folder = hours.lake.day(table, day)
                singles = sorted(folder.glob("hour=*.parquet"))
                whole = folder / "day.parquet"
                if singles and not whole.exists():
                    with hours.engine() as engine:
                        hours.save_day(engine, table, f"FROM {rows_of(singles)}", singles, whole)
                    made.append(whole)
                for path in singles:
                    path.unlink()
    return made


def forget(hours: Hours, now: datetime | None = None) -> list[date]:
    """Remove the oldest days: those beyond ``keep_days``, and more while the lake is bigger than ``keep_bytes``."""
    settings = hours.settings
    oldest = (now or datetime.now(UTC).replace(tzinfo=None)).date() - timedelta(days=settings.keep_days)
    gone = []
    with hours.lock("ingest"):
        left = days(hours)
        sizes = {day: sum(path.stat().st_size for path in _paths(hours, day)) for day in left}
        while left and (
            left[0] < oldest or (settings.keep_bytes and sum(sizes[day] for day in left) > settings.keep_bytes)
        ):
            day = left.pop(0)
            # The manifest goes last: until then, the day is there to be removed again.
            for table in (*TABLES, "manifests"):
                shutil.rmtree(hours.lake.day(table, day), ignore_errors=True)
            gone.append(day)
        # Of what was carried over, only what the next hour of a host needs.
        for folder in (hours.lake.root / "carried").glob("*"):
            for path in sorted(folder.glob("*.log"))[:-1]:
                if path.name < f"{oldest}":
                    path.unlink()
    return gone


def _paths(hours: Hours, day: date) -> list[Path]:
    return [path for table in (*TABLES, "manifests") for path in hours.lake.day(table, day).glob("*")]

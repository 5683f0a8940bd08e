# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The logs that the transport brings: `<logs>/<host>/2026-11-21T14.log` holds the lines of one hour, in UTC."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

STAMP = "%Y-%m-%dT%H"
# A log that nobody writes to any more is closed, then compressed. A late line begins another one. Oldest first.
AGES = (".gz", ".closed", ".log")
_LOG = re.compile(r"(\d{4}-\d\d-\d\dT\d\d)\.log(?:\.closed|\.gz)?")

Names = dict[str, list[str]]  # of a host's files, in any order


def names(logs: Path, oldest: datetime) -> dict[datetime, Names]:
    """Find the logs from an hour on: names of files by hour and host, both in order. No file is looked at.

    :raises OSError: the folder cannot be read.
    """
    first = f"{oldest:{STAMP}}"
    found: dict[str, Names] = {}
    with os.scandir(logs) as entries:
        hosts = sorted(entry.name for entry in entries if entry.is_dir())
    for host in hosts:
        for name in os.listdir(logs / host):
            if (match := _LOG.fullmatch(name)) and match[1] >= first:
                found.setdefault(match[1], {}).setdefault(host, []).append(name)
    return {datetime.strptime(hour, STAMP): found[hour] for hour in sorted(found)}

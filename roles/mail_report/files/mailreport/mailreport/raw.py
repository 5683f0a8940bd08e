# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines that a host wrote about a mail, from its hourly files."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mailreport.questions import Message

LINES = 1000
# A mail's lines come shortly before and after an attempt, which may be in the hour before or after.
_AROUND = timedelta(seconds=10)


def lines(logs: Path, message: Message) -> Iterator[str]:
    """Give the lines of a mail on one host, in the order of its log, LINES at most.

    Only the hours with its attempts are looked at. Bytes that are no UTF-8 are shown as escapes.
    """
    left = LINES
    # What others wrote, such as a remote server's text, comes later in the line.
    own = re.compile(
        rb"(?:warning: |error: |fatal: |panic: )?" + re.escape(message.queue_id.encode()) + rb": (removed)?"
    )
    end = datetime.max
    for path in _files(logs, message):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                match = own.match(line.partition(b"]: ")[2])
                time = _time(line) if match else None
                if not match or (time and not message.arrived <= time <= end):
                    continue
                if match[1] and time:  # the queue id may be used again from here on
                    end = time
                yield line.rstrip(b"\r\n").decode(errors="backslashreplace")
                left -= 1
                if not left:
                    return


def _files(logs: Path, message: Message) -> Iterator[Path]:
    """Give the host's files of the hours that matter, oldest first."""
    times = {time + side for time in (message.arrived, *message.times) for side in (-_AROUND, _AROUND)}
    for hour in sorted({f"{time:%Y-%m-%dT%H}" for time in times}):
        for suffix in (".log.gz", ".log.closed", ".log"):  # if more are there, the oldest first
            path = logs / message.host / f"{hour}{suffix}"
            if path.is_file():
                yield path


def _time(line: bytes) -> datetime | None:
    """Give the time that a line begins with, None if it is in another form."""
    try:
        time = datetime.fromisoformat(line.partition(b" ")[0].decode())
    except ValueError:
        return None
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else None

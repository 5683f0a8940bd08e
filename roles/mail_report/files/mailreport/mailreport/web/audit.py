# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit log: who asked what, when, and how many rows were given; one JSON text a line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_TAIL = 1 << 18  # bytes at the end of the log that the page looks at


@dataclass
class Entry:
    """What is told of one request when it ends."""

    rows: int | None = None  # None: there was no answer


class Audit:
    """The file; opened for each line, so that it can be rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def of(self, user: str, address: str, action: str, asked: Mapping[str, str]) -> Iterator[Entry]:
        """Log what is done within, also if it fails."""
        entry = Entry()
        try:
            yield entry
        finally:
            self.write(user, address, action, asked, entry.rows)

    def write(self, user: str, address: str, action: str, asked: Mapping[str, str], rows: int | None) -> None:
        """Add a line."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        told = {"time": time, "user": user, "address": address, "action": action, "asked": dict(asked), "rows": rows}
        # One write to the end of the file: lines of several processes do not mix.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(file, json.dumps(told).encode() + b"\n")
        finally:
            os.close(file)

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Give the newest lines, newest first."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL))
                lines = file.read().splitlines()[1 if size > _TAIL else 0 :]
        except FileNotFoundError:
            return []
        entries = []
        for line in reversed(lines[-limit:]):
            with contextlib.suppress(ValueError):  # the disk was full
                entries.append(json.loads(line))
        return entries

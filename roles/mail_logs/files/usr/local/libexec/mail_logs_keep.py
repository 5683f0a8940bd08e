# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compress hourly logs that are no longer written, and remove old ones.

A late line may come for any hour at any time. So an hour is first closed, which gives it another name, then rsyslog is
told to open its files anew, and only then it's compressed: a line that comes meanwhile begins another file, which is
added later.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CLOSED = ".closed"
SETTLE = 5  # seconds that rsyslog gets to write what it has in hand


def silent(folder: Path, pattern: str, seconds: float) -> Iterator[Path]:
    """Give the files of all hosts that were not written for that long."""
    newest = time.time() - seconds
    yield from (path for path in sorted(folder.glob(f"*/{pattern}")) if path.lstat().st_mtime < newest)


def close(folder: Path, hours: float) -> None:
    """Give hours that nobody writes to another name."""
    for log in silent(folder, "*.log", hours * 3600):
        closed = log.with_name(log.name + CLOSED)
        if not closed.exists():  # one that an interrupted run left comes first
            log.rename(closed)


def compress(folder: Path) -> None:
    """Add closed hours to their compressed files."""
    closed_logs = sorted(folder.glob(f"*/*.log{CLOSED}"))
    if closed_logs:
        time.sleep(SETTLE)
    for closed in closed_logs:
        target = closed.with_suffix(".gz")
        scratch = target.with_name(f".{target.name}")
        # As one, and not one after another: readers know from a file's end how long its content is.
        with scratch.open("wb") as output:
            with gzip.GzipFile("", "wb", fileobj=output) as packed:
                if target.exists():
                    with gzip.open(target) as before:
                        shutil.copyfileobj(before, packed, 1 << 20)
                with closed.open("rb") as lines:
                    shutil.copyfileobj(lines, packed, 1 << 20)
            output.flush()
            os.fsync(output.fileno())
        shutil.copystat(closed, scratch)
        scratch.replace(target)
        closed.unlink()  # an interruption just before leaves lines twice, which their reader drops


def remove(folder: Path, days: float) -> None:
    """Remove what was not written for that long."""
    for log in silent(folder, "*.log*", days * 86400):
        log.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    closing = actions.add_parser("close", help="give hours that nobody writes to another name")
    closing.add_argument("--hours", type=float, required=True, help="how long nobody wrote to them")
    actions.add_parser("compress", help="compress the closed hours")
    removing = actions.add_parser("remove", help="remove old logs")
    removing.add_argument("--days", type=float, required=True, help="how long nobody wrote to them")
    for action in actions.choices.values():
        action.add_argument("folder", type=Path, help="folder with a folder of each host")
    arguments = vars(parser.parse_args())
    run: dict[str, Callable[..., None]] = {"close": close, "compress": compress, "remove": remove}
    run[arguments.pop("action")](**arguments)


if __name__ == "__main__":
    main()

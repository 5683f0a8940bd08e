#!/usr/bin/env python3
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies in the queues of this mail host: the ids of a load's mails, or the number of mails each second."""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path

import load_id
import postfix_queue


def ids(directories: list[str]) -> None:
    """Print the id of each mail and of each bounce in the queues. Postfix should be stopped."""
    for directory in directories:
        for mail in postfix_queue.walk(directory, read=True):
            # A recipient who is done with may still get a bounce, which is made when all are.
            for name in filter(None, map(load_id.find, (*mail.waiting, *mail.done))):
                print(name)


def watch(directories: list[str], seconds: float, until: Path | None) -> None:
    """Print time and number of mails each second, without a look at the single files."""
    start = time.time()
    for number in itertools.count():
        time.sleep(max(0.0, start + number - time.time()))
        if number > seconds or (until and until.exists()):
            return
        now = time.time()
        paths = (os.path.join(directory, queue) for directory in directories for queue in postfix_queue.QUEUES)
        print(f"{now:.3f}", sum(1 for path in paths for _entry in postfix_queue.files(path)), flush=True)


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["ids", "watch"])
    parser.add_argument("--queue", nargs="+", default=["/var/spool/postfix"], help="directories of the queues")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long to watch")
    parser.add_argument("--until-file", type=Path, help="watch until this file appears")
    options = parser.parse_args()
    if options.what == "ids":
        ids(options.queue)
    else:
        watch(options.queue, options.seconds, options.until_file)


if __name__ == "__main__":
    main()

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's queue files, read without Postfix's help: postqueue takes long when a queue is deep.

Needs the standard library only, as test programs use it too.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

QUEUES = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")
LOOKS = 4  # at most, at a queue that mails are moved in
# Digits of long queue ids: no vowels, so that no word appears.
DIGITS = {digit: value for value, digit in enumerate("0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz")}
MAX_LENGTH = 1 << 20  # of a record; more means a broken file
SECONDS, MICROSECONDS = 6, 4  # digits of the time in a long queue id


class Mail(NamedTuple):
    """A mail in a queue. The recipients are known if its file was read."""

    queue: str
    size: int
    since: float
    waiting: list[str]
    done: list[str]


def walk(directory: str, read: bool = False) -> Iterator[Mail]:
    """Give the mails of a queue directory, each once, also while Postfix moves them.

    The queues are looked at again until nothing new is found. What a client still sends, and was not told to be
    accepted, is left out.

    :param read: whether to open the files, for the recipients and the exact time.
    """
    seen: set[str] = set()
    for _look in range(LOOKS):
        before = len(seen)
        for queue in QUEUES:
            for entry in files(os.path.join(directory, queue)):
                if entry.name in seen:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    # Postfix makes a file executable when it is complete.
                    if queue in ("maildrop", "incoming") and not status.st_mode & stat.S_IXUSR:
                        continue
                    arrived, waiting, done = envelope(entry.path) if read else (None, [], [])
                except FileNotFoundError:  # delivered, or moved to where the next look finds it
                    continue
                seen.add(entry.name)
                # The time of modification is that of the next retry.
                since = time_of(entry.name) or arrived or status.st_ctime
                yield Mail(queue, status.st_size, since, waiting, done)
        if len(seen) == before:
            return


def files(directory: str) -> Iterator[os.DirEntry[str]]:
    """Give the files of one queue, at any depth, or nothing if there is no such queue."""
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from files(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry


def time_of(queue_id: str) -> float | None:
    """Give the time in a long queue id, None for a short one."""
    # A z separates the time from the inode, which has none.
    split = queue_id.rfind("z") - MICROSECONDS
    if split < SECONDS:
        return None
    return _number(queue_id[:split]) + _number(queue_id[split : split + MICROSECONDS]) / 1e6


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * len(DIGITS) + DIGITS.get(digit, 0)
    return value


def envelope(path: str) -> tuple[float | None, list[str], list[str]]:
    """Give a queue file's time of arrival, the recipients that wait, and those that are done with.

    Of a file that is being written or is broken, gives what there is.

    :raises FileNotFoundError: it was delivered or moved.
    """
    arrived: float | None = None
    recipients: dict[bytes, list[str]] = {b"R": [], b"D": []}
    with contextlib.suppress(ValueError, IndexError):
        for kind, value in records(path):
            if kind == b"T":
                arrived = float(value.split()[0])
            elif kind in recipients:
                recipients[kind].append(value.decode(errors="replace"))
    return arrived, recipients[b"R"], recipients[b"D"]


def records(path: str) -> Iterator[tuple[bytes, bytes]]:
    """Give type and value of each record around the content of a queue file, in Postfix's order.

    :raises ValueError: the file is broken.
    """
    with open(path, "rb") as file:
        content_end = 0
        followed: set[int] = set()
        while True:
            kind, value = _record(file)
            if kind in (b"", b"E"):
                return
            if kind == b"C":  # sizes of the content and of what is ahead of it
                content_end = sum(map(int, value.split()[:2]))
            elif kind == b"M" and content_end:
                file.seek(content_end)
            elif kind == b"p":  # the next record is there: somebody added or replaced one
                target = int(value)
                if target in followed:
                    return
                if target:
                    followed.add(target)
                    file.seek(target)
            elif kind not in b"MNL":
                yield kind, value


def _record(file: BinaryIO) -> tuple[bytes, bytes]:
    """Read a type, a length with seven bits a byte, and a value. The type is empty at the end."""
    kind = file.read(1)
    length = shift = 0
    while length <= MAX_LENGTH and (byte := file.read(1)):
        length |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return kind, file.read(min(length, MAX_LENGTH))
        shift += 7
    return b"", b""

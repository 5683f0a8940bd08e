# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loops over the bytes of a log, compiled by numba: lines to events, events to mails and their attempts.

A text is never copied here: it is a pair of offsets into the buffer, start and end. What a remote server wrote is
between the parentheses at the end of a line, and is not looked into but for ``queued as``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

# What was compiled is kept beside the program, as far as who runs it may write there, or where systemd makes room for
# its services. Else each process compiles anew. Numba reads it when it is imported.
_KEPT = os.environ.setdefault(
    "NUMBA_CACHE_DIR",
    "" if os.access(Path(__file__).parent, os.W_OK) else "/var/cache/mailreport",
)

import numpy as np  # noqa: E402
from numba import njit  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


def _text(value: bytes) -> Bytes:
    return np.frombuffer(value, np.uint8)


# What an event is.
CLIENT, PICKUP, MESSAGE_ID, QUEUED, DELIVERY, REMOVED, REASON, CONNECT, REJECT, UNPARSED = range(1, 11)
# Columns of an event.
START, END, TIME, INSTANCE, INSTANCE_END, SERVICE, SERVICE_END, PID, BODY, FIELDS, KIND = range(11)
EVENT_COLUMNS = 11
# Columns of a mail; each NAME is followed by where it ends, if it is a text. Lines are numbers of events, -1 for none.
ARRIVED, M_CLIENT, M_ADDRESS, M_ID, M_SENDER = 0, 1, 3, 5, 7
M_SIZE, M_RECIPIENTS, M_INSTANCE, M_QUEUE_ID, M_OPEN, M_LAST = 9, 10, 11, 13, 15, 16
M_FIRST_LINE, M_CLIENT_LINE, M_ID_LINE, M_QUEUED_LINE, M_WAITING = 17, 18, 19, 20, 21
MAIL_COLUMNS = 22
# Columns of an attempt.
A_MAIL, A_TIME, A_STATUS_CODE, A_EVENT = 0, 1, 2, 3
A_RECIPIENT, A_ORIGINAL, A_RELAY, A_ADDRESS, A_DSN, A_STATUS, A_RESPONSE, A_REASON, A_NEXT = (
    4,
    6,
    8,
    10,
    12,
    14,
    16,
    18,
    20,
)
A_PORT, A_DELAY, A_BEFORE, A_QUEUE, A_CONNECT, A_SEND = 22, 23, 24, 25, 26, 27
ATTEMPT_COLUMNS = 28
# Forms of a time stamp: local time without a year; with year and zone; with a fraction of the second, too.
LOCAL, PLAIN, EXACT = range(3)
# Codes of a status.
SENT, DEFERRED, BOUNCED, EXPIRED, PROBED = range(5)

SECOND_END = len("2026-11-21T14:05:06")
DAY = 86_400_000_000
LONGEST_DELAY = 2**31 - 1  # ms
LONGEST_LIFE = 10 * DAY  # of a mail that is heard of no more
LONGEST_REASON = DAY // 144  # ten minutes

_TO, _FROM, _CLIENT, _ID, _RESENT_ID = map(
    _text, (b"to=<", b"from=<", b"client=", b"message-id=", b"resent-message-id=")
)
_UID, _REMOVED, _NOQUEUE, _CONNECT = map(_text, (b"uid=", b"removed", b"NOQUEUE", b"connect to "))
_RELAY, _ORIGINAL, _QUEUED_AS, _FORWARDED_AS = map(_text, (b"relay=", b"orig_to=<", b"queued as ", b"forwarded as "))
_DELAY, _DELAYS, _DSN, _STATUS = map(_text, (b"delay", b"delays", b"dsn", b"status"))
_SIZE, _RECIPIENTS, _RETURNED = map(_text, (b", size=", b", nrcpt=", b", status="))
_REASONS = tuple(
    map(_text, (b"host ", b"conversation with ", b"lost connection with ", b"connect to ", b"Cannot start TLS"))
)
_REJECTS = tuple(
    map(
        _text,
        (
            b"reject: ",
            b"milter-reject: ",
            b"reject_warning: ",
            b"discard: ",
            b"milter-discard: ",
            b"hold: ",
            b"milter-hold: ",
        ),
    )
)
_STATUSES = tuple(
    map(_text, (b"sent", b"deferred", b"bounced", b"expired", b"deliverable", b"undeliverable", b"softbounce"))
)
_CODES = np.array([SENT, DEFERRED, BOUNCED, EXPIRED, PROBED, PROBED, DEFERRED])
_MONTHS = _text(b"JanFebMarAprMayJunJulAugSepOctNovDec")
_EXPIRED, _FORCE_EXPIRED = _text(b"expired"), _text(b"force-expired")
# What became of an event.
LOST, KEPT = -1, 1

F = TypeVar("F", bound=Callable[..., Any])


def _jit(function: F) -> F:
    """Compile a function; the result is kept on disk, and threads run it side by side."""
    compiled: Any = njit(cache=not _KEPT or os.access(_KEPT, os.W_OK), nogil=True)(function)
    return compiled


@_jit
def starts_with(buffer: Bytes, at: int, end: int, text: Bytes) -> bool:
    """Tell if the text is there."""
    if at + len(text) > end:
        return False
    for i in range(len(text)):
        if buffer[at + i] != text[i]:
            return False
    return True


@_jit
def find(buffer: Bytes, at: int, end: int, text: Bytes) -> int:
    """Give where the text is first, or -1."""
    first = text[0]
    for i in range(at, end - len(text) + 1):
        if buffer[i] == first and starts_with(buffer, i, end, text):
            return i
    return -1


@_jit
def find_byte(buffer: Bytes, at: int, end: int, byte: int) -> int:
    """Give where the byte is first, or the end."""
    while at < end and buffer[at] != byte:
        at += 1
    return at


@_jit
def line_end(buffer: Bytes, words: NDArray[np.uint64], at: int, end: int) -> int:
    """Give where the line ends, by eight bytes at a time: a zero byte in ``word ^ newlines`` borrows."""
    while at < end and at & 7:
        if buffer[at] == 10:
            return at
        at += 1
    place = at >> 3
    while place < len(words):
        word = words[place] ^ np.uint64(0x0A0A0A0A0A0A0A0A)
        if (word - np.uint64(0x0101010101010101)) & ~word & np.uint64(0x8080808080808080):
            break
        place += 1
    return find_byte(buffer, max(at, place << 3), end, 10)


@_jit
def digit(buffer: Bytes, at: int) -> int:
    """Read one digit; as a byte, sums would be cut."""
    value: Any = np.int64(buffer[at])
    return value - 48


@_jit
def number(buffer: Bytes, at: int, end: int) -> int:
    """Read the digits from here on, as far as they go."""
    value = 0
    while at < end and 48 <= buffer[at] <= 57 and value < 1 << 56:
        value = value * 10 + digit(buffer, at)
        at += 1
    return value


@_jit
def digits(buffer: Bytes, at: int, count: int) -> int:
    """Read so many digits, or give -1."""
    value = 0
    for i in range(at, at + count):
        if not 48 <= buffer[i] <= 57:
            return -1
        value = value * 10 + digit(buffer, i)
    return value


@_jit
def milliseconds(buffer: Bytes, at: int, end: int) -> int:
    """Read seconds such as 0.07."""
    value = number(buffer, at, end) * 1000
    at = find_byte(buffer, at, end, 46) + 1
    scale = 100
    while at < end and 48 <= buffer[at] <= 57 and scale:
        value += digit(buffer, at) * scale
        scale //= 10
        at += 1
    return min(value, LONGEST_DELAY)


@_jit
def days(year: int, month: int, day: int) -> int:
    """Count the days since 1970 in the calendar of today."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


@_jit
def month_of(buffer: Bytes, at: int) -> int:
    """Give the month that is written as three letters, or 0."""
    for month in range(12):
        if starts_with(buffer, at, at + 3, _MONTHS[3 * month : 3 * month + 3]):
            return month + 1
    return 0


@_jit
def turn(buffer: Bytes, at: int, end: int, last_month: int) -> tuple[int, int]:
    """Tell if a new year begins with this line, whose stamp may not say so, and the month from here on."""
    month = month_of(buffer, at) if end - at > 15 and buffer[at + 3] == 32 else 0
    if not month:
        return 0, last_month
    return int(last_month - month > 6), month


@_jit
def count_lines(buffer: Bytes) -> int:
    """Count the lines that have an end."""
    count = 0
    for i in range(len(buffer)):
        count += buffer[i] == 10
    return count


@_jit
def stamp(buffer: Bytes, at: int, end: int, year: int) -> tuple[int, int, int]:
    """Read a time stamp: microseconds since 1970, where it ends (-1: there is none), and its form.

    One in the traditional form has no year, and is in local time.
    """
    time, at, form = whole_second(buffer, at, end, year)
    return fraction_and_zone(buffer, at, end, time) if at >= 0 and form != LOCAL else (time, at, form)


@_jit
def whole_second(buffer: Bytes, at: int, end: int, year: int) -> tuple[int, int, int]:
    """Read a time stamp up to its second, as `stamp`, but in its own zone."""
    if end - at > 20 and buffer[at + 4] == 45 and buffer[at + 10] == 84:  # 2026-11-21T14:05:06
        year, month, day = digits(buffer, at, 4), digits(buffer, at + 5, 2), digits(buffer, at + 8, 2)
        at += 11
        form = PLAIN
    elif end - at > 15 and buffer[at + 3] == 32:  # Nov  1 14:05:06
        month = month_of(buffer, at)
        day = digits(buffer, at + 5, 1) if buffer[at + 4] == 32 else digits(buffer, at + 4, 2)
        at += 7
        form = LOCAL
    else:
        return 0, -1, PLAIN
    hour, minute, second = digits(buffer, at, 2), digits(buffer, at + 3, 2), digits(buffer, at + 6, 2)
    if not (
        1 <= month <= 12 and 1 <= day <= 31 and 0 <= hour < 24 and 0 <= minute < 60 and 0 <= second <= 60 and year >= 0
    ):
        return 0, -1, PLAIN
    return days(year, month, day) * DAY + ((hour * 60 + minute) * 60 + second) * 1_000_000, at + 8, form


@_jit
def fraction_and_zone(buffer: Bytes, at: int, end: int, time: int) -> tuple[int, int, int]:
    """Read what follows the second of a stamp."""
    form = PLAIN
    if at < end and buffer[at] == 46:
        at += 1
        scale = 100_000
        while at < end and 48 <= buffer[at] <= 57:
            time += digit(buffer, at) * scale
            scale //= 10
            at += 1
            form = EXACT
    if at < end and buffer[at] == 90:  # Z
        return time, at + 1, form
    if end - at >= 5 and (buffer[at] == 43 or buffer[at] == 45):
        sign = 1 if buffer[at] == 43 else -1
        colon = 1 if buffer[at + 3] == 58 else 0
        if end - at >= 5 + colon:
            hours, minutes = digits(buffer, at + 1, 2), digits(buffer, at + 3 + colon, 2)
            if hours >= 0 and minutes >= 0:
                return time - sign * (hours * 60 + minutes) * 60_000_000, at + 5 + colon, form
    return 0, -1, PLAIN


@_jit
def word_end(buffer: Bytes, at: int, end: int) -> int:
    """Give where letters and digits end."""
    while at < end and (48 <= buffer[at] <= 57 or 65 <= buffer[at] <= 90 or 97 <= buffer[at] <= 122):
        at += 1
    return at


@_jit
def queue_id_end(buffer: Bytes, at: int, end: int) -> int:
    """Give where the queue id that begins here ends, or -1 if there is none."""
    i = word_end(buffer, at, end)
    if i - at < 5 or i + 2 > end or buffer[i] != 58 or buffer[i + 1] != 32:
        return -1
    return i


@_jit
def kind_of(buffer: Bytes, body: int, end: int) -> tuple[int, int]:
    """Tell what a line says, and where its fields begin: after the queue id. 0 means that it does not matter here."""
    colon = queue_id_end(buffer, body, end)
    if colon < 0:
        if starts_with(buffer, body, end, _CONNECT):
            return CONNECT, body
        return 0, 0
    at = colon + 2
    first = buffer[at] if at < end else 0
    kind = 0
    if first == 116 and starts_with(buffer, at, end, _TO):
        kind = DELIVERY
    elif first == 102 and starts_with(buffer, at, end, _FROM):
        kind = QUEUED
    elif first == 99 and starts_with(buffer, at, end, _CLIENT):
        kind = CLIENT
    elif (first == 109 and starts_with(buffer, at, end, _ID)) or (
        first == 114 and starts_with(buffer, at, end, _RESENT_ID)
    ):
        kind = MESSAGE_ID
    elif first == 117 and starts_with(buffer, at, end, _UID):
        kind = PICKUP
    elif first == 114 and end - at == 7 and starts_with(buffer, at, end, _REMOVED):
        kind = REMOVED
    else:
        for text in _REJECTS:
            if starts_with(buffer, at, end, text):
                return REJECT, at
        for text in _REASONS:
            if starts_with(buffer, at, end, text):
                kind = REASON
                break
    if kind and starts_with(buffer, body, colon, _NOQUEUE):
        kind = 0
    return kind, at


@_jit
def index(buffer: Bytes, year: int) -> tuple[Ints, int, int, int, int]:
    """Find the events of a log that begins in a year, which stamps may not tell.

    Gives the events, how many lines there are, how many of these are not Postfix's own, the worst form of a stamp, and
    the year at the end. A line is ``<stamp> <host> <instance>[/<name>]/<service>[<pid>]: <text>``.
    """
    size = len(buffer)
    words = buffer[: size & ~7].view(np.uint64)
    events = np.empty((count_lines(buffer) + 1, EVENT_COLUMNS), np.int64)
    count = lines = foreign = 0
    worst = EXACT
    last_month = last_time = start = 0
    second = second_time = -1  # where the last stamp with a year begins, and its time up to the second
    while start < size:
        end = line_end(buffer, words, start, size)
        after = end + 1
        if end > start and buffer[end - 1] == 13:
            end -= 1
        if end == start:
            start = after
            continue
        lines += 1
        # Most lines of a busy host are of the same second as the one before.
        if (
            second >= 0
            and end - start > SECOND_END + 1
            and same(buffer, start, start + SECOND_END, second, second + SECOND_END)
        ):
            time, at, form = second_time, start + SECOND_END, PLAIN
        else:
            new_years, last_month = turn(buffer, start, end, last_month)
            year += new_years
            time, at, form = whole_second(buffer, start, end, year)
            if at >= 0 and form == PLAIN:
                second, second_time = start, time
        if at >= 0 and form == PLAIN:
            time, at, form = fraction_and_zone(buffer, at, end, time)
        # A line without a stamp has the time of the one before it.
        last_time = time = time if at >= 0 else last_time
        kind = UNPARSED
        tag = name_end = service = service_end = pid = body = fields = start
        if at >= 0 and at < end and buffer[at] == 32:
            worst = min(worst, form)
            tag = find_byte(buffer, at + 1, end, 32) + 1  # after the host
            name_end = service = 0
            at = tag
            while at < end and buffer[at] != 91 and buffer[at] != 58 and buffer[at] != 32:  # up to [ or : or space
                if buffer[at] == 47:
                    if not service:
                        name_end = at
                    service = at + 1
                at += 1
            service_end = at
            if at < end and buffer[at] == 91:
                pid = number(buffer, at + 1, end)
                at = find_byte(buffer, at, end, 93) + 1
            else:
                pid = 0
            if at + 1 < end and buffer[at] == 58 and buffer[at + 1] == 32:
                body = at + 2
                if (
                    body + 4 < end and buffer[body] == 91 and buffer[body + 1] == 73 and buffer[body + 2] == 68
                ):  # [ID 197553 mail.info]
                    body = find_byte(buffer, body, end, 93) + 2
                if service:
                    kind, fields = kind_of(buffer, body, end)
                else:
                    kind = 0
                    foreign += 1
            elif not service:  # a line of another program, such as the kernel's
                kind = 0
                foreign += 1
        if kind:
            event = events[count]
            event[START], event[END], event[TIME] = start, end, time
            event[INSTANCE], event[INSTANCE_END], event[SERVICE], event[SERVICE_END] = (
                tag,
                name_end,
                service,
                service_end,
            )
            event[PID], event[BODY], event[FIELDS], event[KIND] = pid, body, fields, kind
            count += 1
        start = after
    return events[:count], lines, foreign, worst, year


@_jit
def stamps(buffer: Bytes, year: int) -> tuple[Ints, int, int]:
    """Find all lines: start, end, time, and where the text after the stamp begins; the worst form; the year at the end.

    A line without a stamp belongs to the one before it, and its text begins at its start.
    """
    size = len(buffer)
    lines = np.empty((count_lines(buffer) + 1, 4), np.int64)
    count = last_month = start = 0
    worst = EXACT
    while start < size:
        end = find_byte(buffer, start, size, 10)
        new_years, last_month = turn(buffer, start, end, last_month)
        year += new_years
        time, at, form = stamp(buffer, start, end, year)
        if at >= 0:
            worst = min(worst, form)
        elif count:
            time, at = lines[count - 1, 2], start
        if at >= 0:
            line = lines[count]
            line[0], line[1], line[2], line[3] = start, end, time, at
            count += 1
        start = end + 1
    return lines[:count], worst, year


@_jit
def hashed(buffer: Bytes, at: int, end: int, seed: np.uint64) -> np.uint64:
    """Hash a text (FNV-1a)."""
    value = seed
    for i in range(at, end):
        value = (value ^ np.uint64(buffer[i])) * np.uint64(0x100000001B3)
    return value ^ (value >> np.uint64(29))


@_jit
def same(buffer: Bytes, at: int, end: int, other: int, other_end: int) -> bool:
    """Tell if two texts are equal."""
    if end - at != other_end - other:
        return False
    for i in range(end - at):
        if buffer[at + i] != buffer[other + i]:
            return False
    return True


@_jit
def table_size(count: int) -> int:
    """Give a power of two that is at least twice as big."""
    size = 16
    while size < 2 * count:
        size *= 2
    return size


@_jit
def place_of(events: Ints, reasons: NDArray[np.int32], pid: int) -> int:
    """Give the place of a process in the table of reasons."""
    place = pid & (len(reasons) - 1)
    while reasons[place] >= 0 and events[reasons[place], PID] != pid:
        place = (place + 1) & (len(reasons) - 1)
    return place


@_jit
def address_end(buffer: Bytes, at: int, end: int) -> int:
    """Give where the address that begins here (after ``<``) ends: at ``>,``. A quoted local part may hold anything."""
    if at < end and buffer[at] == 34:
        at += 1
        while at < end and buffer[at] != 34:
            at += 2 if buffer[at] == 92 else 1
    while at + 1 < end and not (buffer[at] == 62 and buffer[at + 1] == 44):
        at += 1
    return at if at + 1 < end else -1


@_jit
def field_end(buffer: Bytes, at: int, end: int) -> int:
    """Give where a field that others follow ends: at a comma and a space, or nearly at the end."""
    while at + 1 < end and not (buffer[at] == 44 and buffer[at + 1] == 32):
        at += 1
    return at


@_jit
def delivery(buffer: Bytes, at: int, end: int, row: Ints) -> bool:
    """Read ``to=<…>, relay=…, delay=…, delays=…, dsn=…, status=… (…)`` into an attempt; tell if it has that form."""
    at += 4
    stop = address_end(buffer, at, end)
    if stop < 0:
        return False
    row[A_RECIPIENT], row[A_RECIPIENT + 1] = at, stop
    at = stop + 3
    if starts_with(buffer, at, end, _ORIGINAL):
        at += 9
        stop = address_end(buffer, at, end)
        if stop < 0:
            return False
        row[A_ORIGINAL], row[A_ORIGINAL + 1] = at, stop
        at = stop + 3
    if not starts_with(buffer, at, end, _RELAY):
        return False
    at += 6
    stop = field_end(buffer, at, end)
    bracket = find_byte(buffer, at, stop, 91)
    row[A_RELAY], row[A_RELAY + 1] = at, bracket
    if bracket < stop:
        close = find_byte(buffer, bracket, stop, 93)
        row[A_ADDRESS], row[A_ADDRESS + 1] = bracket + 1, close
        if close + 1 < stop and buffer[close + 1] == 58:
            row[A_PORT] = min(number(buffer, close + 2, stop), 65535)
    at = stop + 2
    while at < end:
        equals = find_byte(buffer, at, end, 61)
        if same_text(buffer, at, equals, _STATUS):
            return status(buffer, equals + 1, end, row)
        stop = field_end(buffer, equals, end)
        if same_text(buffer, at, equals, _DELAY):
            row[A_DELAY] = milliseconds(buffer, equals + 1, stop)
        elif same_text(buffer, at, equals, _DELAYS):
            part = equals + 1
            for column in range(A_BEFORE, A_SEND + 1):
                slash = find_byte(buffer, part, stop, 47)
                row[column] = milliseconds(buffer, part, slash)
                part = min(slash + 1, stop)
        elif same_text(buffer, at, equals, _DSN):
            row[A_DSN], row[A_DSN + 1] = equals + 1, stop
        at = stop + 2
    return False


@_jit
def same_text(buffer: Bytes, at: int, end: int, text: Bytes) -> bool:
    """Tell if that is the whole text."""
    return end - at == len(text) and starts_with(buffer, at, end, text)


@_jit
def status(buffer: Bytes, at: int, end: int, row: Ints) -> bool:
    """Read ``sent (250 …)``, the end of the line."""
    stop = find_byte(buffer, at, end, 32)
    code = -1
    for i in range(len(_STATUSES)):
        text = _STATUSES[i]
        if stop - at == len(text):
            equal = True
            for k in range(len(text)):
                equal = equal and (buffer[at + k] | 32) == text[k]
            if equal:
                code = _CODES[i]
    if code < 0:
        return False
    row[A_STATUS_CODE], row[A_STATUS], row[A_STATUS + 1] = code, at, stop
    at = stop + 1
    if at < end and buffer[at] == 40:
        at += 1
        if buffer[end - 1] == 41:  # a very long line was cut
            end -= 1
    row[A_RESPONSE], row[A_RESPONSE + 1] = at, max(at, end)
    # The last place counts: a content filter tells of its own server's answer at the end.
    found, word = -1, _QUEUED_AS
    while True:
        next_one = find(buffer, max(at, found + 1), end, _QUEUED_AS)
        if next_one < 0:
            break
        found = next_one
    if found < 0 and starts_with(buffer, at, end, _FORWARDED_AS):
        found, word = at, _FORWARDED_AS
    if found >= 0:
        begin = found + len(word)
        stop = word_end(buffer, begin, end)
        if stop - begin >= 5:
            row[A_NEXT], row[A_NEXT + 1] = begin, stop
    return True


@_jit
def follow(buffer: Bytes, events: Ints, carried: int, exact: bool) -> tuple[Ints, Ints, NDArray[np.int8]]:
    """Go through the events in their order; give the mails, the attempts, and what became of each event.

    Events before the offset ``carried`` were there in the hour before: they are remembered. What became of an event is
    LOST for a line of no form that is known, KEPT for one that still matters to the next hour.
    """
    total = len(events)
    # Room for all that there may be. It costs memory as far as it is written, so that no more of it is set to 0.
    mails = np.empty((total + 1, MAIL_COLUMNS), np.int64)
    # Each deferral may end as expired.
    attempts = np.empty((2 * total + 1, ATTEMPT_COLUMNS), np.int64)
    # The last mail of each queue id; recipients of a mail that wait, by their hash; lines that made attempts. 32 bits
    # are enough to number the lines of an hour, and so small that more of the tables stays in the processor's cache.
    size = table_size(total)
    mask = np.uint64(size - 1)
    slots = np.full(size, -1, np.int32)
    waits = np.full(size, -1, np.int32)
    seen = np.full(size, -1, np.int32)
    next_waiting = np.empty(2 * total + 1, np.int32)
    reasons = np.full(size, -1, np.int32)  # the last reason of each process, by its number
    reason_of = np.full(total + 1, -1, np.int32)  # the mail that it belongs to
    result = np.zeros(total, np.int8)
    deferral = np.zeros(total, np.bool_)
    mail_count = attempt_count = 0
    basis = np.uint64(0xCBF29CE484222325)

    for number_of_event in range(total):
        event = events[number_of_event]
        kind, start, end, at, time = event[KIND], event[START], event[END], event[FIELDS], event[TIME]
        if kind == UNPARSED:
            result[number_of_event] = LOST
            continue
        if kind == REJECT:
            continue
        if kind == CONNECT:
            reasons[place_of(events, reasons, event[PID])] = number_of_event
            continue

        # The mail that the line is about.
        body, colon = event[BODY], at - 2
        key = hashed(buffer, body, colon, hashed(buffer, event[INSTANCE], event[INSTANCE_END], basis))
        slot = key & mask
        mail = -1
        while slots[slot] >= 0:
            known = mails[slots[slot]]
            if same(buffer, body, colon, known[M_QUEUE_ID], known[M_QUEUE_ID + 1]) and same(
                buffer, event[INSTANCE], event[INSTANCE_END], known[M_INSTANCE], known[M_INSTANCE + 1]
            ):
                mail = slots[slot]
                break
            slot = (slot + np.uint64(1)) & mask
        if mail >= 0:
            # A queue id is used again after its mail was removed, or when a client has a new mail. The log's transport
            # may repeat a line: that is not a new mail.
            line = -1
            if kind == CLIENT or kind == PICKUP:
                line = mails[mail, M_CLIENT_LINE]
            elif kind == MESSAGE_ID:
                line = mails[mail, M_ID_LINE]
            elif kind == QUEUED:
                line = mails[mail, M_QUEUED_LINE]
            if line >= 0 and same(buffer, start, end, events[line, START], events[line, END]):
                continue
            again = (kind == CLIENT or kind == PICKUP) and mails[mail, M_CLIENT_LINE] >= 0
            late = kind == REMOVED or kind == REASON or (kind == DELIVERY and exact)
            if again or not (mails[mail, M_OPEN] or late):
                mails[mail, M_OPEN] = 0
                mail = -1
        if mail < 0:
            if kind == REMOVED:
                continue
            mail = mail_count
            mail_count += 1
            slots[slot] = mail
            new = mails[mail]
            new[:] = 0
            new[ARRIVED], new[M_OPEN], new[M_FIRST_LINE] = time, 1, number_of_event
            new[M_QUEUE_ID], new[M_QUEUE_ID + 1] = body, colon
            new[M_INSTANCE], new[M_INSTANCE + 1] = event[INSTANCE], event[INSTANCE_END]
            new[M_CLIENT_LINE] = new[M_ID_LINE] = new[M_QUEUED_LINE] = new[M_WAITING] = -1
        this = mails[mail]
        this[M_LAST] = time

        if kind == CLIENT:
            at += len(_CLIENT)
            stop = find_byte(buffer, at, end, 91)
            this[M_CLIENT], this[M_CLIENT + 1] = at, stop
            this[M_ADDRESS], this[M_ADDRESS + 1] = min(stop + 1, end), find_byte(buffer, stop, end, 93)
            this[M_CLIENT_LINE] = number_of_event
        elif kind == PICKUP:
            this[M_CLIENT_LINE] = number_of_event
        elif kind == MESSAGE_ID:
            if buffer[at] == 109 or this[M_ID_LINE] < 0:
                at = find_byte(buffer, at, end, 61) + 1
                this[M_ID], this[M_ID + 1], this[M_ID_LINE] = at, end, number_of_event
        elif kind == QUEUED:
            at += len(_FROM)
            stop = address_end(buffer, at, end)
            word = stop + 1 + len(_RETURNED)
            if stop < 0:
                result[number_of_event] = LOST
            elif starts_with(buffer, stop + 1, end, _SIZE):
                this[M_SENDER], this[M_SENDER + 1], this[M_QUEUED_LINE] = at, stop, number_of_event
                this[M_SIZE] = number(buffer, stop + 1 + len(_SIZE), end)
                stop = find(buffer, stop, end, _RECIPIENTS)
                if stop > 0:
                    this[M_RECIPIENTS] = number(buffer, stop + len(_RECIPIENTS), end)
            elif starts_with(buffer, word, end, _EXPIRED) or starts_with(buffer, word, end, _FORCE_EXPIRED):
                # Not told for each recipient: those who waited now wait no more.
                entry = this[M_WAITING]
                while entry >= 0:
                    if result[attempts[entry, A_EVENT]] == KEPT:
                        result[attempts[entry, A_EVENT]] = 0
                        row = attempts[attempt_count]
                        row[:] = attempts[entry]
                        row[A_TIME], row[A_EVENT], row[A_STATUS_CODE] = time, number_of_event, EXPIRED
                        row[A_DELAY] = min(row[A_DELAY] + (time - attempts[entry, A_TIME]) // 1000, LONGEST_DELAY)
                        attempt_count += 1
                    entry = next_waiting[entry]
                this[M_WAITING] = -1
                if this[M_QUEUED_LINE] < 0:
                    this[M_SENDER], this[M_SENDER + 1] = at, stop
            else:
                result[number_of_event] = LOST
        elif kind == REMOVED:
            this[M_OPEN] = 0
        elif kind == REASON:
            reasons[place_of(events, reasons, event[PID])] = number_of_event
            reason_of[number_of_event] = mail
        elif kind == DELIVERY:
            row = attempts[attempt_count]
            row[:] = 0
            if not delivery(buffer, at, end, row):
                result[number_of_event] = LOST
                continue
            if exact:
                slot = (key ^ (np.uint64(time) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20))) & mask
                repeated = False
                while seen[slot] >= 0:
                    if same(buffer, start, end, events[seen[slot], START], events[seen[slot], END]):
                        repeated = True
                        break
                    slot = (slot + np.uint64(1)) & mask
                if repeated:
                    continue
                seen[slot] = number_of_event
            row[A_MAIL], row[A_TIME], row[A_EVENT] = mail, time, number_of_event
            reason = reasons[place_of(events, reasons, event[PID])]
            if reason >= 0:
                if reason_of[reason] < 0:
                    reason_of[reason] = mail
                if reason_of[reason] == mail:
                    row[A_REASON], row[A_REASON + 1] = events[reason, FIELDS], events[reason, END]
            # Remember the last deferral of each recipient, until there is another end.
            key = hashed(buffer, row[A_RECIPIENT], row[A_RECIPIENT + 1], basis ^ np.uint64(mail + 1))
            slot = key & mask
            while waits[slot] >= 0:
                known = attempts[waits[slot]]
                if known[A_MAIL] == mail and same(
                    buffer, row[A_RECIPIENT], row[A_RECIPIENT + 1], known[A_RECIPIENT], known[A_RECIPIENT + 1]
                ):
                    break
                slot = (slot + np.uint64(1)) & mask
            old = waits[slot]
            if old >= 0:
                result[attempts[old, A_EVENT]] = 0
            if row[A_STATUS_CODE] == DEFERRED:
                result[number_of_event] = KEPT
                deferral[number_of_event] = True
                next_waiting[attempt_count] = this[M_WAITING]
                this[M_WAITING] = attempt_count
                waits[slot] = attempt_count
            attempt_count += 1

    # What the next hour must know: the lines of mails that are open, and the last reasons of processes.
    last = events[total - 1, TIME] if total else 0
    for mail in range(mail_count):
        this = mails[mail]
        age = last - this[M_LAST]
        if this[M_OPEN] and age < (LONGEST_LIFE if this[M_QUEUED_LINE] >= 0 else DAY):
            for column in range(M_FIRST_LINE, M_QUEUED_LINE + 1):
                # A first line that is a deferral's would count as one that waits.
                if this[column] >= 0 and not deferral[this[column]] and result[this[column]] != LOST:
                    result[this[column]] = KEPT
        else:
            entry = this[M_WAITING]
            while entry >= 0:
                result[attempts[entry, A_EVENT]] = 0
                entry = next_waiting[entry]
    for number_of_event in range(total - 1, -1, -1):
        event = events[number_of_event]
        if event[TIME] < last - LONGEST_REASON:
            break
        # One without a queue id that was used belongs to a mail that the next hour could not tell.
        if event[KIND] == REASON or (event[KIND] == CONNECT and reason_of[number_of_event] < 0):
            if reasons[place_of(events, reasons, event[PID])] == number_of_event:
                result[number_of_event] = KEPT
    return mails[:mail_count], attempts[:attempt_count], result


@_jit
def domains(buffer: Bytes, rows: Ints, column: int) -> Ints:
    """Give where the domain of each address begins and ends."""
    found = np.empty((len(rows), 2), np.int64)
    for i in range(len(rows)):
        end = rows[i, column + 1]
        at = end
        while at > rows[i, column] and buffer[at - 1] != 64:
            at -= 1
        found[i, 0] = at if at > rows[i, column] else end
        found[i, 1] = end
    return found


@_jit
def gather(buffer: Bytes, rows: Ints, columns: Ints, lower: NDArray[np.bool_]) -> tuple[NDArray[np.int32], Ints, Bytes]:
    """Copy columns of texts, row by row as the texts of a row are close together.

    :param lower: which of the columns to write in lower case.
    :return: where each text of each column begins in its column's bytes, where the bytes of each column begin in all
        bytes, and these.
    """
    count = len(rows)
    offsets = np.empty((len(columns), count + 1), np.int32)
    offsets[:, 0] = 0
    for i in range(count):
        for c in range(len(columns)):
            offsets[c, i + 1] = offsets[c, i] + rows[i, columns[c] + 1] - rows[i, columns[c]]
    begins = np.zeros(len(columns) + 1, np.int64)
    for c in range(len(columns)):
        begins[c + 1] = begins[c] + offsets[c, count]
    data = np.empty(begins[-1], np.uint8)
    for i in range(count):
        for c in range(len(columns)):
            begin = rows[i, columns[c]]
            at = begins[c] + offsets[c, i]
            size = rows[i, columns[c] + 1] - begin
            if lower[c]:
                for k in range(size):
                    byte = buffer[begin + k]
                    data[at + k] = byte | 32 if 65 <= byte <= 90 else byte
            else:
                for k in range(size):
                    data[at + k] = buffer[begin + k]
    return offsets, begins, data


@_jit
def lines(buffer: Bytes, events: Ints) -> Bytes:
    """Copy the lines of events, each with an end."""
    total = 0
    for i in range(len(events)):
        total += events[i, END] - events[i, START] + 1
    data = np.empty(total, np.uint8)
    at = 0
    for i in range(len(events)):
        size = events[i, END] - events[i, START]
        data[at : at + size] = buffer[events[i, START] : events[i, END]]
        data[at + size] = 10
        at += size + 1
    return data

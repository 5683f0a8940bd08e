# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's log to tables: attempts, rejects, and what is not understood.

The log is bytes and stays bytes: remote servers write parts of it. Lines that matter to mails which are not done at its
end are given back, to be put before the lines of the next hour.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mailreport import kernels as k
from mailreport import lake

ROWS = 8192  # made into a table at a time, to need less memory
_LOOPBACK = r"^(127\.|::1$)"
_SECOND = 1_000_000
# Columns of texts: where they are, and whether they are written in lower case.
_OF_MAIL = {
    "instance": (k.M_INSTANCE, False),
    "queue_id": (k.M_QUEUE_ID, False),
    "message_id": (k.M_ID, False),
    "client": (k.M_CLIENT, False),
    "client_address": (k.M_ADDRESS, False),
    "sender": (k.M_SENDER, True),
}
_OF_ATTEMPT = {
    "recipient": (k.A_RECIPIENT, True),
    "original_recipient": (k.A_ORIGINAL, False),
    "relay": (k.A_RELAY, False),
    "relay_address": (k.A_ADDRESS, False),
    "dsn": (k.A_DSN, False),
    "status": (k.A_STATUS, True),
    "response": (k.A_RESPONSE, False),
    "reason": (k.A_REASON, False),
    "next_queue_id": (k.A_NEXT, False),
}
_CODES = pa.array(["delivered", "deferred", "bounced", "expired", "probe"])
# Each part is what Postfix itself writes, between texts of others.
_REJECT = re.compile(
    rb"(?P<action>[a-z_-]+): (?P<stage>\S+) (?:from (?P<client>[^\[ ]*)\[(?P<client_address>[^\]]*)\]\S* ?|.*? from "
    rb"(?P<client2>[^\[ ]*)\[(?P<client_address2>[^\]]*)\];? ?|)(?P<response>.*?)"
    rb"(?:;? ?from=<(?P<sender>.*?)>,? to=<(?P<recipient>.*?)>,? proto=\S*(?: helo=<(?P<helo>[^>]*)>)?(?P<rest>.*))?",
    re.DOTALL,
)
_DSN = re.compile(rb"(?:\d{3} )?([245]\.\d{1,3}\.\d{1,3})(?: |$)")


class Parsed(NamedTuple):
    """What a log says. Rows are in the order of the log."""

    attempts: pa.Table
    rejects: pa.Table
    unparsed: pa.Table
    carried: bytes  # lines for the next hour
    lines: int
    foreign: int  # lines of other programs than Postfix's


def parse(
    log: bytes | np.ndarray[tuple[int], np.dtype[np.uint8]],
    host: str,
    handover: Collection[str] = (),
    carried: int = 0,
    year: int | None = None,
    zone: tzinfo = UTC,
) -> Parsed:
    """Read the log of a host.

    ``handover`` are names and addresses of relays that are hosts of our own. So many bytes at the start are ``carried``
    from the hour before. Time stamps in the traditional form are local times in ``zone``, and the last is of ``year``.
    """
    buffer = np.frombuffer(bytearray(log), np.uint8) if isinstance(log, bytes) else log
    year = year or datetime.now(zone).year
    events, lines, foreign, form, last_year = k.index(buffer, year)
    if last_year > year and form == k.LOCAL:
        events = k.index(buffer, 2 * year - last_year)[0]
    if form == k.LOCAL:
        events[:, k.TIME] = to_utc(events[:, k.TIME], zone)
    times = events[:, k.TIME]
    # The transport may repeat lines, and bring others in between.
    if form == k.EXACT and len(times) and (times[1:] < times[:-1]).any():
        events = events[np.argsort(times, kind="stable")]
    mails, attempts, became = k.follow(buffer, events, carried, form == k.EXACT)
    new = events[:, k.START] >= carried
    attempts = attempts[new[attempts[:, k.A_EVENT]]]
    parts = [
        _attempts(buffer, attempts[at : at + ROWS], mails, host, frozenset(handover))
        for at in range(0, len(attempts), ROWS)
    ]
    return Parsed(
        pa.concat_tables(parts) if parts else lake.ATTEMPTS.empty_table(),
        _rejects(buffer, events[(events[:, k.KIND] == k.REJECT) & new], host),
        _unparsed(buffer, events, (became == k.LOST) & new, host),
        k.lines(buffer, events[became == k.KEPT]).tobytes(),
        lines,
        foreign,
    )


def to_utc(times: k.Ints, zone: tzinfo) -> k.Ints:
    """Make local times to UTC; the hour that comes twice a year is the second one after time went back."""
    if not len(times):
        return times
    back = np.flatnonzero(times[1:] < times[:-1] - 1800 * _SECOND)
    after = np.arange(len(times)) > (back[0] if len(back) else len(times))
    quarters, which = np.unique(times // (900 * _SECOND) * 2 + after, return_inverse=True)
    offsets = [
        datetime.fromtimestamp(int(quarter) // 2 * 900, UTC).replace(tzinfo=zone, fold=int(quarter) % 2).utcoffset()
        for quarter in quarters
    ]
    return times - np.array([int(offset.total_seconds()) * _SECOND if offset else 0 for offset in offsets])[which]


def _line(buffer: k.Bytes, event: k.Ints) -> bytes:
    return buffer[event[k.START] : event[k.END]].tobytes()


def _texts(buffer: k.Bytes, rows: k.Ints, columns: Mapping[str, tuple[int, bool]]) -> dict[str, pa.Array]:
    """Give columns of texts. What is not UTF-8 is written as its bytes' numbers."""
    places, lower = zip(*columns.values(), strict=True)
    offsets, begins, data = k.gather(buffer, rows, np.array(places), np.array(lower))
    return {
        name: _column(offsets[number], data[begins[number] : begins[number + 1]]) for number, name in enumerate(columns)
    }


def _column(offsets: np.ndarray[tuple[int], np.dtype[np.int32]], data: k.Bytes) -> pa.Array:
    count, buffers = len(offsets) - 1, (pa.py_buffer(offsets), pa.py_buffer(data))
    if not (data & 0x80).any():
        return pa.StringArray.from_buffers(count, *buffers)
    texts = pa.BinaryArray.from_buffers(pa.binary(), count, [None, *buffers])
    return pa.array([text.decode(errors="backslashreplace") for text in texts.to_pylist()], pa.string())


def _times(times: k.Ints) -> pa.Array:
    return pa.array(np.ascontiguousarray(times), pa.int64()).cast(pa.timestamp("us"))


def _attempts(buffer: k.Bytes, rows: k.Ints, mails: k.Ints, host: str, handover: frozenset[str]) -> pa.Table:
    """Make the table of some attempts."""
    mail = mails[rows[:, k.A_MAIL]]
    codes = rows[:, k.A_STATUS_CODE]
    texts = _texts(buffer, mail, _OF_MAIL) | _texts(buffer, rows, _OF_ATTEMPT)
    domains = _texts(buffer, k.domains(buffer, rows, k.A_RECIPIENT), {"recipient_domain": (0, True)})
    relay, address = texts["relay"], texts["relay_address"]
    response, following = texts["response"], texts["next_queue_id"]
    expired = pa.array(codes == k.EXPIRED)
    own = pa.array(sorted(handover), pa.string())
    # A content filter on this host gives the mail back, under a new queue id.
    filtered = pc.and_(pc.match_substring_regex(address, _LOOPBACK), pc.not_equal(following, ""))
    ours = pc.or_(pc.is_in(pc.utf8_lower(relay), own), pc.is_in(address, own))
    handed = pc.or_(pc.or_(ours, filtered), pc.starts_with(response, "forwarded as "))
    columns = {
        **texts,
        **domains,
        "time": _times(rows[:, k.A_TIME]),
        "host": pa.repeat(host, len(rows)),
        "arrived": _times(mail[:, k.ARRIVED] // _SECOND * _SECOND),
        "status": pc.if_else(expired, "expired", texts["status"]),
        "outcome": pc.if_else(pc.and_(pa.array(codes == k.SENT), handed), "handed_over", _CODES.take(pa.array(codes))),
        "size": pa.array(mail[:, k.M_SIZE]),
    }
    numbers = {
        "relay_port": k.A_PORT,
        "delay_ms": k.A_DELAY,
        "delay_before_ms": k.A_BEFORE,
        "delay_queue_ms": k.A_QUEUE,
        "delay_connect_ms": k.A_CONNECT,
        "delay_send_ms": k.A_SEND,
    }
    columns |= {name: pa.array(rows[:, column].astype(np.int32)) for name, column in numbers.items()}
    columns["recipients"] = pa.array(mail[:, k.M_RECIPIENTS].astype(np.int32))
    return pa.table([columns[name] for name in lake.ATTEMPTS.names], lake.ATTEMPTS)


def _rejects(buffer: k.Bytes, events: k.Ints, host: str) -> pa.Table:
    """Make the table of the mails that were not taken."""
    rows = []
    for event in events:
        text = buffer[event[k.FIELDS] : event[k.END]].tobytes()
        # Where the form is not known, all of it is the response.
        match = _REJECT.fullmatch(text)
        parts = {name: value or b"" for name, value in match.groupdict().items()} if match else {}
        response = parts["response"] + parts["rest"] if match else text
        dsn = _DSN.match(response)
        queue_id = buffer[event[k.BODY] : event[k.FIELDS] - 2].tobytes()
        recipient = parts.get("recipient", b"").lower()
        row = {
            "instance": buffer[event[k.INSTANCE] : event[k.INSTANCE_END]].tobytes(),
            "service": buffer[event[k.SERVICE] : event[k.SERVICE_END]].tobytes(),
            "queue_id": b"" if queue_id == b"NOQUEUE" else queue_id,
            "action": parts.get("action", text.partition(b":")[0]),
            "stage": parts.get("stage", b""),
            "client": parts.get("client") or parts.get("client2", b""),
            "client_address": parts.get("client_address") or parts.get("client_address2", b""),
            "sender": parts.get("sender", b"").lower(),
            "recipient": recipient,
            "recipient_domain": recipient.rpartition(b"@")[2] if b"@" in recipient else b"",
            "helo": parts.get("helo", b""),
            "dsn": dsn[1] if dsn else b"",
            "response": response,
        }
        rows.append({name: value.decode(errors="backslashreplace") for name, value in row.items()} | {"host": host})
    table = pa.Table.from_pylist(rows, pa.schema([field for field in lake.REJECTS if field.name != "time"]))
    return table.add_column(0, lake.REJECTS.field("time"), _times(events[:, k.TIME]))


def _unparsed(
    buffer: k.Bytes, events: k.Ints, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]], host: str
) -> pa.Table:
    """Make the table of the lines that no rule knows."""
    times = events[chosen, k.TIME]
    lines = [_line(buffer, event).decode(errors="backslashreplace") for event in events[chosen]]
    return pa.table([_times(times), pa.repeat(host, len(lines)), pa.array(lines, pa.string())], lake.UNPARSED)

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the raw lines of a mail."""

from __future__ import annotations

import gzip
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from mailreport import raw
from mailreport.questions import Message

ARRIVED = datetime(2026, 11, 21, 13, 59, 58)
RETRIED = datetime(2026, 11, 21, 17, 30, 0, 5)


def message(host: str = "mx-01", queue_id: str = "4F2A", arrived: datetime = ARRIVED, *times: datetime) -> Message:
    """Give a mail."""
    return Message(host, "postfix", queue_id, arrived, "", "", "", "", 0, 1, times or (arrived, RETRIED))


def line(time: datetime, text: str, service: str = "smtp") -> bytes:
    """Give a line of a log."""
    return f"{time.isoformat(timespec='microseconds')}+00:00 mx-01 postfix/{service}[12]: {text}\n".encode()


def write(logs: Path, hour: str, *lines: bytes, host: str = "mx-01") -> None:
    """Write a host's hour."""
    path = logs / host / hour
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(lines)) if hour.endswith(".gz") else b"".join(lines))


def test_lines_of_all_hours_with_attempts_are_given(tmp_path: Path) -> None:
    own = [
        line(ARRIVED + timedelta(microseconds=1), "4F2A: client=a[192.0.2.1]", "smtpd"),
        line(ARRIVED + timedelta(seconds=3), "4F2A: to=<x@y.test>, status=deferred (450)"),
        line(RETRIED, "warning: 4F2A: queue file has gone"),
        line(RETRIED, "4F2A: to=<x@y.test>, status=sent (250 ok)"),
        line(RETRIED, "4F2A: removed", "qmgr"),
    ]
    write(tmp_path, "2026-11-21T13.log.gz", own[0])
    write(tmp_path, "2026-11-21T14.log", line(ARRIVED, "4F2AB: removed"), own[1])
    write(tmp_path, "2026-11-21T15.log", line(ARRIVED, "4F2A: not looked at"))
    write(tmp_path, "2026-11-21T17.log", *own[2:])
    write(tmp_path, "2026-11-21T17.log", line(RETRIED, "4F2A: of another host"), host="mx-02")
    expected = [one.decode().rstrip() for one in own]
    assert list(raw.lines(tmp_path, message())) == expected


def test_lines_of_another_mail_are_not_given(tmp_path: Path) -> None:
    time = ARRIVED.replace(minute=30)
    own = [line(time, "4F2A: from=<a@b.test>"), line(time + timedelta(seconds=2), "4F2A: removed", "qmgr")]
    write(
        tmp_path,
        "2026-11-21T13.log",
        line(time - timedelta(seconds=9), "4F2A: removed", "qmgr"),
        own[0],
        # The text is a remote server's, who can write anything.
        line(time, "9999: to=<x@y.test>, status=bounced (550 oh]: 4F2A: removed)"),
        line(time, "9999: to=<x@y.test>, status=sent (250 2.0.0 Ok: queued as 4F2A)"),
        own[1],
        line(time + timedelta(seconds=5), "4F2A: from=<next@b.test>", "qmgr"),
    )
    assert list(raw.lines(tmp_path, message("mx-01", "4F2A", time))) == [one.decode().rstrip() for one in own]


def test_times_of_other_zones_and_forms_are_understood(tmp_path: Path) -> None:
    write(
        tmp_path,
        "2026-11-21T13.log",
        b"2026-11-21T14:59:58.5+01:00 mx-01 postfix/smtpd[1]: 4F2A: in another zone\n",
        b"2026-11-21T13:59:58.5+01:00 mx-01 postfix/smtpd[1]: 4F2A: an hour before\n",
        b"Nov 21 13:59:59 mx-01 postfix/smtpd[1]: 4F2A: without a year\n",
    )
    found = list(raw.lines(tmp_path, message()))
    assert [one.rpartition("4F2A: ")[2] for one in found] == ["in another zone", "without a year"]


def test_any_bytes_are_shown(tmp_path: Path) -> None:
    write(
        tmp_path,
        "2026-11-21T13.log",
        line(ARRIVED, "4F2A: x")[:-1] + b"\xff\x00\x1b[m\xc3\xa9\r\n",
        line(ARRIVED, "4F2A: end")[:-1],
    )
    found = list(raw.lines(tmp_path, message()))
    assert found[0].endswith("4F2A: x\\xff\x00\x1b[mé")
    assert found[1].endswith("4F2A: end")


def test_there_is_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "LINES", 3)
    write(tmp_path, "2026-11-21T13.log", *(line(ARRIVED, f"4F2A: {number}") for number in range(9)))
    assert len(list(raw.lines(tmp_path, message()))) == 3


def test_nothing_is_there(tmp_path: Path) -> None:
    assert list(raw.lines(tmp_path, message())) == []
    write(tmp_path, "2026-11-21T13.log", line(ARRIVED, "9999: other"))
    assert list(raw.lines(tmp_path, message(queue_id="4F.A"))) == []

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parser: made logs whose rows are known, hostile texts, hours, repeated and shuffled lines, and real logs."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import string
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from mailreport import ingest, lake, postfix
from mailreport.settings import Settings

Row = tuple[Any, ...]
LOGS = Path(__file__).resolve().parents[4] / "shared/data/postfix-logs"
START = datetime(2026, 11, 21, 14, 0)
FALLBACK = "fallback.vip.site.test"


def line(second: float, service: str, text: str, pid: int = 1, tag: str = "postfix") -> bytes:
    """Write a line of a log as the receiver does."""
    stamp = (START + timedelta(seconds=second)).isoformat(timespec="microseconds")
    return f"{stamp}+00:00 mx-01 {tag}/{service}[{pid}]: ".encode() + text.encode(errors="surrogateescape") + b"\n"


def rows(log: bytes, **options) -> list[dict[str, Any]]:
    """Parse, and check that nothing is left over."""
    parsed = postfix.parse(log, "mx-01", {FALLBACK}, **options)
    assert parsed.unparsed.num_rows == 0, parsed.unparsed.to_pylist()
    assert parsed.attempts.schema == lake.ATTEMPTS
    return parsed.attempts.to_pylist()


def delivery(recipient: str = "b@c.test", status: str = "sent (250 ok)", relay: str = "mx.c.test[192.0.2.1]:25") -> str:
    """Write the text of a delivery."""
    dsn = {"s": "2.0.0", "d": "4.4.1", "b": "5.1.1"}[status[0].lower()]
    return f"to=<{recipient}>, relay={relay}, delay=1.5, delays=0.1/0.2/0.3/0.9, dsn={dsn}, status={status}"


MAIL = [
    line(0, "smtpd", "4Q1: client=client.a.test[198.51.100.7], sasl_username=x".replace("4Q1", "4cLyhn0dVBz1")),
    line(0.1, "cleanup", "4cLyhn0dVBz1: message-id=<1@a.test>"),
    line(0.2, "qmgr", "4cLyhn0dVBz1: from=<A@a.test>, size=512, nrcpt=2 (queue active)"),
]
QUEUE_ID = "4cLyhn0dVBz1"


def test_a_mail_with_all_that_is_known() -> None:
    log = [*MAIL, line(1.5, "smtp", f"{QUEUE_ID}: {delivery('B@C.test')}"), line(1.6, "qmgr", f"{QUEUE_ID}: removed")]
    assert rows(b"".join(log)) == [
        {
            "time": START + timedelta(seconds=1.5),
            "host": "mx-01",
            "instance": "postfix",
            "queue_id": QUEUE_ID,
            "arrived": START,
            "message_id": "<1@a.test>",
            "client": "client.a.test",
            "client_address": "198.51.100.7",
            "sender": "a@a.test",
            "recipient": "b@c.test",
            "recipient_domain": "c.test",
            "original_recipient": "",
            "relay": "mx.c.test",
            "relay_address": "192.0.2.1",
            "relay_port": 25,
            "delay_ms": 1500,
            "delay_before_ms": 100,
            "delay_queue_ms": 200,
            "delay_connect_ms": 300,
            "delay_send_ms": 900,
            "dsn": "2.0.0",
            "status": "sent",
            "outcome": "delivered",
            "response": "250 ok",
            "reason": "",
            "next_queue_id": "",
            "size": 512,
            "recipients": 2,
        }
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (delivery(relay="none", status="deferred (connect to x: timed out)"), {"relay": "none", "relay_address": "", "outcome": "deferred"}),
        (delivery(relay="mx[2001:db8::1]:2525"), {"relay_address": "2001:db8::1", "relay_port": 2525}),
        (delivery(relay="mx.c.test[private/lmtp]"), {"relay_address": "private/lmtp", "relay_port": 0}),
        (delivery(status="bounced (host said: 550 no)"), {"outcome": "bounced", "response": "host said: 550 no"}),
        (delivery(status="SOFTBOUNCE (450 no)"), {"outcome": "deferred", "status": "softbounce"}),
        (delivery(status="deliverable (250 ok)"), {"outcome": "probe"}),
        (delivery(relay=f"{FALLBACK}[192.0.2.9]:25", status="sent (250 2.0.0 Ok: queued as 4cLyjp3Y2Sz9)"),
         {"outcome": "handed_over", "next_queue_id": "4cLyjp3Y2Sz9"}),
        (delivery(relay=f"{FALLBACK}[192.0.2.9]:25", status="deferred (timed out)"), {"outcome": "deferred"}),
        (delivery(relay="127.0.0.1[127.0.0.1]:10025", status="sent (250 from MTA(): 250 Ok: queued as ABCDEF1)"),
         {"outcome": "handed_over", "next_queue_id": "ABCDEF1"}),
        (delivery(relay="127.0.0.1[127.0.0.1]:24", status="sent (250 2.0.0 Saved)"), {"outcome": "delivered"}),
        (delivery(relay="local", status="sent (forwarded as ABCDEF1)"), {"outcome": "handed_over", "next_queue_id": "ABCDEF1"}),
        (delivery('"x>, relay=y, status=sent (no)"@c.test'), {"recipient": '"x>, relay=y, status=sent (no)"@c.test', "recipient_domain": "c.test"}),
        (delivery(status="sent (250 to=<evil@x>, status=bounced (550) queued as FAKE1 queued as REAL2)"),
         {"recipient": "b@c.test", "outcome": "delivered", "next_queue_id": "REAL2"}),
        (delivery(status="deferred (a) b (c))"), {"response": "a) b (c)"}),
        (delivery().replace(">, relay", ">, orig_to=<old@c.test>, relay"), {"original_recipient": "old@c.test"}),
        (delivery().replace("delay=1.5", "conn_use=7, delay=420316"), {"delay_ms": 420_316_000}),
        (delivery().replace("delay=1.5", "delay=99999999"), {"delay_ms": 2**31 - 1}),
        (delivery().replace(", dsn=2.0.0", "").replace(", delays=0.1/0.2/0.3/0.9", ""), {"dsn": "", "delay_before_ms": 0, "delay_ms": 1500}),
        (delivery("root"), {"recipient": "root", "recipient_domain": ""}),
        (delivery(""), {"recipient": "", "recipient_domain": ""}),
        (delivery(status="bounced (550 caf\xe9 \x01\t)"), {"response": "550 caf\xe9 \x01\t"}),
        (delivery(status="bounced (550 \udcff\udcfe)"), {"response": r"550 \xff\xfe"}),
    ],
)  # fmt: skip
def test_forms_of_a_delivery(text, wanted) -> None:
    row = rows(line(1, "smtp", f"{QUEUE_ID}: {text}"))[0]
    assert {name: row[name] for name in wanted} == wanted


def test_what_is_not_understood_is_kept() -> None:
    log = line(1, "smtp", f"{QUEUE_ID}: to=<a@b>, relay=x, status=exploded (ok)") + b"no stamp at all\n"
    parsed = postfix.parse(log, "mx-01")
    assert parsed.attempts.num_rows == 0
    assert parsed.unparsed.column("line").to_pylist() == [text.decode() for text in log.splitlines()]
    assert set(parsed.unparsed.column("time").to_pylist()) == {START + timedelta(seconds=1)}


def test_reason_for_the_fallback() -> None:
    log = [
        *MAIL,
        line(1, "smtp", "connect to mx1.c.test[192.0.2.1]:25: Connection timed out", pid=7),
        line(1, "smtp", "connect to other.test[192.0.2.3]:25: Connection refused", pid=8),
        line(2, "smtp", f"{QUEUE_ID}: {delivery('b@c.test', relay=FALLBACK)}", pid=7),
        line(2, "smtp", f"{QUEUE_ID}: {delivery('b2@c.test', relay=FALLBACK)}", pid=7),
        line(3, "smtp", "4cLyhn0dVBz2: host mx2.d.test[192.0.2.2] said: 450 4.2.0 later (in reply to RCPT)", pid=7),
        line(4, "smtp", f"4cLyhn0dVBz2: {delivery('d@d.test', relay=FALLBACK)}", pid=7),
        line(5, "smtp", f"4cLyhn0dVBz3: {delivery('e@d.test', relay=FALLBACK)}", pid=7),
    ]
    assert [row["reason"] for row in rows(b"".join(log))] == [
        "connect to mx1.c.test[192.0.2.1]:25: Connection timed out",
        "connect to mx1.c.test[192.0.2.1]:25: Connection timed out",
        "host mx2.d.test[192.0.2.2] said: 450 4.2.0 later (in reply to RCPT)",
        "",
    ]


def test_expiry_ends_those_who_wait() -> None:
    log = [
        *MAIL,
        line(1, "smtp", f"{QUEUE_ID}: {delivery('a@c.test', 'deferred (450 first)')}"),
        line(1, "smtp", f"{QUEUE_ID}: {delivery('b@c.test', 'deferred (450 b)')}"),
        line(2, "smtp", f"{QUEUE_ID}: {delivery('a@c.test', 'deferred (450 second)')}"),
        line(3, "smtp", f"{QUEUE_ID}: {delivery('b@c.test')}"),
        line(9, "qmgr", f"{QUEUE_ID}: from=<A@a.test>, status=expired, returned to sender"),
        line(9, "qmgr", f"{QUEUE_ID}: removed"),
    ]
    last = rows(b"".join(log))[-1]
    assert len(rows(b"".join(log))) == 5
    wanted = {
        "recipient": "a@c.test",
        "outcome": "expired",
        "status": "expired",
        "response": "450 second",
        "delay_ms": 8500,
    }
    assert {name: last[name] for name in wanted} == wanted
    assert last["time"] == START + timedelta(seconds=9)


def test_queue_ids_are_used_again() -> None:
    log = b""
    for number in range(3):
        log += line(number * 10, "smtpd", f"ABCDE1: client=c{number}[192.0.2.1]")
        log += line(number * 10 + 1, "qmgr", f"ABCDE1: from=<{number}@a>, size=1, nrcpt=1 (queue active)")
        log += line(number * 10 + 2, "smtp", f"ABCDE1: {delivery()}")
        if number != 1:  # a line that was lost
            log += line(number * 10 + 3, "qmgr", "ABCDE1: removed")
    found = [(row["client"], row["sender"], row["arrived"].second) for row in rows(log)]
    assert found == [("c0", "0@a", 0), ("c1", "1@a", 10), ("c2", "2@a", 20)]


def test_instances_with_the_same_queue_id() -> None:
    log = b"".join(
        line(0, "qmgr", f"ABCDE1: from=<{tag}@a>, size=1, nrcpt=1 (queue active)", tag=tag)
        + line(1, "smtp", f"ABCDE1: {delivery()}", tag=tag)
        for tag in ("postfix", "postfix-out", "postfix-in/lb")
    )
    found = [(row["instance"], row["sender"]) for row in rows(log)]
    assert found == [("postfix", "postfix@a"), ("postfix-out", "postfix-out@a"), ("postfix-in", "postfix-in/lb@a")]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "NOQUEUE: reject: RCPT from bad.test[192.0.2.6]: 554 5.7.1 <b@c.test>: Relay access denied; from=<A@a.test> to=<B@c.test> proto=ESMTP helo=<x>",
            ("", "reject", "RCPT", "bad.test", "192.0.2.6", "a@a.test", "b@c.test", "x", "5.7.1", "554 5.7.1 <b@c.test>: Relay access denied"),
        ),
        (
            "NOQUEUE: reject: RCPT from [192.0.2.6]:43: 550 5.7.1 Service unavailable; client [192.0.2.6] blocked using z; "
            "from=<a@a>, to=<b@c.test>, proto=ESMTP, helo=<x>",
            ("", "reject", "RCPT", "", "192.0.2.6", "a@a", "b@c.test", "x", "5.7.1", "550 5.7.1 Service unavailable; client [192.0.2.6] blocked using z"),
        ),
        (
            "ABCDE1: milter-reject: END-OF-MESSAGE from bad.test[192.0.2.6]: 4.7.1 Service unavailable; from=<a@a> to=<b@c.test> proto=ESMTP helo=<x>",
            ("ABCDE1", "milter-reject", "END-OF-MESSAGE", "bad.test", "192.0.2.6", "a@a", "b@c.test", "x", "4.7.1", "4.7.1 Service unavailable"),
        ),
        (
            "ABCDE1: reject: header Subject: from me; from bad.test[192.0.2.6]; from=<a@a> to=<b@c.test> proto=ESMTP helo=<x>: 5.7.1 spam",
            ("ABCDE1", "reject", "header", "bad.test", "192.0.2.6", "a@a", "b@c.test", "x", "", ": 5.7.1 spam"),
        ),
        ("NOQUEUE: reject: strange", ("", "reject", "", "", "", "", "", "", "", "reject: strange")),
    ],
)  # fmt: skip
def test_rejects(text, wanted) -> None:
    parsed = postfix.parse(line(1, "smtpd", text), "mx-01")
    row = parsed.rejects.to_pylist()[0]
    names = (
        "queue_id",
        "action",
        "stage",
        "client",
        "client_address",
        "sender",
        "recipient",
        "helo",
        "dsn",
        "response",
    )
    assert tuple(row[name] for name in names) == wanted
    assert (row["service"], row["time"]) == ("smtpd", START + timedelta(seconds=1))


def traditional(stamp: str) -> bytes:
    return f"{stamp} mx-01 postfix/smtp[1]: {QUEUE_ID}: {delivery()}\n".encode()


@pytest.mark.parametrize(
    ("stamps", "wanted"),
    [
        (["Dec 31 23:59:59", "Jan  1 00:00:01"], ["2025-12-31T22:59:59", "2025-12-31T23:00:01"]),
        (["Feb 29 12:00:00"], ["2024-02-29T11:00:00"]),
        (["Oct 25 02:30:00", "Oct 25 02:59:59", "Oct 25 02:00:00", "Oct 25 03:00:00"],
         ["2026-10-25T00:30:00", "2026-10-25T00:59:59", "2026-10-25T01:00:00", "2026-10-25T02:00:00"]),
    ],
)  # fmt: skip
def test_stamps_without_year_or_zone(stamps, wanted) -> None:
    year = 2024 if "Feb" in stamps[0] else 2026
    found = rows(b"".join(map(traditional, stamps)), year=year, zone=ZoneInfo("Europe/Prague"))
    assert [row["time"].isoformat() for row in found] == wanted


def test_offsets_are_mixed() -> None:
    stamps = [
        "2026-11-21T14:00:00.5+00:00",
        "2026-11-21T15:00:00.6+01:00",
        "2026-11-21T09:30:00.7-0430",
        "2026-11-21T14:00:00.8Z",
    ]
    found = rows(b"".join(map(traditional, stamps)))
    assert [row["time"] for row in found] == [START + timedelta(seconds=second) for second in (0.5, 0.6, 0.7, 0.8)]


TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\n\r"), max_size=30).map(
    lambda text: (
        text + random.Random(len(text)).choice(["", " status=sent (x", " to=<", ">, relay=", "queued as X", "(("])
    )
)
LOCAL = st.one_of(
    st.text(string.ascii_letters + "+-._", min_size=1, max_size=8),
    TEXT.map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
)


@st.composite
def logs(draw) -> tuple[list[bytes], list[Row]]:
    """Make a log, and the rows that are in it: queue id, sender, recipient, outcome, response, arrival in seconds."""
    lines: list[bytes] = []
    wanted: list[Row] = []
    clock = 0.0

    def add(service: str, text: str, pid: int = 1) -> float:
        nonlocal clock
        clock += draw(st.sampled_from([0.000001, 0.5, 30]))
        lines.append(line(clock, service, text, pid))
        return clock

    for number in range(draw(st.integers(1, 6))):
        queue_id = draw(st.sampled_from(["ABCDE1", "ABCDE2", "4cLyhn0dVBz1"]))
        sender = draw(LOCAL).lower() + "@a.test"
        arrived = int(add("smtpd", f"{queue_id}: client=c[192.0.2.{number}]"))
        add("cleanup", f"{queue_id}: message-id=<{number}@a.test>")
        add("qmgr", f"{queue_id}: from=<{sender}>, size={number}, nrcpt=1 (queue active)")
        waiting: dict[str, str] = {}
        for recipient in draw(st.lists(LOCAL.map(str.lower), min_size=1, max_size=3, unique=True)):
            for status in draw(st.lists(st.sampled_from(["deferred", "sent", "bounced"]), max_size=3)):
                response = draw(TEXT)
                add("smtp", f"{queue_id}: {delivery(recipient + '@c.test', f'{status} ({response})')}", pid=number)
                outcome = {"sent": "delivered"}.get(status, status)
                wanted.append((queue_id, sender, recipient + "@c.test", outcome, response, arrived))
                waiting.pop(recipient, None)
                if status == "deferred":
                    waiting[recipient] = response
        if draw(st.booleans()):
            add("qmgr", f"{queue_id}: from=<{sender}>, status=expired, returned to sender")
            for recipient, response in waiting.items():
                wanted.append((queue_id, sender, recipient + "@c.test", "expired", response, arrived))
        add("smtpd", "disconnect from c[192.0.2.1] quit=1 commands=1")
        if draw(st.booleans()):
            add("qmgr", f"{queue_id}: removed")
    return lines, sorted(wanted)


def found_in(log: bytes, carried: bytes = b"") -> tuple[list[Row], bytes]:
    parsed = postfix.parse(carried + log, "mx-01", carried=len(carried))
    assert parsed.unparsed.num_rows == 0
    names = ("queue_id", "sender", "recipient", "outcome", "response")
    return [
        (*(row[name] for name in names), int((row["arrived"] - START).total_seconds()))
        for row in parsed.attempts.to_pylist()
    ], parsed.carried


@examples(max_examples=150, deadline=None)
@given(logs())
def test_made_logs_give_the_rows_they_were_made_of(made) -> None:
    lines, wanted = made
    assert sorted(found_in(b"".join(lines))[0]) == wanted


@examples(max_examples=100, deadline=None)
@given(logs(), st.data())
def test_hours_end_anywhere(made, data) -> None:
    lines, wanted = made
    found, carried = [], b""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lines)), max_size=4)))
    for begin, end in zip([0, *cuts], [*cuts, len(lines)], strict=True):
        rows_of_hour, carried = found_in(b"".join(lines[begin:end]), carried)
        found += rows_of_hour
    assert sorted(found) == wanted


@examples(max_examples=100, deadline=None)
@given(logs(), st.randoms(use_true_random=False))
def test_lines_are_repeated_and_late(made, chance) -> None:
    lines, wanted = made
    again = lines + chance.sample(lines, chance.randint(0, len(lines)))
    moved = sorted(range(len(again)), key=lambda place: place + chance.uniform(0, 8))
    assert sorted(found_in(b"".join(again[place] for place in moved))[0]) == wanted


@examples(max_examples=200, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from(
        [b"", MAIL[0], b"Nov  1 00:00:00 h postfix/smtp[1]: ", b"2026-11-21T14:00:00.1Z h postfix/qmgr[9]: ABCDE1: "]
    ),
)
def test_any_bytes(noise, before) -> None:
    """Nothing is lost: each line is an event that was used, or counted, or kept."""
    log = before + noise
    parsed = postfix.parse(log, "mx-01")
    assert parsed.lines == sum(1 for text in log.split(b"\n") if text.strip(b"\r") or len(text) > 1)
    for table in (parsed.attempts, parsed.rejects, parsed.unparsed):
        table.validate(full=True)


REAL = sorted(
    path.relative_to(LOGS).as_posix()
    for path in LOGS.rglob("*")
    if path.is_file() and path.suffix not in {".md", ".yaml"}
)


@pytest.fixture(params=REAL or ["none"])
def real(request) -> bytes:
    if not REAL:
        pytest.skip(f"{LOGS} has no logs")
    # One log is a template.
    return (LOGS / request.param).read_bytes().replace(b"%(day)s ", b"Nov  1 ")


@pytest.mark.skipif(not shutil.which("pflogsumm"), reason="pflogsumm is not installed")
def test_real_logs_count_as_with_pflogsumm(real, tmp_path, request) -> None:
    (tmp_path / "log").write_bytes(real)
    output = subprocess.run(["pflogsumm", tmp_path / "log"], capture_output=True, check=True).stdout.decode("latin-1")

    def count(what: str) -> int:
        match = re.search(rf"^\s+(\d+[kmg]?)\s+{what}(?:\s+\((\d+)\s+deferrals\))?", output, re.MULTILINE)
        assert match, output[:600]
        return int(match[2] or match[1])

    statuses = postfix.parse(real, "h", year=2026).attempts.column("status").to_pylist()
    ours = (statuses.count("sent"), statuses.count("deferred"), statuses.count("bounced"))
    theirs = (count("delivered") + count("forwarded"), count("deferred"), count("bounced"))
    print(f"{request.node.callspec.id:60} sent, deferred, bounced: {ours}, pflogsumm {theirs}")  # shown by -rP
    assert ours == theirs


def test_no_delivery_in_real_logs_is_unparsed(real) -> None:
    parsed = postfix.parse(real, "h", year=2026)
    lines = parsed.unparsed.column("line").to_pylist()
    assert not [text for text in lines if re.search(r"postfix\S*\[\d+\]: \w+: to=<.*status=", text)]
    found = re.findall(rb"\]: \w+: to=<.*, status=(?:sent|deferred|bounced|deliverable|undeliverable|SOFTBOUNCE)", real)
    outcomes = parsed.attempts.column("outcome").to_pylist()
    assert len(outcomes) - outcomes.count("expired") == len(found)


def test_real_logs_in_hours_are_the_same(real, tmp_path) -> None:
    (tmp_path / "log").write_bytes(real)
    settings = Settings(logs=tmp_path / "logs", lake=tmp_path / "lake")
    hours = ingest.bring_in(settings, [tmp_path / "log"], "h", 2026)
    starts = [datetime.strptime(path.stem, "%Y-%m-%dT%H") for path in hours]
    if any(not timedelta() < after - before < timedelta(days=9) for before, after in itertools.pairwise(starts)):
        pytest.skip("its lines are not in the order of time, or so far apart that open mails are forgotten")
    whole = postfix.parse(b"".join(path.read_bytes() for path in hours), "h")
    found, carried = [], b""
    for path in hours:
        part = postfix.parse(carried + path.read_bytes(), "h", carried=len(carried))
        carried = part.carried
        found += part.attempts.to_pylist()
    assert found == whole.attempts.to_pylist()
    assert len(found) == postfix.parse(real, "h", year=2026).attempts.num_rows

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the questions, against what Python finds in the same rows."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mailreport import rollup
from mailreport.engines import DuckDB, EngineError
from mailreport.lake import ATTEMPTS, BUCKET, OUTCOMES, ROLLUPS, Lake, Lakes
from mailreport.questions import (
    ATTEMPT_KEY,
    EPOCH,
    LIFETIME,
    REJECT_KEY,
    Freshness,
    Page,
    Questions,
    Search,
    arrival,
)

BEGIN, END = datetime(2026, 11, 19), datetime(2026, 11, 22)
Row = dict[str, Any]


@pytest.fixture(scope="module", params=["a lake", "lakes of two log hosts"])
def questions(small: Any, halves: Lakes, request: pytest.FixtureRequest) -> Questions:
    """Questions to the small lake, in one or in two."""
    lake = small.lake if request.param == "a lake" else halves
    return Questions(lake, DuckDB(lake.root))


def newest_first(rows: Sequence[Row], key: Sequence[str] = ATTEMPT_KEY) -> list[Row]:
    """Give rows in the order of a search."""
    return sorted(sorted(rows, key=lambda row: [row[name] for name in key]), key=lambda row: row["time"], reverse=True)


def lower(row: Row, *names: str) -> list[str]:
    """Give some of a row's texts in lower case."""
    return [row[name].lower() for name in names]


@pytest.mark.parametrize(
    ("asked", "matches"),
    [
        ({}, lambda row: True),
        ({"recipient": "ANN6@Slow.test"}, lambda row: row["recipient"] == "ann6@slow.test"),
        ({"recipient": "@example.com"}, lambda row: row["recipient"].endswith("@example.com")),
        ({"recipient": "per%*"}, lambda row: row["recipient"].startswith("per%")),
        ({"recipient": "under_score1*"}, lambda row: row["recipient"].startswith("under_score1")),
        ({"sender": "news@site.test"}, lambda row: row["sender"] == "news@site.test"),
        ({"sender": "@site.test"}, lambda row: row["sender"].endswith("@site.test")),
        ({"sender": "o'h*"}, lambda row: row["sender"].startswith("o'h")),
        ({"queue_id": "7A0"}, lambda row: "7A0" in (row["queue_id"], row["next_queue_id"])),
        ({"message_id": "<42@mail.test>"}, lambda row: row["message_id"] == "42@mail.test"),
        ({"client": "relay.EXAMPLE.net"}, lambda row: row["client"] == "Relay.Example.NET"),
        ({"client": ".example.net"}, lambda row: row["client"] == "Relay.Example.NET"),
        ({"client": "192.0.2.1"}, lambda row: row["client_address"] == "192.0.2.1"),
        ({"relay": ".slow.test"}, lambda row: row["relay"] == "mx.slow.test"),
        ({"relay": "203.0.113.9"}, lambda row: row["relay"] == "fallback.vip.site.test"),
        ({"host": "sink-01"}, lambda row: row["host"] == "sink-01"),
        ({"outcome": "expired"}, lambda row: row["outcome"] == "expired"),
        ({"dsn": "4.7.1"}, lambda row: row["dsn"] == "4.7.1"),
        ({"dsn": "4.7"}, lambda row: False),
        ({"dsn": "4."}, lambda row: row["dsn"].startswith("4.")),
        ({"text": "GREYLISTED"}, lambda row: any("greylisted" in text for text in lower(row, "response", "reason"))),
        ({"text": "\\' both"}, lambda row: any("\\' both" in text for text in lower(row, "response", "reason"))),
        ({"text": "%"}, lambda row: any("%" in text for text in lower(row, "response", "reason"))),
        (
            {"recipient": "@x{y}.test", "outcome": "deferred", "host": "fallback-01", "sender": "ann@other.test"},
            lambda row: (
                (row["recipient_domain"], row["outcome"], row["sender"]) == ("x{y}.test", "deferred", "ann@other.test")
            ),
        ),
    ],
)
def test_search_finds_exactly_what_matches(
    questions: Questions, small: Any, asked: Mapping[str, str], matches: Callable[[Row], bool]
) -> None:
    search = Search(BEGIN, END, **asked)
    expected = newest_first([row for row in small.attempts if matches(row)])
    assert questions.search(search, len(small.attempts) + 1) == Page(expected, "")
    counts = Counter(row["outcome"] for row in expected)
    assert questions.count(search) == {outcome: counts[outcome] for outcome in OUTCOMES}
    if asked.get("dsn") != "4.7":
        assert expected


def test_end_is_not_included(questions: Questions, small: Any) -> None:
    first, last = small.attempts[10]["time"], small.attempts[10]["time"] + timedelta(microseconds=1)
    assert [row["time"] for row in questions.search(Search(first, last)).rows] == [first]
    assert questions.search(Search(first - timedelta(seconds=1), first)).rows == newest_first(
        [row for row in small.attempts if first - timedelta(seconds=1) <= row["time"] < first]
    )


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pages_hold_each_row_once(questions: Questions, small: Any, size: int) -> None:
    for ask, all_rows, key in (
        (questions.search, small.attempts, ATTEMPT_KEY),
        (questions.rejects, small.rejects, REJECT_KEY),
    ):
        search = Search(datetime(2026, 11, 20), datetime(2026, 11, 20, 0, 20))
        expected = newest_first([row for row in all_rows if search.begin <= row["time"] < search.end], key)
        rows: list[Row] = []
        after = ""
        while True:
            page = ask(search, size, after)
            rows += page.rows
            after = page.after
            if not after:
                break
            assert len(page.rows) == size
        assert rows == expected
        assert rows


def test_pages_part_rows_of_the_same_time(tmp_path: Path) -> None:
    time = datetime(2026, 11, 20, 1)
    empty = {name: 0 if pa.types.is_integer(ATTEMPTS.field(name).type) else "" for name in ATTEMPTS.names}
    rows = [
        {**empty, "time": time, "arrived": time, "host": host, "queue_id": queue_id, "recipient": recipient}
        for host in "ab"
        for queue_id in ("1", "2")
        for recipient in ("x", "y")
    ]
    lake = Lake(tmp_path)
    write(lake, rows)
    questions = Questions(lake, DuckDB(tmp_path))
    search = Search(time, time + BUCKET)
    found, after = questions.search(search, 3)
    while after:
        page, after = questions.search(search, 3, after)
        found += page
    assert found == rows


def write(lake: Lake, rows: list[Row]) -> None:
    """Write attempts of one hour."""
    path = lake.hour("attempts", rows[0]["time"])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, ATTEMPTS), path)


@pytest.mark.parametrize("after", ["x", "bm90IGpzb24=", "WzFd", "e30=", "WyIyMDI2IiwxLDIsMyw0LDUsNiw3LDhd", "é"])
def test_a_page_that_nobody_gave_is_refused(questions: Questions, after: str) -> None:
    with pytest.raises(ValueError, match="search again"):
        questions.search(Search(BEGIN, END), 10, after)


def test_rejects_are_found(questions: Questions, small: Any) -> None:
    search = Search(BEGIN, END, recipient="@example.com", sender="s4@other.test", text="redirect")
    assert questions.rejects(search) == Page([], "")
    search = Search(BEGIN, END, recipient="@example.com", text="GREYLISTED", client="192.0.2.1")
    expected = [
        row
        for row in small.rejects
        if row["recipient_domain"] == "example.com"
        and "Greylisted" in row["response"]
        and row["client_address"] == "192.0.2.1"
    ]
    assert expected
    assert questions.rejects(search).rows == newest_first(expected, REJECT_KEY)
    assert questions.rejects(Search(BEGIN, END, outcome="bounced")) == Page([], "")


def mail_of(row: Row) -> tuple[str, str, str, datetime]:
    """Give what tells the mail of a row."""
    return row["host"], row["instance"], row["queue_id"], row["arrived"]


def test_journey_goes_to_all_hosts_from_any_of_them(questions: Questions, small: Any) -> None:
    hosts: dict[str, set[str]] = {}
    for row in small.attempts:
        hosts.setdefault(row["message_id"], set()).add(row["host"])
    through_all = [name for name, its in hosts.items() if len(its) == 3][:12]
    for message_id in through_all:
        expected = [row for row in small.attempts if row["message_id"] == message_id]
        expected.sort(key=lambda row: [row[name] for name in ATTEMPT_KEY])
        recipients = {row["recipient"] for row in expected}
        for mail in {mail_of(row) for row in expected}:
            journey = questions.journey(*mail)
            its = {row["recipient"] for row in expected if mail_of(row) == mail}
            assert journey.attempts == [row for row in expected if row["recipient"] in its]
            assert journey.complete
            assert sorted(message[:4] for message in journey.messages) == sorted(
                {mail_of(row) for row in journey.attempts}
            )
        for recipient in recipients:
            mail = next(mail_of(row) for row in expected if row["recipient"] == recipient)
            found = questions.journey(*mail, recipient=recipient.upper()).attempts
            assert found == [row for row in expected if row["recipient"] == recipient]


def test_journey_does_not_mix_mails_of_one_queue_id(questions: Questions, small: Any) -> None:
    mails: dict[str, set[Any]] = {}
    for row in small.attempts:
        if row["host"] == "mx-02":
            mails.setdefault(row["queue_id"], set()).add(mail_of(row))
    often = max(mails.values(), key=len)
    assert len(often) > 5
    for mail in often:
        shown = {row["message_id"] for row in questions.journey(*mail).attempts}
        assert shown == {row["message_id"] for row in small.attempts if mail_of(row) == mail}


def test_journey_follows_queue_ids_where_message_ids_differ(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    time = datetime(2026, 11, 20, 1, 0, 5)
    empty = {name: 0 if pa.types.is_integer(ATTEMPTS.field(name).type) else "" for name in ATTEMPTS.names}

    def row(host: str, queue_id: str, seconds: int, after: int, next_queue_id: str = "") -> Row:
        arrived = time + timedelta(seconds=seconds)
        made = {"time": arrived + timedelta(seconds=after), "host": host, "queue_id": queue_id, "arrived": arrived}
        return {**empty, **made, "recipient": "a@b.test", "next_queue_id": next_queue_id, "delay_send_ms": 1000}

    one = row("mx-01", "A1", 0, 1, "F1")
    two = row("fallback-01", "F1", 1, 300, "S1")
    three = row("sink-01", "S1", 301, 0)
    # The same queue ids an hour later are other mails.
    others = [row("mx-01", "A1", 3000, 1, "F2"), row("fallback-01", "F1", 3000, 0)]
    write(lake, [one, two, three, *others])
    questions = Questions(lake, DuckDB(tmp_path))
    for start in (one, two, three):
        assert questions.journey(*mail_of(start)).attempts == [one, two, three]
    assert [message.host for message in questions.journey(*mail_of(two)).messages] == [
        "mx-01",
        "fallback-01",
        "sink-01",
    ]
    assert questions.journey(*mail_of(others[0])).attempts == [others[0]]
    assert questions.journey("mx-01", "", "A1", time + timedelta(seconds=1)).attempts == []


def test_series_counts_what_is_in_the_rows(questions: Questions, small: Any) -> None:
    for step in (BUCKET, timedelta(hours=1), timedelta(hours=6), timedelta(days=1)):
        for by, key, column in (
            ("all", "", None),
            ("domain", "slow.test", "recipient_domain"),
            ("host", "mx-01", "host"),
        ):
            points = questions.series(BEGIN, END, by, key, step)
            expected = {BEGIN + number * step: Counter[str]() for number in range((END - BEGIN) // step)}
            for row in small.attempts:
                if column is None or row[column] == key:
                    expected[row["time"] - (row["time"] - EPOCH) % step][row["outcome"]] += 1
            assert [(point.begin, Counter(point.outcomes)) for point in points] == [
                (begin, Counter(dict.fromkeys(OUTCOMES, 0)) | counts) for begin, counts in expected.items()
            ]


def test_delays_are_upper_limits_of_the_percentiles(questions: Questions, small: Any) -> None:
    delays = sorted(row["delay_ms"] for row in small.attempts if row["outcome"] == "delivered")
    total = questions.total(BEGIN, END)
    for share, limit in ((50, total.p50_ms), (90, total.p90_ms), (99, total.p99_ms)):
        exact = delays[-(-share * len(delays) // 100) - 1]
        assert limit is not None
        assert exact <= limit <= exact * 2**0.5 + 1
    (point,) = questions.series(datetime(2026, 11, 20), datetime(2026, 11, 21), step=timedelta(days=1))
    day = questions.total(datetime(2026, 11, 20), datetime(2026, 11, 21))
    assert point == day
    assert questions.total(datetime(2027, 1, 1), datetime(2027, 1, 2)).p50_ms is None


def test_steps_are_chosen_for_the_range(questions: Questions) -> None:
    for span, step in (
        (timedelta(hours=24), 5),
        (timedelta(days=3), 15),
        (timedelta(days=30), 180),
        (timedelta(days=900), 1440),
    ):
        points = questions.series(BEGIN, BEGIN + span)
        assert points[1].begin - points[0].begin == timedelta(minutes=step)
    assert questions.series(BEGIN, BEGIN) == []


def test_top_counts_what_is_in_the_rows(questions: Questions, small: Any) -> None:
    for dimension, column in (("domain", "recipient_domain"), ("relay", "relay"), ("host", "host")):
        total = Counter(row[column] for row in small.attempts)
        deferred = Counter(row[column] for row in small.attempts if row["outcome"] == "deferred")
        expected = sorted(
            ((key, number, total[key]) for key, number in deferred.items()), key=lambda top: (-top[1], top[0])
        )
        assert questions.top(BEGIN, END, dimension, "deferred", 3) == expected[:3]
        assert sum(top.attempts for top in questions.top(BEGIN, END, dimension, limit=1000)) == len(small.attempts)
    failed = sum(row["outcome"] in ("deferred", "bounced", "expired") for row in small.attempts)
    assert sum(top.attempts for top in questions.top(BEGIN, END, "error", limit=1000)) == failed
    with pytest.raises(ValueError, match="none of all, domain"):
        questions.top(BEGIN, END, "key; DROP TABLE")


@pytest.mark.parametrize("now", [datetime(2026, 11, 21, 3), datetime(2026, 11, 24)], ids=["just now", "days ago"])
def test_newest_attempt(questions: Questions, small: Any, now: datetime) -> None:
    assert questions.newest(now) == max(row["time"] for row in small.attempts)
    assert questions.newest(datetime(2027, 1, 1)) is None


def test_most_counts_all_outcomes(questions: Questions, small: Any) -> None:
    counts = Counter((row["recipient_domain"], row["outcome"]) for row in small.attempts)
    total = Counter(row["recipient_domain"] for row in small.attempts)
    expected = {
        domain: {outcome: counts[domain, outcome] for outcome in OUTCOMES}
        for domain in sorted(total, key=lambda domain: (-total[domain], domain))[:3]
    }
    found = questions.most(BEGIN, END, "domain", 3)
    assert found == expected
    assert list(found) == list(expected)


def test_unparsed_lines_are_counted_and_shown(questions: Questions, small: Any) -> None:
    found = questions.unparsed(BEGIN, END)
    assert found.hosts == Counter(row["host"] for row in small.unparsed)
    assert found.samples == newest_first(small.unparsed, ("time", "host", "line"))[:20]


def test_freshness_is_the_newest_of_each_host(questions: Questions, small: Any) -> None:
    newest = {host: max(row["time"] for row in small.attempts if row["host"] == host) for host in ("mx-01", "sink-01")}
    fresh = questions.freshness(datetime(2026, 11, 21, 2, 30))
    assert fresh.hour == datetime(2026, 11, 21, 1)
    assert {host: fresh.hosts[host] for host in newest} == newest
    # Days later, five minutes are exact enough.
    later = questions.freshness(datetime(2026, 11, 25))
    assert {host: later.hosts[host] for host in newest} == {
        host: time - (time - EPOCH) % BUCKET for host, time in newest.items()
    }
    assert questions.freshness(datetime(2026, 12, 25)) == Freshness({}, datetime(2026, 11, 21, 1))


def test_arrival_is_read_from_long_queue_ids() -> None:
    assert arrival("4jWppb34ydzGklT") == datetime(2026, 11, 21, 10, 48, 39, 435273)
    assert [arrival(name) for name in ("", "3F1A2B", "4jWppb34yd", "zzzzzzzzzzzz", "4jWppb34ydz-klT")] == [None] * 5


def test_a_long_queue_id_narrows_the_search(small: Any) -> None:
    class Asked:
        name = "none"

        def __init__(self) -> None:
            self.tables: list[Any] = []

        def rows(self, sql: str, tables: Mapping[str, Any], values: Mapping[str, Any]) -> list[Row]:
            self.tables.append((tables, values["begin"], values["end"]))
            return []

    asked = Asked()
    time = arrival("4jWppb34ydzGklT")
    assert time
    lake = Lake(small.lake.root)
    Questions(lake, asked).search(Search(datetime(2026, 1, 1), datetime(2027, 1, 1), queue_id="4jWppb34ydzGklT"))
    assert asked.tables == []  # nothing of that time is there
    Questions(lake, asked).count(Search(BEGIN, END, queue_id="7A0"))
    assert asked.tables[0][1:] == (BEGIN, END)
    assert timedelta(days=5) < LIFETIME


def test_a_file_that_goes_away_meanwhile_is_looked_for_again(small: Any, tmp_path: Path) -> None:
    """Its rows are in another file then: hours in a day's, parts in an hour's."""
    shutil.copytree(small.lake.root, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    folder = lake.day("attempts", datetime(2026, 11, 20).date())

    class Late(DuckDB):
        compacted = False

        def rows(self, sql: str, tables: Mapping[str, Sequence[Path]], values: Mapping[str, Any]) -> list[Row]:
            if not self.compacted:
                self.compacted = True
                hours = sorted(map(str, folder.glob("hour=*.parquet")))
                duckdb.read_parquet(hours, hive_partitioning=False).write_parquet(str(folder / "day.parquet"))
                for hour in hours:
                    Path(hour).unlink()
            return super().rows(sql, tables, values)

    engine = Late(lake.root)
    assert sum(Questions(lake, engine).count(Search(BEGIN, END)).values()) == len(small.attempts)
    assert engine.compacted


def test_an_engine_that_leaves_out_what_is_gone_is_asked_again(small: Any) -> None:
    """ClickHouse reads what is there of a list of files."""

    class Vanishing(Lake):
        looks = 0

        def files(self, table: str, begin: datetime, end: datetime) -> list[Path]:
            self.looks += 1
            gone = [self.root / "gone.parquet"] if self.looks == 1 else []
            return super().files(table, begin, end) + gone

    class Careless(DuckDB):
        def rows(self, sql: str, tables: Mapping[str, Sequence[Path]], values: Mapping[str, Any]) -> list[Row]:
            there = {
                name: [path for path in paths if path.exists()][: -1 if vanishing.looks == 1 else None]
                for name, paths in tables.items()
            }
            return super().rows(sql, there, values)

    vanishing = Vanishing(small.lake.root)
    counts = Questions(vanishing, Careless(small.lake.root)).count(Search(BEGIN, END))
    assert (sum(counts.values()), vanishing.looks) == (len(small.attempts), 2)


def test_an_engine_that_fails_is_asked_once(small: Any) -> None:
    class Broken(DuckDB):
        asked = 0

        def rows(self, sql: str, tables: Mapping[str, Sequence[Path]], values: Mapping[str, Any]) -> list[Row]:
            self.asked += 1
            raise EngineError("no")

    engine = Broken(small.lake.root)
    with pytest.raises(EngineError, match="no"):
        Questions(small.lake, engine).count(Search(BEGIN, END))
    assert engine.asked == 1


def rolled_up(rows: list[Row]) -> pa.Table:
    """Give the roll-ups of attempts."""
    attempts = pa.Table.from_pylist(rows, ATTEMPTS)
    with duckdb.connect() as engine:
        return engine.register("attempts", attempts).sql(rollup.SQL).to_arrow_table()


def test_rollups_have_their_schema_and_a_total_order(small: Any) -> None:
    made = rolled_up(small.attempts)
    assert made.schema.names == ROLLUPS.names
    assert [field.type for field in made.schema] == [field.type for field in ROLLUPS]
    keys = [tuple(row[name] for name in ROLLUPS.names[:-1]) for row in made.to_pylist()]
    assert keys == sorted(set(keys))
    assert rolled_up(small.attempts[::-1]) == made


@pytest.mark.parametrize(
    ("delay", "number"), [(0, -1), (1, 0), (2, 2), (3, 3), (4, 4), (5, 4), (6, 5), (1000, 19), (2**31 - 1, 61)]
)
def test_delay_classes(small: Any, delay: int, number: int) -> None:
    made = rolled_up([{**small.attempts[0], "delay_ms": delay}]).to_pylist()
    assert {row["delay_class"] for row in made} == {number}


@pytest.mark.parametrize(
    ("responses", "key"),
    [
        (
            [
                "host mx1.example.com[192.0.2.1] said: 450 4.7.1 <ann@example.com>: Recipient address rejected: "
                "Greylisted, see http://postgrey.example.net/help/example.com.html (in reply to RCPT TO command)",
                "host mx2.example.org[2001:db8::1] said: 450 4.7.1 <o'bob@example.org>: Recipient address rejected: "
                "Greylisted, see http://postgrey.example.net/help/example.org.html (in reply to RCPT TO command)",
            ],
            "4.7.1 host # said: #: Recipient address rejected: Greylisted, see # (in reply to RCPT TO command)",
        ),
        (
            [
                "connect to mail.example.org[192.0.2.1]:25: Connection timed out",
                "connect to mx.example.com[2001:db8::2]:25: Connection timed out",
            ],
            "4.7.1 connect to # Connection timed out",
        ),
        (
            [
                "Host not found. Name service error for name=foo.example type=MX: Host not found, try again",
                "Host not found. Name service error for name=b.x.test type=MX: Host not found, try again",
            ],
            "4.7.1 Host not found. Name service error for name=# type=MX: Host not found, try again",
        ),
        (["421-4.7.0 busy deadbeefcafe", "421-4.7.0 busy feedfacebead"], "4.7.1 # busy #"),
        (["x " * 300], "4.7.1 " + "x " * 57),
        ([""], "4.7.1 "),
    ],
)
def test_errors_that_differ_in_names_and_numbers_are_one(small: Any, responses: list[str], key: str) -> None:
    rows = [{**small.attempts[0], "outcome": "deferred", "dsn": "4.7.1", "response": text} for text in responses]
    errors = {row["key"] for row in rolled_up(rows).to_pylist() if row["dimension"] == "error"}
    assert errors == {key}

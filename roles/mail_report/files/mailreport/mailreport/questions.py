# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people ask of the lake. Page, command line and tests ask here; any engine answers, and the same.

The SQL is DuckDB's; an engine turns it into its own. Values never become part of its text. Each answer has a total
order, and integers only.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from mailreport.engines import Engine, EngineError, connect
from mailreport.lake import ATTEMPTS, BUCKET, DIMENSIONS, OUTCOMES, REJECTS, Lake, Lakes
from mailreport.settings import Settings

Row = dict[str, Any]

EPOCH = datetime(1970, 1, 1)
FIRST, LAST_TIME = datetime(2000, 1, 1), datetime(2100, 1, 1)  # no log is from before or after
HOUR, WEEK = timedelta(hours=1), timedelta(days=7)
# Of a chart; the first that makes no more than POINTS.
STEPS = (BUCKET, *(timedelta(minutes=number) for number in (15, 30, 60, 180, 360, 720, 1440)))
POINTS = 300
LIFETIME = timedelta(days=8)  # of a mail in a queue, at most: Postfix gives up after five days
SKEW = timedelta(minutes=2)  # between the clocks of two hosts, at most
RECIPIENTS, ROWS = 100, 5000  # of one journey, at most
TRIES = 3  # as files may be replaced while a question is asked
SAMPLES = 20
# Digits of long queue ids: no vowels, so that no word appears. The first are the arrival's seconds and microseconds.
DIGITS = {digit: value for value, digit in enumerate("0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz")}
SECONDS, MICROSECONDS = 6, 4
LAST = "\U0010ffff"  # no character comes after it

# What makes the order of rows total.
ATTEMPT_KEY = ("time", "host", "instance", "queue_id", "arrived", "recipient", "original_recipient", "status", "relay")
REJECT_KEY = (
    "time",
    "host",
    "instance",
    "service",
    "queue_id",
    "stage",
    "client_address",
    "sender",
    "recipient",
    "helo",
)


@dataclass(frozen=True)
class Search:
    """What to look for from begin to end (not included), in UTC; "" is any. Case does not matter."""

    begin: datetime
    end: datetime
    recipient: str = ""  # "a@b.c", "@b.c" for a domain, or "abc*" for what begins so
    sender: str = ""  # the same
    queue_id: str = ""  # also of the next host
    message_id: str = ""  # with or without its brackets
    client: str = ""  # a name, ".b.c" for names that end so, or an address
    relay: str = ""  # the same
    host: str = ""
    outcome: str = ""  # one of OUTCOMES
    dsn: str = ""  # "4.7.1", or what it begins with, such as "4."
    text: str = ""  # somewhere in the response or the reason


class Mail(NamedTuple):
    """What tells a mail on a host from all others."""

    host: str
    instance: str
    queue_id: str
    arrived: datetime


class Page(NamedTuple):
    """Rows, and what to give as `after` to get the next; "" at the end."""

    rows: list[Row]
    after: str


class Message(NamedTuple):
    """A mail on one host."""

    host: str
    instance: str
    queue_id: str
    arrived: datetime
    message_id: str
    client: str
    client_address: str
    sender: str
    size: int
    recipients: int
    times: tuple[datetime, ...]  # of its attempts that are shown: its raw lines lie around arrived and these


class Journey(NamedTuple):
    """A mail on all its hosts, both oldest first."""

    attempts: list[Row]
    messages: list[Message]
    complete: bool  # whether all of its recipients are shown

    def attempts_of(self, message: Message) -> list[Row]:
        """Give the attempts that one host made for it."""
        return [row for row in self.attempts if mail_of(row) == message[:4]]


@dataclass
class Point:
    """One step of a chart. Delays are upper limits, of what was delivered; None if nothing was."""

    begin: datetime
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    p50_ms: int | None = None
    p90_ms: int | None = None
    p99_ms: int | None = None


class Top(NamedTuple):
    """A domain, relay, host or error, the attempts that ended so, and all its attempts."""

    key: str
    attempts: int
    total: int


class Unparsed(NamedTuple):
    """How many lines no rule knows, by host, and the newest of them (time, host, line)."""

    hosts: dict[str, int]
    samples: list[Row]


class Freshness(NamedTuple):
    """The newest attempt of each host, within five minutes, and the newest hour that is closed."""

    hosts: dict[str, datetime]
    hour: datetime | None


class Questions:
    """Questions to a lake, or to those of several log hosts."""

    def __init__(self, lake: Lake | Lakes, engine: Engine) -> None:
        self.lake = lake
        self.engine = engine

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Put questions to what the settings name."""
        lake = Lakes(settings.lakes) if settings.lakes else Lake(settings.lake)
        return cls(lake, connect(settings))

    def search(self, search: Search, limit: int = 100, after: str = "") -> Page:
        """Give attempts, newest first.

        :raises ValueError: if `after` is none that a page gave.
        """
        return self._page("attempts", ATTEMPTS.names, ATTEMPT_KEY, _narrow(search), limit, after)

    def rejects(self, search: Search, limit: int = 100, after: str = "") -> Page:
        """Give mails that were not taken, newest first. They have no message id, relay and outcome to be found by."""
        if search.message_id or search.relay or search.outcome:
            return Page([], "")
        return self._page("rejects", REJECTS.names, REJECT_KEY, search, limit, after)

    def count(self, search: Search) -> dict[str, int]:
        """Give how many attempts had each outcome."""
        search = _narrow(search)
        where, values = _conditions("attempts", search)
        sql = f"SELECT outcome, COUNT(*) AS number FROM attempts WHERE {where} GROUP BY outcome"
        rows = self._ask("attempts", search.begin, search.end, sql, values)
        return dict.fromkeys(OUTCOMES, 0) | {row["outcome"]: row["number"] for row in rows}

    def journey(self, host: str, instance: str, queue_id: str, arrived: datetime, recipient: str = "") -> Journey:
        """Give all attempts of a mail on this host and on the hosts before and after it.

        :param recipient: of this one only, which is much faster.
        """
        start = Mail(host, instance, queue_id, arrived)
        # The lake is sorted by recipient: who knows it finds the rest. The first attempts follow soon.
        recipients = (
            [recipient.lower()] if recipient else self._recipients(start, HOUR) or self._recipients(start, LIFETIME)
        )
        mails, rows = {start}, list[Row]()
        asked: set[str] = set()
        ids = {queue_id}
        while recipients and not ids <= asked:
            asked |= ids
            rows = self._of_recipients(recipients[:RECIPIENTS], ids, arrived)
            mails = _linked(mails, rows)
            rows = [row for row in rows if mail_of(row) in mails]
            ids = {row[name] for row in rows for name in ("queue_id", "next_queue_id", "message_id")} - {""}
        return Journey(rows, _messages(rows), len(recipients) <= RECIPIENTS)

    def series(
        self, begin: datetime, end: datetime, by: str = "all", key: str = "", step: timedelta | None = None
    ) -> list[Point]:
        """Give a chart's points from the roll-ups: of all, or of one domain, relay, host or error."""
        step = step or next((step for step in STEPS if (end - begin) <= step * POINTS), STEPS[-1])
        begin -= (begin - EPOCH) % step
        start = "CAST(DATE_TRUNC('hour', bucket) AS TIMESTAMP)" if step % HOUR == timedelta() else "bucket"
        points = [Point(begin + number * step) for number in range(-((begin - end) // step))]
        classes: dict[int, Counter[int]] = defaultdict(Counter)
        for row in self._classes(begin, end, by, key, start):
            place = (row["start"] - begin) // step
            points[place].outcomes[row["outcome"]] += row["number"]
            if row["outcome"] == "delivered":
                classes[place][row["class"]] += row["number"]
        for place, counts in classes.items():
            points[place].p50_ms, points[place].p90_ms, points[place].p99_ms = _percentiles(counts)
        return points

    def total(self, begin: datetime, end: datetime, by: str = "all", key: str = "") -> Point:
        """Give the same as one point."""
        begin -= (begin - EPOCH) % BUCKET
        point = Point(begin)
        classes: dict[int, int] = {}
        for row in self._classes(begin, end, by, key, "0"):
            point.outcomes[row["outcome"]] += row["number"]
            if row["outcome"] == "delivered":
                classes[row["class"]] = row["number"]
        point.p50_ms, point.p90_ms, point.p99_ms = _percentiles(classes)
        return point

    def _classes(self, begin: datetime, end: datetime, by: str, key: str, start: str) -> list[Row]:
        """Count attempts by the start of a step, outcome and, of what was delivered, class of delay."""
        sql = f"""
            SELECT {start} AS start, outcome, CASE WHEN outcome = 'delivered' THEN delay_class ELSE 0 END AS class,
                SUM(attempts) AS number
            FROM rollups
            WHERE dimension = $dimension AND key = $key AND bucket >= $begin AND bucket < $end
            GROUP BY 1, 2, 3"""
        return self._ask("rollups", begin, end, sql, {"dimension": _known(by), "key": key, "begin": begin, "end": end})

    def top(self, begin: datetime, end: datetime, dimension: str, outcome: str = "", limit: int = 20) -> list[Top]:
        """Give the domains, relays, hosts or errors with the most attempts of an outcome ("" for any)."""
        sql = """
            SELECT key, SUM(CASE WHEN outcome = $outcome OR $outcome = '' THEN attempts ELSE 0 END) AS number,
                SUM(attempts) AS total
            FROM rollups
            WHERE dimension = $dimension AND bucket >= $begin AND bucket < $end
            GROUP BY key
            HAVING SUM(CASE WHEN outcome = $outcome OR $outcome = '' THEN attempts ELSE 0 END) > 0
            ORDER BY number DESC, key
            LIMIT $limit"""
        values = {"dimension": _known(dimension), "outcome": outcome, "begin": begin, "end": end, "limit": limit}
        return [Top(row["key"], row["number"], row["total"]) for row in self._ask("rollups", begin, end, sql, values)]

    def most(self, begin: datetime, end: datetime, dimension: str, limit: int = 20) -> dict[str, dict[str, int]]:
        """Give how many attempts had each outcome, of the domains, relays, hosts or errors with the most attempts."""
        begin -= (begin - EPOCH) % BUCKET
        counts = ", ".join(
            f"SUM(CASE WHEN outcome = '{outcome}' THEN attempts ELSE 0 END) AS {outcome}" for outcome in OUTCOMES
        )
        sql = f"""
            SELECT key, SUM(attempts) AS total, {counts}
            FROM rollups
            WHERE dimension = $dimension AND bucket >= $begin AND bucket < $end
            GROUP BY key
            ORDER BY total DESC, key
            LIMIT $limit"""
        values = {"dimension": _known(dimension), "begin": begin, "end": end, "limit": limit}
        rows = self._ask("rollups", begin, end, sql, values)
        return {row["key"]: {outcome: row[outcome] for outcome in OUTCOMES} for row in rows}

    def unparsed(self, begin: datetime, end: datetime) -> Unparsed:
        """Give the lines that no rule knows."""
        where, values = "time >= $begin AND time < $end", {"begin": begin, "end": end}
        sql = f"SELECT host, COUNT(*) AS number FROM unparsed WHERE {where} GROUP BY host ORDER BY host"
        hosts = {row["host"]: row["number"] for row in self._ask("unparsed", begin, end, sql, values)}
        sql = f"SELECT time, host, line FROM unparsed WHERE {where} ORDER BY time DESC, host, line LIMIT {SAMPLES}"
        return Unparsed(hosts, self._ask("unparsed", begin, end, sql, values) if hosts else [])

    def freshness(self, now: datetime) -> Freshness:
        """Give how new the lake is, for hosts seen in the week before now."""
        sql = "SELECT key, MAX(bucket) AS newest FROM rollups WHERE dimension = 'host' GROUP BY key ORDER BY key"
        hosts = {row["key"]: row["newest"] for row in self._ask("rollups", now - WEEK, now + WEEK, sql, {})}
        sql = "SELECT host, MAX(time) AS newest FROM attempts GROUP BY host"
        hosts |= {row["host"]: row["newest"] for row in self._ask("attempts", now - HOUR, now + HOUR, sql, {})}
        return Freshness(hosts, self.lake.newest_hour())

    def newest(self, now: datetime) -> datetime | None:
        """Give when the newest attempt of the week before now was made. It costs much less than that of each host."""
        for span in (2 * HOUR, WEEK):
            sql = "SELECT MAX(bucket) AS newest FROM rollups WHERE dimension = 'all'"
            for row in self._ask("rollups", now - span, now + HOUR, sql, {}):
                if (begin := row["newest"]) is not None:
                    end = begin + BUCKET
                    sql = "SELECT MAX(time) AS newest FROM attempts WHERE time >= $begin AND time < $end"
                    exact = self._ask("attempts", begin, end, sql, {"begin": begin, "end": end})
                    return exact[0]["newest"] or begin if exact else begin
        return None

    def _page(
        self, table: str, names: Sequence[str], key: Sequence[str], search: Search, limit: int, after: str
    ) -> Page:
        """Give one page of rows, newest first."""
        where, values = _conditions(table, search)
        values["limit"] = limit + 1
        if after:
            last = _decoded(key, after)
            where += f" AND {_follows(key)}"
            values |= {f"last_{name}": value for name, value in last.items()}
            search = replace(search, end=min(search.end, last["time"] + timedelta(microseconds=1)))
        # Whole rows are read from the few files only that hold the page.
        sql = f"SELECT time FROM {table} WHERE {where} ORDER BY time DESC LIMIT $limit"
        times = [row["time"] for row in self._ask(table, search.begin, search.end, sql, values)]
        if not times:
            return Page([], "")
        order = ", ".join(f"{name} DESC" if name == "time" else name for name in key)
        sql = f"SELECT {', '.join(names)} FROM {table} WHERE {where} ORDER BY {order} LIMIT $limit"
        values["begin"] = times[-1]
        rows = self._ask(table, search.begin, search.end, sql, values, times)
        return Page(rows[:limit], _encoded(key, rows[limit - 1]) if len(rows) > limit else "")

    def _recipients(self, mail: Mail, span: timedelta) -> list[str]:
        """Give the recipients of the attempts of a mail that began in some time after it arrived."""
        sql = f"""
            SELECT recipient
            FROM attempts
            WHERE host = $host AND instance = $instance AND queue_id = $queue_id AND arrived = $arrived
                AND time >= $begin AND time < $end
            GROUP BY recipient
            ORDER BY recipient
            LIMIT {RECIPIENTS + 1}"""
        begin, end = mail.arrived - SKEW, mail.arrived + span
        rows = self._ask("attempts", begin, end, sql, {**mail._asdict(), "begin": begin, "end": end})
        return [row["recipient"] for row in rows]

    def _of_recipients(self, recipients: Sequence[str], ids: Iterable[str], arrived: datetime) -> list[Row]:
        """Give attempts with any of the ids, for recipients, oldest first."""
        begin, end = arrived - LIFETIME, arrived + LIFETIME
        values: dict[str, Any] = {"begin": begin, "end": end}
        values |= {f"recipient_{number}": recipient for number, recipient in enumerate(recipients)}
        of_recipients = ", ".join(f"${name}" for name in values if name.startswith("recipient_"))
        values |= {f"id_{number}": value for number, value in enumerate(sorted(ids))}
        of_ids = ", ".join(f"${name}" for name in values if name.startswith("id_"))
        sql = f"""
            SELECT {", ".join(ATTEMPTS.names)}
            FROM attempts
            WHERE recipient IN ({of_recipients}) AND time >= $begin AND time < $end
                AND (queue_id IN ({of_ids}) OR next_queue_id IN ({of_ids}) OR message_id IN ({of_ids}))
            ORDER BY {", ".join(ATTEMPT_KEY)}
            LIMIT {ROWS}"""
        return self._ask("attempts", begin, end, sql, values)

    def _ask(
        self,
        table: str,
        begin: datetime,
        end: datetime,
        sql: str,
        values: Mapping[str, Any],
        times: Iterable[datetime] = (),
    ) -> list[Row]:
        """Ask the engine; again if a file went away meanwhile, as its rows are in another one then.

        :param times: read only the files that hold these.
        """
        begin, end = max(begin, FIRST), min(end, LAST_TIME)
        for chance in reversed(range(TRIES)):
            hours = {time.replace(minute=0, second=0, microsecond=0) for time in times}
            spans = [(hour, hour + HOUR) for hour in sorted(hours)] or [(begin, end)]
            files = list(dict.fromkeys(file for span in spans for file in self.lake.files(table, *span)))
            if not files:
                return []
            try:
                rows = self.engine.rows(sql, {table: files}, values)
            except EngineError:
                if not chance or all(file.exists() for file in files):
                    raise
            else:
                if not chance or all(file.exists() for file in files):
                    return rows
        raise AssertionError


def arrival(queue_id: str) -> datetime | None:
    """Give the time in a long queue id, None for another."""
    # A z separates the time from the inode, which has none.
    split = queue_id.rfind("z") - MICROSECONDS
    if split != SECONDS or not DIGITS.keys() >= set(queue_id):
        return None
    return EPOCH + timedelta(
        seconds=_number(queue_id[:split]), microseconds=_number(queue_id[split : split + MICROSECONDS])
    )


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * len(DIGITS) + DIGITS[digit]
    return value


def _narrow(search: Search) -> Search:
    """Look only where mails with the queue id can be."""
    if since := arrival(search.queue_id):
        return replace(search, begin=max(search.begin, since - SKEW), end=min(search.end, since + LIFETIME))
    return search


def _known(dimension: str) -> str:
    if dimension not in DIMENSIONS:
        raise ValueError(f"{dimension!r} is none of {', '.join(DIMENSIONS)}.")
    return dimension


def _conditions(table: str, search: Search) -> tuple[str, dict[str, Any]]:
    """Give what WHERE says, and its values."""
    terms = ["time >= $begin", "time < $end"]
    values: dict[str, Any] = {"begin": search.begin, "end": search.end}

    def add(name: str, value: str, term: str) -> None:
        values[name] = value
        terms.append(term.format(f"${name}"))

    for column in ("recipient", "sender"):
        value = getattr(search, column).lower()
        if value.startswith("@") and column == "recipient":
            add(column, value[1:], "recipient_domain = {}")
        elif value.startswith("@"):
            add(column, value, "ENDS_WITH(sender, {})")
        elif value.endswith("*"):
            add(column, value[:-1], f"{column} >= {{}}")
            add(f"{column}_last", value[:-1] + LAST, f"{column} <= {{}}")
        elif value:
            add(column, value, f"{column} = {{}}")
    for column in ("client", "relay"):
        value = getattr(search, column).lower()
        if value.startswith("."):
            add(column, value, f"ENDS_WITH(LOWER({column}), {{}})")
        elif value:
            add(column, value, f"(LOWER({column}) = {{0}} OR {column}_address = {{0}})")
    if search.queue_id:
        other = " OR next_queue_id = {0}" if table == "attempts" else ""
        add("queue_id", search.queue_id, f"(queue_id = {{0}}{other})")
    if search.message_id:
        bare = search.message_id.removeprefix("<").removesuffix(">")
        add("message_id", bare, "(message_id = {0} OR message_id = $message_id_bracketed)")
        values["message_id_bracketed"] = f"<{bare}>"
    for column in ("host", "outcome"):
        if value := getattr(search, column):
            add(column, value, f"{column} = {{}}")
    if search.dsn:
        add("dsn", search.dsn, "STARTS_WITH(dsn, {})" if search.dsn.endswith(".") else "dsn = {}")
    if search.text:
        columns = ("response", "reason") if table == "attempts" else ("response",)
        found = " OR ".join(f"STRPOS(LOWER({column}), LOWER({{0}})) > 0" for column in columns)
        add("text", search.text, f"({found})")
    return " AND ".join(terms), values


def _follows(key: Sequence[str]) -> str:
    """Give the condition for rows after the last one, whose key is in $last_…: the time falls, all others rise."""
    condition = ""
    for name in reversed(key):
        then = f" OR ({name} = $last_{name} AND ({condition}))" if condition else ""
        condition = f"{name} {'<' if name == 'time' else '>'} $last_{name}{then}"
    return f"({condition})"


def _encoded(key: Sequence[str], row: Row) -> str:
    """Give a row's key as text for an address."""
    values = [value.isoformat() if isinstance(value := row[name], datetime) else value for name in key]
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode()


def _decoded(key: Sequence[str], after: str) -> Row:
    """Give the key in a text."""
    try:
        values = dict(zip(key, json.loads(base64.urlsafe_b64decode(after)), strict=True))
        times = {name: datetime.fromisoformat(values[name]) for name in ("time", "arrived") if name in values}
        if not all(isinstance(value, str) for value in values.values()) or any(time.tzinfo for time in times.values()):
            raise ValueError
    except (ValueError, TypeError) as error:
        raise ValueError("This page does not exist: search again.") from error
    return values | times


def _percentiles(classes: Mapping[int, int]) -> list[int | None]:
    """Give the delays in ms that 50, 90 and 99 percent are not above, from how many are in each class."""
    total = sum(classes.values())
    found: list[int | None] = []
    for share in (50, 90, 99):
        below = 0
        for number in sorted(classes):
            below += classes[number]
            if below * 100 >= share * total:
                found.append(0 if number < 0 else math.ceil(2 ** ((number + 1) / 2)) - 1)
                break
        else:
            found.append(None)
    return found


def mail_of(row: Row) -> Mail:
    """Give the mail that an attempt was made for."""
    return Mail(row["host"], row["instance"], row["queue_id"], row["arrived"])


def _by_mail(rows: Iterable[Row]) -> dict[Mail, list[Row]]:
    of_mail: dict[Mail, list[Row]] = defaultdict(list)
    for row in rows:
        of_mail[mail_of(row)].append(row)
    return of_mail


def _linked(mails: set[Mail], rows: Sequence[Row]) -> set[Mail]:
    """Add the mails that came before or after these, or have the same message id."""
    of_mail = _by_mail(rows)
    found = set(mails)
    while True:
        here = [row for mail in found for row in of_mail.get(mail, ())]
        message_ids = {row["message_id"] for row in here} - {""}
        more = {
            mail
            for mail, its in of_mail.items()
            if mail not in found
            and (
                its[0]["message_id"] in message_ids
                or any(_leads(row, mail) for row in here)
                or any(_leads(row, other) for row in its for other in found)
            )
        }
        if not more:
            return found
        found |= more


def _leads(row: Row, mail: Mail) -> bool:
    """Tell whether the attempt made this mail on the next host. Queue ids are used again: the times must fit."""
    if row["next_queue_id"] != mail.queue_id:
        return False
    sent = row["time"] - timedelta(milliseconds=row["delay_send_ms"])
    return bool(sent - SKEW <= mail.arrived <= row["time"] + SKEW)


def _messages(rows: Sequence[Row]) -> list[Message]:
    """Give the mails of attempts, oldest first."""
    of_mail = _by_mail(rows)
    times = {mail: tuple(sorted({row["time"] for row in its})) for mail, its in of_mail.items()}
    return [
        Message(times=times[mail], **{name: of_mail[mail][0][name] for name in Message._fields if name != "times"})
        for mail in sorted(of_mail, key=lambda mail: (mail.arrived, times[mail], mail))
    ]

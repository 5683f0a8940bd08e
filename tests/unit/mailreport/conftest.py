# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small lake in which everything happens: fallbacks, retries, expiry, queue ids used again, hostile texts."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = ROOT / "roles/mail_report/files/mailreport"
sys.path.insert(0, str(PROJECT))

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
duckdb = pytest.importorskip("duckdb")

from mailreport.lake import ATTEMPTS, REJECTS, UNPARSED, Lake, Lakes, replacing  # noqa: E402
from mailreport.rollup import SQL as ROLLUP  # noqa: E402

COMPACTED, IN_HOURS, TODAY = (date(2026, 11, day) for day in (19, 20, 21))
HOURS = {COMPACTED: (1, 2, 9), IN_HOURS: (0, 2, 23), TODAY: (0, 1, 2)}
OPEN_HOUR = datetime(2026, 11, 21, 2)  # still in parts
MAILS = 1500
HOSTILE = (
    "plain refusal",
    "said: 450 4.2.0 <x>: Greylisted; status=sent to=<other@x.test> (250 ok)",
    """it's "quoted", a \\ backslash, \\' both, 100% _ * ? {begin: String} $begin :begin $$ -- /* ; DROP""",
    "=HYPERLINK(1)\ttab\r\nline \x1b[31mred\x1b[0m \x07 \x9b31m",
    "ÄÖÜ größer Ünïcödé 🐟 \u202egnp.exe <script>alert(1)</script> &amp; \U0010fffd",
    "@SUM(1+1)",
    "+1",
    "-1",
)
LOCALS = ("ann", "bob", "o'hara", "per%cent", "under_score", "back\\slash", "ümlaut", '"quo ted"', "=cmd", "a*b")
DOMAINS = ("example.net", "example.com", "sub.example.com", "slow.test", "x{y}.test")


DIGITS = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"


class Small(NamedTuple):
    """The lake and what is in it."""

    lake: Lake
    attempts: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    unparsed: list[dict[str, Any]]


def in_digits(value: int, count: int) -> str:
    """Give a number as long queue ids have it."""
    return "".join(DIGITS[value // len(DIGITS) ** place % len(DIGITS)] for place in reversed(range(count)))


class Maker:
    """Makes mails that pass one to three hosts."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.numbers = itertools.count(1)
        self.attempts: list[dict[str, Any]] = []

    def time(self) -> datetime:
        """Give any time in the lake's hours."""
        day = self.random.choice(list(HOURS))
        hour = self.random.choice(HOURS[day])
        return datetime(day.year, day.month, day.day, hour) + timedelta(
            microseconds=self.random.randrange(3_600_000_000)
        )

    def later(self, time: datetime) -> datetime | None:
        """Give a time in one of the hours after this one, if there is one."""
        after = [
            start
            for day, hours in HOURS.items()
            for hour in hours
            if (start := datetime(day.year, day.month, day.day, hour)) > time
        ]
        return self.random.choice(after) + timedelta(seconds=self.random.randrange(3600)) if after else None

    def queue_id(self, host: str, arrived: datetime) -> str:
        """Give a queue id: short ones, of some hosts, are soon used again."""
        if host == "mx-02":
            return f"{self.random.randrange(40):X}A0"
        seconds = int(arrived.replace(tzinfo=UTC).timestamp())
        return f"{in_digits(seconds, 6)}{in_digits(arrived.microsecond, 4)}z{in_digits(next(self.numbers), 3)}"

    def attempt(self, mail: dict[str, Any], time: datetime, recipient: str, outcome: str, **more: Any) -> None:
        """Add an attempt."""
        row = {
            "time": time,
            "recipient": recipient,
            "recipient_domain": recipient.rpartition("@")[2],
            "original_recipient": "",
            "relay": "none",
            "relay_address": "",
            "relay_port": 0,
            "delay_ms": int((time - mail["arrived"]).total_seconds() * 1000),
            "delay_before_ms": self.random.randrange(50),
            "delay_queue_ms": self.random.randrange(10),
            "delay_connect_ms": self.random.randrange(300),
            "delay_send_ms": self.random.randrange(2000),
            "dsn": {"deferred": "4.7.1", "bounced": "5.1.1", "expired": "4.4.1"}.get(outcome, "2.0.0"),
            "status": {"delivered": "sent", "handed_over": "sent"}.get(outcome, outcome),
            "outcome": outcome,
            "response": "250 2.0.0 Ok",
            "reason": "",
            "next_queue_id": "",
            **mail,
            **more,
        }
        self.attempts.append(row)

    def mail(self) -> None:
        """Add a mail with all its attempts."""
        time = self.time()
        recipients = [
            f"{self.random.choice(LOCALS)}{self.random.randrange(30)}@{self.random.choice(DOMAINS)}"
            for _turn in range(self.random.choice((1, 1, 1, 2, 5)))
        ]
        mail = self.arrives(self.random.choice(("mx-01", "mx-02")), time, f"{next(self.numbers)}@mail.test")
        mail["recipients"] = len(recipients)
        for recipient in recipients:
            self.deliver(mail, recipient)

    def arrives(self, host: str, time: datetime, message_id: str) -> dict[str, Any]:
        """Give what all attempts of a mail on a host have."""
        return {
            "host": host,
            "instance": self.random.choice(("postfix", "postfix-out")) if host == "mx-01" else "postfix",
            "queue_id": self.queue_id(host, time),
            "arrived": time.replace(microsecond=0),
            "message_id": message_id,
            "client": self.random.choice(("app.site.test", "Relay.Example.NET", "unknown")),
            "client_address": self.random.choice(("192.0.2.1", "2001:db8::7")),
            "sender": self.random.choice(("", "news@site.test", "o'hara@site.test", "ann@other.test")),
            "size": self.random.randrange(1 << 40),
            "recipients": 1,
        }

    def deliver(self, mail: dict[str, Any], recipient: str) -> None:
        """Add the attempts for one recipient."""
        time = mail["arrived"] + timedelta(microseconds=self.random.randrange(1, 90_000_000))
        world = {"relay": f"mx.{recipient.rpartition('@')[2]}", "relay_address": "198.51.100.7", "relay_port": 25}
        refusal = {"response": self.random.choice(HOSTILE), "reason": self.random.choice(("", *HOSTILE))}
        fate = self.random.randrange(10)
        if fate < 4:
            self.attempt(mail, time, recipient, "delivered", **world)
        elif fate == 4:
            self.attempt(mail, time, recipient, "bounced", **world, **refusal, original_recipient="old@site.test")
        elif fate == 5:
            self.attempt(mail, time, recipient, "probe", status="deliverable")
        else:
            self.fall_back(mail, time, recipient, world, refusal, expires=fate == 9)

    def fall_back(
        self, mail: dict[str, Any], time: datetime, recipient: str, world: dict[str, Any], refusal: Any, expires: bool
    ) -> None:
        """Hand a mail over to the second tier, which tries until it is delivered to the sink or expires."""
        there = self.arrives("fallback-01", time, mail["message_id"])
        tier = {"relay": "fallback.vip.site.test", "relay_address": "203.0.113.9", "relay_port": 25}
        self.attempt(
            mail, time, recipient, "handed_over", **tier, next_queue_id=there["queue_id"], reason=refusal["reason"]
        )
        again: datetime | None = time + timedelta(seconds=1)
        for _turn in range(self.random.randrange(4)):
            if again:
                self.attempt(there, again, recipient, "deferred", **world, **refusal)
                again = self.later(again)
        if again and expires:
            self.attempt(there, again, recipient, "expired", **refusal)
        elif again:
            sink = self.arrives("sink-01", again, mail["message_id"])
            self.attempt(there, again, recipient, "delivered", **world, next_queue_id=sink["queue_id"])
            self.attempt(sink, again + timedelta(milliseconds=5), recipient, "delivered", relay="local")


def rejects_and_unparsed() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Make mails that were not taken, and lines that no rule knows."""
    maker = Maker()
    rejects, unparsed = [], []
    for number in range(300):
        recipient = f"ann{number % 7}@{DOMAINS[number % 3]}"
        row = {
            "time": maker.time(),
            "host": f"mx-0{number % 2 + 1}",
            "instance": "postfix",
            "service": "smtpd",
            "queue_id": "" if number % 3 else f"{number:X}",
            "action": "reject",
            "stage": "RCPT",
            "client": "unknown",
            "client_address": f"192.0.2.{number % 20}",
            "sender": f"s{number % 9}@other.test",
            "recipient": recipient,
            "recipient_domain": recipient.rpartition("@")[2],
            "helo": HOSTILE[number % len(HOSTILE)],
            "dsn": "5.7.1",
            "response": HOSTILE[number % len(HOSTILE)],
        }
        rejects.append(row)
        unparsed.append({"time": maker.time(), "host": row["host"], "line": f"{number} {row['helo']}"})
    return rejects, unparsed


def write(lake: Lake, table: str, schema: Any, rows: list[dict[str, Any]]) -> None:
    """Write rows as the ingest does: a day's file, hours, and the last hour in two parts."""
    names = [name for name in ("recipient", "time", "host", "queue_id") if name in schema.names]
    if not names or "dimension" in schema.names:
        names = schema.names
    time = "bucket" if table == "rollups" else "time"
    files: dict[Path, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        path = lake.hour(table, row[time])
        if row[time].date() == COMPACTED:
            path = path.with_name("day.parquet")
        elif row[time] >= OPEN_HOUR:
            path = path.with_name(f"hour=02.part-{number % 2 + 1:06d}.parquet")
        files.setdefault(path, []).append(row)
    for path, its in files.items():
        its.sort(key=lambda row: [row[name] for name in names])
        with replacing(path) as temporary:
            pq.write_table(pa.Table.from_pylist(its, schema), temporary, compression="zstd", row_group_size=500)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The lake: a day that is compacted, a day in hours, a day whose last hour is in parts."""
    lake = Lake(tmp_path_factory.mktemp("small") / "lake")
    maker = Maker()
    for _turn in range(MAILS):
        maker.mail()
    rejects, unparsed = rejects_and_unparsed()
    fill(lake, maker.attempts, rejects, unparsed)
    return Small(lake, maker.attempts, rejects, unparsed)


@pytest.fixture(scope="session")
def halves(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Lakes:
    """The same rows in the lakes of two log hosts, each of which has the logs of some mail hosts."""
    lakes = Lakes(tmp_path_factory.mktemp("halves"))
    for number, name in enumerate(("log-01", "log-02")):
        mine = [[row for row in rows if (row["host"][-1] == "2") == bool(number)] for rows in small[1:]]
        assert all(mine)
        fill(Lake(lakes.root / name), *mine)
    (lakes.root / "log-03").mkdir()  # it has no mail yet
    return lakes


def fill(
    lake: Lake, attempts: list[dict[str, Any]], rejects: list[dict[str, Any]], unparsed: list[dict[str, Any]]
) -> None:
    """Write all that a lake has."""
    with duckdb.connect() as engine:
        table = pa.Table.from_pylist(attempts, ATTEMPTS)
        rollups = engine.register("attempts", table).sql(ROLLUP).to_arrow_table()
    write(lake, "attempts", ATTEMPTS, attempts)
    write(lake, "rejects", REJECTS, rejects)
    write(lake, "unparsed", UNPARSED, unparsed)
    write(lake, "rollups", rollups.schema, rollups.to_pylist())
    # Hours that no longer count beside the day, and a file that is not finished.
    (lake.day("attempts", COMPACTED) / "hour=01.parquet").write_bytes(b"not read")
    (lake.day("attempts", TODAY) / ".hour=03.parquet.1").write_bytes(b"not read")
    manifest = lake.day("manifests", TODAY) / "hour=01.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({}))


# What Prometheus knows of a site: eight mail hosts, one of which is down, and two nodes of a cache.
HOSTS = [f"mx-{number:02}" for number in range(1, 9)]
KNOWN: dict[str, list[tuple[dict[str, str], float]]] = {
    "up": [({"job": "node", "instance": name}, float(name != "mx-03")) for name in [*HOSTS, "cache-01", "cache-02"]],
    "tier:postfix_queue_messages:sum": [({"tier": "primary"}, 40), ({"tier": "fallback"}, 12_000)],
    "tier:postfix_queue_oldest_age:max": [({"tier": "primary"}, 45), ({"tier": "fallback"}, 40_000)],
    "instance:postfix_queue_messages:sum": [
        ({"instance": name, "name": "postfix", "tier": "fallback" if place > 5 else "primary"}, 10.0 ** (place / 2))
        for place, name in enumerate(HOSTS)
    ],
    "instance:postfix_queue_volume_used:ratio": [
        ({"instance": name, "name": "postfix", "tier": "primary"}, place / 10) for place, name in enumerate(HOSTS)
    ],
    "instance:node_cpu:ratio": [({"instance": name}, (place + 1) / 10) for place, name in enumerate(HOSTS)],
    "instance:node_memory_used:ratio": [({"instance": name}, 0.5 + place / 20) for place, name in enumerate(HOSTS)],
    "instance:node_load:per_cpu": [({"instance": name}, place / 4) for place, name in enumerate(HOSTS)],
    "pool:memcached_hits:ratio5m": [({"pool": "cache.site.test"}, 0.9)],
    "pool:memcached_evictions:rate5m": [({"pool": "cache.site.test"}, 0.4)],
    "domain:mail_deferred:ratio": [({"domain": f"d{place}.test"}, place / 20) for place in range(13)],
}
SINCE = datetime(2026, 11, 21, 10)
ALERTS = [
    {
        "labels": {"alertname": "HostDown", "instance": "mx-03", "severity": "page", "job": "node"},
        "annotations": {"summary": "mx-03 does not answer", "runbook": "Look at its console."},
        "state": "firing",
        "activeAt": f"{SINCE.isoformat()}.123456789Z",
        "value": "0e+00",
    },
    {
        "labels": {"alertname": "QueueOld", "tier": "fallback", "severity": "ticket"},
        "annotations": {"summary": "<b>old</b> mail \u202e", "runbook": ""},
        "state": "firing",
        "activeAt": f"{SINCE.isoformat()}Z",
        "value": "1",
    },
    {"labels": {"alertname": "Soon"}, "annotations": {}, "state": "pending", "activeAt": f"{SINCE.isoformat()}Z"},
]


def known_at(value: float, seconds: float) -> float:
    """Give a number of Prometheus at a time: it goes a tenth up and down within an hour; what is down or up stays."""
    return value if value in (0, 1) else value * (1 + math.sin(seconds * math.tau / 3600) / 10)


def answer_of(path: str, asked: dict[str, str]) -> tuple[int, Any]:
    """Answer as Prometheus does, but for what the query does with the series that it names."""
    if path == "/api/v1/alerts":
        return 200, {"status": "success", "data": {"alerts": ALERTS}}
    series = next((KNOWN[name] for name in KNOWN if name in asked["query"]), [])
    result: list[dict[str, Any]]
    if path == "/api/v1/query":
        now = float(asked["time"])
        result = [{"metric": labels, "value": [now, str(known_at(value, now))]} for labels, value in series]
    else:
        begin, end, step = (float(asked[name]) for name in ("start", "end", "step"))
        times = [begin + number * step for number in range(int((end - begin) / step) + 1)]
        result = [
            {"metric": labels, "values": [[at, str(known_at(value, at))] for at in times]} for labels, value in series
        ]
    return 200, {"status": "success", "data": {"resultType": "", "result": result}}


@dataclass
class FakePrometheus:
    """A server that answers as it is told."""

    address: str
    answer: Callable[[str, dict[str, str]], tuple[int, Any]] = answer_of  # an object becomes JSON, bytes are sent
    asked: list[tuple[str, dict[str, str], str]] = field(default_factory=list)  # path, parameters, authorization

    def samples(self, begin: float, end: float, step: float) -> Iterator[str]:
        """Give what it knows of a time as OpenMetrics, so that a real one can know it, too."""
        for name, series in KNOWN.items():
            for labels, value in series:
                told = ",".join(f'{label}="{text}"' for label, text in labels.items())
                for number in range(int((end - begin) / step) + 1):
                    at = begin + number * step
                    yield f"{name}{{{told}}} {known_at(value, at)} {at}\n"
        yield "# EOF\n"


@pytest.fixture(scope="session")
def served() -> Iterator[FakePrometheus]:
    """The server, for those who do not change it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked = dict(parse_qsl(url.query))
            known.asked.append((url.path, asked, self.headers.get("Authorization", "")))
            status, content = known.answer(url.path, asked)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://127.0.0.1:9/")
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(ConnectionError):  # who asked has gone
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        known = FakePrometheus(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield known
        server.shutdown()
        thread.join()


@pytest.fixture
def fake(served: FakePrometheus) -> Iterator[FakePrometheus]:
    """The server as a test may change it."""
    served.asked.clear()
    yield served
    served.answer = answer_of

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that all engines give the same answers, and of what each does by itself."""

from __future__ import annotations

import http.server
import itertools
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
from mailreport import engines
from mailreport.engines import ClickHouse, DuckDB, EngineError, Spark
from mailreport.lake import DIMENSIONS, OUTCOMES, Lake
from mailreport.questions import EPOCH, Questions, Search
from mailreport.settings import Settings, WebSettings

BEGIN, END = datetime(2026, 11, 19), datetime(2026, 11, 22)
Ask = Callable[[Questions], Any]


def escaped(value: Any) -> str:
    """Give a value as ClickHouse's HTTP interface takes it."""
    return str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def in_process(sql: str, values: dict[str, Any], settings: dict[str, Any]) -> bytes:
    """Ask ClickHouse's engine in this process."""
    chdb = pytest.importorskip("chdb", reason="chdb, ClickHouse's engine, is not installed")
    said = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
    try:
        answer = chdb.query(f"{sql} SETTINGS {said}", "Arrow", params={name: escaped(values[name]) for name in values})
    except RuntimeError as error:
        raise EngineError(str(error)) from error
    return bytes(answer.bytes())


@pytest.fixture(scope="session")
def spark_session() -> Iterator[Any]:
    """Spark in local mode."""
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    from pyspark.sql import SparkSession

    SparkSession.builder.config(
        map={
            "spark.sql.shuffle.partitions": "1",
            "spark.sql.adaptive.enabled": "false",
            "spark.sql.codegen.wholeStage": "false",  # compiling takes longer than so few rows
            "spark.ui.enabled": "false",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
        }
    )
    session = engines.spark_session("local[1]")
    yield session
    session.stop()


def questions_of(small: Any) -> dict[str, Ask]:
    """Give the questions, with several values each."""
    rows = small.attempts
    some = rows[:: len(rows) // 4]
    asked: dict[str, Ask] = {}
    searches = {
        "all": Search(BEGIN, END),
        "an hour": Search(datetime(2026, 11, 20, 2), datetime(2026, 11, 20, 3)),
        "parts": Search(datetime(2026, 11, 21, 2, 10), datetime(2026, 11, 21, 2, 50)),
        "microseconds": Search(rows[5]["time"], rows[5]["time"] + timedelta(microseconds=1)),
        "nothing there": Search(datetime(2027, 1, 1), datetime(2027, 1, 2)),
        "no match": Search(BEGIN, END, recipient="nobody@nowhere.test"),
        "domain": Search(BEGIN, END, recipient="@sub.example.com"),
        "braces": Search(BEGIN, END, recipient="@x{y}.test"),
        "prefix": Search(BEGIN, END, recipient="o'hara*"),
        "backslash": Search(BEGIN, END, recipient="back\\slash*"),
        "percent": Search(BEGIN, END, recipient="per%*"),
        "umlaut": Search(BEGIN, END, recipient="Ümlaut*"),
        "sender": Search(BEGIN, END, sender="o'hara@site.test"),
        "sender's domain": Search(BEGIN, END, sender="@site.test"),
        "sender's prefix": Search(BEGIN, END, sender="ne*"),
        "client": Search(BEGIN, END, client="relay.example.net"),
        "client's suffix": Search(BEGIN, END, client=".example.net"),
        "client's address": Search(BEGIN, END, client="2001:db8::7"),
        "relay": Search(BEGIN, END, relay=".vip.site.test", outcome="handed_over"),
        "dsn": Search(BEGIN, END, dsn="4.7.1"),
        "dsn's class": Search(BEGIN, END, dsn="5."),
        "all at once": Search(
            BEGIN, END, "@example.com", "@site.test", client=".net", host="fallback-01", outcome="deferred", dsn="4."
        ),
    }
    searches |= {
        f"recipient {row['recipient']}": Search(BEGIN, END, recipient=row["recipient"].upper()) for row in some
    }
    searches |= {f"queue id {row['queue_id']}": Search(BEGIN, END, queue_id=row["queue_id"]) for row in some}
    searches |= {
        f"message id {row['message_id']}": Search(BEGIN, END, message_id=row["message_id"]) for row in some[:2]
    }
    searches |= {f"outcome {outcome}": Search(BEGIN, END, outcome=outcome) for outcome in OUTCOMES}
    texts = (
        "greylisted; STATUS=sent",
        "ünïcödé 🐟",
        'it\'s "quoted", a \\ b',
        "\\'",
        "% _ * ?",
        "{begin: String} $begin",
        "\r\n",
    )
    searches |= {f"text {text!r}": Search(BEGIN, END, text=text) for text in texts}
    for name, search in searches.items():
        asked[f"search, {name}"] = partial(Questions.search, search=search, limit=20)
        asked[f"count, {name}"] = partial(Questions.count, search=search)
    for name in ("all", "domain", "sender", "client", "dsn's class", f"text {texts[2]!r}"):
        asked[f"rejects, {name}"] = partial(Questions.rejects, search=searches[name], limit=20)
    everything = searches["all"]
    asked["second page"] = lambda q: q.search(everything, 20, q.search(everything, 20).after)
    asked["second page of rejects"] = lambda q: q.rejects(everything, 9, q.rejects(everything, 9).after)
    for row in some:
        mail: dict[str, Any] = {name: row[name] for name in ("host", "instance", "queue_id", "arrived")}
        asked[f"journey {mail}"] = partial(Questions.journey, **mail)
        asked[f"journey {mail} of one"] = partial(Questions.journey, **mail, recipient=row["recipient"])
    time: dict[str, Any] = {"begin": BEGIN, "end": END}
    for step in (timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=6), timedelta(days=1)):
        asked[f"series, {step}"] = partial(Questions.series, **time, step=step)
    asked["series of a domain"] = partial(Questions.series, **time, by="domain", key="x{y}.test")
    asked["series of a host"] = partial(
        Questions.series, begin=BEGIN, end=END - timedelta(hours=22, minutes=7), by="host", key="mx-01"
    )
    asked["total"] = partial(Questions.total, **time)
    asked["total of a relay"] = partial(Questions.total, **time, by="relay", key="mx.slow.test")
    for dimension in DIMENSIONS:
        asked[f"top {dimension}"] = partial(Questions.top, **time, dimension=dimension, outcome="deferred", limit=7)
        asked[f"top {dimension} of any"] = partial(Questions.top, **time, dimension=dimension)
    asked["unparsed"] = partial(Questions.unparsed, **time)
    asked["freshness"] = partial(Questions.freshness, now=datetime(2026, 11, 21, 2, 30))
    return asked


def compare(small: Any, engine: engines.Engine, capsys: pytest.CaptureFixture[str], every: int = 1) -> None:
    """Ask everything, or each so many'th question, of DuckDB and of another engine."""
    here, there = Questions(small.lake, DuckDB(small.lake.root)), Questions(small.lake, engine)
    asked = dict(itertools.islice(questions_of(small).items(), 0, None, every))
    other = {name: (expected, got) for name, ask in asked.items() if (expected := ask(here)) != (got := ask(there))}
    with capsys.disabled():
        print(f"\n{engine.name}: {len(asked) - len(other)} of {len(asked)} answers identical to DuckDB's")
    assert other == {}


def test_clickhouse_gives_the_same_answers(small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    compare(small, ClickHouse(in_process, small.lake.root), capsys)


def test_spark_gives_the_same_answers(small: Any, spark_session: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # It takes seconds for each. All of them: TENFOLD_SPARK_EVERY=1.
    every = int(os.environ.get("TENFOLD_SPARK_EVERY", "10"))
    compare(small, Spark(spark_session, small.lake.root), capsys, every)


class Server(http.server.BaseHTTPRequestHandler):
    """ClickHouse's HTTP interface, in front of its engine."""

    def do_POST(self) -> None:
        chdb = pytest.importorskip("chdb")
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query, keep_blank_values=True))
        sql = self.rfile.read(int(self.headers["Content-Length"])).decode()
        values = {name.removeprefix("param_"): value for name, value in asked.items() if name.startswith("param_")}
        wanted = {name: asked[name] for name in ("use_hive_partitioning", "session_timezone") if name in asked}
        said = f" SETTINGS {', '.join(f'{name} = {value!r}' for name, value in wanted.items())}" if wanted else ""
        text, _format, form = sql.rstrip("\n ;").partition("\n FORMAT ")
        try:
            status, answer = (
                200,
                chdb.query(text + said, form or asked.get("default_format", "Native"), params=values).bytes(),
            )
        except RuntimeError as error:
            status, answer = 500, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def clickhouse_url() -> Iterator[str]:
    """A ClickHouse server's address."""
    pytest.importorskip("clickhouse_connect", reason="clickhouse-connect is not installed")
    pytest.importorskip("chdb", reason="chdb, ClickHouse's engine, is not installed")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_clickhouse_over_http_gets_the_same_values(small: Any, clickhouse_url: str) -> None:
    settings = Settings(Path("/logs"), small.lake.root, engine="clickhouse", engine_url=clickhouse_url)
    here, there = (Questions(small.lake, engine) for engine in (DuckDB(small.lake.root), engines.connect(settings)))
    asked = questions_of(small)
    chosen = [
        name for name in asked if name.startswith(("search, text", "search, backslash", "series, 0:05:00", "journey"))
    ]
    assert {name for name in chosen if asked[name](here) != asked[name](there)} == set()


def test_clickhouse_that_refuses_says_so(small: Any, clickhouse_url: str) -> None:
    run = engines.over_http(clickhouse_url)
    with pytest.raises(EngineError, match="no_such_column"):
        ClickHouse(run, small.lake.root).rows("SELECT no_such_column FROM attempts", files(small.lake), {})
    with pytest.raises(EngineError, match="ClickHouse does not answer"):
        engines.over_http("http://127.0.0.1:1")


def test_other_engines_are_told_where_they_have_the_lake(tmp_path: Path) -> None:
    asked = []

    def run(sql: str, values: dict[str, Any], settings: dict[str, Any]) -> bytes:
        asked.append(values["files_of_attempts"])
        return in_process("SELECT 1 AS one", {}, {"max_threads": 1})

    paths = [tmp_path / "attempts/day=2026-11-20/day.parquet", tmp_path / "attempts/day=2026-11-21/hour=01.parquet"]
    ClickHouse(run, tmp_path, "lake/").rows("SELECT 1 FROM attempts", {"attempts": paths}, {})
    assert asked == ["lake/{attempts/day=2026-11-20/day.parquet,attempts/day=2026-11-21/hour=01.parquet}"]


def files(lake: Lake) -> dict[str, list[Path]]:
    """Give all files of the attempts."""
    return {"attempts": lake.files("attempts", BEGIN, END)}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "SELECT * FROM read_text($lake || '/../secret')",
    ],
)
def test_duckdb_reads_the_lake_and_nothing_else(small: Any, sql: str) -> None:
    (small.lake.root.parent / "secret").write_text("secret")
    engine = DuckDB(small.lake.root)
    assert engine.rows("SELECT COUNT(*) AS n FROM attempts", files(small.lake), {}) == [{"n": len(small.attempts)}]
    values = {"lake": str(small.lake.root)} if "$lake" in sql else {}
    with pytest.raises(duckdb.Error):
        engine._cursor().execute(sql, values)


def test_duckdb_stops_in_time(small: Any) -> None:
    engine = DuckDB(small.lake.root, seconds=0.2)
    endless = "SELECT COUNT(*) AS n FROM attempts AS a, attempts AS b, attempts AS c WHERE a.size + b.size < c.size"
    with pytest.raises(EngineError, match=r"No answer in 0\.2 s: choose a shorter time range\."):
        engine.rows(endless, files(small.lake), {})
    assert engine.rows("SELECT 1 AS one", {}, {}) == [{"one": 1}]


def test_duckdb_answers_in_threads(small: Any) -> None:
    questions = Questions(small.lake, engines.connect(Settings(Path("/logs"), small.lake.root, web=WebSettings())))
    expected = questions.count(Search(BEGIN, END))
    answers: list[dict[str, int]] = []
    threads = [threading.Thread(target=lambda: answers.append(questions.count(Search(BEGIN, END)))) for _n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [expected] * 8


def test_values_never_become_part_of_the_text(small: Any) -> None:
    texts = []

    def run(sql: str, values: dict[str, Any], settings: dict[str, Any]) -> bytes:
        texts.append(sql)
        return in_process(sql, values, settings)

    value = "x' OR 1=1 -- {begin: String}"
    Questions(small.lake, ClickHouse(run, small.lake.root)).search(Search(BEGIN, END, recipient=value, text=value))
    assert len(texts) == 1
    assert "1=1" not in texts[0]
    assert "2026" not in texts[0]


def test_times_from_before_and_after_all_logs_are_fine(small: Any) -> None:
    questions = Questions(small.lake, DuckDB(small.lake.root))
    counts = questions.count(Search(datetime.min, datetime.max))
    assert sum(counts.values()) == len(small.attempts)
    assert questions.count(Search(datetime.min, EPOCH)) == dict.fromkeys(OUTCOMES, 0)

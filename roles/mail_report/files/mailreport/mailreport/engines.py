# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What answers a question: DuckDB in this process, or a site's own ClickHouse or Spark, over the same files.

A question is DuckDB's SQL with values as `$name` and tables by their plain names. sqlglot turns it into the engine's
own words; the values stay outside of the text and are bound by the engine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import exp

from mailreport.lake import TABLES

if TYPE_CHECKING:
    from mailreport.settings import Settings

Row = dict[str, Any]
Files = Mapping[str, Sequence[Path]]


class EngineError(Exception):
    """Why there is no answer."""


class Engine(Protocol):
    """Answers questions."""

    name: str

    def rows(self, sql: str, tables: Files, values: Mapping[str, Any]) -> list[Row]:
        """Give the rows of a question over files of tables.

        :raises EngineError: there is no answer.
        """


def connect(settings: Settings) -> Engine:
    """Give the engine that the settings choose."""
    seconds = settings.web.timeout_s
    if settings.engine == "clickhouse":
        return ClickHouse(over_http(settings.engine_url), settings.asked, settings.engine_lake, seconds)
    if settings.engine == "spark":
        return Spark(spark_session(settings.engine_url), settings.asked, settings.engine_lake)
    return DuckDB(settings.asked, settings.memory, settings.workers or os.cpu_count() or 1, seconds)


class DuckDB:
    """DuckDB in this process, which can read the lake and nothing else."""

    name = "duckdb"

    def __init__(self, lake: Path, memory: str = "2GB", threads: int = 2, seconds: float = 60) -> None:
        self._lake = lake.resolve()
        self._settings: dict[str, str | bool | int | float | list[str]] = {"memory_limit": memory, "threads": threads}
        self._seconds = seconds
        self._lock = threading.Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None

    def rows(self, sql: str, tables: Files, values: Mapping[str, Any]) -> list[Row]:
        """Give the rows of a question over files of tables."""
        files = {f"files_of_{table}": [str(path.resolve()) for path in paths] for table, paths in tables.items()}
        cursor = self._cursor()
        timer = threading.Timer(self._seconds, cursor.interrupt)
        timer.start()
        try:
            cursor.execute(_for_duckdb(sql), {**values, **files})
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except duckdb.InterruptException as error:
            raise EngineError(f"No answer in {self._seconds:g} s: choose a shorter time range.") from error
        except duckdb.Error as error:
            raise EngineError(str(error)) from error
        finally:
            timer.cancel()
            cursor.close()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        """Give a cursor. The first one connects, so that a server can fork before."""
        with self._lock:
            if self._connection is None:
                self._connection = duckdb.connect(":memory:", config=self._settings)
                self._connection.execute("SET GLOBAL parquet_metadata_cache = true")
                self._connection.execute("SET temp_directory = ''")
                self._connection.execute("SET allowed_directories = [$lake]", {"lake": f"{self._lake}/"})
                self._connection.execute("SET enable_external_access = false")
                self._connection.execute("SET lock_configuration = true")
            return self._connection.cursor()


class ClickHouse:
    """A ClickHouse that has the lake's files.

    :param run: asks it: takes SQL, the values of its `{name: Type}` and settings; gives Arrow's file format.
    :param seen_at: where it has the lake.
    """

    name = "clickhouse"

    def __init__(
        self,
        run: Callable[[str, dict[str, Any], dict[str, Any]], bytes],
        lake: Path,
        seen_at: str = "",
        seconds: float = 60,
    ) -> None:
        self._run = run
        self._lake = lake
        self._seen_at = (seen_at or str(lake)).rstrip("/")
        self._settings = {
            "max_execution_time": int(seconds),
            "session_timezone": "UTC",
            "use_hive_partitioning": 0,
            "glob_expansion_max_elements": 1_000_000,
            "output_format_arrow_string_as_string": 1,
        }

    def rows(self, sql: str, tables: Files, values: Mapping[str, Any]) -> list[Row]:
        """Give the rows of a question over files of tables."""
        # ClickHouse leaves out what is not there without a word: who asks looks again.
        files = {f"files_of_{table}": self._glob(paths) for table, paths in tables.items()}
        answer = self._run(_for_clickhouse(sql, _kinds(values)), {**_as_texts(values), **files}, self._settings)
        table = pa.ipc.open_file(answer).read_all()
        for place, column in enumerate(table.schema):
            if pa.types.is_timestamp(column.type):
                table = table.set_column(place, column.name, table.column(place).cast(pa.timestamp("us")))
        return table.to_pylist()

    def _glob(self, paths: Sequence[Path]) -> str:
        return f"{self._seen_at}/{{{','.join(_below(self._lake, paths))}}}"


def over_http(url: str) -> Callable[[str, dict[str, Any], dict[str, Any]], bytes]:
    """Give what asks the ClickHouse at an address, such as https://user:password@host:8443."""
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import Error

    try:
        client = clickhouse_connect.get_client(dsn=url, autogenerate_session_id=False)
    except Error as error:
        raise EngineError(f"ClickHouse does not answer: {error}") from error

    def run(sql: str, values: dict[str, Any], settings: dict[str, Any]) -> bytes:
        try:
            return bytes(client.raw_query(sql, parameters=values, settings=settings, fmt="Arrow"))
        except Error as error:
            raise EngineError(str(error)) from error

    return run


class Spark:
    """A Spark that has the lake's files.

    :param seen_at: where it has the lake.
    """

    name = "spark"

    def __init__(self, session: Any, lake: Path, seen_at: str = "") -> None:
        self._session = session
        self._lake = lake
        self._seen_at = (seen_at or str(lake)).rstrip("/")

    def rows(self, sql: str, tables: Files, values: Mapping[str, Any]) -> list[Row]:
        """Give the rows of a question over files of tables."""
        from pyspark.errors import PySparkException

        frames = {
            table: self._session.read.schema(_columns(table, _SPARK_TYPES)).parquet(
                *(f"{self._seen_at}/{name}" for name in _below(self._lake, paths))
            )
            for table, paths in tables.items()
        }
        try:
            answer = self._session.sql(_for_spark(sql, _kinds(values)), args=_as_texts(values), **frames)
            return [row.asDict() for row in answer.collect()]
        except PySparkException as error:
            raise EngineError(str(error)) from error


def spark_session(url: str) -> Any:
    """Give a session of a Spark: sc://host:15002 for Spark Connect, or a master such as local[2]."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("mailreport")
    session = (builder.remote(url) if url.startswith("sc://") else builder.master(url)).getOrCreate()
    session.conf.set("spark.sql.session.timeZone", "UTC")
    return session


_CLICKHOUSE_TYPES = {
    pa.timestamp("us"): "DateTime64(6, 'UTC')",
    pa.string(): "String",
    pa.int32(): "Int32",
    pa.int64(): "Int64",
}
_SPARK_TYPES = {pa.timestamp("us"): "TIMESTAMP_NTZ", pa.string(): "STRING", pa.int32(): "INT", pa.int64(): "BIGINT"}


def _columns(table: str, types: Mapping[pa.DataType, str]) -> str:
    """Give the columns of a table as an engine declares them."""
    return ", ".join(f"{column.name} {types[column.type]}" for column in TABLES[table])


def _function(name: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=list(arguments))


@lru_cache
def _parsed(sql: str) -> exp.Expr:
    return sqlglot.parse_one(sql, dialect="duckdb")


def _translated(sql: str, dialect: str, change: Callable[[exp.Expr], exp.Expr]) -> str:
    """Give the question in an engine's words, after each node of it was changed."""
    question = _parsed(sql).copy()
    for node in list(question.walk()):
        changed = change(node)
        if changed is not node:
            node.replace(changed)
    return question.sql(dialect=dialect)


@lru_cache
def _for_duckdb(sql: str) -> str:
    def change(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Table):
            files = exp.Placeholder(this=f"files_of_{node.name}")
            no_partitions = exp.PropertyEQ(this=exp.to_identifier("hive_partitioning"), expression=exp.false())
            return exp.Table(this=_function("read_parquet", files, no_partitions), alias=node.args.get("alias"))
        return node

    return _translated(sql, "duckdb", change)


@lru_cache
def _for_clickhouse(sql: str, kinds: tuple[tuple[str, type], ...]) -> str:
    types = dict(kinds)

    def change(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Table):
            files = exp.Placeholder(this=f"files_of_{node.name}", kind="String")
            columns = exp.Literal.string(_columns(node.name, _CLICKHOUSE_TYPES))
            return exp.Table(this=_function("file", files, exp.Literal.string("Parquet"), columns))
        if isinstance(node, exp.Placeholder):
            value = exp.Placeholder(this=node.name, kind="Int64" if types[node.name] is int else "String")
            return _time(value) if types[node.name] is datetime else value
        if isinstance(node, exp.Cast) and node.is_type("timestamp", "timestamp_ntz"):
            return _time(node.this)
        if isinstance(node, exp.Lower):  # ClickHouse's own knows ASCII only
            return _function("lowerUTF8", node.this)
        return node

    def _time(node: exp.Expr) -> exp.Expr:
        return _function("toDateTime64", node, exp.Literal.number(6), exp.Literal.string("UTC"))

    return _translated(sql, "clickhouse", change)


@lru_cache
def _for_spark(sql: str, kinds: tuple[tuple[str, type], ...]) -> str:
    types = dict(kinds)

    def change(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Table):  # a name between braces stands for a table that is given beside the text
            return exp.Table(this=exp.Identifier(this=f"{{{node.name}}}"))
        if isinstance(node, exp.Placeholder) and types[node.name] is datetime:
            return exp.cast(node, exp.DType.TIMESTAMPNTZ)
        return node

    return _translated(sql, "spark", change)


def _below(lake: Path, paths: Sequence[Path]) -> list[str]:
    """Give the files' names in the lake, wherever an engine has it."""
    return [path.relative_to(lake).as_posix() for path in paths]


def _as_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give values that each engine takes: times as text, which the question casts."""
    return {name: str(value) if isinstance(value, datetime) else value for name, value in values.items()}


def _kinds(values: Mapping[str, Any]) -> tuple[tuple[str, type], ...]:
    return tuple((name, type(value)) for name, value in values.items())

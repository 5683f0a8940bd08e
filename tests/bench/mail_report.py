#!/usr/bin/env python3
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the lake at 60 million attempts a day: bytes of an attempt, look-ups, charts.

Prints tables and writes ``bench/results/mail_report.json``. Given names of parts (lake), runs only these.
The lake is made, not parsed: addresses, ids, delays and responses have the variety of real logs. It stays in --folder
for the next run; 24 hours take about 8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "roles/mail_report/files/mailreport"
sys.path.insert(0, str(PROJECT))

import duckdb  # noqa: E402
from mailreport import ingest, maintain, rollup  # noqa: E402
from mailreport.engines import DuckDB  # noqa: E402
from mailreport.lake import Lake  # noqa: E402
from mailreport.questions import HOUR, Questions, Search  # noqa: E402
from mailreport.settings import Settings  # noqa: E402

RESULTS = ROOT / "bench/results/mail_report.json"
DAY = datetime(2026, 11, 20)
DAYS = 30
ATTEMPTS_A_DAY = 60_000_000
WARM, LOOKS = 5, 31  # of each kind
FRESH = 5  # processes
GOALS = {"bytes": 60, "1 h": 50, "24 h": 150, "30 days": 1000, "chart": 100}

# Numbers and texts that depend on a row's number and a salt only.
MACROS = """
CREATE MACRO u(i, salt) AS (hash(i, salt) >> 11)::DOUBLE / 9007199254740992.0;
CREATE MACRO n(i, salt, below) AS (hash(i, salt) % below)::BIGINT;
CREATE MACRO hexa(i, salt, digits) AS left(printf('%016x', hash(i, salt)), digits);
CREATE MACRO syllable(number) AS substr(
    'bacadafagajalamanaparasatavabecedefegehejelemeneperesetevebicidifigihijilimiriniposotovobudufuguluchmi',
    1 + 2 * (number % 51)::INT, 2);
CREATE MACRO word(number) AS
    syllable(number) || syllable(number // 51) || syllable(number // 2601)
    || substr('nrstlkm', 1 + (number % 7)::INT, 1);
CREATE MACRO digit(number) AS substr('0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz', 1 + (number % 52)::INT, 1);
CREATE MACRO four(number) AS
    digit(number // 140608) || digit(number // 2704) || digit(number // 52) || digit(number);
CREATE MACRO queue_id(s, i, salt) AS
    digit(s // 380204032) || digit(s // 7311616) || four(s) || four(n(i, salt, 1000000))
    || 'z' || four(1000 * n(i, salt + 1, 5000));
-- Postfix logs two digits.
CREATE MACRO rounded(ms) AS CASE
    WHEN ms < 100 THEN ms // 10 * 10 WHEN ms < 1000 THEN ms // 10 * 10 WHEN ms < 10000 THEN ms // 100 * 100
    ELSE ms // 1000 * 1000 END::INTEGER;
"""

# One hour. Three of five mails go out at once; the fallback tier tries the others again for days.
HOUR_SQL = """
WITH
    numbers AS (
        SELECT range AS i, u(range, 1) AS fate, (power(u(range, 2), 3) * 30000000)::BIGINT AS person,
            TIMESTAMP '{hour}' + to_microseconds(n(range, 3, 3600000000)) AS time
        FROM range({first}, {last})
    ),
    people AS (
        SELECT *,
            u(person, 4) AS provider,
            word(n(person, 5, 20000)) || ['.', '', '_', '.'][1 + n(person, 6, 4)] || word(n(person, 7, 132651))
                || CASE WHEN n(person, 8, 3) = 0 THEN n(person, 9, 100)::VARCHAR ELSE '' END AS local,
            CASE
                WHEN fate < 0.62 THEN 'delivered' WHEN fate < 0.74 THEN 'handed_over' WHEN fate < 0.89 THEN 'deferred'
                WHEN fate < 0.97 THEN 'delivered' WHEN fate < 0.99 THEN 'bounced' ELSE 'expired'
            END AS outcome,
            fate >= 0.74 AND fate < 0.97 AS late
        FROM numbers
    ),
    domains AS (
        SELECT *,
            CASE
                WHEN provider < 0.3 THEN 'gmail.com'
                WHEN provider < 0.45 THEN ['outlook.com', 'hotmail.com', 'live.com', 'msn.com'][1 + n(person, 10, 4)]
                WHEN provider < 0.6 THEN
                    ['yahoo.com', 'gmx.de', 'web.de', 'icloud.com', 'mail.ru', 'orange.fr', 'aol.com']
                    [1 + n(person, 11, 7)]
                ELSE word((power(u(person, 12), 3) * 132651)::BIGINT)
                    || ['.com', '.de', '.net', '.org'][1 + n(person, 13, 4)]
            END AS domain,
            -- Delays: seconds at first, hours later.
            rounded((10 * exp(1.3 * n(i, 14, 5)))::BIGINT + n(i, 15, 60)) AS before,
            rounded((exp(8 * power(u(i, 16), 6)))::BIGINT) AS queue,
            rounded(20 + (exp(6 * u(i, 17)))::BIGINT) AS connect,
            rounded(80 + (exp(8 * u(i, 18)))::BIGINT) AS send,
            CASE WHEN late THEN (exp(6 + 6 * u(i, 19)))::BIGINT ELSE 0 END AS waited
        FROM people
    ),
    mails AS (
        SELECT *,
            time - to_milliseconds(1000 * waited + before + queue + connect + send) AS came,
            CASE WHEN late OR outcome IN ('bounced', 'expired') THEN 'fallback-' || (1 + n(i, 20, 5))
                ELSE 'mx-' || (10 + n(i, 21, 90)) END AS host,
            CASE
                WHEN outcome = 'handed_over' THEN queue_id(epoch(time)::BIGINT, i, 22)
                WHEN outcome = 'delivered' AND provider >= 0.45 THEN
                    CASE n(person, 24, 2) WHEN 0 THEN queue_id(epoch(time)::BIGINT, i, 25)
                    ELSE upper(hexa(i, 26, 10)) END
                ELSE ''
            END AS next_queue_id,
            CASE n(i, 27, 3)
                WHEN 0 THEN hexa(i, 28, 16) || hexa(i, 29, 16) || '@' || word(n(i, 30, 300)) || '.site.example'
                WHEN 1 THEN
                    n(i, 28, 1000000000) || '.' || n(i, 29, 100000) || '.' || epoch_ms(time) || '@app-' || n(i, 32, 200)
                ELSE strftime(time, '%Y%m%d%H%M%S') || '.' || upper(hexa(i, 31, 11))
                    || '@app-' || n(i, 32, 200) || '.site.example'
            END AS message_id
        FROM domains
    )
SELECT
    time, host, 'postfix' AS instance, queue_id(epoch(came)::BIGINT, i, 33) AS queue_id,
    date_trunc('second', came) AS arrived,
    message_id,
    'app-' || n(i, 34, 200) || '.site.example' AS client,
    '10.1.' || n(i, 34, 200) % 8 || '.' || n(i, 34, 200) AS client_address,
    CASE WHEN n(i, 35, 10) = 0 THEN 'bounce-' || n(i, 36, 100000000) || '@news.site.example'
        ELSE word((power(u(i, 37), 4) * 20000)::BIGINT) || '@site.example' END AS sender,
    local || '@' || domain AS recipient, domain AS recipient_domain,
    CASE WHEN n(i, 38, 50) = 0 THEN word(n(i, 39, 132651)) || '@alias.example' ELSE '' END AS original_recipient,
    CASE WHEN outcome = 'handed_over' THEN 'fallback.vip.site.example' WHEN outcome = 'expired' THEN 'none'
        ELSE 'mx' || n(i, 40, 4) || '.' || domain END AS relay,
    CASE WHEN outcome = 'handed_over' THEN '10.2.0.1' WHEN outcome = 'expired' THEN ''
        ELSE concat_ws('.', 20 + n(hash(domain), 41, 200), n(hash(domain), 42, 256),
            n(hash(domain), 43, 256), n(i, 40, 4))
    END AS relay_address,
    CASE WHEN outcome = 'expired' THEN 0 ELSE 25 END::INTEGER AS relay_port,
    rounded(1000 * waited + before + queue + connect + send) AS delay_ms,
    rounded(1000 * waited + before) AS delay_before_ms,
    queue AS delay_queue_ms, connect AS delay_connect_ms, send AS delay_send_ms,
    CASE outcome WHEN 'deferred' THEN ['4.7.1', '4.2.2', '4.4.1', '4.7.0'][1 + n(person, 44, 4)]
        WHEN 'bounced' THEN ['5.1.1', '5.7.1'][1 + n(person, 45, 2)]
        WHEN 'expired' THEN '4.4.7' ELSE '2.0.0' END AS dsn,
    CASE outcome WHEN 'handed_over' THEN 'sent' WHEN 'delivered' THEN 'sent' ELSE outcome END AS status,
    outcome,
    CASE
        WHEN next_queue_id <> '' THEN '250 2.0.0 Ok: queued as ' || next_queue_id
        WHEN outcome = 'delivered' AND provider < 0.3 THEN '250 2.0.0 OK  ' || epoch(time)::BIGINT || ' '
            || hexa(i, 46, 13) || '-' || hexa(i, 47, 11) || 'si' || n(i, 48, 10000000) || '.' || n(i, 49, 1000)
            || ' - gsmtp'
        WHEN outcome = 'delivered' THEN
            '250 2.6.0 <' || message_id || '> [InternalId=' || hash(i, 50) % 100000000000000
            || ', Hostname=AM0PR0' || n(i, 51, 9) || 'MB' || n(i, 52, 4000) || '.eurprd0' || n(i, 51, 9)
            || '.prod.outlook.com] ' || n(i, 53, 90000) || ' bytes in 0.' || n(i, 54, 900) || ', ' || n(i, 55, 900)
            || '.' || n(i, 56, 1000) || ' KB/sec Queued mail for delivery'
        WHEN outcome = 'expired' THEN
            'delivery temporarily suspended: connect to mx0.' || domain || ': Connection timed out'
        WHEN n(person, 44, 4) = 2 THEN 'connect to mx' || n(i, 40, 4) || '.' || domain || ':25: Connection timed out'
        WHEN outcome = 'bounced' THEN 'host mx0.' || domain || ' said: 550 5.1.1 <' || local || '@' || domain
            || '>: Recipient address rejected: User unknown in virtual mailbox table (in reply to RCPT TO command)'
        ELSE 'host mx' || n(i, 40, 4) || '.' || domain || ' said: 450 4.7.1 <' || local || '@' || domain
            || '>: Recipient address rejected: Greylisted, see http://postgrey.example/help/' || domain
            || '.html (in reply to RCPT TO command)'
    END AS response,
    CASE WHEN outcome = 'handed_over' THEN
        'host mx0.' || domain || ' said: 421 4.7.0 Try again later (in reply to end of DATA command)'
        ELSE '' END AS reason,
    next_queue_id,
    (600 + exp(7 + 4 * u(i, 57)))::BIGINT AS size,
    CASE WHEN n(i, 58, 10) = 0 THEN 1 + n(i, 59, 20) ELSE 1 END::INTEGER AS recipients
FROM mails
"""


class Made:
    """The lake: a day in hours, some of them distinct, and the days before as one file under many names."""

    def __init__(self, folder: Path, hours: int) -> None:
        self.lake = Lake(folder / "lake")
        self.whole = folder / "whole"  # a lake of the day alone, to be compacted
        self.temporary = folder / "temporary"
        self.hours = hours

    def make(self) -> None:
        """Make what is not there yet."""
        for number in range(self.hours):
            hour = DAY + number * HOUR
            if not self.lake.hour("rollups", hour).exists():
                start = time.monotonic()
                self._hour(hour, number)
                print(f"{hour:%H}:00 made in {time.monotonic() - start:.0f} s", flush=True)
        for number in range(self.hours, 24):
            self._again(DAY + number * HOUR, DAY + number % self.hours * HOUR)
        if not (self.whole / "attempts").exists():
            self._compact()
        for table in ("attempts", "rollups"):
            for number in range(1, DAYS):
                link(self.compacted(table), self.lake.day(table, (DAY - timedelta(days=number)).date()) / "day.parquet")

    def compacted(self, table: str) -> Path:
        """Give the file of the day as the program compacts it."""
        return Lake(self.whole).day(table, DAY.date()) / "day.parquet"

    @contextmanager
    def engine(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give an engine to write with."""
        with duckdb.connect(config={"memory_limit": "8GB", "temp_directory": str(self.temporary)}) as engine:
            yield engine
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _hour(self, hour: datetime, number: int) -> None:
        size = ATTEMPTS_A_DAY // 24
        with self.engine() as engine:
            engine.execute(MACROS)
            made = HOUR_SQL.format(hour=hour, first=number * size, last=(number + 1) * size)
            engine.execute(f"CREATE TABLE attempts AS {made}")
            for table, sql in (
                ("attempts", f"FROM attempts ORDER BY {ingest.ORDER['attempts']}"),
                ("rollups", rollup.SQL),
            ):
                ingest.save(engine, sql, self.lake.hour(table, hour))

    def _again(self, hour: datetime, made: datetime) -> None:
        """Use an hour for another: its attempts as they are, its roll-ups at their time."""
        link(self.lake.hour("attempts", made), self.lake.hour("attempts", hour))
        if not self.lake.hour("rollups", hour).exists():
            rows = f"SELECT * REPLACE (bucket + TO_HOURS({(hour - made) // HOUR}) AS bucket)"
            with self.engine() as engine:
                ingest.save(engine, f"{rows} FROM '{self.lake.hour('rollups', made)}'", self.lake.hour("rollups", hour))

    def _compact(self) -> None:
        """Let the program compact the day, in a lake of its own."""
        whole = Lake(self.whole)
        for table, hours in (("attempts", self.hours), ("rollups", 24)):
            for hour in (DAY + number * HOUR for number in range(hours)):
                link(self.lake.hour(table, hour), whole.hour(table, hour))
        start, used = time.monotonic(), time.process_time()
        maintain.compact(ingest.Hours(Settings(logs=self.whole, lake=self.whole)), DAY + timedelta(days=2))
        print(f"compacted in {time.monotonic() - start:.0f} s, {time.process_time() - used:.0f} CPU s")


def link(path: Path, name: Path) -> None:
    """Give a file one more name."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    name.hardlink_to(path)


def cost(*paths: Path) -> tuple[float, dict[str, float]]:
    """Give bytes of a row in files, and of each of its columns."""
    names = [str(path) for path in paths]
    rows = duckdb.execute("SELECT sum(num_rows) FROM parquet_file_metadata($names)", {"names": names}).fetchone()
    assert rows
    columns = duckdb.execute(
        "SELECT path_in_schema, sum(total_compressed_size) FROM parquet_metadata($names) GROUP BY ALL ORDER BY 2 DESC",
        {"names": names},
    ).fetchall()
    total = sum(path.stat().st_size for path in paths) / int(rows[0])
    return total, {name: round(size / int(rows[0]), 2) for name, size in columns}


def median_ms(asks: Sequence[Callable[[], Any]]) -> dict[str, float]:
    """Ask questions; give the median and the 95th percentile of their milliseconds, and those of a processor."""
    times = []
    before = time.process_time()
    for ask in asks:
        start = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - start))
    return {
        "p50": round(statistics.median(times), 1),
        "p95": round(sorted(times)[len(times) * 95 // 100], 1),
        "cpu": round(1000 * (time.process_time() - before) / len(times), 1),
        "n": len(times),
    }


# Prints the milliseconds of a question, and these with its imports.
ALONE = """
import sys, time
start = time.perf_counter()
sys.path.insert(0, sys.argv[1])
from datetime import datetime
from pathlib import Path
from mailreport.engines import DuckDB
from mailreport.lake import Lake
from mailreport.questions import Questions, Search
asked = time.perf_counter()
root, (begin, end) = Path(sys.argv[2]), map(datetime.fromisoformat, sys.argv[3:5])
Questions(Lake(root), DuckDB(root)).search(Search(begin, end, recipient=sys.argv[5]))
print(1000 * (time.perf_counter() - asked), 1000 * (time.perf_counter() - start))
"""


def in_a_fresh_process(root: Path, begin: datetime, end: datetime, recipient: str) -> list[float]:
    """Ask for a recipient; give the milliseconds of the question, and these with the imports."""
    words: list[str | Path] = [
        sys.executable,
        "-c",
        ALONE,
        PROJECT,
        root,
        begin.isoformat(),
        end.isoformat(),
        recipient,
    ]
    return [float(word) for word in subprocess.check_output(words).split()]


def lake(folder: Path, hours: int) -> dict[str, Any]:
    """Measure a lake of 60 million attempts a day."""
    made = Made(folder, hours)
    made.make()
    end, last = DAY + 24 * HOUR, DAY + (hours - 1) * HOUR
    spans = {"1 h": (last, last + HOUR), "24 h": (DAY, end), f"{DAYS} days": (DAY - timedelta(days=DAYS - 1), end)}
    files = made.lake.files("attempts", DAY, last + HOUR)
    answer: dict[str, Any] = {"hours": hours, "look-ups": {}, "fresh process": {}, "charts": {}}
    for name, paths in (("hours", files), ("compacted", [made.compacted("attempts")])):
        total, columns = cost(*paths)
        answer[f"bytes, {name}"] = {"total": round(total, 1), **columns}
        print(f"\n{name}: {total:.1f} bytes an attempt (goal {GOALS['bytes']})")
        print(", ".join(f"{column} {size}" for column, size in columns.items()))
    rollups = sum(path.stat().st_size for path in made.lake.files("rollups", DAY, end))
    answer["bytes of roll-ups"] = round(rollups / ATTEMPTS_A_DAY, 2)
    print(f"roll-ups: {answer['bytes of roll-ups']} bytes an attempt")

    questions = Questions(made.lake, DuckDB(made.lake.root, threads=os.cpu_count() or 1))
    sample = f"SELECT recipient FROM read_parquet($file) USING SAMPLE reservoir({WARM + LOOKS} ROWS) REPEATABLE (7)"
    known = [row[0] for row in duckdb.execute(sample, {"file": str(files[-1])}).fetchall()]
    print("\nlook-up by recipient          p50 ms   p95 ms   CPU ms   goal   fresh process, of it the question")
    for name, (begin, until) in spans.items():
        asks = [partial(questions.search, Search(begin, until, recipient=recipient)) for recipient in known]
        median_ms(asks[:WARM])  # fills the caches
        times = answer["look-ups"][name] = median_ms(asks[WARM:])
        alone = [in_a_fresh_process(made.lake.root, begin, until, recipient) for recipient in known[:FRESH]]
        question, whole = (round(statistics.median(column)) for column in zip(*alone, strict=True))
        answer["fresh process"][name] = {"whole": whole, "question": question}
        print(f"  {name:26}{times['p50']:8}{times['p95']:9}{times['cpu']:9}{GOALS[name]:7}   {whole} ms, {question} ms")
    charts: dict[str, Callable[[], Any]] = {
        "24 h chart, all": lambda: questions.series(DAY, end),
        "24 h chart, a domain": lambda: questions.series(DAY, end, "domain", "gmail.com"),
        "24 h top errors": lambda: questions.top(DAY, end, "error"),
        "24 h top domains": lambda: questions.top(DAY, end, "domain", "deferred"),
        f"{DAYS} days chart, all": lambda: questions.series(*spans[f"{DAYS} days"]),
    }
    print()
    for name, chart in charts.items():
        median_ms([chart] * 2)
        times = answer["charts"][name] = median_ms([chart] * 9)
        print(
            f"  {name:26}{times['p50']:8}{times['p95']:9}{times['cpu']:9}"
            + (f"{GOALS['chart']:7}" if name == "24 h chart, all" else "")
        )
    print(
        f"""
The newest day is 24 files of {ATTEMPTS_A_DAY / 24e6:.1f} M attempts, {hours} of them distinct, the others these under
more names (hard links). The {DAYS - 1} days before are one file of {hours * ATTEMPTS_A_DAY / 24e6:.1f} M attempts,
compacted from the distinct hours, under {DAYS - 1} names. Each name is opened and read as a file of its own,
but the disk's cache holds it once, and a recipient has the same attempts under each name.
DuckDB {duckdb.__version__}, {os.cpu_count()} cores."""
    )
    return answer


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lake": lambda given: lake(given.folder, given.hours),
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".cache/mail_report", help="for the lake (default: %(default)s)"
    )
    parser.add_argument(
        "--hours", type=int, default=24, choices=range(1, 25), metavar="1-24", help="that are distinct (default: 24)"
    )
    given = parser.parse_args()
    answers = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in given.parts or PARTS:
        print(f"== {part}")
        answers[part] = PARTS[part](given)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(answers, indent=2) + "\n")


if __name__ == "__main__":
    main()

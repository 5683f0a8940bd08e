# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the command line."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import pty
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mailreport import cli, output

PROJECT = Path(cli.__file__).parents[1]
RANGE = ("--since", "2026-11-19T00:00:00Z", "--until", "2026-11-22T00:00:00Z")
Run = Callable[..., str]


@pytest.fixture
def config(small: Any, tmp_path: Path) -> Path:
    """Settings of the small lake."""
    (tmp_path / "logs").mkdir()
    path = tmp_path / "mailreport.toml"
    path.write_text(f'logs = "{tmp_path}/logs"\nlake = "{small.lake.root}"\nworkers = 1\n')
    return path


@pytest.fixture
def run(config: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; gives what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        ended = cli.main(["--config", str(config), *arguments])
        said = capsys.readouterr()
        assert ended == code, said
        return said.out + said.err

    return run


def test_search_gives_json_lines(run: Run, small: Any) -> None:
    lines = run(
        "search", *RANGE, "--recipient", "@slow.test", "--outcome", "bounced", "--limit", "0", "--format", "json"
    )
    rows = [json.loads(line) for line in lines.splitlines()]
    expected = [row for row in small.attempts if (row["recipient_domain"], row["outcome"]) == ("slow.test", "bounced")]
    assert Counter(row["queue_id"] for row in rows) == Counter(row["queue_id"] for row in expected)
    assert {row["response"] for row in rows} == {row["response"] for row in expected}
    assert [row["time"] for row in rows] == sorted((f"{row['time'].isoformat()}Z" for row in expected), reverse=True)


def test_search_pages_up_to_the_limit(run: Run, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "PAGE", 7)
    for limit, expected in (("20", 20), ("1", 1), ("0", sum(row["host"] == "sink-01" for row in small.attempts))):
        lines = run("search", *RANGE, "--host", "sink-01", "--limit", limit, "--format", "json").splitlines()
        assert len(lines) == len(set(lines)) == expected


def test_search_gives_csv_without_formulas(run: Run) -> None:
    text = run("search", *RANGE, "--limit", "0", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {
        "'=HYPERLINK(1)\ttab\r\nline \x1b[31mred\x1b[0m \x07 \x9b31m",
        "'@SUM(1+1)",
        "'+1",
        "'-1",
        "plain refusal",
    } <= {row["response"] for row in rows}
    assert not [cell for row in rows for cell in row.values() if cell and cell[0] in "=+-@\t\r\n"]
    assert rows[0]["delay_ms"].isdigit()


def test_table_escapes_what_commands_a_terminal(run: Run) -> None:
    text = run("search", *RANGE, "--outcome", "bounced", "--limit", "0")
    assert "\\x1b[31mred" in text
    assert "\\u202egnp.exe" in text
    assert not [character for character in text if character in "\x1b\x07\x9b\u202e\t\r"]
    header, *rows = text.splitlines()
    assert header.split() == list(cli.SEARCHED)
    place = header.index("recipient")
    assert {row[place - 2 : place] for row in rows} == {"  "}


def test_table_fits_the_terminal(config: Path) -> None:
    ours, theirs = pty.openpty()
    program = "import sys; from mailreport.cli import main; sys.exit(main())"
    words: list[str | Path] = [
        sys.executable,
        "-c",
        program,
        "--config",
        config,
        "search",
        *RANGE,
        "--outcome",
        "bounced",
        "--limit",
        "3",
    ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "90"}
    subprocess.run(words, stdout=theirs, env=environment, check=True, timeout=60)
    lines = os.read(ours, 1 << 16).decode().splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 90 for line in lines)
    assert "…" in lines[1]


@pytest.mark.parametrize("width", [0, 30, 50, 1000])
def test_columns_of_a_table_line_up(width: int) -> None:
    rows = [["a", "日本語のテキスト" * 4, "x"], ["bb", "é" * 3, "y" * 60], ["c", "e\u0301" * 50, "z"]]
    lines = list(output.table(["one", "two", "three"], rows, width))
    for line in lines:
        assert output._width(line) <= (width or 1000)
    if not width:
        assert [line.split() for line in lines] == [["one", "two", "three"], *rows]


def test_rejects_are_searched(run: Run, small: Any) -> None:
    rows = run("search", *RANGE, "--rejects", "--client", "192.0.2.3", "--limit", "0", "--format", "json").splitlines()
    assert len(rows) == sum(row["client_address"] == "192.0.2.3" for row in small.rejects)
    assert json.loads(rows[0])["service"] == "smtpd"
    assert "REJECT" not in run("search", *RANGE, "--rejects")


def test_trace_shows_all_hosts_and_their_lines(run: Run, small: Any, config: Path) -> None:
    last = next(row for row in small.attempts if row["host"] == "sink-01")
    first = next(row for row in small.attempts if row["message_id"] == last["message_id"])
    logs = config.parent / "logs" / first["host"]
    logs.mkdir()
    line = f"{first['time'].isoformat()}+00:00 mx postfix/smtp[1]: {first['queue_id']}: \x1b]0;title\x07"
    (logs / f"{first['time']:%Y-%m-%dT%H}.log").write_text(f"{line}\n")
    for name in (
        f"{first['host']}/{first['queue_id']}",
        last["queue_id"],
        first["message_id"],
        f"<{first['message_id']}>",
    ):
        for journey in map(json.loads, run("trace", *RANGE, name, "--raw", "--format", "json").splitlines()):
            if first["message_id"] in {message["message_id"] for message in journey["messages"]}:
                break
        else:
            raise AssertionError(f"{name} does not lead to the mail")
        assert {message["host"] for message in journey["messages"]} == {first["host"], "fallback-01", "sink-01"}
        assert [message["lines"] for message in journey["messages"] if message["host"] == first["host"]] == [[line]]
    text = run("trace", *RANGE, first["message_id"], "--raw")
    assert f"{last['host']}/{last['queue_id']} took {last['message_id']}" in text
    assert "\\x1b]0;title\\x07" in text
    assert "\x1b" not in text
    one = run("trace", *RANGE, first["message_id"], "--recipient", last["recipient"], "--format", "json")
    assert {attempt["recipient"] for attempt in json.loads(one)["attempts"]} == {last["recipient"]}


def test_trace_shows_each_mail_once(run: Run, small: Any) -> None:
    mails = {row["message_id"] for row in small.attempts if row["host"] == "mx-02" and row["queue_id"] == "7A0"}
    journeys = run("trace", *RANGE, "mx-02/7A0", "--format", "json").splitlines()
    shown = [{message["message_id"] for message in json.loads(journey)["messages"]} for journey in journeys]
    assert sorted(shown, key=sorted) == sorted(({mail} for mail in mails), key=sorted)


def test_trace_of_nothing_tells_what_to_do(run: Run) -> None:
    assert "--since" in run("trace", *RANGE, "mx-01/FFFFFF", code=1)


def test_stats_count(run: Run, small: Any) -> None:
    counts = Counter(row["outcome"] for row in small.attempts)
    answer = json.loads(run("stats", *RANGE, "--format", "json"))
    assert answer["outcomes"] == counts
    assert answer["top"]["domain"][0]["attempts"] > answer["top"]["domain"][1]["attempts"] > 0
    text = run("stats", *RANGE)
    final = counts["delivered"] + counts["bounced"] + counts["expired"]
    assert f"{counts['delivered'] / final:.3%} of what ended: the delivery rate" in text
    assert f"{counts['deferred'] / (final + counts['deferred']):.3%} of all tries: soft bounces" in text
    assert f"99 % in {answer['p99_ms']} ms" in text
    assert "\x1b" not in text
    host = json.loads(run("stats", *RANGE, "--by", "host", "--key", "mx-01", "--format", "json"))
    assert host["outcomes"]["probe"] == sum(
        (row["host"], row["outcome"]) == ("mx-01", "probe") for row in small.attempts
    )
    assert "delivered                 0 " in run("stats", "--since", "1h", "--until", "now")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", datetime(2026, 11, 21, 12)),
        ("90s", datetime(2026, 11, 21, 11, 58, 30)),
        ("15m", datetime(2026, 11, 21, 11, 45)),
        ("2h", datetime(2026, 11, 21, 10)),
        ("7d", datetime(2026, 11, 14, 12)),
        ("1w", datetime(2026, 11, 14, 12)),
        ("2026-11-21T14:00:00Z", datetime(2026, 11, 21, 14)),
        ("2026-11-21T14:00:00.5+05:30", datetime(2026, 11, 21, 8, 30, 0, 500000)),
        ("2026-11-21T14:00", datetime(2026, 11, 21, 13)),  # winter in Berlin
        ("2026-07-01", datetime(2026, 6, 30, 22)),  # summer
    ],
)
def test_times(text: str, expected: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert cli.moment(text, datetime(2026, 11, 21, 12)) == expected
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "2x", "99999999d", "999999w", "2026-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time: give 15m"):
        cli.moment(text, datetime(2026, 11, 21))


def test_wrong_settings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.toml").write_text("lake = 1")
    assert cli.main(["--config", str(tmp_path / "wrong.toml"), "stats"]) == 2
    assert f"mailreport: {tmp_path}/wrong.toml: logs: is needed." in capsys.readouterr().err


LOG = """\
{time}+00:00 mx-01 postfix/smtpd[1]: 4F2A0B1C9D: client=app.site.test[192.0.2.1]
{time}+00:00 mx-01 postfix/cleanup[2]: 4F2A0B1C9D: message-id=<1@site.test>
{time}+00:00 mx-01 postfix/qmgr[3]: 4F2A0B1C9D: from=<a@site.test>, size=700, nrcpt=1 (queue active)
{time}+00:00 mx-01 postfix/smtp[4]: 4F2A0B1C9D: to=<b@example.net>, relay=mx.example.net[198.51.100.1]:25, delay=0.5, \
delays=0.1/0/0.2/0.2, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 9AB0C1D2E3)
{time}+00:00 mx-01 postfix/qmgr[3]: 4F2A0B1C9D: removed
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with logs of the last hours, and no lake yet."""
    logs = tmp_path / "logs/mx-01"
    logs.mkdir(parents=True)
    now = datetime.now(UTC).replace(tzinfo=None)
    for ago in range(6):
        hour = now - timedelta(hours=ago)
        stamp = hour.replace(minute=0, second=0, microsecond=1).isoformat()
        (logs / f"{hour:%Y-%m-%dT%H}.log").write_text(LOG.format(time=stamp))
    (tmp_path / "lake").mkdir()
    config = tmp_path / "mailreport.toml"
    config.write_text(f'logs = "{tmp_path}/logs"\nlake = "{tmp_path}/lake"\nworkers = 1\n')
    return config


def test_ingest_makes_hours_and_doctor_is_content(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main(["--config", str(site), *arguments])
        return code, capsys.readouterr().out

    code, said = run("doctor")
    assert code == 2
    assert "WARNING  duckdb finds no mail of the last week in the lake\n         Send one. Run" in said
    assert "hours of logs are not in the lake: " in said
    assert run("ingest") == (0, "5 hours were made.\n")
    assert run("ingest") == (0, "All hours were made before.\n")
    code, said = run("doctor")
    assert (code, said.count("ok  ")) == (0, 5), said
    hour = (datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%dT%H")
    assert run("ingest", "--hour", hour) == (0, "1 hours were made.\n")
    assert run("ingest", "--hour", "2020-01-01T00")[0] == 2
    rows = run("search", "--recipient", "b@example.net", "--format", "json")[1].splitlines()
    assert [json.loads(row)["next_queue_id"] for row in rows] == ["9AB0C1D2E3"] * 5


def test_doctor_finds_what_is_wrong(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", str(site), "ingest"]) == 0
    logs = site.parent / "logs/mx-01"
    old = time.time() - 86400
    for path in logs.iterdir():
        os.utime(path, (old, old))
    sorted(logs.iterdir())[1].unlink()
    (manifest,) = list((site.parent / "lake/manifests").rglob("*.json"))[:1]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"unparsed": 9}))
    capsys.readouterr()
    assert cli.main(["--config", str(site), "doctor"]) == 1
    said = capsys.readouterr().out
    assert "WARNING  no new lines from mx-01 (since " in said
    assert "WARNING  1 hours have no log of any host: " in said
    assert "WARNING  9 of 25 lines of the last day are known to no rule" in said
    (site.parent / "logs").rename(site.parent / "gone")
    assert cli.main(["--config", str(site), "doctor"]) == 2
    assert "logs cannot be read: No such file or directory" in capsys.readouterr().out


def test_logs_that_came_another_way_are_brought_in(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "maillog"
    old.write_text(LOG.format(time="X").replace("X+00:00", "Nov 20 10:00:00"))
    arguments = ["ingest", "--host", "old-01", "--year", "2026", "--zone", "Europe/Berlin", str(old)]
    assert cli.main(["--config", str(site), *arguments]) == 0
    capsys.readouterr()
    assert cli.main(["--config", str(site), "search", *RANGE, "--host", "old-01", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["time"] == "2026-11-20T09:00:00Z"
    with pytest.raises(SystemExit):
        cli.main(["--config", str(site), "ingest", str(old)])
    assert "--host" in capsys.readouterr().err

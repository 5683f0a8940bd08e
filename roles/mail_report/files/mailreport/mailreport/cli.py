# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `mailreport`."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import duckdb

from mailreport import engines, metrics, output, raw
from mailreport.lake import ATTEMPTS, DIMENSIONS, OUTCOMES, REJECTS
from mailreport.questions import Journey, Mail, Message, Page, Questions, Row, Search, mail_of
from mailreport.settings import CONFIG, Settings, SettingsError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
LOOK_S = 20
PAGE = 1000  # rows
SEARCHED = ("time", "host", "queue_id", "sender", "recipient", "outcome", "relay", "dsn", "response")
REFUSED = ("time", "host", "service", "action", "client_address", "sender", "recipient", "dsn", "response")
STEPS = ("time", "recipient", "outcome", "delay_ms", "relay", "dsn", "response")
TOPS = ("error", "domain", "relay", "host")
ENDS = {"delivered": "the delivery rate", "bounced": "hard bounces", "expired": "given up"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit code: 0 all is well, 1 not so, 2 it could not do its work."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(Settings.read(given.config), given))
    except BrokenPipeError:  # whoever reads, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (SettingsError, engines.EngineError, OSError, duckdb.Error) as error:
        print(f"mailreport: {error}", file=sys.stderr)
        return 2


def run_ingest(settings: Settings, given: argparse.Namespace) -> int:
    """Bring logs into the lake, and keep the lake in order."""
    from mailreport import ingest, maintain  # they bring the compiler, which no question needs

    if given.files:
        if not given.host:
            given.refuse("name the host that wrote the files: --host")
        ingest.bring_in(settings, given.files, given.host, given.year, given.zone)
    hours = ingest.Hours(settings)
    if given.follow:
        follower = ingest.Follower(hours)
        while True:
            follower.look()
            time.sleep(LOOK_S)
    sources = hours.sources()
    again = list(sources) if given.all else given.hour
    if missing := [f"{hour:%Y-%m-%dT%H}" for hour in again if hour not in sources]:
        raise FileNotFoundError(f"there are no logs of {', '.join(missing)}, in UTC")
    with hours.lock("ingest"):
        for hour in again:
            hours.make(hour, sources[hour], _progress)
    made = [*again, *hours.run(progress=_progress)]
    maintain.compact(hours)
    maintain.forget(hours)
    hours.lake.mark("ingested", time.time())
    print(f"{len(made)} hours were made." if made else "All hours were made before.")
    return 0


def _progress(text: str) -> None:
    """Show how far it is to who watches, and what is done to the journal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text.endswith("\n"):
        print(text, end="", file=sys.stderr, flush=True)


def run_search(settings: Settings, given: argparse.Namespace) -> int:
    """Print attempts, or mails that were not taken."""
    questions = Questions.of(settings)
    names, shown = (REJECTS.names, REFUSED) if given.rejects else (ATTEMPTS.names, SEARCHED)
    rows = _rows(questions.rejects if given.rejects else questions.search, _search(given), given.limit)
    if given.format == "json":
        for row in rows:
            print(output.as_json(row))
    elif given.format == "csv":
        output.write_csv(sys.stdout, names, rows)
    else:
        _print_rows(shown, [_cells(row, shown) for row in rows])
    return 0


def run_trace(settings: Settings, given: argparse.Namespace) -> int:
    """Print what happened to a mail on all its hosts."""
    found = False
    for journey in _journeys(Questions.of(settings), given):
        found = True
        lines = {mail: list(raw.lines(settings.logs, mail)) for mail in journey.messages} if given.raw else {}
        if given.format == "json":
            messages = [mail._asdict() | ({"lines": lines[mail]} if given.raw else {}) for mail in journey.messages]
            print(output.as_json({"messages": messages, "attempts": journey.attempts, "complete": journey.complete}))
        else:
            _print_journey(journey, lines)
    if not found:
        print("mailreport: no such mail in this time: look further back with --since.", file=sys.stderr)
    return 0 if found else 1


def run_stats(settings: Settings, given: argparse.Namespace) -> int:
    """Print how attempts ended, how long they took, and where most fail."""
    questions = Questions.of(settings)
    total = questions.total(given.since, given.until, given.by, given.key)
    tops = {name: questions.top(given.since, given.until, name, given.top, given.limit) for name in TOPS}
    if given.format == "json":
        found = {name: [one._asdict() for one in ones] for name, ones in tops.items()}
        print(output.as_json({**vars(total), "end": given.until, "top": found}))
        return 0
    counts = total.outcomes
    final = counts["delivered"] + counts["bounced"] + counts["expired"]
    shares = {"deferred": (final + counts["deferred"], "of all tries: soft bounces")}
    shares |= {name: (final, f"of what ended: {what}") for name, what in ENDS.items()}
    seconds = (given.until - given.since).total_seconds()
    for name, number in counts.items():
        whole, what = shares.get(name, (0, ""))
        share = f"{number / whole:9.3%} {what}" if whole else ""
        print(f"{name:12}{number:15,}{number / seconds:10,.1f}/s {share}".rstrip())
    if total.p50_ms is not None:
        delays = f"50 % in {total.p50_ms} ms, 90 % in {total.p90_ms} ms, 99 % in {total.p99_ms} ms, at most"
        print(f"\nDelivered: {delays}")
    for name, ones in tops.items():
        if ones:
            print()
            _print_rows(
                [f"{name}s", given.top, "all"], [[one.key, f"{one.attempts:,}", f"{one.total:,}"] for one in ones]
            )
    return 0


def run_doctor(settings: Settings, given: argparse.Namespace) -> int:
    """Print what is wrong, and what to do; the exit code is the worst: 1 a warning, 2 an error."""
    from mailreport import doctor  # as above

    worst = doctor.OK
    for finding in doctor.examine(settings, Questions.of(settings), given.now):
        print(f"{('ok', 'WARNING', 'ERROR')[finding.level]:8} {output.visible(finding.what)}")
        if finding.do:
            print(f"{'':8} {finding.do}")
        worst = max(worst, finding.level)
    return worst


def run_metrics(settings: Settings, given: argparse.Namespace) -> int:
    """Print what Prometheus is to know of the lake, or write it to a file; 1 if a part of it cannot be told."""
    told, problems = metrics.tell(settings, given.now)
    for problem in problems:
        print(f"mailreport: {output.visible(problem)}", file=sys.stderr)
    if given.output:
        metrics.write(given.output, metrics.text(told))
    else:
        print(metrics.text(told), end="")
    return 1 if problems else 0


def _search(given: argparse.Namespace) -> Search:
    asked = {one.name: getattr(given, one.name) for one in fields(Search) if one.name in given}
    return Search(given.since, given.until, **asked)


def _rows(ask: Callable[[Search, int, str], Page], search: Search, limit: int) -> Iterator[Row]:
    """Give rows page by page, up to a limit if it is not 0."""
    after, left = "", limit or sys.maxsize
    while left:
        page = ask(search, min(left, PAGE), after)
        yield from page.rows
        left -= len(page.rows)
        after = page.after
        if not after:
            return


def _journeys(questions: Questions, given: argparse.Namespace) -> Iterator[Journey]:
    """Give the journeys of what was named, each mail once, the oldest first: it has all recipients."""
    name = given.mail
    if "@" in name or name.startswith("<"):
        search = Search(given.since, given.until, message_id=name)
    else:
        host, _slash, queue_id = name.rpartition("/")
        search = Search(given.since, given.until, queue_id=queue_id, host=host)
    shown: set[Mail] = set()
    for row in reversed(list(_rows(questions.search, search, PAGE))):
        mail = mail_of(row)
        if mail not in shown and mail.queue_id == (search.queue_id or mail.queue_id):
            journey = questions.journey(*mail, recipient=given.recipient)
            shown |= {mail, *(Mail(*one[:4]) for one in journey.messages)}
            if journey.attempts:
                yield journey


def _print_journey(journey: Journey, lines: Mapping[Message, Sequence[str]]) -> None:
    """Print the mail on one host after another."""
    for mail in journey.messages:
        client = f" by {mail.client}[{mail.client_address}]" if mail.client else ""
        print(output.visible(f"{mail.host}/{mail.queue_id} took {mail.message_id} of <{mail.sender}>{client}"))
        print(f"  at {_local(mail.arrived)}, {mail.size} bytes for {mail.recipients}")
        rows = [["  " + _cell(row[STEPS[0]]), *_cells(row, STEPS[1:])] for row in journey.attempts_of(mail)]
        _print_rows([f"  {STEPS[0]}", *STEPS[1:]], rows)
        for line in lines.get(mail, ()):
            print(f"  | {output.visible(line)}")
    if not journey.complete:
        print("More recipients than are shown: name one with --recipient.")
    print()


def _print_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the terminal, if there is one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in output.table(names, rows, width):
        print(line)


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    return [_cell(row[name]) for name in names]


def _cell(value: Any) -> str:
    return _local(value) if isinstance(value, datetime) else str(value)


def _local(time: datetime) -> str:
    """Give a time of the lake in the zone of who reads."""
    return time.replace(tzinfo=UTC).astimezone().isoformat(" ", "milliseconds")


def moment(text: str, now: datetime) -> datetime:
    """Read a time: 90s, 15m, 2h, 7d or 4w ago, now, or as RFC 3339 has it; without a zone it is local."""
    if text == "now":
        return now
    try:
        if match := re.fullmatch(r"(\d+)([smhdw])", text):
            return now - timedelta(**{UNITS[match[2]]: int(match[1])})
        return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: give 15m, 2h or 7d for so long ago, 2026-11-21T14:00, or 2026-11-21T14:00:00Z"
        ) from error


def _hour(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no hour: give 2026-11-21T14, in UTC") from error


def _zone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time zone: give one such as Europe/Berlin") from error


def _parser() -> argparse.ArgumentParser:
    """Say what the command takes."""
    now = datetime.now(UTC).replace(tzinfo=None)

    def at(text: str) -> datetime:
        return moment(text, now)

    parser = argparse.ArgumentParser(prog="mailreport", description="Ask what happened to a mail.")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings (default: %(default)s)")
    parser.set_defaults(now=now)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[Settings, argparse.Namespace], int], since: str = ""
    ) -> argparse.ArgumentParser:
        said = (run.__doc__ or "").strip()
        added = commands.add_parser(name, help=said, description=said)
        added.set_defaults(run=run)
        if since:
            ago = "such as 15m, 2h, 7d ago, or 2026-11-21T14:00 (local) or 2026-11-21T14:00:00Z"
            added.add_argument("--since", type=at, default=since, help=f"from when: {ago} (default: {since})")
            added.add_argument("--until", type=at, default="now", help="until when, the same (default: now)")
        return added

    one = command("ingest", run_ingest)
    which = one.add_mutually_exclusive_group()
    which.add_argument(
        "--hour", type=_hour, nargs="+", default=[], help="make these again, such as 2026-11-21T14 (UTC)"
    )
    which.add_argument("--all", action="store_true", help="make all hours again whose logs are there")
    which.add_argument("--follow", action="store_true", help="keep the hour that goes on in the lake, until stopped")
    one.add_argument("files", type=Path, nargs="*", metavar="FILE", help="logs that came another way, oldest first")
    one.add_argument("--host", help="that wrote the files")
    one.add_argument("--year", type=int, help="of the files' last line, if the stamps have none (default: a guess)")
    one.set_defaults(refuse=one.error)
    one.add_argument("--zone", type=_zone, default=UTC, help="of the files' stamps, if they have none (default: UTC)")

    one = command("search", run_search, "24h")
    one.add_argument("--recipient", default="", help='"a@b.c", "@b.c" for a domain, "abc*" for what begins so')
    one.add_argument("--sender", default="", help="the same")
    one.add_argument("--queue-id", default="", help="also of the next host")
    one.add_argument("--message-id", default="")
    one.add_argument("--client", default="", help='a name, an address, or ".b.c" for names that end so')
    one.add_argument("--relay", default="", help="the same")
    one.add_argument("--host", default="", help="that wrote the log")
    one.add_argument("--outcome", default="", choices=OUTCOMES)
    one.add_argument("--dsn", default="", help='"4.7.1", or "4." for what begins so')
    one.add_argument("--text", default="", help="somewhere in the response or the reason for the fallback")
    one.add_argument(
        "--rejects", action="store_true", help="mails that were not taken, in place of attempts to deliver"
    )
    one.add_argument("--limit", type=int, default=100, help="rows, the newest; 0 for all (default: %(default)s)")
    one.add_argument(
        "--format",
        choices=("table", "json", "csv"),
        default="table",
        help="json: an object on each line; csv: a ' before what a spreadsheet would take for a formula",
    )

    one = command("trace", run_trace, "7d")
    one.add_argument("mail", metavar="HOST/QUEUE_ID | QUEUE_ID | MESSAGE_ID")
    one.add_argument("--recipient", default="", help="only this one of many: faster")
    one.add_argument("--raw", action="store_true", help="also the lines of the logs")
    one.add_argument("--format", choices=("table", "json"), default="table", help="json: a line for each journey")

    one = command("stats", run_stats, "24h")
    one.add_argument("--by", choices=DIMENSIONS, default="all", help="of one of these, which --key names")
    one.add_argument("--key", default="", help="the domain, relay, host or error")
    one.add_argument("--top", choices=OUTCOMES, default="deferred", help="what the tops count (default: %(default)s)")
    one.add_argument("--limit", type=int, default=10, help="rows of each top (default: %(default)s)")
    one.add_argument("--format", choices=("table", "json"), default="table")

    command("doctor", run_doctor)

    one = command("metrics", run_metrics)
    one.add_argument("--output", type=Path, metavar="FILE", help="to be replaced by them, readable for all")
    return parser

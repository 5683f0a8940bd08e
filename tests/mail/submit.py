#!/usr/bin/env python3
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Submit mails at a steady rate, and count those that were acknowledged, as a sender who loses nothing does.

A mail that isn't acknowledged is tried again at the server's next address, in a new session. For each acknowledged mail
one line is written to the log: time, id, domain, tries.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import smtplib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import load_id

PAUSE = 0.2  # seconds before a mail is tried again
KEEP = 1.0  # a session is not kept open for longer than this without a mail


class Submitters:
    """Threads that share one schedule, one log and the counts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.run = options.run or load_id.new_run()
        self.log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.numbers = itertools.count()
        self.start = time.monotonic()
        # Mails, but for failed_sessions; longest is the longest time from when a mail was due to its acknowledgement.
        self.counts = dict.fromkeys(("acknowledged", "retries", "failed_sessions", "refused", "given_up"), 0)
        self.longest = 0.0
        self.errors: Counter[str] = Counter()

    def due(self) -> Iterator[tuple[int, float]]:
        """Give the numbers of mails, and when each is due."""
        while not self.stopped.is_set():
            with self.lock:
                number = next(self.numbers)
            due = self.start + number / self.options.rate
            if number >= self.options.count or due > self.start + self.options.duration:
                return
            yield number, due

    def submit(self) -> None:
        """Be one submitter, until all mails are submitted."""
        session = Session(self.options.server, self.options.timeout)
        for number, due in self.due():
            wait = due - time.monotonic()
            if session.mails >= self.options.per_session or wait > KEEP:
                session.end()
            if wait > 0 and self.stopped.wait(wait):
                break
            domain = random.choices(list(self.options.mix), list(self.options.mix.values()))[0]
            self.deliver(session, load_id.make(self.run, number), domain, due)
        session.end()

    def deliver(self, session: Session, name: str, domain: str, due: float) -> None:
        """Try one mail until it is acknowledged, refused, or too old."""
        one_of = self.options.many.get(domain, 0)
        recipient = f"{name}@{domain}{random.randint(1, one_of) if one_of else ''}.{self.options.zone}"
        give_up = time.monotonic() + self.options.give_up
        for tries in itertools.count(1):
            text = (
                f"From: load@{self.options.zone}\r\nTo: {recipient}\r\nSubject: load\r\nMessage-ID: <{recipient}>\r\n"
                f"{load_id.HEADER}: {name} {time.time():.6f}\r\n\r\n"
            )
            text += "The text of the mail goes on.\r\n" * max(1, (self.options.size - len(text)) // 31)
            try:
                session.send(load_id.sender(name, self.options.zone), recipient, text)
            except (OSError, smtplib.SMTPException) as exc:
                code = exc.smtp_code if isinstance(exc, smtplib.SMTPResponseException) else 0
                self.errors[str(code or type(exc).__name__)] += 1
                session.drop()
                # A server whose greeting is 5xx says nothing of the mail.
                if code >= 500 and not isinstance(exc, smtplib.SMTPConnectError):
                    return self.count("refused")
                self.count("failed_sessions")
            else:
                os.write(self.log, f"{time.time():.6f} {name} {domain} {tries}\n".encode())
                with self.lock:
                    self.longest = max(self.longest, time.monotonic() - due)
                return self.count("acknowledged")
            if time.monotonic() > give_up:
                return self.count("given_up")
            time.sleep(PAUSE)
            self.count("retries")
        return None

    def count(self, what: str) -> None:
        """Add one."""
        with self.lock:
            self.counts[what] += 1

    def report(self, done: bool) -> dict[str, Any]:
        """Give the counts until now."""
        seconds = time.monotonic() - self.start
        with self.lock:
            rate = round(self.counts["acknowledged"] / seconds, 1)
            numbers = {**self.counts, "longest": round(self.longest, 3), "rate": rate, "seconds": round(seconds, 1)}
        return {"run": self.run, "time": time.time(), "done": done, **numbers, "errors": dict(self.errors)}


class Session:
    """A session with the server, begun when it is needed."""

    def __init__(self, server: str, timeout: float) -> None:
        self.host, _colon, port = server.partition(":")
        self.port = int(port or 25)
        self.timeout = timeout
        self.addresses: Iterator[str] = iter(())
        self.connection: smtplib.SMTP | None = None
        self.mails = 0

    def send(self, sender: str, recipient: str, text: str) -> None:
        """Send one mail, and return once it is acknowledged."""
        if self.connection is None:
            self.connection = smtplib.SMTP(self.next_address(), self.port, "submit.load.test", timeout=self.timeout)
            self.connection.ehlo()
        for step in (
            partial(self.connection.mail, sender),
            partial(self.connection.rcpt, recipient),
            partial(self.connection.data, text),
        ):
            code, answer = step()
            if code != 250:
                raise smtplib.SMTPResponseException(code, answer)
        self.mails += 1

    def next_address(self) -> str:
        """Give another address of the server's name; after the last one, ask again."""
        address = next(self.addresses, None)
        if address is None:
            found = {str(info[4][0]) for info in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)}
            self.addresses = iter(random.sample(sorted(found), len(found)))
            address = next(self.addresses)
        return address

    def end(self) -> None:
        """Take leave. The next session begins with a new answer of the name server."""
        if self.connection:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                self.connection.quit()
        self.addresses = iter(())
        self.drop()

    def drop(self) -> None:
        """Forget a session that is broken."""
        if self.connection:
            self.connection.close()
        self.connection = None
        self.mails = 0


def mix(text: str) -> dict[str, float]:
    """Read shares of domains."""
    shares = {name: float(share) for name, _equals, share in (part.partition("=") for part in text.split(","))}
    if not 0.999 < sum(shares.values()) < 1.001:
        raise argparse.ArgumentTypeError(f"the shares make {sum(shares.values()):g}, not 1")
    return shares


def many(text: str) -> dict[str, int]:
    """Read how many domains a name stands for."""
    return {name: int(count) for name, _equals, count in (part.partition("=") for part in text.split(","))}


def write(path: str, report: dict[str, Any]) -> None:
    """Write a file that a reader finds whole."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(report) + "\n")
    part.replace(path)


def main() -> None:
    """Read the options, submit, report each second and at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="name or address, and :port if that isn't 25")
    parser.add_argument("--log", required=True, help="file that acknowledged mails are added to")
    parser.add_argument("--report", required=True, help="file that the counts are written to each second, as JSON")
    parser.add_argument("--mix", type=mix, default={"good": 1.0}, help="shares of domains: good=0.9,defer=0.1")
    parser.add_argument("--many", type=many, default={}, help="names that stand for domains with numbers: drop=50")
    parser.add_argument("--rate", type=float, default=150, help="mails a second")
    parser.add_argument("--count", type=float, default=float("inf"), help="end after so many mails")
    parser.add_argument("--duration", type=float, default=float("inf"), help="end after so many seconds")
    parser.add_argument("--until-file", type=Path, help="end when this file appears")
    parser.add_argument("--threads", type=int, default=50, help="sessions at the same time")
    parser.add_argument("--per-session", type=int, default=10, help="mails in one session")
    parser.add_argument("--timeout", type=float, default=10, help="seconds that an answer may take")
    parser.add_argument("--give-up", type=float, default=120, help="seconds that a mail is tried for")
    parser.add_argument("--size", type=int, default=2000, help="bytes of a mail")
    parser.add_argument("--zone", default="sink.test", help="domain above those of the mix")
    parser.add_argument("--run", help="first characters of the ids, m and five hexadecimal digits")
    options = parser.parse_args()
    submitters = Submitters(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: submitters.stopped.set())
    threads = [threading.Thread(target=submitters.submit) for _ in range(options.threads)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        write(options.report, submitters.report(done=False))
        threads[0].join(1) if threads[0].is_alive() else time.sleep(0.1)
        if options.until_file and options.until_file.exists():
            submitters.stopped.set()
    report = submitters.report(done=True)
    write(options.report, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the logs of a big site's hour: two tiers, many hosts, about eight lines a mail; the same seed, the same logs.

What remote servers answer has the forms, and about the randomness, that large receivers' answers have.
"""

from __future__ import annotations

import argparse
import os
import random
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

DIGITS = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"
FALLBACK = "fallback.vip.site.test"
LINES_PER_MAIL = 8.2
GMAIL = "{hex13}-{hex11}si{n7}{letters}.{n3} - gsmtp"
# Share of the mails, domain, relay, and the answer to a mail that is taken.
RECEIVERS = [
    (0.34, "gmail.test", "gmail-smtp-in.l.gmail.test", "250 2.0.0 OK  {time} " + GMAIL),
    (
        *(0.14, "outlook.test", "outlook-com.olc.protection.outlook.test"),
        "250 2.6.0 <{message}> [InternalId={n14}, Hostname={upper6}{n3}.namprd{n2}.prod.outlook.test] "
        "{n5} bytes in 0.{n3}, {n2}.{n3} KB/sec Queued mail for delivery -> 250 2.1.5",
    ),
    (0.09, "yahoo.test", "mta7.am0.yahoodns.test", "250 ok dirdel"),
    (0.05, "icloud.test", "mx01.mail.icloud.test", "250 2.0.0 Ok: queued as {upper12}"),
    (0.03, "seznam.test", "mx1.seznam.test", "250 2.0.0 Mail accepted id {hex16}"),
    (0.35, "", "mx.{domain}", "250 2.0.0 Ok: queued as {upper12}"),
]
FAILURES = [
    (
        *(0.40, "deferred"),
        "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages "
        "from being delivered. " + GMAIL,
    ),
    (0.20, "deferred", "451 4.7.1 Greylisting in action, please come back in 00:0{n1}:{n2}"),
    (0.20, "timeout", ""),
    (
        *(0.15, "bounced"),
        "550 5.1.1 <{recipient}>: Recipient address rejected: User unknown in virtual mailbox table",
    ),
    (0.05, "bounced", "552-5.2.2 The email account that you tried to reach is over quota. " + GMAIL),
]
IN_REPLY = "(in reply to RCPT TO command)"
TLS = "Untrusted TLS connection established to {}:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)"
BAD = 0.14  # of the mails are not taken at the first try


def filled(text: str, chance: random.Random, **known: str) -> str:
    """Fill the varying places of an answer."""
    if "{" not in text:
        return text
    bits = chance.getrandbits(192)
    number = bits % 10**18
    return text.format(
        hex11=f"{bits & 0xFFFFFFFFFFF:011x}",
        hex13=f"{bits >> 44 & 0xFFFFFFFFFFFFF:013x}",
        hex16=f"{bits >> 96 & 0xFFFFFFFFFFFFFFFF:016x}",
        upper6=f"{bits >> 100 & 0xFFFFFF:06X}",
        upper12=f"{bits >> 60 & 0xFFFFFFFFFFFF:012X}",
        letters="abcdefgh"[number % 8] + "ijklmnop"[number // 8 % 8] + "qrstuvwx"[number // 64 % 8],
        n2=number % 60,
        **{f"n{count}": number % 10**count for count in (1, 3, 5, 7, 14)},
        **known,
    )


def queue_id(moment: float, chance: random.Random) -> str:
    """Give a long queue id: the time in seconds and microseconds, and an inode."""
    text = ""
    for value, base, width in ((int(moment), 52, 6), (int(moment % 1 * 1e6), 52, 4)):
        part = ""
        for _digit in range(width):
            value, digit = divmod(value, base)
            part = DIGITS[digit] + part
        text += part
    return text + "z" + "".join(chance.choices(DIGITS[:51], k=4))


class Writer:
    """Writes the log of a primary host, and of what it hands over in its fallback hosts."""

    def __init__(self, start: float, seconds: int, host: str, fallbacks: list[str], seed: int) -> None:
        self.start, self.seconds, self.host, self.fallbacks = start, seconds, host, fallbacks
        self.chance = random.Random(f"{seed} {host}")
        self.lines: dict[str, list[tuple[float, str]]] = {name: [] for name in (host, *fallbacks)}
        self.moment = start

    def add(self, host: str, after: float, service: str, pid: int, text: str) -> None:
        """Add a line, some time after the one before. Its fraction of a second is its own."""
        self.moment += after * self.chance.uniform(0.5, 1.5)
        self.lines[host].append((self.moment, f"{host} postfix/{service}[{pid}]: {text}\n"))

    def arrive(self, host: str, client: str, sender: str, message: str) -> str:
        """Add the lines of a mail that comes in; give its queue id."""
        pid = self.chance.randint(2000, 2400)
        own = queue_id(self.moment, self.chance)
        self.add(host, 0, "smtpd", pid, f"connect from {client}")
        self.add(host, 0.001, "smtpd", pid, f"{own}: client={client}")
        self.add(host, 0.002, "cleanup", pid + 500, f"{own}: message-id=<{message}>")
        self.add(
            host, 0.003, "qmgr", 1200, f"{own}: from=<{sender}>, size={len(message) * 700}, nrcpt=1 (queue active)"
        )
        self.add(host, 0.004, "smtpd", pid, f"disconnect from {client} ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5")
        return own

    def mail(self, number: int, mails: int) -> None:
        """Add the lines of one mail, from the client to the end of the first try of each tier."""
        chance = self.chance
        self.moment = self.start + self.seconds * (number + chance.random()) / mails
        pid, client = chance.randint(3000, 3400), chance.randint(1, 400)
        _share, domain, name, answer = chance.choices(RECEIVERS, [receiver[0] for receiver in RECEIVERS])[0]
        domain = domain or f"example{int(chance.paretovariate(0.6)) % 40000}.test"
        recipient = f"{chance.choice(NAMES)}.{chance.choice(NAMES)}{int(chance.paretovariate(0.4)) % 10000}@{domain}"
        sender = f"bounce-{chance.getrandbits(32):08x}@lists{client % 40}.site.test"
        message = f"{chance.getrandbits(64):016x}.{int(self.moment)}@app-{client:03}.site.test"
        server = f"{name.format(domain=domain)}[198.51.{hash_of(domain) % 256}.{chance.randint(1, 9)}]"
        own = self.arrive(self.host, f"app-{client:03}.site.test[192.0.2.{client % 250}]", sender, message)
        times = f"delays=0.0{chance.randint(1, 9)}/0.01/0.{chance.randint(10, 99)}/0.{chance.randint(10, 99)}"
        to = f"{own}: to=<{recipient}>, relay="
        if chance.random() >= BAD:
            if number % 2:
                self.add(self.host, 0.05, "smtp", pid, TLS.format(server))
            answer = filled(answer, chance, time=str(int(self.moment)), message=message)
            self.add(
                self.host, 0.3, "smtp", pid, f"{to}{server}:25, delay=0.7, {times}, dsn=2.0.0, status=sent ({answer})"
            )
        else:
            _share, status, answer = chance.choices(FAILURES, [failure[0] for failure in FAILURES])[0]
            said = f"host {server} said: {filled(answer, chance, recipient=recipient)} {IN_REPLY}"
            if status == "bounced":
                self.add(
                    self.host,
                    0.3,
                    "smtp",
                    pid,
                    f"{to}{server}:25, delay=0.5, {times}, dsn=5.1.1, status=bounced ({said})",
                )
            else:
                if status == "timeout":
                    said = f"connect to {server}:25: Connection timed out"
                    self.add(self.host, 3, "smtp", pid, said)
                else:
                    self.add(self.host, 0.3, "smtp", pid, f"{own}: {said}")
                fallback = self.fallbacks[number % len(self.fallbacks)]
                second = self.arrive(
                    fallback, f"{self.host}.site.test[192.0.2.{hash_of(self.host) % 250}]", sender, message
                )
                taken = f"sent (250 2.0.0 Ok: queued as {second})"
                relay = f"{FALLBACK}[192.0.2.251]:25, delay=3.4, {times}, dsn=2.0.0"
                self.add(self.host, 0.01, "smtp", pid, f"{to}{relay}, status={taken}")
                again = "none, dsn=4.4.1" if status == "timeout" else f"{server}:25, dsn=4.2.1"
                relay, dsn = again.split(", ")
                text = f"{second}: to=<{recipient}>, relay={relay}, delay=1.1, {times}, {dsn}, status=deferred ({said})"
                if status == "timeout":
                    self.add(fallback, 30, "smtp", pid, said)
                    self.moment -= 30
                self.add(fallback, 1, "smtp", pid, text)
        self.add(self.host, 0.001, "qmgr", 1200, f"{own}: removed")

    def write(self, folder: Path) -> None:
        """Write what lies in the time."""
        for name, texts in self.lines.items():
            kept = sorted(text for text in texts if self.start <= text[0] < self.start + self.seconds)
            path = folder / name / f".{self.host}"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as file:
                file.writelines(
                    f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S.%f}+00:00 {text}" for moment, text in kept
                )


def write(folder: Path, start: float, mails: int, seed: int, fallbacks: list[str], host: str) -> None:
    """Write an hour of a primary host."""
    writer = Writer(start, 3600, host, fallbacks, seed)
    for number in range(mails):
        writer.mail(number, mails)
    writer.write(folder)


def hash_of(text: str) -> int:
    """Give the same number for the same text, in each process."""
    return sum(map(ord, text))


NAMES = [
    first + second
    for first in ("al", "be", "ca", "do", "el", "fi", "ga", "ho")
    for second in ("na", "ri", "to", "mas", "nek", "lin")
]


def make(folder: Path, hour: datetime, lines: int, primaries: int = 90, fallbacks: int = 5, seed: int = 1) -> int:
    """Write an hour of so many lines, about; give how many."""
    names = [f"mx-{number:02}" for number in range(1, primaries + 1)]
    others = [f"fallback-{number:02}" for number in range(1, fallbacks + 1)]
    mails = int(lines / LINES_PER_MAIL / primaries)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(write, folder, hour.replace(tzinfo=UTC).timestamp(), mails, seed, others), names))
    total = 0
    for name in names + others:
        parts = sorted((folder / name).glob(".*"))
        found = sorted(line for path in parts for line in path.read_bytes().splitlines(keepends=True))
        (folder / name / f"{hour:%Y-%m-%dT%H}.log").write_bytes(b"".join(found))
        total += len(found)
        for path in parts:
            path.unlink()
    return total


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    hour = datetime.now(UTC).replace(tzinfo=None, minute=0, second=0, microsecond=0) - timedelta(hours=2)
    parser.add_argument("--hour", type=datetime.fromisoformat, default=hour, help="in UTC; default: the last but one")
    options = parser.parse_args()
    print(make(options.folder, options.hour, options.lines, seed=options.seed), "lines")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The world's mail servers on one host: what a mail meets is told by its recipient's domain.

    good     accepted                                defer    451 at every try
    slow     accepted after 20 s                     flaky    451 at the first try of each recipient, then accepted
    bounces  accepted, and noted as a bounce         refuse   550

One line for each accepted mail is written before it is acknowledged, so a kill loses none:
time, "delivered" or "bounced", id, the host that brought it, seconds since its submission ("-" if it doesn't tell).
Needs aiosmtpd (Debian: python3-aiosmtpd). It takes about 1,500 mails a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import time

import load_id
from aiosmtpd.smtp import SMTP, Envelope, Session

SUBMITTED = re.compile(rb"^%s: \S+ ([0-9.]+)\r?$" % load_id.HEADER.encode(), re.MULTILINE | re.IGNORECASE)
HEADERS = 8000  # bytes in which the submission's time is looked for


class Sink:
    """Answers to each recipient and mail, as aiosmtpd asks for them."""

    def __init__(self, zone: str, log: str, slow: float) -> None:
        self.zone = zone
        self.slow = slow
        self.tried: set[str] = set()
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def domain(self, address: str) -> str:
        """Name the domain of an address without the zone, empty for those of others."""
        name = address.rpartition("@")[2].lower()
        return name.removesuffix(f".{self.zone}") if name.endswith(f".{self.zone}") else ""

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Answer to a recipient."""
        match self.domain(address):
            case "good" | "slow" | load_id.BOUNCES:
                pass
            case "defer":
                return "451 4.3.0 Try again later, which won't help"
            case "flaky":
                if address not in self.tried:
                    self.tried.add(address)
                    return "451 4.7.1 Greylisted, try again"
            case _:
                return "550 5.1.1 No such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:
        """Take a mail."""
        if any(self.domain(address) == "slow" for address in envelope.rcpt_tos):
            await asyncio.sleep(self.slow)
        now = time.time()
        content = envelope.original_content or b""
        submitted = SUBMITTED.search(content[:HEADERS])
        host = session.peer[0] if session.peer else "-"
        lines = ""
        for address in envelope.rcpt_tos:
            bounced = self.domain(address) == load_id.BOUNCES
            delay = "-" if bounced or not submitted else f"{now - float(submitted[1]):.6f}"
            name = load_id.find(address) or address
            lines += f"{now:.6f} {'bounced' if bounced else 'delivered'} {name} {host} {delay}\n"
        os.write(self.log, lines.encode())
        return "250 2.0.0 OK"


async def serve(options: argparse.Namespace) -> None:
    """Answer until the program is ended."""
    sink = Sink(options.zone, options.log, options.slow)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(sink, hostname=f"mx.{options.zone}", ident="sink", enable_SMTPUTF8=True, loop=loop),
        options.listen,
        options.port,
        backlog=1024,
    )
    print("port", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", required=True, help="file that accepted mails are written to")
    parser.add_argument("--listen", nargs="*", help="addresses to answer at, otherwise all")
    parser.add_argument("--port", type=int, default=25, help="0 takes a free one")
    parser.add_argument("--zone", default="sink.test", help="domain above those of the mails")
    parser.add_argument("--slow", type=float, default=20, help="seconds that the slow domain takes")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Submit mails to an address until SIGTERM, a session each and none repeated; print as JSON what became of them.

load.py ADDRESS CLIENTS: "failures" are the seconds since the epoch of each session that did not end as it should.
"""

from __future__ import annotations

import json
import signal
import smtplib
import sys
import threading
import time

ended = threading.Event()
members: dict[str, int] = {}
failures: list[tuple[float, str]] = []


def submit(address: str) -> str:
    """Submit a mail; give the member that took it."""
    client = smtplib.SMTP(timeout=20)
    _code, greeting = client.connect(address, 25)
    client.sendmail("from@lab.test", ["to@lab.test"], "Subject: test\n\ntext\n" * 20)
    client.quit()
    return greeting.split()[0].decode()


def work(address: str) -> None:
    """Submit mails until the end."""
    while not ended.is_set():
        try:
            member = submit(address)
            members[member] = members.get(member, 0) + 1
        except (OSError, smtplib.SMTPException) as error:
            failures.append((time.time(), repr(error)))
        time.sleep(0.1)


signal.signal(signal.SIGTERM, lambda *_: ended.set())
workers = [threading.Thread(target=work, args=(sys.argv[1],)) for _ in range(int(sys.argv[2]))]
for worker in workers:
    worker.start()
while any(worker.is_alive() for worker in workers):
    for worker in workers:
        worker.join(0.1)
print(json.dumps({"members": members, "failures": failures}))

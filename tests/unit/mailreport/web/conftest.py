# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site with a small lake that ends now, logs, users and settings; and clients of its page."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flask.testing import FlaskClient
from mailreport.lake import ATTEMPTS, REJECTS, UNPARSED, Lake, replacing
from mailreport.rollup import SQL as ROLLUP
from mailreport.settings import Settings
from mailreport.web import create_app
from werkzeug.security import generate_password_hash

PASSWORD = "correct horse"
HOSTILE = "450 <script>alert('x')</script> \u202egnp.exe status=sent to=<a@b.test> \x1b[31m"
FORMULA = "=HYPERLINK(1)@evil.test"
MESSAGE_ID = "<20261121.journey@shop.test>"


class Site(NamedTuple):
    """What the page needs."""

    settings: Settings
    file: Path  # its settings
    now: datetime  # naive UTC, when the newest mail was delivered


class Page(FlaskClient):
    """A browser without scripts."""

    def form_token(self, address: str = "/login") -> str:
        """Give the token of the first form of a page."""
        found = re.search(r'name="token" value="([^"]+)"', self.get(address).text)
        assert found, f"{address} has no form with a token"
        return found[1]

    def log_in(self, name: str = "reader", password: str = PASSWORD, **more: str) -> Any:
        """Send the login form."""
        return self.post("/login", data={"token": self.form_token(), "name": name, "password": password, **more})


def attempt(time: datetime, recipient: str, outcome: str, **more: Any) -> dict[str, Any]:
    """Give a row of the lake."""
    response, dsn = {
        "delivered": ("250 2.0.0 Ok: queued as 4F00", "2.0.0"),
        "deferred": ("450 4.7.1 Greylisted, please try again in 300 seconds", "4.7.1"),
        "bounced": ("550 5.1.1 <user>: Recipient address rejected: User unknown", "5.1.1"),
        "expired": ("450 4.2.2 Mailbox full", "4.2.2"),
    }.get(outcome, ("250 2.1.5 Ok", "2.1.5"))
    arrived = more.get("arrived") or (time - timedelta(seconds=1)).replace(microsecond=0)
    delay = max(0, (time - arrived) // timedelta(milliseconds=1))
    row = {
        "time": time,
        "host": "mx-01",
        "instance": "postfix",
        "queue_id": "5B07D9E001",
        "arrived": arrived,
        "message_id": "<other@shop.test>",
        "client": "app.shop.test",
        "client_address": "192.0.2.10",
        "sender": "news@shop.test",
        "recipient": recipient,
        "recipient_domain": recipient.rpartition("@")[2],
        "original_recipient": "",
        "relay": f"mx.{recipient.rpartition('@')[2]}",
        "relay_address": "198.51.100.7",
        "relay_port": 25,
        "delay_ms": delay,
        "delay_before_ms": max(0, delay - 980),
        "delay_queue_ms": 10,
        "delay_connect_ms": 310,
        "delay_send_ms": 660,
        "dsn": dsn,
        "status": {"delivered": "sent", "handed_over": "sent"}.get(outcome, outcome),
        "outcome": outcome,
        "response": response,
        "reason": "",
        "next_queue_id": "",
        "size": 48_213,
        "recipients": 1,
    }
    return row | more


def journey(now: datetime) -> list[dict[str, Any]]:
    """Give the attempts of one mail: primary, fallback (twice deferred), world."""
    came = (now - timedelta(minutes=22)).replace(microsecond=0)
    there = came + timedelta(seconds=1)
    mail = {"message_id": MESSAGE_ID, "sender": "alice@shop.test"}
    first = {**mail, "queue_id": "5B07D9E112", "arrived": came}
    second = {
        **mail, "host": "fallback-01", "queue_id": "8F3A21C04E", "arrived": there,
        "client": "mx-01.site.test", "client_address": "10.0.0.11",
    }  # fmt: skip
    at = timedelta(milliseconds=412)
    return [
        attempt(
            came + timedelta(seconds=1) + at, "bob@world.test", "handed_over", **first,
            relay="fallback.vip.site.test", relay_address="10.0.0.30", next_queue_id=second["queue_id"],
            response=f"250 2.0.0 Ok: queued as {second['queue_id']}",
            reason="host mx.world.test[198.51.100.7] said: 450 4.7.1 Greylisted, please try again",
        ),
        attempt(there + timedelta(seconds=4) + at, "bob@world.test", "deferred", **second),
        attempt(there + timedelta(minutes=5) + at, "bob@world.test", "deferred", **second),
        attempt(there + timedelta(minutes=15, seconds=3) + at, "bob@world.test", "delivered", **second),
    ]  # fmt: skip


def noise(now: datetime, mails: int, span: timedelta) -> list[dict[str, Any]]:
    """Give many mails of a time that end in all ways."""
    chance = random.Random(5)
    rows = []
    for number in range(mails):
        time = now - span * chance.random()
        domain, slow = chance.choice((("example.net", 1), ("example.com", 1), ("slow.test", 6), ("full.test", 4)))
        outcomes = {"delivered": 80, "deferred": 3 * slow, "bounced": 2, "expired": slow, "probe": 1}
        outcome = chance.choices([*outcomes], [*outcomes.values()])[0]
        waited = timedelta(seconds=min(4e5, chance.lognormvariate(0.3, 1.2) * slow))
        queue_id = f"{number:010X}"
        host = chance.choice(("mx-01", "mx-02", "fallback-01"))
        more = {"arrived": (time - waited).replace(microsecond=0), "queue_id": queue_id, "host": host}
        if outcome == "expired":
            more |= {"relay": "none", "relay_address": "", "relay_port": 0}
        rows.append(attempt(time, f"user{number % 500}@{domain}", outcome, **more))
    return rows


def fill(lake: Lake, now: datetime, mails: int = 300, span: timedelta = timedelta(minutes=50)) -> None:
    """Write the lake."""
    ago = now - timedelta(minutes=2)
    attempts = [
        *journey(now),
        *noise(now, mails, span),
        attempt(ago, "victim@evil.test", "deferred", queue_id="4cZevil", sender=FORMULA, response=HOSTILE),
        *(attempt(ago, f"team{n}@world.test", "delivered", queue_id="4cZteam", recipients=3) for n in range(3)),
    ]
    client = {"client": "unknown", "client_address": "203.0.113.66", "helo": "bad"}
    reject = {
        "time": ago, "host": "mx-02", "instance": "postfix", "service": "smtpd", "queue_id": "", "action": "reject",
        "stage": "RCPT", **client, "sender": "spam@bulk.test", "recipient": "blocked@site.test",
        "recipient_domain": "site.test", "dsn": "5.7.1", "response": f"554 5.7.1 Client host rejected {HOSTILE}",
    }  # fmt: skip
    unparsed = [{"time": ago, "host": "mx-02", "line": f"postfix/smtpd[1]: something <b>new</b> {n}"} for n in range(2)]
    rows = pa.Table.from_pylist(attempts, ATTEMPTS)
    with duckdb.connect() as engine:
        rollups = engine.register("attempts", rows).sql(ROLLUP).to_arrow_table()
    rejects, lines = pa.Table.from_pylist([reject], REJECTS), pa.Table.from_pylist(unparsed, UNPARSED)
    for name, table in {"attempts": rows, "rollups": rollups, "rejects": rejects, "unparsed": lines}.items():
        time = "bucket" if name == "rollups" else "time"
        hours: dict[Path, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            hours.setdefault(lake.hour(name, row[time]), []).append(row)
        for path, its in hours.items():
            its.sort(key=lambda row: tuple(str(value) for value in row.values() if value is not None))
            its.sort(key=lambda row: row.get("recipient", ""))
            with replacing(path) as temporary:
                pq.write_table(pa.Table.from_pylist(its, table.schema), temporary)


def log_journey(logs: Path, now: datetime) -> None:
    """Write the raw lines of the journey, among others."""
    for row in journey(now):
        time = row["time"]
        path = logs / row["host"] / f"{time:%Y-%m-%dT%H}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            head = f"{time.isoformat()}+00:00 {row['host']} postfix/smtp[77]: "
            file.write(f"{head}4cZother: to=<x@y.test>, status=sent\n")
            told = f"relay={row['relay']}, dsn={row['dsn']}, status={row['status']} ({row['response']} <b>)"
            file.write(f"{head}{row['queue_id']}: to=<{row['recipient']}>, {told}\n")


def make_site(root: Path, now: datetime, **more: Any) -> Site:
    """Make a site below a folder."""
    fill(Lake(root / "lake"), now, **more)
    log_journey(root / "logs", now)
    secret = generate_password_hash(PASSWORD, "scrypt:1024:8:1")  # cheap: the tests log in often
    users = {name: {"password": secret, "role": name} for name in ("reader", "admin")}
    (root / "users.json").write_text(json.dumps(users))
    (root / "secret").write_text("0123456789abcdef" * 4)
    web = {"users_file": "users.json", "secret_file": "secret", "lockout_file": "lockout", "audit_log": "audit.log"}
    file = root / "mailreport.toml"
    file.write_text(
        f'logs = "{root}/logs"\nlake = "{root}/lake"\n[web]\nrows = 40\nlockout_tries = 3\n'
        + "".join(f'{name} = "{root}/{path}"\n' for name, path in web.items())
    )
    return Site(Settings.read(file), file, now)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site whose files no test changes."""
    return make_site(tmp_path_factory.mktemp("site"), datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=1))


@pytest.fixture
def site(made: Site, tmp_path: Path) -> Site:
    """The site with an audit log, users and tries of its own."""
    users = tmp_path / "users.json"
    users.write_bytes(made.settings.web.users_file.read_bytes())
    web = replace(
        made.settings.web, users_file=users, audit_log=tmp_path / "audit.log", lockout_file=tmp_path / "lockout"
    )
    return made._replace(settings=replace(made.settings, web=web))


@pytest.fixture
def page_of() -> Callable[..., Page]:
    """Give a client of the page of some settings."""

    def make(settings: Settings, **more: Any) -> Page:
        app = create_app(settings, **more)
        app.test_client_class = Page
        client = app.test_client()
        assert isinstance(client, Page)
        return client

    return make


@pytest.fixture
def stranger(site: Site, page_of: Callable[..., Page]) -> Page:
    """Who has not logged in."""
    return page_of(site.settings)


@pytest.fixture
def reader(stranger: Page) -> Page:
    """Who has logged in."""
    assert stranger.log_in().status_code == 302
    return stranger

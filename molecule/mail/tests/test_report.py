# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report knows what became of a mail: the logs of all hosts came to the log host, and its page finds them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import namespaces
import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
MAILREPORT = "runuser --user=mailreport -- /opt/tenfold/mailreport/current/bin/mailreport"
USER, PASSWORD = "alice", "correct horse battery"
UNITS = ("mailreport-follow", "mailreport-web")

Row = dict[str, Any]


def search(log_host: Any, recipient: str) -> list[Row]:
    """Give all tries for a recipient, the oldest first."""
    told = log_host.check_output(f"{MAILREPORT} search --since 1h --recipient {recipient} --format json")
    return [json.loads(line) for line in reversed(told.splitlines())]


@pytest.fixture(scope="module")
def log_host(hosts: dict[str, Any]) -> Any:
    return hosts["log-01"]


@pytest.fixture(scope="module")
def tries(hosts: dict[str, Any], log_host: Any, until: Callable[..., float]) -> list[Row]:
    """Give the tries of a mail that went from a primary to a fallback host, and is deferred there."""
    recipient = f"{uuid.uuid4().hex}@defer.sink.test"
    program = (
        "import smtplib, sys; s = smtplib.SMTP('mx.vip.site.test'); "
        "s.sendmail('shop@site.test', sys.argv[1], 'Subject: hello\\n\\nhello\\n')"
    )
    hosts["sink-01"].check_output("python3 -c %s %s", program, recipient)
    print(f"in the lake after {until(lambda: len(search(log_host, recipient)) >= 2, 60):.1f} s")
    return search(log_host, recipient)


@pytest.fixture
def chromium(log_host: Any, tmp_path: Path) -> Path:
    """Give a Chromium in the network of the log host: it breaks off what it loads when a network comes or goes."""
    if not CHROMIUM.exists():
        pytest.skip("Debian's package chromium is not installed")
    process = namespaces.first_process(log_host.backend.get_variables()["ansible_host"])
    if process is None:  # on another machine
        return CHROMIUM
    inside = tmp_path / "chromium"
    inside.write_text(f'#!/bin/sh\nexec nsenter --target={process} --net {CHROMIUM} "$@"\n')
    inside.chmod(0o755)
    return inside


@pytest.fixture
def page(log_host: Any, chromium: Path) -> Iterator[Page]:
    """Give the page to somebody who has logged in."""
    address = log_host.check_output("hostname -I").split()[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=list(FLAGS))
        page = browser.new_context(ignore_https_errors=True, viewport={"width": 375, "height": 740}).new_page()
        page.goto(f"https://{address}:8480/")
        page.get_by_label("Name").fill(USER)
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        yield page
        browser.close()


def test_a_mail_is_followed_over_both_tiers(tries: list[Row]) -> None:
    first, later = tries[:2]
    assert (first["outcome"], first["next_queue_id"]) == ("handed_over", later["queue_id"])
    assert first["host"].startswith("mx-")
    assert first["reason"]
    assert (later["outcome"], later["host"][:9], later["sender"]) == ("deferred", "fallback-", "shop@site.test")
    assert later["dsn"].startswith("4.")


def test_the_closed_hour_says_the_same(log_host: Any, tries: list[Row]) -> None:
    """What the follower found in parts is what the whole hour says."""
    log_host.check_output(f"{MAILREPORT} ingest --hour {tries[0]['time'][:13]}")
    assert search(log_host, tries[0]["recipient"])[: len(tries)] == tries


def test_the_page_tells_it_on_a_phone(page: Page, tries: list[Row]) -> None:
    page.get_by_label("Recipient").fill(tries[0]["recipient"])
    start = time.monotonic()
    page.keyboard.press("Enter")
    found = page.get_by_role("link", name=tries[0]["recipient"]).first
    found.wait_for()
    print(f"first result after {time.monotonic() - start:.2f} s")
    found.click()
    told = page.get_by_role("main")
    for text in ("Handed over", "Deferred", tries[0]["host"], tries[1]["host"]):
        expect(told).to_contain_text(text)


def test_all_is_well(log_host: Any) -> None:
    done = log_host.run(f"{MAILREPORT} doctor")
    assert done.rc in (0, 1), done.stdout + done.stderr  # hosts that have had no mail for a while are told of
    assert "ERROR" not in done.stdout


def test_the_services_are_in_a_sandbox(log_host: Any) -> None:
    for unit in ("mailreport-ingest", *UNITS):
        assert "Failed to parse" not in log_host.run(f"systemd-analyze verify {unit}.service").stderr
        told = log_host.check_output(f"systemd-analyze security --no-pager {unit}.service | tail -1")
        assert float(told.split("service:")[1].split()[0]) <= 2.0, told


def test_nobody_else_can_read_it(log_host: Any) -> None:
    users, secret = "/etc/mailreport/users.json", "/etc/mailreport/secret"
    for path in ("/var/lib/mailreport/lake", users, secret, "/var/log/mailreport"):
        assert log_host.file(path).mode & 0o007 == 0, path
    assert PASSWORD not in log_host.file(users).content_string


def started(log_host: Any) -> list[str]:
    """Tell one start of the services from another."""
    return [log_host.check_output(f"systemctl show -P InvocationID {unit}") for unit in UNITS]


def test_what_cannot_work_is_refused_and_all_goes_on(log_host: Any, play: Callable[..., Any]) -> None:
    before = started(log_host)
    bad = {
        "mail_report_engine": "spark",
        "mail_report_memory": "a lot",
        "mail_report_users": [{"name": "bob", "password": "short"}],
        "mail_report_tls_key": "/nowhere/report.key",
        "mail_report_wheels": "/nowhere",
    }
    told = play("report", "--limit=log-01", **bad).refusal
    for words in ("mail_report_engine_url", "not a lot", "password of bob", "/nowhere/report.key", "pip download"):
        assert words in told, told
    assert started(log_host) == before


def test_only_what_changed_is_restarted(log_host: Any, play: Callable[..., Any]) -> None:
    before = started(log_host)
    assert play("report", "--limit=log-01").changes == 0
    other = {"mail_report_users": [{"name": USER, "password": "another long one"}]}
    for only_told in (["--check"], []):
        assert play("report", "--limit=log-01", *only_told, **other).changes == 1
    assert started(log_host) == before  # the page sees by itself who may log in
    log_host.check_output("echo >> /etc/ssl/report.crt")
    assert play("report", "--limit=log-01").changes == 2  # the users as before, the restart
    assert [old == new for old, new in zip(before, started(log_host), strict=True)] == [True, False]

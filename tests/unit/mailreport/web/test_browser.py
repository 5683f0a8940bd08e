# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page in Chromium, from gunicorn over TLS: by keyboard, at two widths, with and without scripts, for all eyes."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import mailreport
import pytest

api = pytest.importorskip("playwright.sync_api")

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's package chromium is not installed")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 812}


@pytest.fixture(scope="module")
def address(made, served, serving, tmp_path_factory):
    """Give the address of gunicorn, which serves the site with its own settings."""
    folder = tmp_path_factory.mktemp("gunicorn")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = folder / "mailreport.toml"
    more = {"bind": f"127.0.0.1:{port}", "certificate": certificate, "key": key}
    lines = [f'{name} = "{value}"\n' for name, value in more.items()]
    file.write_text(f'{made.file.read_text()}workers = 1\n{"".join(lines)}[prometheus]\nurl = "{served.address}"\n')
    code = Path(mailreport.__file__).parents[1]
    environment = {**os.environ, "MAILREPORT_SETTINGS": str(file), "PYTHONPATH": str(code)}
    command = [sys.executable, "-m", "gunicorn", "-c", "python:mailreport.web.gunicorn", "mailreport.web:create_app()"]
    trusting = ssl.create_default_context(cafile=str(certificate))

    def answers() -> bool:
        urllib.request.urlopen(f"https://127.0.0.1:{port}/login", context=trusting, timeout=5).close()
        return True

    with serving(command, folder, answers, env=environment):
        yield f"https://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Open pages; none of them may complain, such as of the content security policy."""
    complaints = []
    contexts = []

    def make(**options):
        context = browser.new_context(
            base_url=address, ignore_https_errors=True, timezone_id="Europe/Berlin", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # also on a busy machine
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not [text for text in complaints if "status of 400" not in text], "but for forms that are wrong"


def log_in(page, name="reader"):
    """Fill in the login form, by keyboard alone."""
    page.wait_for_selector("#name:focus")  # on a busy machine it takes a while
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type("correct horse")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Where is my mail?')")


def start(page, name="reader"):
    """Open the page."""
    page.goto("/")
    log_in(page, name)
    page.wait_for_selector("#recipient:focus")


def picture(page, name, height):
    """Keep a picture of the upper part of a page for the README: TENFOLD_PICTURES=roles/mail_report/files/pictures."""
    if "TENFOLD_PICTURES" in os.environ:
        part = {"x": 0, "y": 0, "width": WIDE["width"], "height": height}
        page.screenshot(path=Path(os.environ["TENFOLD_PICTURES"], f"{name}.png"), full_page=True, clip=part)


def tab_to(page, selector):
    """Press Tab until the focus is on an element."""
    for _turn in range(40):
        page.keyboard.press("Tab")
        if page.locator(f"{selector}:focus").count():
            return
    pytest.fail(f"no way to {selector} by keyboard")


def fits(page):
    """Tell whether nothing is wider than the window."""
    page.wait_for_load_state()
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("window", [WIDE, PHONE], ids=["wide", "phone"])
def test_mail_is_found_by_keyboard(open_page, window, scripts):
    page = open_page(viewport=window, java_script_enabled=scripts)
    start(page)
    assert fits(page)
    page.keyboard.type("bob@world.test")
    page.keyboard.press("Enter")
    page.wait_for_selector("table.rows")
    assert page.locator("table.rows tbody tr").count() == 4
    assert "recipient=bob%40world.test" in page.url
    assert fits(page)
    tab_to(page, ".people a")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is seen"
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('The way of a mail')")
    if window is WIDE and scripts:
        picture(page, "mail", 1460)
    assert page.locator(".stop > h3").all_inner_texts() == ["mx-01 5B07D9E112", "fallback-01 8F3A21C04E"]
    assert fits(page)
    tab_to(page, "#lines a.button")
    page.keyboard.press("Enter")
    page.wait_for_selector("pre.lines")
    assert page.locator("pre.lines").count() == 2
    assert fits(page)
    more = (
        "/charts?range=1h",
        "/hosts",
        "/rejects?range=1h",
        "/unparsed?range=1h",
        "/?range=1h",
        "/?range=custom&from=x",
    )
    for path in more:
        page.goto(path)
        assert fits(page), path
        if window is WIDE and scripts and "charts" in path:
            picture(page, "charts", 1250)


def test_scripts_load_only_what_is_new(open_page):
    page = open_page(viewport=WIDE)
    start(page)
    assert page.locator("#tz").input_value() == "Europe/Berlin", "the browser's zone"
    page.evaluate("window.kept = true")
    page.keyboard.press("Enter")
    page.wait_for_selector("table.rows")
    assert re.search("308 attempts, the newest 40 shown", page.locator("#status").inner_text())
    page.get_by_role("link", name="Older").click()
    page.wait_for_selector("text=40 older attempts")
    assert "after=" in page.url
    assert page.locator("#found:focus").count() == 1
    page.select_option("#range", "custom")
    page.fill("#from", "2026-11-21T10:00:00")
    page.fill("#to", "2026-11-21T09:00:00")
    page.get_by_role("button", name="Search").click()
    page.wait_for_selector("[role=alert]")
    assert "cannot be asked" in page.locator("#status").inner_text()
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("main:focus")
    assert page.evaluate("window.kept"), "the page was not loaded again"
    page.go_back()
    page.go_back()
    page.wait_for_selector("text=40 older attempts")


def test_expired_session_leads_to_the_login_and_back(open_page):
    page = open_page(viewport=WIDE)
    start(page)
    page.context.clear_cookies()
    page.keyboard.type("bob@world.test")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Log in')")
    log_in(page)
    page.wait_for_selector("table.rows")
    assert page.locator("table.rows tbody tr").count() == 4


def test_from_and_to_are_shown_when_they_count(open_page):
    page = open_page(viewport=WIDE, java_script_enabled=False)
    start(page)
    assert not page.locator("#from").is_visible()
    page.select_option("#range", "custom")
    assert page.locator("#from").is_visible()


def test_sessions_cookie_needs_tls(open_page):
    page = open_page(viewport=WIDE)
    start(page)
    (cookie,) = page.context.cookies()
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Lax")


@pytest.mark.parametrize(("scheme", "window"), [("light", WIDE), ("dark", PHONE)], ids=["light wide", "dark phone"])
def test_everybody_can_use_it(open_page, scheme, window):
    axe = pytest.importorskip("axe_playwright_python.base")
    page = open_page(viewport=window, color_scheme=scheme)
    problems = {}

    def check(name):
        page.evaluate(axe.AXE_SCRIPT)
        page.evaluate("document.querySelectorAll('datalist').forEach(part => part.replaceChildren())")  # 500 zones
        found = page.evaluate("axe.run({resultTypes: ['violations']}).then(found => found.violations)")
        if found:
            problems[name] = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]

    page.goto("/login")
    check("login")
    start(page, "admin")
    few = "range=1h&outcome=bounced"
    first = (f"/?{few}", "/?recipient=x&tz=x", "/charts?range=1h", "/hosts", "/hosts?range=x")
    for path in (*first, "/rejects?range=1h", "/unparsed", "/audit"):
        page.goto(path)
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        check(path)
    page.goto("/?range=1h&recipient=bob@world.test")
    page.locator(".people a").first.click()
    page.locator("#lines a.button").click()
    page.wait_for_selector("pre.lines")
    check("mail")
    assert not problems

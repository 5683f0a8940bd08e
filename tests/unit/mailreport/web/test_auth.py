# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody gets in without a login, guesses for long, or makes another's browser send forms."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from mailreport.web.auth import Lockout

PASSWORD = "correct horse"
PAGES = ("/", "/rejects", "/charts", "/unparsed", "/audit", "/mail", "/attempts.csv", "/rejects.json", "/nothing")


def audit(site):
    """Give the lines of the audit log."""
    return [json.loads(line) for line in site.settings.web.audit_log.read_text().splitlines()]


@pytest.mark.parametrize("address", PAGES)
def test_stranger_is_sent_to_the_login(stranger, address):
    answer = stranger.get(address)
    assert answer.status_code == 302
    assert answer.location.startswith("/login?next=")


def test_login_leads_to_where_one_wanted_to_go(stranger, site):
    answer = stranger.get("/?recipient=bob@world.test&range=1h")
    page = stranger.get(answer.location).text
    assert 'name="next" value="/?recipient=bob@world.test&amp;range=1h"' in page
    answer = stranger.log_in(next="/?recipient=bob@world.test&range=1h")
    assert answer.location == "/?recipient=bob@world.test&range=1h"
    assert "bob@world.test" in stranger.get(answer.location).text
    assert (audit(site)[0]["user"], audit(site)[0]["action"]) == ("reader", "login")


@pytest.mark.parametrize(
    "target",
    ["//evil.test", "https://evil.test", "/\\evil.test", "\\\\evil.test", "/\t/evil.test", "javascript:alert(1)"],
)
def test_login_leads_to_no_other_site(stranger, target):
    assert stranger.log_in(next=target).location == "/"


@pytest.mark.parametrize(("name", "password"), [("reader", "wrong"), ("nobody", PASSWORD), ("", ""), ("reader", "")])
def test_wrong_password(stranger, site, name, password):
    answer = stranger.log_in(name, password)
    assert answer.status_code == 401
    assert "Name or password is wrong" in answer.text
    assert stranger.get("/").status_code == 302
    assert audit(site)[-1]["action"] == "login failed"
    assert audit(site)[-1]["user"] == ("reader" if name == "reader" else "?"), "no password is logged"


def test_lockout_holds_in_all_processes(site, page_of):
    for _turn in range(3):
        assert page_of(site.settings).log_in(password="wrong").status_code == 401
    answer = page_of(site.settings).log_in()
    assert answer.status_code == 429
    assert "Wait 15 minutes" in answer.text
    assert page_of(site.settings).log_in("admin").status_code == 302, "others from there are not locked out"
    assert audit(site)[3]["action"] == "locked out"


def test_right_password_forgets_tries(site, page_of):
    for _turn in range(2):
        for _turn in range(2):
            assert page_of(site.settings).log_in(password="wrong").status_code == 401
        assert page_of(site.settings).log_in().status_code == 302


def test_tries_at_once_are_all_counted(tmp_path):
    lockout = Lockout(tmp_path / "tries", tries=3, minutes=15)
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda _: lockout.count("a", "192.0.2.1"), range(24)))
    assert sum(allowed) == 3


def test_address_with_many_names_and_name_from_many_addresses_are_limited(tmp_path):
    lockout = Lockout(tmp_path / "tries", tries=3, minutes=15)
    assert sum(lockout.count(f"user{number}", f"2001:db8::{number:x}") for number in range(99)) == 30
    assert sum(lockout.count("root", f"198.51.100.{number}") for number in range(99)) == 30


def test_lockout_ends(tmp_path):
    lockout = Lockout(tmp_path / "tries", tries=1, minutes=0)
    assert lockout.count("a", "192.0.2.1")
    assert lockout.count("a", "192.0.2.1")


@pytest.mark.parametrize("address", ["/login", "/logout"])
def test_form_of_another_site_is_refused(reader, address):
    token = reader.form_token("/")
    for sent in ({}, {"token": ""}, {"token": f"{token}x"}, {"token": "ü"}):
        assert reader.post(address, data={"name": "admin", "password": PASSWORD, **sent}).status_code == 400
    assert reader.get("/").status_code == 200, "still logged in"


def test_form_without_any_session_is_refused(stranger):
    assert stranger.post("/login", data={"name": "reader", "password": PASSWORD, "token": ""}).status_code == 400


def test_logout(reader):
    assert reader.post("/logout", data={"token": reader.form_token("/")}).status_code == 302
    assert reader.get("/").status_code == 302


def test_new_password_or_no_user_ends_sessions(reader, site):
    users = json.loads(site.settings.web.users_file.read_text())
    changed = {**users, "reader": {"password": "scrypt:new", "role": "reader"}}
    site.settings.web.users_file.write_text(json.dumps(changed))
    assert reader.get("/").status_code == 302
    site.settings.web.users_file.write_text(json.dumps({"admin": users["admin"]}))
    assert reader.get("/").status_code == 302


def test_forged_session_is_refused(reader, site, page_of, tmp_path):
    cookie = reader.get_cookie("mailreport")
    secret = tmp_path / "secret"
    secret.write_text("another secret that is long enough, too")
    forger = page_of(replace(site.settings, web=replace(site.settings.web, secret_file=secret)))
    forger.set_cookie("mailreport", cookie.value)
    assert forger.get("/").status_code == 302


def test_short_secret_is_refused(site, page_of, tmp_path):
    (tmp_path / "short").write_text("secret")
    with pytest.raises(ValueError, match="openssl rand"):
        page_of(replace(site.settings, web=replace(site.settings.web, secret_file=tmp_path / "short")))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cookie(stranger, scheme):
    cookie = stranger.get("/login", base_url=f"{scheme}://mail.test").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert ("Secure" in cookie) is (scheme == "https")


def test_only_admins_see_the_audit_log(reader, site, page_of):
    answer = reader.get("/audit")
    assert answer.status_code == 403
    assert "Only administrators" in answer.text
    reader.get("/?recipient=bob@world.test")
    admin = page_of(site.settings)
    admin.log_in("admin")
    text = admin.get("/audit").text
    assert "bob@world.test" in text
    assert "Audit log" not in reader.get("/").text


def proxied(site, *addresses):
    """Give the settings of a page behind proxies."""
    web = replace(site.settings.web, proxy_header="X-Remote-User", proxy_addresses=addresses)
    return replace(site.settings, web=web)


def test_proxy_names_the_user(site, page_of):
    page = page_of(proxied(site, "10.0.0.0/24"))
    sent = {"X-Remote-User": "carol@corp.test", "X-Forwarded-For": "192.0.2.77", "X-Forwarded-Proto": "https"}
    for address in ("10.0.0.9", "::ffff:10.0.0.9"):
        answer = page.get("/?recipient=x@y.test", headers=sent, environ_base={"REMOTE_ADDR": address})
        assert answer.status_code == 200
        assert "carol@corp.test" in answer.text
        assert "Log out" not in answer.text, "the proxy would log in again"
        assert "Strict-Transport-Security" in answer.headers
        assert (audit(site)[-1]["user"], audit(site)[-1]["address"]) == ("carol@corp.test", "192.0.2.77")
    assert page.get("/audit", headers=sent, environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 403
    admin = page.get("/audit", headers={**sent, "X-Remote-User": "admin"}, environ_base={"REMOTE_ADDR": "10.0.0.9"})
    assert admin.status_code == 200, "the users file gives the role"
    below = {"X-Forwarded-Prefix": "/mail"}
    login = page.get("/charts", headers=below, environ_base={"REMOTE_ADDR": "10.0.0.9"}).location
    assert login == "/mail/login?next=/mail/charts"


def test_nobody_else_names_the_user(site, page_of):
    page = page_of(proxied(site, "10.0.0.9"))
    sent = {"X-Remote-User": "admin", "X-Forwarded-For": "10.0.0.9", "X-Forwarded-Proto": "https"}
    answer = page.get("/", headers=sent, environ_base={"REMOTE_ADDR": "10.0.0.10"})
    assert answer.status_code == 302
    assert "Strict-Transport-Security" not in answer.headers
    assert page_of(site.settings).get("/", headers=sent).status_code == 302, "no proxy is set"
    assert page.get("/", environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 302, "the proxy named nobody"

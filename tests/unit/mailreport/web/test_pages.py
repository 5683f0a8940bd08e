# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page answers from a real lake: searches, a mail's way, charts, files; and says what to do when it cannot."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from mailreport.engines import EngineError, connect
from mailreport.lake import ATTEMPTS, Lake
from mailreport.questions import Freshness, Journey, Message, Page, Questions
from mailreport.web.views import fates_of

EVERYTHING = {"range": "1h"}


def rows(answer):
    """Give the rows of a page of results, as text."""
    body = answer.text.partition("<tbody role")[2].partition("</tbody>")[0]
    return [" ".join(html.unescape(re.sub("<[^>]+>", " ", row)).split()) for row in body.split("<tr role")[1:]]


def first(pattern, text):
    """Give the first match of a pattern's group."""
    found = re.search(pattern, text)
    assert found, f"there is no {pattern}"
    return html.unescape(found[1])


def link(answer, text):
    """Give the address of a link by its text."""
    return first(rf'<a [^>]*?href="([^"]+)"[^>]*>(?:<bdi>)?{re.escape(text)}', answer.text)


def audit(site):
    """Give the newest line of the audit log."""
    return json.loads(site.settings.web.audit_log.read_text().splitlines()[-1])


@pytest.mark.parametrize("path", ["/login", "/", "/charts", "/static/style.css", "/nothing"])
def test_headers(reader, path):
    headers = reader.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert (headers["Cache-Control"] == "no-store") is (path != "/static/style.css")


def test_search_by_recipient_shows_the_way_through_both_tiers(reader, site):
    answer = reader.get("/", query_string={**EVERYTHING, "recipient": "BOB@world.test"})
    found = rows(answer)
    assert [first("(Delivered|Handed over|Deferred)", row) for row in found] == [
        "Delivered", "Deferred", "Deferred", "Handed over",
    ]  # fmt: skip
    assert "4 attempts" in answer.text
    assert all("alice@shop.test" in row for row in found)
    line = audit(site)
    assert (line["user"], line["action"], line["rows"]) == ("reader", "search", 4)
    assert line["asked"]["recipient"] == "BOB@world.test"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"recipient": "@evil.test"}, 1),
        ({"recipient": "team*"}, 3),
        ({"sender": "alice@shop.test"}, 4),
        ({"queue_id": "8F3A21C04E"}, 4),
        ({"message_id": "20261121.journey@shop.test"}, 4),
        ({"client": "10.0.0.11"}, 3),
        ({"relay": "fallback.vip.site.test"}, 1),
        ({"host": "fallback-01", "sender": "alice@shop.test", "outcome": "deferred"}, 2),
        ({"dsn": "4.", "sender": "alice@shop.test"}, 2),
        ({"text": "STATUS=sent to="}, 1),
    ],
)
def test_each_field_narrows(reader, asked, expected):
    assert len(rows(reader.get("/", query_string={**EVERYTHING, **asked}))) == expected


def test_pages_hold_each_row_once(reader, site):
    answer = reader.get("/", query_string=EVERYTHING)
    assert "the newest 40 shown" in answer.text
    seen = rows(answer)
    while 'rel="next"' in answer.text:
        answer = reader.get(link(answer, "Older"))
        seen += rows(answer)
    everything = reader.get("/attempts.json", query_string=EVERYTHING).json
    assert len(seen) == len(everything) == 4 + 300 + 1 + 3
    times = [row.split(" ")[0] + row.split(" ")[1] for row in seen]
    assert times == sorted(times, reverse=True)


def test_counts_lead_to_their_rows(reader):
    answer = reader.get("/", query_string=EVERYTHING)
    number = int(first(r"Bounced</span> <b>(\d+)", answer.text))
    assert 0 < number < 40
    assert len(rows(reader.get(first(r'href="([^"]*outcome=bounced[^"]*)"', answer.text)))) == number


def test_link_gives_the_same_rows(reader):
    answer = reader.get("/", query_string={**EVERYTHING, "recipient": "@world.test"})
    assert rows(reader.get(link(answer, "Link to these results"))) == rows(answer)


def test_damaged_link_to_more_rows(reader):
    answer = reader.get("/", query_string={**EVERYTHING, "after": "bm90aGluZw=="})
    assert answer.status_code == 400
    assert "Search again" in answer.text


def test_times_are_shown_in_the_chosen_zone_and_kept(reader, site):
    asked = {**EVERYTHING, "recipient": "bob@world.test"}
    newest = reader.get("/", query_string=asked).text.partition("<tbody role")[2]
    in_utc = first(r'<time datetime="([^"]+)"', newest)
    answer = reader.get("/", query_string={**asked, "tz": "Asia/Kolkata"})
    newest = answer.text.partition("<tbody role")[2]
    assert f'<time datetime="{in_utc}"' in newest
    hour, minute = int(in_utc[11:13]), int(in_utc[14:16])
    local = f"{(hour + 5 + (minute + 30) // 60) % 24:02d}:{(minute + 30) % 60:02d}:"
    assert f'class="clock">{local}' in newest
    assert 'value="Asia/Kolkata"' in reader.get("/").text


def test_wrong_time_is_told_beside_its_field(reader, site):
    answer = reader.get("/", query_string={"range": "custom", "from": "noon", "to": "2026-11-21T10:00"})
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text
    assert re.search(r'name="from"[^>]*value=""[^>]*aria-describedby="from-error" aria-invalid="true"', answer.text)
    assert audit(site)["action"] == "login", "nothing was asked"


def test_nothing_found_says_what_to_try(reader):
    answer = reader.get("/", query_string={**EVERYTHING, "recipient": "blocked@site.test"})
    assert "No delivery attempts found" in answer.text
    assert rows(reader.get(link(answer, "see the rejects")))[0].find("Client host rejected") > 0
    assert "recipient=blocked@site.test*" in link(answer, "all that begin with").replace("%40", "@").replace("%2A", "*")


def test_rejects_do_not_know_relays(reader):
    answer = reader.get("/rejects", query_string={**EVERYTHING, "relay": "mx.world.test"})
    assert "leave these out" in answer.text


def test_remote_text_is_only_text(reader):
    for path in ("/", "/rejects", "/unparsed"):
        text = reader.get(path, query_string={**EVERYTHING, "text": ""}).text
        for page in (text, reader.get(path, query_string={**EVERYTHING, "recipient": "victim@evil.test"}).text):
            assert "<script>alert" not in page
            assert "<b>new" not in page
            assert not set(page) & {"\x1b", "\u202e"}
    page = reader.get("/", query_string={**EVERYTHING, "recipient": "victim@evil.test"}).text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; \\u202egnp.exe" in page


def test_typed_text_is_only_text(reader):
    typed = {"recipient": '"><script>alert(1)</script>', "tz": "<i>", "range": "1h"}
    for path in ("/", "/rejects", "/charts"):
        text = reader.get(path, query_string=typed).text
        assert "<script>alert" not in text
        assert "<i>" not in text


def journey_of(reader):
    """Open the newest attempt of the mail to Bob."""
    answer = reader.get("/", query_string={**EVERYTHING, "recipient": "bob@world.test"})
    return reader.get(link(answer, "bob@world.test"))


def test_mail_is_followed_across_hosts(reader, site):
    answer = journey_of(reader)
    assert answer.status_code == 200
    hosts = re.findall(r"<h3>([\w-]+) <code>", answer.text)
    assert hosts == ["mx-01", "fallback-01"]
    steps = re.findall(r'<p class="head">.*?outcome (\w+)"', answer.text, re.S)
    assert steps == ["handed_over", "deferred", "deferred", "delivered"]
    assert "mx.world.test</bdi> after 15 min 4 s" in answer.text
    assert "said: 450 4.7.1 Greylisted" in answer.text, "why it fell back"
    assert "5B07D9E112: to=" not in answer.text, "the lines are shown on demand"
    assert (audit(site)["action"], audit(site)["rows"]) == ("mail", 4)


def test_what_the_last_host_wrote_counts_even_if_its_clock_is_behind():
    came = datetime(2026, 11, 21, 10)
    mail = Message("mx-01", "postfix", "A1", came, "", "", "", "", 1, 1, ())
    there = mail._replace(host="fallback-01", queue_id="B2")
    handed = {
        "recipient": "a@b.test",
        "next_queue_id": "B2",
        "time": came + timedelta(seconds=5),
        "outcome": "handed_over",
    }
    taken = {**handed, "next_queue_id": "Z9", "time": came + timedelta(seconds=3), "outcome": "delivered"}
    (fate,) = fates_of(Journey([taken, handed], [mail, there], True)).values()
    assert (fate.last["outcome"], fate.after_ms) == ("delivered", 3000)
    (fate,) = fates_of(Journey([handed], [mail], True)).values()
    assert fate.last["outcome"] == "handed_over"


def test_log_lines_on_demand(reader, site):
    answer = reader.get(link(journey_of(reader), "Show the lines").partition("#")[0])
    shown = re.findall(r"<pre.*?</pre>", answer.text, re.S)
    assert len(shown) == 2
    assert shown[0].count("5B07D9E112: to=&lt;bob@world.test&gt;") == 1
    assert shown[1].count("8F3A21C04E: to=&lt;bob@world.test&gt;") == 3
    assert "4cZother" not in answer.text
    assert audit(site)["action"] == "mail with lines"


def test_mail_with_many_recipients_shows_one_or_all(reader):
    answer = reader.get("/", query_string={**EVERYTHING, "recipient": "team1@world.test"})
    one = reader.get(link(answer, "team1@world.test"))
    assert "team2@world.test" not in one.text
    assert "team2@world.test" in reader.get(link(one, "Show all 3 recipients")).text


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"arrived": "noon"},
        {"arrived": "0001-01-01T00:00:00+01:00"},
        {"arrived": "9999-12-31T00:00:00"},
        {"host": "mx-01", "queue_id": "none", "arrived": "2026-11-21T10:00:00+01:00"},
    ],
)
def test_no_such_mail(reader, asked):
    answer = reader.get("/mail", query_string=asked)
    assert answer.status_code == 404
    assert "too old" in answer.text


def test_csv_holds_all_columns_and_no_formula(reader, site):
    answer = reader.get("/attempts.csv", query_string={**EVERYTHING, "recipient": "victim@evil.test"})
    assert re.fullmatch(r'attachment; filename="attempts-\d+T\d+Z-\d+T\d+Z.csv"', answer.headers["Content-Disposition"])
    head, row = csv.reader(io.StringIO(answer.text))
    assert head == ATTEMPTS.names
    found = dict(zip(head, row, strict=True))
    assert found["sender"] == "'=HYPERLINK(1)@evil.test"
    assert found["time"].endswith("Z")
    assert (audit(site)["action"], audit(site)["rows"]) == ("download attempts csv", 1)


def test_file_that_is_cut_says_so(site, page_of, monkeypatch):
    monkeypatch.setattr("mailreport.web.views._PART", 4)
    page = page_of(replace(site.settings, web=replace(site.settings.web, download_rows=10)))
    page.log_in()
    answer = page.get("/attempts.json", query_string=EVERYTHING)
    assert answer.headers["Content-Disposition"].endswith('-newest-10.json"')
    parts = answer.json
    assert len({json.dumps(row) for row in parts}) == 10
    assert page.get("/rejects.json", query_string=EVERYTHING).json[0]["sender"] == "spam@bulk.test"
    assert page.get("/attempts.csv", query_string={**EVERYTHING, "recipient": "no@one.test"}).text.count("\n") == 1


def test_charts_count_what_searches_find(reader):
    found = reader.get("/attempts.json", query_string={"range": "6h"}).json
    answer = reader.get("/charts", query_string={"range": "6h"})
    for outcome, title in {"deferred": "Soft bounces", "bounced": "Hard bounces", "delivered": "Delivered"}.items():
        number = sum(row["outcome"] == outcome for row in found)
        assert re.search(rf'aria-label="{title} per 5 minutes: {number} in all', answer.text)
        assert re.search(rf"{title}</dt><dd>{number}</dd>", answer.text)
    assert answer.text.count('<svg role="img"') == 6
    assert answer.text.count("<caption") >= 5


def test_charts_of_one_domain(reader):
    found = reader.get("/attempts.json", query_string={"range": "6h", "recipient": "@slow.test", "outcome": "deferred"})
    answer = reader.get("/charts", query_string={"range": "6h"})
    answer = reader.get(link(answer, "slow.test"))
    assert f"Soft bounces</dt><dd>{len(found.json)}</dd>" in answer.text
    assert len(rows(reader.get(link(answer, "Search the mail to @")))) == 40


def test_top_errors_are_of_the_chosen_outcome(reader):
    text = reader.get("/charts", query_string={"range": "6h", "top": "bounced"}).text
    table = text.partition('aria-label="By error"')[2].partition("</table>")[0]
    assert "User unknown" in table
    assert "Greylisted" not in table


@pytest.mark.parametrize(("asked", "field"), [({"by": "domain"}, "key"), ({"by": "x"}, "by"), ({"top": "x"}, "top")])
def test_charts_of_something_unknown(reader, asked, field):
    answer = reader.get("/charts", query_string=asked)
    assert answer.status_code == 400
    assert f'id="{field}-error"' in answer.text


def test_unparsed_lines_are_counted(reader):
    text = reader.get("/unparsed", query_string=EVERYTHING).text
    assert "2 unparsed lines" in text
    assert "something &lt;b&gt;new&lt;/b&gt; 1" in text


def test_banner_tells_how_new_the_data_is(reader, made, page_of, site, monkeypatch):
    assert "from 3 hosts" in reader.get("/").text
    assert "Logs are late" not in reader.get("/").text
    monkeypatch.setattr("mailreport.web.views.now", lambda: made.now.replace(tzinfo=UTC) + timedelta(hours=3))
    later = page_of(site.settings)
    later.log_in()
    assert re.search(r"Logs are late: the newest mail is\s+3 h", later.get("/").text)


def test_empty_lake(site, page_of, tmp_path):
    page = page_of(replace(site.settings, lake=tmp_path / "lake"))
    page.log_in()
    assert "Is the ingest running?" in page.get("/").text
    for path in ("/", "/rejects", "/unparsed", "/charts"):
        assert page.get(path, query_string=EVERYTHING).status_code == 200


class Broken:
    """An engine that is down."""

    name = "broken"

    def rows(self, sql, tables, values):
        raise EngineError("https://user:password@engine.test does not answer")


def test_engine_that_is_down(site, page_of):
    page = page_of(site.settings, questions=Questions(Lake(site.settings.lake), Broken()))
    page.log_in()
    answer = page.get("/")
    assert answer.status_code == 200
    assert "How new the data is cannot be told" in answer.text
    for path in ("/", "/rejects", "/charts", "/unparsed", "/attempts.csv"):
        answer = page.get(path, query_string=EVERYTHING)
        assert answer.status_code == 503
        assert "cannot be searched now" in answer.text
        assert "password" not in answer.text
    assert audit(site)["rows"] is None, "it was asked, and not answered"


def test_engine_that_is_down_at_the_start(site, page_of):
    settings = replace(site.settings, engine="clickhouse", engine_url="http://127.0.0.1:9/")
    page = page_of(settings)
    page.log_in()
    assert page.get("/", query_string=EVERYTHING).status_code == 503


def test_answer_that_takes_too_long(site, page_of):
    settings = replace(site.settings, web=replace(site.settings.web, timeout_s=0))
    page = page_of(settings, questions=Questions(Lake(site.settings.lake), Broken()))
    page.log_in()
    answer = page.get("/", query_string=EVERYTHING)
    assert answer.status_code == 504
    assert "shorter time range" in answer.text


def test_rows_are_shown_even_if_they_cannot_be_counted(site, page_of):
    class Slow(Questions):
        def count(self, search):
            raise EngineError("too slow")

    page = page_of(site.settings, questions=Slow(Lake(site.settings.lake), connect(site.settings)))
    page.log_in()
    answer = page.get("/", query_string=EVERYTHING)
    assert len(rows(answer)) == 40
    assert "counting all took too long" in answer.text


def test_no_answer_without_an_audit_log(site, page_of, tmp_path):
    page = page_of(site.settings)
    page.log_in()
    site.settings.web.audit_log.unlink()
    site.settings.web.audit_log.mkdir()
    answer = page.get("/", query_string={**EVERYTHING, "recipient": "bob@world.test"})
    assert answer.status_code == 503
    assert "mx.world.test" not in answer.text


def test_freshness_is_not_asked_for_each_page(reader, site, page_of):
    class Counting(Questions):
        asked = 0

        def freshness(self, now):
            Counting.asked += 1
            return Freshness({}, None)

        def search(self, search, limit=100, after=""):
            return Page([], "")

    page = page_of(site.settings, questions=Counting(Lake(site.settings.lake), Broken()))
    page.log_in()
    for _turn in range(3):
        page.get("/")
    assert Counting.asked == 1


def test_log_lines_of_no_form_break_the_audit_log(reader, site):
    reader.get("/", query_string={**EVERYTHING, "recipient": 'x"}\n{"user": "root', "text": "\u2028\x00"})
    assert audit(site)["user"] == "reader"

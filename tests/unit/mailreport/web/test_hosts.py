# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of the hosts shows what Prometheus says, and says what to do when it says nothing."""

from __future__ import annotations

import html
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from mailreport.prometheus import Prometheus, Series
from mailreport.settings import PrometheusSettings
from mailreport.web import forms, hosts

ZERO = {"status": "success", "data": {"alerts": [], "result": []}}


@pytest.fixture
def open_hosts(site, page_of):
    """Open the page of a site with a Prometheus, logged in."""

    def make(address):
        page = page_of(replace(site.settings, prometheus=PrometheusSettings(url=address)))
        page.log_in()
        return page

    return make


def words(answer):
    """Give the text of a page."""
    main = answer.text.partition("<main")[2]
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", main)).split())


def form_of(choice="6h", now=None):
    """Give a form of a range that ends now."""
    return forms.read({"range": choice}, now or datetime.now(UTC), "UTC", hosts.DEFAULT)


def test_page_shows_alerts_hosts_and_charts(open_hosts, fake):
    answer = open_hosts(fake.address).get("/hosts")
    assert answer.status_code == 200
    told = words(answer)
    assert "2 alerts fire" in told
    assert re.search(
        r"HostDown on mx-03 page, since 2026-11-21 10:00:00 \(.* mx-03 does not answer Do first: Look", told
    )
    assert re.search(r"QueueOld tier fallback ticket, since .* <b>old</b> mail \\u202e", told)
    assert "<b>old</b>" not in answer.text
    assert "Soon" not in told, "it is only pending"
    assert "Down: mx-03" in told
    numbers = r"\d\d\.\d % \d\d\.\d % 0\.\d\d \d+ \d\d\.\d %"
    assert re.search(rf"mx-03 Down {numbers} cache-01 Up( \S){{5}} cache-02 Up( \S){{5}} mx-01 Up", told)
    assert answer.text.count('<svg role="img"') == 9
    assert "no numbers of this time for: Cache: connections in use." in told
    assert "Last 6 hours. A point is the worst of 5 minutes" in told
    assert 'href="/charts?by=domain&amp;key=d12.test&amp;range=6h&amp;tz=UTC"' in answer.text
    assert 'aria-current="page">Hosts<' in answer.text


def test_all_is_asked_with_the_range_that_was_chosen(open_hosts, fake):
    page = open_hosts(fake.address)
    for choice, step, seconds in (("1h", 60, 3600), ("7d", 7200, 604_800)):
        fake.asked.clear()
        answer = page.get("/hosts", query_string={"range": choice, "tz": "Asia/Kolkata"})
        assert "(Asia/Kolkata, UTC+05:30)" in words(answer)
        over = [asked for path, asked, _authorization in fake.asked if path == "/api/v1/query_range"]
        assert len(over) == len(hosts.MEASURES)
        for asked in over:
            times = [float(asked[name]) for name in ("start", "end", "step")]
            assert (times[1] - times[0] + times[2], times[2]) == (seconds, step)
            assert times[1] % step == 0
            assert f"[{step}s]" in asked["query"]
            assert f"[{seconds}s] @ end()" in asked["query"]


def test_worst_come_first_and_six_are_shown(fake):
    report = hosts.report(Prometheus(PrometheusSettings(url=fake.address)), form_of("24h"))
    charts = {drawn.chart.name: drawn for drawn in report.charts}
    assert charts["cpu"].names == ["mx-08", "mx-07", "mx-06", "mx-05", "mx-04", "mx-03"]
    assert re.fullmatch("mx-08: .*; mx-07: .*; 4 more lines in the table", charts["cpu"].chart.summary)
    assert charts["queues"].names[0] == "mx-08 fallback"
    assert charts["tiers"].names == ["fallback", "primary"]
    assert [text for _level, text in charts["tiers"].chart.levels] == ["20,000", "10,000"]
    assert [text for _level, text in charts["oldest"].chart.levels] == ["1 d", "12 h"]
    assert [text for _level, text in charts["cpu"].chart.levels] == ["100.0 %", "50.0 %"]
    hits = charts["hits"].chart
    assert re.search(r"cache.site.test: \d\d\.\d % at last, at least 8\d\.\d % at ", hits.summary)
    assert {len(drawn.rows) for drawn in report.charts} == {len(hits.marks)} == {96}
    assert report.down == ["mx-03"]
    assert report.domains is not None
    domains = [domain for domain, _share in report.domains]
    assert domains[:3] == ["d12.test", "d11.test", "d10.test"]


def test_gaps_are_no_numbers(fake):
    now = datetime(2026, 11, 21, 12, 2)
    measure = next(one for one in hosts.MEASURES if one.name == "cpu")
    form = form_of("1h", now.replace(tzinfo=UTC))
    begin = datetime(2026, 11, 21, 11, 3)
    drawing = hosts._Drawing(form, begin, begin + timedelta(hours=1), timedelta(minutes=1))
    values = {begin + timedelta(minutes=number): 0.25 for number in (1, 2, 5)}
    drawn = drawing.lines(measure, [Series({"instance": "mx-01"}, values)])
    assert drawn.chart.lines["line1"].count("M") == 2
    assert [texts for _begin, texts in drawn.rows[:5]] == [["25.0 %"], ["25.0 %"], [""], [""], ["25.0 %"]]
    assert drawn.chart.marks[2].text == "21 Nov 11:05: mx-01 nothing"
    assert drawn.chart.summary == "mx-01: nothing at last, at most 25.0 % at 21 Nov 11:03"
    assert drawing.lines(measure, []).names == []


@pytest.mark.parametrize(
    ("unit", "value", "top", "text"),
    [
        (hosts.COUNT, 0, 2, "2"), (hosts.COUNT, 1234, 2000, "2,000"), (hosts.COUNT, 1000, 1000, "1,000"),
        (hosts.LOAD, 0.2, 1, "1.00"), (hosts.LOAD, 3, 4, "4.00"), (hosts.RATE, 0, 0.1, "0.1/s"),
        (hosts.RATE, 0.3, 0.4, "0.4/s"), (hosts.SHARE, 0.01, 1, "100.0 %"), (hosts.SHARE, 1.5, 2, "200.0 %"),
        (hosts.SECONDS, 0, 60, "1 min"), (hosts.SECONDS, 400_000, 432_000, "5 d"),
        (hosts.SECONDS, 2e6, 2e6, "23 d 3 h"),
    ],
)  # fmt: skip
def test_charts_end_at_round_numbers(unit, value, top, text):
    assert unit.top(value) == pytest.approx(top)
    assert unit.text(unit.top(value)) == text


def test_nothing_fires_and_nothing_is_known(open_hosts, fake):
    fake.answer = lambda path, asked: (200, ZERO)
    answer = open_hosts(fake.address).get("/hosts")
    assert answer.status_code == 200
    assert "No alert fires" in words(answer)
    assert "Prometheus knows no host" in words(answer)
    assert answer.text.count('<svg role="img"') == 0


def test_a_part_that_is_not_told_does_not_hide_the_others(open_hosts, fake):
    usual = fake.answer
    fault = (422, {"status": "error", "error": "<i>too many samples</i>"})
    fake.answer = lambda path, asked: fault if "node_cpu" in asked.get("query", "") else usual(path, asked)
    answer = open_hosts(fake.address).get("/hosts")
    assert answer.status_code == 200
    told = words(answer)
    assert "Prometheus cannot answer: <i>too many samples</i>. Not shown: Processors, Processors in use." in told
    assert "<i>" not in answer.text
    assert answer.text.count('<svg role="img"') == 8
    fake.answer = lambda path, asked: fault if path.endswith("alerts") else usual(path, asked)
    assert "Which alerts fire is not known" in words(open_hosts(fake.address).get("/hosts"))


def test_prometheus_that_is_down(open_hosts):
    answer = open_hosts("http://127.0.0.1:9").get("/hosts")
    assert answer.status_code == 503
    assert words(answer).count("Prometheus does not answer: Connection refused.") == 1
    assert "nothing can be told of the hosts" in words(answer)


def test_without_prometheus_there_is_no_page(reader):
    assert "/hosts" not in reader.get("/").text
    answer = reader.get("/hosts")
    assert answer.status_code == 404
    assert "No Prometheus is named" in answer.text


def test_strangers_see_nothing_of_hosts(site, page_of, fake):
    page = page_of(replace(site.settings, prometheus=PrometheusSettings(url=fake.address)))
    assert page.get("/hosts").status_code == 302
    assert fake.asked == []


@pytest.mark.parametrize("choice", ["15m", "30d", "custom", "x"])
def test_other_ranges_are_refused(open_hosts, fake, choice):
    answer = open_hosts(fake.address).get(
        "/hosts", query_string={"range": choice, "from": "2026-11-21", "to": "2026-11-22"}
    )
    assert answer.status_code == 400
    assert 'id="range-error"' in answer.text
    assert fake.asked == []


# ---- With a Prometheus


RULES = """\
groups:
  - name: test
    rules:
      - alert: HostDown
        expr: up{job="node"} == 0
        labels: {severity: page}
        annotations: {summary: "{{ $labels.instance }} does not answer", runbook: Look at its console.}
"""


@pytest.fixture(scope="module")
def real(served, serving, tmp_path_factory):
    """Give the address of a Prometheus that knows the same of the last seven hours."""
    if not all(map(shutil.which, ("prometheus", "promtool"))):
        pytest.skip("Debian's package prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    now = time.time() // 60 * 60
    with (folder / "samples").open("w") as file:
        file.writelines(served.samples(now - 7 * 3600, now, 60))
    subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "samples", folder / "data"],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "rules.yml").write_text(RULES)
    (folder / "prometheus.yml").write_text(
        "global: {evaluation_interval: 1s}\nrule_files: [rules.yml]\nscrape_configs: []\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--web.listen-address={address}",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
    ]

    def answers() -> bool:
        with urllib.request.urlopen(f"http://{address}/api/v1/alerts", timeout=5) as answer:
            return b"firing" in answer.read()

    with serving(command, folder, answers, turns=300):
        yield f"http://{address}"


def test_real_prometheus_answers_all_that_is_asked(real, open_hosts):
    report = hosts.report(Prometheus(PrometheusSettings(url=real)), form_of())
    assert report.problems == {}
    assert report.silent == ["Cache: connections in use"]
    charts = {drawn.chart.name: drawn for drawn in report.charts}
    assert charts["cpu"].names == ["mx-08", "mx-07", "mx-06", "mx-05", "mx-04", "mx-03"], "it chose the worst"
    assert charts["queues"].names[0] == "mx-08 fallback"
    for drawn in report.charts:
        assert len(drawn.rows) == 72
        assert sum(all(texts) for _begin, texts in drawn.rows) >= 71, drawn.chart.name
    # The highest and the lowest of each five minutes, of what goes a tenth up and down.
    assert re.search(r"mx-08: .* at last, at most 88\.0 % at ", charts["cpu"].chart.summary)
    assert re.search(r"cache.site.test: .* at last, at least 81\.0 % at ", charts["hits"].chart.summary)
    assert report.hosts is not None
    assert report.domains is not None
    assert [host.name for host in report.hosts][:3] == ["mx-03", "cache-01", "cache-02"]
    assert len(report.domains) == 10
    assert report.domains[0][1] == pytest.approx(0.6, abs=0.01), "the average"
    told = words(open_hosts(real).get("/hosts?range=7d"))
    assert "1 alert fires" in told
    assert "HostDown on mx-03" in told
    assert "mx-03 does not answer Do first: Look at its console." in told
    assert "Down: mx-03" in told

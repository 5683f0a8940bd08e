# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Charts lie where they should, and say so in words."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from mailreport.lake import OUTCOMES
from mailreport.questions import Point
from mailreport.web import charts, forms

BEGIN = datetime(2026, 11, 21, 10)
STEP = timedelta(minutes=15)


def drawn(numbers, zone="UTC", **delays):
    """Draw an hour of points with so many of an outcome each."""
    end = BEGIN + len(numbers) * STEP
    args = {"range": "custom", "from": f"{BEGIN.isoformat()}Z", "to": f"{end.isoformat()}Z", "tz": zone}
    form = forms.read(args, datetime.now(UTC), "UTC")
    points = [
        Point(BEGIN + place * STEP, dict.fromkeys(OUTCOMES, 0) | counts, **delays if counts else {})
        for place, counts in enumerate(numbers)
    ]
    return {chart.name: chart for chart in charts.charts(form, points, STEP)}


def test_bars_are_as_high_as_their_numbers():
    chart = drawn([{"deferred": 10}, {"deferred": 0}, {"deferred": 5}, {"deferred": 1}])["deferred"]
    assert [mark.height for mark in chart.marks] == [100, 0, 50, 10]
    assert [mark.x for mark in chart.marks] == [0, 250, 500, 750]
    assert chart.marks[0].text == "21 Nov 10:00: 10"
    assert chart.summary == "16 in all, at most 10 in 15 minutes, at 21 Nov 10:00"
    assert chart.title == "Soft bounces per 15 minutes"


def test_one_among_many_is_seen():
    chart = drawn([{"bounced": 1}, {"bounced": 1_000_000}])["bounced"]
    assert chart.marks[0].height >= 1


def test_share_leaves_out_what_is_not_decided():
    chart = drawn([{"delivered": 19, "bounced": 1, "deferred": 500, "handed_over": 500}, {"deferred": 1}])["share"]
    assert [mark.text for mark in chart.marks] == ["21 Nov 10:00: 95.00 %", "21 Nov 10:15: none ended"]
    assert chart.levels[-1] == (1.0, "90 %")
    assert chart.lines["share"] == "M250.0 50.0h0"  # a lonely point is a dot, half way from 90 to 100


def test_delays_are_logarithmic_and_broken_where_nothing_was_delivered():
    one = {"delivered": 1}
    chart = drawn([one, one, {}, one], p50_ms=100, p90_ms=1000, p99_ms=10_000)["delay"]
    heights = {name: {float(y) for y in re.findall(r"[ML]\S+ ([\d.]+)", path)} for name, path in chart.lines.items()}
    assert heights == {"p50": {100.0}, "p90": {50.0}, "p99": {0.0}}
    assert chart.lines["p50"].count("M") == 2
    assert [label for _at, label in chart.levels] == ["100 ms", "1 s", "10 s"]
    assert chart.summary == "between 100 ms and 10.0 s"


def test_nothing_at_all_can_be_drawn():
    assert drawn([{}, {}])["delay"].summary == "none delivered"


def test_times_are_of_the_zone():
    chart = drawn([{"delivered": 1}] * 24, zone="Asia/Kolkata")["delivered"]
    assert chart.ticks[0] == (8.33, "16:00")  # 10:00 UTC is 15:30 there, and the chart has six hours
    assert chart.marks[0].text.startswith("21 Nov 15:30")


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0 ms"), (999, "999 ms"), (1234, "1.2 s"), (61_000, "1 min 1 s"), (7_200_000, "2 h"), (90_061_000, "1 d 1 h")],
)
def test_duration_in_words(milliseconds, text):
    assert charts.duration(milliseconds) == text

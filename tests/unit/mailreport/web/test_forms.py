# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person types becomes a question of the right time, in any zone, or a sentence that says what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from mailreport.questions import Search
from mailreport.web import forms

NOW = datetime(2026, 11, 21, 14, 30, 0, 5, tzinfo=UTC)


def read(zone="UTC", **args):
    """Read a form; `since` is its "from"."""
    return forms.read({"from" if name == "since" else name: value for name, value in args.items()}, NOW, zone)


def test_relative_range_ends_after_now():
    form = read(range="1h", recipient=" a@b.test ")
    end = datetime(2026, 11, 21, 14, 30, 1)
    assert form.search == Search(end - timedelta(hours=1), end, recipient="a@b.test")
    assert not form.errors


@pytest.mark.parametrize(
    ("zone", "since", "begin"),
    [
        ("Europe/Berlin", "2026-11-21T10:00", datetime(2026, 11, 21, 9)),
        ("Europe/Berlin", "2026-07-01T10:00", datetime(2026, 7, 1, 8)),  # daylight saving time
        ("Asia/Kolkata", "2026-11-21T10:00:07", datetime(2026, 11, 21, 4, 30, 7)),
        ("Asia/Kolkata", "2026-11-21T10:00:00Z", datetime(2026, 11, 21, 10)),  # links say their zone
    ],
)
def test_typed_time_is_of_the_chosen_zone(zone, since, begin):
    form = read(range="custom", since=since, to="2026-12-01T00:00", tz=zone)
    assert form.begin == begin
    assert not form.errors


def test_link_asks_for_the_same_time_later():
    form = read(range="24h", tz="Europe/Berlin", recipient="a*", dsn="4.")
    later = forms.read(form.fixed(), NOW + timedelta(days=3), "UTC")
    assert later.search == form.search
    assert later.zone_name == "Europe/Berlin"
    assert not later.errors


def test_relative_link_stays_relative():
    assert read(range="7d", recipient="a@b.test").relative() == {"range": "7d", "tz": "UTC", "recipient": "a@b.test"}


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"range": "custom", "since": "yesterday", "to": "2026-11-21T10:00"}, "from"),
        ({"range": "custom", "since": "2026-11-21T10:00"}, "to"),
        ({"range": "custom", "since": "2026-11-21T10:00", "to": "2026-11-21T10:00"}, "to"),
        ({"range": "custom", "since": "0001-01-01T00:00", "to": "2026-11-21T10:00", "tz": "Asia/Tokyo"}, "from"),
        ({"range": "custom", "since": "0001-01-02T00:00", "to": "0001-01-03T10:00", "tz": "America/Lima"}, "from"),
        ({"range": "custom", "since": "9999-01-02T00:00", "to": "9999-12-31T23:59"}, "from"),
        ({"range": "custom", "since": "2020-01-01T00:00", "to": "2026-11-21T10:00"}, "to"),
        ({"range": "5y"}, "range"),
        ({"tz": "Mars/Olympus"}, "tz"),
        ({"tz": "../../etc/passwd"}, "tz"),
        ({"outcome": "lost"}, "outcome"),
    ],
)
def test_wrong_field_is_named(args, field):
    assert list(read(**args).errors) == [field]

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the filters for reports."""

from __future__ import annotations

from ansible_collections.tenfold.stack.plugins.filter.report import FilterModule

table = FilterModule().filters()["table"]


def test_columns_are_aligned_and_numbers_stand_to_the_right():
    rows = [
        {"name": "a", "port": 11211, "share": 0.5, "note": ""},
        {"name": "sessions", "port": 1, "share": 10, "note": "new"},
    ]
    assert table(rows).splitlines() == [
        "name       port  share  note",
        "--------  -----  -----  ----",
        "a         11211    0.5",
        "sessions      1     10  new",
    ]


def test_a_column_with_any_text_stands_to_the_left():
    assert table([{"a": 1}, {"a": "none"}]).splitlines()[2:] == ["1", "none"]


def test_no_rows_are_told():
    assert table([]) == "nothing to report"

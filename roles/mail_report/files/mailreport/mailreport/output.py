# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows as JSON, CSV and tables. Remote servers choose some of the text: it must not command who reads it."""

from __future__ import annotations

import csv
import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TextIO

_FORMULA = set("=+-@\t\r\n")  # what a spreadsheet takes for the start of a formula, also in full width
# Classes of characters that command a terminal or change the order of text: control, format, surrogates, separators.
_COMMANDS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_NARROWEST = 8


def plain(value: Any) -> Any:
    """Give a value as files have it: times with their zone."""
    return f"{value.isoformat()}Z" if isinstance(value, datetime) else value


def as_json(value: Any) -> str:
    """Give JSON on one line."""
    return json.dumps(value, default=plain, ensure_ascii=False)


def write_csv(file: TextIO, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write CSV that no spreadsheet takes for formulas."""
    writer = csv.writer(file)
    writer.writerow(names)
    for row in rows:
        writer.writerow([_harmless(plain(row[name])) for name in names])


def _harmless(cell: Any) -> Any:
    """Put a ' before what a spreadsheet would take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and unicodedata.normalize("NFKC", cell[:1]) in _FORMULA else cell


def visible(text: str) -> str:
    """Show characters that command a terminal as escapes."""
    return "".join(
        character if unicodedata.category(character) not in _COMMANDS else character.encode("unicode_escape").decode()
        for character in text
    )


def table(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Give the lines of a table that is no wider than so many characters; 0 for any width."""
    cells = [[visible(cell) for cell in row] for row in (names, *rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    over = sum(widths) + 2 * (len(widths) - 1) - width if width else 0
    while over > 0 and max(widths) > _NARROWEST:
        widest = max(range(len(widths)), key=widths.__getitem__)
        # Down to the next column's width, so that the widest share what is lacking.
        others = max((one for one in widths if one < widths[widest]), default=0)
        less = min(over, widths[widest] - max(others, _NARROWEST)) or 1
        widths[widest] -= less
        over -= less
    for row in cells:
        yield "  ".join(_fitted(cell, its) for cell, its in zip(row, widths, strict=True)).rstrip()


def _width(text: str) -> int:
    """Give how many columns of a terminal a text takes."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitted(text: str, width: int) -> str:
    """Cut or fill a text."""
    if _width(text) > width:
        ends = itertools.accumulate(map(_columns, text))
        text = "".join(character for character, end in zip(text, ends, strict=True) if end < width) + "…"
    return text + " " * (width - _width(text))

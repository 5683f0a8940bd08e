# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Give rows as a table of text.

    :param rows: mappings with the same keys, which head the columns in their order.
    :return: lines with aligned columns; numbers stand to the right.
    """
    if not rows:
        return "nothing to report"
    columns = list(rows[0])
    cells = [[str(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells)]
    right = [all(isinstance(row[column], (int, float)) for row in rows) for column in columns]

    def line(values: Sequence[str]) -> str:
        aligned = [
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(values, widths, right)
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, cells)])


class FilterModule:
    """Filters for reports."""

    def filters(self) -> dict[str, Any]:
        return {"table": table}

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page about the tiers says what the role does."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[4]
TIERS = yaml.safe_load((ROOT / "roles/postfix/vars/tiers.yml").read_text())["__postfix_tiers"]


def line(row):
    """Give the line of the table for a setting."""
    value = row["value"]
    if isinstance(value, dict):
        value = ", ".join(f"{name}={text}" for name, text in value.items())
    setting = f"`{row['setting']}`" + (f" of `{row['service']}`" if "service" in row else "")
    setting += f" (Postfix {row['since']})" if "since" in row else ""
    return f"| {setting} | {f'`{value}`' if value != '' else '(empty)'} | {row['why']} | {row['without']} |"


def test_the_page_has_each_setting_and_no_other():
    page = (ROOT / "roles/postfix/TIERS.md").read_text()
    found = {
        part.split("\n", 1)[0].lower(): [row for row in part.splitlines() if row.startswith("| `")]
        for part in page.split("\n## ")[1:]
    }
    assert {tier: found.get(tier) for tier in TIERS} == {tier: list(map(line, rows)) for tier, rows in TIERS.items()}


def test_each_setting_is_named_once():
    for rows in TIERS.values():
        names = [(row.get("service"), row["setting"]) for row in rows]
        assert len(names) == len(set(names))

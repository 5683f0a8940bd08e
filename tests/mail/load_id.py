# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which mail is which: every mail of a load has an id of fixed width in its recipient, a header and its sender."""

from __future__ import annotations

import re
import secrets

HEADER = "X-Load"  # id and time of the submission
BOUNCES = "bounces"  # the senders' domain, below that of the sink
_ID = re.compile(r"(?:b-)?(m[0-9a-f]{5}[0-9]{8})@")


def new_run() -> str:
    """Give a prefix for the ids of one run of the submitters."""
    return f"m{secrets.token_hex(3)[:5]}"


def run_of(load_id: str) -> str:
    """Give the prefix of an id."""
    return load_id[:6]


def make(run: str, number: int) -> str:
    """Give an id."""
    return f"{run}{number:08}"


def sender(load_id: str, zone: str) -> str:
    """Give the address that a bounce of this mail goes to."""
    return f"b-{load_id}@{BOUNCES}.{zone}"


def find(address: str) -> str | None:
    """Give the id in a recipient or a sender, None if it isn't of a load."""
    found = _ID.match(address)
    return found[1] if found else None

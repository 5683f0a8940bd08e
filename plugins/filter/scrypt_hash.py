# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords as hashes that the mail report's page understands."""

from __future__ import annotations

import hashlib
from typing import Any

# What Werkzeug, which checks them, uses by itself.
COST = 2**15
BLOCK = 8
PARALLEL = 1
MEMORY = 132 * COST * BLOCK  # bytes, with room


def scrypt_hash(password: str, salt: str) -> str:
    """Give the hash of a password in Werkzeug's form, the same for the same salt.

    Source of the form: ``werkzeug.security.generate_password_hash``.
    """
    made = hashlib.scrypt(password.encode(), salt=salt.encode(), n=COST, r=BLOCK, p=PARALLEL, maxmem=MEMORY)
    return f"scrypt:{COST}:{BLOCK}:{PARALLEL}${salt}${made.hex()}"


class FilterModule:
    """Filters for passwords."""

    def filters(self) -> dict[str, Any]:
        return {"scrypt_hash": scrypt_hash}

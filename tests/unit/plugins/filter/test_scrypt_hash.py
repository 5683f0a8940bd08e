# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page's library takes the hash for the password, and for no other."""

from __future__ import annotations

from ansible_collections.tenfold.stack.plugins.filter.scrypt_hash import scrypt_hash
from werkzeug.security import check_password_hash


def test_werkzeug_takes_it() -> None:
    made = scrypt_hash("correct horse é", "mx alice")
    assert check_password_hash(made, "correct horse é")
    assert not check_password_hash(made, "correct horse e")


def test_the_salt_decides() -> None:
    assert scrypt_hash("a", "1") == scrypt_hash("a", "1")
    assert scrypt_hash("a", "1") != scrypt_hash("a", "2")

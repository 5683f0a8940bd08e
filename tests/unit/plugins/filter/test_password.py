# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Those who check passwords take the hash for the password, and for no other."""

from __future__ import annotations

import re
import sys

import bcrypt
import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tenfold.stack.plugins.filter.password import FilterModule
from werkzeug.security import check_password_hash

FILTERS = FilterModule().filters()
scrypt_hash = FILTERS["scrypt_hash"]
bcrypt_hash = FILTERS["bcrypt_hash"]


def test_werkzeug_takes_it() -> None:
    made = scrypt_hash("correct horse é", "mx alice")
    assert check_password_hash(made, "correct horse é")
    assert not check_password_hash(made, "correct horse e")


@pytest.mark.parametrize("hash_of", [scrypt_hash, bcrypt_hash])
def test_the_salt_decides(hash_of) -> None:
    assert hash_of("a", "1") == hash_of("a", "1")
    assert hash_of("a", "1") != hash_of("a", "2")


@pytest.mark.parametrize("salt_source", ["", "mx-01 prometheus", "é" * 200])
def test_bcrypt_takes_it(salt_source) -> None:
    made = bcrypt_hash("correct horse é", salt_source)
    assert re.fullmatch(r"\$2b\$10\$[./A-Za-z0-9]{53}", made)
    assert bcrypt.checkpw("correct horse é".encode(), made.encode())
    assert not bcrypt.checkpw(b"correct horse e", made.encode())


def test_the_salt_of_bcrypt_tells_nothing_of_the_password() -> None:
    one, other = bcrypt_hash("a", "1"), bcrypt_hash("b", "1")
    assert one[:29] == other[:29]
    assert one != other


def test_the_hash_of_a_password_stays_the_same() -> None:
    # Another one would change a file on every host of a site.
    made = "$2b$10$bX47l2i4oA3Pqu10Lf597uLy0DEHvOG8Ulqh3HE66UcjyQ7LbCNwq"
    assert bcrypt_hash("correct horse", "mx-01 prometheus") == made


@pytest.mark.parametrize(("password", "length"), [("a" * 72, None), ("a" * 73, 73), ("é" * 37, 74)])
def test_bcrypt_leaves_out_no_end(password, length) -> None:
    if length is None:
        assert bcrypt.checkpw(password.encode(), bcrypt_hash(password, "1").encode())
        return
    with pytest.raises(AnsibleFilterError, match=f"a password has {length} bytes.*choose a shorter one") as refused:
        bcrypt_hash(password, "1")
    assert password not in str(refused.value)


def test_without_the_library_it_tells_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    with pytest.raises(AnsibleFilterError, match="install the package python3-bcrypt"):
        bcrypt_hash("a", "1")
    assert scrypt_hash("a", "1").startswith("scrypt:")

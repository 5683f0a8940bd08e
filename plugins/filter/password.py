# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords as hashes that those who check them understand. The same password and salt give the same hash."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from ansible.errors import AnsibleFilterError

# What Werkzeug, which checks them for the mail report's page, uses by itself.
COST = 2**15
BLOCK = 8
PARALLEL = 1
MEMORY = 132 * COST * BLOCK  # bytes, with room

BCRYPT_ROUNDS = 10  # as a power of two. Prometheus and its exporters check it with many a request.
BCRYPT_SALT = 16  # bytes
BCRYPT_LENGTH = 72  # bytes of a password that count
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
BCRYPT_BASE64 = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def scrypt_hash(password: str, salt: str) -> str:
    """Give the hash of a password in Werkzeug's form, the same for the same salt.

    Source of the form: ``werkzeug.security.generate_password_hash``.
    """
    made = hashlib.scrypt(password.encode(), salt=salt.encode(), n=COST, r=BLOCK, p=PARALLEL, maxmem=MEMORY)
    return f"scrypt:{COST}:{BLOCK}:{PARALLEL}${salt}${made.hex()}"


def bcrypt_hash(password: str, salt_source: str) -> str:
    """Give the hash of a password in bcrypt's form, as the web configuration of Prometheus and its exporters takes it.

    :param salt_source: a text of any length that no other password has. The salt is made of it alone: made of the
        password as well, it would tell more of it than the hash does.
    :return: ``$2b$10$`` with 22 characters of salt and 31 of hash.
    :raises AnsibleFilterError: the library is missing, or bcrypt would leave out the end of the password.
    """
    try:
        import bcrypt  # only those who use this filter need it
    except ImportError:
        raise AnsibleFilterError(
            "bcrypt_hash needs the Python library bcrypt on the controller: install the package python3-bcrypt, or "
            "`pip install bcrypt` where Ansible is in a virtual environment"
        ) from None
    text = password.encode()
    if len(text) > BCRYPT_LENGTH:
        raise AnsibleFilterError(
            f"a password has {len(text)} bytes, and bcrypt looks at the first {BCRYPT_LENGTH} only: choose a shorter "
            "one"
        )
    salt = base64.b64encode(hashlib.sha256(salt_source.encode()).digest()[:BCRYPT_SALT]).decode().rstrip("=")
    letters = salt.translate(str.maketrans(BASE64, BCRYPT_BASE64))
    return bcrypt.hashpw(text, f"$2b${BCRYPT_ROUNDS}${letters}".encode()).decode()


class FilterModule:
    """Filters for passwords."""

    def filters(self) -> dict[str, Any]:
        return {"bcrypt_hash": bcrypt_hash, "scrypt_hash": scrypt_hash}

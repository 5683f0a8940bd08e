# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release is on disk, in one place for the modules that make, install and look at releases.

A release lies in ``<prefix>/<version>-<fingerprint>``; ``<prefix>/current`` is a link to the one in use.
"""

from __future__ import annotations

import hashlib
import os
import secrets

CURRENT = "current"


def sha256_of(path: str) -> str:
    """Give the sha256 of a file as lower-case hexadecimal digits.

    :raises OSError: the file can't be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def current_release(prefix: str) -> str | None:
    """Give the name of the release that is in use below a prefix, or None when there is none."""
    try:
        return os.path.basename(os.readlink(os.path.join(prefix, CURRENT)))
    except OSError:
        return None


def replace_link(target: str, path: str) -> None:
    """Point the link `path` to `target` in one step: nobody ever sees it missing.

    :raises OSError: the folder can't be written, or `path` is a folder.
    """
    # A name of its own in the same folder; rename() then replaces the old link atomically.
    scratch = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}-{secrets.token_hex(8)}")
    os.symlink(target, scratch)
    try:
        os.replace(scratch, path)
    except OSError:
        os.unlink(scratch)
        raise

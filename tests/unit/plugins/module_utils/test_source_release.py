# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the modules know of releases on disk."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time

import pytest
from ansible_collections.tenfold.stack.plugins.module_utils.source_release import (
    current_release,
    replace_link,
    sha256_of,
)


def test_sha256_of_a_file_longer_than_a_block(tmp_path):
    content = os.urandom((1 << 20) + 1)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(str(tmp_path / "file")) == hashlib.sha256(content).hexdigest()


def test_current_release_is_the_name_that_the_link_points_to(tmp_path):
    (tmp_path / "current").symlink_to(tmp_path / "1.0-abc")
    assert current_release(str(tmp_path)) == "1.0-abc"


@pytest.mark.parametrize("make", [lambda path: None, os.mkdir])
def test_no_link_is_no_release(tmp_path, make):
    make(tmp_path / "current")
    assert current_release(str(tmp_path)) is None


def test_replace_link_makes_and_replaces_a_link(tmp_path):
    link = tmp_path / "current"
    for target in ("one", "two"):
        replace_link(target, str(link))
        assert os.readlink(link) == target
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_nobody_sees_the_link_missing(tmp_path):
    link = str(tmp_path / "current")
    replace_link("0", link)
    seen = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.add(current_release(str(tmp_path)))

    watcher = threading.Thread(target=look)
    watcher.start()
    end = time.monotonic() + 5
    for number in itertools.count(1):
        replace_link(str(number), link)
        if (number > 500 and len(seen) > 20) or None in seen or time.monotonic() > end:
            break
    ended.set()
    watcher.join()
    assert len(seen) > 20
    assert None not in seen


def test_a_folder_in_the_way_stays_and_nothing_is_left(tmp_path):
    (tmp_path / "current").mkdir()
    with pytest.raises(OSError, match="current"):
        replace_link("one", str(tmp_path / "current"))
    assert [path.name for path in tmp_path.iterdir()] == ["current"]

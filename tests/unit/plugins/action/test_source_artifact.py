# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the action source_artifact that need a bad connection; test_source_release.py has the others."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.tenfold.stack.plugins.action.source_artifact import ActionModule


class Connection:
    """A connection to a host whose every file has some content."""

    def __init__(self, content: bytes | None) -> None:
        self.content = content

    def fetch_file(self, _remote: str, local: str) -> None:
        if self.content is None:
            raise ConnectionError("the host is gone")
        with open(local, "wb") as file:
            file.write(self.content)


@pytest.fixture
def keep(tmp_path):
    """A function that brings an artifact, which should have the content b"right", to the cache."""

    def keep(content):
        action = object.__new__(ActionModule)
        action._connection = Connection(content)
        result = {"sha256": hashlib.sha256(b"right").hexdigest(), "size": 7}
        action._keep("/remote/artifact", str(tmp_path / "cache/artifact"), result)

    return keep


def test_an_artifact_is_kept_with_its_description(keep, tmp_path):
    keep(b"right")
    assert (tmp_path / "cache/artifact").read_bytes() == b"right"
    about = json.loads((tmp_path / "cache/artifact.json").read_text())
    assert about == {"sha256": hashlib.sha256(b"right").hexdigest(), "size": 7}
    assert sorted(os.listdir(tmp_path / "cache")) == ["artifact", "artifact.json"]


def test_an_artifact_that_is_damaged_on_its_way_is_not_kept(keep, tmp_path):
    with pytest.raises(AnsibleActionFail, match=r"cache/artifact .* run again"):
        keep(b"wrong")
    assert os.listdir(tmp_path / "cache") == []


def test_an_interrupted_transfer_keeps_what_was_there(keep, tmp_path):
    keep(b"right")
    with pytest.raises(ConnectionError):
        keep(None)
    assert sorted(os.listdir(tmp_path / "cache")) == ["artifact", "artifact.json"]
    assert (tmp_path / "cache/artifact").read_bytes() == b"right"

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the memcached_info module."""

from __future__ import annotations

import pytest
from ansible_collections.tenfold.stack.plugins.modules import memcached_info


@pytest.fixture
def fresh(start_memcached):
    """A memcached that only this test uses, so its counts are known."""
    return start_memcached("-m", "7")


@pytest.mark.parametrize("check", [False, True])
def test_by_default_general_and_settings(run_module, memcached, check):
    result = run_module(memcached_info, memcached.options, check=check)
    assert result["changed"] is False
    assert set(result) == {
        "changed",
        "failed",
        "general",
        "hit_rate",
        "invocation",
        "settings",
        "uptime",
        "version",
    }
    assert memcached.raw(b"version").decode() == f"VERSION {result['version']}\r\n"
    assert result["version"] == result["general"]["version"]
    assert isinstance(result["uptime"], int)
    assert result["settings"]["tcpport"] == memcached.options["port"]
    assert result["settings"]["inter"] == "127.0.0.1"
    assert result["settings"]["evictions"] is True
    assert result["settings"]["domain_socket"] is None
    assert result["general"]["accepting_conns"] is True
    assert isinstance(result["general"]["rusage_user"], float)


def test_settings_of_the_command_line(run_module, fresh):
    result = run_module(memcached_info, {**fresh.options, "gather_subset": "settings"})
    assert result["settings"]["maxbytes"] == 7 * 1024 * 1024
    assert "general" not in result


def test_items_and_slabs_by_class(run_module, fresh):
    for key, size in (("a", 10), ("b", 10), ("c", 5000)):
        fresh.raw(f"set {key} 0 0 {size}\r\n".encode() + b"x" * size)
    result = run_module(memcached_info, {**fresh.options, "gather_subset": ["items", "slabs"]})
    small, large = result["item_classes"]
    assert (small["number"], large["number"]) == (2, 1)
    assert small["slab_class"] < large["slab_class"]
    slabs = result["slabs"]
    assert slabs["active_slabs"] == 2
    assert slabs["total_malloced"] > 0
    assert [entry["slab_class"] for entry in slabs["classes"]] == [
        small["slab_class"],
        large["slab_class"],
    ]
    assert slabs["classes"][1]["chunk_size"] > 5000


def test_an_empty_memcached_has_no_classes(run_module, fresh):
    result = run_module(memcached_info, {**fresh.options, "gather_subset": ["items", "slabs"]})
    assert result["item_classes"] == []
    assert result["slabs"] == {"active_slabs": 0, "total_malloced": 0, "classes": []}


def test_hit_rate(run_module, fresh):
    assert run_module(memcached_info, fresh.options)["hit_rate"] is None
    fresh.raw(b"set a 0 0 1\r\nx\r\nget a\r\nget a\r\nget a\r\nget none")
    assert run_module(memcached_info, fresh.options)["hit_rate"] == 0.75


def test_no_subset_still_gives_the_summary(run_module, memcached):
    result = run_module(memcached_info, {**memcached.options, "gather_subset": []})
    assert {"version", "uptime", "hit_rate"} <= set(result)
    assert not {"general", "settings", "item_classes", "slabs"} & set(result)


def test_over_a_unix_socket(run_module, unix_memcached):
    result = run_module(memcached_info, unix_memcached.options)
    assert result["settings"]["domain_socket"] == unix_memcached.options["socket"]


def test_a_refusal_of_statistics_is_a_sentence(run_module, scripted):
    server = scripted({"stats": b"CLIENT_ERROR not here\r\n"})
    result = run_module(memcached_info, server.options)
    assert "does not give these statistics: it answered 'CLIENT_ERROR not here'" in result["msg"]


def test_an_unknown_subset_is_refused(run_module):
    result = run_module(memcached_info, {"gather_subset": ["conns"]})
    assert "value of gather_subset must be one or more of" in result["msg"]

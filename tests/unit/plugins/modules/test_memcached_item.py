# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the memcached_item module, most of them with a real memcached."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest
from ansible_collections.tenfold.stack.plugins.module_utils.memcached_client import Item
from ansible_collections.tenfold.stack.plugins.modules import memcached_item

DAY = 24 * 60 * 60
NOT_UTF8 = b"\xff\x00\r\nEND\r\n"


@pytest.fixture
def item(run_module, memcached, key):
    """A function that runs the module on one key of the default memcached."""

    def run(check=False, diff=False, **options) -> dict[str, Any]:
        return run_module(memcached_item, {**memcached.options, "key": key, **options}, check=check, diff=diff)

    return run


@pytest.fixture
def ttl(memcached, key):
    """A function that asks the memcached itself for the key's remaining lifetime."""
    return lambda: int(memcached.raw(f"mg {key} t".encode()).split(b"t")[1])


def stored(memcached, key) -> bytes:
    """The memcached's own answer to a get of the key."""
    return memcached.raw(f"get {key}".encode())


# Storing


def test_present_stores_the_value(item, memcached, key):
    result = item(value="grüße")
    assert result["changed"] is True
    assert result["item"] == {
        "key": key,
        "found": True,
        "value": "grüße",
        "value_base64": None,
        "size": 7,
        "flags": 0,
        "ttl": -1,
    }
    assert stored(memcached, key) == f"VALUE {key} 0 7\r\ngrüße\r\nEND\r\n".encode()


def test_present_with_the_same_value_changes_nothing(item, memcached, key):
    item(value="a", flags=3)
    before = memcached.raw(f"mg {key} c".encode())
    result = item(value="a")
    assert (result["changed"], result["item"]["flags"]) == (False, 3)
    assert memcached.raw(f"mg {key} c".encode()) == before


def test_present_with_another_value_replaces_value_flags_and_lifetime(item, memcached, key):
    item(value="a", flags=3, expire=100)
    result = item(value="b")
    assert result["changed"] is True
    assert (result["item"]["flags"], result["item"]["ttl"]) == (0, -1)
    assert memcached.raw(f"mg {key} v f t".encode()) == b"VA 1 f0 t-1\r\nb\r\n"


def test_an_empty_value_is_a_value(item):
    assert item(value="")["item"]["size"] == 0
    result = item(value="")
    assert (result["changed"], result["item"]["value"]) == (False, "")


def test_a_key_of_other_letters(item, memcached):
    item(key="ключ", value="a")
    assert item(key="ключ", state="read")["item"]["value"] == "a"
    assert "ключ".encode() in stored(memcached, "ключ")


def test_flags_are_stored_and_compared(item, memcached, key):
    assert item(value="a", flags=2**32 - 1)["changed"] is True
    assert stored(memcached, key).startswith(f"VALUE {key} 4294967295 1".encode())
    assert item(value="a", flags=2**32 - 1)["changed"] is False
    assert item(value="a", flags=0)["changed"] is True
    assert stored(memcached, key).startswith(f"VALUE {key} 0 1".encode())


def test_a_value_that_is_not_text_goes_in_and_out_as_base64(item):
    encoded = base64.b64encode(NOT_UTF8).decode()
    item(value_base64=encoded)
    result = item(state="read")["item"]
    assert (result["value"], result["value_base64"]) == (None, encoded)
    assert result["size"] == len(NOT_UTF8)
    assert item(value_base64=encoded[:4] + "\n" + encoded[4:])["changed"] is False


def test_text_given_as_base64_comes_out_as_text(item):
    item(value_base64="YWJj")
    result = item(value="abc")
    assert result["changed"] is False
    assert (result["item"]["value"], result["item"]["value_base64"]) == ("abc", None)


# Lifetime


def test_an_item_ends_when_its_lifetime_does(item, memcached, key):
    assert item(value="a", expire=1)["item"]["ttl"] == 1
    end = time.monotonic() + 5
    while stored(memcached, key) != b"END\r\n":
        assert time.monotonic() < end, "the item did not end"
        time.sleep(0.1)
    assert item(state="read")["item"]["found"] is False
    assert item(value="a", expire=100)["changed"] is True


@pytest.mark.parametrize("days", [30, 31, 400])
def test_a_lifetime_of_days_is_a_lifetime(item, ttl, days):
    item(value="a", expire=days * DAY)
    assert abs(ttl() - days * DAY) <= 2
    assert item(value="a", expire=days * DAY)["changed"] is False


def test_a_lifetime_is_left_alone_unless_asked_for(item, ttl):
    item(value="a", expire=1000)
    assert item(value="a")["changed"] is False
    assert item(value="a", expire=1003)["changed"] is False
    assert ttl() <= 1000


def test_a_lifetime_out_of_tolerance_is_set_anew(item, ttl):
    item(value="a", flags=7, expire=100)
    result = item(value="a", expire=1000)
    assert (result["changed"], result["item"]["ttl"], result["item"]["flags"]) == (True, 1000, 7)
    assert 998 <= ttl() <= 1000
    assert item(value="a", expire=2000, expire_tolerance=1500)["changed"] is False


def test_lifetime_to_never_and_back(item, ttl):
    item(value="a", expire=100)
    assert item(value="a", expire=0)["item"]["ttl"] == -1
    assert ttl() == -1
    assert item(value="a", expire=0)["changed"] is False
    assert item(value="a", expire=100, expire_tolerance=1000)["changed"] is True
    assert 98 <= ttl() <= 100


@pytest.mark.parametrize(
    ("ttl", "expire", "fits"),
    [
        (None, 100, False),
        (None, 0, False),
        (-1, 0, True),
        (-1, 3, False),
        (3, 0, False),
        (105, 100, True),
        (95, 100, True),
        (94, 100, False),
        (106, 100, False),
    ],
)
def test_lifetime_fits(ttl, expire, fits):
    assert memcached_item.lifetime_fits(ttl, expire, 5) is fits


def test_a_server_that_does_not_tell_lifetimes_gets_the_lifetime_each_time(run_module, scripted, key):
    server = scripted({"get": f"VALUE {key} 0 1\r\na\r\nEND\r\n".encode(), "touch": b"TOUCHED\r\n"})
    options = {**server.options, "key": key, "value": "a"}
    result = run_module(memcached_item, options)
    assert (result["changed"], result["item"]["ttl"]) == (False, None)
    result = run_module(memcached_item, {**options, "expire": 100})
    assert (result["changed"], result["item"]["ttl"]) == (True, 100)
    assert server.commands[-1] == f"touch {key} 100"


def test_an_item_that_ends_before_its_lifetime_is_renewed_is_stored(run_module, scripted, key):
    server = scripted(
        {
            "get": f"VALUE {key} 0 1\r\na\r\nEND\r\n".encode(),
            "mg": b"HD t1\r\n",
            "touch": b"NOT_FOUND\r\n",
            "stats settings": b"STAT item_size_max 1048576\r\nEND\r\n",
            "set": b"STORED\r\n",
        }
    )
    options = {**server.options, "key": key, "value": "a", "expire": 100}
    assert run_module(memcached_item, options)["changed"] is True
    assert server.commands[-1] == f"set {key} 0 100 1"


def test_a_long_lifetime_is_counted_from_the_servers_clock(run_module, scripted, key):
    server = scripted(
        {
            "get": b"END\r\n",
            "stats": b"STAT time 1000000000\r\nEND\r\n",
            "stats settings": b"STAT item_size_max 1048576\r\nEND\r\n",
            "set": b"STORED\r\n",
        }
    )
    run_module(memcached_item, {**server.options, "key": key, "value": "a", "expire": 40 * DAY})
    assert server.commands[-1] == f"set {key} 0 {1000000000 + 40 * DAY} 1"


# Deleting and reading


def test_absent_deletes_once(item, memcached, key):
    item(value="a")
    result = item(state="absent")
    assert (result["changed"], result["item"]["found"]) == (True, False)
    assert stored(memcached, key) == b"END\r\n"
    assert item(state="absent")["changed"] is False


def test_absent_of_an_item_that_went_by_itself_is_no_change(run_module, scripted, key):
    server = scripted({"get": f"VALUE {key} 0 1\r\na\r\nEND\r\n".encode(), "delete": b"NOT_FOUND\r\n"})
    options = {**server.options, "key": key, "state": "absent"}
    assert run_module(memcached_item, options)["changed"] is False


def test_read_returns_the_item(item):
    item(value="a", flags=2, expire=100)
    result = item(state="read")
    assert result["changed"] is False
    found = result["item"]
    assert (found["found"], found["value"], found["flags"], found["size"]) == (True, "a", 2, 1)
    assert 98 <= found["ttl"] <= 100


def test_read_of_no_item_is_no_failure(item, key):
    result = item(state="read")
    assert result["failed"] is False
    assert result["item"] == {
        "key": key,
        "found": False,
        "value": None,
        "value_base64": None,
        "size": None,
        "flags": None,
        "ttl": None,
    }


# Check mode and diff


def test_check_mode_predicts_storing(item, memcached, key):
    predicted = item(value="a", expire=100, check=True)
    assert stored(memcached, key) == b"END\r\n"
    assert predicted == item(value="a", expire=100)


def test_check_mode_predicts_a_new_lifetime(item, ttl):
    item(value="a", expire=100)
    assert item(value="a", expire=1000, check=True)["item"]["ttl"] == 1000
    assert item(value="a", expire=1000, check=True)["changed"] is True
    assert ttl() <= 100


def test_check_mode_predicts_deleting(item, memcached, key):
    item(value="a")
    assert item(state="absent", check=True)["changed"] is True
    assert stored(memcached, key) != b"END\r\n"


def test_diff_shows_the_item_before_and_after(item):
    item(value="a", expire=100)
    diff = item(value="b", diff=True)["diff"]
    assert (diff["before"]["value"], diff["after"]["value"]) == ("a", "b")
    assert diff["before"]["ttl"] in (98, 99, 100)
    assert diff["after"]["ttl"] == -1
    diff = item(state="absent", check=True, diff=True)["diff"]
    assert (diff["before"]["found"], diff["after"]["found"]) == (True, False)


def test_diff_of_no_change_is_empty(item):
    item(value="a")
    diff = item(value="a", diff=True)["diff"]
    assert diff["before"] == diff["after"]


# Failures


@pytest.mark.parametrize("check", [False, True])
def test_a_value_larger_than_any_item_is_refused_and_the_old_one_kept(item, memcached, key, check):
    item(value="old")
    result = item(value="x" * (1024 * 1024 + 1), check=check)
    assert result["failed"] is True
    assert "1048577 bytes long" in result["msg"]
    assert "1048576 bytes (item_size_max)" in result["msg"]
    assert b"old" in stored(memcached, key)


def test_a_value_just_too_large_for_an_item_gets_the_same_sentence(item):
    result = item(value="x" * (1024 * 1024 - 1))
    assert "1048575 bytes long" in result["msg"]
    assert "1048576 bytes (item_size_max)" in result["msg"]


def test_no_memory_is_told_in_the_servers_words(run_module, scripted, key):
    server = scripted(
        {
            "get": b"END\r\n",
            "stats settings": b"STAT item_size_max 1048576\r\nEND\r\n",
            "set": b"SERVER_ERROR out of memory storing object\r\n",
        }
    )
    result = run_module(memcached_item, {**server.options, "key": key, "value": "a"})
    assert "refused the command: out of memory storing object" in result["msg"]


def test_an_error_of_the_server_is_not_an_absent_item(run_module, scripted, key):
    server = scripted({"get": b"SERVER_ERROR temporary failure\r\n"})
    result = run_module(memcached_item, {**server.options, "key": key, "state": "read"})
    assert "refused the command: temporary failure" in result["msg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "a b", "value": "a"}, "holds a space"),
        ({"value": "a", "expire": -1}, "expire is -1"),
        ({"value": "a", "expire_tolerance": -1}, "expire_tolerance is -1"),
        ({"value": "a", "flags": -1}, "flags is -1"),
        ({"value": "a", "flags": 2**32}, "flags is 4294967296"),
        ({"value_base64": "a"}, "value_base64 is not valid Base64"),
        ({"value_base64": "YWJj!"}, "value_base64 is not valid Base64"),
        ({"value_base64": "äää="}, "value_base64 is not valid Base64"),
        ({}, "missing: value, value_base64"),
        ({"value": "a", "value_base64": "YQ=="}, "mutually exclusive: value|value_base64"),
    ],
)
def test_options_are_checked_before_connecting(run_module, options, message):
    # Nothing listens on port 1: had the module connected, it would say so.
    result = run_module(memcached_item, {"port": 1, "key": "k", **options})
    assert result["failed"] is True
    assert message in result["msg"]


def test_an_expiry_past_2038_is_refused(item, memcached, key):
    result = item(value="a", expire=int(time.time()))
    assert "after the 19th of January 2038" in result["msg"]
    assert stored(memcached, key) == b"END\r\n"


def test_describe_keeps_value_and_base64_apart():
    assert memcached_item.describe("k", Item(b"\xff", 1, None)) == {
        "key": "k",
        "found": True,
        "value": None,
        "value_base64": "/w==",
        "size": 1,
        "flags": 1,
        "ttl": None,
    }

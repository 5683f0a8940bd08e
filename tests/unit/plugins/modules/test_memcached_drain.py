# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the memcached_drain module."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from ansible_collections.tenfold.stack.plugins.modules import memcached_drain


@pytest.fixture
def fresh(start_memcached):
    """A memcached that only this test uses."""
    return start_memcached()


@pytest.fixture
def client(fresh):
    """Starts a client that sends a request each tenth of a second for some seconds."""
    threads = []

    def start(seconds, request=b"get a"):
        def work():
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                fresh.raw(request)
                time.sleep(0.1)

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def test_nobody_uses_it(run_module, fresh):
    result = run_module(memcached_drain, {**fresh.options, "quiet": 1})
    assert (result["changed"], result["running"], result["requests"]) == (False, True, 0)
    assert 1 <= result["waited"] < 2


@pytest.mark.parametrize("request_", [b"get a", b"set a 0 0 1\r\nx", b"delete a", b"incr a 1", b"touch a 1", b"mg a"])
def test_it_waits_until_the_last_request_is_past(run_module, fresh, client, request_):
    client(1, request_)
    result = run_module(memcached_drain, {**fresh.options, "quiet": 1})
    assert result["requests"] >= 5
    assert 1.5 <= result["waited"] < 5


def test_those_who_only_look_do_not_count(run_module, fresh, client):
    client(3, b"stats")
    assert run_module(memcached_drain, {**fresh.options, "quiet": 1})["waited"] < 2


def test_idle_connections_do_not_count_but_are_told(run_module, fresh):
    with fresh.connect():
        result = run_module(memcached_drain, {**fresh.options, "quiet": 0.6})
    assert (result["requests"], result["peers"]) == (0, ["127.0.0.1"])


def test_after_the_patience_it_is_told_who_is_there(run_module, fresh, client):
    client(4)
    result = run_module(memcached_drain, {**fresh.options, "quiet": 1, "patience": 2})
    assert result["failed"]
    assert "is still used after 2 s" in result["msg"]
    assert "connected are 127.0.0.1" in result["msg"]


def test_check_mode_does_not_wait(run_module, fresh):
    assert run_module(memcached_drain, {**fresh.options, "quiet": 60}, check=True)["waited"] == 0


def test_one_that_does_not_run_has_no_clients(run_module):
    with socket.socket() as bound:  # nobody else can listen there, and it does not
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        result = run_module(memcached_drain, {"host": "127.0.0.1", "port": port, "quiet": 60})
    assert (result["running"], result["failed"]) == (False, False)


def test_one_that_can_not_be_asked_is_an_error(run_module):
    result = run_module(memcached_drain, {"host": "no.such.host.invalid"})
    assert result["failed"]
    assert "no.such.host.invalid" in result["msg"]

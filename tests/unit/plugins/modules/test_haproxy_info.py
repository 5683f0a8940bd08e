# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the haproxy_info module; the real HAProxy is asked in the scenario pool_vip."""

from __future__ import annotations

import contextlib
import socketserver
import threading

import pytest
from ansible_collections.tenfold.stack.plugins.modules import haproxy_info

STAT = """\
# pxname,svname,scur,stot,status,check_status,addr,
mx.test,FRONTEND,3,9,OPEN,,,
mx.test,mx-1,2,5,UP,L7OK,192.0.2.1:10025,
mx.test,mx-2,1,3,UP 1/2,L4CON,192.0.2.2:10025,
mx.test,mx-3,1,1,DRAIN,L7OK,192.0.2.3:10025,
mx.test,mx-4,0,0,DOWN 1/2,L4TOUT,192.0.2.4:10025,
plain,a,0,0,no check,,192.0.2.5:80,
mx.test,BACKEND,4,9,UP,,,

"""


@pytest.fixture
def haproxy(tmp_path):
    """The path of the socket of an HAProxy that knows two commands."""
    answers = {b"show stat -1 4 -1\n": STAT, b"show info\n": "Name: HAProxy\nVersion: 2.6.12\nNode: lb: 1\n\n"}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(answers[self.rfile.readline()].encode())

    path = str(tmp_path / "s")
    with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield path
        server.shutdown()


@pytest.mark.parametrize("check", [False, True])
def test_the_servers_are_told(run_module, haproxy, check):
    result = run_module(haproxy_info, {"socket": haproxy}, check=check)
    assert (result["changed"], result["version"]) == (False, "2.6.12")
    assert [(server["server"], server["up"], server["sessions"], server["total"]) for server in result["servers"]] == [
        ("mx-1", True, 2, 5),
        ("mx-2", True, 1, 3),
        ("mx-3", False, 1, 1),
        ("mx-4", False, 0, 0),
        ("a", True, 0, 0),
    ]
    assert result["servers"][3] == {
        "backend": "mx.test",
        "server": "mx-4",
        "address": "192.0.2.4:10025",
        "status": "DOWN 1/2",
        "up": False,
        "check": "L4TOUT",
        "sessions": 0,
        "total": 0,
    }


def test_one_that_does_not_run_is_told(run_module, haproxy, tmp_path):
    for path in ("nowhere", "s"):
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / path).unlink()
        result = run_module(haproxy_info, {"socket": str(tmp_path / path)})
        assert result["failed"]
        assert f"HAProxy does not answer at {tmp_path / path}: look whether it runs" in result["msg"]

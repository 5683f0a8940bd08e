# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the postfix_queue_info module, on a queue that the test makes and a file that Postfix made."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from ansible_collections.tenfold.stack.plugins.module_utils import postfix_queue
from ansible_collections.tenfold.stack.plugins.modules import postfix_queue_info

# Made by Postfix 3.7 from `sendmail -t` and header_checks with BCC: the recipients are behind the content.
POSTFIX_MADE = Path(__file__).parent / "postfix_queue/4jWppb34ydzGklT"
EMPTY = {"messages": 0, "bytes": 0, "oldest_age": None}


def record(kind: str, value: str) -> bytes:
    """One record as Postfix writes it."""
    length, size = len(value), b""
    while length >= 0x80:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return kind.encode() + size + bytes([length]) + value.encode()


def mail(*recipients: str, age: int = 0, done: tuple[str, ...] = (), body: str = "R") -> bytes:
    """The content of a queue file."""
    envelope = record("T", f"{int(time.time()) - age} 0") + record("S", "sender@site.test")
    envelope += b"".join(record("R", name) for name in recipients) + b"".join(record("D", name) for name in done)
    envelope += record("M", "")
    content = record("N", body)
    sizes = record("C", f"{len(content):15} {len(envelope) + 97:15} {len(recipients):15} {0:15} {0:15} {0:15}")
    return sizes + envelope + content + record("X", "") + record("E", "")


class Queue:
    """A queue directory that files can be put into."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in postfix_queue.QUEUES:
            (directory / name).mkdir()

    def put(self, path: str, content: bytes = b"", mode: int = 0o700) -> Path:
        """Write one file."""
        file = self.directory / path
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(content)
        file.chmod(mode)
        return file


@pytest.fixture
def queue(tmp_path):
    """An empty queue."""
    return Queue(tmp_path)


@pytest.mark.parametrize("check", [False, True])
def test_queues_and_totals(run_module, queue, check):
    first = mail("a@one.test", age=50)
    queue.put("deferred/B/B8A111DE2B6", first)
    queue.put("deferred/B/C/B8A111DE2B7", first)  # hash_queue_depth is set by the administrator
    queue.put("active/B8A111DE2B8", first)
    queue.put("hold/B8A111DE2B9", b"x" * 10)
    result = run_module(postfix_queue_info, {"queue_directory": str(queue.directory)}, check=check)
    assert result["changed"] is False
    assert result["queue_directory"] == str(queue.directory)
    assert set(result["queues"]) == {"maildrop", "incoming", "active", "deferred", "hold", "corrupt"}
    deferred = result["queues"]["deferred"]
    assert (deferred["messages"], deferred["bytes"]) == (2, 2 * len(first))
    assert deferred["oldest_age"] in (0, 1)  # the file is new, and short ids don't tell more
    assert result["queues"]["hold"]["bytes"] == 10
    assert result["queues"]["incoming"] == EMPTY
    assert (result["messages"], result["bytes"]) == (4, 3 * len(first) + 10)
    assert "destinations" not in result


def test_an_empty_queue(run_module, queue):
    result = run_module(postfix_queue_info, {"queue_directory": str(queue.directory), "destinations": True})
    assert {name: result[name] for name in EMPTY} == EMPTY
    assert result["destinations"] == []


def test_mail_that_is_being_received_does_not_count(run_module, queue):
    queue.put("incoming/4jWpmz3xDlzGnsY", mode=0o600)
    queue.put("incoming/4jWpmz3xDlzGnsX", mail("a@one.test")[:-9], mode=0o600)
    queue.put("maildrop/4jWpmz3xDlzGnsW", mail("a@one.test"), mode=0o600)
    queue.put("incoming/4jWpmz3xDlzGnsV", mail("a@one.test"))
    result = run_module(postfix_queue_info, {"queue_directory": str(queue.directory)})
    assert result["messages"] == result["queues"]["incoming"]["messages"] == 1


def test_the_next_retry_is_not_the_age(run_module, queue):
    file = queue.put("deferred/B/B8A111DE2B6", mail("a@one.test", age=500))
    os.utime(file, (time.time() - 9000, time.time() - 9000))
    options = {"queue_directory": str(queue.directory)}
    assert run_module(postfix_queue_info, options)["oldest_age"] in (0, 1)
    assert run_module(postfix_queue_info, {**options, "destinations": True})["oldest_age"] in (500, 501)


def test_the_time_in_long_ids(run_module, queue):
    queue.put(f"deferred/4/{POSTFIX_MADE.name}")
    result = run_module(postfix_queue_info, {"queue_directory": str(queue.directory)})
    arrived, _waiting, _done = postfix_queue.envelope(str(POSTFIX_MADE))
    assert int(postfix_queue.time_of(POSTFIX_MADE.name)) == arrived
    assert abs(result["oldest_age"] - (time.time() - arrived)) < 3


@pytest.mark.parametrize("name", ["B8A111DE2B6", "BB8A81DE2B3", "z", "1234567z8"])
def test_short_ids_have_no_time(name):
    assert postfix_queue.time_of(name) is None


def test_destinations(run_module, queue):
    queue.put("deferred/B/B8A111DE2B1", mail("a@One.test", "b@one.test", "c@two.test", age=100))
    queue.put("deferred/B/B8A111DE2B2", mail("d@one.test", done=("e@done.test",), age=40))
    queue.put("active/B8A111DE2B3", mail("root", body="x" * 70000, age=20))
    queue.put("corrupt/B8A111DE2B4", mail("f@corrupt.test"), mode=0o400)
    result = run_module(postfix_queue_info, {"queue_directory": str(queue.directory), "destinations": True})
    rows = result["destinations"]
    assert [(row["domain"], row["messages"]) for row in rows] == [("one.test", 2), ("", 1), ("two.test", 1)]
    assert rows[0]["bytes"] == result["queues"]["deferred"]["bytes"]
    assert rows[1]["bytes"] > 70000
    assert [row["oldest_age"] // 10 for row in rows] == [10, 2, 10]


def test_a_file_that_postfix_made(run_module, queue):
    shutil.copy(POSTFIX_MADE, queue.put(f"deferred/4/{POSTFIX_MADE.name}"))
    assert postfix_queue.envelope(str(POSTFIX_MADE))[2] == ["b@done.test"]
    result = run_module(postfix_queue_info, {"queue_directory": str(queue.directory), "destinations": True})
    assert [row["domain"] for row in result["destinations"]] == ["bcc.test", "one.test", "two.test"]


def test_added_records_are_followed(queue):
    nowhere, there = record("p", f"{0:15}"), record("p", f"{80:15}")
    back = record("p", f"{len(nowhere + there):15}")
    content = nowhere + there + record("R", "c@one.test") + record("E", "")
    file = queue.put("hold/B8A111DE2B6", content.ljust(80) + record("R", "b@two.test") + back)
    assert postfix_queue.envelope(str(file))[1] == ["b@two.test", "c@one.test"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"R",
        b"R\xff\xff",
        b"R\x80",
        b"R" + b"\xff" * 9 + b"\x01",
        record("C", "x y"),
        record("p", "?"),
        record("p", "0") * 3,
        record("T", ""),
    ],
)
def test_broken_files_are_counted(run_module, queue, content):
    queue.put("deferred/B/B8A111DE2B6", content)
    result = run_module(postfix_queue_info, {"queue_directory": str(queue.directory), "destinations": True})
    assert (result["messages"], result["destinations"]) == (1, [])


def test_pointers_in_a_circle_end(queue):
    pointer = record("p", f"{17:15}")
    file = queue.put("hold/B8A111DE2B6", pointer + pointer)
    assert postfix_queue.envelope(str(file))[1] == []


def test_files_that_move_meanwhile_count_once(run_module, queue, monkeypatch):
    for name in ("active/delivered", "active/deferred", "active/seen", "deferred/retried", "hold/held"):
        queue.put(name, mail("a@one.test"))

    def move(name: str, target: str) -> None:
        (queue.directory / name).rename(queue.directory / target)

    before = {"deferred": lambda: move("active/seen", "deferred/seen")}

    def while_active_is_read() -> None:
        (queue.directory / "active/delivered").unlink()
        move("active/deferred", "deferred/deferred")
        move("deferred/retried", "active/retried")

    during = {"active": while_active_is_read}
    real = postfix_queue.files

    def moving(path):
        name = Path(path).name
        before.pop(name, lambda: None)()
        entries = list(real(path))
        during.pop(name, lambda: None)()
        yield from entries

    monkeypatch.setattr(postfix_queue, "files", moving)
    result = run_module(postfix_queue_info, {"queue_directory": str(queue.directory), "destinations": True})
    counts = {name: count["messages"] for name, count in result["queues"].items() if count["messages"]}
    assert counts == {"active": 2, "deferred": 1, "hold": 1}
    assert result["messages"] == result["destinations"][0]["messages"] == 4


def test_the_configuration_names_the_directory(run_module, queue, monkeypatch, tmp_path):
    postconf = tmp_path / "bin/postconf"
    postconf.parent.mkdir()
    postconf.write_text(f"""#!/bin/sh
[ "$*" = "-c /etc/postfix-bulk -hx queue_directory" ] || {{ echo "fatal: bad $2" >&2; exit 1; }}
echo {queue.directory}
""")
    postconf.chmod(0o755)
    monkeypatch.setenv("PATH", str(postconf.parent), prepend=":")
    result = run_module(postfix_queue_info, {"config_directory": "/etc/postfix-bulk"})
    assert result["queue_directory"] == str(queue.directory)
    assert run_module(postfix_queue_info, {})["msg"] == (
        "postconf can't read the configuration in /etc/postfix: fatal: bad /etc/postfix"
    )


def test_without_postfix(run_module, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install Postfix, or set queue_directory" in run_module(postfix_queue_info, {})["msg"]


def test_a_directory_without_queues_is_refused(run_module, tmp_path):
    result = run_module(postfix_queue_info, {"queue_directory": str(tmp_path)})
    assert result["msg"].startswith(f"{tmp_path} has no queues")
    result = run_module(postfix_queue_info, {"queue_directory": str(tmp_path / "none")})
    assert "No such file" in result["msg"]

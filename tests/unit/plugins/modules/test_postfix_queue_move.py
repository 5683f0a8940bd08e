# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the postfix_queue_move module on real folders."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys

import pytest
from ansible_collections.tenfold.stack.plugins.modules import postfix_queue_move

MAILS = {
    "active/4cA1": "one",
    "deferred/5/5cA2": "two",
    "defer/5/5cA2": "why two waits",
    "hold/6cA3": "three",
    "maildrop/7cA4": "four",
}


@pytest.fixture
def queue(tmp_path):
    """A queue directory with mail."""
    queue = tmp_path / "old"
    for folder in ("pid", "private", "public", "etc", "deferred/empty"):
        (queue / folder).mkdir(parents=True)
    (queue / "pid/master.pid").write_text("1")
    (queue / "etc/hosts").write_text("of a chroot")
    for path, text in MAILS.items():
        (queue / path).parent.mkdir(parents=True, exist_ok=True)
        (queue / path).write_text(text)
        (queue / path).chmod(0o700)
        os.utime(queue / path, (1000, 2_000_000_000))
    (queue / "maildrop").chmod(0o1730)
    queue.chmod(0o755)
    return queue


@pytest.fixture
def volume(tmp_path):
    """A new volume, with what mkfs leaves on it."""
    (tmp_path / "new/lost+found").mkdir(parents=True)
    (tmp_path / "new").chmod(0o700)
    return tmp_path / "new"


@pytest.fixture
def move(run_module, queue, volume):
    """A function that runs the module."""
    return lambda check=False: run_module(postfix_queue_move, {"src": str(queue), "dest": str(volume)}, check=check)


def mails(folder):
    return {path: (folder / path).read_text() for path in MAILS if (folder / path).exists()}


def test_mail_moves_with_permissions_and_times(move, queue, volume):
    result = move()
    assert (result["changed"], result["moved"]) == (True, len(MAILS))
    assert (mails(volume), mails(queue)) == (MAILS, {})
    info = (volume / "deferred/5/5cA2").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime) == (0o700, 2_000_000_000)
    assert stat.S_IMODE((volume / "maildrop").stat().st_mode) == 0o1730
    assert stat.S_IMODE(volume.stat().st_mode) == 0o755
    assert (volume / "deferred/empty").is_dir()
    assert (volume / "private").is_dir()
    assert not (volume / "etc/hosts").exists()


def test_the_second_call_changes_nothing(move):
    move()
    result = move()
    assert (result["changed"], result["moved"]) == (False, 0)


def test_check_mode_tells_and_moves_nothing(move, queue, volume):
    result = move(check=True)
    assert (result["changed"], result["moved"]) == (True, len(MAILS))
    assert mails(queue) == MAILS
    assert os.listdir(volume) == ["lost+found"]


@pytest.mark.parametrize("step", ["copyfile", "copystat", "rename", "unlink"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_after_an_interruption_the_next_call_moves_the_rest(move, queue, volume, monkeypatch, step, count):
    owner = {"copyfile": postfix_queue_move.shutil, "copystat": postfix_queue_move.shutil}.get(
        step, postfix_queue_move.os
    )
    real = getattr(owner, step)
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > count:
            raise OSError("the host went away")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, interrupted)
        assert "went away" in move()["msg"]
    assert {**mails(queue), **mails(volume)} == MAILS
    assert move()["changed"] is True
    assert (mails(volume), mails(queue)) == (MAILS, {})
    assert not list(volume.rglob("*.moving"))


def test_what_is_on_the_volume_is_kept(move, queue, volume):
    (volume / "deferred/5").mkdir(parents=True)
    (volume / "deferred/5/other").write_text("other")
    move()
    assert (volume / "deferred/5/other").read_text() == "other"
    assert mails(volume) == MAILS


def test_another_mail_of_the_same_name_is_not_replaced(move, queue, volume):
    (volume / "hold").mkdir()
    (volume / "hold/6cA3").write_text("another")
    assert "different mails of one name" in move()["msg"]
    assert ((volume / "hold/6cA3").read_text(), (queue / "hold/6cA3").read_text()) == ("another", "three")


@pytest.mark.parametrize("lock", ["flock", "lockf"])
def test_the_queue_of_a_running_postfix_is_not_touched(move, queue, volume, lock):
    program = f"import fcntl,sys; f=open(sys.argv[1],'r+b'); fcntl.{lock}(f,2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(queue / "pid/master.pid")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as master:
        assert master.stdout and master.stdout.readline()
        assert "stop it before" in move()["msg"]
        master.communicate()
    assert mails(queue) == MAILS
    with open(queue / "pid/master.pid", "r+b") as free:
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_missing_folder_is_told(run_module, tmp_path):
    options = {"src": str(tmp_path / "never"), "dest": str(tmp_path)}
    assert run_module(postfix_queue_move, options)["msg"] == f"{tmp_path}/never is no folder"

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of hourly logs that get old, also after an interruption."""

from __future__ import annotations

import gzip
import os
import runpy
import time
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = ROOT / "roles/mail_logs/files/usr/local/libexec/mail_logs_keep.py"
HOUR = 3600


@pytest.fixture
def program():
    functions = runpy.run_path(str(PROGRAM))
    functions["compress"].__globals__["SETTLE"] = 0
    return types.SimpleNamespace(**functions)


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of a host that was last written some seconds ago."""

    def write(name: str, text: bytes, age: float) -> Path:
        path = tmp_path / "mx-1" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
        os.utime(path, (time.time() - age,) * 2)
        return path

    return write


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "mx-1").iterdir()}


def test_only_hours_that_are_silent_are_compressed(program, write, tmp_path):
    old, new = write("05.log", b"old\n", 3 * HOUR), write("07.log", b"new\n", HOUR)
    modified = old.stat().st_mtime
    program.close(tmp_path, hours=2)
    program.compress(tmp_path)
    assert names(tmp_path) == {"05.log.gz", "07.log"}
    packed = tmp_path / "mx-1/05.log.gz"
    assert gzip.decompress(packed.read_bytes()) == b"old\n"
    assert packed.stat().st_mtime == pytest.approx(modified)
    assert new.read_bytes() == b"new\n"


def test_late_lines_are_added(program, write, tmp_path):
    for text in (b"one\n", b"two\n"):
        write("05.log", text, 3 * HOUR)
        program.close(tmp_path, hours=2)
        program.compress(tmp_path)
    assert gzip.decompress((tmp_path / "mx-1/05.log.gz").read_bytes()) == b"one\ntwo\n"


def test_what_an_interrupted_run_closed_comes_first(program, write, tmp_path):
    write("05.log.closed", b"one\n", 4 * HOUR)
    write("05.log", b"two\n", 3 * HOUR)
    write(".05.log.gz", b"half", 3 * HOUR)
    for _run in range(2):
        program.close(tmp_path, hours=2)
        program.compress(tmp_path)
    assert names(tmp_path) == {"05.log.gz"}
    assert gzip.decompress((tmp_path / "mx-1/05.log.gz").read_bytes()) == b"one\ntwo\n"


def test_only_old_logs_are_removed(program, write, tmp_path):
    write("05.log.gz", b"", 3 * 24 * HOUR)
    write("06.log.gz", b"", 24 * HOUR)
    write("notes.txt", b"", 3 * 24 * HOUR)
    program.remove(tmp_path, days=2)
    assert names(tmp_path) == {"06.log.gz", "notes.txt"}

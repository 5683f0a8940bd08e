# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Python compiled of a ZIP archive is kept, and is the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOOK = Path(__file__).resolve().parents[3] / "molecule/shared/python/sitecustomize.py"
SOURCE = "def told():\r\n    raise ValueError(__file__)\r\n"


@pytest.fixture
def kept(tmp_path):
    (tmp_path / "python").mkdir()
    shutil.copy(HOOK, tmp_path / "python")
    (tmp_path / "bytecode").mkdir()
    return tmp_path / "bytecode"


@pytest.fixture
def said(tmp_path, kept):
    """A function that gives what an archive's module says when it fails."""

    def said(name, source=SOURCE):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("module_of_zip.py", source)
        command = [sys.executable, "-c", "import module_of_zip; module_of_zip.told()"]
        path = f"{tmp_path / 'python'}:{tmp_path / name}"
        return subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False).stderr

    return said


def test_a_module_is_compiled_once_for_all_archives(said, kept, tmp_path):
    first = said("a.zip")
    (code,) = kept.iterdir()
    written = code.stat()
    second = said("b.zip")
    assert list(kept.iterdir()) == [code]
    assert (code.stat().st_ino, code.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    for name, text in (("a.zip", first), ("b.zip", second)):
        place = f"{tmp_path / name}/module_of_zip.py"
        assert f'File "{place}", line 2, in told' in text  # of a traceback
        assert text.endswith(f"ValueError: {place}\n")


def test_another_source_is_another_code(said, kept):
    said("a.zip")
    assert said("a.zip", SOURCE.replace("ValueError", "KeyError")).splitlines()[-1].startswith("KeyError")
    assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize("text", [b"", b"garbage", b"\xe9\x01"])
def test_what_was_cut_off_is_made_again(said, kept, text):
    whole = said("a.zip")
    (code,) = kept.iterdir()
    size = code.stat().st_size
    code.write_bytes(text)
    assert said("a.zip") == whole
    assert code.stat().st_size == size


def test_nothing_has_to_be_kept(said, kept):
    kept.rmdir()
    assert "ValueError" in said("a.zip")

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the source_release module, as the action calls it when it has brought the archives."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile

import pytest
from ansible_collections.tenfold.stack.plugins.modules import source_release


@pytest.fixture
def ldconfig(tmp_path, monkeypatch):
    """A file that has a line for each call of ldconfig."""
    (tmp_path / "path").mkdir()
    calls = tmp_path / "ldconfig.calls"
    calls.touch()
    tool = tmp_path / "path/ldconfig"
    tool.write_text(f"#!/bin/sh\necho called >> {calls}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return calls


@pytest.fixture
def prefix(tmp_path):
    """Where the releases go. Its folder is not there yet."""
    return tmp_path / "opt/greet"


@pytest.fixture
def usr(tmp_path):
    """A folder to expose releases in."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    return tmp_path / "usr"


@pytest.fixture
def release(tmp_path, prefix, make_tar):
    """A function that describes a release; with files, it has an archive on the host."""

    def describe(version, files=None, **options):
        artifact = f"greet-{version}.tar.gz"
        described = {"name": "greet", "prefix": str(prefix), "release": version, "artifact": artifact, **options}
        if files is not None:
            path = tmp_path / artifact
            sha256 = make_tar(path, files)
            size = sum(map(len, files.values()))
            described = {"archive": str(path), "needs": {"sha256": sha256, "size": size}, **described}
        return described

    return describe


@pytest.fixture
def run(run_module, tmp_path):
    """A function that runs the module on some releases."""

    def run(*releases, check=False, **options):
        return run_module(source_release, {"releases": list(releases), "cache": str(tmp_path), **options}, check=check)

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Installing and switching


def test_a_release_is_unpacked_and_put_to_use(run, release, prefix):
    result = run(release("1", {"bin/greet": "one", "share/doc/readme": "read"}))
    assert (result["changed"], result["installed"], result["switched"]) == (True, ["greet"], ["greet"])
    assert result["missing"] == []
    assert result["diff"] == {"before": {"greet": None}, "after": {"greet": "1"}}
    assert names(prefix) == ["1", "current"]
    assert (prefix / "current/bin/greet").read_text() == "one"
    assert (prefix / "current/share/doc/readme").read_text() == "read"
    assert os.readlink(prefix / "current") == "1"


def test_a_release_in_use_is_left_alone(run, release, prefix):
    run(release("1", {"bin/greet": "one"}))
    before = os.lstat(prefix / "current").st_ino, os.stat(prefix / "1").st_mtime_ns
    result = run(release("1"))
    assert (result["changed"], result["installed"], result["switched"], result["missing"]) == (False, [], [], [])
    assert (os.lstat(prefix / "current").st_ino, os.stat(prefix / "1").st_mtime_ns) == before


def test_going_back_needs_no_archive(run, release, prefix):
    run(release("1", {"bin/greet": "one"}))
    run(release("2", {"bin/greet": "two"}))
    assert (prefix / "current/bin/greet").read_text() == "two"
    result = run(release("1"))
    assert (result["changed"], result["installed"], result["switched"]) == (True, [], ["greet"])
    assert result["diff"] == {"before": {"greet": "2"}, "after": {"greet": "1"}}
    assert (prefix / "current/bin/greet").read_text() == "one"
    assert names(prefix) == ["1", "2", "current"]


def test_without_activate_the_release_in_use_stays(run, release, prefix):
    run(release("1", {"bin/greet": "one"}))
    result = run(release("2", {"bin/greet": "two"}), activate=False)
    assert (result["changed"], result["installed"], result["switched"]) == (True, ["greet"], [])
    assert result["diff"]["after"] == {"greet": "1"}
    assert (names(prefix), os.readlink(prefix / "current")) == (["1", "2", "current"], "1")
    assert run(release("2"), activate=False)["changed"] is False


def test_a_release_is_for_all_users_whatever_the_umask(run, release, prefix):
    umask = os.umask(0o077)
    try:
        run(release("1", {"bin/greet": "one"}))
    finally:
        os.umask(umask)
    for path in (prefix, prefix / "1", prefix / "1/bin", prefix / "1/bin/greet"):
        assert oct(path.stat().st_mode & 0o777) == "0o755", path


def test_what_is_missing_is_told_and_nothing_is_changed(run, release, prefix):
    result = run(release("1", {"bin/greet": "one"}), release("2", name="other"))
    assert (result["changed"], result["missing"]) == (False, ["greet-2.tar.gz"])
    assert not prefix.exists()


def test_check_mode_tells_and_changes_nothing(run, release, prefix):
    new = release("1", {"bin/greet": "one"})
    result = run(new, check=True)
    assert (result["changed"], result["installed"], result["switched"]) == (True, ["greet"], ["greet"])
    assert not prefix.exists()
    run(new)
    run(release("2", {"bin/greet": "two"}))
    result = run(release("1"), check=True)
    assert (result["changed"], result["installed"], result["switched"]) == (True, [], ["greet"])
    assert os.readlink(prefix / "current") == "2"
    assert run(release("2"), check=True)["changed"] is False


def test_check_mode_tells_what_is_missing(run, release):
    result = run(release("1"), check=True)
    assert (result["changed"], result["missing"]) == (True, ["greet-1.tar.gz"])


# What goes wrong leaves the release in use, and nothing else


@pytest.fixture
def in_use(run, release, prefix):
    """A function that tells that release 1 is in use, and nothing else is there."""
    run(release("1", {"bin/greet": "one"}))
    return lambda: (names(prefix), os.readlink(prefix / "current")) == (["1", "current"], "1")


def test_a_damaged_archive(run, release, in_use, tmp_path):
    new = release("2", {"bin/greet": "two"})
    with open(new["archive"], "ab") as archive:
        archive.write(b"!")
    result = run(new)
    assert result["failed"]
    assert "greet-2.tar.gz was damaged" in result["msg"]
    assert "source_build_cache" in result["msg"]
    assert in_use()


@pytest.mark.parametrize("content", [b"no archive", None])
def test_an_archive_that_can_not_be_unpacked(run, release, in_use, make_tar, content):
    new = release("2", {"bin/greet": os.urandom(100_000)})
    with open(new["archive"], "rb+") as archive:
        if content is None:  # truncated
            archive.truncate(50_000)
        else:
            archive.truncate(0)
            archive.write(content)
    new["needs"]["sha256"] = source_release.sha256_of(new["archive"])
    assert run(new)["failed"]
    assert in_use()


def test_an_archive_that_leaves_its_folder(run, release, in_use, tmp_path):
    result = run(release("2", {"../../../evil": "two"}))
    assert result["failed"]
    assert not (tmp_path / "evil").exists()
    assert in_use()


def test_a_disk_too_small_is_told_before_unpacking(run, release, in_use, monkeypatch, prefix):
    new = release("2", {"bin/greet": "two"})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 8, 2))
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("it was unpacked"))
    result = run(new)
    assert result["failed"]
    assert f"no room for greet 2 in {prefix}: it needs 3 bytes" in result["msg"]
    assert in_use()


def test_a_disk_that_fills_up_while_unpacking(run, release, in_use, monkeypatch, prefix):
    def fill(_archive, path):
        with open(f"{path}/half", "w") as file:
            file.write("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", fill)
    result = run(release("2", {"bin/greet": "two"}))
    assert result["failed"]
    assert f"no room for greet 2 in {prefix}: it needs 3 bytes" in result["msg"]
    assert in_use()


def test_a_disk_with_just_enough_room(run, release, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 7, 3))
    assert run(release("2", {"bin/greet": "two"}))["installed"] == ["greet"]


# Exposing in another folder


def test_files_appear_as_links_through_current(run, release, prefix, usr, ldconfig):
    result = run(release("1", {"bin/greet": "one", "lib/deep/greet.so": "so"}, expose_in=str(usr)))
    assert result["changed"]
    assert os.readlink(usr / "bin/greet") == f"{prefix}/current/bin/greet"
    assert (usr / "lib/deep/greet.so").read_text() == "so"
    assert ldconfig.read_text() == "called\n"
    again = run(release("1", expose_in=str(usr)))
    assert (again["changed"], again["switched"]) == (False, [])
    assert ldconfig.read_text() == "called\n"


def test_a_switch_leaves_the_links_as_they_are(run, release, usr, ldconfig):
    run(release("1", {"bin/greet": "one"}, expose_in=str(usr)))
    before = os.lstat(usr / "bin/greet").st_ino
    run(release("2", {"bin/greet": "two"}, expose_in=str(usr)))
    assert (usr / "bin/greet").read_text() == "two"
    assert os.lstat(usr / "bin/greet").st_ino == before
    assert ldconfig.read_text() == "called\n"


def test_links_to_files_that_are_gone_are_removed(run, release, usr, ldconfig):
    run(release("1", {"bin/greet": "one", "bin/old": "old", "bin/taken": "taken"}, expose_in=str(usr)))
    (usr / "bin/taken").unlink()
    (usr / "bin/taken").write_text("somebody else's")
    run(release("2", {"bin/greet": "two", "bin/new": "new"}, expose_in=str(usr)))
    assert names(usr / "bin") == ["greet", "new", "taken"]
    assert (usr / "bin/taken").read_text() == "somebody else's"
    assert ldconfig.read_text() == "called\n" * 2


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_foreign_file_is_refused_before_any_switch(run, release, prefix, usr, tmp_path, kind):
    other = tmp_path / "opt/other"
    run(release("1", {"bin/greet": "one"}, prefix=str(other)))
    place = usr / "bin/greet"
    if kind == "file":
        place.write_text("foreign")
    else:
        place.symlink_to(f"{prefix}-of-another/current/bin/greet")
    before = os.lstat(place)
    new_other = release("2", {"bin/other": "two"}, prefix=str(other), name="other", artifact="other")
    result = run(new_other, release("3", {"bin/greet": "three"}, expose_in=str(usr)))
    assert result["failed"]
    assert f"{place} is there already and does not belong to greet in {prefix}" in result["msg"]
    assert os.lstat(place) == before
    assert os.readlink(other / "current") == "1"
    assert not os.path.lexists(prefix / "current")


def test_a_foreign_file_is_told_in_check_mode(run, release, usr):
    run(release("1", {"bin/greet": "one"}))
    (usr / "bin/greet").write_text("foreign")
    assert "is there already" in run(release("1", expose_in=str(usr)), check=True)["msg"]


def test_links_that_an_interrupted_run_did_not_make_are_completed(run, release, prefix, usr, ldconfig):
    new = release("1", {"bin/greet": "one", "bin/more": "more"}, expose_in=str(usr))
    run(new)
    (usr / "bin/more").unlink()
    told = run(new, check=True)
    assert (told["changed"], (usr / "bin/more").exists()) == (True, False)
    result = run(new)
    assert (result["changed"], result["installed"], result["switched"]) == (True, [], ["greet"])
    assert (usr / "bin/more").read_text() == "more"


def test_check_mode_exposes_nothing(run, release, usr):
    run(release("1", {"bin/greet": "one"}))
    assert run(release("1", expose_in=str(usr)), check=True)["changed"] is True
    assert names(usr / "bin") == []

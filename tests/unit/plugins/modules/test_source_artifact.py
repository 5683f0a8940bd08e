# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the source_artifact module: it compiles a tiny project for real, where no compiler is needed."""

from __future__ import annotations

import json
import os
import tarfile

import pytest
from ansible_collections.tenfold.stack.plugins.modules import source_artifact

PREFIX = "/opt/greet/1-abc"


@pytest.fixture(autouse=True)
def tools(tmp_path, monkeypatch):
    """A folder in front of the PATH. Its cc does nothing, its strip tells what it was called for."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name, does in (("cc", "exit 1"), ("strip", f'echo "$@" >> {folder}/stripped')):
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def scratch(tmp_path):
    """The folder for temporary files."""
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def artifact(tmp_path):
    return tmp_path / "artifact.tar.gz"


@pytest.fixture
def build(run_module, make_source, tmp_path, scratch, artifact):
    """A function that runs the module on the tiny project, with some of its files replaced.

    Whatever happens, nothing is left in the folder for temporary files.
    """

    def build(files=None, check=False, **options):
        archive = tmp_path / "source.tar.gz"
        sha256 = make_source(archive, files=files)
        given = {
            "name": "greet",
            "archive": str(archive),
            "sha256": sha256,
            "artifact": str(artifact),
            "prefix": PREFIX,
            "_ansible_tmpdir": str(scratch),
            **options,
        }
        result = run_module(source_artifact, given, check=check)
        assert list(scratch.iterdir()) == []
        return result

    return build


def contents(artifact):
    """What the files of an artifact hold, by name."""
    with tarfile.open(artifact) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.isreg()}
        return {name: file.read().decode() for name, file in files.items() if file}


# What is made


def test_the_artifact_holds_what_make_install_puts_below_the_prefix(build, artifact):
    result = build()
    assert result["changed"] is True
    assert contents(artifact)["bin/greet"] == "#!/bin/sh\necho greetings from 1\n"
    with tarfile.open(artifact) as archive:
        assert archive.getnames() == ["bin", "bin/greet", "bin/hello", "share", "share/arguments"]
        assert archive.getmember("bin/greet").mode == 0o755
        assert archive.getmember("bin/hello").linkname == "greet"


def test_size_and_checksum_are_told(build, artifact):
    result = build()
    assert result["size"] == sum(map(len, contents(artifact).values()))
    assert result["sha256"] == source_artifact.sha256_of(str(artifact))
    assert set(result["seconds"]) == {"configure", "make", "install"}


def test_configure_gets_the_prefix_and_its_arguments_as_they_are(build, artifact):
    build(configure=["--with-this", "LDFLAGS=-Wl,-rpath,$ORIGIN -L~", "~"])
    told = contents(artifact)["share/arguments"].splitlines()
    assert told == [f"--prefix={PREFIX}", "--with-this", "LDFLAGS=-Wl,-rpath,$ORIGIN -L~", "~"]


def test_each_call_of_make_has_its_arguments_and_the_environment(build, artifact):
    build(
        {"Makefile": "include config.mk\nadd install:\n\techo $(TO) $$WORD $(LEVEL) >> made\n"
         "last:\n\tmkdir -p $(DESTDIR)$(prefix)\n\tcp made $(DESTDIR)$(prefix)\n"},
        make=[["add", "TO=one"], ["add", "TO=two"]],
        install=["install", "last"],
        environment={"WORD": "$HOME", "LEVEL": 2},
    )  # fmt: skip
    assert contents(artifact) == {"made": "one $HOME 2\ntwo $HOME 2\n$HOME 2\n"}


def test_make_may_use_all_processors_but_for_the_installation(build, artifact):
    build({"Makefile": "include config.mk\nall install:\n\tmkdir -p $(DESTDIR)$(prefix)\n"
           "\techo '$(MAKEFLAGS)' > $(DESTDIR)$(prefix)/$@ || :\n\techo '$(MAKEFLAGS)' >> flags\n"
           "\tcp flags $(DESTDIR)$(prefix)\n"})  # fmt: skip
    compiled, installed = contents(artifact)["flags"].splitlines()
    assert "-j" in compiled
    assert "-j" not in installed


def test_the_same_source_gives_the_same_artifact_whatever_the_umask_and_time(build, artifact):
    first = build()["sha256"]
    artifact.unlink()
    umask = os.umask(0o077)
    try:
        second = build({"configure": "#!/bin/sh\necho prefix = /opt/greet/1-abc > config.mk\n"
                        f"echo --prefix={PREFIX} > arguments\ntouch -d 2001-01-01 *\n"})["sha256"]  # fmt: skip
    finally:
        os.umask(umask)
    assert second == first
    assert artifact.read_bytes()[4:8] == bytes(4)  # gzip's own time
    with tarfile.open(artifact) as archive:
        assert {(entry.uid, entry.gid, entry.uname, entry.mtime) for entry in archive} == {(0, 0, "root", 0)}
        assert archive.getmember("bin").mode == 0o755


INSTALLS_MANY_KINDS = r"""
include config.mk
to = $(DESTDIR)$(prefix)
all:
install:
    mkdir -p $(to)
    printf '\177ELF program' > $(to)/program
    printf '!<arch>\nlibrary' > $(to)/library
    printf 'a text' > $(to)/text.a
    ln -s program $(to)/link
    ln -s nowhere $(to)/dangling
""".replace("    ", "\t")


def test_programs_and_libraries_are_stripped(build, tools):
    result = build({"Makefile": INSTALLS_MANY_KINDS})
    stripped = [line.split() for line in (tools / "stripped").read_text().splitlines()]
    assert [(words[0], os.path.basename(words[-1])) for words in stripped] == [
        ("--strip-unneeded", "library"),
        ("--strip-unneeded", "program"),
    ]
    assert "strip" in result["seconds"]


def test_stripping_can_be_left_out(build, tools):
    build({"Makefile": INSTALLS_MANY_KINDS}, strip=False)
    assert not (tools / "stripped").exists()


def test_check_mode_builds_nothing(build, artifact):
    assert build(check=True, archive="/nowhere") | {"invocation": 0} == {
        "changed": True,
        "failed": False,
        "invocation": 0,
    }
    assert not artifact.exists()


# What goes wrong


@pytest.fixture
def fail(build, artifact):
    """A function that builds and gives the error message; there is no artifact then."""

    def fail(files=None, **options):
        result = build(files, **options)
        assert result["failed"] is True
        assert not artifact.exists()
        json.dumps(result).encode()
        return result["msg"]

    return fail


def test_a_failing_configure_tells_the_end_of_its_output(fail):
    message = fail({"configure": "#!/bin/sh\nseq 1 40\necho 'configure: error: no libevent' >&2\nexit 3\n"})
    lines = message.splitlines()
    assert f"greet: `./configure --prefix={PREFIX}` ended with status 3" in lines[0]
    assert "The release in use is as it was" in lines[0]
    assert lines[1:] == [*map(str, range(12, 41)), "configure: error: no libevent"]


def test_a_failing_compiler_tells_without_colours_and_in_any_encoding(fail):
    message = fail(
        {"Makefile": "all:\n\t@printf '\\033[1;31merror:\\033[0m caf\\351 is no word\\n' >&2; false\n"},
        make=[[], ["never"]],
    )
    assert "greet: `make -j" in message
    assert "\nerror: caf\ufffd is no word\n" in message


def test_a_failing_installation_is_told(fail):
    assert "install` ended with status 2" in fail({"Makefile": "all:\ninstall:\n\tfalse\n"})


def test_an_installation_elsewhere_is_told(fail):
    message = fail(
        {"Makefile": "all:\ninstall:\n\tmkdir -p $(DESTDIR)/usr\nmore:\n"},
        install=["install", "more"],
    )
    assert message == f"greet: `make install more` put nothing below {PREFIX}"


def test_a_project_without_configure_is_told(fail):
    message = fail({"configure": "no interpreter"}, prefix="/opt/greet")
    assert "greet: `./configure --prefix=/opt/greet` can't be run: " in message


def test_another_checksum_is_told(fail):
    message = fail(sha256="0" * 64)
    assert message.startswith(f"the source archive of greet has not the checksum {'0' * 64}")


@pytest.mark.parametrize("files", [{"one/a": "", "two/b": ""}, {"file": ""}])
def test_an_archive_without_a_single_folder_is_told(fail, tmp_path, make_tar, files):
    archive = tmp_path / "other.tar.gz"
    message = fail(archive=str(archive), sha256=make_tar(archive, files))
    assert "the source archive of greet holds " in message
    assert "where a single folder is expected: name a release archive in its sources" in message


@pytest.mark.parametrize("length", [0, 5, 200])
def test_what_is_no_archive_is_told(fail, tmp_path, make_source, length):
    archive = tmp_path / "other.tar.gz"
    make_source(archive)
    os.truncate(archive, length)
    assert fail(archive=str(archive), sha256=source_artifact.sha256_of(str(archive)))


def test_an_archive_that_is_not_there_is_told(fail):
    assert "/nowhere.tar.gz" in fail(archive="/nowhere.tar.gz")


def test_missing_tools_are_told(fail, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    message = fail()
    assert "greet can't be built: no cc and no make on this host" in message
    assert "build packages" in message

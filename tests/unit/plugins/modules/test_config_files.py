# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the config_files module on real files."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import time

import pytest
from ansible_collections.tenfold.stack.plugins.modules import config_files

OWNER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def etc(tmp_path):
    """The folder of the files."""
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc"


@pytest.fixture
def scratch(tmp_path):
    """The folder for temporary files."""
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def calls(tmp_path):
    """A file that has a line for each call of `validate`."""
    (tmp_path / "calls").touch()
    return tmp_path / "calls"


@pytest.fixture
def validate(calls):
    """A function that gives a command for the option validate: a shell script with $root."""

    def validate(script="", **options):
        return [{"command": ["sh", "-c", f"root=$1; echo called >> {calls}; {script}", "sh", "{root}"], **options}]

    return validate


@pytest.fixture
def write(run_module, etc, scratch):
    """A function that runs the module with contents by file name. No temporary files are left."""

    def write(files, check=False, absent=(), validate=(), derived=(), **properties):
        wanted = [
            {"path": str(etc / name), "content": content, "owner": OWNER, "group": GROUP, **properties}
            for name, content in files.items()
        ]
        options = {
            "files": wanted,
            "absent": list(map(str, absent)),
            "validate": list(validate),
            "derived": list(derived),
        }
        result = run_module(config_files, {**options, "_ansible_tmpdir": str(scratch)}, check=check, diff=True)
        assert list(scratch.iterdir()) == []
        assert list(etc.rglob(".*")) == []
        return result

    return write


def mode_of(path):
    return oct(stat.S_IMODE(path.stat().st_mode))


def contents(etc):
    """What is in all the files, by name."""
    return {str(path.relative_to(etc)): path.read_text() for path in etc.rglob("*") if path.is_file()}


def unchanged(path):
    """What stays the same for a file as long as nobody writes it (reading it may change its access time)."""
    info = os.stat(path)
    return info.st_ino, info.st_mtime_ns, info.st_ctime_ns


# Writing


def test_files_are_written_with_their_folders(write, etc):
    result = write({"a": "one\n", "deep/er/b": "two\n"})
    assert (result["changed"], result["changed_files"]) == (True, [str(etc / "a"), str(etc / "deep/er/b")])
    assert contents(etc) == {"a": "one\n", "deep/er/b": "two\n"}
    assert (mode_of(etc / "a"), mode_of(etc / "deep/er")) == ("0o644", "0o755")


def test_only_what_differs_is_replaced(write, etc):
    write({"a": "one", "b": "two"})
    before = unchanged(etc / "a")
    result = write({"a": "one", "b": "other"})
    assert (result["changed"], result["changed_files"]) == (True, [str(etc / "b")])
    assert contents(etc) == {"a": "one", "b": "other"}
    assert unchanged(etc / "a") == before


def test_when_nothing_differs_nothing_is_done(write, validate, calls, etc):
    files = {"a": "grüße", "b": ""}
    write(files)
    before = [unchanged(etc / name) for name in files]
    result = write(files, validate=validate("false"), absent=[etc / "c"])
    assert (result["changed"], result["changed_files"], result["diff"]) == (False, [], [])
    assert [unchanged(etc / name) for name in files] == before
    assert calls.read_text() == ""


def test_other_characters_are_written_as_utf_8(write, etc):
    result = write({"a": "grüße €\n"})
    assert (etc / "a").read_bytes() == "grüße €\n".encode()
    assert result["diff"][0]["after"] == "grüße €\n"
    assert write({"a": "grüße €\n"})["changed"] is False


def test_bytes_that_are_no_text_are_replaced(write, etc):
    (etc / "a").write_bytes(b"caf\xe9")
    result = write({"a": "café"})
    assert result["diff"][0]["before"] == "caf\ufffd"
    assert (etc / "a").read_text() == "café"


@pytest.mark.parametrize("mode", ["0600", "640", "4755"])
def test_a_new_file_and_an_old_one_get_the_mode(write, etc, mode):
    (etc / "old").write_text("text")
    (etc / "old").chmod(0o666)
    assert write({"old": "text", "new": "text"}, mode=mode)["changed"] is True
    assert (mode_of(etc / "old"), mode_of(etc / "new")) == (oct(int(mode, 8)),) * 2
    assert write({"old": "text", "new": "text"}, mode=mode)["changed"] is False


def test_folders_are_for_all_users_and_files_have_their_mode_whatever_the_umask(write, etc):
    umask = os.umask(0o077)
    try:
        write({"deep/a": "one"})
    finally:
        os.umask(umask)
    assert (mode_of(etc / "deep"), mode_of(etc / "deep/a")) == ("0o755", "0o644")


@needs_root
def test_a_new_file_and_an_old_one_get_the_owner_and_group(write, etc):
    (etc / "old").write_text("text")
    user, group = pwd.getpwnam("nobody"), grp.getgrnam("daemon")
    result = write({"old": "text", "new": "text"}, owner="nobody", group="daemon", mode="0640")
    for name in ("old", "new"):
        found = os.stat(etc / name)
        assert (found.st_uid, found.st_gid, mode_of(etc / name)) == (user.pw_uid, group.gr_gid, "0o640")
    assert result["diff"][0]["after_header"] == f"{etc}/old (nobody:daemon 0640)"
    assert write({"old": "text", "new": "text"}, owner="nobody", group="daemon", mode="0640")["changed"] is False


@needs_root
def test_an_owner_without_a_name_is_told_by_number(write, etc):
    (etc / "a").write_text("one")
    os.chown(etc / "a", 12345, 54321)
    assert write({"a": "one"})["diff"][0]["before_header"] == f"{etc}/a (12345:54321 0644)"


def test_nobody_reads_a_secret_while_it_is_written(write, etc, validate, scratch, monkeypatch):
    modes = []
    chmod = os.chmod

    def record(path, mode):
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", record)
    write({"a": "secret"}, mode="0640", validate=validate("test $(stat -c %a $root) = 700"))
    assert modes == [0o600]


# What must not be there


def test_absent_files_are_removed(write, etc):
    (etc / "a").write_text("one")
    (etc / "link").symlink_to("nowhere")
    result = write({"b": "two"}, absent=[etc / "a", etc / "link", etc / "never"])
    assert result["changed_files"] == [str(etc / "b"), str(etc / "a"), str(etc / "link")]
    assert contents(etc) == {"b": "two"}
    assert not os.path.lexists(etc / "link")


def test_absent_alone_needs_no_check(write, etc, validate, calls):
    (etc / "a").write_text("one")
    result = write({}, absent=[etc / "a"], validate=validate("false"))
    assert (result["changed"], calls.read_text(), contents(etc)) == (True, "", {})
    assert result["diff"] == [{"before": "", "after": "", "before_header": f"{etc}/a", "after_header": "/dev/null"}]


def test_a_folder_that_must_not_be_there_is_left_to_the_user(write, etc):
    (etc / "folder").mkdir()
    result = write({"a": "one"}, absent=[etc / "folder"])
    assert f"{etc}/folder is to be absent but is a folder" in result["msg"]
    assert contents(etc) == {}


# Checking


def test_the_check_sees_all_files_before_any_is_replaced(write, etc, validate, tmp_path):
    write({"a": "one", "b": "two"})
    write({"a": "one", "b": "new"}, validate=validate(f"cp -r $root{etc} {tmp_path}/seen; cp -r {etc} {tmp_path}/then"))
    assert contents(tmp_path / "seen") == {"a": "one", "b": "new"}
    assert contents(tmp_path / "then") == {"a": "one", "b": "two"}
    assert contents(etc) == {"a": "one", "b": "new"}


def test_a_refused_change_leaves_all_as_it_was(write, etc, validate):
    write({"a": "one"})
    (etc / "old").write_text("old")
    before = unchanged(etc / "a")
    result = write(
        {"a": "new", "b": "new"},
        absent=[etc / "old"],
        validate=validate(f"echo $root{etc}/a: bad line >&2; echo hint; exit 4", advice="change greet_options"),
    )
    assert result["failed"]
    assert result["msg"].startswith("change greet_options. `sh -c ")
    assert result["msg"].endswith(f"ended with status 4: {etc}/a: bad line\nhint")
    assert "scratch" not in result["msg"]
    assert (unchanged(etc / "a"), contents(etc)) == (before, {"a": "one", "old": "old"})


def test_every_check_has_to_be_satisfied(write, etc, validate, calls):
    result = write({"a": "one"}, validate=validate() + validate("false") + validate())
    assert "the new configuration was refused" in result["msg"]
    assert (calls.read_text(), contents(etc)) == ("called\n" * 2, {})


def test_other_statuses_may_mean_success(write, etc, validate):
    assert "status 0" in write({"a": "one"}, validate=validate(satisfied_by=[124, 3]))["msg"]
    assert write({"a": "one"}, validate=validate("exit 3", satisfied_by=[124, 3]))["changed"] is True


def test_arguments_of_a_check_are_taken_as_they_are(write, tmp_path):
    command = ["sh", "-c", 'printf "%s" "$1" > "$2"', "sh", "$HOME ~", str(tmp_path / "seen")]
    write({"a": "one"}, validate=[{"command": command}])
    assert (tmp_path / "seen").read_text() == "$HOME ~"


def test_check_mode_checks_but_writes_nothing(write, etc, validate, calls):
    (etc / "old").write_text("old")
    result = write({"deep/a": "one"}, absent=[etc / "old"], check=True, validate=validate())
    assert (result["changed"], result["changed_files"]) == (True, [f"{etc}/deep/a", f"{etc}/old"])
    assert (calls.read_text(), contents(etc), (etc / "deep").exists()) == ("called\n", {"old": "old"}, False)
    assert "refused" in write({"a": "one"}, check=True, validate=validate("false"))["msg"]


def test_a_check_may_have_to_be_quiet(write, etc, validate):
    warning = "echo $root/b: unknown option >&2; echo hint"
    assert write({"a": "one"}, validate=validate(warning))["changed"] is True
    result = write({"a": "new"}, validate=validate(warning, quiet=True, advice="change greet_options"))
    assert result["msg"].startswith("change greet_options. `sh -c ")
    assert result["msg"].endswith("ended with status 0: /b: unknown option")
    assert contents(etc) == {"a": "one"}
    assert write({"a": "new"}, validate=validate("echo hint", quiet=True))["changed"] is True


# Derived files


@pytest.fixture
def derive(etc):
    """A function that gives an element of the option derived: `a.upper` is `a` in capitals."""

    def derive(script="", **options):
        make = f"{script} tr a-z A-Z < {{root}}{etc}/a > {{root}}{etc}/a.upper"
        own = {"owner": OWNER, "group": GROUP}
        return [{"path": f"{etc}/a.upper", "source": f"{etc}/a", "command": ["sh", "-c", make], **own, **options}]

    return derive


def test_a_derived_file_is_made_with_its_source(write, etc, derive, validate):
    seen = validate(f"test $(cat $root{etc}/a.upper) = ONE")
    result = write({"a": "one", "b": "two"}, derived=derive(mode="0640"), validate=seen)
    assert result["changed_files"] == [f"{etc}/a", f"{etc}/b", f"{etc}/a.upper"]
    assert contents(etc) == {"a": "one", "b": "two", "a.upper": "ONE"}
    assert mode_of(etc / "a.upper") == "0o640"
    assert {"prepared": f"{etc}/a.upper is made from {etc}/a\n"} in result["diff"]


def test_a_derived_file_holds_any_bytes(write, etc, derive):
    binary = derive(f"printf '\\377\\000\\303' > {{root}}{etc}/a.upper; exit 0;")
    write({"a": "one"}, derived=binary)
    assert (etc / "a.upper").read_bytes() == b"\xff\x00\xc3"


def test_a_derived_file_is_only_made_when_its_source_differs_or_it_is_missing(write, etc, derive):
    write({"a": "one", "b": "two"}, derived=derive())
    before = unchanged(etc / "a.upper")
    assert write({"a": "one", "b": "two"}, derived=derive("exit 1;"))["changed"] is False
    assert write({"a": "one", "b": "new"}, derived=derive("exit 1;"))["changed_files"] == [f"{etc}/b"]
    assert unchanged(etc / "a.upper") == before
    (etc / "a.upper").unlink()
    assert write({"a": "one", "b": "new"}, derived=derive())["changed_files"] == [f"{etc}/a.upper"]
    assert (etc / "a.upper").read_text() == "ONE"


@pytest.mark.parametrize("script", ["echo bad line >&2; exit 3;", "echo bad line >&2;"])
@pytest.mark.parametrize("check", [True, False])
def test_a_source_that_is_refused_leaves_all_as_it_was(write, etc, derive, script, check):
    write({"a": "one", "b": "two"}, derived=derive())
    result = write({"a": "new", "b": "new"}, derived=derive(script, advice="change greet_table"), check=check)
    assert result["msg"].startswith("change greet_table. `sh -c")
    assert result["msg"].endswith("bad line")
    assert contents(etc) == {"a": "one", "b": "two", "a.upper": "ONE"}


def test_check_mode_tells_of_derived_files_and_leaves_them(write, etc, derive):
    assert write({"a": "one"}, derived=derive(), check=True)["changed_files"] == [f"{etc}/a", f"{etc}/a.upper"]
    assert contents(etc) == {}


def test_an_interruption_between_a_file_and_its_source_is_found_by_the_next_run(write, etc, derive, monkeypatch):
    write({"a": "one"}, derived=derive())
    move = config_files.os.replace

    def interrupt(scratch, path):
        if path == f"{etc}/a":
            raise OSError("the host went away")
        move(scratch, path)

    with monkeypatch.context() as patch:
        patch.setattr(config_files.os, "replace", interrupt)
        assert "went away" in write({"a": "new"}, derived=derive())["msg"]
    assert write({"a": "new"}, derived=derive())["changed_files"] == [f"{etc}/a", f"{etc}/a.upper"]
    assert contents(etc) == {"a": "new", "a.upper": "NEW"}


def test_a_derived_file_needs_its_source_and_its_command_to_make_it(write, etc, derive):
    assert "which is not among the files: add it" in write({"b": "two"}, derived=derive())["msg"]
    assert f"did not make {etc}/a.upper" in write({"a": "one"}, derived=derive("exit 0;"))["msg"]
    assert contents(etc) == {}


# Telling


def test_the_difference_tells_content_and_permissions(write, etc):
    new = write({"a": "one\n"}, mode="0600")["diff"]
    old = write({"a": "two\n"}, mode="0644")["diff"]
    own = f"{OWNER}:{GROUP}"
    assert new == [
        {"before": "", "after": "one\n", "before_header": "/dev/null", "after_header": f"{etc}/a ({own} 0600)"}
    ]
    assert old == [
        {
            "before": "one\n",
            "after": "two\n",
            "before_header": f"{etc}/a ({own} 0600)",
            "after_header": f"{etc}/a ({own} 0644)",
        }
    ]


# What can't be


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_regular_file_is_refused(write, etc, make):
    make(etc / "b")
    before = os.lstat(etc / "b")
    result = write({"a": "one", "b": "two"})
    assert f"{etc}/b is there but is not a regular file" in result["msg"]
    assert (contents(etc), os.lstat(etc / "b")) == ({}, before)


@pytest.mark.parametrize("mode", ["u=rw", "0688", ""])
def test_a_mode_that_is_not_octal_is_refused(write, etc, mode):
    message = write({"a": "one"}, mode=mode)["msg"]
    assert message == f'the mode of {etc}/a has to be octal digits such as "0644", not "{mode}"'


def test_a_relative_path_is_refused(run_module):
    result = run_module(config_files, {"files": [{"path": "etc/a", "content": ""}]})
    assert result["msg"] == "the path etc/a has to be absolute"


@pytest.mark.parametrize("what", ["owner", "group"])
def test_an_unknown_owner_leaves_all_as_it_was(run_module, etc, what):
    files = [
        {"path": str(etc / "a"), "content": "new", "owner": OWNER, "group": GROUP},
        {"path": str(etc / "b"), "content": "new", "owner": OWNER, "group": GROUP, what: "no-such-one"},
    ]
    (etc / "a").write_text("old")
    result = run_module(config_files, {"files": files})
    assert f"{etc}/b can't be given to " in result["msg"]
    assert "no-such-one" in result["msg"]
    assert (os.listdir(etc), contents(etc)) == (["a"], {"a": "old"})


def test_a_full_disk_leaves_all_as_it_was(write, etc, monkeypatch):
    write({"a": "old", "b": "old"})
    make = config_files.tempfile.mkstemp

    def fill(prefix, dir):
        if prefix.startswith(".b"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(config_files.tempfile, "mkstemp", fill)
    result = write({"a": "new", "b": "new"})
    assert "No space left on device" in result["msg"]
    assert contents(etc) == {"a": "old", "b": "old"}


# Units


def microseconds(moment):
    """The moment, in seconds since the epoch, as systemd's monotonic time."""
    return round((moment * 1e9 - config_files.boot_time()) / 1e3)


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """A function that sets what systemd knows of units. What is asked of it, beyond that, is in the file it gives.

    started is when they began to start, in seconds since the epoch; they took two seconds for it. further has more
    properties of each.
    """
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(config_files, "UNIT_FOLDERS", (str(tmp_path / "etc/units"),))
    told = tmp_path / "told"
    told.touch()

    def systemd(*states, failing="none", started=0.0, further=()):
        blocks = []
        for number, (active, enabled) in enumerate(states):
            properties = {
                "ActiveState": active,
                "UnitFileState": enabled,
                "NeedDaemonReload": "no",
                "InactiveExitTimestampMonotonic": microseconds(started),
                "ActiveEnterTimestampMonotonic": microseconds(started + 2),
                "StateChangeTimestampMonotonic": microseconds(started + 2),
                **(further[number] if further else {}),
            }
            blocks.append("".join(f"{name}={value}\n" for name, value in properties.items()))
        (tmp_path / "shown").write_text("\n".join(blocks))
        tool = folder / "systemctl"
        tool.write_text(
            f"""#!/bin/sh
            if [ "$1" = show ]; then cat {tmp_path}/shown; exit; fi
            echo "$@" $(ls {tmp_path}/etc) >> {told}
            if [ "$1" = {failing} ]; then echo "Job failed." >&2; exit 1; fi
            """
        )
        tool.chmod(0o755)
        journal = folder / "journalctl"
        journal.write_text("#!/bin/sh\necho it said why $@\n")
        journal.chmod(0o755)
        return told

    return systemd


@pytest.fixture
def with_units(run_module, etc):
    """A function that runs the module with a file and with units."""

    def with_units(*units, path="a", check=False, absent=()):
        file = {"path": str(etc / path), "content": "new", "owner": OWNER, "group": GROUP}
        options = {"files": [file], "units": list(units), "absent": [str(etc / name) for name in absent]}
        return run_module(config_files, options, check=check)

    return with_units


def test_units_are_started_after_the_files_and_stopped_before(with_units, systemd):
    told = systemd(("inactive", "disabled"), ("active", "enabled"), ("inactive", ""))
    result = with_units(
        {"name": "new.service"}, {"name": "old.service", "state": "stopped", "enabled": False}, {"name": "b.timer"}
    )
    assert told.read_text().splitlines() == [
        "disable old.service",
        "stop old.service",
        "enable new.service b.timer a",
        "start new.service b.timer a",
    ]
    assert (result["changed"], result["changed_units"]) == (True, ["b.timer", "new.service", "old.service"])


def test_units_that_are_as_they_should_be_are_left(with_units, systemd):
    systemd()
    with_units()
    told = systemd(("active", "enabled"), ("active", "static"), ("inactive", ""), ("reloading", "enabled"))
    result = with_units(
        {"name": "a.service"},
        {"name": "b.service"},
        {"name": "c.service", "state": "stopped", "enabled": False},
        {"name": "d.service"},
    )
    assert (result["changed"], result["changed_units"], told.read_text()) == (False, [], "")


@pytest.mark.parametrize(("path", "read"), [("units/a.service", ["daemon-reload units"]), ("other", [])])
def test_changed_units_are_read_by_systemd(with_units, systemd, path, read):
    told = systemd(("active", "enabled"))
    assert with_units({"name": "a.service"}, path=path)["changed_units"] == []
    assert told.read_text().splitlines() == read


def test_removed_units_are_forgotten(with_units, systemd, etc):
    (etc / "units").mkdir()
    (etc / "units/b.service").touch()
    told = systemd(("active", "enabled"))
    with_units({"name": "b.service", "state": "stopped", "enabled": False}, absent=["units/b.service"])
    assert told.read_text().splitlines() == ["disable b.service units", "stop b.service units", "daemon-reload a units"]


def test_check_mode_tells_of_units_and_leaves_them(with_units, systemd):
    told = systemd(("inactive", "disabled"))
    assert with_units({"name": "a.service"}, check=True)["changed_units"] == ["a.service"]
    assert told.read_text() == ""


def test_a_unit_that_does_not_start_tells_why(with_units, systemd):
    systemd(("inactive", "enabled"), failing="start")
    result = with_units({"name": "a.service"})
    assert result["msg"].startswith("`systemctl start a.service` ended with status 1: Job failed.\nit said why")
    assert "--unit=a.service" in result["msg"]


def test_a_unit_that_keeps_beginning_is_stopped(with_units, systemd):
    told = systemd(("activating", "disabled"))
    with_units({"name": "a.service", "state": "stopped", "enabled": False})
    assert told.read_text() == "stop a.service\n"


# Units that are older than what they read

RUNS = ("active", "enabled")
STEP = config_files.clock_step() / 1e9  # seconds


@pytest.fixture
def written(etc):
    """When `etc/a` got the content that `with_units` wants, in seconds since the epoch."""
    (etc / "a").write_text("new")
    (etc / "a").chmod(0o644)
    time.sleep(3 * STEP)  # what comes later is told apart
    return (etc / "a").stat().st_ctime_ns / 1e9


@pytest.fixture
def unit(etc):
    """A function that gives an element of the option units. Its paths are below `etc`."""

    def unit(restart_for=(), reload_for=(), name="a.service", **options):
        paths = {"restart_for": restart_for, "reload_for": reload_for}
        return {"name": name, **{key: [str(etc / path) for path in value] for key, value in paths.items()}, **options}

    return unit


@pytest.mark.parametrize("state", ["active", "reloading", "activating"])
@pytest.mark.parametrize(("later", "restarted"), [(-60, True), (-0.001, True), (3 * STEP, False), (60, False)])
def test_a_unit_is_restarted_for_a_file_that_changed_after_its_start_began(
    with_units, systemd, unit, written, state, later, restarted
):
    told = systemd((state, "enabled"), started=written + later)
    result = with_units(unit(["a"]))
    names = ["a.service"] if restarted else []
    assert (result["changed"], result["changed_files"]) == (restarted or state == "activating", [])
    assert (result["restarted_units"], result["reloaded_units"]) == (names, [])
    start = ["start a.service a"] if state == "activating" else []
    assert told.read_text().splitlines() == (["restart a.service a"] if restarted else start)
    assert result["changed_units"] == (["a.service"] if restarted or start else [])


def test_a_time_that_the_clock_of_files_can_not_tell_counts_as_later(with_units, systemd, unit, written):
    systemd(RUNS, started=written + STEP / 2)
    assert with_units(unit(["a"]))["restarted_units"] == ["a.service"]


@pytest.mark.parametrize("check", [True, False])
def test_a_unit_is_restarted_for_what_this_call_changes(with_units, systemd, unit, etc, check):
    (etc / "a").write_text("old")
    (etc / "link").symlink_to("a")
    (etc / "gone").touch()
    (etc / "other").touch()
    states = [RUNS] * 6
    told = systemd(*states, started=time.time() + 60)
    result = with_units(
        unit(["a"], name="file"),
        unit(["link"], name="link"),
        unit(["gone"], name="gone"),
        unit(["."], name="folder"),
        unit(["other"], name="other"),
        unit(["other"], ["a"], name="reread"),
        absent=["gone"],
        check=check,
    )
    assert result["restarted_units"] == ["file", "folder", "gone", "link"]
    assert result["reloaded_units"] == ["reread"]
    assert result["changed_units"] == ["file", "folder", "gone", "link", "reread"]
    done = ["restart file link gone folder a link other", "reload reread a link other"]
    assert told.read_text().splitlines() == ([] if check else done)


def test_removing_a_link_restarts_who_reads_it_and_not_who_reads_the_file(with_units, systemd, unit, etc, written):
    (etc / "link").symlink_to("a")
    (etc / "folder").mkdir()
    (etc / "folder/link").symlink_to("../link")
    systemd(RUNS, RUNS, RUNS, started=time.time() + 60)
    names = [["folder/link"], ["a"], ["link"]]
    result = with_units(*(unit(paths, name=paths[0]) for paths in names), absent=["folder/link"])
    assert result["restarted_units"] == ["folder/link"]


def test_switching_a_link_counts_and_so_does_what_it_leads_to(with_units, systemd, unit, etc, written):
    def restarted():
        return with_units(unit(["current"]))["restarted_units"] == ["a.service"]

    (etc / "releases").mkdir()
    for version in ("1", "2"):
        (etc / "releases" / version).mkdir()
    (etc / "current").symlink_to("releases/1")
    time.sleep(3 * STEP)
    systemd(RUNS, started=time.time())
    assert not restarted()
    time.sleep(3 * STEP)
    (etc / "current").unlink()
    (etc / "current").symlink_to("releases/2")
    assert restarted()
    time.sleep(3 * STEP)
    systemd(RUNS, started=time.time())
    assert not restarted()
    (etc / "releases/1/new").touch()
    assert not restarted()
    (etc / "releases/2/new").touch()
    assert restarted()


def test_a_change_of_permissions_counts(with_units, systemd, unit, etc, written):
    (etc / "key").touch()
    time.sleep(3 * STEP)
    systemd(RUNS, started=time.time())
    os.utime(etc / "key", (0, 0))  # an old modification time hides nothing
    assert with_units(unit(["key"]))["restarted_units"] == ["a.service"]


def test_what_is_not_there_is_passed_over(with_units, systemd, unit, etc, written):
    (etc / "dangling").symlink_to("nowhere")
    systemd(RUNS, started=time.time() + 60)
    assert with_units(unit(["never", "a/never", "dangling"], ["never"]))["changed"] is False
    systemd(RUNS, started=written - 60)
    assert with_units(unit(["dangling"]))["restarted_units"] == ["a.service"]


def test_a_time_to_come_tells_nothing_yet(with_units, systemd, unit, written, monkeypatch):
    systemd(RUNS, started=written - 60)
    monkeypatch.setattr(config_files.time, "time_ns", lambda: round((written - 10) * 1e9))
    # The clock was set back, and so were all of systemd's times.
    monkeypatch.setattr(config_files, "boot_time", lambda: round((time.time() - time.monotonic() - 60) * 1e9))
    assert with_units(unit(["a"]))["changed"] is False


def test_a_unit_that_does_not_run_is_only_started(with_units, systemd, unit, written):
    told = systemd(("inactive", "enabled"), ("failed", "enabled"), ("inactive", ""), started=written - 60)
    result = with_units(
        unit(["a"], name="a.service"),
        unit([], ["a"], name="b.service"),
        unit(["a"], name="c.service", state="stopped", enabled=False),
    )
    assert (result["changed_units"], result["restarted_units"]) == (["a.service", "b.service"], [])
    assert told.read_text() == "start a.service b.service a\n"


def test_a_unit_that_is_to_stop_is_not_restarted(with_units, systemd, unit, written):
    told = systemd(RUNS, started=written - 60)
    with_units(unit(["a"], ["a"], state="stopped"))
    assert told.read_text() == "stop a.service a\n"


@pytest.mark.parametrize(
    ("started", "reloaded", "outcome", "expected"),
    [
        (-60, None, "success", True),
        (-1, None, "success", True),  # while it started
        (1, None, "success", False),
        (-60, -30, "success", True),
        (-60, 30, "success", False),
        (-60, 30, "exit-code", True),  # a reload that failed
        (1, 30, "exit-code", False),
    ],
)
def test_a_unit_is_reloaded_for_a_file_that_changed_after_its_last_reload(
    with_units, systemd, unit, written, started, reloaded, outcome, expected
):
    further = {"ReloadResult": outcome}
    if reloaded:
        further["StateChangeTimestampMonotonic"] = microseconds(written + reloaded)
    told = systemd(RUNS, started=written + started, further=[further])
    result = with_units(unit(["never"], ["a"]))
    names = ["a.service"] if expected else []
    assert (result["reloaded_units"], result["changed_units"], result["restarted_units"]) == (names, names, [])
    assert told.read_text() == ("reload a.service a\n" if expected else "")


def test_a_restart_is_a_reload_too(with_units, systemd, unit, written):
    told = systemd(RUNS, started=written - 60)
    result = with_units(unit(["a"], ["a"]))
    assert (result["restarted_units"], result["reloaded_units"]) == (["a.service"], [])
    assert told.read_text() == "restart a.service a\n"


def test_a_timer_changes_its_state_without_a_reload(with_units, systemd, unit, written):
    elapsed = {"StateChangeTimestampMonotonic": microseconds(written + 30)}
    told = systemd(RUNS, started=written - 60, further=[elapsed])
    assert with_units(unit(["a"], name="a.timer"))["restarted_units"] == ["a.timer"]
    assert told.read_text() == "restart a.timer a\n"


def test_a_unit_that_an_interrupted_call_left_unread_is_read_before_its_restart(with_units, systemd, unit, written):
    unread = {"NeedDaemonReload": "yes"}
    told = systemd(RUNS, started=written - 60, further=[unread])
    with_units(unit(["a"]))
    assert told.read_text().splitlines() == ["daemon-reload a", "restart a.service a"]
    told.write_text("")
    systemd(RUNS, started=written + 60, further=[unread])
    assert with_units(unit(["a"]))["changed"] is False
    assert told.read_text() == ""


def test_a_start_is_told_apart_from_what_this_call_writes_before_it(with_units, systemd, unit, tmp_path, monkeypatch):
    monkeypatch.setattr(config_files, "clock_step", lambda: 200_000_000)
    systemd(("inactive", "enabled"))
    tool = tmp_path / "path/systemctl"
    tool.write_text(tool.read_text().replace("echo", f"date +%s.%N > {tmp_path}/began; echo", 1))
    with_units(unit(["a"]))
    systemd(RUNS, started=float((tmp_path / "began").read_text()))
    assert with_units(unit(["a"]))["changed"] is False


def test_a_unit_that_does_not_reload_tells_why(with_units, systemd, unit, written):
    systemd(RUNS, started=written - 60, failing="reload")
    assert "`systemctl reload a.service` ended with status 1: Job failed." in with_units(unit([], ["a"]))["msg"]

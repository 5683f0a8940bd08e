# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the actions source_artifact and source_release: the life of a release, with a real ansible-playbook."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def life(root, run_tasks, make_source):
    """The steps in the life of a release, by name.

    Releases 1 and 2 are compiled in it. The cache has a damaged 3 and an undescribed 4 from the beginning.
    """
    sources = {version: make_source(root / f"greet-{version}-source.tar.gz", version) for version in ("1", "2")}
    broken = make_source(root / "broken.tar.gz", files={"configure": "#!/bin/sh\necho it is broken\nexit 1\n"})
    (root / "cache").mkdir()
    for version in ("3", "4"):
        (root / f"cache/greet-{version}.tar.gz").write_text("damaged")
    (root / "cache/greet-3.tar.gz.json").write_text(json.dumps({"sha256": "0" * 64, "size": 7}))

    def compile(name, version, **extra):
        options = {
            "name": "greet",
            "archive": f"{root}/greet-{version}-source.tar.gz",
            "sha256": sources.get(version, broken),
            "artifact": f"{root}/cache/greet-{version}.tar.gz",
            "prefix": f"/opt/greet/{version}",
        }
        return {"name": name, "tenfold.stack.source_artifact": options, **extra}

    def install(name, *versions, options=(), cache="cache", **extra):
        releases = [
            {"name": f"greet{number or ''}", "prefix": f"{root}/opt/greet{number or ''}", "release": version,
             "artifact": f"greet-{version}.tar.gz"}
            for number, version in enumerate(versions)
        ]  # fmt: skip
        given = {"releases": releases, "cache": f"{root}/{cache}", **dict(options)}
        return {"name": name, "tenfold.stack.source_release": given, **extra}

    check = {"check_mode": True}
    fail = compile("compile what fails", "5")
    fail["tenfold.stack.source_artifact"]["archive"] = f"{root}/broken.tar.gz"
    return run_tasks(
        root,
        [
            install("install what nobody compiled", "1"),
            install("install what nobody compiled, checking", "1", **check),
            compile("compile, checking", "1", **check),
            compile("compile", "1"),
            install("install, checking", "1", **check),
            install("install", "1"),
            install("install again", "1", cache="nowhere"),
            install("install again, checking", "1", cache="nowhere", **check),
            install("install one that is there and one that is not", "1", "2", options={"missing_ok": "yes"}),
            install("install one in the cache and one that is not", "2", "1", options={"missing_ok": True}),
            install("install what is not there, not allowed", "2", "1", options={"missing_ok": "no"}),
            compile("compile another", "2"),
            install("install another, not for use", "2", options={"activate": False}),
            install("install another, checking", "2", cache="nowhere", **check),
            install("switch to another", "2", cache="nowhere"),
            install("install two at once", "2", "1"),
            install("go back, checking", "1", cache="nowhere", **check),
            install("go back", "1", cache="nowhere"),
            install("install a damaged one", "3"),
            install("install an undescribed one", "4"),
            fail,
            {"name": "install without a cache", "tenfold.stack.source_release": {"releases": []}},
            {"name": "compile without an archive", "tenfold.stack.source_artifact": {"name": "greet"}},
        ],
    )


def greeting(root):
    return subprocess.run([root / "opt/greet/current/bin/greet"], capture_output=True, text=True).stdout


def told(step):
    """The parts of a result that tell what was done."""
    return {key: step.result[key] for key in ("changed", "installed", "switched", "missing")}


INSTALLED = {"changed": True, "installed": ["greet"], "switched": ["greet"], "missing": []}
SWITCHED = {**INSTALLED, "installed": []}
UNCHANGED = {"changed": False, "installed": [], "switched": [], "missing": []}

LEAVE_ALL_AS_IT_WAS = [
    "install what nobody compiled",
    "install what nobody compiled, checking",
    "compile, checking",
    "install, checking",
    "install again",
    "install again, checking",
    "install one that is there and one that is not",
    "install one in the cache and one that is not",
    "install what is not there, not allowed",
    "install another, checking",
    "go back, checking",
    "install a damaged one",
    "install an undescribed one",
    "compile what fails",
    "install without a cache",
    "compile without an archive",
]


@pytest.mark.parametrize("name", LEAVE_ALL_AS_IT_WAS)
def test_these_leave_all_as_it_was(life, name):
    assert life[name].after == life[name].before


def test_nothing_temporary_is_ever_left(life):
    assert [path for step in life.values() for path in step.after if path.startswith("tmp/") or "/." in path] == []


def test_compiling_puts_the_artifact_and_its_description_to_the_cache(life, root):
    assert life["compile, checking"].result["changed"] is True
    step = life["compile"]
    assert step.result["changed"] is True
    assert step.new == ["cache/greet-1.tar.gz", "cache/greet-1.tar.gz.json"]
    about = json.loads((root / "cache/greet-1.tar.gz.json").read_text())
    assert about == {"sha256": sha256_of(root / "cache/greet-1.tar.gz"), "size": step.result["size"]}
    assert about["sha256"] == step.result["sha256"]


def test_a_first_installation(life):
    assert told(life["install, checking"]) == INSTALLED
    step = life["install"]
    assert told(step) == INSTALLED
    assert step.new == [
        "opt/greet/1/bin/greet",
        "opt/greet/1/bin/hello",
        "opt/greet/1/share/arguments",
        "opt/greet/current",
    ]
    assert step.after["opt/greet/current"] == "1"


@pytest.mark.parametrize("name", ["install again", "install again, checking"])
def test_a_second_run_changes_nothing(life, name):
    assert told(life[name]) == UNCHANGED


def test_installing_without_use(life):
    step = life["install another, not for use"]
    assert told(step) == {**INSTALLED, "switched": []}
    assert {path.split("/")[2] for path in step.new} == {"2"}


def test_switching_changes_one_link(life):
    assert told(life["install another, checking"]) == SWITCHED
    step = life["switch to another"]
    assert told(step) == SWITCHED
    assert (step.new, step.after["opt/greet/current"]) == (["opt/greet/current"], "2")


def test_only_what_is_missing_is_installed(life):
    step = life["install two at once"]
    assert told(step) == {"changed": True, "installed": ["greet1"], "switched": ["greet1"], "missing": []}
    assert {path.split("/")[1] for path in step.new} == {"greet1"}


def test_going_back_needs_no_artifact(life, root):
    assert told(life["go back, checking"]) == SWITCHED
    step = life["go back"]
    assert told(step) == SWITCHED
    assert (step.new, step.after["opt/greet/current"]) == (["opt/greet/current"], "1")
    assert greeting(root) == "greetings from 1\n"


def test_a_missing_artifact_is_told(life, root):
    result = life["install what nobody compiled"].result
    assert result["failed"] is True
    assert f"there is no artifact greet-1.tar.gz in {root}/cache" in result["msg"]
    told_alone = life["install what is not there, not allowed"].result["msg"]
    assert f"there is no artifact greet-2.tar.gz in {root}/cache" in told_alone


def test_a_missing_artifact_may_still_be_compiled_in_check_mode(life):
    result = life["install what nobody compiled, checking"].result
    assert not result.get("failed")
    assert (result["changed"], result["missing"], result["installed"]) == (True, ["greet-1.tar.gz"], [])


@pytest.mark.parametrize(
    "name", ["install one that is there and one that is not", "install one in the cache and one that is not"]
)
def test_what_is_missing_may_be_allowed(life, name):
    assert told(life[name]) == {**UNCHANGED, "missing": ["greet-2.tar.gz"]}


def test_a_damaged_artifact_is_told(life):
    result = life["install a damaged one"].result
    assert result["failed"] is True
    assert "the artifact greet-3.tar.gz was damaged on its way" in result["msg"]


def test_an_artifact_without_its_description_is_told(life, root):
    result = life["install an undescribed one"].result
    assert result["failed"] is True
    assert f"the artifact {root}/cache/greet-4.tar.gz has no description beside it" in result["msg"]


def test_a_failing_compilation_is_told(life):
    result = life["compile what fails"].result
    assert result["failed"] is True
    assert result["msg"].splitlines()[-1] == "it is broken"


def test_missing_options_are_told(life):
    assert "missing required arguments: cache" in life["install without a cache"].result["msg"]
    assert "missing required arguments: archive, artifact" in life["compile without an archive"].result["msg"]

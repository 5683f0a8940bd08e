# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the actions source_artifact and source_release: the life of a release, with a real ansible-playbook."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.tenfold.stack.plugins.action import source_release


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def life(root, run_tasks, make_source):
    """The steps in the life of a release, by name.

    Releases 1 and 2 are compiled in it. The cache has a damaged 3 from the beginning.
    """
    sources = {"1": make_source(root / "greet-1-source.tar.gz", "1")}
    # Too large to be sent with the call, however well it is compressed.
    large = {"greet.sh": f"#!/bin/sh\necho greetings from @version@\n# {os.urandom(2 << 20).hex()}\n"}
    sources["2"] = make_source(root / "greet-2-source.tar.gz", "2", files=large)
    broken = make_source(root / "broken.tar.gz", files={"configure": "#!/bin/sh\necho it is broken\nexit 1\n"})
    (root / "cache").mkdir()
    (root / "cache/greet-3.tar.gz").write_text("damaged")
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
            compile("compile, checking", "1", **check),
            compile("compile", "1"),
            install("install, checking", "1", **check),
            install("install", "1"),
            install("install again", "1", cache="nowhere"),
            install("install also what nobody compiled, allowed", "1", "2", options={"missing_ok": True}),
            compile("compile another", "2"),
            install("install another", "2"),
            install("go back, checking", "1", cache="nowhere", **check),
            install("go back", "1", cache="nowhere"),
            install("install a damaged one", "3"),
            fail,
        ],
    )


def greeting(root):
    return subprocess.run([root / "opt/greet/current/bin/greet"], capture_output=True, check=False, text=True).stdout


def told(step):
    """The parts of a result that tell what was done."""
    return {key: step.result[key] for key in ("changed", "installed", "switched", "missing")}


INSTALLED = {"changed": True, "installed": ["greet"], "switched": ["greet"], "missing": []}
SWITCHED = {**INSTALLED, "installed": []}
UNCHANGED = {"changed": False, "installed": [], "switched": [], "missing": []}

LEAVE_ALL_AS_IT_WAS = [
    "install what nobody compiled",
    "compile, checking",
    "install, checking",
    "install again",
    "install also what nobody compiled, allowed",
    "go back, checking",
    "install a damaged one",
    "compile what fails",
]


@pytest.mark.parametrize("name", LEAVE_ALL_AS_IT_WAS)
def test_these_leave_all_as_it_was(life, name):
    assert life[name].after == life[name].before


FAIL = ["install what nobody compiled", "install a damaged one", "compile what fails"]


def test_only_these_fail(life):
    assert [name for name, step in life.items() if step.failed] == FAIL


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


def test_a_second_run_needs_no_artifact_and_changes_nothing(life):
    assert told(life["install again"]) == UNCHANGED


def test_a_new_version_lies_beside_the_old_one(life, root):
    step = life["install another"]
    assert told(step) == INSTALLED
    assert {path.split("/")[2] for path in step.new} == {"2", "current"}
    assert step.after["opt/greet/current"] == "2"
    assert (root / "cache/greet-2.tar.gz").stat().st_size > source_release.SENT_WITH_THE_CALL


def test_going_back_needs_no_artifact(life, root):
    assert told(life["go back, checking"]) == SWITCHED
    step = life["go back"]
    assert told(step) == SWITCHED
    assert (step.new, step.after["opt/greet/current"]) == (["opt/greet/current"], "1")
    assert greeting(root) == "greetings from 1\n"


def test_a_missing_artifact_is_told(life, root):
    message = life["install what nobody compiled"].result["msg"]
    assert f"there is no artifact greet-1.tar.gz in {root}/cache" in message


def test_a_missing_artifact_may_be_allowed(life):
    result = told(life["install also what nobody compiled, allowed"])
    assert result == {**UNCHANGED, "missing": ["greet-2.tar.gz"]}


def test_a_damaged_artifact_is_told(life):
    result = life["install a damaged one"].result
    assert "the artifact greet-3.tar.gz was damaged on its way" in result["msg"]


def test_a_failing_compilation_is_told(life):
    result = life["compile what fails"].result
    assert result["msg"].splitlines()[-1] == "it is broken"


# What the action decides, with a module that only says what is missing


@pytest.fixture
def act(tmp_path, monkeypatch):
    """A function that runs the action on a host that lacks some artifacts.

    It gives the result, the releases of each call of the module, and the files that were transferred.
    """
    (tmp_path / "one").write_text("artifact")
    (tmp_path / "one.json").write_text('{"size": 1, "sha256": "2"}')
    (tmp_path / "undescribed").write_text("artifact")

    def act(*missing, releases=("one", "two", "undescribed"), check=False, limit=0, **options):
        calls = []
        sent = {}
        described = [{"name": f"name of {name}", "artifact": name} for name in releases]
        args = {"releases": described, "cache": str(tmp_path), **options}
        task = SimpleNamespace(args=args, check_mode=check, async_val=0, environment=None, diff=False)
        shell = SimpleNamespace(tmpdir=None, join_path=os.path.join)
        action = source_release.ActionModule(task, SimpleNamespace(_shell=shell), None, None, None, None)

        def execute(module_args, task_vars):
            calls.append(module_args["releases"])
            lacking = [
                one["artifact"]
                for one in calls[-1]
                if one["artifact"] in missing and not {"archive", "content"} & set(one)
            ]
            return {"changed": False, "missing": lacking, "installed": []}

        monkeypatch.setattr(source_release, "SENT_WITH_THE_CALL", limit)
        monkeypatch.setattr(action, "_execute_module", execute)
        monkeypatch.setattr(action, "_make_tmp_path", lambda: "/remote")
        monkeypatch.setattr(action, "_fixup_perms2", lambda paths, execute: None)
        monkeypatch.setattr(action, "_transfer_file", lambda local, remote: sent.update({local: remote}))
        return action.run(task_vars={}), calls, sent

    return act


def test_nothing_missing_is_one_call(act):
    result, calls, sent = act()
    assert (result["missing"], len(calls), sent) == ([], 1, {})


def test_only_what_is_missing_is_brought(act, tmp_path):
    result, (_look, install), sent = act("one", releases=("one", "two"))
    assert (result["missing"], sent) == ([], {f"{tmp_path}/one": "/remote/one"})
    assert install == [
        {"name": "name of one", "artifact": "one", "archive": "/remote/one", "needs": {"size": 1, "sha256": "2"}},
        {"name": "name of two", "artifact": "two"},
    ]


def test_a_small_one_comes_with_the_call(act):
    result, (only,), sent = act("one", releases=("one", "two"), limit=len("artifact"))
    assert (result["missing"], sent) == ([], {})
    content = base64.b64encode(b"artifact").decode()
    assert only == [
        {"name": "name of one", "artifact": "one", "content": content, "needs": {"size": 1, "sha256": "2"}},
        {"name": "name of two", "artifact": "two"},
    ]


@pytest.mark.parametrize("allowed", [True, "yes", "true"])
def test_where_some_are_allowed_to_be_missing_none_is_brought(act, allowed):
    result, calls, sent = act("one", "two", missing_ok=allowed)
    assert (result["changed"], result["missing"], len(calls), sent) == (False, ["two"], 1, {})


@pytest.mark.parametrize("allowed", [False, "no", "false", None])
def test_where_none_is_allowed_to_be_missing_it_is_told(act, tmp_path, allowed):
    with pytest.raises(AnsibleActionFail, match=f"there is no artifact two in {tmp_path}: "):
        act("one", "two", missing_ok=allowed)


def test_check_mode_tells_what_it_would_bring(act):
    result, calls, sent = act("one", "two", check=True)
    assert (result["missing"], result["installed"], len(calls), sent) == (["two"], ["name of one"], 1, {})


def test_an_artifact_without_its_description_is_told(act, tmp_path):
    with pytest.raises(AnsibleActionFail, match=f"the artifact {tmp_path}/undescribed has no description beside it"):
        act("undescribed")


def test_the_cache_may_be_below_the_home_folder(act, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert act("one", cache="~")[2] == {f"{tmp_path}/one": "/remote/one"}

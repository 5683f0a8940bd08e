# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the actions share: tasks that a real ansible-playbook runs on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.tenfold.stack.plugins.module_utils import source_release

# Notes each task's result, and what files there are then, as a line of JSON.
CALLBACK = """
import json, os
from pathlib import Path
from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "note"

    def note(self, result, failed=False):
        root = Path(os.environ["NOTE_ROOT"])
        files = {
            str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.stat().st_mtime_ns
            for path in root.rglob("*") if path.is_symlink() or not path.is_dir()
        }
        name = getattr(result, "task_name", None) or result._task.get_name()
        found = getattr(result, "result", None) or result._result
        with open(os.environ["NOTE_FILE"], "a") as file:
            file.write(json.dumps([name, failed, found, files], default=str) + "\\n")

    v2_runner_on_ok = note

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.note(result, failed=True)
"""


@dataclasses.dataclass
class Step:
    """A task that was run."""

    failed: bool
    result: dict[str, Any]
    before: dict[str, str | int]  # files below the root: path -> time of change, or what a link points to
    after: dict[str, str | int]

    @property
    def new(self) -> list[str]:
        """Paths of the files that it made or changed."""
        return sorted(path for path, state in self.after.items() if self.before.get(path) != state)


@pytest.fixture(scope="session")
def run_tasks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, list[dict[str, Any]]], dict[str, Step]]:
    """A function that runs tasks, each of which may fail, and gives the steps by the names of the tasks.

    Temporary files go below the root, too.
    """

    def run(root: Path, tasks: list[dict[str, Any]]) -> dict[str, Step]:
        folder = tmp_path_factory.mktemp("play")
        (folder / "callback").mkdir()
        (folder / "callback/note.py").write_text(CALLBACK)
        (folder / "ansible.cfg").touch()
        for tool in ("cc", "strip"):  # which the tiny project does not need
            (folder / tool).write_text("#!/bin/sh\n")
            (folder / tool).chmod(0o755)
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "tasks": [{"ignore_errors": True, **task} for task in tasks],
        }
        (folder / "play.yml").write_text(json.dumps([play]))  # which is YAML, too
        collections = str(source_release.__file__).partition("/ansible_collections/")[0]
        environment = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": collections,
            "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
            "ANSIBLE_REMOTE_TMP": str(root / "tmp"),
            "ANSIBLE_CALLBACK_PLUGINS": str(folder / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "note",
            "NOTE_FILE": str(folder / "notes"),
            "NOTE_ROOT": str(root),
        }
        files: dict[str, str | int] = {
            str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.stat().st_mtime_ns
            for path in root.rglob("*")
            if path.is_symlink() or not path.is_dir()
        }
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", "play.yml"]
        command += ["-e", f"ansible_python_interpreter={sys.executable}"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, text=True)
        steps = {}
        for line in (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else ():
            name, failed, result, after = json.loads(line)
            steps[name] = Step(failed, result, files, after)
            files = after
        assert list(steps) == [task["name"] for task in tasks], done.stdout + done.stderr
        return steps

    return run

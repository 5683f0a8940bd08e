# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of several scenarios share: the hosts by name, plays with other variables, and waiting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from testinfra.backend.ansible import AnsibleBackend
from testinfra.backend.base import CommandResult

sys.path.insert(0, str(Path(__file__).parent / "shared/connection"))
import namespaces  # from where Ansible looks for it

INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"].rpartition("/")[0]
SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", re.MULTILINE)
FAILURE = re.compile(r"^(?:fatal|failed): \[(\S+?)(?: -> \S+)?\].*=> *\n((?:[ \t].*\n|\n(?=[ \t]))*)", re.MULTILINE)


def run_in_namespaces(self: AnsibleBackend, command: str, *arguments: str, **_options: Any) -> CommandResult:
    """Run a command on a test host. Testinfra would run Ansible for it, as it doesn't know the lab's connection."""
    command = self.get_command(command, *arguments)
    variables = self.get_variables()
    done = namespaces.run(variables["ansible_host"], variables.get("ansible_user", "root"), command)
    return self.result(done.returncode, self.encode(command), done.stdout, done.stderr)


AnsibleBackend.run = run_in_namespaces


class Run:
    """What a run of a playbook said: all of it, or of one host."""

    def __init__(self, output: str, told: str, changed: int, failed: bool) -> None:
        self.output = output
        self.told = " ".join(told.split())
        self.failed = failed
        self._changed = changed

    @property
    def changes(self) -> int:
        """How many tasks changed something; none failed."""
        assert not self.failed, self.output
        return self._changed

    @property
    def refusal(self) -> str:
        """What was told by a run that failed."""
        assert self.failed, self.output
        return self.told

    def on(self, host: str) -> Run:
        """Give what became of a host. It tells why a task failed there."""
        ((changed, unreachable, failed),) = [found[1:] for found in RECAP.findall(self.output) if found[0] == host]
        failures = [yaml.safe_load(text) for name, text in FAILURE.findall(self.output) if name == host]
        told = " ".join(str(value) for failure in failures for value in failure.values())
        return Run(self.output, told, int(changed), (unreachable, failed) != ("0", "0"))


Play = Callable[..., Run]
Story = Generator[Mapping[str, Any], Run, None]


@pytest.fixture(scope="session")
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Run a playbook of the scenario with other variables: on all hosts, or on those only that by_host names."""
    by_host_inventory = tmp_path_factory.mktemp("inventory") / "by_host.json"

    def play(
        name: str, *arguments: str, by_host: Mapping[str, Mapping[str, Any]] | None = None, **variables: Any
    ) -> Run:
        command = ["ansible-playbook", f"--inventory={INVENTORY}", str(SCENARIO / f"{name}.yml"), *arguments]
        if variables:
            command.append(f"--extra-vars={json.dumps(variables)}")
        if by_host:
            by_host_inventory.write_text(json.dumps({"all": {"hosts": by_host}}))
            command += [f"--inventory={by_host_inventory}", f"--limit={','.join(by_host)},localhost"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
        )
        output = done.stdout + done.stderr
        changed = sum(int(found[1]) for found in RECAP.findall(output))
        return Run(output, output, changed, done.returncode != 0)

    return play


@pytest.fixture(scope="session")
def side_by_side(play: Play) -> Callable[..., None]:
    """Run the stories of some hosts. A story yields the variables of its host's next play, and gets what became of it.

    A play of all takes hardly longer than that of one.
    """

    def side_by_side(name: str, stories: Mapping[str, Story]) -> None:
        steps = {host: next(story) for host, story in stories.items()}
        while steps:
            run = play(name, by_host=steps)
            for host in list(steps):
                try:
                    steps[host] = stories[host].send(run.on(host))
                except StopIteration:
                    del steps[host]

    return side_by_side


@pytest.fixture(scope="session")
def hosts() -> Mapping[str, Any]:
    """The test hosts by name."""
    found = testinfra.get_hosts(["ansible://all"], ansible_inventory=INVENTORY)
    return {host.backend.host: host for host in found}


@pytest.fixture(scope="session")
def until() -> Callable[..., float]:
    """Wait until something is true; give how long that took."""

    def until(what: Callable[[], Any], seconds: float, every: float = 0.2) -> float:
        start = time.monotonic()
        while not what():
            assert time.monotonic() - start < seconds, f"not within {seconds} s"
            time.sleep(every)
        return time.monotonic() - start

    return until

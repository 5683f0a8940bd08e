# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a whole: linted, typed, documented, and free of litter when it is built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COLLECTION = "tenfold.stack"

# Where somebody's files lie, which no file may name.
MACHINE_PATHS = re.compile(rb"(?<![\w.~-])/(?:home/(?!memcached\b|tester\b)|Users/)\w")

# What the built collection holds: whole folders and single files.
SHIPPED = re.compile(
    r"(plugins|roles|playbooks|examples|meta)/.+|changelogs/(changelog|config)\.yaml|LICENSE|README\.md|CHANGELOG\.rst"
    r"|(FILES|MANIFEST)\.json"
)
LITTER = re.compile(r"\.py[co]$|~$|\.(swp|orig|rej|bak|log|tar\.gz)$|(^|/)(__pycache__|\.)|/tests?/")


def run(*command: str | Path) -> str:
    """Run a tool of the environment that runs the tests; give what it said, which a failure shows.

    Every tool gets the checkout under its collection name from the environment, as `make test` sets it.
    """
    tools = Path(sys.executable).parent
    done = subprocess.run(
        [tools / command[0], *command[1:]],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def files_of_the_repository() -> list[Path]:
    """Every file that is, or is about to be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_ansible_lint_passes() -> None:
    run("ansible-lint", "--offline", "--config-file", ".config/ansible-lint.yml", "--nocolor", "-q")


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_passes(command: str) -> None:
    run("ruff", *command.split(), ".")


def test_types_are_right() -> None:
    run("mypy", "plugins", "tools", "tests", "roles/mail_report/files/mailreport/mailreport")


def test_role_pages_are_current() -> None:
    run("python", "tools/role_pages.py", "--check")


def test_examples_of_the_roles_are_plays(tmp_path: Path) -> None:
    for spec in ROOT.glob("roles/*/meta/argument_specs.yml"):
        play = tmp_path / f"{spec.parts[-3]}.yml"
        play.write_text(yaml.safe_load(spec.read_text())["argument_specs"]["main"]["examples"])
        run("ansible-playbook", "--syntax-check", "-i", "localhost,", play)


def test_changelog_is_in_order() -> None:
    run("antsibull-changelog", "lint")
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    assert f"\nv{version}\n" in (ROOT / "CHANGELOG.rst").read_text()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("module", [path.stem for path in ROOT.glob("plugins/modules/*.py")]),
        ("filter", [path.stem for path in ROOT.glob("plugins/filter/*.yml")]),
        ("role", [path.name for path in ROOT.glob("roles/*")]),
    ],
)
def test_documentation_renders(kind: str, names: list[str]) -> None:
    assert names
    shown = run("ansible-doc", "--type", kind, *(f"{COLLECTION}.{name}" for name in names))
    # ansible-doc ends well also when it knows nothing of a name.
    assert [name for name in names if f"{COLLECTION}.{name}" not in shown] == []
    assert "WARNING" not in shown


def test_built_collection_holds_what_it_should(tmp_path: Path) -> None:
    run("ansible-galaxy", "collection", "build", "--output-path", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        shipped = {member.name for member in content if member.isfile()}
    assert sorted(name for name in shipped if not SHIPPED.fullmatch(name) or LITTER.search(name)) == []
    wanted = {"README.md", "LICENSE", "CHANGELOG.rst", "meta/runtime.yml"}
    # The example site's inventory ships, too: it shows the groups and variables that the playbooks look for.
    wanted.add("playbooks/inventory/site.yml")
    for path in files_of_the_repository():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("plugins/", "roles/", "playbooks/", "examples/")):
            wanted.add(name)
    assert sorted(wanted - shipped) == []


def test_no_file_names_a_path_of_a_machine() -> None:
    found = []
    for path in files_of_the_repository():
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if MACHINE_PATHS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace').strip()}")
    assert found == []

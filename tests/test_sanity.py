# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All of ansible-test's sanity tests, with nothing but the package index.

Not run here: compile and import with other Pythons than this one. Ruff, told that modules run with Python
3.9, refuses newer syntax. Were a test to be left out for any other reason, this one would fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.release import __version__ as ansible_version
from ansible_test._internal.python_requirements import get_venv_packages
from ansible_test._internal.util import ANSIBLE_TEST_DATA_ROOT

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PIP = get_venv_packages(SimpleNamespace(version=PYTHON))["pip"]

# What ansible-test judges: what ships, and its unit tests. The rest are programs of this repository, which
# ruff and mypy look at.
PARTS = ["LICENSE", "*.md", "*.rst", "galaxy.yml", "changelogs", "meta", "playbooks", "plugins", "roles"]
PARTS += ["tests/sanity", "tests/unit"]

# ansible-test makes environments without pip and fetches get-pip.py, which brings pip, from a host of Ansible's
# own. Where a file of that name lies in its cache, it takes that.
GET_PIP = """\
import runpy, sys
sys.path.insert(0, {wheel!r})
sys.argv = ["pip", "install", {requirement!r}]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def copy_collection(to: Path) -> None:
    """Copy the collection to a folder with the path that its name asks for: ansible-test takes no links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(to, ignore_errors=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():  # not deleted since
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    # A repository of its own: in that of the checkout the cache is ignored.
    subprocess.run(["git", "init", "--quiet", to], check=True)


def make_home(home: Path) -> None:
    """Make a home directory in which ansible-test finds all the packages that it installs."""
    wheels = home / "wheels"
    complete = wheels / f"complete-{ansible_version}-{PYTHON}"
    if not complete.exists():
        shutil.rmtree(home, ignore_errors=True)
        requirements = Path(ANSIBLE_TEST_DATA_ROOT).glob("requirements/sanity.*.txt")
        command = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={wheels}", f"pip=={PIP}"]
        subprocess.run([*command, *(f"--requirement={file}" for file in requirements)], check=True)
        complete.touch()
    get_pip = home / f".ansible/test/cache/get_pip_{PIP.replace('.', '_')}.py"
    get_pip.parent.mkdir(parents=True, exist_ok=True)
    get_pip.write_text(GET_PIP.format(wheel=str(wheels / f"pip-{PIP}-py3-none-any.whl"), requirement=f"pip=={PIP}"))
    # ansible-test passes none of pip's environment variables on.
    config = home / ".config/pip/pip.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(f"[global]\nquiet = 1\nno-index = true\nfind-links = {wheels}\n")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that keeps ansible-test's environments from one run to the next."""
    given = os.environ.get("TENFOLD_CACHE")
    return Path(given) / "sanity" if given else tmp_path_factory.mktemp("sanity")


def test_sanity(cache: Path) -> None:
    collection = cache / "ansible_collections/tenfold/stack"
    copy_collection(collection)
    make_home(cache / "home")
    ansible_test = str(Path(sys.executable).with_name("ansible-test"))
    done = subprocess.run(
        [ansible_test, "sanity", "--local", "--python", PYTHON, "--color", "no"],
        cwd=collection,
        env=os.environ | {"HOME": str(cache / "home"), "XDG_CONFIG_HOME": str(cache / "home/.config")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "Skipping" not in done.stdout, done.stdout

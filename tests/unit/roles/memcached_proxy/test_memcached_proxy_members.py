# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the members that DNS tells are believed."""

from __future__ import annotations

import hashlib
import runpy
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = ROOT / "roles/memcached_proxy/files/usr/local/libexec/memcached_proxy_members.py"
OLD = [("192.0.2.1", 11211), ("192.0.2.2", 11211)]
NEW = [*OLD, ("192.0.2.10", 11211)]


@pytest.fixture(scope="module")
def program():
    """The program; it asks DNS in its class Dns only, which the scenario tries with a real name server."""
    names = ["dns", "dns.exception", "dns.resolver"]
    missing = [name for name in names if name not in sys.modules]
    sys.modules.update({name: types.ModuleType(name) for name in missing})
    try:
        yield types.SimpleNamespace(**runpy.run_path(str(PROGRAM)))
    finally:
        for name in missing:
            del sys.modules[name]


class Script:
    """Answers one after the other; None stands for a failed one."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def members(self, pool, port):
        answer = self.answers.pop(0)
        if answer is None:
            raise LookupError("SERVFAIL")
        return answer


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([OLD], OLD),  # the first is taken at once: there's nothing to lose
        ([OLD, NEW, NEW], OLD),
        ([OLD, NEW, NEW, NEW], NEW),
        ([OLD, NEW, NEW, OLD, NEW, NEW], OLD),  # in a row
        ([OLD, NEW, NEW, None, NEW, NEW], OLD),
        ([OLD, None, None, None, None], OLD),
        ([OLD, list(reversed(OLD)), list(reversed(OLD)), list(reversed(OLD))], OLD),  # the order does not count
        ([None], None),
    ],
)
def test_believes_what_is_told_three_times_in_a_row(program, tmp_path, answers, expected):
    pool = program.Pool(tmp_path, "cache.test", 11211, 3)
    source = Script(*answers)
    for _answer in answers:
        pool.look(source)
    assert pool.known == (expected is not None)
    if expected:
        assert (tmp_path / "cache.test").read_text() == program.render(expected)
        assert [path.name for path in tmp_path.iterdir()] == ["cache.test"]


def test_the_digest_is_that_of_the_sorted_lines(program):
    lines = "192.0.2.1 11211\n192.0.2.10 11211\n192.0.2.2 11211\n"
    assert program.render(NEW) == f"# {hashlib.sha256(lines.encode()).hexdigest()}\n{lines}"


def test_tells_a_failure_once(program, tmp_path, capsys):
    pool = program.Pool(tmp_path, "cache.test", 11211, 3)
    source = Script(OLD, None, None, OLD, None)
    for _time in range(5):
        pool.look(source)
    assert capsys.readouterr().err.count("stay in use: SERVFAIL") == 2

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let test hosts keep what Python compiled of Ansible's modules.

Ansible sends a module as a ZIP archive, and Python compiles all of it twice each time: that is a third of what a task
costs. Here it is compiled once for all test hosts. It is a matter of time only: what is run is the same.
"""

import _imp
import marshal
import os
import sys
import zipimport

FOLDER = os.path.join(os.path.dirname(__file__), "../bytecode")  # of the lab's cache, for all test hosts
compile_source = zipimport._compile_source
found: dict[str, object] = {}  # by the file's name: the code is asked for twice, to find a module and to run it


def compile_once(path: str, source: bytes) -> object:
    """Give the code of a module, as the function does whose place this takes."""
    source = zipimport._normalize_line_endings(source)
    digest = _imp.source_hash(len(source), source).hex()
    kept = f"{FOLDER}/{digest}.{sys.implementation.cache_tag}"
    if kept not in found:
        found[kept] = load(kept) or compile_and_keep(path, source, kept)
    _imp._fix_co_filename(found[kept], path)
    return found[kept]


def load(kept: str) -> object:
    """Give the code that is kept in a file; None if there is none."""
    try:
        with open(kept, "rb") as file:
            return marshal.load(file)
    except (OSError, EOFError, ValueError, TypeError):
        return None


def compile_and_keep(path: str, source: bytes, kept: str) -> object:
    """Give the code that Python makes, and keep it for others if that can be."""
    code = compile_source(path, source)
    part = f"{kept}.{os.urandom(8).hex()}"
    try:
        with open(part, "wb") as file:
            marshal.dump(code, file)
        os.replace(part, kept)
    except OSError:  # not of this machine, or not root
        pass
    return code


zipimport._compile_source = compile_once

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


def compile_once(path: str, source: bytes) -> object:
    """Give the code of a module, as the function does whose place this takes."""
    source = zipimport._normalize_line_endings(source)
    digest = _imp.source_hash(len(source), source).hex()
    kept = f"{FOLDER}/{digest}.{sys.implementation.cache_tag}"
    try:
        with open(kept, "rb") as file:
            code = marshal.load(file)
    except (OSError, EOFError, ValueError, TypeError):
        code = compile_source(path, source)
        part = f"{kept}.{os.urandom(8).hex()}"
        try:
            with open(part, "wb") as file:
                marshal.dump(code, file)
            os.replace(part, kept)
        except OSError:  # not of this machine, or not root
            pass
    else:
        _imp._fix_co_filename(code, path)
    return code


zipimport._compile_source = compile_once

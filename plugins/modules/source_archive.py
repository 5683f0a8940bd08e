#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch a source archive from the first place that has it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: source_archive
short_description: Fetch a source archive from the first place that has it, checked against its checksum
version_added: 0.1.0
author: Tenfold maintainers (@tenfold-stack)
description:
  - Tries the places in O(sources) in turn until one gives a file with the checksum O(sha256), and puts that to O(dest).
  - When no place has it, the message says what was wrong with each.
options:
  name:
    description: What is fetched, for messages.
    type: str
    required: true
  sources:
    description:
      - Where the archive may be. A place is a C(http), C(https) or C(file) URL, a file, or a folder. In a folder every
        file is looked at, so that its name does not matter.
    type: list
    elements: str
    required: true
  sha256:
    description: Checksum that the archive must have.
    type: str
    required: true
  dest:
    description: File to write. It is left as it is when it has the checksum already.
    type: path
    required: true
  timeout:
    description: Seconds that a server may keep silent.
    type: int
    default: 30
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
    details:
      - URLs are not tried in check mode.
  diff_mode:
    description: Not of use for an archive.
    support: none
  platform:
    description: Target OS it works on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Fetch libevent on the controller, from a mirror of the site or from upstream
  delegate_to: localhost
  tenfold.stack.source_archive:
    name: libevent
    sources:
      - /srv/mirror/sources
      - https://github.com/libevent/libevent/releases/download/release-2.1.13-stable/libevent-2.1.13-stable.tar.gz
    sha256: f7e9383b8c0baa81b687e5b5eecc01beefaf1b19b64151d95ed61647fe7a315c
    dest: ~/.cache/tenfold/sources/libevent-2.1.13-stable.tar.gz
"""

RETURN = r"""
source:
  description: The place that had the archive.
  returned: when it was fetched
  type: str
  sample: /srv/mirror/sources
"""

import http.client
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.validation import check_type_path
from ansible.module_utils.urls import open_url
from ansible_collections.tenfold.stack.plugins.module_utils.source_release import sha256_of


class ArchiveError(Exception):
    """No place has the archive; the message tells what is wrong with each."""


def candidates(source: str) -> Iterator[str]:
    """Give the files that a place on this machine stands for."""
    path = check_type_path(source)
    if os.path.isdir(path):
        yield from (entry.path for entry in sorted(os.scandir(path), key=lambda e: e.name) if entry.is_file())
    elif os.path.exists(path):
        yield path


def fetch(source: str, sha256: str, path: str, timeout: int) -> str | None:
    """Write the archive to `path` if a place has it.

    :return: None on success, else what is wrong with the place.
    """
    if "://" in source:
        try:
            with open_url(source, timeout=timeout, http_agent="tenfold.stack") as answer, open(path, "wb") as copy:
                shutil.copyfileobj(answer, copy)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return str(error)
        found = sha256_of(path)
        return None if found == sha256 else f"its sha256 is {found}"
    try:
        files = list(candidates(source))
        for file in files:
            if (found := sha256_of(file)) == sha256:
                shutil.copyfile(file, path)
                return None
    except OSError as error:
        return str(error)
    if not files:
        return "there is no such file or folder, or it is empty"
    return f"its sha256 is {found}" if len(files) == 1 else f"none of its {len(files)} files has the checksum"


def apply(module: AnsibleModule) -> dict[str, Any]:
    """Fetch what is not there yet; give the module's result.

    :raises ArchiveError: no place has the archive.
    """
    name, sha256 = module.params["name"], module.params["sha256"]
    dest = os.path.abspath(module.params["dest"])
    if os.path.exists(dest) and sha256_of(dest) == sha256:
        return {"changed": False}
    if module.check_mode:
        return {"changed": True}
    folder = os.path.dirname(dest)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    wrong = []
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        path = os.path.join(scratch, "archive")
        for source in module.params["sources"]:
            problem = fetch(source, sha256, path, module.params["timeout"])
            if problem is None:
                os.replace(path, dest)
                return {"changed": True, "source": source}
            wrong.append(f"{source}: {' '.join(problem.split())}")
    raise ArchiveError(
        f"no source of {name} gives the archive with sha256 {sha256}. Set {name}_sources to a place that has "
        f"it, or {name}_sha256 to the checksum that upstream publishes for this version. Tried:\n" + "\n".join(wrong)
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "sources": {"type": "list", "elements": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    try:
        result = apply(module)
    except (ArchiveError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

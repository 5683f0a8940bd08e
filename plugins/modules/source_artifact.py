#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compile a source archive to an artifact."""

from __future__ import annotations

DOCUMENTATION = r"""
module: source_artifact
short_description: Compile a source archive with configure and make, to an artifact in the controller's cache
version_added: 0.1.0
author: Tenfold maintainers (@tenfold-stack)
description:
  - Brings a source archive from the controller to this host, runs C(configure) and C(make) in a folder of its own,
    packs what C(make install) would put below O(prefix), and brings that artifact to the controller.
  - Nothing is installed on this host, and nothing is left on it. To install, use M(tenfold.stack.source_release).
  - When a step fails, the message has the end of its output.
options:
  name:
    description: What is built, for messages.
    type: str
    required: true
  archive:
    description: The source archive on the controller, a tar file with any compression that Python reads.
    type: path
    required: true
  sha256:
    description: Checksum that the source archive must have.
    type: str
    required: true
  artifact:
    description: File on the controller to write. A file C(<artifact>.json) with its size and checksum goes beside it.
    type: path
    required: true
  prefix:
    description: Where the release will lie. C(configure) is given it, and the artifact holds what is below it.
    type: path
    required: true
  configure:
    description: Arguments for C(configure), after C(--prefix).
    type: list
    elements: str
    default: []
  make:
    description: Calls of C(make), each a list of arguments.
    type: list
    elements: list
    default: [[]]
  install:
    description: Targets of C(make) that install.
    type: list
    elements: str
    default: [install]
  environment:
    description: Environment variables for all steps, such as C(CFLAGS).
    type: dict
    default: {}
  strip:
    description: Whether to remove symbols from programs and libraries.
    type: bool
    default: true
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Not of use for an archive.
    support: none
  platform:
    description: Target OS it works on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Compile libevent
  tenfold.stack.source_artifact:
    name: libevent
    archive: /srv/mirror/libevent-2.1.13-stable.tar.gz
    sha256: f7e9383b8c0baa81b687e5b5eecc01beefaf1b19b64151d95ed61647fe7a315c
    artifact: ~/.cache/tenfold/artifacts/libevent-2.1.13.tar.gz
    prefix: /opt/tenfold/libevent/2.1.13
    configure: [--disable-shared, --disable-openssl]
"""

RETURN = r"""
seconds:
  description: Wall seconds of each step.
  returned: success, outside check mode
  type: dict
  sample: {configure: 4.1, make: 10.2, install: 0.3}
size:
  description: Bytes of the unpacked release.
  returned: success, outside check mode
  type: int
  sample: 839000
sha256:
  description: Checksum of the artifact.
  returned: success, outside check mode
  type: str
  sample: 0f3c5d6e7a8b7a2f6a4e9f4d1c6b0a5e8d7c6b5a4f3e2d1c0b9a8f7e6d5c4b3a
"""

import gzip
import os
import re
import shutil
import tarfile
import tempfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tenfold.stack.plugins.module_utils.source_release import sha256_of

LOG_LINES = 30  # of a failed step's output, in the error
ELF = b"\x7fELF"
AR = b"!<arch>\n"  # a static library


class BuildError(Exception):
    """A step failed; the message says which, and has the end of its output."""


class Build:
    """One build in a folder of its own."""

    def __init__(self, module: AnsibleModule, scratch: str) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.stage = os.path.join(scratch, "stage")
        self.seconds: dict[str, float] = {}
        self.tree = self._unpack(os.path.join(scratch, "source"))

    def _unpack(self, folder: str) -> str:
        if sha256_of(self.params["archive"]) != self.params["sha256"]:
            raise BuildError(
                f"the source archive of {self.params['name']} has not the checksum "
                f"{self.params['sha256']}: it changed since it was fetched; run again"
            )
        with tarfile.open(self.params["archive"]) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(folder)
        entries = os.listdir(folder)
        tree = os.path.join(folder, entries[0]) if len(entries) == 1 else ""
        if not os.path.isdir(tree):
            raise BuildError(
                f"the source archive of {self.params['name']} holds {', '.join(sorted(entries)[:3])} … where a single "
                "folder is expected: name a release archive in its sources"
            )
        return tree

    def step(self, name: str, command: list[str]) -> None:
        """Run one command in the source tree.

        :raises BuildError: it failed.
        """
        start = time.monotonic()
        try:
            code, out, err = self.module.run_command(
                command,
                cwd=self.tree,
                environ_update={key: str(value) for key, value in self.params["environment"].items()},
                errors="replace",  # a compiler may quote a source file of any encoding
                expand_user_and_vars=False,
                handle_exceptions=False,
            )
        except OSError as error:
            raise BuildError(f"{self.params['name']}: `{' '.join(command)}` can't be run: {error}") from error
        self.seconds[name] = round(self.seconds.get(name, 0) + time.monotonic() - start, 1)
        if code != 0:
            tail = "\n".join((out + err).splitlines()[-LOG_LINES:])
            raise BuildError(
                f"{self.params['name']}: `{' '.join(command)}` ended with status {code}. "
                f"The release in use is as it was. The end of its output:\n{tail}"
            )

    def run(self) -> str:
        """Configure, compile and install to a stage; give the staged release's folder."""
        params = self.params
        self.step("configure", ["./configure", f"--prefix={params['prefix']}", *params["configure"]])
        for arguments in params["make"]:
            self.step("make", ["make", f"-j{os.cpu_count()}", *map(str, arguments)])
        self.step("install", ["make", f"DESTDIR={self.stage}", *params["install"]])
        staged = self.stage + params["prefix"]
        if not os.path.isdir(staged):
            raise BuildError(
                f"{params['name']}: `make {' '.join(params['install'])}` put nothing below {params['prefix']}"
            )
        if params["strip"]:
            self.strip(staged)
        return staged

    def strip(self, folder: str) -> None:
        """Remove the symbols that only a debugger reads from programs and libraries."""
        strip = self.module.get_bin_path("strip", required=True)
        for path in files_below(folder):
            with open(path, "rb") as file:
                begin = file.read(len(AR))
            if begin.startswith((ELF, AR)):
                self.step("strip", [strip, "--strip-unneeded", path])


def files_below(folder: str) -> list[str]:
    """Give the paths of the regular files below a folder, sorted."""
    return sorted(
        path
        for parent, _folders, files in os.walk(folder)
        for path in (os.path.join(parent, file) for file in files)
        if not os.path.islink(path)
    )


def pack(folder: str, path: str) -> None:
    """Write a folder to a tar.gz file that depends on nothing but names, modes and contents.

    gzip, as minimal hosts have nothing better to unpack with.
    """

    def clean(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = "root"
        return entry

    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as gz, tarfile.open(None, "w", gz) as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(os.path.join(folder, name), name, filter=clean)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "sha256": {"type": "str", "required": True},
            "artifact": {"type": "path", "required": True},
            "prefix": {"type": "path", "required": True},
            "configure": {"type": "list", "elements": "str", "default": []},
            "make": {"type": "list", "elements": "list", "default": [[]]},
            "install": {"type": "list", "elements": "str", "default": ["install"]},
            "environment": {"type": "dict", "default": {}},
            "strip": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True)
    if missing := [tool for tool in ("cc", "make") if not module.get_bin_path(tool)]:
        module.fail_json(
            msg=f"{module.params['name']} can't be built: no {' and no '.join(missing)} on this host. "
            "Add the packages that bring them to the build packages of its role."
        )
    # What is installed is for all users, whatever the umask of the one that builds it.
    os.umask(0o022)
    scratch = tempfile.mkdtemp(prefix="build-", dir=module.tmpdir)
    try:
        build = Build(module, scratch)
        staged = build.run()
        pack(staged, module.params["artifact"])
        size = sum(os.path.getsize(path) for path in files_below(staged))
    except (BuildError, OSError, EOFError, tarfile.TarError) as error:
        # The colours of a terminal are noise in a message.
        module.fail_json(msg=re.sub(r"\x1b\[[0-9;]*m", "", str(error)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    module.exit_json(
        changed=True,
        seconds=build.seconds,
        size=size,
        sha256=sha256_of(module.params["artifact"]),
    )


if __name__ == "__main__":
    main()

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A configuration file as it is to be, and what the host has in its place."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# The option of a module that takes configuration files; its documentation is the fragment config_file.
FILES_ARGUMENT: dict[str, Any] = {
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0644"},
        },
    }
}


class ConfigError(Exception):
    """The files can't be written; the message says what to change."""


class File:
    """A file as it is to be."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.path: str = wanted["path"]
        self.content: bytes = wanted["content"].encode(errors="surrogateescape")
        self.owner: str = wanted["owner"]
        self.group: str = wanted["group"]
        if not os.path.isabs(self.path):
            raise ConfigError(f"the path {self.path} has to be absolute")
        try:
            self.mode = int(wanted["mode"], 8)
        except ValueError:
            raise ConfigError(
                f'the mode of {self.path} has to be octal digits such as "0644", not "{wanted["mode"]}"'
            ) from None

    def before(self) -> dict[str, Any] | None:
        """Give what is there now, or None where nothing is."""
        try:
            info = os.lstat(self.path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"{self.path} is there but is not a regular file: move it out of the way")
        with open(self.path, "rb") as file:
            content = file.read()
        return {
            "content": content,
            "owner": name_of(pwd.getpwuid, info.st_uid),
            "group": name_of(grp.getgrgid, info.st_gid),
            "mode": stat.S_IMODE(info.st_mode),
        }

    def after(self) -> dict[str, Any]:
        """Give what is there when all is done, in the form of `before`."""
        return {"content": self.content, "owner": self.owner, "group": self.group, "mode": self.mode}

    def write_below(self, root: str) -> None:
        """Write the contents to the file's place below a scratch folder."""
        path = root + self.path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(self.content)

    def write_beside(self, module: AnsibleModule) -> str:
        """Write all but the name: a file in the same folder with the permissions and SELinux context.

        :return: its path.
        :raises ConfigError: there is no such owner or group.
        """
        folder, name = os.path.split(self.path)
        os.makedirs(folder, mode=0o755, exist_ok=True)
        # Hidden, as daemons read whole folders. mkstemp() lets only the owner of this process read it so far.
        descriptor, scratch = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.content)
            shutil.chown(scratch, self.owner, self.group)
            os.chmod(scratch, self.mode)
            module.set_context_if_different(scratch, module.selinux_default_context(self.path), False)
        except LookupError as error:
            os.unlink(scratch)
            raise ConfigError(f"{self.path} can't be given to {self.owner}:{self.group}: {error}") from error
        except BaseException:
            os.unlink(scratch)
            raise
        return scratch


def name_of(look_up: Any, number: int) -> str:
    """Give the name of a user or group number, or the number where it has none."""
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)

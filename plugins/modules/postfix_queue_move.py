#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move the mail of a stopped Postfix to another folder."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postfix_queue_move
short_description: Move the mail of a stopped Postfix to another folder
version_added: 0.1.0
author: Tenfold maintainers (@tenfold-stack)
description:
  - Moves each mail with its owner, permissions and times from one queue directory to another, which may be on another
    file system. The folders are made there as they are here.
  - A file is only removed here when its copy is complete and on disk there. So an interruption loses nothing, and the
    next call moves the rest.
options:
  src:
    description: The queue directory that the mail is in.
    type: path
    required: true
  dest:
    description: The folder that is to be the queue directory. What is in it is kept.
    type: path
    required: true
notes:
  - Needs the rights of root.
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Returns what has changed, or in check mode would change, in diff mode.
    support: none
  platform:
    description: Target OS it works on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Move all mail to the new volume
  tenfold.stack.postfix_queue_move:
    src: /var/spool/postfix
    dest: /mnt/queue
"""

RETURN = r"""
moved:
  description: How many files were moved.
  returned: success
  type: int
  sample: 120
"""

import errno
import fcntl
import filecmp
import os
import shutil
import stat
from collections.abc import Iterator

from ansible.module_utils.basic import AnsibleModule

# Folders with files that belong to mail. All others hold sockets, locks and what a chroot needs.
KEPT = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop", "saved", "trace")
PART = ".moving"  # a copy that is not complete; Postfix looks at no such name


class MoveError(Exception):
    """The mail can't be moved; the message says what to change."""


def refuse_running(src: str) -> None:
    """Refuse to touch the queue of a Postfix that runs.

    :raises MoveError: it does.
    """
    try:
        # Postfix's master locks this file for as long as it lives, by fcntl() or by flock().
        with open(os.path.join(src, "pid", "master.pid"), "r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise MoveError(f"the Postfix of {src} runs, and would lose track of its mail: stop it before") from None


def folders_of(src: str) -> Iterator[str]:
    """Give the folders of a queue directory below it, parents first."""
    for name in sorted(os.listdir(src)):
        path = os.path.join(src, name)
        if name == "lost+found" or os.path.islink(path) or not os.path.isdir(path):
            continue
        yield name
        if name in KEPT:
            for folder, names, _files in os.walk(path):
                names.sort()
                for below in names:
                    yield os.path.relpath(os.path.join(folder, below), src)


def files_of(src: str) -> Iterator[str]:
    """Give the files that belong to mail."""
    for kept in KEPT:
        for folder, _names, files in os.walk(os.path.join(src, kept)):
            for name in sorted(files):
                path = os.path.join(folder, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield os.path.relpath(path, src)


def make_folder(src: str, dest: str) -> bool:
    """Make a folder with the owner and permissions of another, and tell whether it differed."""
    info = os.stat(src)
    changed = not os.path.isdir(dest)
    if changed:
        os.mkdir(dest, 0o700)
    now = os.stat(dest)
    if (now.st_uid, now.st_gid, now.st_mode) != (info.st_uid, info.st_gid, info.st_mode):
        os.chown(dest, info.st_uid, info.st_gid)
        os.chmod(dest, stat.S_IMODE(info.st_mode))
        changed = True
    return changed


def sync(path: str) -> None:
    """Have a file or folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_file(src: str, dest: str) -> None:
    """Move a file: first a copy that is complete and on disk, then no original.

    :raises MoveError: there is another file of that name.
    """
    if os.path.lexists(dest):
        # An earlier call was interrupted between the two.
        if not filecmp.cmp(src, dest, shallow=False):
            raise MoveError(f"{src} and {dest} are different mails of one name: move one of them out of the way")
    else:
        part = dest + PART
        info = os.stat(src)
        shutil.copyfile(src, part)
        os.chown(part, info.st_uid, info.st_gid)
        shutil.copystat(src, part)
        sync(part)
        os.rename(part, dest)
        sync(os.path.dirname(dest))
    os.unlink(src)


def move(src: str, dest: str, check_mode: bool) -> tuple[bool, int]:
    """Move all, and tell whether something changed and how many files were moved."""
    for path in (src, dest):
        if not os.path.isdir(path):
            raise MoveError(f"{path} is no folder")
    refuse_running(src)
    files = list(files_of(src))
    if check_mode:
        return bool(files), len(files)
    for folder, _names, names in os.walk(dest):
        for name in names:
            if name.endswith(PART):
                os.unlink(os.path.join(folder, name))
    # The root of a new volume belongs to whoever made it.
    changed = make_folder(src, dest)
    for folder in folders_of(src):
        changed |= make_folder(os.path.join(src, folder), os.path.join(dest, folder))
    for file in files:
        move_file(os.path.join(src, file), os.path.join(dest, file))
    return changed or bool(files), len(files)


def main() -> None:
    module = AnsibleModule(
        argument_spec={"src": {"type": "path", "required": True}, "dest": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    try:
        changed, moved = move(module.params["src"], module.params["dest"], module.check_mode)
    except (MoveError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, moved=moved)


if __name__ == "__main__":
    main()

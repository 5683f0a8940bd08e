#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install releases from artifacts and switch to them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: source_release
short_description: Install software releases side by side and switch between them
version_added: 0.1.0
author: Tenfold maintainers (@tenfold-stack)
description:
  - Unpacks the artifact of a release into C(<prefix>/<release>) and points the link C(<prefix>/current) to it.
  - Each of the two is one atomic step, so that an interrupted run or a full disk leaves the release in use as it was.
  - A release that is installed already is not transferred or unpacked again, so that going back to it is only a switch.
  - Artifacts are taken from a folder on the controller, where M(tenfold.stack.source_artifact) puts them.
options:
  releases:
    description: The releases that this host is to have.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What is released, for messages.
        type: str
        required: true
      prefix:
        description: Folder that holds the releases side by side. Made when it is missing.
        type: path
        required: true
      release:
        description: Name of the release, a folder below the prefix.
        type: str
        required: true
      artifact:
        description: File name of the release's archive in O(cache).
        type: str
        required: true
      expose_in:
        description:
          - A folder such as C(/usr) in which every file of the release appears as a link through C(current), for
            programs that look there. A file in its place that is not such a link is never replaced. Links to files
            that only the release before had are removed.
        type: path
      needs:
        description: Size of the unpacked release in bytes and checksum of its artifact. Set by the action.
        type: dict
      archive:
        description: Where the artifact is on the host. Set by the action.
        type: path
      content:
        description: A small artifact itself, in Base64. Set by the action.
        type: str
  cache:
    description: Folder on the controller that holds the artifacts.
    type: path
    required: true
  missing_ok:
    description:
      - Whether a release that is neither installed nor in the cache is only reported, in RV(missing). The host is left
        as it was then.
    type: bool
    default: false
  activate:
    description: Whether to switch C(current) to the releases. Without it they are only installed.
    type: bool
    default: true
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows the releases in use before and after.
    support: full
  platform:
    description: Target OS it works on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Switch memcached to a release that is in the cache of artifacts, or installed already
  tenfold.stack.source_release:
    cache: ~/.cache/tenfold/artifacts
    releases:
      - name: memcached
        prefix: /opt/tenfold/memcached
        release: 1.6.45-0f3c5d6e7a8b
        artifact: memcached-1.6.45-0f3c5d6e7a8b.tar.gz
"""

RETURN = r"""
missing:
  description: Artifacts of the releases that are neither installed nor in the cache.
  returned: always
  type: list
  elements: str
  sample: [memcached-1.6.45-0f3c5d6e7a8b.tar.gz]
installed:
  description: Names of the releases that were unpacked, or would be in check mode.
  returned: always
  type: list
  elements: str
  sample: [memcached]
switched:
  description: Names of the releases that C(current) was switched to, or whose links were completed.
  returned: always
  type: list
  elements: str
  sample: [memcached]
"""

import base64
import errno
import os
import shutil
import tarfile
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tenfold.stack.plugins.module_utils.source_release import (
    CURRENT,
    current_release,
    replace_link,
    sha256_of,
)

Release = dict[str, Any]


class ReleaseError(Exception):
    """A release can't be installed or used; the message says what to change."""


def home(release: Release) -> str:
    """Give the folder of a release."""
    return os.path.join(release["prefix"], release["release"])


def with_archive(release: Release, folder: str) -> Release:
    """Put an artifact that came with the call into a file."""
    if not release["content"]:
        return release
    path = os.path.join(folder, release["artifact"])
    with open(path, "wb") as archive:
        archive.write(base64.b64decode(release["content"]))
    return dict(release, archive=path)


def unpack(release: Release) -> None:
    """Unpack a release's archive beside its place and move it there in one step.

    :raises ReleaseError: the archive is damaged, or the disk is full.
    """
    if sha256_of(release["archive"]) != release["needs"]["sha256"]:
        raise ReleaseError(
            f"the artifact {release['artifact']} was damaged on its way (sha256 differs): run again, or "
            "remove it from source_build_cache so that it is built anew"
        )
    os.makedirs(release["prefix"], mode=0o755, exist_ok=True)
    free = shutil.disk_usage(release["prefix"]).free
    if free < release["needs"]["size"]:
        raise full_disk(release)
    scratch = tempfile.mkdtemp(prefix=f".{release['release']}-", dir=release["prefix"])
    try:
        with tarfile.open(release["archive"]) as archive:
            # Older Pythons, such as that of Debian 12, have no filter.
            if any(os.path.isabs(name) or ".." in name.split("/") for name in archive.getnames()):
                raise ReleaseError(
                    f"the artifact {release['artifact']} has files that would lie outside of its folder: remove it "
                    "from source_build_cache so that it is built anew"
                )
            if hasattr(tarfile, "data_filter"):
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(scratch)
        os.chmod(scratch, 0o755)
        os.rename(scratch, home(release))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise full_disk(release) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def full_disk(release: Release) -> ReleaseError:
    """Give the error for a volume without room for a release."""
    return ReleaseError(
        f"no room for {release['name']} {release['release']} in {release['prefix']}: it needs "
        f"{release['needs']['size']} bytes; free some, or set another prefix. The release in use is as it was."
    )


def exposures(release: Release) -> dict[str, str]:
    """Give the links that make a release appear in another folder: path -> target."""
    links: dict[str, str] = {}
    if not release["expose_in"]:
        return links
    for folder, _subfolders, files in os.walk(home(release)):
        below = os.path.relpath(folder, home(release))
        for file in files:
            path = os.path.normpath(os.path.join(release["expose_in"], below, file))
            links[path] = os.path.normpath(os.path.join(release["prefix"], CURRENT, below, file))
    return links


def check_exposures(release: Release) -> None:
    """Refuse to take the place of files that something else has put there.

    :raises ReleaseError: a file is in the way.
    """
    ours = os.path.join(release["prefix"], "")
    for path in exposures(release):
        if os.path.lexists(path) and not (os.path.islink(path) and os.readlink(path).startswith(ours)):
            raise ReleaseError(
                f"{path} is there already and does not belong to {release['name']} in {release['prefix']}: "
                f"remove the package that brought it, or set another folder to expose {release['name']} in"
            )


def is_link(path: str, target: str) -> bool:
    """Tell whether a path is a link with this target."""
    return os.path.islink(path) and os.readlink(path) == target


def expose(release: Release, before: str | None) -> bool:
    """Make a release appear in its other folder instead of the one before; tell whether anything had to change."""
    links = exposures(release)
    stale = {
        path
        for path, target in (exposures(dict(release, release=before)) if before else {}).items()
        if path not in links and is_link(path, target)
    }
    lacking = {path: target for path, target in links.items() if not is_link(path, target)}
    for path, target in lacking.items():
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        replace_link(target, path)
    for path in stale:
        os.unlink(path)
    return bool(lacking or stale)


def is_exposed(release: Release) -> bool:
    """Tell whether a release appears in its other folder, or has none."""
    return all(is_link(path, target) for path, target in exposures(release).items())


def apply(module: AnsibleModule) -> dict[str, Any]:
    """Install and switch as asked; give the module's result."""
    releases: list[Release] = [with_archive(release, module.tmpdir) for release in module.params["releases"]]
    before = {release["name"]: current_release(release["prefix"]) for release in releases}
    absent = [release for release in releases if not os.path.isdir(home(release))]
    result: dict[str, Any] = {
        "missing": [release["artifact"] for release in absent if not release["archive"]],
        "installed": [release["name"] for release in absent if release["archive"]],
        "switched": [],
    }
    if result["missing"] and not module.check_mode:
        return dict(result, changed=False)
    for release in absent:
        if not module.check_mode:
            unpack(release)
    if module.params["activate"]:
        for release in releases:
            check_exposures(release)
        for release in releases:
            if before[release["name"]] == release["release"] and is_exposed(release):
                continue
            result["switched"].append(release["name"])
            if not module.check_mode:
                replace_link(release["release"], os.path.join(release["prefix"], CURRENT))
                if expose(release, before[release["name"]]) and (ldconfig := module.get_bin_path("ldconfig")):
                    module.run_command([ldconfig], check_rc=True)
    after = {r["name"]: r["release"] if r["name"] in result["switched"] else before[r["name"]] for r in releases}
    result["changed"] = bool(absent or result["switched"])
    result["diff"] = {"before": before, "after": after}
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "releases": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "prefix": {"type": "path", "required": True},
                    "release": {"type": "str", "required": True},
                    "artifact": {"type": "str", "required": True},
                    "expose_in": {"type": "path"},
                    "needs": {"type": "dict"},
                    "archive": {"type": "path"},
                    # Not a secret, but nothing that a log should hold.
                    "content": {"type": "str", "no_log": True},
                },
            },
            "cache": {"type": "path", "required": True},
            "missing_ok": {"type": "bool", "default": False},
            "activate": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    # A release is for all users, whatever the umask of the one that installs it.
    os.umask(0o022)
    try:
        result = apply(module)
    except (ReleaseError, OSError, EOFError, tarfile.TarError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the artifacts that a host lacks to it, then let the module install them.

A small artifact travels with the call, so that a new host costs one. A large one is only sent to a host that said
that it lacks it.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

# A transfer of its own takes five more calls, each of them slower than this much data.
SENT_WITH_THE_CALL = 1 << 20  # bytes


class ActionModule(ActionBase):
    """Transfer what is missing from the controller's cache of artifacts."""

    # Not TRANSFERS_FILES, for which a folder would be made on each host in any case: few of them need one.
    _requires_connection = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args: dict[str, Any] = dict(self._task.args)
        cache = os.path.expanduser(args["cache"])
        args["releases"] = [self._with_content(release, cache) for release in args["releases"]]
        result: dict[str, Any] = self._execute_module(module_args=args, task_vars=task_vars)
        missing = set(result.get("missing", ()))
        if result.get("failed") or not missing:
            return result
        in_cache = {name for name in missing if os.path.exists(os.path.join(cache, name))}
        lacking = sorted(missing - in_cache)
        if self._task.check_mode:
            would = [release["name"] for release in args["releases"] if release["artifact"] in in_cache]
            return dict(result, missing=lacking, installed=result["installed"] + would)
        if lacking and boolean(args.get("missing_ok"), strict=False):
            return dict(result, missing=lacking)
        if lacking:
            raise AnsibleActionFail(
                f"there is no artifact {', '.join(lacking)} in {cache}: the host that was to compile it failed, "
                "and its error says why"
            )
        # The base class removes it.
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        releases = []
        for release in args["releases"]:
            artifact = release["artifact"]
            if artifact in missing:
                remote = self._connection._shell.join_path(folder, artifact)
                self._transfer_file(os.path.join(cache, artifact), remote)
                self._fixup_perms2((folder, remote), execute=False)
                release = dict(release, archive=remote, needs=self._needs(os.path.join(cache, artifact)))
            releases.append(release)
        return self._execute_module(module_args=dict(args, releases=releases), task_vars=task_vars)

    def _with_content(self, release: dict[str, Any], cache: str) -> dict[str, Any]:
        """Add a small artifact to the description of its release."""
        path = os.path.join(cache, release["artifact"])
        # Where the description lacks, it is told once the artifact turns out to be needed.
        if not os.path.exists(f"{path}.json") or os.path.getsize(path) > SENT_WITH_THE_CALL:
            return release
        with open(path, "rb") as artifact:
            return dict(release, content=base64.b64encode(artifact.read()).decode(), needs=self._needs(path))

    def _needs(self, artifact: str) -> dict[str, Any]:
        """Give the size and checksum that were noted when the artifact was made."""
        try:
            with open(f"{artifact}.json", encoding="utf-8") as about:
                return json.load(about)
        except (OSError, ValueError) as error:
            raise AnsibleActionFail(
                f"the artifact {artifact} has no description beside it ({error}): remove it so that it is built anew"
            ) from error

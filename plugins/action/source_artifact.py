# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the source archive to the host that builds, and the artifact back to the controller."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.tenfold.stack.plugins.module_utils.source_release import sha256_of


class ActionModule(ActionBase):
    """Transfer, build, fetch; the artifact appears in the cache whole or not at all."""

    _requires_connection = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args: dict[str, Any] = dict(self._task.args)
        if self._task.check_mode or not {"archive", "artifact"} <= args.keys():  # which the module tells
            return self._execute_module(module_args=args, task_vars=task_vars)
        archive = os.path.expanduser(args["archive"])
        artifact = os.path.expanduser(args["artifact"])
        # The base class removes it.
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        join = self._connection._shell.join_path
        args["archive"] = join(folder, "source")
        args["artifact"] = join(folder, "artifact")
        self._transfer_file(archive, args["archive"])
        self._fixup_perms2((folder, args["archive"]), execute=False)
        result: dict[str, Any] = self._execute_module(module_args=args, task_vars=task_vars)
        if not result.get("failed"):
            self._keep(args["artifact"], artifact, result)
        return result

    def _keep(self, remote: str, artifact: str, result: dict[str, Any]) -> None:
        """Fetch the artifact into the cache, in one step and only if it arrived as it was sent."""
        cache = os.path.dirname(artifact)
        os.makedirs(cache, mode=0o755, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".artifact-", dir=cache) as scratch:
            local = os.path.join(scratch, "artifact")
            self._connection.fetch_file(remote, local)
            if (found := sha256_of(local)) != result["sha256"]:
                raise AnsibleActionFail(
                    f"the artifact was damaged on its way to {artifact} (sha256 {found} instead of "
                    f"{result['sha256']}): run again"
                )
            about = os.path.join(scratch, "about")
            with open(about, "w", encoding="utf-8") as file:
                json.dump({"sha256": result["sha256"], "size": result["size"]}, file)
            os.replace(about, f"{artifact}.json")
            os.replace(local, artifact)

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the artifacts that a host lacks to it, then let the module install them.

One look at the host, then at most one transfer per missing release: a fleet that has everything
costs one call a host.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Transfer what is missing from the controller's cache of artifacts."""

    TRANSFERS_FILES = True
    _requires_connection = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args: dict[str, Any] = dict(self._task.args)
        cache = os.path.expanduser(args["cache"])
        result: dict[str, Any] = self._execute_module(module_args=args, task_vars=task_vars)
        missing = set(result.get("missing", ()))
        in_cache = {name for name in missing if os.path.exists(os.path.join(cache, name))}
        lacking = sorted(missing - in_cache)
        if lacking and not args.get("missing_ok") and not self._task.check_mode:
            raise AnsibleActionFail(
                f"there is no artifact {', '.join(lacking)} in {cache}: the host that was to compile it failed, "
                "and its error says why"
            )
        if result.get("failed") or not in_cache or self._task.check_mode:
            return dict(result, missing=lacking)
        remote_folder = self._make_tmp_path()
        releases = []
        for release in args["releases"]:
            artifact = release["artifact"]
            if artifact in in_cache:
                local = os.path.join(cache, artifact)
                remote = self._connection._shell.join_path(remote_folder, artifact)
                self._transfer_file(local, remote)
                with open(f"{local}.json", encoding="utf-8") as about:
                    release = dict(release, archive=remote, needs=json.load(about))
            releases.append(release)
        self._fixup_perms2((remote_folder,), execute=False)
        try:
            return self._execute_module(module_args=dict(args, releases=releases), task_vars=task_vars)
        finally:
            self._remove_tmp_path(remote_folder)

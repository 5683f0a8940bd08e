# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd tells of units."""

from __future__ import annotations

from collections.abc import Sequence

from ansible.module_utils.basic import AnsibleModule


def properties_of(module: AnsibleModule, units: Sequence[str], properties: str) -> list[dict[str, str]]:
    """Give properties of units, in their order and in one call. Fails the module when systemd can't be asked.

    :param units: full names. systemd also tells of those that it does not know.
    :param properties: names, separated by commas.
    """
    _code, out, _err = module.run_command(
        ["systemctl", "show", f"--property={properties}", "--", *units], check_rc=True
    )
    return [dict(line.split("=", 1) for line in block.splitlines()) for block in out.strip().split("\n\n")]

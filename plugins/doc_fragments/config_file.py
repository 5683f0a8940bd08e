# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the option that takes configuration files."""

from __future__ import annotations


class ModuleDocFragment:
    """What a configuration file is to be; goes with FILES_ARGUMENT in module_utils."""

    DOCUMENTATION = r"""
options:
  files:
    description: Configuration files as they are to be.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file goes. Its folder is made when it is missing.
        type: path
        required: true
      content:
        description: What is in it.
        type: str
        required: true
      owner:
        description: Name of the owning user.
        type: str
        default: root
      group:
        description: Name of the owning group.
        type: str
        default: root
      mode:
        description: Permissions, in octal digits.
        type: str
        default: "0644"
"""

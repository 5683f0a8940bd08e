#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a running HAProxy for its servers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_info
short_description: Ask a running HAProxy for its servers
version_added: 0.1.0
author: Tenfold maintainers (@tenfold-stack)
description:
  - Reads from HAProxy's socket which servers its backends have, whether they are up, and how many sessions they serve.
  - Use M(community.general.haproxy) to change the state of a server.
options:
  socket:
    description: The socket, C(stats socket) in the configuration of HAProxy.
    type: path
    required: true
attributes:
  check_mode:
    description: Can run in check mode and return the same, as it changes nothing.
    support: full
  diff_mode:
    description: Returns what has changed, or in check mode would change, in diff mode.
    support: N/A
    details:
      - This module never changes anything.
  platform:
    description: Target OS it works on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Wait until a member serves
  tenfold.stack.haproxy_info:
    socket: /run/haproxy/admin.sock
  register: proxy
  until: proxy.servers | selectattr('server', 'eq', 'mx-01') | map(attribute='up') is all
  retries: 30
  delay: 1
"""

RETURN = r"""
version:
  description: Version of the running HAProxy.
  returned: success
  type: str
  sample: 2.6.12-1
servers:
  description: The servers of all backends.
  returned: success
  type: list
  elements: dict
  contains:
    backend:
      description: Name of the backend.
      type: str
    server:
      description: Name of the server.
      type: str
    address:
      description: Its address and port.
      type: str
    status:
      description: What HAProxy says of it, such as C(UP), C(UP 1/2), C(DOWN) or C(DRAIN).
      type: str
    up:
      description: Whether it gets new sessions.
      type: bool
    check:
      description: Result of the last health check.
      type: str
      sample: L7OK
    sessions:
      description: Sessions that it serves now.
      type: int
    total:
      description: Sessions that it got since HAProxy read its configuration.
      type: int
"""

import csv
import socket
from typing import Any

from ansible.module_utils.basic import AnsibleModule

TIMEOUT = 10  # seconds


def ask(path: str, command: str) -> str:
    """Send a command to the socket and give the whole answer.

    :raises OSError: nobody answers.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(path)
        connection.sendall(f"{command}\n".encode())
        with connection.makefile("rb") as answer:
            return answer.read().decode(errors="replace")


def servers(statistics: str) -> list[dict[str, Any]]:
    """Give the servers of the answer to ``show stat``."""
    return [
        {
            "backend": row["pxname"],
            "server": row["svname"],
            "address": row["addr"],
            "status": row["status"],
            # A server without health checks is "no check".
            "up": row["status"].startswith(("UP", "no check")),
            "check": row["check_status"],
            "sessions": int(row["scur"]),
            "total": int(row["stot"]),
        }
        for row in csv.DictReader(statistics.lstrip("# ").splitlines())
        if row["svname"] not in ("FRONTEND", "BACKEND")
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"socket": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    path = module.params["socket"]
    try:
        # 4 is the type of servers, -1 stands for all backends and all servers.
        found = servers(ask(path, "show stat -1 4 -1"))
        information = dict(line.split(": ", 1) for line in ask(path, "show info").splitlines() if ": " in line)
    except (OSError, KeyError) as error:
        module.fail_json(msg=f"HAProxy does not answer at {path}: look whether it runs ({error!r})")
    module.exit_json(changed=False, version=information.get("Version", ""), servers=found)


if __name__ == "__main__":
    main()

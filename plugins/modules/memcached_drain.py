#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Ansible reads the documentation ahead of the imports.
"""Ansible module: wait until clients have left a memcached."""

from __future__ import annotations

DOCUMENTATION = r"""
module: memcached_drain
short_description: Wait until clients have left a memcached
version_added: "0.1.0"
description:
  - A node that is taken out of DNS and proxies is still asked until the last client has noticed. This module waits
    until nobody has sent a request for some seconds.
  - Connections that stay open without requests, such as those that a client keeps for later, and requests for
    statistics do not count.
  - A memcached that does not run any more has no clients.
author:
  - Tenfold maintainers (@tenfold-stack)
extends_documentation_fragment:
  - tenfold.stack.memcached_client
attributes:
  check_mode:
    description: Can run in check mode and return the prediction without changing anything.
    support: full
    details:
      - In check mode it does not wait.
  diff_mode:
    description: Returns what has changed, or in check mode would change, in diff mode.
    support: N/A
    details:
      - This module never changes anything.
  platform:
    description: Target systems the module works on.
    platforms: posix
    support: full
options:
  quiet:
    description: For how many seconds there must be no request. Longer than clients take to notice a change of the pool.
    type: float
    default: 10
  patience:
    description: After how many seconds to give up, which fails the task.
    type: float
    default: 300
"""

EXAMPLES = r"""
- name: Wait until nobody uses the node that leaves
  delegate_to: client-01
  tenfold.stack.memcached_drain:
    host: 192.0.2.10
    quiet: 15
"""

RETURN = r"""
running:
  description: Whether the memcached ran at all.
  returned: success
  type: bool
requests:
  description: How many requests came while waiting.
  returned: success
  type: int
waited:
  description: Seconds that were waited.
  returned: success
  type: float
peers:
  description: Addresses that are still connected.
  returned: always
  type: list
  elements: str
  sample: ["192.0.2.21"]
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tenfold.stack.plugins.module_utils.memcached_client import (
    CONNECTION_CONSTRAINTS,
    MemcachedClient,
    MemcachedError,
    connection_argument_spec,
    open_client,
)

INTERVAL = 0.5  # seconds between two looks
# Statistics that count requests: "stats" itself is in none of them.
REQUESTS = ("cmd_", "delete_", "incr_", "decr_", "cas_")


def requests_so_far(client: MemcachedClient) -> int:
    """Give how many requests the memcached has had since it started."""
    return sum(int(value) for name, value in client.stats().items() if name.startswith(REQUESTS))


def peers(client: MemcachedClient) -> list[str]:
    """Give the addresses of the clients that are connected."""
    found = set()
    for name, value in client.stats("conns").items():
        if name.endswith(":addr"):
            # tcp:192.0.2.1:40000, tcp6:[2001:db8::1]:40000, unix:/path
            kind, _colon, address = value.partition(":")
            found.add(address.rpartition(":")[0].strip("[]") if kind.startswith("tcp") else address)
    return sorted(found - {"0.0.0.0", "::", ""})


def wait(client: MemcachedClient, quiet: float, patience: float) -> dict[str, Any]:
    """Wait until there were no requests for `quiet` seconds.

    :raises MemcachedError: there still are when `patience` seconds are over.
    """
    start = last = time.monotonic()
    first = count = requests_so_far(client)
    while time.monotonic() - last < quiet:
        time.sleep(INTERVAL)
        now = requests_so_far(client)
        if now != count:
            count, last = now, time.monotonic()
        if last - start > patience or time.monotonic() - start > patience + quiet:
            raise MemcachedError(
                f"memcached at {client.address} is still used after {patience:g} s: {count - first} requests came, and "
                f"connected are {', '.join(peers(client))}. Look why these do not follow the pool, or allow more time."
            )
    return {"requests": count - first, "waited": round(time.monotonic() - start, 1), "peers": peers(client)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **connection_argument_spec(),
            "quiet": {"type": "float", "default": 10},
            "patience": {"type": "float", "default": 300},
        },
        supports_check_mode=True,
        **CONNECTION_CONSTRAINTS,
    )
    if module.check_mode:
        module.exit_json(changed=False, running=True, requests=0, waited=0.0, peers=[])
    try:
        with open_client(module) as client:
            result = wait(client, module.params["quiet"], module.params["patience"])
    except MemcachedError as exc:
        if not isinstance(exc.__cause__, (ConnectionRefusedError, FileNotFoundError)):
            module.fail_json(msg=str(exc))
        module.exit_json(changed=False, running=False, requests=0, waited=0.0, peers=[])
    module.exit_json(changed=False, running=True, **result)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Ansible reads the documentation ahead of the imports.
"""Ansible module: read a memcached's statistics and settings."""

from __future__ import annotations

DOCUMENTATION = r"""
module: memcached_info
short_description: Read the statistics and settings of a memcached
version_added: "0.1.0"
description:
  - Returns what a running memcached tells about itself, with numbers as numbers and switches as
    booleans.
  - The module runs on the host that connects to the memcached, often the one memcached runs on.
author:
  - Tenfold maintainers (@tenfold-stack)
extends_documentation_fragment:
  - tenfold.stack.memcached_client
attributes:
  check_mode:
    description: Can run in check mode and return the prediction without changing anything.
    support: full
    details:
      - This module never changes anything.
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
  gather_subset:
    description:
      - What to return beside RV(version), RV(uptime) and RV(hit_rate).
      - V(general) returns RV(general).
      - V(settings) returns RV(settings).
      - V(items) returns RV(item_classes).
      - V(slabs) returns RV(slabs).
    type: list
    elements: str
    choices: [general, settings, items, slabs]
    default: [general, settings]
seealso:
  - module: tenfold.stack.memcached_item
  - name: memcached protocol
    description: The meaning of each statistic and setting.
    link: https://github.com/memcached/memcached/blob/master/doc/protocol.txt
"""

EXAMPLES = r"""
- name: Read statistics and settings of the local memcached
  tenfold.stack.memcached_info:
  register: cache

- name: Check that the memory limit is in effect
  ansible.builtin.assert:
    that: cache.settings.maxbytes == 512 * 1024 * 1024

- name: Complain about a cache that is seldom hit
  ansible.builtin.debug:
    msg: "Only {{ (100 * cache.hit_rate) | round(1) }} % of all reads find an item"
  when:
    - cache.hit_rate is not none
    - cache.hit_rate < 0.8

- name: Read how items are spread over sizes
  tenfold.stack.memcached_info:
    gather_subset: [items, slabs]
  register: cache

- name: Name the slab classes that drop items
  ansible.builtin.debug:
    msg: "{{ cache.item_classes | selectattr('evicted', 'gt', 0) | map(attribute='slab_class') }}"
"""

RETURN = r"""
version:
  description: Version of the memcached.
  returned: success
  type: str
  sample: 1.6.18
uptime:
  description: Seconds since the memcached was started.
  returned: success
  type: int
  sample: 86400
hit_rate:
  description: Part of all reads that found an item, from 0 to 1. Null as long as nothing was read.
  returned: success
  type: float
  sample: 0.93
general:
  description:
    - General statistics, under memcached's own names.
    - All are integers, but for the texts C(version) and C(libevent), the floats C(rusage_user) and
      C(rusage_system), and the booleans C(accepting_conns), C(hash_is_expanding) and
      C(slab_reassign_running).
  returned: when O(gather_subset) has V(general)
  type: dict
  sample:
    curr_items: 1200
    evictions: 0
    accepting_conns: true
    rusage_user: 12.5
settings:
  description:
    - Settings the memcached runs with, under its own names.
    - C(yes), C(no), C(on) and C(off) are returned as booleans, and settings without a value as
      null. C(umask) is text, as it is an octal number.
  returned: when O(gather_subset) has V(settings)
  type: dict
  sample:
    maxbytes: 67108864
    inter: 127.0.0.1
    evictions: true
    growth_factor: 1.25
    domain_socket:
    umask: "700"
item_classes:
  description:
    - Statistics of the stored items by slab class, under memcached's own names.
    - Classes without items are not listed.
  returned: when O(gather_subset) has V(items)
  type: list
  elements: dict
  sample:
    - slab_class: 1
      number: 1200
      evicted: 0
  contains:
    slab_class:
      description: Number of the slab class.
      type: int
      returned: always
      sample: 1
slabs:
  description: Statistics of the memory.
  returned: when O(gather_subset) has V(slabs)
  type: dict
  contains:
    active_slabs:
      description: Number of slab classes that have memory.
      type: int
      returned: always
      sample: 1
    total_malloced:
      description: Memory given to slab classes, in bytes.
      type: int
      returned: always
      sample: 1048576
    classes:
      description: Statistics of each slab class, under memcached's own names.
      type: list
      elements: dict
      returned: always
      sample:
        - slab_class: 1
          chunk_size: 96
          used_chunks: 1200
      contains:
        slab_class:
          description: Number of the slab class.
          type: int
          returned: always
          sample: 1
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tenfold.stack.plugins.module_utils.memcached_client import (
    CONNECTION_CONSTRAINTS,
    MemcachedClient,
    MemcachedError,
    connection_argument_spec,
    open_client,
    slab_class_stats,
    typed_stats,
)

SUBSETS = ["general", "settings", "items", "slabs"]


def hit_rate(general: dict[str, Any]) -> float | None:
    """The part of all gets that were hits, None when there were no gets."""
    if not general["cmd_get"]:
        return None
    return general["get_hits"] / general["cmd_get"]


def gather(client: MemcachedClient, subsets: list[str]) -> dict[str, Any]:
    """The module's result for these subsets."""
    general = typed_stats(client.stats())
    result: dict[str, Any] = {
        "version": client.version,
        "uptime": general["uptime"],
        "hit_rate": hit_rate(general),
    }
    if "general" in subsets:
        result["general"] = general
    if "settings" in subsets:
        result["settings"] = typed_stats(client.stats("settings"))
    if "items" in subsets:
        # Not "items": in a template, that name after a dot is the method of a dictionary.
        result["item_classes"] = slab_class_stats(client.stats("items"))[0]
    if "slabs" in subsets:
        classes, totals = slab_class_stats(client.stats("slabs"))
        result["slabs"] = {**totals, "classes": classes}
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **connection_argument_spec(),
            "gather_subset": {
                "type": "list",
                "elements": "str",
                "choices": SUBSETS,
                "default": ["general", "settings"],
            },
        },
        supports_check_mode=True,
        **CONNECTION_CONSTRAINTS,
    )
    try:
        with open_client(module) as client:
            result = gather(client, module.params["gather_subset"])
    except MemcachedError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

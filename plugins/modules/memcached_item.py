#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Ansible reads the documentation ahead of the imports.
"""Ansible module: store, delete or read one memcached item."""

from __future__ import annotations

DOCUMENTATION = r"""
module: memcached_item
short_description: Store, delete or read a memcached item
version_added: "0.1.0"
description:
  - Makes sure that a memcached has, or does not have, an item with a given value and lifetime, or
    reads an item.
  - The module runs on the host that connects to the memcached, often the one memcached runs on.
author:
  - Tenfold maintainers (@tenfold-stack)
extends_documentation_fragment:
  - tenfold.stack.memcached_client
attributes:
  check_mode:
    description: Can run in check mode and return the prediction without changing anything.
    support: full
  diff_mode:
    description: Returns what has changed, or in check mode would change, in diff mode.
    support: full
  platform:
    description: Target systems the module works on.
    platforms: posix
    support: full
options:
  key:
    description:
      - Key of the item.
      - At most 250 bytes as UTF-8, without spaces and control characters.
    type: str
    required: true
  state:
    description:
      - V(present) stores the item, unless memcached has it with the same value already.
      - V(absent) deletes the item.
      - V(read) only returns the item; that there is none is not a failure.
    type: str
    choices: [present, absent, read]
    default: present
  value:
    description:
      - Value of the item, stored as UTF-8. Quote it if it looks like a number or a boolean.
      - O(state=present) needs either this or O(value_base64).
      - The value is shown in results and diffs; use C(no_log) on the task if it is a secret.
    type: str
  value_base64:
    description:
      - Value of the item in Base64, for values that are not text.
      - Mutually exclusive with O(value).
    type: str
  expire:
    description:
      - Lifetime of the item in seconds from now, V(0) for an item that never expires.
      - This always is a lifetime, also above 30 days, where memcached itself would read a Unix
        time. The lifetime has to end before 19 January 2038.
      - An item that has the value already gets this lifetime anew, which is a change, if its
        remaining lifetime is further from it than O(expire_tolerance).
      - memcached before 1.6 does not tell the remaining lifetime; the lifetime is then set each
        time.
      - If not given, an item that is stored never expires, and an item that has the value already
        keeps its lifetime.
      - Only used with O(state=present).
    type: int
  expire_tolerance:
    description:
      - Seconds that the remaining lifetime may be away from O(expire) without being set anew.
      - Set it as high as O(expire) to let an item with the right value expire when it is due,
        however often the task runs.
    type: int
    default: 5
  flags:
    description:
      - Number stored with the item, from 0 to 4294967295. Client libraries use it to mark how a
        value is encoded.
      - If not given, an item that is stored gets 0, and an item that has the value already keeps
        its flags.
      - Only used with O(state=present).
    type: int
notes:
  - memcached may drop any item at any time to make room for others.
  - Every run reads the item, which counts in memcached's statistics.
seealso:
  - module: tenfold.stack.memcached_info
  - name: memcached protocol
    description: What memcached says about keys, flags and expiry times.
    link: https://github.com/memcached/memcached/blob/master/doc/protocol.txt
"""

EXAMPLES = r"""
- name: Switch on a feature for ten minutes
  tenfold.stack.memcached_item:
    key: feature:new-checkout
    value: "on"
    expire: 600

- name: Read it
  tenfold.stack.memcached_item:
    key: feature:new-checkout
    state: read
  register: feature

- name: Show it
  ansible.builtin.debug:
    msg: "{{ feature.item.value if feature.item.found else 'not set' }}"

- name: Delete an item through a Unix socket
  tenfold.stack.memcached_item:
    socket: /run/memcached/sessions.sock
    key: report:2024
    state: absent
  become: true

- name: Store a file that is not text, over TLS and with a login
  tenfold.stack.memcached_item:
    host: cache.example.com
    tls: true
    ca_path: /etc/ssl/certs/example-ca.pem
    login_user: deploy
    login_password: "{{ cache_password }}"
    key: logo
    value_base64: "{{ lookup('ansible.builtin.file', 'logo.png.b64') }}"
"""

RETURN = r"""
item:
  description: The item after the task (in check mode, as it would be).
  returned: success
  type: dict
  contains:
    key:
      description: Key of the item.
      type: str
      returned: always
      sample: feature:new-checkout
    found:
      description: Whether memcached has the item. If not, all the values below are null.
      type: bool
      returned: always
      sample: true
    value:
      description: The value as text, null if it is not valid UTF-8.
      type: str
      returned: always
      sample: "on"
    value_base64:
      description: The value in Base64 if it is not valid UTF-8, else null.
      type: str
      returned: always
      sample: iVBORw0KGgo=
    size:
      description: Length of the value in bytes.
      type: int
      returned: always
      sample: 2
    flags:
      description: Number stored with the item.
      type: int
      returned: always
      sample: 0
    ttl:
      description:
        - Remaining lifetime in seconds, V(-1) if the item never expires.
        - Null if memcached does not tell, as before version 1.6.
      type: int
      returned: always
      sample: 600
"""

import base64
import binascii
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes
from ansible_collections.tenfold.stack.plugins.module_utils.memcached_client import (
    CONNECTION_CONSTRAINTS,
    NEVER,
    RELATIVE_EXPIRE_MAX,
    Item,
    MemcachedClient,
    MemcachedError,
    connection_argument_spec,
    expiry_time,
    key_bytes,
    open_client,
)

FLAGS_MAX = 2**32 - 1


def wanted_value(params: dict[str, Any]) -> bytes:
    """The bytes to store. Raises MemcachedError for a value_base64 that is none."""
    if params["value_base64"] is None:
        return to_bytes(params["value"], errors="surrogate_or_strict")
    try:
        # Base64 text often comes in lines.
        return base64.b64decode("".join(params["value_base64"].split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise MemcachedError(
            f"value_base64 is not valid Base64 ({exc}): encode the value, for example with the "
            "b64encode filter, or give text as value."
        ) from exc


def check_numbers(params: dict[str, Any]) -> None:
    """Raise MemcachedError for a number memcached cannot take."""
    for name in ("expire", "expire_tolerance"):
        if (params[name] or 0) < 0:
            raise MemcachedError(f"{name} is {params[name]}: give seconds from 0 upwards.")
    if not 0 <= (params["flags"] or 0) <= FLAGS_MAX:
        raise MemcachedError(f"flags is {params['flags']}: give a number from 0 to {FLAGS_MAX}.")


def lifetime_fits(ttl: int | None, expire: int, tolerance: int) -> bool:
    """Whether a remaining lifetime (Item.ttl) is what expire asks for; never when unknown."""
    wanted = expire or NEVER
    if ttl is None or NEVER in (ttl, wanted):
        return ttl == wanted
    return abs(ttl - wanted) <= tolerance


def describe(key: str, item: Item | None) -> dict[str, Any]:
    """The returned form of an item, None for one that is not there."""
    text, encoded = None, None
    if item is not None:
        try:
            text = item.value.decode("utf-8")
        except UnicodeDecodeError:
            encoded = base64.b64encode(item.value).decode("ascii")
    return {
        "key": key,
        "found": item is not None,
        "value": text,
        "value_base64": encoded,
        "size": len(item.value) if item else None,
        "flags": item.flags if item else None,
        "ttl": item.ttl if item else None,
    }


def ensure_present(
    client: MemcachedClient,
    key: bytes,
    current: Item | None,
    value: bytes,
    params: dict[str, Any],
    dry: bool,
) -> Item:
    """Store the item, or renew its lifetime, as far as needed; with dry only find out.

    Returns the item as it is then: current itself if nothing had to be done.
    """
    flags, expire = params["flags"], params["expire"]
    kept = current
    if current and (current.value != value or flags not in (None, current.flags)):
        kept = None
    if kept and (expire is None or lifetime_fits(kept.ttl, expire, params["expire_tolerance"])):
        return kept

    server_time = client.server_time() if (expire or 0) > RELATIVE_EXPIRE_MAX else 0
    expiry = expiry_time(expire or 0, server_time)
    # An item that has ended since it was read cannot be touched, and has to be stored.
    if kept and (dry or client.touch(key, expiry)):
        return replace(kept, ttl=expire or NEVER)
    client.ensure_fits(value)
    if not dry:
        client.store(key, value, expiry, flags or 0)
    return Item(value, flags or 0, expire or NEVER)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Do what the module's options ask for and return its result."""
    params, dry = module.params, module.check_mode
    key = key_bytes(params["key"])
    check_numbers(params)
    value = wanted_value(params) if params["state"] == "present" else b""
    with open_client(module) as client:
        before = client.fetch(key)
        after, changed = before, False
        if params["state"] == "present":
            after = ensure_present(client, key, before, value, params, dry)
            changed = after is not before
        elif params["state"] == "absent" and before is not None:
            after = None
            changed = dry or client.delete(key)
    item = describe(params["key"], after)
    return {
        "changed": changed,
        "item": item,
        "diff": {"before": describe(params["key"], before), "after": item},
    }


def main() -> None:
    """Run the module."""
    constraints = CONNECTION_CONSTRAINTS
    module = AnsibleModule(
        argument_spec={
            **connection_argument_spec(),
            "key": {"type": "str", "required": True, "no_log": False},
            "state": {
                "type": "str",
                "choices": ["present", "absent", "read"],
                "default": "present",
            },
            "value": {"type": "str"},
            "value_base64": {"type": "str"},
            "expire": {"type": "int"},
            "expire_tolerance": {"type": "int", "default": 5},
            "flags": {"type": "int"},
        },
        mutually_exclusive=[*constraints["mutually_exclusive"], ("value", "value_base64")],
        required_together=constraints["required_together"],
        required_by=constraints["required_by"],
        required_if=[("state", "present", ("value", "value_base64"), True)],
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except MemcachedError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

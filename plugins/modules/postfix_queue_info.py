#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Ansible reads the documentation ahead of the imports.
"""Ansible module: tell what waits in the queues of a Postfix."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postfix_queue_info
short_description: Tell what waits in the queues of a Postfix
version_added: "0.1.0"
description:
  - Returns messages, bytes and the oldest age for each queue of a Postfix, and on request for each destination.
  - The module reads the queue's directories itself. This takes a fraction of a second where C(postqueue) takes many,
    and works while Postfix is stopped too.
  - It needs the rights of V(root) or of Postfix's own user.
author:
  - Tenfold maintainers (@tenfold-stack)
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
  config_directory:
    description:
      - Directory of the configuration of the Postfix, which is asked where its queue is.
      - Not used with O(queue_directory).
    type: path
    default: /etc/postfix
  queue_directory:
    description:
      - Directory of the queue, for example V(/var/spool/postfix).
    type: path
  destinations:
    description:
      - Whether to return RV(destinations) too. Each message is opened then.
    type: bool
    default: false
notes:
  - Postfix moves mails from queue to queue while they are counted. Each is counted once.
  - Mails that clients are still sending are left out, as they were not accepted yet.
seealso:
  - name: Postfix Queue Scheduler
    description: The meaning of each queue.
    link: https://www.postfix.org/QSHAPE_README.html
"""

EXAMPLES = r"""
- name: Read the queues
  tenfold.stack.postfix_queue_info:
  register: mail

- name: Check that good mail isn't waiting
  ansible.builtin.assert:
    that: mail.queues.active.messages < 1000

- name: Wait until the queue is empty
  tenfold.stack.postfix_queue_info:
  register: mail
  until: mail.messages == 0
  retries: 60
  delay: 5

- name: Read the queue of another instance, with destinations
  tenfold.stack.postfix_queue_info:
    config_directory: /etc/postfix-bulk
    destinations: true
  register: bulk

- name: Name the domains with most mail
  ansible.builtin.debug:
    msg: "{{ bulk.destinations[:10] }}"
"""

RETURN = r"""
queue_directory:
  description: Directory of the queue.
  returned: success
  type: str
  sample: /var/spool/postfix
queues:
  description:
    - The queues by name, which are C(maildrop), C(incoming), C(active), C(deferred), C(hold) and C(corrupt).
  returned: success
  type: dict
  sample:
    deferred:
      messages: 120
      bytes: 498120
      oldest_age: 7200
  contains:
    messages:
      description: Number of messages.
      type: int
      returned: always
      sample: 120
    bytes:
      description: Size of their files.
      type: int
      returned: always
      sample: 498120
    oldest_age:
      description:
        - Seconds since the oldest message came. Null when there is none.
        - A file only tells when its message came if Postfix has C(enable_long_queue_ids), or if O(destinations=true).
          Else these are the seconds since Postfix last touched the message, which it does at each attempt to deliver.
      type: int
      returned: always
      sample: 7200
messages:
  description: Number of messages in all queues.
  returned: success
  type: int
  sample: 121
bytes:
  description: Size of all their files.
  returned: success
  type: int
  sample: 500120
oldest_age:
  description: Seconds since the oldest message of all came, as in RV(queues). Null when there is none.
  returned: success
  type: int
  sample: 7200
destinations:
  description:
    - What waits for each domain, the one with most messages first. C(corrupt) is left out.
    - A message counts for each domain that at least one of its recipients is still to be delivered to.
  returned: when O(destinations=true)
  type: list
  elements: dict
  sample:
    - domain: example.com
      messages: 100
      bytes: 410000
      oldest_age: 7200
  contains:
    domain:
      description: Domain of the recipients, in lower case. Empty for recipients without one.
      type: str
      returned: always
      sample: example.com
    messages:
      description: Number of messages.
      type: int
      returned: always
      sample: 100
    bytes:
      description: Size of their files.
      type: int
      returned: always
      sample: 410000
    oldest_age:
      description: Seconds since the oldest message came.
      type: int
      returned: always
      sample: 7200
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tenfold.stack.plugins.module_utils.postfix_queue import QUEUES, walk


class Count:
    """Messages, their bytes, and when the oldest came."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.since: float | None = None

    def add(self, size: int, since: float) -> None:
        """Count one message."""
        self.messages += 1
        self.bytes += size
        self.since = since if self.since is None else min(since, self.since)

    def result(self, now: float) -> dict[str, int | None]:
        """As the module returns it."""
        age = None if self.since is None else max(0, int(now - self.since))
        return {"messages": self.messages, "bytes": self.bytes, "oldest_age": age}


def domain_of(recipient: str) -> str:
    """The domain of an address, empty for a name alone."""
    _name, at, domain = recipient.rpartition("@")
    return domain.lower() if at else ""


def read(directory: str, with_destinations: bool) -> dict[str, Any]:
    """The module's result for a queue directory."""
    total = Count()
    queues = {name: Count() for name in QUEUES}
    destinations: dict[str, Count] = {}
    for mail in walk(directory, read=with_destinations):
        for count in (total, queues[mail.queue]):
            count.add(mail.size, mail.since)
        if mail.queue != "corrupt":
            for domain in set(map(domain_of, mail.waiting)):
                destinations.setdefault(domain, Count()).add(mail.size, mail.since)
    now = time.time()
    result: dict[str, Any] = {
        **total.result(now),
        "queues": {name: count.result(now) for name, count in queues.items()},
    }
    if with_destinations:
        most = sorted(destinations.items(), key=lambda item: (-item[1].messages, item[0]))
        result["destinations"] = [{"domain": domain, **count.result(now)} for domain, count in most]
    return result


def queue_directory_of(module: AnsibleModule) -> str:
    """The directory in the options, or the one that the configuration names."""
    if module.params["queue_directory"]:
        return module.params["queue_directory"]
    config = module.params["config_directory"]
    try:
        code, out, err = module.run_command(
            ["postconf", "-c", config, "-hx", "queue_directory"], handle_exceptions=False
        )
    except OSError as exc:
        module.fail_json(msg=f"postconf can't be run: {exc}. Install Postfix, or set queue_directory.")
    if code != 0:
        module.fail_json(msg=f"postconf can't read the configuration in {config}: {err.strip()}")
    return out.strip()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "config_directory": {"type": "path", "default": "/etc/postfix"},
            "queue_directory": {"type": "path"},
            "destinations": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    directory = queue_directory_of(module)
    try:
        if not set(QUEUES) & set(os.listdir(directory)):
            module.fail_json(msg=f"{directory} has no queues. Name the queue's own directory, or start Postfix once.")
        result = read(directory, module.params["destinations"])
    except PermissionError as exc:
        module.fail_json(msg=f"The queue can't be read: {exc}. Become root or Postfix's own user.")
    except OSError as exc:
        module.fail_json(msg=f"The queue can't be read: {exc}.")
    module.exit_json(changed=False, queue_directory=directory, **result)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at what a host has of memcached."""

from __future__ import annotations

DOCUMENTATION = r"""
module: memcached_host_info
short_description: Look at what a host has of memcached, in one call
version_added: 0.1.0
author: Tenfold maintainers (@tenfold-stack)
description:
  - Tells the release in use, which users exist, the state of the units of instances, and who listens on TCP and
    UDP ports, so that a play can check before it changes anything and skip what is done already.
  - For what a running daemon says of itself, use M(tenfold.stack.memcached_info).
options:
  prefix:
    description: Folder that holds the releases.
    type: path
    required: true
  service:
    description: Name of the template unit that the instances are made from.
    type: str
    default: memcached
  users:
    description: Names of users to look for.
    type: list
    elements: str
    default: []
  instances:
    description: The instances to look at.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the instance.
        type: str
        required: true
      files:
        description: The files that belong to it alone and that it reads at its start only.
        type: list
        elements: path
        default: []
      reread_files:
        description: The files that belong to it alone and that it reads again when it is reloaded.
        type: list
        elements: path
        default: []
      memory_folder:
        description: The folder on which its memory is mounted when it is warm.
        type: path
      items_expected:
        description: Whether to look in the journal if it took over the items of the process before.
        type: bool
        default: false
extends_documentation_fragment:
  - tenfold.stack.config_file
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
  platform:
    description: Target OS it works on.
    platforms: linux
    support: full
"""

EXAMPLES = r"""
- name: Look at the host
  tenfold.stack.memcached_host_info:
    prefix: /opt/tenfold/memcached
    instances:
      - name: default
  register: host
"""

RETURN = r"""
release:
  description: Name of the release that C(current) points to, null when there is none.
  returned: success
  type: str
  sample: 1.6.45-0f3c5d6e7a8b
releases:
  description: Names of all installed releases.
  returned: success
  type: list
  elements: str
users:
  description: Those of the users that exist.
  returned: success
  type: list
  elements: str
differing_files:
  description: Paths of the files that are not as described.
  returned: success
  type: list
  elements: str
memory:
  description: Memory of the host in MB.
  returned: success
  type: int
firewalld_active:
  description: Whether firewalld runs.
  returned: success
  type: bool
instances:
  description: State of each instance by its name.
  returned: success
  type: dict
  contains:
    active:
      description: Whether it serves.
      type: bool
    user:
      description: The user that its process runs as, also while it starts, null when there is no process.
      type: str
    configured:
      description: Whether one of its files is there.
      type: bool
    enabled:
      description: Whether it starts at boot.
      type: bool
    outdated:
      description: Whether its process is older than one of its files, the unit or the last switch of the release.
      type: bool
    unread:
      description: Whether one of the files that it reads again was changed after its start and its last reload.
      type: bool
    command:
      description: The arguments of its process, null when there is none.
      type: list
      elements: str
    release:
      description: The release that its process runs, null when there is none or it is not below O(prefix).
      type: str
    mounted:
      description: Whether its O(instances[].memory_folder) is mounted.
      type: bool
    cold:
      description: Whether it began without the items of the process before, null without O(instances[].items_expected).
      type: bool
listeners:
  description: Sockets that listen.
  returned: success
  type: list
  elements: dict
  contains:
    protocol:
      description: V(tcp) or V(udp).
      type: str
    address:
      description: The address, V(0.0.0.0) or V(::) for all.
      type: str
    port:
      description: The port.
      type: int
    user:
      description: The user that opened it.
      type: str
    pid:
      description: The process, null when it can't be told, as in a container without the capability SYS_PTRACE.
      type: int
    process:
      description: Name of the process.
      type: str
    unit:
      description: The systemd unit that it belongs to.
      type: str
"""

import ipaddress
import os
import pwd
import struct
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tenfold.stack.plugins.module_utils.config_file import (
    FILES_ARGUMENT,
    ConfigError,
    File,
    name_of,
)
from ansible_collections.tenfold.stack.plugins.module_utils.source_release import CURRENT, current_release
from ansible_collections.tenfold.stack.plugins.module_utils.systemd import properties_of

UNITS = "/etc/systemd/system"
TCP_LISTEN = "0A"
UDP_BOUND = "07"
# The state of a unit also changes, and changes back, when it is reloaded.
PROPERTIES = (
    "ActiveState,UnitFileState,MainPID,InvocationID,ExecMainStartTimestampMonotonic,StateChangeTimestampMonotonic"
)
COLD = "starting with a clean cache"  # as memcached tells it


def listeners() -> list[dict[str, Any]]:
    """Give the listening TCP and UDP sockets of this host with their processes."""
    sockets = [
        dict(protocol=name.rstrip("6"), **entry)
        for name, state in (
            ("tcp", TCP_LISTEN),
            ("tcp6", TCP_LISTEN),
            ("udp", UDP_BOUND),
            ("udp6", UDP_BOUND),
        )
        for entry in read_sockets(f"/proc/net/{name}", state)
    ]
    owners = owners_of({entry["inode"] for entry in sockets})
    for entry in sockets:
        entry.update(owners.get(entry.pop("inode"), {"pid": None, "process": None, "unit": None}))
    return sockets


def read_sockets(path: str, state: str) -> list[dict[str, Any]]:
    """Give address, port and inode of the sockets in a state, from a table of the kernel."""
    try:
        with open(path, encoding="ascii") as table:
            rows = [line.split() for line in table.readlines()[1:]]
    except FileNotFoundError:  # no IPv6 in this kernel
        return []
    found = []
    for row in rows:
        if row[3] == state:
            address, port = row[1].split(":")
            found.append(
                {
                    "address": decode_address(address),
                    "port": int(port, 16),
                    "user": name_of(pwd.getpwuid, int(row[7])),
                    "inode": row[9],
                }
            )
    return found


def decode_address(digits: str) -> str:
    """Give an address from the kernel's form: 32-bit words in the byte order of the machine."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(b"".join(struct.pack("=I", word) for word in words)))


def owners_of(inodes: set[str]) -> dict[str, dict[str, Any]]:
    """Give process and unit of the sockets with these inodes, as far as they can be told."""
    owners: dict[str, dict[str, Any]] = {}
    # A process that forks shares its sockets: the oldest is the one to name.
    for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        try:
            links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        except OSError:  # gone in between, or not ours to look at
            continue
        held = {link[8:-1] for link in links if link.startswith("socket:[")} & inodes
        for inode in held - owners.keys():
            owners[inode] = {"pid": int(pid), "process": comm_of(pid), "unit": unit_of(pid)}
    return owners


def memory() -> int:
    """Give the memory of the host in MB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def comm_of(pid: str) -> str | None:
    """Give the name of a process."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def unit_of(pid: str) -> str | None:
    """Give the systemd service that a process belongs to."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        for part in reversed(line.split("/")):
            if part.endswith(".service"):
                return part
    return None


def instance_states(module: AnsibleModule) -> dict[str, dict[str, Any]]:
    """Give the state of each instance by its name."""
    wanted = module.params["instances"]
    if not wanted:
        return {}
    current = os.path.join(module.params["prefix"], CURRENT)
    service = module.params["service"]
    template = os.path.join(UNITS, f"{service}@.service")
    units = [f"{service}@{instance['name']}.service" for instance in wanted]
    states = {}
    for instance, unit in zip(wanted, properties_of(module, units, PROPERTIES)):
        pid = int(unit["MainPID"])
        # Files carry wall time, systemd gives monotonic time: bring the latter to the former.
        boot = time.time() - time.monotonic()
        started = boot + int(unit["ExecMainStartTimestampMonotonic"]) / 1e6
        read = boot + int(unit["StateChangeTimestampMonotonic"]) / 1e6
        states[instance["name"]] = {
            "active": unit["ActiveState"] == "active",
            "configured": any(os.path.lexists(path) for path in instance["files"] + instance["reread_files"]),
            "user": owner_of(pid) if pid else None,
            "enabled": unit["UnitFileState"] == "enabled",
            "outdated": bool(pid)
            and any(changed_after(path, started) for path in [current, template, *instance["files"]]),
            "unread": bool(pid) and any(changed_after(path, read) for path in instance["reread_files"]),
            "command": command_of(pid) if pid else None,
            "release": release_of(pid, module.params["prefix"]) if pid else None,
            "mounted": bool(instance["memory_folder"]) and os.path.ismount(instance["memory_folder"]),
            "cold": began_cold(module, unit["InvocationID"]) if instance["items_expected"] else None,
        }
    return states


def command_of(pid: int) -> list[str] | None:
    """Give the arguments of a process."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            return file.read().split("\0")[1:-1]
    except OSError:
        return None


def release_of(pid: int, prefix: str) -> str | None:
    """Give the name of the release below a prefix that a process runs."""
    folder = os.path.join(os.path.realpath(prefix), "")
    try:
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None
    return program[len(folder) :].split("/")[0] if program.startswith(folder) else None


def began_cold(module: AnsibleModule, invocation: str) -> bool:
    """Tell whether a unit's process said that it took over no items."""
    code, _out, _err = module.run_command(
        ["journalctl", "--quiet", "--no-pager", f"--grep={COLD}", f"_SYSTEMD_INVOCATION_ID={invocation}"]
    )
    return code == 0


def owner_of(pid: int) -> str | None:
    """Give the user that a process runs as."""
    try:
        return name_of(pwd.getpwuid, os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return None


def changed_after(path: str, moment: float) -> bool:
    """Tell whether a file or link was changed after a moment in seconds since the epoch."""
    try:
        return os.lstat(path).st_mtime > moment
    except OSError:
        return False


def exists(user: str) -> bool:
    """Tell whether a user exists."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def releases_in(prefix: str) -> list[str]:
    """Give the names of the releases below a prefix."""
    if not os.path.isdir(prefix):
        return []
    return sorted(
        entry.name
        for entry in os.scandir(prefix)
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "path", "required": True},
            "service": {"type": "str", "default": "memcached"},
            "users": {"type": "list", "elements": "str", "default": []},
            **FILES_ARGUMENT,
            "instances": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "files": {"type": "list", "elements": "path", "default": []},
                    "reread_files": {"type": "list", "elements": "path", "default": []},
                    "memory_folder": {"type": "path"},
                    "items_expected": {"type": "bool", "default": False},
                },
            },
        },
        supports_check_mode=True,
    )
    prefix = module.params["prefix"]
    try:
        files = [File(wanted) for wanted in module.params["files"]]
        differing = [file.path for file in files if file.before() != file.after()]
    except (ConfigError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        release=current_release(prefix),
        releases=releases_in(prefix),
        users=[user for user in module.params["users"] if exists(user)],
        differing_files=differing,
        memory=memory(),
        firewalld_active=any(comm_of(pid) == "firewalld" for pid in os.listdir("/proc") if pid.isdigit()),
        instances=instance_states(module),
        listeners=listeners(),
    )


if __name__ == "__main__":
    main()

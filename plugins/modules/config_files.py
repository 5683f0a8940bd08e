#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write configuration files that belong together, as one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Write configuration files that belong together, checked as a whole before any is replaced
version_added: 0.1.0
author: Tenfold maintainers (@tenfold-stack)
description:
  - Compares a set of files with what the host has, in one call. Where something differs, all files are first written to
    a scratch folder that mirrors their places, the commands of O(validate) are run on that, and only if each of them
    is satisfied are the files moved to their places. A failure before that leaves all of them as they were.
  - Use M(ansible.builtin.template) for a file that stands alone. This module is for files that a daemon can only check
    together, and for fleets, where each task costs a call to every host.
  - Contents usually come from P(ansible.builtin.template#lookup).
options:
  derived:
    description:
      - Files that a command makes from files of O(files), such as tables that a daemon looks up.
      - The command is run in the scratch folder when the source differs or the derived file is missing, before the
        commands of O(validate). What it made is moved into place together with the files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the derived file goes.
        type: path
        required: true
      source:
        description: The C(path) of the file in O(files) that it is made from.
        type: path
        required: true
      command:
        description:
          - The program and its arguments. V({root}) stands for the scratch folder, below which it makes the file.
          - Whatever it prints to its standard error is taken as a refusal.
        type: list
        elements: str
        required: true
      advice:
        description: What to change when the command refuses the source. It begins the error message.
        type: str
        default: the new configuration was refused
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
  absent:
    description: Files that must not be there.
    type: list
    elements: path
    default: []
  validate:
    description: Commands that check the new files. They are only run when a file differs.
    type: list
    elements: dict
    default: []
    suboptions:
      command:
        description: The program and its arguments. V({root}) stands for the scratch folder, under which the files lie.
        type: list
        elements: str
        required: true
      satisfied_by:
        description: Exit statuses that mean that the files are good.
        type: list
        elements: int
        default: [0]
      quiet:
        description: Whether anything that the command prints to its standard error means that the files are bad, too.
        type: bool
        default: false
      advice:
        description: What to change when the command is not satisfied. It begins the error message.
        type: str
        default: the new configuration was refused
  units:
    description:
      - Units of systemd that are to be as said when all files are in place. systemd reads changed units first.
      - One that runs already is left, unless a file of O(units[].restart_for) or O(units[].reload_for) is newer.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its full name.
        type: str
        required: true
      state:
        description: Whether it is to run now.
        type: str
        choices: [started, stopped]
        default: started
      enabled:
        description: Whether it is to run after a boot.
        type: bool
        default: true
      restart_for:
        description:
          - Files and folders that it reads when it starts, such as its configuration, its unit and certificates.
          - If it is to run and does so already, it is restarted when this call changes one of them, or when one was
            changed after its start began. That one is found no matter who changed it, so a call that was interrupted
            before it came to the restart is made good by the next one.
          - The time is that of the last change of content or permissions (ctime). Of a link both its own and that of
            what it leads to count, so name the link that tells which release is in use. A folder changes when
            something directly in it is made, replaced or removed.
          - What is not there is passed over. Name the folder for a file whose removal matters, and nothing that the
            unit itself writes.
        type: list
        elements: path
        default: []
      reload_for:
        description:
          - Files and folders that it reads when it starts, and again when it is reloaded. If none of
            O(units[].restart_for) asks for a restart, it is reloaded when one of these was changed after its last
            successful reload ended, or else after its start began.
        type: list
        elements: path
        default: []
notes:
  - Many file systems note times in steps of the kernel's clock, of 1 to 10 milliseconds. What another program changes
    less than one step before a unit starts counts as changed after it, and may cost one more restart.
extends_documentation_fragment:
  - tenfold.stack.config_file
attributes:
  check_mode:
    description: Can run in check mode and tell what would change. The commands of O(validate) are run then, too.
    support: full
  diff_mode:
    description: Shows the difference of each file.
    support: full
  platform:
    description: Target OS it works on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Write Postfix's two files, if Postfix takes them together
  tenfold.stack.config_files:
    files:
      - path: /etc/postfix/main.cf
        content: "{{ lookup('ansible.builtin.template', 'etc/postfix/main.cf.j2') }}"
      - path: /etc/postfix/master.cf
        content: "{{ lookup('ansible.builtin.template', 'etc/postfix/master.cf.j2') }}"
    validate:
      - command: [postfix, -c, "{root}/etc/postfix", check]
        advice: change postfix_main or postfix_master

- name: Write a table of Postfix, and what Postfix looks up in it
  tenfold.stack.config_files:
    files:
      - path: /etc/postfix/transport
        content: "example.net smtp:[mail.example.net]\n"
    derived:
      - path: /etc/postfix/transport.lmdb
        source: /etc/postfix/transport
        command: [postmap, "lmdb:{root}/etc/postfix/transport"]

- name: Write a unit and start it
  tenfold.stack.config_files:
    files:
      - path: /etc/systemd/system/refresh.timer
        content: "{{ lookup('ansible.builtin.template', 'etc/systemd/system/refresh.timer.j2') }}"
    units:
      - name: refresh.timer
        restart_for: [/etc/systemd/system/refresh.timer]

- name: Write the configuration of a service, which is restarted for another release and reloaded for the rest
  tenfold.stack.config_files:
    files:
      - path: /etc/systemd/system/greet.service
        content: "{{ lookup('ansible.builtin.template', 'etc/systemd/system/greet.service.j2') }}"
      - path: /etc/greet.conf
        content: "{{ lookup('ansible.builtin.template', 'etc/greet.conf.j2') }}"
    units:
      - name: greet.service
        restart_for: [/etc/systemd/system/greet.service, /opt/greet/current]
        reload_for: [/etc/greet.conf, /etc/pki/tls/certs/greet.crt]
"""

RETURN = r"""
changed_files:
  description: Paths of the files that were written, removed, or given other permissions.
  returned: success
  type: list
  elements: str
  sample: [/etc/postfix/main.cf]
changed_units:
  description: Units that were started, stopped, restarted, reloaded, enabled or disabled.
  returned: success
  type: list
  elements: str
  sample: [refresh.timer]
restarted_units:
  description: Those that ran on something older than their O(units[].restart_for), and were restarted.
  returned: success
  type: list
  elements: str
  sample: [greet.service]
reloaded_units:
  description: Those that had read something older than their O(units[].reload_for), and were reloaded.
  returned: success
  type: list
  elements: str
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tenfold.stack.plugins.module_utils.config_file import FILES_ARGUMENT, ConfigError, File
from ansible_collections.tenfold.stack.plugins.module_utils.systemd import properties_of

UNIT_FOLDERS = ("/etc/systemd/", "/run/systemd/", "/usr/lib/systemd/", "/usr/local/lib/systemd/")
PROPERTIES = (
    "ActiveState,UnitFileState,NeedDaemonReload,ReloadResult,"
    "InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic,StateChangeTimestampMonotonic"
)
CLOCK_REALTIME_COARSE = 5  # of Linux: the clock that file systems take times from. Python has no name for it.


def diff_of(path: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, str]:
    """Give Ansible's form of a difference; permissions are told in the headers."""

    def header(state: dict[str, Any] | None) -> str:
        return f"{path} ({state['owner']}:{state['group']} {state['mode']:04o})" if state else "/dev/null"

    def text(state: dict[str, Any] | None) -> str:
        return state["content"].decode(errors="replace") if state else ""

    return {
        "before": text(before),
        "after": text(after),
        "before_header": header(before),
        "after_header": header(after),
    }


def run(module: AnsibleModule, root: str, step: dict[str, Any]) -> None:
    """Run a command on the files in the scratch folder.

    :param step: an element of ``validate``.
    :raises ConfigError: it is not satisfied.
    """
    command = [part.replace("{root}", root) for part in step["command"]]
    code, out, err = module.run_command(command, expand_user_and_vars=False)
    if code not in step["satisfied_by"] or (step["quiet"] and err.strip()):
        told = "\n".join(
            part.strip() for part in (err, out if code not in step["satisfied_by"] else "") if part.strip()
        )
        message = f"{step['advice']}. `{' '.join(command)}` ended with status {code}: {told}"
        raise ConfigError(message.replace(root, ""))


def derive(module: AnsibleModule, root: str, steps: list[dict[str, Any]]) -> list[File]:
    """Make derived files in the scratch folder, and give them.

    :raises ConfigError: a command refuses its source or makes no file.
    """
    files = []
    for step in steps:
        run(module, root, {**step, "satisfied_by": [0], "quiet": True})
        try:
            with open(root + step["path"], "rb") as made:
                content = made.read().decode(errors="surrogateescape")
        except FileNotFoundError:
            raise ConfigError(f"`{' '.join(step['command'])}` did not make {step['path']}: correct derived") from None
        files.append(File({**step, "content": content}))
    return files


def differing_units(module: AnsibleModule, changed_files: list[str]) -> dict[str, list[str]]:
    """Give the units that each verb of systemctl is to be used on.

    :param changed_files: what this call writes or removes.
    :return: the units by verb. ``daemon-reload`` has those whose files systemd has not read yet: an earlier call may
        have been interrupted before it said so.
    """
    verbs: dict[str, list[str]] = {
        verb: [] for verb in ("disable", "stop", "enable", "restart", "reload", "start", "daemon-reload")
    }
    units = module.params["units"]
    if not units:
        return verbs
    changed = {place_of(path) for path in changed_files}
    changed |= {os.path.dirname(path) for path in changed}
    boot = boot_time()
    states = properties_of(module, [unit["name"] for unit in units], PROPERTIES)
    for unit, state in zip(units, states):
        # A unit without an [Install] section is "static" and can be neither.
        enabled = {"enabled": True, "static": unit["enabled"]}.get(state["UnitFileState"], False)
        if enabled != unit["enabled"]:
            verbs["enable" if unit["enabled"] else "disable"].append(unit["name"])
        runs = state["ActiveState"] in ("active", "reloading")
        begun = runs or state["ActiveState"] == "activating"  # it may have read its files already
        if unit["state"] == "stopped":
            if begun:
                verbs["stop"].append(unit["name"])
            continue
        if begun and is_outdated(unit["restart_for"], boot + started_at(state), changed):
            verbs["restart"].append(unit["name"])
        elif not runs:
            verbs["start"].append(unit["name"])
        elif is_outdated(unit["reload_for"], boot + read_at(state), changed):
            verbs["reload"].append(unit["name"])
        if state["NeedDaemonReload"] == "yes":
            verbs["daemon-reload"].append(unit["name"])
    return verbs


def place_of(path: str) -> str:
    """Give the path without links among its folders. It may be one itself."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def boot_time() -> int:
    """Give what the wall clock shows when the monotonic clock is 0, in nanoseconds.

    Files carry wall time and systemd gives monotonic time. Its own wall times are of before the clock was last set.
    """
    samples = []
    for _sample in range(5):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        samples.append((after - before, wall - (before + after) // 2))
    return min(samples)[1]  # the one that was interrupted least


def clock_step() -> int:
    """Give by how much the time of a file may be behind the clock, in nanoseconds."""
    return round(time.clock_getres(CLOCK_REALTIME_COARSE) * 1e9)


def started_at(state: dict[str, str]) -> int:
    """Give when a unit began to start, in nanoseconds of the monotonic clock."""
    return int(state["InactiveExitTimestampMonotonic"]) * 1000


def read_at(state: dict[str, str]) -> int:
    """Give when a unit last began to start, or else ended its last reload, in nanoseconds of the monotonic clock."""
    changed = int(state["StateChangeTimestampMonotonic"]) * 1000
    # What changes the state of a service that runs is a reload. One that failed may have read nothing.
    reloaded = changed > int(state["ActiveEnterTimestampMonotonic"]) * 1000 and state.get("ReloadResult") == "success"
    return changed if reloaded else started_at(state)


def is_outdated(paths: Iterable[str], moment: int, changed: set[str]) -> bool:
    """Tell whether one of some files is among the changed ones, or was changed after a moment.

    :param paths: files and folders. Those that are not there are passed over.
    :param moment: in nanoseconds since the epoch.
    :param changed: what this call changes, each as `place_of` gives it.
    """
    for path in paths:
        if {place_of(path), os.path.realpath(path)} & changed:
            return True
        for look in (os.lstat, os.stat):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                # After the clock was set back, a time may be still to come: it tells nothing before it has.
                if moment - clock_step() < look(path).st_ctime_ns <= time.time_ns():
                    return True
    return False


def systemctl(module: AnsibleModule, verb: str, *units: str) -> None:
    """Run systemctl.

    :raises ConfigError: it failed; the message has the end of the units' journal.
    """
    command = ["systemctl", verb, *units]
    code, _out, err = module.run_command(command)
    if code != 0:
        _code, journal, _err = module.run_command(
            ["journalctl", "--no-pager", "--output=cat", "--lines=20", *(f"--unit={unit}" for unit in units)]
        )
        raise ConfigError(f"`{' '.join(command)}` ended with status {code}: {err.strip()}\n{journal.strip()}")


def use(module: AnsibleModule, units_by_verb: dict[str, list[str]], *verbs: str) -> None:
    """Do with the units what these verbs say."""
    for verb in verbs:
        if units_by_verb[verb]:
            systemctl(module, verb, *units_by_verb[verb])


def apply(module: AnsibleModule) -> dict[str, Any]:
    """Compare, check and replace; give the module's result."""
    files = [File(wanted) for wanted in module.params["files"]]
    states = [(file, file.before()) for file in files]
    differing = [(file, before) for file, before in states if before != file.after()]
    gone = [path for path in module.params["absent"] if os.path.lexists(path)]
    for path in gone:
        if os.path.isdir(path) and not os.path.islink(path):
            raise ConfigError(f"{path} is to be absent but is a folder: remove it yourself")
    sources = {file.path for file in files}
    for step in module.params["derived"]:
        if step["source"] not in sources:
            raise ConfigError(f"{step['path']} is derived from {step['source']}, which is not among the files: add it")
    outdated = {file.path for file, _before in differing}
    steps = [
        step for step in module.params["derived"] if step["source"] in outdated or not os.path.exists(step["path"])
    ]
    changed_files = [file.path for file, _before in differing] + [step["path"] for step in steps] + gone
    verbs = differing_units(module, changed_files)
    unread = verbs.pop("daemon-reload")
    changed_units = sorted({unit for units in verbs.values() for unit in units})
    result = {
        "changed": bool(changed_files or changed_units),
        "changed_files": changed_files,
        "changed_units": changed_units,
        "restarted_units": sorted(verbs["restart"]),
        "reloaded_units": sorted(verbs["reload"]),
        "diff": [diff_of(file.path, before, file.after()) for file, before in differing]
        + [{"prepared": f"{step['path']} is made from {step['source']}\n"} for step in steps]
        + [{"before": "", "after": "", "before_header": path, "after_header": "/dev/null"} for path in gone],
    }
    derived: list[File] = []
    if steps or (differing and module.params["validate"]):
        root = tempfile.mkdtemp(prefix="config-", dir=module.tmpdir)
        try:
            # All of them, also the unchanged ones: a check of the whole needs the whole.
            for file in files:
                file.write_below(root)
            derived = derive(module, root, steps)
            for step in module.params["validate"]:
                run(module, root, step)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    if not module.check_mode:
        use(module, verbs, "disable", "stop")  # while systemd knows their files
        # The derived ones first: after an interruption their sources still differ.
        replace(module, derived + [file for file, _before in differing])
        for path in gone:
            os.unlink(path)
        unread = [unit for unit in unread if unit in changed_units]
        if (unread or any(path.startswith(UNIT_FOLDERS) for path in changed_files)) and not verbs["enable"]:
            systemctl(module, "daemon-reload")
        if changed_files and (verbs["restart"] or verbs["reload"] or verbs["start"]):
            time.sleep(2 * clock_step() / 1e9)  # or the next call could not tell that the files are older
        use(module, verbs, "enable", "restart", "reload", "start")  # enabling reads changed units, too
    return result


def replace(module: AnsibleModule, files: list[File]) -> None:
    """Put files to their places: what can fail is done for all of them before the first is replaced."""
    scratches: dict[str, str] = {}
    try:
        for file in files:
            scratches[file.path] = file.write_beside(module)
        for path in list(scratches):
            os.replace(scratches[path], path)
            del scratches[path]
    finally:
        for scratch in scratches.values():
            os.unlink(scratch)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **FILES_ARGUMENT,
            "absent": {"type": "list", "elements": "path", "default": []},
            "derived": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "source": {"type": "path", "required": True},
                    "command": {"type": "list", "elements": "str", "required": True},
                    "advice": {"type": "str", "default": "the new configuration was refused"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "validate": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "command": {"type": "list", "elements": "str", "required": True},
                    "satisfied_by": {"type": "list", "elements": "int", "default": [0]},
                    "quiet": {"type": "bool", "default": False},
                    "advice": {"type": "str", "default": "the new configuration was refused"},
                },
            },
            "units": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
                    "enabled": {"type": "bool", "default": True},
                    "restart_for": {"type": "list", "elements": "path", "default": []},
                    "reload_for": {"type": "list", "elements": "path", "default": []},
                },
            },
        },
        supports_check_mode=True,
    )
    # Folders that are made are for all users; files have their own modes.
    os.umask(0o022)
    try:
        result = apply(module)
    except (ConfigError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn the variables of the role memcached into what the daemon and systemd take."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ansible.errors import AnsibleFilterError

# Kept beside `connections`: memcached holds a few descriptors per thread, for its listeners, its
# logger and its crawler, and does not start when it can't have them.
SPARE_DESCRIPTORS = 256
DESCRIPTORS_PER_THREAD = 16

UNITS = "/etc/systemd/system"

# A warm instance gives each size of items a slab page of 1 MB when it starts, and there are at most 63 sizes.
LEAST_WARM_MEMORY = 64
# The folder of a warm instance holds more than its memory: a page of notes, which some kernels round to a huge page.
SPARE_ROOM = 4

# Arguments that decide how items lie in memory. With other ones memcached does not take them over.
LAYOUT_FLAGS = {"-m": "memory", "-I": "max_item_size", "-e": "memory-file"}
LAYOUT_OPTIONS = {"disable-cas", "max-item-size", "slab-growth-factor", "slab-min-size"}
LAYOUT_EXTENDED = {"no_modern", "no_slab_reassign", "slab_chunk_max", "slab_reassign", "slab_sizes"}

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to reach such a listener

Instance = dict[str, Any]


def memcached_instance(given: Mapping[str, Any], defaults: Mapping[str, Any], environment_folder: str) -> Instance:
    """Complete the description of an instance.

    :param given: an element of ``memcached_instances``.
    :param defaults: values for ``listen``, ``port``, ``memory``, ``connections``, ``threads``, ``user``, ``warm``
        and ``service``, the name of the template unit.
    :param environment_folder: where the platform keeps the environment files of services.
    :return: the description with all its values, and

        * ``unit``, ``unit_file``, ``environment_file``, ``drop_in`` and ``auth_file``: names and paths,
        * ``configuration``: the files that the daemon reads itself, in the form of the module ``config_files``,
        * ``files``: those of its own that it reads only when it starts, ``reread_files``: those that it reads
          again when it is reloaded,
        * ``sockets``: the addresses it listens on, each with ``address`` and ``port``,
        * ``places``: the same, or its socket's path, for people,
        * ``options``: its arguments beyond ``-p -u -m -c``, ``rehearsal``: all its arguments for a
          trial run that touches neither the ports nor the files of the running one, and that finds the new
          configuration below ``{root}``,
        * ``ready``: where it answers as soon as it serves, ``address/port`` or a socket's path,
        * ``descriptors``: how many files it may open,
        * ``memory_folder``, ``memory_file``, ``memory_room`` in MB, ``mount_unit`` and ``mount_file``: where its
          memory is when it is warm.

    :raises AnsibleFilterError: a value can't be passed to the daemon.
    """
    instance: Instance = {"state": "started", "socket": None, "socket_mode": "0700", **defaults, **given}
    name, service = instance["name"], instance["service"]
    instance.update(
        unit=f"{service}@{name}.service",
        unit_file=f"{UNITS}/{service}@.service",
        environment_file=f"{environment_folder}/{service}-{name}",
        drop_in=f"{UNITS}/{service}@{name}.service.d/instance.conf",
        auth_file=f"{environment_folder}/{service}-{name}.auth" if given.get("auth") else None,
        descriptors=instance["connections"] + DESCRIPTORS_PER_THREAD * instance["threads"] + SPARE_DESCRIPTORS,
    )
    # No folder of systemd's or of another instance has such a name.
    folder = f"/run/{service}@{name}"
    instance.update(
        memory_folder=folder,
        memory_file=f"{folder}/memory",
        memory_room=instance["memory"] + SPARE_ROOM,
        mount_unit=_mount_unit(folder),
        mount_file=f"{UNITS}/{_mount_unit(folder)}",
    )
    # Its group, so that a mode without others still lets it read them.
    instance["configuration"] = [
        {"mode": "0644", **file, "group": instance["user"]} for file in given.get("configuration") or ()
    ]
    instance["files"] = [instance["environment_file"], instance["drop_in"]]
    if instance["warm"]:
        instance["files"].append(instance["mount_file"])
    paths = [file["path"] for file in instance["configuration"]]
    instance["reread_files"] = [*paths, *filter(None, [instance["auth_file"]])]
    instance["sockets"] = [] if instance["socket"] else listeners(instance)
    instance["places"] = [f"{place['address']} port {place['port']}" for place in instance["sockets"]] or [
        instance["socket"]
    ]
    instance["ready"] = instance["socket"] or "{address}/{port}".format(**nearest(instance["sockets"]))
    extended = list(instance.get("extended") or ())
    safe = ["-t", instance["threads"], *_tls(instance, extended), *_security(instance), *_further(instance)]
    place = (
        ["-s", instance["socket"], "-a", instance["socket_mode"]]
        if instance["socket"]
        else ["-l", ",".join(map(str, instance["listen"])), "-U", 0]
    )
    _words(name, [instance["user"]])  # its place is the unit's
    warm = ["-e", instance["memory_file"]] if instance["warm"] else []
    instance["options"] = _words(name, [*place, *safe, *warm, *_joined(extended)])
    # A trial run must not touch what the running daemon keeps on disk.
    harmless = [option for option in extended if not str(option).startswith("ext_path=")]
    limits = ["-m", instance["memory"], "-c", instance["connections"]]
    # Port -1: the kernel chooses a free one. Root, as the new configuration is still where others can't read it.
    trial = ["-p", -1, "-l", "127.0.0.1", "-U", 0, "-u", "root"]
    words = _words(name, [*trial, *limits, *safe, *_joined(harmless)])
    instance["rehearsal"] = [_below_root(word, paths) for word in words]
    return instance


def _mount_unit(path: str) -> str:
    """Give the name that systemd wants for the unit of a mount, as ``systemd-escape --path`` does."""
    escaped = re.sub(r"[^A-Za-z0-9:_./]", lambda found: f"\\x{ord(found[0]):02x}", path.strip("/"))
    return escaped.replace("/", "-") + ".mount"


def _below_root(word: str, paths: Sequence[str]) -> str:
    """Put ``{root}`` ahead of each of these paths in an argument."""
    for path in paths:
        word = re.sub(rf"(?<![^=,:]){re.escape(path)}(?![^,:])", lambda found: "{root}" + found[0], word)
    return word


def listeners(instance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give where an instance listens.

    :param instance: its ``name``, its ``listen`` and its ``port``, as in ``memcached_instances``.
    :return: ``address`` and ``port`` of each element of ``listen``.
    :raises AnsibleFilterError: it listens nowhere.
    """
    found = []
    for entry in instance["listen"]:
        address, port = str(entry).removeprefix("notls:"), instance["port"]
        if address.startswith("["):  # [v6]:port
            address, rest = address[1:].partition("]")[::2]
            port = rest.removeprefix(":") or port
        elif address.count(":") == 1:
            address, port = address.partition(":")[::2]
        found.append({"address": "0.0.0.0" if address == "*" else address, "port": int(port)})
    if not found:
        raise AnsibleFilterError(
            f"the memcached instance {instance['name']} listens nowhere: set its listen or its socket"
        )
    return found


def nearest(sockets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give where the host itself reaches the first of the sockets, from `listeners`."""
    first = sockets[0]
    return {"address": ANY_ADDRESS.get(first["address"], first["address"]), "port": first["port"]}


def _tls(instance: Instance, extended: list[Any]) -> list[Any]:
    if not (tls := instance.get("tls")):
        return []
    extended += [f"ssl_chain_cert={tls['certificate']}", f"ssl_key={tls['key']}"]
    if tls.get("ca"):
        extended.append(f"ssl_ca_cert={tls['ca']}")
    if tls.get("verify_clients"):
        extended.append("ssl_verify_mode=2")
    return ["-Z"]


def _security(instance: Instance) -> list[Any]:
    auth = ["-Y", instance["auth_file"]] if instance["auth_file"] else []
    return auth + (["-S"] if instance.get("sasl") else [])


def _further(instance: Instance) -> list[Any]:
    words: list[Any] = ["-I", instance["max_item_size"]] if instance.get("max_item_size") else []
    for long_name, value in (instance.get("options") or {}).items():
        if value is True:
            words.append(f"--{long_name}")
        elif value is not False and value is not None:
            words.append(f"--{long_name}={value}")
    return words


def _joined(extended: Sequence[Any]) -> list[str]:
    return ["-o", ",".join(map(str, extended))] if extended else []


def _words(name: str, words: Sequence[Any]) -> list[str]:
    texts = [str(word) for word in words]
    for text in texts:
        # systemd splits the variable at white space, and quotes would reach the daemon as they are.
        if any(character.isspace() or character in "\"'\\$%" for character in text):
            raise AnsibleFilterError(
                f"the memcached instance {name} can't be given the argument {text!r}: systemd would change its "
                "white space, quotes, backslashes, dollar or percent signs. Use a value without them"
            )
    return texts


def feature_flag(feature: Mapping[str, Any], chosen: Sequence[str]) -> str:
    """Give configure's argument for a feature.

    :param feature: ``key``, its name, and ``value``, the arguments with and without it.
    :param chosen: names of the features that are wanted.
    """
    return str(feature["value"][0 if feature["key"] in chosen else 1])


def memcached_problems(
    instances: Sequence[Instance], host: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    """Tell why a host can't run its instances, before anything on it is changed.

    :param instances: from `memcached_instance`, also those that are to be absent.
    :param host: as returned by the module ``memcached_host_info``.
    :param settings: the role's variables ``version``, ``sha256``, ``known_versions`` and
        ``memory_share``, and the host's ``memory`` in MB.
    :return: a sentence for each problem that names the variable to change.
    """
    wanted = [instance for instance in instances if instance["state"] != "absent"]
    return [
        *_unknown_source(settings),
        *_twice(instances, "name", "Give each a name of its own"),
        *_twice(wanted, "places", "Give each a port, listen or socket of its own"),
        *_twice(wanted, "reread_files", "Give each a file of its own"),
        *_covered(wanted),
        *(problem for instance in wanted for problem in _unreadable(instance)),
        *(problem for instance in wanted if instance["warm"] for problem in _never_warm(instance)),
        *_too_much_memory(wanted, settings),
        *(problem for instance in wanted for problem in _held_ports(instance, host, instances)),
    ]


def _unknown_source(settings: Mapping[str, Any]) -> list[str]:
    if settings["sha256"]:
        return []
    return [
        f"No checksum is known for memcached {settings['version']}: set memcached_sha256 to the one that upstream "
        f"publishes for it, or memcached_version to one of {', '.join(settings['known_versions'])}."
    ]


def _twice(instances: Sequence[Instance], key: str, advice: str) -> list[str]:
    values = [
        value
        for instance in instances
        for value in (instance[key] if isinstance(instance[key], list) else [instance[key]])
    ]
    return [
        f"Two elements of memcached_instances have {value}. {advice}."
        for value in sorted({value for value in values if values.count(value) > 1})
    ]


def _covered(wanted: Sequence[Instance]) -> list[str]:
    """Tell which instances listen on all addresses of a port that another one listens on, too."""
    return [
        f"The memcached instance {one['name']} listens on all addresses, and so on {socket['address']} port "
        f"{socket['port']} of the instance {other['name']}, too. Change listen or port of one of them in "
        "memcached_instances."
        for one in wanted
        for any_socket in one["sockets"]
        if any_socket["address"] in ANY_ADDRESS
        for other in wanted
        for socket in other["sockets"]
        if other is not one and socket["port"] == any_socket["port"] and socket != any_socket
    ]


def _unreadable(instance: Instance) -> Iterator[str]:
    for file in instance["configuration"]:
        if re.fullmatch("[0-7]+", file["mode"]) and not int(file["mode"], 8) & 0o040:
            yield (
                f"The memcached instance {instance['name']} can't read {file['path']} with the mode {file['mode']}: "
                "let its group read it, as with 0640, in the configuration of that element of memcached_instances."
            )


def _never_warm(instance: Instance) -> Iterator[str]:
    """Tell why memcached would refuse to be warm, or why that would be of no use."""
    given = " ".join(instance["options"])
    reasons = {
        "ext_path=": "memcached does not take over what it has on disk. Remove ext_path from its extended",
        "proxy_config=": "as a proxy it has no items. Remove proxy_config from its extended",
        "--enable-largepages": "its memory is then no large pages. Remove enable-largepages from its options",
        "--memory-file": "the role chooses the file. Remove memory-file from its options",
    }
    found = [reason for word, reason in reasons.items() if word in given]
    if instance["memory"] < LEAST_WARM_MEMORY:
        found.append(f"{instance['memory']} MB are too little. Raise its memory to {LEAST_WARM_MEMORY} MB at least")
    for reason in found:
        yield (
            f"The memcached instance {instance['name']} can't be warm: {reason}, or set its warm to false in "
            "memcached_instances."
        )


def _too_much_memory(wanted: Sequence[Instance], settings: Mapping[str, Any]) -> list[str]:
    asked = sum(instance["memory"] for instance in wanted)
    limit = int(settings["memory"] * settings["memory_share"])
    if asked <= limit:
        return []
    return [
        f"The memcached instances are to take {asked} MB in all, but this host has {settings['memory']} MB, of which "
        f"{limit} MB may go to memcached. Lower memcached_memory or the memory of an element of memcached_instances, "
        f"or raise memcached_memory_share ({settings['memory_share']})."
    ]


def _held_ports(instance: Instance, host: Mapping[str, Any], own: Sequence[Instance]) -> Iterator[str]:
    # The instances that are managed here make room for each other. Where the process can't be told,
    # its user says whose it is.
    units = {other["unit"] for other in own}
    users = {state["user"] for state in host["instances"].values()}
    for socket in instance["sockets"]:
        for other in host["listeners"]:
            ours = other["unit"] in units or (other["pid"] is None and other["user"] in users)
            overlap = {other["address"], socket["address"]} & set(ANY_ADDRESS) or (
                other["address"] == socket["address"]
            )
            if (other["protocol"], other["port"]) == ("tcp", socket["port"]) and overlap and not ours:
                process = f"{other['process'] or 'a process'} of {other['user']}"
                detail = f"pid {other['pid'] or 'unknown'}, {other['unit'] or 'no unit'}"
                yield (
                    f"{other['address']} port {other['port']} of the memcached instance {instance['name']} is held by "
                    f"{process} ({detail}). Stop that, or change memcached_port or the port of that element of "
                    "memcached_instances."
                )


def instances_to_restart(
    wanted: Sequence[Instance], host: Mapping[str, Any], release: str, changed_files: Sequence[str]
) -> list[Instance]:
    """Choose the instances that run on something else than they should.

    :param wanted: from `memcached_instance`.
    :param host: as returned by the module ``memcached_host_info`` before anything was changed.
    :param release: the release that they should run.
    :param changed_files: paths of the files that were changed since.
    :return: those that ran before, on another release or with files that changed since their start.
    """
    states = host["instances"]
    return [
        instance
        for instance in wanted
        if states[instance["name"]]["active"]
        and (
            host["release"] != release
            or states[instance["name"]]["outdated"]
            or {instance["unit_file"], *instance["files"]} & set(changed_files)
        )
    ]


def instances_to_reload(
    wanted: Sequence[Instance], host: Mapping[str, Any], release: str, changed_files: Sequence[str]
) -> list[Instance]:
    """Choose the instances that have to read files again and are not restarted anyway.

    :param wanted: from `memcached_instance`.
    :param host: as returned by the module ``memcached_host_info`` before anything was changed.
    :param release: the release that they should run.
    :param changed_files: paths of the files that were changed since.
    """
    states = host["instances"]
    restarted = {instance["name"] for instance in instances_to_restart(wanted, host, release, changed_files)}
    return [
        instance
        for instance in wanted
        if states[instance["name"]]["active"]
        and instance["name"] not in restarted
        and (states[instance["name"]]["unread"] or set(instance["reread_files"]) & set(changed_files))
    ]


def cache_fates(
    instances: Sequence[Instance], host: Mapping[str, Any], release: str, changed_files: Sequence[str]
) -> list[dict[str, Any]]:
    """Tell what a change does to the items of the instances that run.

    :param instances: from `memcached_instance`, also those that are to be absent.
    :param host: as returned by the module ``memcached_host_info``.
    :param release: the release that they should run.
    :param changed_files: paths of the files that are to change.
    :return: for each instance that is to end or to restart its ``name``, whether it ``keeps`` its items, and a
        sentence, ``told``.
    """
    restarted = {instance["name"] for instance in instances_to_restart(instances, host, release, changed_files)}
    fates = []
    for instance in instances:
        name, state = instance["name"], host["instances"][instance["name"]]
        if instance["state"] == "absent" and state["active"]:
            fates.append({"name": name, "keeps": False, "told": f"{instance['unit']} is removed with its items"})
        elif instance["state"] != "absent" and name in restarted:
            losses = _losses(instance, host, release)
            what = f"drops its items: {', '.join(losses)}" if losses else "keeps its items"
            told = f"{instance['unit']} is restarted and {what}"
            fates.append({"name": name, "keeps": not losses, "told": told})
    return fates


def _losses(instance: Instance, host: Mapping[str, Any], release: str) -> list[str]:
    """Tell why memcached won't take over the items of an instance that is restarted."""
    state = host["instances"][instance["name"]]
    before = _layout(state["command"] or [])
    after = _layout(["-m", str(instance["memory"]), *instance["options"]])
    if not instance["warm"]:
        return ["it is not warm"]
    if "memory-file" not in before:
        return ["it was not warm before"]
    losses = [
        f"{key} changes from {before.get(key, 'its default')} to {after.get(key, 'its default')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    # What runs can't be told in every container; what is in use is most often the same.
    running = state["release"] or host["release"]
    if _version(release) < _version(running):
        losses.append(f"{release} is older than {running} and does not know its form")
    return losses


def _layout(command: Sequence[str]) -> dict[str, str]:
    """Choose from the arguments of a memcached those that decide how items lie in memory."""
    found = {}
    for word, following in zip_longest(command, command[1:], fillvalue=""):
        if word in LAYOUT_FLAGS:
            found[LAYOUT_FLAGS[word]] = following
        for entry in following.split(",") if word == "-o" else ():
            name, _equals, value = entry.partition("=")
            if name in LAYOUT_EXTENDED:
                found[name] = value or "on"
        name, _equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in LAYOUT_OPTIONS:
            found[name] = value or "on"
    return found


def _version(release: str) -> list[int]:
    """Give the version of a release, ``<version>-<fingerprint>``, in an order."""
    return [int(number) for number in re.findall(r"\d+", release.rpartition("-")[0])]


def memcached_todo(instances: Sequence[Instance], host: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Tell what about a host is not as it should be.

    :param instances: from `memcached_instance`, also those that are to be absent.
    :param host: as returned by the module ``memcached_host_info``.
    :param settings: the ``release`` that is to run, and ``always``, reasons to look closer at each run.
    :return: a phrase for each thing that differs.
    """
    states = host["instances"]
    todo = list(settings["always"])
    if host["release"] != settings["release"]:
        todo.append(f"release {settings['release']}")
    todo += host["differing_files"]
    for instance in instances:
        state = states[instance["name"]]
        if instance["state"] == "absent":
            if state["active"] or state["enabled"] or state["configured"]:
                todo.append(f"{instance['unit']} is to be removed")
        else:
            if instance["user"] not in host["users"]:
                todo.append(f"user {instance['user']}")
            if state["outdated"] or not (state["active"] and state["enabled"]):
                todo.append(f"{instance['unit']} is to be started")
            elif state["unread"]:
                todo.append(f"{instance['unit']} is to be reloaded")
        if state["mounted"] and (instance["state"] == "absent" or not instance["warm"]):
            todo.append(f"{instance['memory_folder']} is to be unmounted")
    return todo


def reachable_at(instance: Instance, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Give where other hosts reach an instance.

    :param instance: from `memcached_instance`.
    :param facts: ``ansible_facts`` of its host.
    :return: ``address`` and ``port`` of its first socket that is not on the loopback, else of its
        first; both null for an instance that serves a Unix socket.
    """
    sockets = sorted(instance["sockets"], key=lambda socket: _is_loopback(socket["address"]))
    if not sockets:
        return {"address": None, "port": None}
    first: dict[str, Any] = sockets[0]
    if first["address"] in ANY_ADDRESS:
        family = "default_ipv6" if ":" in first["address"] else "default_ipv4"
        return {**first, "address": facts[family]["address"]}
    return first


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "localhost")


def serving_problems(instance: Instance, host: Mapping[str, Any]) -> list[str]:
    """Tell what is wrong with how an instance runs and where it listens.

    :param instance: from `memcached_instance`.
    :param host: as returned by the module ``memcached_host_info``.
    :return: a phrase for each deviation from its description.
    """
    state = host["instances"][instance["name"]]
    problems = []
    if not state["active"]:
        problems.append(f"{instance['unit']} does not run: see `journalctl -u {instance['unit']}`")
    if not state["enabled"]:
        problems.append(f"{instance['unit']} does not start at boot")
    wanted = {(socket["address"], socket["port"]) for socket in instance["sockets"]}
    named = {(address, port) for address, port in wanted if not _is_address(address)}
    ports = {port for _address, port in wanted}
    found = {
        (other["address"], other["port"])
        for other in host["listeners"]
        if other["unit"] == instance["unit"]
        or (other["pid"] is None and other["user"] == instance["user"] and other["port"] in ports)
    }
    # What a name stands for is the host's to know: any address will do for it.
    by_name = {(address, port) for address, port in found - wanted if port in {port for _name, port in named}}
    answered = {port for _address, port in by_name}
    missing = wanted - named - found | {(name, port) for name, port in named if port not in answered}
    problems += [f"it does not listen on {address} port {port}" for address, port in sorted(missing)]
    problems += [f"it also listens on {address} port {port}" for address, port in sorted(found - wanted - by_name)]
    return problems


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class FilterModule:
    """Filters of the role memcached."""

    def filters(self) -> dict[str, Any]:
        return {
            "memcached_instance": memcached_instance,
            "cache_fates": cache_fates,
            "feature_flag": feature_flag,
            "memcached_todo": memcached_todo,
            "reachable_at": reachable_at,
            "serving_problems": serving_problems,
            "memcached_problems": memcached_problems,
            "instances_to_reload": instances_to_reload,
            "instances_to_restart": instances_to_restart,
        }

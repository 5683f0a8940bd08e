# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Derive a pool's members from the inventory: the one place that does, for DNS, proxies and everything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

LABEL_LENGTH = 63  # octets, RFC 1035
DEFAULT_WEIGHT = 10


def pool_members(
    pool: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
    leaving: Iterable[str] | str = (),
) -> list[dict[str, Any]]:
    """Give the members of a pool.

    :param pool: an element of ``pools`` with its ``name``, ``group`` and ``port``.
    :param groups: ``groups`` of the inventory.
    :param hostvars: ``hostvars``. A host may set ``pool_addresses`` and ``pool_weight``; without the first its facts
        have to be known.
    :param leaving: names of hosts that are about to leave, as a list or separated by commas.
    :return: for each member, in the order of their names, ``host`` (inventory name), ``label`` (for DNS), ``address``
        (the first, which places it on a ring), ``addresses``, ``port`` and ``weight``.
    :raises AnsibleFilterError: there is no port or no such group, nobody would be left, a host's address isn't known,
        or two members have the same.
    """
    port = _port(pool)
    hosts = _hosts(pool, groups, _names(leaving))
    labels = _labels(hosts)
    members: list[dict[str, Any]] = [
        {
            "host": host,
            "label": labels[host],
            "address": addresses[0],
            "addresses": addresses,
            "port": port,
            "weight": int(hostvars[host].get("pool_weight", DEFAULT_WEIGHT)),
        }
        for host in hosts
        for addresses in [_addresses(host, hostvars[host])]
    ]
    places: dict[str, str] = {}
    for member in members:
        for address in member["addresses"]:
            if (other := places.setdefault(address, member["host"])) != member["host"]:
                raise AnsibleFilterError(
                    f"the members {other} and {member['host']} of the pool {pool['name']} have the same address "
                    f"{address}: correct pool_addresses of one of them"
                )
    return members


def pool_hosts(
    pools: Iterable[Mapping[str, Any]], groups: Mapping[str, Sequence[str]], leaving: Iterable[str] | str = ()
) -> list[str]:
    """Give the hosts that are in any of the pools.

    :param pools: the variable ``pools``.
    :param groups: ``groups`` of the inventory.
    :param leaving: names of hosts that are about to leave, as a list or separated by commas.
    :return: their names, sorted.
    :raises AnsibleFilterError: a pool has no group or nobody would be left in it, or who is to leave is in no pool.
    """
    names = _names(leaving)
    present = [pool for pool in pools if pool.get("state") != "absent"]
    if strangers := names - {host for pool in present for host in groups.get(pool["group"], ())}:
        raise AnsibleFilterError(
            f"{', '.join(sorted(strangers))} can't leave, being in no pool: correct pool_leaving. The pools' groups "
            f"are {', '.join(sorted({pool['group'] for pool in present}))}"
        )
    return sorted({host for pool in present for host in _hosts(pool, groups, names)})


def pool_answers(
    pool: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
    leaving: Iterable[str] | str = (),
) -> list[dict[str, Any]]:
    """Give what a pool's name answers with.

    :param pool: an element of ``pools``.
    :param groups: ``groups`` of the inventory.
    :param hostvars: ``hostvars``.
    :param leaving: names of hosts that are about to leave, as a list or separated by commas.
    :return: the virtual addresses of the pool, or the hosts of its balancers where it has none, or else its members;
        each with ``label``, ``addresses``, ``port`` and ``weight``, as :func:`pool_members` gives them.
    :raises AnsibleFilterError: as :func:`pool_members`, also for the balancers.
    """
    if not _is_balanced(pool):
        return pool_members(pool, groups, hostvars, leaving)
    _hosts(pool, groups, _names(leaving))  # a balancer without members is of no use, either
    if not (addresses := pool["vip"].get("addresses")):
        return pool_members({**pool, "group": _balancers(pool)}, groups, hostvars, leaving)
    return [
        {
            "label": f"vip-{number}",
            "addresses": [str(address)],
            "port": _port(pool),
            "weight": DEFAULT_WEIGHT,
        }
        for number, address in enumerate(addresses, 1)
    ]


def pool_vip_hosts(pools: Iterable[Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Give the hosts that run a balancer in front of any of the pools.

    :param pools: the variable ``pools``.
    :param groups: ``groups`` of the inventory.
    :return: their names, sorted.
    :raises AnsibleFilterError: a pool does not tell the group of its balancers, or there is no such group.
    """
    return sorted(
        {
            host
            for pool in pools
            if pool.get("state") != "absent" and _is_balanced(pool)
            for host in _hosts({"name": pool["name"], "group": _balancers(pool)}, groups, set())
        }
    )


def endpoint(address: str, port: int | str) -> str:
    """Give an address, or a name, with a port: an IPv6 address is put in brackets.

    :return: ``[2001:db8::9]:9100`` or ``192.0.2.9:9100``.
    """
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _is_balanced(pool: Mapping[str, Any]) -> bool:
    return bool(pool.get("vip")) and pool["vip"].get("kind") != "dns"


def _balancers(pool: Mapping[str, Any]) -> str:
    if "group" not in pool["vip"]:
        raise AnsibleFilterError(
            f"the pool {pool['name']} does not tell which hosts run its balancer: give its vip a group in pools"
        )
    return str(pool["vip"]["group"])


def _port(pool: Mapping[str, Any]) -> int:
    if "port" not in pool:
        raise AnsibleFilterError(f"the pool {pool['name']} has no port: give it one in pools")
    return int(pool["port"])


def _names(names: Iterable[str] | str) -> set[str]:
    return set(names.replace(",", " ").split() if isinstance(names, str) else names)


def _hosts(pool: Mapping[str, Any], groups: Mapping[str, Sequence[str]], leaving: set[str]) -> list[str]:
    if pool["group"] not in groups:
        raise AnsibleFilterError(
            f"the pool {pool['name']} is to consist of the group {pool['group']}, which the inventory does not have: "
            "change the pool's group in pools, or add the group"
        )
    everybody = set(groups[pool["group"]])
    if everybody and everybody <= leaving:
        raise AnsibleFilterError(
            f"nobody would be left in the pool {pool['name']}: keep at least one of {', '.join(sorted(everybody))} out "
            "of pool_leaving, or remove the pool itself (state: absent in pools)"
        )
    return sorted(everybody - leaving)


def _addresses(host: str, variables: Mapping[str, Any]) -> list[str]:
    if given := variables.get("pool_addresses"):
        return [str(address) for address in given]
    facts = variables.get("ansible_facts") or {}
    if address := (facts.get("default_ipv4") or {}).get("address"):
        return [str(address)]
    raise AnsibleFilterError(
        f"the address of {host} is not known: gather its facts (subset network) before, or set pool_addresses for it "
        "in the inventory"
    )


def _labels(hosts: Sequence[str]) -> dict[str, str]:
    """Name each host by the first label of its name, or by all of it where that is not its own."""
    first = [host.partition(".")[0] for host in hosts]
    labels = {}
    for host in hosts:
        name = host.partition(".")[0]
        label = name if first.count(name) == 1 and not name.isdigit() else host
        labels[host] = re.sub("[^a-z0-9-]", "-", label.lower()).strip("-")[:LABEL_LENGTH]
    return labels


class FilterModule:
    """Filters over pools."""

    def filters(self) -> dict[str, Any]:
        return {
            "endpoint": endpoint,
            "pool_answers": pool_answers,
            "pool_hosts": pool_hosts,
            "pool_members": pool_members,
            "pool_vip_hosts": pool_vip_hosts,
        }

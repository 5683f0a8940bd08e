# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name what a description of a build gives on a platform."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

Build = dict[str, Any]

# What decides the bytes of an artifact, and so its name. Where the archive comes from does not.
FINGERPRINTED = ("name", "version", "sha256", "prefix", "configure", "environment", "make", "install", "strip")
DEFAULTS: Build = {
    "configure": [],
    "environment": {},
    "make": [[]],
    "install": ["install"],
    "strip": True,
    "build_packages": [],
    "links": [],
    "install_on": "all",
    "expose_in": None,
}
FINGERPRINT_LENGTH = 12  # hexadecimal digits: 48 bits, for a handful of releases


def source_plan(builds: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[Build]:
    """Add to each description of a build what follows from it on a platform.

    :param builds: descriptions as in ``source_build_builds``; one may link to those before it.
    :param facts: ``ansible_facts`` of a host of that platform.
    :return: the descriptions with defaults and ``release`` (folder name), ``path`` (its folder),
        ``artifact`` (file name in the cache) and ``configure`` (with ``@name@`` put in as the
        folder of that build).
    :raises AnsibleFilterError: a description lacks something, or links to a build that is not before it.
    """
    platform = [facts[key] for key in ("distribution", "distribution_major_version", "architecture")]
    plan: dict[str, Build] = {}
    for given in builds:
        build = {**DEFAULTS, **given}
        _check(build)
        for name in build["links"]:
            if name not in plan:
                raise AnsibleFilterError(
                    f"the build {build['name']} links to {name}, which is not before it in source_build_builds"
                )
        linked = [plan[name] for name in build["links"]]
        decisive = [
            {key: build[key] for key in FINGERPRINTED},
            [other["release"] for other in linked],
            platform,
        ]
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        release = f"{build['version']}-{digest[:FINGERPRINT_LENGTH]}"
        build.update(
            release=release,
            path=f"{build['prefix']}/{release}",
            artifact=f"{build['name']}-{release}.tar.gz",
        )
        for key in ("configure", "environment"):
            build[key] = _with_paths(build[key], linked)
        plan[build["name"]] = build
    return list(plan.values())


def _check(build: Build) -> None:
    if re.fullmatch("[0-9a-f]{64}", build["sha256"]) and build["sources"] and build["prefix"].startswith("/"):
        return
    name = build["name"]
    raise AnsibleFilterError(
        f"{name} {build['version']} can't be built: set {name}_sha256 to the sha256 that upstream publishes for this "
        f"version (64 hexadecimal digits), {name}_sources to at least one place, and {name}_prefix to an absolute "
        f"path. Now they are {build['sha256']!r}, {build['sources']!r} and {build['prefix']!r}"
    )


def _with_paths(value: Any, linked: Sequence[Build]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_paths(item, linked) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_paths(item, linked) for item in value]
    text = str(value)
    for other in linked:
        text = text.replace(f"@{other['name']}@", other["path"])
    if unknown := re.search(r"@[\w-]+@", text):
        raise AnsibleFilterError(
            f"{unknown[0]} in {text!r} stands for no build that this one links to: add it to links, or change it"
        )
    return text


def source_orders(hosts: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Choose for each missing artifact one host to compile it: the first that lacks it.

    :param hosts: variables of the hosts of a play, as from ``hostvars``. Those that lack something have
        a ``__source_build_plan`` and artifacts in ``__source_build_installed.missing``.
    :return: host name -> names of the builds that it has to make, with those that these link to, in the
        order of the plan.
    """
    chosen: set[str] = set()
    orders: dict[str, list[str]] = {}
    for host in hosts:
        lacking = set((host.get("__source_build_installed") or {}).get("missing") or ()) - chosen
        needed: set[str] = set()
        plan = host["__source_build_plan"] if lacking else []
        for build in reversed(plan):  # so that those that link come before what they link to
            if build["artifact"] in lacking or build["name"] in needed:
                needed |= {build["name"], *build["links"]}
        if needed:
            orders[host["inventory_hostname"]] = [build["name"] for build in plan if build["name"] in needed]
        chosen |= lacking
    return orders


def pick(value: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Give a mapping with only some of its keys, in the order they are named."""
    return {key: value[key] for key in keys}


class FilterModule:
    """Filters of the role source_build."""

    def filters(self) -> dict[str, Any]:
        return {"source_plan": source_plan, "source_orders": source_orders, "pick": pick}

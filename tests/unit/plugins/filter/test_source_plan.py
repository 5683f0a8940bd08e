# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the filters of the role source_build."""

from __future__ import annotations

import re

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tenfold.stack.plugins.filter.source_plan import FilterModule

FILTERS = FilterModule().filters()
source_plan, source_orders, pick = (FILTERS[name] for name in ("source_plan", "source_orders", "pick"))

FACTS = {"distribution": "Rocky", "distribution_major_version": "9", "architecture": "x86_64", "hostname": "a"}
LIB = {"name": "lib", "version": "2.1", "sha256": "a" * 64, "prefix": "/opt/lib", "sources": ["/mirror"]}
ENVIRONMENT = {"LDFLAGS": "-L@lib@/lib", "LEVEL": 2}
APP = {
    "name": "app",
    "version": "1.6",
    "sha256": "b" * 64,
    "prefix": "/opt/app",
    "sources": ["https://example.test/app.tar.gz"],
    "links": ["lib"],
    "configure": ["--with-lib=@lib@", "--with-both=@lib@:@lib@/include", "--plain"],
    "environment": ENVIRONMENT,
}


def release_of(facts=None, lib=None, **app):
    """The release that app gives with some values changed."""
    return source_plan([{**LIB, **(lib or {})}, {**APP, **app}], facts or FACTS)[-1]["release"]


# source_plan


def test_names_follow_from_the_version_and_the_fingerprint():
    lib, app = source_plan([LIB, APP], FACTS)
    assert [lib["name"], app["name"]] == ["lib", "app"]
    assert re.fullmatch(r"1\.6-[0-9a-f]{12}", app["release"])
    assert app["path"] == f"/opt/app/{app['release']}"
    assert app["artifact"] == f"app-{app['release']}.tar.gz"


def test_what_is_not_given_has_a_default():
    (lib,) = source_plan([LIB], FACTS)
    assert {key: lib[key] for key in ("configure", "environment", "make", "install", "strip", "install_on")} == {
        "configure": [],
        "environment": {},
        "make": [[]],
        "install": ["install"],
        "strip": True,
        "install_on": "all",
    }
    assert {key: lib[key] for key in ("build_packages", "links", "expose_in")} == {
        "build_packages": [],
        "links": [],
        "expose_in": None,
    }
    assert lib["sources"] == ["/mirror"]


def test_the_given_descriptions_stay_as_they_are():
    given = [dict(LIB), dict(APP)]
    source_plan(given, FACTS)
    assert given == [LIB, APP]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": "1.7"},
        {"sha256": "c" * 64},
        {"prefix": "/srv/app"},
        {"configure": ["--plain"]},
        {"environment": {"CFLAGS": "-O3"}},
        {"make": [["all"]]},
        {"install": ["install-strip"]},
        {"strip": False},
        {"links": [], "configure": [], "environment": {}},
        {"lib": {"sha256": "c" * 64}},
        {"lib": {"configure": ["--static"]}},
        {"facts": {**FACTS, "distribution": "Debian"}},
        {"facts": {**FACTS, "distribution_major_version": "10"}},
        {"facts": {**FACTS, "architecture": "aarch64"}},
    ],
)
def test_what_decides_the_bytes_changes_the_release(change):
    # Its version alone would also be told by the beginning of the name.
    assert release_of(**change).split("-")[1] != release_of().split("-")[1]


@pytest.mark.parametrize(
    "change",
    [
        {"sources": ["/elsewhere"]},
        {"environment": dict(reversed(ENVIRONMENT.items()))},
        {"expose_in": "/usr"},
        {"build_packages": ["openssl-devel"]},
        {"install_on": "builder"},
        {"strip": True, "install": ["install"], "make": [[]]},
        {"lib": {"sources": ["/elsewhere"]}},
        {"facts": {**FACTS, "hostname": "b", "distribution_version": "9.4"}},
    ],
)
def test_what_does_not_decide_them_leaves_the_release(change):
    assert release_of(**change) == release_of()


def test_the_fingerprint_is_the_same_for_all_time():
    # Another one would make every host compile anew: only change it along with what is built.
    assert source_plan([LIB], FACTS)[0]["release"] == "2.1-064236697470"


def test_placeholders_become_the_folders_of_linked_builds():
    lib, app = source_plan([LIB, APP], FACTS)
    path = lib["path"]
    assert app["configure"] == [f"--with-lib={path}", f"--with-both={path}:{path}/include", "--plain"]
    assert app["environment"] == {"LDFLAGS": f"-L{path}/lib", "LEVEL": "2"}


@pytest.mark.parametrize("broken", [{"sha256": ""}, {"sha256": "A" * 64}, {"sources": []}, {"prefix": "opt/lib"}])
def test_an_incomplete_description_is_an_error_that_names_the_variables(broken):
    with pytest.raises(AnsibleFilterError, match=r"lib 2\.1 can't be built: set lib_sha256 .*lib_sources.*lib_prefix"):
        source_plan([{**LIB, **broken}], FACTS)


def test_a_placeholder_of_a_build_that_is_not_linked_is_an_error():
    with pytest.raises(AnsibleFilterError, match=r"@lib@ in .* stands for no build that this one links to"):
        source_plan([LIB, {**APP, "links": []}], FACTS)


@pytest.mark.parametrize("builds", [[APP], [APP, LIB]])
def test_a_link_to_what_is_not_before_is_an_error(builds):
    with pytest.raises(AnsibleFilterError, match="the build app links to lib, which is not before it"):
        source_plan(builds, FACTS)


# source_orders


def host(name, *missing, plan):
    return {
        "inventory_hostname": name,
        "__source_build_plan": plan,
        "__source_build_installed": {"missing": list(missing)},
    }


def build(name, *links, platform="el"):
    return {"name": name, "links": list(links), "artifact": f"{name}-{platform}"}


EL = [build("lib"), build("app", "lib")]
DEBIAN = [build("lib", platform="debian"), build("app", "lib", platform="debian")]


def test_the_first_host_that_lacks_an_artifact_compiles_it():
    hosts = [
        host("has-all", plan=EL),
        host("first", "app-el", "lib-el", plan=EL),
        host("second", "app-el", "lib-el", plan=EL),
    ]
    assert source_orders(hosts) == {"first": ["lib", "app"]}


def test_each_platform_has_its_own():
    hosts = [
        host("a", "app-el", plan=EL),
        host("b", "app-debian", plan=DEBIAN),
        host("c", "app-debian", "lib-debian", plan=DEBIAN),
    ]
    assert source_orders(hosts) == {"a": ["lib", "app"], "b": ["lib", "app"], "c": ["lib"]}


def test_what_only_a_later_host_lacks_is_its_own():
    hosts = [host("a", "lib-el", plan=EL), host("b", "lib-el", "app-el", plan=EL)]
    assert source_orders(hosts) == {"a": ["lib"], "b": ["lib", "app"]}


def test_links_of_links_are_needed_too():
    plan = [build("base"), build("lib", "base"), build("unrelated"), build("app", "lib")]
    assert source_orders([host("a", "app-el", plan=plan)]) == {"a": ["base", "lib", "app"]}


def test_hosts_that_lack_nothing_or_were_not_asked_have_no_orders():
    hosts = [
        {"inventory_hostname": "unreachable"},
        {"inventory_hostname": "skipped", "__source_build_installed": {"skipped": True}},
        {"inventory_hostname": "none", "__source_build_installed": None},
        host("has-all", plan=EL),
    ]
    assert source_orders(hosts) == {}


# pick


def test_pick_keeps_the_named_keys_in_their_order():
    assert list(pick({"a": 1, "b": 2, "c": None}, ["c", "a"]).items()) == [("c", None), ("a", 1)]


def test_pick_wants_each_key():
    with pytest.raises(KeyError, match="b"):
        pick({"a": 1}, ["a", "b"])

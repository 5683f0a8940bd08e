# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the filters of the role memcached."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.tenfold.stack.plugins.filter.memcached import FilterModule

FILTERS = FilterModule().filters()
cache_fates = FILTERS["cache_fates"]
feature_flag = FILTERS["feature_flag"]
memcached_problems = FILTERS["memcached_problems"]
memcached_todo = FILTERS["memcached_todo"]
instances_to_reload = FILTERS["instances_to_reload"]
instances_to_restart = FILTERS["instances_to_restart"]
reachable_at = FILTERS["reachable_at"]
serving_problems = FILTERS["serving_problems"]

DEFAULTS = {
    "listen": ["127.0.0.1"],
    "port": 11211,
    "memory": 64,
    "connections": 1024,
    "threads": 4,
    "user": "memcached",
    "warm": False,
    "service": "memcached",
}


def instance(name="default", **given):
    return FILTERS["memcached_instance"]({"name": name, **given}, DEFAULTS, "/etc/sysconfig")


def sockets(*listen, **given):
    """The sockets of an instance as text."""
    return [f"{one['address']} {one['port']}" for one in instance(listen=list(listen), **given)["sockets"]]


# memcached_instance


def test_defaults_and_names():
    made = instance("sessions", memory=128)
    assert {key: made[key] for key in ("memory", "port", "threads", "state", "socket", "user")} == {
        "memory": 128,
        "port": 11211,
        "threads": 4,
        "state": "started",
        "socket": None,
        "user": "memcached",
    }
    assert made["unit"] == "memcached@sessions.service"
    assert made["environment_file"] == "/etc/sysconfig/memcached-sessions"
    assert made["drop_in"] == "/etc/systemd/system/memcached@sessions.service.d/instance.conf"
    assert made["files"] == [made["environment_file"], made["drop_in"]]
    assert made["auth_file"] is None


def test_a_service_of_another_name_shares_no_file():
    first, other = instance(auth=[{"user": "a"}]), instance(auth=[{"user": "a"}], service="memcached-proxy")
    assert other["unit"] == "memcached-proxy@default.service"
    assert other["unit_file"] == "/etc/systemd/system/memcached-proxy@.service"
    for key in ("unit_file", "environment_file", "drop_in", "auth_file"):
        assert first[key] != other[key]


def test_descriptors_leave_room_beside_the_connections():
    assert instance(connections=1000, threads=4)["descriptors"] == 1000 + 4 * 16 + 256
    assert instance(connections=1001, threads=8)["descriptors"] == 1001 + 8 * 16 + 256


def test_the_arguments_of_an_instance_on_tcp():
    made = instance(listen=["127.0.0.1", "192.0.2.7"], threads=2)
    assert made["options"] == ["-l", "127.0.0.1,192.0.2.7", "-U", "0", "-t", "2"]


def test_the_arguments_of_an_instance_on_a_socket():
    made = instance(socket="/run/memcached/a.sock")
    assert made["options"] == ["-s", "/run/memcached/a.sock", "-a", "0700", "-t", "4"]
    assert made["sockets"] == []
    assert made["places"] == ["/run/memcached/a.sock"]
    assert made["ready"] == "/run/memcached/a.sock"
    assert instance(socket="/s", socket_mode="0770")["options"][:4] == ["-s", "/s", "-a", "0770"]


TLS = {"certificate": "/etc/pki/cert.pem", "key": "/etc/pki/key.pem"}


def test_the_arguments_for_tls():
    assert instance(tls=TLS)["options"][4:] == [
        "-t",
        "4",
        "-Z",
        "-o",
        "ssl_chain_cert=/etc/pki/cert.pem,ssl_key=/etc/pki/key.pem",
    ]
    verified = instance(tls={**TLS, "ca": "/etc/pki/ca.pem", "verify_clients": True}, extended=["modern"])
    assert verified["options"][-1] == (
        "modern,ssl_chain_cert=/etc/pki/cert.pem,ssl_key=/etc/pki/key.pem,ssl_ca_cert=/etc/pki/ca.pem,ssl_verify_mode=2"
    )
    assert "ssl_verify_mode" not in instance(tls={**TLS, "verify_clients": False})["options"][-1]


def test_the_given_extended_options_stay_as_they_are():
    given = ["modern"]
    instance(extended=given, tls=TLS)
    assert given == ["modern"]


def test_the_arguments_for_passwords():
    made = instance("sessions", auth=[{"user": "a", "password": "b c"}])
    assert made["auth_file"] in made["options"]
    assert made["options"][made["options"].index(made["auth_file"]) - 1] == "-Y"
    assert "memcached-sessions" in made["auth_file"]
    assert instance(auth=[])["auth_file"] is None
    assert "-S" in instance(sasl=True)["options"]
    assert not {"-S", "-Y"} & set(instance()["options"])


def test_further_options():
    made = instance(
        max_item_size="2m",
        options={"disable-cas": True, "no-such": False, "unset": None, "slab-min-size": 48, "zero": 0},
        extended=["hash_algorithm=xxh3", "tail_repair_time=0"],
    )
    assert made["options"][6:] == [
        "-I",
        "2m",
        "--disable-cas",
        "--slab-min-size=48",
        "--zero=0",
        "-o",
        "hash_algorithm=xxh3,tail_repair_time=0",
    ]
    assert instance(options=None, extended=None)["options"] == instance()["options"]


@pytest.mark.parametrize("value", ["a b", "a\tb", "'a'", '"a"', "a\\b", "$HOME", "%i"])
@pytest.mark.parametrize("option", ["options", "extended", "socket", "listen"])
def test_a_value_that_systemd_would_change_is_an_error(option, value):
    given = {"options": {"pidfile": value}, "extended": ["a", value], "socket": value, "listen": [value]}[option]
    with pytest.raises(AnsibleFilterError, match="the memcached instance sessions can't be given the argument"):
        instance("sessions", **{option: given})


def test_a_user_with_a_space_is_an_error():
    with pytest.raises(AnsibleFilterError, match="argument 'a b'"):
        instance(user="a b")


def test_the_rehearsal_leaves_the_running_one_alone():
    made = instance(
        listen=["192.0.2.7"],
        port=11999,
        memory=100,
        connections=500,
        user="cache",
        extended=["ext_path=/srv/file:1G", "ext_threads=2"],
        max_item_size="2m",
    )
    expected = "-p -1 -l 127.0.0.1 -U 0 -u root -m 100 -c 500 -t 4 -I 2m -o ext_threads=2"
    assert " ".join(made["rehearsal"]) == expected
    assert "ext_path=/srv/file:1G,ext_threads=2" in made["options"]


def test_the_rehearsal_of_a_socket_has_no_socket():
    rehearsal = instance(socket="/run/a.sock", tls=TLS)["rehearsal"]
    assert not {"-s", "-a", "/run/a.sock"} & set(rehearsal)
    assert "-Z" in rehearsal


LUA = {"path": "/etc/cache/proxy.lua", "content": "-- routes"}


@pytest.mark.parametrize(
    ("argument", "tried"),
    [
        ("proxy_config=/etc/cache/proxy.lua", "proxy_config={root}/etc/cache/proxy.lua"),
        ("proxy_config=/etc/cache/proxy.lua:/etc/b.lua", "proxy_config={root}/etc/cache/proxy.lua:{root}/etc/b.lua"),
        ("proxy_arg=/etc/b.lua", "proxy_arg={root}/etc/b.lua"),
        ("proxy_arg=/etc/b.lua.old", "proxy_arg=/etc/b.lua.old"),
        ("proxy_arg=/srv/etc/b.lua", "proxy_arg=/srv/etc/b.lua"),
        ("proxy_arg=/etc/bxlua", "proxy_arg=/etc/bxlua"),
    ],
)
def test_the_rehearsal_tries_the_new_configuration(argument, tried):
    files = [LUA, {"path": "/etc/b.lua", "content": ""}]
    made = instance(configuration=files, extended=["modern", argument])
    assert made["options"][-1] == f"modern,{argument}"
    assert made["rehearsal"][-1] == f"modern,{tried}"
    assert instance(configuration=files, options={"file": "/etc/b.lua"})["rehearsal"][-1] == "--file={root}/etc/b.lua"


def test_files_that_the_daemon_reads_again():
    made = instance(configuration=[LUA, {**LUA, "path": "/b", "mode": "0640"}], auth=[{"user": "a"}], user="cache")
    assert made["configuration"] == [
        {**LUA, "mode": "0644", "group": "cache"},
        {**LUA, "path": "/b", "mode": "0640", "group": "cache"},
    ]
    assert made["reread_files"] == [LUA["path"], "/b", made["auth_file"]]
    assert not set(made["files"]) & set(made["reread_files"])
    assert instance()["reread_files"] == instance(configuration=None)["reread_files"] == []


def test_a_warm_instance_has_a_folder_of_its_own():
    made = instance("two-b", warm=True, memory=100, service="my.cache")
    assert made["memory_folder"] == "/run/my.cache@two-b"
    assert made["mount_unit"] == r"run-my.cache\x40two\x2db.mount"
    assert made["mount_file"] in made["files"]
    assert made["memory_room"] > 100
    assert "-e /run/my.cache@two-b/memory" in " ".join(made["options"])
    assert "-e" not in made["rehearsal"]
    plain = instance("two-b", service="my.cache")
    assert plain["mount_file"] == made["mount_file"]
    assert plain["mount_file"] not in plain["files"]
    assert "-e" not in plain["options"]


def test_a_rehearsal_may_have_no_extended_options_left():
    assert "-o" not in instance(extended=["ext_path=/srv/file:1G"])["rehearsal"]


@pytest.mark.parametrize(
    ("listen", "socket"),
    [
        ("127.0.0.1", "127.0.0.1 11211"),
        ("127.0.0.1:11212", "127.0.0.1 11212"),
        ("cache.example.test:11212", "cache.example.test 11212"),
        ("::1", "::1 11211"),
        ("2001:db8::1", "2001:db8::1 11211"),
        ("[::1]", "::1 11211"),
        ("[2001:db8::1]:11212", "2001:db8::1 11212"),
        ("notls:127.0.0.1", "127.0.0.1 11211"),
        ("notls:127.0.0.1:11212", "127.0.0.1 11212"),
        ("notls:[::1]:11212", "::1 11212"),
    ],
)
def test_where_it_listens(listen, socket):
    assert sockets(listen) == [socket]
    assert instance(listen=[listen])["options"][:2] == ["-l", listen]


def test_places_are_for_people():
    assert instance(listen=["::1", "127.0.0.1:1"])["places"] == ["::1 port 11211", "127.0.0.1 port 1"]


@pytest.mark.parametrize(
    ("listen", "ready"),
    [
        (["192.0.2.7:1", "127.0.0.1"], "192.0.2.7/1"),
        (["0.0.0.0"], "127.0.0.1/11211"),
        (["::"], "::1/11211"),
        (["*"], "127.0.0.1/11211"),
    ],
)
def test_it_is_ready_when_its_first_socket_answers(listen, ready):
    assert instance(listen=listen)["ready"] == ready


def test_listening_nowhere_is_an_error():
    with pytest.raises(AnsibleFilterError, match="default listens nowhere: set its listen or its socket"):
        instance(listen=[])


# feature_flag


def test_a_feature_has_one_flag_with_and_one_without_it():
    feature = {"key": "tls", "value": ["--enable-tls", "--disable-tls"]}
    assert feature_flag(feature, ["sasl", "tls"]) == "--enable-tls"
    assert feature_flag(feature, ["sasl"]) == "--disable-tls"


# memcached_problems

SETTINGS = {
    "version": "1.6.45",
    "sha256": "a" * 64,
    "known_versions": ["1.6.45", "1.6.18"],
    "memory": 1000,
    "memory_share": 0.9,
}
FREE = {
    "active": False, "user": None, "enabled": False, "outdated": False, "unread": False, "mounted": False,
    "command": None, "release": None,
}  # fmt: skip
RUNS = {**FREE, "active": True, "user": "memcached", "enabled": True}


def listener(**given):
    return {
        "protocol": "tcp",
        "address": "127.0.0.1",
        "port": 11211,
        "user": "root",
        "pid": 4711,
        "process": "nginx",
        "unit": "nginx.service",
        **given,
    }


def problems(*instances, listeners=(), states=None, **settings):
    host = {
        "listeners": list(listeners),
        "instances": {one["name"]: FREE for one in instances} | (states or {}),
    }
    return memcached_problems(list(instances), host, {**SETTINGS, **settings})


def test_a_good_host_has_no_problems():
    assert problems(instance(), instance("b", port=11212), instance("c", socket="/c")) == []
    assert problems() == []


def test_an_unknown_version_is_a_problem():
    (problem,) = problems(sha256="", version="1.7")
    assert "memcached 1.7" in problem
    assert "set memcached_sha256" in problem
    assert "memcached_version to one of 1.6.45, 1.6.18" in problem


def test_two_instances_of_one_name_are_a_problem():
    (problem,) = problems(instance("a"), instance("a", port=11212), instance("b", port=11213))
    assert problem == "Two elements of memcached_instances have a. Give each a name of its own."
    assert problems(instance("a"), instance("a", state="absent")) == [problem]


def test_two_instances_in_one_place_are_a_problem():
    (problem,) = problems(instance("a"), instance("b", listen=["192.0.2.7", "127.0.0.1"]))
    assert problem.startswith("Two elements of memcached_instances have 127.0.0.1 port 11211. Give each a port")
    (problem,) = problems(instance("a", socket="/s"), instance("b", socket="/s"))
    assert "have /s." in problem
    assert problems(instance("a"), instance("b", state="absent")) == []


def test_two_instances_with_one_file_are_a_problem():
    (problem,) = problems(instance("a", configuration=[LUA]), instance("b", configuration=[LUA], port=11212))
    assert problem == ("Two elements of memcached_instances have /etc/cache/proxy.lua. Give each a file of its own.")


@pytest.mark.parametrize(("mode", "readable"), [("0644", True), ("640", True), ("0600", False), ("0604", False)])
def test_a_file_that_the_instance_can_not_read_is_a_problem(mode, readable):
    told = problems(instance("a", configuration=[{**LUA, "mode": mode}]))
    assert bool(told) is not readable
    for part in () if readable else ("instance a", LUA["path"], f"mode {mode}", "0640", "memcached_instances"):
        assert part in told[0]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"extended": ["ext_path=/srv/file:1G"]}, ["on disk", "ext_path"]),
        ({"extended": ["proxy_config=/etc/cache/proxy.lua"]}, ["a proxy", "proxy_config"]),
        ({"options": {"enable-largepages": True}}, ["large pages", "enable-largepages"]),
        ({"options": {"memory-file": "/srv/file"}}, ["chooses the file", "memory-file"]),
        ({"memory": 63}, ["63 MB", "64 MB"]),
    ],
)
def test_what_can_not_be_warm_is_a_problem(given, parts):
    (problem,) = problems(instance("sessions", warm=True, **given))
    for part in [*parts, "sessions can't be warm", "warm to false", "memcached_instances"]:
        assert part in problem
    assert problems(instance("sessions", **given)) == []


def test_an_instance_on_all_addresses_covers_the_others():
    (problem,) = problems(instance("all", listen=["0.0.0.0"]), instance("one", listen=["192.0.2.7"]))
    for part in ("instance all", "192.0.2.7 port 11211 of the instance one", "memcached_instances"):
        assert part in problem
    assert problems(instance("all", listen=["*"]), instance("one", listen=["192.0.2.7"], port=11212)) == []


def test_too_much_memory_is_a_problem():
    assert problems(instance("a", memory=900)) == []
    (problem,) = problems(instance("a", memory=900), instance("b", memory=1, socket="/s"))
    for part in ("901 MB", "1000 MB", "900 MB", "memcached_memory ", "memcached_memory_share (0.9)"):
        assert part in problem
    assert problems(instance("a", memory=900), instance("b", memory=1, socket="/s", state="absent")) == []
    assert problems(instance("a", memory=901), memory_share=1.0) == []


def test_a_port_that_another_holds_is_a_problem():
    (problem,) = problems(instance("a"), listeners=[listener()])
    for part in ("127.0.0.1 port 11211", "instance a", "nginx of root", "pid 4711", "nginx.service", "memcached_port"):
        assert part in problem
    (problem,) = problems(instance("a"), listeners=[listener(pid=None, process=None, unit=None, user="www")])
    assert "held by a process of www (pid unknown, no unit)" in problem


@pytest.mark.parametrize(
    ("held", "wanted", "collides"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "192.0.2.7", False),
        ("0.0.0.0", "192.0.2.7", True),
        ("::", "192.0.2.7", True),
        ("192.0.2.7", "0.0.0.0", True),
        ("192.0.2.7", "*", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_addresses_that_collide(held, wanted, collides):
    assert bool(problems(instance(listen=[wanted]), listeners=[listener(address=held)])) is collides


@pytest.mark.parametrize("other", [{"protocol": "udp"}, {"port": 11212}])
def test_another_port_or_protocol_is_free(other):
    assert problems(instance(), listeners=[listener(**other)]) == []


def test_instances_that_are_managed_make_room_for_each_other():
    own = listener(unit="memcached@old.service", process="memcached", user="memcached")
    old = instance("old", state="absent")
    assert problems(instance("new"), old, listeners=[own]) == []
    assert len(problems(instance("new"), listeners=[own])) == 1


def test_where_the_process_can_not_be_told_the_user_tells():
    hidden = listener(pid=None, process=None, unit=None, user="memcached")
    assert problems(instance(), listeners=[hidden], states={"default": RUNS}) == []
    assert problems(instance(), listeners=[hidden], states={"default": {**RUNS, "active": False}}) == []
    assert len(problems(instance(), listeners=[hidden])) == 1
    # The user that it runs as, which may be another than the one that it is to run as.
    assert problems(instance(user="new"), listeners=[hidden], states={"default": RUNS}) == []
    assert len(problems(instance(user="www"), listeners=[{**hidden, "user": "www"}], states={"default": RUNS})) == 1
    assert len(problems(instance(), listeners=[{**hidden, "user": "www"}], states={"default": RUNS})) == 1
    assert len(problems(instance(), listeners=[listener(user="memcached")], states={"default": RUNS})) == 1


def test_all_problems_are_told_at_once():
    told = problems(instance("a"), instance("a", memory=2000), listeners=[listener()], sha256="")
    assert len(told) == 6  # checksum, name, place, memory, and the port for each of the two


# instances_to_restart


def restarted(state, release="1-a", changed=()):
    host = {"release": "1-a", "instances": {"default": {**RUNS, **state}, "b": FREE}}
    chosen = instances_to_restart([instance(), instance("b", socket="/b")], host, release, list(changed))
    return [one["name"] for one in chosen]


@pytest.mark.parametrize(
    ("state", "release", "changed", "names"),
    [
        ({}, "1-a", [], []),
        ({}, "2-b", [], ["default"]),
        ({"outdated": True}, "1-a", [], ["default"]),
        ({}, "1-a", ["/etc/sysconfig/memcached-default"], ["default"]),
        ({}, "1-a", ["/etc/systemd/system/memcached@.service"], ["default"]),
        ({}, "1-a", ["/etc/systemd/system/memcached@default.service.d/instance.conf"], ["default"]),
        ({}, "1-a", ["/etc/sysconfig/memcached-b", "/etc/other"], []),
        ({"active": False, "outdated": True}, "2-b", ["/etc/sysconfig/memcached-default"], []),
    ],
)
def test_what_runs_on_something_else_is_restarted(state, release, changed, names):
    assert restarted(state, release, changed) == names


# instances_to_reload


@pytest.mark.parametrize(
    ("state", "release", "changed", "names"),
    [
        ({}, "1-a", [], []),
        ({}, "1-a", [LUA["path"]], ["default"]),
        ({}, "1-a", ["/etc/sysconfig/memcached-default.auth"], ["default"]),
        ({"unread": True}, "1-a", [], ["default"]),
        ({}, "2-b", [LUA["path"]], []),
        ({"outdated": True}, "1-a", [LUA["path"]], []),
        ({}, "1-a", [LUA["path"], "/etc/sysconfig/memcached-default"], []),
        ({"active": False}, "1-a", [LUA["path"]], []),
        ({}, "1-a", ["/etc/other"], []),
    ],
)
def test_what_has_not_read_its_files_is_reloaded_unless_it_restarts(state, release, changed, names):
    host = {"release": "1-a", "instances": {"default": {**RUNS, **state}, "b": RUNS}}
    wanted = [instance(configuration=[LUA], auth=[{"user": "a"}]), instance("b", socket="/b")]
    assert [one["name"] for one in instances_to_reload(wanted, host, release, changed)] == names


# cache_fates


def command(given):
    """The arguments of an instance as they were when it was started."""
    return ["-p", "11211", "-u", "memcached", "-m", str(given["memory"]), "-c", "1024", *given["options"]]


def fates(*instances, before=(), release="1.6.38-a", runs="1.6.38-a", visible=True, active=True):
    """What becomes of instances that were started like those before, after a change of the template."""
    states = {
        one["name"]: {**RUNS, "active": active, "command": command(was), "release": runs if visible else None}
        for one, was in zip(instances, before or instances, strict=True)
    }
    host = {"release": runs, "instances": states}
    return cache_fates(instances, host, release, ["/etc/systemd/system/memcached@.service"])


def test_a_warm_instance_that_stays_as_it_is_keeps_its_items():
    assert fates(instance(warm=True)) == [
        {"name": "default", "keeps": True, "told": "memcached@default.service is restarted and keeps its items"}
    ]


def test_instances_that_go_on_or_do_not_run_have_no_fate():
    host = {"release": "1-a", "instances": {"default": {**RUNS, "release": "1-a"}}}
    assert cache_fates([instance(warm=True)], host, "1-a", []) == []
    assert fates(instance(warm=True), instance("old", state="absent"), active=False) == []


EXTENDED = ["slab_chunk_max=16k", "no_lru_crawler"]


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ({"warm": False}, {}, "it was not warm before"),
        ({}, {"warm": False}, "it is not warm"),
        ({"warm": False}, {"warm": False}, "it is not warm"),
        ({}, {"memory": 100}, "memory changes from 64 to 100"),
        ({}, {"max_item_size": "2m"}, "max_item_size changes from its default to 2m"),
        ({"options": {"slab-growth-factor": 1.1}}, {}, "slab-growth-factor changes from 1.1 to its default"),
        ({}, {"options": {"disable-cas": True}}, "disable-cas changes from its default to on"),
        ({}, {"extended": EXTENDED}, "slab_chunk_max changes from its default to 16k"),
        ({}, {"extended": ["no_slab_reassign"]}, "no_slab_reassign changes from its default to on"),
        (
            {"service": "other"},
            {},
            "memory-file changes from /run/other@default/memory to /run/memcached@default/memory",
        ),
    ],
)
def test_changes_that_drop_the_items_are_told(before, after, why):
    (fate,) = fates(instance(**{"warm": True} | after), before=[instance(**{"warm": True} | before)])
    assert fate["keeps"] is False
    assert fate["told"] == f"memcached@default.service is restarted and drops its items: {why}"


@pytest.mark.parametrize(
    "after",
    [
        {"threads": 8}, {"connections": 99}, {"port": 11212}, {"listen": ["192.0.2.1"]}, {"auth": [{"user": "a"}]},
        {"extended": ["no_lru_crawler"]}, {"options": {"verbose": True}}, {"user": "another"},
    ],
)  # fmt: skip
def test_changes_that_keep_the_items(after):
    (fate,) = fates(instance(warm=True, **after), before=[instance(warm=True)])
    assert fate["keeps"] is True


@pytest.mark.parametrize(
    ("runs", "release", "keeps"),
    [
        ("1.6.18-b", "1.6.38-a", True),
        ("1.6.38-b", "1.6.38-a", True),
        ("1.6.9-b", "1.6.38-a", True),
        ("1.6.38-a", "1.6.18-b", False),
        ("1.6.38-a", "1.6.9-b", False),
    ],
)
@pytest.mark.parametrize("visible", [True, False])
def test_only_a_later_release_takes_items_over(runs, release, keeps, visible):
    (fate,) = fates(instance(warm=True), runs=runs, release=release, visible=visible)
    assert fate["keeps"] is keeps
    assert keeps or fate["told"].endswith(f"drops its items: {release} is older than {runs} and does not know its form")


def test_an_instance_that_is_removed_is_told():
    (fate,) = fates(instance(warm=True, state="absent"))
    assert fate == {"name": "default", "keeps": False, "told": "memcached@default.service is removed with its items"}


# reachable_at

FACTS = {"default_ipv4": {"address": "192.0.2.7"}, "default_ipv6": {"address": "2001:db8::7"}}


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (["127.0.0.1"], "127.0.0.1 11211"),
        (["127.0.0.1", "192.0.2.8:1", "192.0.2.9"], "192.0.2.8 1"),
        (["::1", "localhost", "cache.example.test"], "cache.example.test 11211"),
        (["0.0.0.0"], "192.0.2.7 11211"),
        (["*"], "192.0.2.7 11211"),
        (["127.0.0.1", "::"], "2001:db8::7 11211"),
    ],
)
def test_where_others_reach_it(listen, address):
    found = reachable_at(instance(listen=listen), FACTS)
    assert f"{found['address']} {found['port']}" == address


def test_others_do_not_reach_a_unix_socket():
    assert reachable_at(instance(socket="/s"), FACTS) == {"address": None, "port": None}


# serving_problems


def serving(*listeners, state=None, **given):
    host = {"instances": {"default": {**RUNS, **(state or {})}}, "listeners": list(listeners)}
    return serving_problems(instance(**given), host)


OWN = listener(user="memcached", process="memcached", unit="memcached@default.service")


def test_an_instance_that_serves_as_described_has_no_problems():
    assert serving(OWN, listener(port=80)) == []
    assert serving({**OWN, "pid": None, "process": None, "unit": None}) == []
    assert serving(socket="/s") == []


def test_an_instance_that_does_not_run_or_start_at_boot():
    stopped, disabled, silent = serving(state={"active": False, "enabled": False})
    assert "memcached@default.service does not run" in stopped
    assert "memcached@default.service does not start at boot" in disabled
    assert silent == "it does not listen on 127.0.0.1 port 11211"


def test_an_instance_that_listens_elsewhere():
    assert serving({**OWN, "address": "0.0.0.0"}) == [
        "it does not listen on 127.0.0.1 port 11211",
        "it also listens on 0.0.0.0 port 11211",
    ]
    assert serving(OWN, {**OWN, "port": 11212}) == ["it also listens on 127.0.0.1 port 11212"]


def test_a_name_stands_for_any_address():
    named = {**OWN, "address": "192.0.2.7"}
    assert serving(named, listen=["cache-1"]) == []
    assert serving(named, OWN, listen=["cache-1", "127.0.0.1"]) == []
    assert serving(OWN, listen=["cache-1", "127.0.0.1"]) == ["it does not listen on cache-1 port 11211"]


def test_a_port_that_another_unit_holds_does_not_count():
    assert serving(listener(user="memcached")) == ["it does not listen on 127.0.0.1 port 11211"]
    assert serving(listener(pid=None, unit=None, user="www")) == ["it does not listen on 127.0.0.1 port 11211"]


# memcached_todo


def todo(*instances, states=None, **given):
    host = {"release": "1-a", "users": ["memcached"], "differing_files": [], **given}
    known = {one["name"]: {**RUNS, "configured": True} for one in instances} | (states or {})
    settings = {"release": "1-a", "always": given.get("always", [])}
    return memcached_todo(list(instances), {**host, "instances": known}, settings)


GONE = {**FREE, "configured": False}


def test_a_host_that_is_as_it_should_be_has_nothing_to_do():
    assert todo(instance()) == []
    assert todo(instance(), instance("old", state="absent"), states={"old": GONE}) == []


def test_what_differs_on_the_host_is_to_be_done():
    assert todo(instance(), release="2-b") == ["release 1-a"]
    assert todo(instance(), release=None) == ["release 1-a"]
    assert todo(instance(), differing_files=["/etc/a", "/etc/b"]) == ["/etc/a", "/etc/b"]
    assert todo(instance(), always=["a reason"]) == ["a reason"]
    assert todo(instance(user="new")) == ["user new"]


@pytest.mark.parametrize("difference", [{"active": False}, {"enabled": False}, {"outdated": True}])
def test_an_instance_that_does_not_run_as_it_should_is_to_be_started(difference):
    states = {"default": {**RUNS, "configured": True, **difference}}
    assert todo(instance(), states=states) == ["memcached@default.service is to be started"]


def test_an_instance_that_has_not_read_its_files_is_to_be_reloaded():
    states = {"default": {**RUNS, "configured": True, "unread": True}}
    assert todo(instance(), states=states) == ["memcached@default.service is to be reloaded"]


@pytest.mark.parametrize(
    ("given", "left"), [({}, True), ({"warm": True}, False), ({"warm": True, "state": "absent"}, True)]
)
def test_memory_that_nobody_keeps_is_to_be_unmounted(given, left):
    state = {**GONE, "mounted": True} if "state" in given else {**RUNS, "configured": True, "mounted": True}
    told = todo(instance(**given), states={"default": state})
    assert told == ["/run/memcached@default is to be unmounted"] * left


@pytest.mark.parametrize("rest", ["active", "enabled", "configured"])
def test_what_is_left_of_an_unwanted_instance_is_to_be_removed(rest):
    states = {"old": {**GONE, rest: True}}
    assert todo(instance("old", state="absent", user="new"), states=states) == [
        "memcached@old.service is to be removed"
    ]

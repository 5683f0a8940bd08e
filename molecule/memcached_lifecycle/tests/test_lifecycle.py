"""Changes to a running node: those that work keep their promises, those that fail harm nothing."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import testinfra

INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"].rsplit("/", 1)[0]
CONVERGE = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"
FIRST, SECOND = "1.6.18", "1.6.38"
SMALL = "/run/small"  # a volume that no release fits on


@pytest.fixture(scope="module")
def node():
    return testinfra.get_host("ansible://cache-1", ansible_inventory=INVENTORY)


def converge(playbook: Path = CONVERGE, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook on the node, with other variables."""
    extra = [f"--extra-vars={json.dumps(variables)}"] if variables else []
    return subprocess.run(
        ["ansible-playbook", f"--inventory={INVENTORY}", str(playbook), *options, *extra],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
    )


def changes(done: subprocess.CompletedProcess[str]) -> int:
    """Give how many tasks changed something, of a run that succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    recap = done.stdout.rsplit("PLAY RECAP", 1)[1]
    return int(recap.split("changed=")[1].split()[0])


def talk(node, words: str) -> str:
    program = (
        "import socket,sys; s=socket.create_connection(('127.0.0.1',11211),5);"
        "s.sendall(sys.argv[1].encode().decode('unicode_escape').encode()); print(s.recv(65536).decode())"
    )
    return node.check_output("python3 -c %s %s", program, words)


def state(node) -> dict[str, str]:
    """Give all that a failed change must leave as it is."""
    return {
        "process": node.check_output("systemctl show -P MainPID -P ActiveEnterTimestamp memcached@default"),
        "release": node.check_output("readlink /opt/tenfold/memcached/current"),
        "version": talk(node, "version\\r\\n"),
        "item": talk(node, "get precious\\r\\n"),
        "files": node.check_output(
            "sha256sum /etc/sysconfig/memcached-default /etc/systemd/system/memcached@.service "
            "/etc/systemd/system/memcached@default.service.d/instance.conf"
        ),
        "litter": node.check_output("ls -A /opt/tenfold/memcached /root/.ansible/tmp | grep -v '^1.6' || true"),
    }


FAILURES = {
    "wrong checksum": (
        {"memcached_version": SECOND, "memcached_sha256": "0" * 64},
        ["memcached_sha256", "memcached_sources"],
    ),
    "unknown checksum": (
        {"memcached_version": "1.6.99", "memcached_sha256": ""},
        ["No checksum is known for memcached 1.6.99", "memcached_sha256"],
    ),
    "unreachable source": (
        {
            "memcached_version": SECOND,
            "memcached_sources": ["http://127.0.0.1:9/memcached.tar.gz"],
            "lab_build_cache": "{tmp}",
        },
        ["memcached_sources", "http://127.0.0.1:9/memcached.tar.gz", "Connection refused"],
    ),
    "failing configure": (
        {"memcached_configure": ["--with-libssl=/nowhere", "CC=/bin/false"]},
        ["configure", "C compiler cannot create executables", "The release in use is as it was"],
    ),
    "more memory than the host has": (
        {"memcached_memory": 99_000_000},
        ["memcached_memory", "99000000 MB"],
    ),
    "port in use": (
        {"memcached_port": 11999},
        ["port 11999", "is held by", "memcached_port"],
    ),
    "unknown flag": (
        {"memcached_instances": [{"name": "default", "extended": ["no_such_thing"]}]},
        ["memcached_instances", "no_such_thing"],
    ),
    "flag of a feature that is not compiled in": (
        {"memcached_instances": [{"name": "default", "extended": ["proxy_config=/etc/proxy.lua"]}]},
        ["memcached_features", "proxy_config"],
    ),
    "misspelt variable of an instance": (
        {"memcached_instances": [{"name": "default", "memmory": 64}]},
        ["memmory"],
    ),
    "two instances on one port": (
        {"memcached_instances": [{"name": "default"}, {"name": "second"}]},
        ["127.0.0.1 port 11211", "memcached_instances"],
    ),
    "warm with items on disk": (
        {"memcached_instances": [{"name": "default", "warm": True, "extended": ["ext_path=/var/tmp/ext:64M"]}]},
        ["can't be warm", "ext_path", "memcached_instances"],
    ),
    "warm with too little memory": (
        {"memcached_warm": True, "memcached_memory": 63},
        ["can't be warm", "63 MB", "64 MB", "memcached_instances"],
    ),
    "no room on the volume": (
        {"memcached_version": SECOND, "memcached_prefix": SMALL},
        ["no room for memcached", SMALL],
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_change_harms_nothing(node, failure, tmp_path):
    talk(node, "set precious 0 0 4\\r\\nkept\\r\\n")
    holder = "import socket,time; s=socket.socket(); s.bind(('127.0.0.1',11999)); s.listen(); time.sleep(120)"
    node.check_output("systemd-run --unit=holder python3 -c %s", holder)
    node.check_output(f"mountpoint -q {SMALL} || {{ mkdir -p {SMALL} && mount -t tmpfs -o size=64k small {SMALL}; }}")
    variables, sentences = FAILURES[failure]
    variables = json.loads(json.dumps(variables).replace("{tmp}", str(tmp_path)))
    before = state(node)
    try:
        done = converge(**variables)
    finally:
        node.run("systemctl stop holder; systemctl reset-failed holder")
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0, told
    for sentence in sentences:
        assert sentence in told
    assert state(node) == before


def test_after_the_failures_there_is_nothing_to_mend(node):
    assert changes(converge()) == 0


def test_upgrade_and_back_without_compiling(node):
    assert changes(converge(memcached_version=SECOND)) > 0
    assert talk(node, "version\\r\\n").strip() == f"VERSION {SECOND}"
    assert changes(converge(memcached_version=SECOND)) == 0
    back = converge()
    assert changes(back) > 0
    assert talk(node, "version\\r\\n").strip() == f"VERSION {FIRST}"
    assert "Compile" not in back.stdout
    assert "Fetch the source archive" not in back.stdout
    forth = converge(memcached_version=SECOND)
    assert "Compile" not in forth.stdout
    assert changes(converge()) > 0
    releases = node.check_output("ls /opt/tenfold/memcached").split()
    assert sum(name.startswith(FIRST) for name in releases) == 1
    assert sum(name.startswith(SECOND) for name in releases) == 1


def test_an_interrupted_switch_is_finished_by_the_next_run(node):
    """The release was switched, and the run died before the restart."""
    assert changes(converge()) == 0
    newer = next(n for n in node.check_output("ls /opt/tenfold/memcached").split() if n.startswith(SECOND))
    node.check_output(f"ln -sfn {newer} /opt/tenfold/memcached/current")
    assert talk(node, "version\\r\\n").strip() == f"VERSION {FIRST}"
    assert changes(converge(memcached_version=SECOND)) > 0
    assert talk(node, "version\\r\\n").strip() == f"VERSION {SECOND}"
    assert changes(converge()) > 0


def test_an_interrupted_configuration_is_finished_by_the_next_run(node):
    """The environment file was written, and the run died before the restart."""
    assert changes(converge(memcached_memory=80)) > 0
    node.check_output('sed -i s/^CACHESIZE=.*/CACHESIZE=\\"64\\"/ /etc/sysconfig/memcached-default')
    assert "limit_maxbytes 83886080" in talk(node, "stats\\r\\n")
    assert changes(converge()) > 0
    assert "limit_maxbytes 67108864" in talk(node, "stats\\r\\n")
    assert changes(converge()) == 0


def test_only_the_instance_that_changed_is_restarted(node):
    two = [{"name": "default"}, {"name": "second", "port": 11300}]
    assert changes(converge(memcached_instances=two)) > 0
    before = state(node)
    two[1]["threads"] = 2
    assert changes(converge(memcached_instances=two)) > 0
    assert state(node)["process"] == before["process"]
    assert "-t 2" in node.check_output("ps -C memcached -o args")
    two[1]["state"] = "absent"
    assert changes(converge(memcached_instances=two)) > 0
    assert not node.service("memcached@second").is_running
    assert not node.file("/etc/sysconfig/memcached-second").exists
    assert state(node)["process"] == before["process"]
    assert changes(converge(memcached_instances=two)) == 0
    assert changes(converge()) == 0


def test_libevent_by_itself_and_the_compiler_is_gone_afterwards(node, tmp_path):
    """Built anew into another prefix, shared and exposed, on a node that had no compiler before."""
    node.check_output("dnf --assumeyes remove gcc make")
    variables = {
        "libevent_prefix": "/opt/lone/libevent",
        "libevent_linkage": "shared",
        "libevent_expose_in": "/usr/local",
        "lab_build_cache": str(tmp_path),
        "source_build_remove_toolchain": True,
    }
    play = CONVERGE.with_name("libevent.yml")
    assert changes(converge(play, **variables)) > 0
    assert not node.exists("gcc")
    assert not node.exists("make")
    library = node.check_output("readlink -f /usr/local/lib/libevent.so")
    assert library.startswith("/opt/lone/libevent/2.1.12-")
    assert "libevent-2.1.so" in node.check_output("ldconfig -p")
    assert changes(converge(play, **variables)) == 0


def test_check_mode_tells_and_changes_nothing(node):
    before = state(node)
    done = converge(CONVERGE, "--check", "--diff", memcached_memory=90, memcached_version=SECOND)
    assert changes(done) > 0
    assert '+CACHESIZE="90"' in done.stdout
    assert state(node) == before


def test_a_broken_daemon_is_told_by_verify(node):
    node.check_output("systemctl stop memcached@default")
    playbook = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "playbooks/verify.yml"
    done = converge(playbook)
    assert done.returncode != 0
    assert "memcached@default.service does not run" in done.stdout
    assert changes(converge()) > 0


# What memcached_warm promises: which changes keep all items, and that those that drop them are told beforehand.

ITEMS = 20_000
MEMORY = "/run/memcached@default"
MOUNT_FILE = r"/etc/systemd/system/run-memcached\x40default.mount"
CLIENT = """
import socket, sys
s = socket.create_connection(("127.0.0.1", 11211), 5)
f = s.makefile("rb")
"""
# Each item has its own value, so that one that comes back as another is seen.
FILL = """
value = lambda i: b"%d-" % i * (int(sys.argv[2]) // len(b"%d-" % i))
for i in range(int(sys.argv[1])):
    s.sendall(b"set key%d 0 0 %d\\r\\n%s\\r\\n" % (i, len(value(i)), value(i)))
    assert f.readline() == b"STORED\\r\\n"
"""
COUNT = """
value = lambda i: b"%d-" % i * (int(sys.argv[2]) // len(b"%d-" % i))
found = 0
for i in range(int(sys.argv[1])):
    s.sendall(b"get key%d\\r\\n" % i)
    while (line := f.readline()) != b"END\\r\\n":
        assert f.read(int(line.split()[3]) + 2) == value(i) + b"\\r\\n"
        found += 1
print(found)
"""


def fill(node, items: int = ITEMS, size: int = 1000) -> None:
    node.check_output("python3 -c %s %s %s", CLIENT + FILL, str(items), str(size))


def count(node, items: int = ITEMS, size: int = 1000) -> int:
    """Give how many of the items are there, with their values."""
    return int(node.check_output("python3 -c %s %s %s", CLIENT + COUNT, str(items), str(size)))


def process(node) -> str:
    """Give the process, and how often systemd had to start it again."""
    return node.check_output("systemctl show -P MainPID -P NRestarts memcached@default")


def warm(**variables: Any) -> str:
    """Bring the node to be warm, and give what was told."""
    done = converge(memcached_warm=True, **variables)
    changes(done)
    return " ".join(done.stdout.split())


def restart(node, how: str = "restart") -> None:
    node.check_output(f"systemctl {how} memcached@default")


@pytest.fixture
def filled(node):
    """Give a node that is warm and full of items."""
    warm()
    fill(node)
    assert count(node) == ITEMS
    return node


def test_turning_it_on_is_told_and_settles(node):
    assert changes(converge()) == 0
    assert "memcached@default.service is restarted and drops its items: it was not warm before" in warm()
    assert changes(converge(memcached_warm=True)) == 0
    options = set(node.check_output(f"findmnt -no OPTIONS {MEMORY}").split(","))
    assert {"nosuid", "nodev", "noexec", "mode=700"} <= options
    folder = node.file(MEMORY)
    assert (folder.user, folder.group, folder.mode) == ("memcached", "memcached", 0o700)


def test_an_upgrade_keeps_all_items_and_the_way_back_is_told_to_drop_them(filled):
    told = warm(memcached_version=SECOND)
    assert "memcached@default.service is restarted and keeps its items" in told
    assert "started without its items" not in told
    assert talk(filled, "version\\r\\n").strip() == f"VERSION {SECOND}"
    assert count(filled) == ITEMS
    told = warm()
    assert "drops its items: 1.6.18-" in told
    assert "is older than 1.6.38-" in told
    assert count(filled) == 0


def test_settings_that_keep_all_items(filled):
    assert "is restarted and keeps its items" in warm(memcached_threads=2, memcached_connections=500)
    assert count(filled) == ITEMS
    assert "is restarted and keeps its items" in warm(memcached_user="another")
    assert count(filled) == ITEMS


def test_restarts_in_a_row_keep_all_items(filled):
    for _ in range(5):
        restart(filled)
        assert count(filled) == ITEMS


def test_a_stop_and_a_later_start_keep_all_items(filled):
    restart(filled, "stop")
    time.sleep(2)
    restart(filled, "start")
    assert count(filled) == ITEMS


def test_a_reload_is_no_restart(filled):
    before = process(filled)
    restart(filled, "reload")
    assert process(filled) == before
    assert count(filled) == ITEMS


def test_after_a_crash_it_serves_again_without_items(filled):
    restart(filled)
    filled.check_output("systemctl kill --signal=KILL memcached@default")
    deadline = time.monotonic() + 20
    while not filled.socket("tcp://127.0.0.1:11211").is_listening:
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.2)
    assert count(filled) == 0
    fill(filled)
    restart(filled)
    assert count(filled) == ITEMS


@pytest.mark.parametrize(("items", "size"), [(100_000, 1000), (300, 900_000)])
def test_more_items_than_memory_and_all_that_stayed_are_kept(filled, items, size):
    """A tmpfs with too little room would end the process here."""
    before = process(filled)
    fill(filled, items, size)
    assert process(filled) == before
    assert filled.check_output(f"du -m {MEMORY}/memory").split()[0] == "64"
    stayed = count(filled, items, size)
    assert 0 < stayed < items
    restart(filled)
    assert count(filled, items, size) == stayed
    before = process(filled)
    fill(filled, items, size)
    assert process(filled) == before


def test_changed_memory_is_told_to_drop_the_items(filled):
    fill(filled, 300, 900_000)
    assert "drops its items: memory changes from 64 to 100" in warm(memcached_memory=100)
    assert "limit_maxbytes 104857600" in talk(filled, "stats\\r\\n")
    assert count(filled, 300, 900_000) == 0
    before = process(filled)
    fill(filled, 300, 900_000)
    assert process(filled) == before
    assert changes(converge(memcached_warm=True, memcached_memory=100)) == 0
    assert "drops its items: memory changes from 100 to 64" in warm()
    assert int(filled.check_output(f"stat -f -c '%b * %S / 1048576' {MEMORY} | sed 's/.*/echo $((&))/' | sh")) == 68
    assert count(filled, 300, 900_000) == 0
    fill(filled)
    restart(filled)
    assert count(filled) == ITEMS


def test_a_cold_start_that_nobody_could_foresee_is_told(filled):
    """Somebody made systemd end it with the other signal."""
    drop_in = "/run/systemd/system/memcached@default.service.d/signal.conf"
    filled.check_output(f"mkdir -p $(dirname {drop_in}) && printf '[Service]\\nKillSignal=SIGTERM\\n' > {drop_in}")
    try:
        told = warm(memcached_threads=2)
    finally:
        filled.check_output(f"rm {drop_in} && systemctl daemon-reload")
    assert "is restarted and keeps its items" in told
    assert "started without its items, though it should have kept them, in default" in told
    assert count(filled) == 0


def test_check_mode_tells_the_same_and_changes_nothing(filled):
    before = process(filled)
    done = converge(CONVERGE, "--check", memcached_warm=True, memcached_memory=100)
    assert changes(done) > 0
    assert "memory changes from 64 to 100" in " ".join(done.stdout.split())
    assert process(filled) == before
    assert count(filled) == ITEMS


def test_an_instance_that_is_removed_gives_its_memory_back(filled):
    two = [{"name": "default"}, {"name": "second-one", "port": 11300}]
    assert "memcached@default.service is" not in warm(memcached_instances=two)
    assert filled.mount_point("/run/memcached@second-one").exists
    two[1]["state"] = "absent"
    assert "memcached@second-one.service is removed with its items" in warm(memcached_instances=two)
    assert not filled.mount_point("/run/memcached@second-one").exists
    assert not filled.file(r"/etc/systemd/system/run-memcached\x40second\x2done.mount").exists
    assert changes(converge(memcached_warm=True, memcached_instances=two)) == 0
    assert count(filled) == ITEMS


def test_turning_it_off_is_told_and_gives_the_memory_back(filled):
    done = converge()
    assert changes(done) > 0
    assert "drops its items: it is not warm" in done.stdout
    assert not filled.mount_point(MEMORY).exists
    assert not filled.file(MOUNT_FILE).exists
    assert talk(filled, "version\\r\\n").startswith("VERSION")
    assert changes(converge()) == 0

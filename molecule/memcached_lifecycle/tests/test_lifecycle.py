"""Changes to a running node: those that work keep their promises, those that fail harm nothing."""

from __future__ import annotations

import json
import os
import subprocess
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


def converge(playbook: Path = CONVERGE, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook on the node, with other variables."""
    extra = [f"--extra-vars={json.dumps(variables)}"] if variables else []
    return subprocess.run(
        ["ansible-playbook", f"--inventory={INVENTORY}", str(playbook), *extra],
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
    done = subprocess.run(
        [
            "ansible-playbook", f"--inventory={INVENTORY}", str(CONVERGE), "--check", "--diff",
            "--extra-vars", json.dumps({"memcached_memory": 90, "memcached_version": SECOND}),
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
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

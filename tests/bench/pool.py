#!/usr/bin/env python3
"""Measure a pool: how fast it grows, how fast a change is seen, what proxy and version cost. All in one run.

Prints tables and writes ``bench/results/pool.json``. Needs the environment that ``make bench`` sets up; ends and
remakes the test hosts of the scenario ``pool``.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results"
NEW = [f"cache-{number:02}" for number in range(2, 11)]
GROWTHS = 3
CHANGES = 10
LOADS = 5
POOL = "cache.site.test"
EPHEMERAL = "tmp/molecule.*.pool"
# Everything that a node got, so that the next growth finds a new host.
FORGET = (
    "rm -rf /opt/tenfold /etc/sysconfig/memcached-* /etc/systemd/system/memcached* /etc/systemd/system/run-memcached*; "
    "systemctl daemon-reload; userdel memcached"
)
PINGS = """
- hosts: new
  gather_facts: false
  tasks:
    - {name: a module that does nothing, ansible.builtin.ping: }
    - {name: the same again, ansible.builtin.ping: }
"""
# Add a member, for which the name server's own host stands in, or remove it, and wait until DNS knows.
CHANGE = """
import subprocess, sys, time
server, key, pool = sys.argv[1:]
def update(verb):
    record = f"update {verb} {pool}. 5 A {server}\\nupdate {verb} added.{pool}. 5 A {server}\\n" \\
        f"update {verb} _memcached._tcp.{pool}. 5 SRV 0 10 11211 added.{pool}.\\n"
    subprocess.run(["nsupdate", "-k", key], input=f"server 127.0.0.1\\n{record}send\\n", text=True, check=True)
def seen():
    done = subprocess.run(["dig", "+short", "@" + server, pool], capture_output=True, text=True, check=True)
    return server in done.stdout.split()
start = time.time()
update(sys.stdin.readline().strip())
done = time.time()
wanted = sys.stdin.readline().strip() == "there"
while seen() != wanted:
    pass
print(start, done, time.time())
"""
MEMBERS = """
import sys, time
from pymemcache.client.base import Client
proxy, wanted, end = Client(("127.0.0.1", 11211), timeout=10), int(sys.argv[1]), time.time() + 60
while int(proxy.get("memcached_proxy:" + sys.argv[2]).split()[1]) != wanted and time.time() < end:
    time.sleep(0.02)
print(time.time())
"""


def container(host: str) -> str:
    """Name the container of a host."""
    return f"tenfold-pool-{host}"


def inside(host: str, *command: str, given: str = "") -> str:
    """Run a command on a host and give what it printed."""
    done = subprocess.run(
        ["docker", "exec", "-i", container(host), *command], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{host}: {' '.join(command)[:200]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def address(host: str) -> str:
    """Give the address of a host."""
    return inside(host, "hostname", "-I").split()[0]


def molecule(action: str) -> None:
    """Run one action of the scenario."""
    subprocess.run(["molecule", action, "-s", "pool"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def play(members: list[str], playbook: str, **variables: Any) -> tuple[float, dict[str, float]]:
    """Run a playbook with these nodes in the pool; give its wall seconds, and those of its tasks."""
    ephemeral = next(Path(os.environ["ANSIBLE_HOME"]).glob(EPHEMERAL))
    inventory = ephemeral / "members.json"
    groups = {name: {"hosts": dict.fromkeys(members)} for name in ("memcached", "new")}
    inventory.write_text(json.dumps(groups))
    start = time.monotonic()
    done = subprocess.run(
        [
            *("ansible-playbook", f"--inventory={ephemeral / 'inventory'}", f"--inventory={inventory}"),
            *(playbook, f"--extra-vars={json.dumps(variables)}"),
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "ANSIBLE_CONFIG": str(ephemeral / "ansible.cfg"),
            "MOLECULE_SCENARIO_NAME": "pool",
            "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
            "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "all",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f"{playbook} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return took, dict(_tasks(done.stdout))


def _tasks(output: str) -> Iterator[tuple[str, float]]:
    for name, seconds in re.findall(r"^(.+?) -+ ([\d.]+)s$", output.rsplit("=====", 1)[1], re.MULTILINE):
        yield name.rpartition(" : ")[2], float(seconds)


def growths() -> dict[str, Any]:
    """Add nine nodes to one, several times, each time to hosts that have nothing."""
    walls, tasks = [], []
    for number in range(GROWTHS):
        if number:
            play(NEW, "tenfold.stack.scale_in", pool_leaving=NEW, memcached_drain_quiet=1)
            for host in NEW:
                inside(host, "bash", "-c", FORGET)
            for path in next(Path(os.environ["ANSIBLE_HOME"]).glob(EPHEMERAL)).glob("facts/*"):
                path.unlink()
        wall, split = play(NEW, "tenfold.stack.scale_out")
        walls.append(round(wall, 1))
        tasks.append(split)
    pings = Path(os.environ["TENFOLD_CACHE"]) / "pings.yml"
    pings.write_text(PINGS)
    _wall, floor = play(NEW, str(pings))
    medians = {name: round(statistics.median(split.get(name, 0) for split in tasks), 2) for name in tasks[0]}
    return {
        "walls": walls,
        "median": statistics.median(walls),
        "tasks": dict(sorted(medians.items(), key=lambda item: -item[1])),
        "ping_on_nine": min(floor.values()),
    }


def changes() -> dict[str, Any]:
    """Add and remove a member by nsupdate, and look when it is seen."""
    dns = address("dns-1")
    key = "/etc/named/keys/pool-dns.key"
    seconds: dict[str, list[float]] = {"update": [], "dig": [], "proxy": []}
    count = len(NEW) + 1
    for number in range(CHANGES):
        verb, there = (("add", "there"), ("delete", "gone"))[number % 2]
        words = [
            "docker",
            "exec",
            "-i",
            container("client-2"),
            "python3",
            "-c",
            MEMBERS,
            str(count + 1 - number % 2),
            POOL,
        ]
        watcher = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        told = inside("dns-1", "python3", "-c", CHANGE, dns, key, POOL, given=f"{verb}\n{there}\n")
        start, done, seen = map(float, told.split())
        seconds["update"].append(done - start)
        seconds["dig"].append(seen - start)
        seconds["proxy"].append(float(watcher.communicate()[0]) - start)
    return {name: {"median": statistics.median(values), "max": max(values)} for name, values in seconds.items()}


def loads() -> dict[str, dict[str, float]]:
    """Compare what a public load generator, memaslap, gets out of each way, in turns."""
    install = "apt-get install -y -qq --no-install-recommends libmemcached-tools memcached >/dev/null 2>&1"
    inside("client-2", "env", "RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive", "bash", "-c", install)
    source = "/opt/tenfold/memcached-proxy/current/bin/memcached"
    package = "/usr/bin/memcached"
    lua = "/etc/memcached-proxy/proxy.lua"
    # The configuration that the hosts have, for a pool of one node.
    text = inside("client-1", "cat", "/etc/memcached-proxy/pools.lua")
    text = re.sub(r"members = \{\n.*?\n    \}", 'members = { { "127.0.0.1", 11301 } }', text, flags=re.DOTALL)
    inside("client-2", "sh", "-c", "cat > /run/bench-pools.lua", given=text)
    daemons = {
        "package": (11300, [package, "-t", "1"]),
        "source": (11301, [source, "-t", "1"]),
        "proxy": (11302, [source, "-t", "1", "-o", f"proxy_config={lua},proxy_arg=/run/bench-pools.lua"]),
    }
    for name, (port, command) in daemons.items():
        words = ["taskset", "-c", "0", *command, "-u", "nobody", "-l", "127.0.0.1", "-p", str(port)]
        inside("client-2", "systemd-run", f"--unit=bench-{name}", *words)
    time.sleep(3)
    ways = {
        "package 1.6.18, direct": 11300,
        "source 1.6.38, direct": 11301,
        "source 1.6.38, through the proxy": 11302,
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _round in range(LOADS):
        for name, port in ways.items():
            slap = f"taskset -c 1 memcaslap -s 127.0.0.1:{port} -T 1 -c 8 -t 4s -S 4s -X 200"
            figures[name].append(_slap(inside("client-2", "bash", "-c", slap)))
    return {
        name: {
            "ops_per_second": statistics.median(rate for rate, _p99 in values),
            "p99_us": statistics.median(p99 for _rate, p99 in values),
        }
        for name, values in figures.items()
    }


def _slap(output: str) -> tuple[float, float]:
    """Give operations a second, and the 99th percentile in microseconds from the counts by powers of two."""
    rate = float(re.findall(r"TPS: (\d+)", output)[-1])
    block = output[output.rindex("Total Statistics (") :]
    counts: dict[int, int] = {}
    for first, row in re.findall(r"^ +(\d+):((?: +\d+)+)$", block, re.MULTILINE):
        counts |= {int(first) + index: int(count) for index, count in enumerate(row.split())}
    left = 0.99 * sum(counts.values())
    for power, count in sorted(counts.items()):
        if left <= count:
            return rate, 2**power * (1 + left / count)
        left -= count
    raise ValueError(output)


def main() -> None:
    """Measure, print the tables, write the results."""
    molecule("destroy")
    molecule("create")
    molecule("converge")
    results: dict[str, Any] = {"add_nine": growths(), "change": changes(), "load": loads()}
    molecule("destroy")
    nine = results["add_nine"]
    print(f"adding nine nodes to one: {nine['walls']} s, median {nine['median']} s; of that, by task:")
    for name, seconds in nine["tasks"].items():
        if seconds >= 0.3:
            print(f"  {seconds:6.1f} s  {name}")
    print(f"  a module that does nothing, on nine hosts: {nine['ping_on_nine']:.1f} s")
    for name, figures in results["change"].items():
        print(f"from nsupdate to {name}: median {figures['median']:.3f} s, at most {figures['max']:.3f} s")
    for name, figures in results["load"].items():
        print(f"{name:36}{figures['ops_per_second']:10.0f} ops/s{figures['p99_us']:8.0f} us p99")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "pool.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compare compiling once and shipping with compiling on every node, on ten test hosts, in one run.

Prints a table and writes ``bench/results/build_once.json``. Needs the environment that
``make bench`` sets up; ends and remakes the hosts of the example site.

CPU seconds are those of the controller's processes and of the containers' control groups. What the
container engine itself uses is in neither; ``machine`` is all that the machine did in that time, and
only means something when it did nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results"
CPU_CONTROLLERS = (
    Path("/sys/fs/cgroup/cpuacct/docker"),  # control groups, version 1: nanoseconds
    Path("/sys/fs/cgroup/system.slice"),  # version 2: microseconds
)
NO_OP_RUNS = 5


@dataclass
class Cost:
    """What a step cost, in seconds."""

    wall: float
    controller: float
    containers: float
    machine: float

    @property
    def cpu(self) -> float:
        """CPU seconds of controller and containers."""
        return self.controller + self.containers


def containers_cpu() -> float:
    """Give the CPU seconds that the site's containers have used so far."""
    names = subprocess.run(
        ["docker", "ps", "--no-trunc", "-q", "--filter", "label=tenfold.scenario=site"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    total = 0.0
    for name in names:
        usage = CPU_CONTROLLERS[0] / name / "cpuacct.usage"
        if usage.exists():
            total += int(usage.read_text()) / 1e9
        else:
            stat = (CPU_CONTROLLERS[1] / f"docker-{name}.scope/cpu.stat").read_text()
            total += int(stat.split("usage_usec ")[1].split()[0]) / 1e6
    return total


def machine_cpu() -> float:
    """Give the CPU seconds that the whole machine has used so far."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def controller_cpu() -> float:
    """Give the CPU seconds of the commands that were run from here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cost_of(step: Callable[[], object]) -> Cost:
    """Run a step and give what it cost."""
    before = time.monotonic(), controller_cpu(), containers_cpu(), machine_cpu()
    step()
    after = time.monotonic(), controller_cpu(), containers_cpu(), machine_cpu()
    return Cost(*(round(end - start, 2) for start, end in zip(before, after, strict=True)))


def molecule(action: str) -> None:
    """Run one action of the site's scenario."""
    subprocess.run(["molecule", action, "-s", "site"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def fresh_hosts() -> None:
    """Give the site new hosts, and check that they are there."""
    molecule("destroy")
    molecule("create")


def play(path: Path, *arguments: str) -> str:
    """Run a playbook on the site's cache nodes as its scenario does; give its output."""
    ephemeral = next(Path(os.environ["ANSIBLE_HOME"]).glob("tmp/molecule.*.site"))
    done = subprocess.run(
        ["ansible-playbook", f"--inventory={ephemeral / 'inventory'}", str(path), "--limit=memcached", *arguments],
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CONFIG": str(ephemeral / "ansible.cfg"), "MOLECULE_SCENARIO_NAME": "site"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{path.name} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    """Measure, print the table, write the results."""
    cache = Path(os.environ["TENFOLD_CACHE"]) / "bench"
    shutil.rmtree(cache, ignore_errors=True)
    role = ROOT / "playbooks/memcached.yml"
    by_hand = ROOT / "tests/bench/compile_everywhere.yml"
    arguments = (f"--extra-vars=source_build_cache={cache}",)
    costs: dict[str, Cost] = {}

    fresh_hosts()
    costs["role, nothing built yet"] = cost_of(lambda: play(role, *arguments))
    outputs: list[str] = []
    no_ops = [cost_of(lambda: outputs.append(play(role, *arguments))) for _ in range(NO_OP_RUNS)]
    costs[f"role, nothing to do (median of {NO_OP_RUNS})"] = sorted(no_ops, key=lambda cost: cost.wall)[NO_OP_RUNS // 2]
    recap = outputs[-1].rsplit("PLAY RECAP", 1)[1]
    fresh_hosts()
    costs["role, artifact in the cache"] = cost_of(lambda: play(role, *arguments))
    fresh_hosts()
    costs["every node compiles, the role's flags"] = cost_of(lambda: play(by_hand))
    if "--literal" in sys.argv:
        fresh_hosts()
        costs["every node compiles, as by hand"] = cost_of(lambda: play(by_hand, "--extra-vars={literal: true}"))

    built = costs["role, nothing built yet"]
    print(f"{'ten nodes':44}{'wall s':>8}{'CPU s':>8}{'machine CPU s':>15}{'CPU against role':>18}")
    for name, cost in costs.items():
        print(f"{name:44}{cost.wall:8.1f}{cost.cpu:8.1f}{cost.machine:15.1f}{cost.cpu / built.cpu:18.2f}")
    print(f"no-op: wall s of all runs {[cost.wall for cost in no_ops]}; {recap.split(chr(10))[1].strip()}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "build_once.json").write_text(
        json.dumps(
            {
                "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
                "costs": {name: asdict(cost) | {"cpu": round(cost.cpu, 2)} for name, cost in costs.items()},
                "no_op_wall": {
                    "all": [cost.wall for cost in no_ops],
                    "median": statistics.median(cost.wall for cost in no_ops),
                },
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()

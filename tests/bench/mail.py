#!/usr/bin/env python3
"""Measure mail in two tiers beside its peers' settings: queues, delays of good mail, and what is lost. All in one run.

Prints tables and writes ``bench/results/mail.json``. Needs the environment that ``make bench`` sets up; ends and
remakes the test hosts of the scenario ``mail``. Given names of parts (bad, backlog, chaos, members), runs only these.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results"
EPHEMERAL = "tmp/molecule.*.mail"
PRIMARIES = ["mx-01", "mx-02"]
FALLBACKS = ["fallback-01", "fallback-02"]
BALANCER, SINK = "vip-01", "sink-01"
SUBMIT_TO, FALLBACK = "mx.vip.site.test", "fallback.vip.site.test"
PROGRAMS = "/srv/mail"

RATE = 150
SECONDS = 120
# Seconds from the begin of the load until each server has started the processes that it needs. Each mail of this time
# is accounted for, but its delay is told apart, and the queues of this time are left out.
WARM = 15
SETTLE = 30  # seconds after the load in which good mail may still arrive
BACKLOG = 40_000
BAD = {"defer": 8, "drop": 4, "slow": 3, "flaky": 3, "refuse": 2}
# Domains whose servers don't answer: each of many gets little mail, as at a large site. tests/mail/sink.yml names them.
DEAD = "--many=drop=50"
PLAIN: dict[str, Any] = {"postfix_tier": "none", "postfix_listen": ["all"]}
# Variables of the primaries. The last two are the role's; the first two are what others do.
VARIANTS: dict[str, dict[str, Any]] = {
    "no fallback": PLAIN,
    "plain smtp_fallback_relay": {**PLAIN, "postfix_main": {"smtp_fallback_relay": f"[{FALLBACK}]"}},
    "two tiers": {},
    "two tiers, slow domain routed": {"postfix_slow_domains": ["slow.sink.test"]},
}
# Percent of bad mail.
SHARES = {"no fallback": (10, 20, 30), "two tiers, slow domain routed": (10, 20, 30)}
KINDS = ["haproxy", "nginx", "dns"]


def container(host: str) -> str:
    """Name the container of a host."""
    return f"tenfold-mail-{host}"


def inside(host: str, *command: str, given: str = "", fails: bool = False) -> str:
    """Run a command on a host and give what it printed."""
    words = ["docker", "exec", "-i", container(host), *command]
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    if done.returncode and not fails:
        sys.exit(f"{host}: {' '.join(command)[:200]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def on_all(hosts: Iterable[str], script: str, fails: bool = False) -> list[str]:
    """Run a shell script on hosts, one after another."""
    return [inside(host, "sh", "-c", script, fails=fails) for host in hosts]


def molecule(action: str) -> None:
    """Run one action of the scenario."""
    subprocess.run(["molecule", action, "-s", "mail"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def play(playbook: str, primaries: dict[str, Any] | None = None, **variables: Any) -> float:
    """Run a playbook of the collection, with variables of the primaries and of all; give its wall seconds."""
    ephemeral = next(Path(os.environ["ANSIBLE_HOME"]).glob(EPHEMERAL))
    inventory = ephemeral / "bench.json"
    inventory.write_text(json.dumps({"mail_primary": {"vars": primaries or {}}}))
    start = time.monotonic()
    done = subprocess.run(
        [
            *("ansible-playbook", f"--inventory={ephemeral / 'inventory'}", f"--inventory={inventory}"),
            *(f"tenfold.stack.{playbook}", f"--extra-vars={json.dumps(variables)}"),
        ],
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CONFIG": str(ephemeral / "ansible.cfg"), "MOLECULE_SCENARIO_NAME": "mail"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{playbook} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return round(time.monotonic() - start, 1)


def mix(bad: int) -> str:
    """Give the shares of the domains with so many percent of bad mail, in the proportions of BAD."""
    shares = {name: share * bad / sum(BAD.values()) / 100 for name, share in BAD.items()}
    return ",".join(f"{name}={share:.6f}" for name, share in {"good": 1 - bad / 100, **shares}.items())


class Load:
    """Submitters at work, and what became of their mails."""

    def __init__(self, bad: int, rate: float = RATE, keep: bool = False) -> None:
        """Begin, with empty queues unless they are to be kept."""
        if not keep:
            clear()
        inside(SINK, "sh", "-c", f"rm -f {PROGRAMS}/stop {PROGRAMS}/*.acknowledged {PROGRAMS}/*.json")
        on_all(PRIMARIES + FALLBACKS, f"rm -f {PROGRAMS}/stop")
        watch = ("queues.py", "watch", f"--until-file={PROGRAMS}/stop")
        self.warm = time.time() + WARM
        self.watchers = {host: start(host, *watch) for host in PRIMARIES + FALLBACKS}
        self.submitters = start(
            SINK,
            *("submit.py", SUBMIT_TO, f"--mix={mix(bad)}", DEAD, f"--rate={rate}"),
            *(f"--until-file={PROGRAMS}/stop", f"--log={PROGRAMS}/load.acknowledged", f"--report={PROGRAMS}/load.json"),
        )

    def report(self) -> dict[str, Any]:
        """Give the submitters' counts until now. They are written from the first second on."""
        return json.loads(inside(SINK, "sh", "-c", f"until cat {PROGRAMS}/load.json; do sleep 0.2; done 2>/dev/null"))

    def end(self) -> dict[str, Any]:
        """End the submitters, wait for mails on their way, stop the mail hosts and account for every mail."""
        inside(SINK, "touch", f"{PROGRAMS}/stop")
        submitted = json.loads(self.submitters.communicate()[0])
        ended = time.time()
        time.sleep(SETTLE)
        on_all(PRIMARIES + FALLBACKS, f"touch {PROGRAMS}/stop; systemctl stop postfix")
        rows = {host: process.communicate()[0] for host, process in self.watchers.items()}
        ids = on_all(PRIMARIES + FALLBACKS, f"python3 {PROGRAMS}/queues.py ids")
        inside(SINK, "sh", "-c", f"cat > {PROGRAMS}/queued", given="".join(ids))
        accounted = inside(
            SINK,
            *("python3", f"{PROGRAMS}/account.py", f"--acknowledged={PROGRAMS}/load.acknowledged"),
            *(f"--sink={PROGRAMS}/sink.log", f"--queued={PROGRAMS}/queued", f"--warm={self.warm}"),
            fails=True,  # when a mail is lost, which is a result
        )
        on_all(PRIMARIES + FALLBACKS, "systemctl start postfix")
        return {
            "submitted": submitted,
            "accounted": json.loads(accounted),
            "primaries": depth([rows[host] for host in PRIMARIES], self.warm, ended),
            "fallbacks": depth([rows[host] for host in FALLBACKS], self.warm, ended),
        }


def start(host: str, program: str, *options: str) -> subprocess.Popen[str]:
    """Start a program of tests/mail on a host."""
    words = ["docker", "exec", container(host), "python3", f"{PROGRAMS}/{program}", *options]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def depth(rows: list[str], began: float, ended: float) -> dict[str, float]:
    """Sum up the queues of hosts between two times: at most, on average, and when the load ended."""
    total: Counter[int] = Counter()
    for text in rows:
        for line in text.splitlines():
            moment, _space, count = line.partition(" ")
            if began <= float(moment) <= ended:
                total[int(float(moment))] += int(count)
    # In the last second not every host was asked any more.
    values = [count for _moment, count in sorted(total.items())][:-1]
    return {"max": max(values), "mean": round(statistics.mean(values)), "end": values[-1]}


def clear() -> None:
    """Empty all queues, and the sink's log and memory."""
    on_all(PRIMARIES + FALLBACKS, "systemctl stop postfix; postsuper -d ALL; systemctl start postfix", fails=True)
    inside(SINK, "sh", "-c", f"systemctl stop sink; rm -f {PROGRAMS}/sink.log; systemctl start sink")


def loaded(bad: int, **options: Any) -> dict[str, Any]:
    """Load the pools for the usual time."""
    load = Load(bad, **options)
    time.sleep(WARM + SECONDS)
    return load.end()


def bad_mail() -> dict[str, Any]:
    """Compare the settings with bad mail among the good."""
    results = {}
    for name, variables in VARIANTS.items():
        play("mail", variables)
        for bad in SHARES.get(name, (20,)):
            results[f"{name}, {bad} % bad"] = loaded(bad)
    return results


def backlog() -> dict[str, Any]:
    """Compare the settings with mail that can't be delivered standing in the queue at the start."""
    results = {}
    for name in ("no fallback", "plain smtp_fallback_relay", "two tiers, slow domain routed"):
        play("mail", VARIANTS[name])
        clear()
        filling = start(
            SINK,
            *("submit.py", SUBMIT_TO, "--mix=defer=0.75,drop=0.25", DEAD, "--rate=1000", f"--count={BACKLOG}"),
            *(f"--log={PROGRAMS}/backlog.log", f"--report={PROGRAMS}/backlog.json"),
        )
        filled = json.loads(filling.communicate()[0])
        # Where there is a fallback, the mails go there first.
        end = time.monotonic() + 180
        while name != "no fallback" and queued(PRIMARIES) > 200 and time.monotonic() < end:
            time.sleep(2)
        standing = {"primaries": queued(PRIMARIES), "fallbacks": queued(FALLBACKS), "filled": filled["acknowledged"]}
        results[name] = {**loaded(20, keep=True), "standing": standing}
    return results


def queued(hosts: list[str]) -> int:
    """Count the mails on hosts now."""
    return sum(int(row.split()[1]) for row in on_all(hosts, f"python3 {PROGRAMS}/queues.py watch --seconds 0"))


def chaos() -> dict[str, Any]:
    """Kill each host's daemon in turn under load, twice."""
    play("mail", VARIANTS["two tiers, slow domain routed"])
    load = Load(20)
    postfix = ("pkill -9 -x master; pkill -9 -u postfix", "systemctl restart postfix")
    balancer = ("pkill -9 -x haproxy", "systemctl restart haproxy")
    kills = [(host, postfix) for pair in zip(PRIMARIES, FALLBACKS, strict=True) for host in pair] + [
        (BALANCER, balancer)
    ]
    for host, (kill, again) in kills * 2:
        time.sleep(8)
        inside(host, "sh", "-c", kill, fails=True)
        time.sleep(4)
        inside(host, "sh", "-c", again)
    time.sleep(8)
    return {"two tiers, slow domain routed": {**load.end(), "kills": 2 * len(kills)}}


def members() -> dict[str, Any]:
    """Take a primary and a fallback out and put them back under load, for each kind of balancer."""
    results = {}
    for kind in KINDS:
        pools = pools_with(kind)
        play("mail", pools=pools)
        play("announce", pools=pools)
        load = Load(20)
        seconds, broken = {}, {}
        for host in (PRIMARIES[1], FALLBACKS[1]):
            for name, playbook, variable in (
                (f"drain {host}", "scale_in", "pool_leaving"),
                (f"add {host}", "scale_out", "pool_joining"),
            ):
                before = load.report()["failed_sessions"]
                seconds[name] = play(playbook, None, **{variable: host}, pools=pools)
                time.sleep(5)
                broken[name] = load.report()["failed_sessions"] - before
        results[kind] = {**load.end(), "seconds": seconds, "failed_sessions": broken}
    return results


def pools_with(kind: str) -> list[dict[str, Any]]:
    """Give the scenario's pools, with this kind of balancer."""
    ephemeral = next(Path(os.environ["ANSIBLE_HOME"]).glob(EPHEMERAL))
    words = ["ansible-inventory", f"--inventory={ephemeral / 'inventory'}", "--host", PRIMARIES[0]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    pools: list[dict[str, Any]] = json.loads(done.stdout)["pools"]
    return [{**pool, "vip": {**pool["vip"], "kind": kind}} if "vip" in pool else pool for pool in pools]


def table(results: dict[str, Any]) -> None:
    """Print what was measured, one line a run."""
    columns = ["primaries max", "mean", "end", "fallbacks max", "good p50", "p99", "max"]
    columns += ["p99 at start", "waiting", "mails/s", "lost", "twice", "broken sessions", "not taken"]
    widths = [max(8, len(column) + 2) for column in columns]
    print(" " * 36 + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)))
    for name, run in results.items():
        primaries, accounted, submitted = run["primaries"], run["accounted"], run["submitted"]
        delays = [*accounted["good_delay"].values(), accounted["good_delay_at_start"]["p99"]]
        cells = [*primaries.values(), run["fallbacks"]["max"]]
        cells += [f"{float('nan') if delay is None else delay:.3f}" for delay in delays]
        cells += [accounted["domains"]["good"]["queued"], submitted["rate"], accounted["lost"], accounted["duplicated"]]
        cells += [submitted["failed_sessions"], submitted["refused"] + submitted["given_up"]]
        print(f"{name:36}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
        for step, seconds in run.get("seconds", {}).items():
            print(f"    {step}: {seconds} s, {run['failed_sessions'][step]} sessions broken")


PARTS = {"bad": bad_mail, "backlog": backlog, "chaos": chaos, "members": members}


def main() -> None:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="run only this part")
    parser.add_argument("--keep", action="store_true", help="use the test hosts that run, and leave them running")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    path = RESULTS / "mail.json"
    results: dict[str, Any] = json.loads(path.read_text()) if options.parts and path.exists() else {}
    if not options.keep:
        for action in ("destroy", "create", "prepare", "converge"):
            molecule(action)
    for part in options.parts or PARTS:
        results[part] = PARTS[part]()
        print(f"{part}:")
        table(results[part])
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")
    if not options.keep:
        molecule("destroy")


if __name__ == "__main__":
    main()

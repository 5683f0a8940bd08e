"""Try proxy.lua with throw-away daemons on one host: ten nodes on addresses of the loopback, and proxies before them.

Run as `trial.py <memcached> <proxy.lua> <case>`; prints what the case measured as JSON.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MEMCACHED, PROXY_LUA = sys.argv[1:3]
FOLDER = Path(tempfile.mkdtemp(prefix="trial-"))
PORT = 21211
OPTIONS: dict[str, Any] = {
    "copies": 1, "patience": 4, "failover": True, "failover_expire": 10, "timeout": 1, "separator": ":", "routes": {},
}  # fmt: skip


def address(node: int) -> str:
    return f"127.0.1.{node}"


def ring(nodes: Sequence[str]) -> Callable[[str], str]:
    """libmemcached's ketama_weighted with MD5 for nodes on port 11211, made from its description alone."""
    hashes = 39 if len(nodes) == 25 else 40  # libmemcached rounds
    points = sorted(
        (int.from_bytes(digest[part : part + 4], "little"), node)
        for node in nodes
        for number in range(hashes)
        for digest in [hashlib.md5(f"{node}-{number}".encode()).digest()]
        for part in range(0, 16, 4)
    )

    def place(key: str) -> str:
        value = int.from_bytes(hashlib.md5(key.encode()).digest()[:4], "little")
        return points[bisect.bisect_left(points, (value, "")) % len(points)][1]

    return place


class Client:
    """One connection that speaks the text protocol."""

    def __init__(self, host: str = "127.0.0.1", port: int = PORT) -> None:
        self.socket = socket.create_connection((host, port), 15)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def ask(self, line: str, value: str | None = None) -> str:
        """Give the first line of the answer, or the value of a hit."""
        self.socket.sendall(f"{line}\r\n{'' if value is None else value + chr(13) + chr(10)}".encode())
        answer = self.file.readline().decode().strip()
        if answer.startswith("VALUE "):
            answer = self.file.readline().decode().strip()
            self.file.readline()
        return answer

    def set(self, key: str, value: str, expire: int = 0) -> str:
        return self.ask(f"set {key} 0 {expire} {len(value)}", value)

    def get(self, key: str) -> str:
        return self.ask(f"get {key}")

    def statistic(self, name: str) -> int:
        self.socket.sendall(b"stats\r\n")
        found = 0
        while (line := self.file.readline().decode().split()) != ["END"]:
            if line[1] == name:
                found = int(line[2])
        return found


def has(node: int, key: str) -> bool:
    return Client(address(node), 11211).ask(f"mg {key}") == "HD"


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> float:
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        try:
            if condition():
                return time.monotonic() - start
        except OSError:
            pass
        time.sleep(0.01)
    raise TimeoutError


class Lab:
    """Daemons that end with the trial."""

    def __init__(self) -> None:
        self.processes: dict[Any, subprocess.Popen[bytes]] = {}

    def node(self, number: int) -> None:
        self.processes[number] = subprocess.Popen(
            [MEMCACHED, "-u", "root", "-l", address(number), "-p", "11211", "-U", "0", "-t", "1", "-c", "4096"]
        )
        wait_for(lambda: bool(Client(address(number), 11211)))

    def proxy(self, nodes: Sequence[int], **options: Any) -> None:
        self.members(nodes, **options)
        self.processes["proxy"] = subprocess.Popen(
            [MEMCACHED, "-u", "root", "-l", "127.0.0.1", "-p", str(PORT), "-U", "0", "-t", "2",
             "-o", f"proxy_config={PROXY_LUA},proxy_arg={FOLDER}/pools.lua"],
            stderr=(FOLDER / "log").open("ab"),
        )  # fmt: skip
        wait_for(lambda: bool(Client()))

    def members(self, nodes: Sequence[int], pools: Sequence[str] = ("cache",), **options: Any) -> str:
        """Write pools.lua; give the digest that the proxy tells when it uses it."""
        digest = hashlib.sha1(str(nodes).encode()).hexdigest()[:12]

        def lua(value: Any) -> str:
            if isinstance(value, dict):
                return "{" + ",".join(f"[{json.dumps(key)}]={lua(each)}" for key, each in value.items()) + "}"
            if isinstance(value, (list, tuple)):
                return "{" + ",".join(map(lua, value)) + "}"
            return json.dumps(value)

        # The last pool has the last node alone.
        described = [
            {"name": pool, "digest": digest, "members": [(address(node), 11211) for node in part]}
            for pool, part in zip(pools, [nodes, nodes[-1:]])  # noqa: B905
        ]
        scratch = FOLDER / "pools.new"
        scratch.write_text(f"return {lua({**OPTIONS, **options, 'pools': described})}\n")
        scratch.rename(FOLDER / "pools.lua")
        return digest

    def applied(self, digest: str) -> float:
        return wait_for(lambda: Client().get("memcached_proxy:cache").startswith(digest))

    def kill(self, name: Any, number: int = signal.SIGKILL) -> None:
        self.processes[name].send_signal(number)
        self.processes[name].wait()

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def load(work: Callable[[Client, int, Counter[str]], None], clients: int = 4) -> Iterator[Counter[str]]:
    """Do some work again and again from several connections, and count what it tells."""
    told: Counter[str] = Counter()
    going = threading.Event()
    going.set()

    def run(number: int) -> None:
        mine: Counter[str] = Counter()
        client = Client()
        while going.is_set():
            work(client, number, mine)
            time.sleep(0.001)
        told.update(mine)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        going.clear()
        for thread in threads:
            thread.join()


def sets_and_gets(client: Client, number: int, told: Counter[str]) -> None:
    key = f"key:{number}:{told['requests'] % 500}"
    told["requests"] += 2
    if client.set(key, "value") != "STORED":
        told["errors"] += 1
    answer = client.get(key)
    if answer != "value":
        told["misses" if answer == "END" else "errors"] += 1


def placement(lab: Lab) -> dict[str, Any]:
    """Where keys are, and how many change their place with a tenth node."""
    result: dict[str, Any] = {}
    keys = [f"user:{number}:profile" for number in range(20000)]
    for node in range(11, 26):
        lab.node(node)
    for count in (9, 10, 25):
        for node in range(1, 26):
            Client(address(node), 11211).ask("flush_all")
        nodes = list(range(1, count + 1))
        if "proxy" in lab.processes:
            lab.applied(lab.members(nodes))
        else:
            lab.proxy(nodes)
        client, place = Client(), ring([address(node) for node in nodes])
        expected: dict[str, list[str]] = {address(node): [] for node in nodes}
        for key in keys:
            client.set(key, "x")
            expected[place(key)].append(key)
        result[f"misplaced_{count}"] = 0
        for place_of, own in expected.items():
            direct = Client(place_of, 11211)
            misplaced = [key for key in own if direct.ask(f"mg {key}") != "HD"]
            if misplaced:  # a node that hangs for a moment, as on a busy machine, is passed over: it gets them now
                time.sleep(3)
                for key in misplaced:
                    client.set(key, "x")
            result[f"misplaced_{count}"] += sum(direct.ask(f"mg {key}") != "HD" for key in misplaced)
        loads = [len(own) for own in expected.values()]
        result[f"max_mean_{count}"] = max(loads) / (sum(loads) / count)
    before, after = (ring([address(node) for node in range(1, count + 1)]) for count in (9, 10))
    result["moved"] = sum(before(key) != after(key) for key in keys) / len(keys)
    return result


def reloads(lab: Lab) -> dict[str, Any]:
    """Change the membership under load, and break the file on the disk."""
    lab.proxy(range(1, 10))
    with load(sets_and_gets) as told:
        took = [lab.applied(lab.members(range(1, 10 + turn % 2))) for turn in range(1, 9)]
        good = Client().get("memcached_proxy:cache")
        for broken in (
            "return {",
            "",
            "return { pools = {} }",
            "error('no')",
            "while true do end" if 0 else "return 7",
        ):
            (FOLDER / "pools.lua").write_text(broken)
            time.sleep(1.2)
        lab.processes["proxy"].send_signal(signal.SIGHUP)
        time.sleep(1.2)
        alive = Client().get("memcached_proxy:cache") == good
        repaired = lab.applied(lab.members(range(1, 11)))
    log = (FOLDER / "log").read_text()
    return {**told, "took": took, "alive": alive, "repaired": repaired, "refused": log.count("is not used"), "log": log}


def killed(lab: Lab) -> dict[str, Any]:
    """End a node for good, under load."""
    lab.proxy(range(1, 6))
    slowest = 0.0

    def work(client: Client, number: int, told: Counter[str]) -> None:
        nonlocal slowest
        start = time.monotonic()
        sets_and_gets(client, number, told)
        slowest = max(slowest, time.monotonic() - start)

    with load(work) as told:
        time.sleep(1)
        lab.kill(2)
        time.sleep(6)
    first_outage = slowest
    slowest = 0.0
    with load(work) as later:
        time.sleep(2)
    # What the next node holds for the lost one is gone soon; the key's own node is used again when it's back.
    client = Client()
    place = ring([address(node) for node in range(1, 6)])
    key = next(key for key in map(str, range(1000)) if place(key) == address(2))
    client.set(key, "meanwhile", 0)
    left = int(Client(address(3), 11211).ask(f"mg {key} t").split("t")[-1])
    lab.node(2)
    back = wait_for(lambda: client.set(key, "back") == "STORED" and has(2, key))
    return {
        **told,
        "later_errors": later["errors"],
        "slowest": first_outage,
        "later": slowest,
        "left": left,
        "back": back,
    }


def restarted(lab: Lab) -> dict[str, Any]:
    """Stop a node under load and start it after 1.5 s, as a warm restart does."""
    lab.proxy(range(1, 6))
    with load(sets_and_gets) as told:
        time.sleep(0.5)
        for node in (2, 4):
            lab.kill(node, signal.SIGTERM)
            time.sleep(1.5)
            lab.node(node)
            time.sleep(2)
    place = ring([address(node) for node in range(1, 6)])
    keys = [f"key:{number}:{turn}" for number in range(4) for turn in range(500)]
    told["misplaced"] = sum(has(3, key) for key in keys if place(key) == address(2))
    return dict(told)


def counted(lab: Lab) -> dict[str, Any]:
    """Count while a node is frozen, ended and started again: nothing may be counted twice."""
    lab.proxy(range(1, 4))
    place = ring([address(node) for node in range(1, 4)])
    own = next(key for key in map(str, range(1000)) if place(key) == address(2))
    result: dict[str, Any] = {}
    # Frozen: requests reach it, answers don't come in time. It carries them out when it goes on.
    Client().set(own, "0")

    def work(client: Client, _number: int, told: Counter[str]) -> None:
        answer = client.ask(f"incr {own} 1")
        told["acknowledged" if answer.isdigit() else "unknown"] += 1

    with load(work) as told:
        time.sleep(0.5)
        lab.processes[2].send_signal(signal.SIGSTOP)
        time.sleep(2)
        lab.processes[2].send_signal(signal.SIGCONT)
        time.sleep(2.5)
    result["frozen"] = {**told, "value": int(Client(address(2), 11211).get(own))}
    # A node that is away when a client of low rate counts: held, as it's asked for ahead.
    client = Client()
    lab.kill(2, signal.SIGTERM)
    threading.Timer(1.5, lab.node, [2]).start()
    time.sleep(0.3)
    start = time.monotonic()
    result["held"] = client.ask(f"incr {own} 1")
    result["held_took"] = time.monotonic() - start
    start = time.monotonic()
    result["too_large"] = client.set("large", "x" * 1100000)
    result["too_large_took"] = time.monotonic() - start
    return result


def copies(lab: Lab) -> dict[str, Any]:
    """Two copies: end a node, and read everything."""
    lab.proxy(range(1, 6), copies=2, patience=2)
    client = Client()
    keys = [f"item:{number}" for number in range(2000)]
    stored = sum(client.set(key, "x" + key) == "STORED" for key in keys)
    client.set("gone", "1")
    client.ask("delete gone")
    held = Counter(key for key in keys for node in range(1, 6) if has(node, key))
    lab.kill(3)
    misses = sum(client.get(key) != "x" + key for key in keys)
    written = sum(client.set(key, "y" + key) == "STORED" for key in keys)
    changed = sum(client.get(key) == "y" + key for key in keys)
    client.set("number", "5")
    sums = client.ask("incr number 2")
    client.set("compared", "old")
    client.socket.sendall(b"gets compared\r\n")
    unique = client.file.readline().split()[-1].decode()
    client.file.readline(), client.file.readline()
    compared = [client.ask(f"cas compared 0 0 3 {unique}", "new"), client.get("compared")]
    lab.node(3)
    time.sleep(1.5)
    empty = sum(client.get(key) != "y" + key for key in keys)
    return {
        "stored": stored, "two_each": sum(held[key] == 2 for key in keys), "misses": misses, "written": written,
        "changed": changed, "sum": sums, "empty": empty, "gone": client.get("gone"),
        "compared": compared,
    }  # fmt: skip


def routes(lab: Lab) -> dict[str, Any]:
    """A prefix with a pool of its own, and errors without patience and failover."""
    lab.proxy(range(1, 4), pools=["cache", "sessions"], routes={"sess": "sessions"}, patience=0, failover=False)
    client = Client()
    keys = [f"sess:{number}" for number in range(50)]
    for key in keys:
        client.set(key, "x")
    result: dict[str, Any] = {"own": sum(has(3, key) for key in keys)}
    others = [f"other:{number}" for number in range(50)]
    for key in others:
        client.set(key, "x")
    result["spread"] = len({node for node in range(1, 4) for key in others if has(node, key)})
    lab.kill(3)
    start = time.monotonic()
    result["error"] = client.set("sess:1", "y")
    result["error_took"] = time.monotonic() - start
    return result


def cost(lab: Lab) -> dict[str, Any]:
    """Requests each second, directly and through proxies; CPU time decides on a busy machine."""

    def rate(client: Client) -> dict[str, float]:
        names = [name for name in lab.processes if lab.processes[name].poll() is None]
        before = sum(cpu(lab.processes[name].pid) for name in names)
        start, count = time.monotonic(), 15000
        client.set("k", "v")
        for _ in range(count):
            client.get("k")
        taken = time.monotonic() - start
        return {"rate": count / taken, "cpu_us": (sum(cpu(lab.processes[n].pid) for n in names) - before) / count * 1e6}

    def cpu(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    result = {"direct": rate(Client(address(1), 11211))}
    for name, options in {
        "bare": {"patience": 0, "failover": False},
        "patience": {"patience": 4, "failover": False},
        "patience_failover": {},
        "copies": {"copies": 2},
    }.items():
        if "proxy" in lab.processes:
            lab.kill("proxy")
        lab.proxy(range(1, 4), **options)
        result[name] = rate(Client())
    return result


def main() -> None:
    case = globals()[sys.argv[3]]
    lab = Lab()
    try:
        for node in range(1, 11):
            lab.node(node)
        print(json.dumps(case(lab)))
    finally:
        lab.end()


if __name__ == "__main__":
    main()

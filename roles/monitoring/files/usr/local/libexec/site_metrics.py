# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell what the services of a host do, as metrics for node_exporter's textfile collector.

All sources are asked side by side, each for a few seconds at most. One that fails or hangs is told of by
site_metrics_success and harms no other: what it told before that stays, as that it is down.

An answer is a success, also the answer that nothing listens. Only what could not be learned is a failure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import postfix_queue

LIMIT = 5.0  # seconds that a source gets
PATIENCE = 4.0  # seconds until one gives up by itself, so that it can tell why
LARGEST_FILE = 1 << 20  # bytes of another program's metrics
DIGEST_DIGITS = 12  # of a membership: so many a float holds exactly
RESERVED = "memcached_proxy"  # the proxy's keys that tell its members

Labels = Mapping[str, str]
Entry = Mapping[str, Any]

# Type and meaning of each metric, in the order of the output.
FAMILIES: dict[str, tuple[str, str]] = {
    "postfix_up": ("gauge", "Whether the instance of Postfix runs."),
    "postfix_queue_messages": ("gauge", "Mails in a queue."),
    "postfix_queue_bytes": ("gauge", "Size of the mails in a queue."),
    "postfix_queue_oldest_age_seconds": ("gauge", "How long ago the oldest mail in a queue came, 0 for an empty one."),
    "postfix_queue_volume_size_bytes": ("gauge", "Size of the file system of the queues."),
    "postfix_queue_volume_free_bytes": ("gauge", "What Postfix may still use of it."),
    "postfix_queue_volume_files": ("gauge", "How many files the file system of the queues can have."),
    "postfix_queue_volume_files_free": ("gauge", "How many more files it can have."),
    "memcached_up": ("gauge", "Whether the instance of memcached answers."),
    "memcached_uptime_seconds": ("gauge", "How long ago it was started."),
    "memcached_commands_total": ("counter", "Commands by their outcome."),
    "memcached_current_items": ("gauge", "Items that it has."),
    "memcached_current_bytes": ("gauge", "Bytes that the items take."),
    "memcached_limit_bytes": ("gauge", "Bytes that items may take."),
    "memcached_items_evicted_total": ("counter", "Items that had to make room for others."),
    "memcached_items_reclaimed_total": ("counter", "Expired items that made room for others."),
    "memcached_current_connections": ("gauge", "Open connections."),
    "memcached_max_connections": ("gauge", "How many connections may be open."),
    "memcached_connections_total": ("counter", "Connections that were opened."),
    "memcached_connections_rejected_total": ("counter", "Connections that were refused, as too many were open."),
    "memcached_connections_listener_disabled_total": ("counter", "How often it ceased to take connections."),
    "memcached_read_bytes_total": ("counter", "Bytes that it got."),
    "memcached_written_bytes_total": ("counter", "Bytes that it sent."),
    "memcached_version": ("gauge", "Always 1, the label is its version."),
    "memcached_proxy_up": ("gauge", "Whether memcached's proxy answers."),
    "memcached_proxy_current_connections": ("gauge", "Open connections of the proxy."),
    "memcached_proxy_commands_total": ("counter", "Commands that the proxy took; it does not tell their outcome."),
    "pool_members": ("gauge", "Members of a pool."),
    "pool_members_digest": ("gauge", "Start of the digest of the members, the same for the same members."),
    "mail_logs_waiting_bytes": ("gauge", "Size of the disk queues of logs that are to be sent."),
    "mail_logs_received_timestamp_seconds": ("gauge", "When the newest line of a sender was written, 0 for none."),
    "certificate_not_after_timestamp_seconds": ("gauge", "When the certificate expires."),
    "volume_size_bytes": ("gauge", "Size of the file system of a folder."),
    "volume_free_bytes": ("gauge", "What may still be used of it."),
    "site_metrics_success": ("gauge", "Whether all that a source is asked for was learned."),
    "site_metrics_duration_seconds": ("gauge", "How long the source was asked."),
    "site_metrics_timestamp_seconds": ("gauge", "When the sources were asked."),
}

# memcached's statistics that are metrics, and those of commands: the status of each.
STATISTICS = {
    "uptime": "memcached_uptime_seconds",
    "curr_items": "memcached_current_items",
    "bytes": "memcached_current_bytes",
    "limit_maxbytes": "memcached_limit_bytes",
    "evictions": "memcached_items_evicted_total",
    "reclaimed": "memcached_items_reclaimed_total",
    "curr_connections": "memcached_current_connections",
    "max_connections": "memcached_max_connections",
    "total_connections": "memcached_connections_total",
    "rejected_connections": "memcached_connections_rejected_total",
    "listen_disabled_num": "memcached_connections_listener_disabled_total",
    "bytes_read": "memcached_read_bytes_total",
    "bytes_written": "memcached_written_bytes_total",
}
COMMANDS = {
    **{
        f"{command}_{plural}": (command, status)
        for command in ("get", "delete", "incr", "decr", "cas", "touch")
        for plural, status in (("hits", "hit"), ("misses", "miss"))
    },
    "cas_badval": ("cas", "badval"),
    "cmd_flush": ("flush", "hit"),
}


class Told:
    """What a source told so far: values by metric and labels, members of pools, other programs' metrics."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.members: dict[str, Membership] = {}
        self.foreign: Foreign | None = None

    def tell(self, metric: str, labels: Labels, value: float) -> None:
        """Give a metric a value, in place of one that was told before."""
        self.values[metric, tuple(labels.items())] = value


class Membership(NamedTuple):
    """How many members a pool has, and a number for who they are."""

    size: int
    digest: int


class Foreign(NamedTuple):
    """Metrics of another program: its text, and the names in it."""

    text: str
    families: set[str]


class Source(threading.Thread):
    """Something that is asked in a thread of its own, which ends with the program when it hangs."""

    def __init__(self, kind: str, name: str, read: Callable[[Entry, Told], None], entry: Entry) -> None:
        super().__init__(daemon=True)
        self.labels = {"source": kind, "name": name}
        self.told = Told()
        self.problem = f"no end within {LIMIT:g} s"
        self.seconds = LIMIT
        self._read, self._entry = read, entry

    def run(self) -> None:
        started = time.monotonic()
        problem = ""
        try:
            self._read(self._entry, self.told)
        except Exception as error:  # whatever it is, the other sources are told
            problem = f"{type(error).__name__}: {error}"
        self.seconds = time.monotonic() - started
        self.problem = problem


# Postfix ------------------------------------------------------------------------------------------------------


def read_postfix(entry: Entry, told: Told) -> None:
    """Tell whether an instance runs, what is in its queues, and what room they have."""
    labels = {"name": entry["name"], "tier": entry["tier"]}
    directory = entry["queue_directory"]
    told.tell("postfix_up", labels, master_runs(directory))
    volume = os.statvfs(directory)
    told.tell("postfix_queue_volume_size_bytes", labels, volume.f_blocks * volume.f_frsize)
    told.tell("postfix_queue_volume_free_bytes", labels, volume.f_bavail * volume.f_frsize)
    told.tell("postfix_queue_volume_files", labels, volume.f_files)
    told.tell("postfix_queue_volume_files_free", labels, volume.f_favail)
    if not set(postfix_queue.QUEUES) & set(os.listdir(directory)):
        raise FileNotFoundError(f"{directory} has no queues")
    now, end = time.time(), time.monotonic() + PATIENCE
    found: dict[str, list[float]] = {queue: [0, 0, now] for queue in postfix_queue.QUEUES}
    complete = True
    for number, mail in enumerate(postfix_queue.walk(directory), 1):
        queue = found[mail.queue]
        queue[0] += 1
        queue[1] += mail.size
        if mail.since < queue[2]:
            queue[2] = mail.since
        if not number % 1000 and time.monotonic() > end:
            complete = False
            break
    for name, (messages, size, oldest) in found.items():
        of_queue = {**labels, "queue": name}
        told.tell("postfix_queue_messages", of_queue, messages)
        told.tell("postfix_queue_bytes", of_queue, size)
        told.tell("postfix_queue_oldest_age_seconds", of_queue, round(now - oldest, 3))
    # So many are more than any limit, and it is better to tell them than nothing.
    if not complete:
        raise TimeoutError(f"only the first {number} mails were counted in {PATIENCE:g} s")


def master_runs(queue_directory: str) -> bool:
    """Tell whether Postfix's first process runs, by the number that it left in the queue directory."""
    try:
        pid = int(Path(queue_directory, "pid/master.pid").read_text())
        return Path(f"/proc/{pid}/comm").read_text() == "master\n"
    except (FileNotFoundError, ProcessLookupError, ValueError):  # the file is empty while it starts
        return False


# memcached ----------------------------------------------------------------------------------------------------


class Memcached:
    """A connection to memcached or its proxy.

    :param place: ``socket``, or ``address`` and ``port``; with ``tls``, its ``ca`` to check the server with, the
        ``hostname`` to look for, and ``certificate`` and ``key`` of the client, each of which may be left out; with
        ``auth_file``, memcached's own file of passwords.
    :raises ConnectionRefusedError: nothing listens there.
    :raises OSError: it can't be connected to for another reason.
    """

    def __init__(self, place: Entry) -> None:
        self._auth_file = place.get("auth_file") or ""
        connection = self._connect(place)
        try:
            if place.get("tls") is not None:
                tls = place["tls"]
                connection = _tls_context(tls).wrap_socket(connection, server_hostname=tls.get("hostname") or None)
            self._stream = connection.makefile("rwb")
        finally:
            connection.close()  # the stream keeps it open

    @staticmethod
    def _connect(place: Entry) -> socket.socket:
        if not place.get("socket"):
            return socket.create_connection((place["address"], place["port"]), timeout=PATIENCE)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(place["socket"])
        except FileNotFoundError as error:
            raise ConnectionRefusedError(f"there is no socket {place['socket']}") from error
        return connection

    def __enter__(self) -> Memcached:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stream.close()

    def stats(self, section: str = "") -> dict[str, str]:
        """Give statistics by their names.

        :raises ValueError: it answers with something else.
        """
        command = f"stats {section}".strip()
        lines = self._ask(command)
        if lines[-1].startswith("CLIENT_ERROR unauthenticated"):
            self._log_in()
            lines = self._ask(command)
        if lines[-1] != "END":
            raise ValueError(f"it answers {lines[-1]!r} to {command!r}")
        # The value may be missing or have spaces.
        fields = [[*line.split(" ", 2), ""] for line in lines[:-1]]
        return {field[1]: field[2] for field in fields}

    def get(self, key: str) -> str | None:
        """Give the text of an item.

        :raises ValueError: it answers with something else.
        """
        lines = self._ask(f"get {key}")
        if lines[-1] != "END":
            raise ValueError(f"it answers {lines[-1]!r} to 'get {key}'")
        return lines[1] if len(lines) > 2 else None

    def _log_in(self) -> None:
        """Log in, as memcached's text protocol does it: by a set of user and password.

        It is only done when it was asked for. Else all could read the password, as it would be stored.
        """
        if not self._auth_file:
            raise PermissionError("it asks for a login, and there is no auth_file")
        user, colon, password = Path(self._auth_file).read_text().partition("\n")[0].partition(":")
        if not colon:
            raise ValueError(f"{self._auth_file} begins with no user and password")
        login = f"{user} {password}"
        answer = self._ask(f"set login 0 0 {len(login.encode())}\r\n{login}")
        if answer != ["STORED"]:
            raise PermissionError(f"it refuses the first user of {self._auth_file}")

    def _ask(self, command: str) -> list[str]:
        self._stream.write(f"{command}\r\n".encode())
        self._stream.flush()
        lines = []
        for line in self._stream:
            lines.append(line.decode(errors="replace").rstrip("\r\n"))
            if lines[-1] in ("END", "STORED", "ERROR") or lines[-1].startswith(("CLIENT_ERROR", "SERVER_ERROR")):
                return lines
        raise ConnectionResetError("it closed the connection")


def _tls_context(tls: Entry) -> ssl.SSLContext:
    """Give what a connection is made with. Without a CA, the server is not checked: it is this host."""
    context = ssl.create_default_context(cafile=tls.get("ca") or None)
    context.check_hostname = bool(tls.get("ca") and tls.get("hostname"))
    context.verify_mode = ssl.CERT_REQUIRED if tls.get("ca") else ssl.CERT_NONE
    if tls.get("certificate"):
        context.load_cert_chain(tls["certificate"], tls.get("key") or None)
    return context


def read_memcached(entry: Entry, told: Told) -> None:
    """Tell the statistics of an instance, by the names and labels that memcached_exporter has."""
    labels = {"name": entry["name"], "pool": entry.get("pool") or ""}
    told.tell("memcached_up", labels, 0)
    try:
        with Memcached(entry) as memcached:
            stats = memcached.stats()
    except ConnectionRefusedError:
        return
    told.tell("memcached_up", labels, 1)
    for statistic, metric in STATISTICS.items():
        if statistic in stats:
            told.tell(metric, labels, int(stats[statistic]))
    for statistic, (command, status) in COMMANDS.items():
        if statistic in stats:
            told.tell(
                "memcached_commands_total", {**labels, "command": command, "status": status}, int(stats[statistic])
            )
    # Those that compare are counted as those that set, too.
    compared = sum(int(stats.get(name, 0)) for name in ("cas_hits", "cas_misses", "cas_badval"))
    told.tell(
        "memcached_commands_total",
        {**labels, "command": "set", "status": "hit"},
        max(0, int(stats["cmd_set"]) - compared),
    )
    told.tell("memcached_version", {**labels, "version": stats["version"]}, 1)


def read_proxy(entry: Entry, told: Told) -> None:
    """Tell what a proxy does, and which members it uses."""
    labels = {"name": entry["name"]}
    told.tell("memcached_proxy_up", labels, 0)
    try:
        with Memcached(entry) as proxy:
            stats, commands = proxy.stats(), proxy.stats("proxy")
            told.tell("memcached_proxy_up", labels, 1)
            told.tell("memcached_proxy_current_connections", labels, int(stats["curr_connections"]))
            for statistic, value in commands.items():
                if statistic.startswith("cmd_"):
                    of_command = {**labels, "command": statistic[len("cmd_") :], "status": "any"}
                    told.tell("memcached_proxy_commands_total", of_command, int(value))
            for pool in entry.get("pools") or ():
                text = proxy.get(f"{RESERVED}{entry.get('separator') or ':'}{pool}")
                # One that it doesn't know has no members there.
                digest, size = text.split() if text else ("0", "0")
                told.members[pool] = Membership(int(size), int(digest[:DIGEST_DIGITS], 16))
    except ConnectionRefusedError:
        return


def membership(members: Iterable[str]) -> Membership:
    """Give what tells whether a pool has these members, each ``<address> <port>``, as the proxy tells it."""
    lines = sorted(f"{member}\n" for member in members)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return Membership(len(lines), int(digest[:DIGEST_DIGITS], 16))


# Logs, certificates and volumes -------------------------------------------------------------------------------


def read_spool(entry: Entry, told: Told) -> None:
    """Tell how much waits to be sent, by the files of rsyslog's disk queues, which end with a number."""
    with os.scandir(entry["spool"]) as files:
        waiting = sum(file.stat().st_size for file in files if re.search(r"\.\d{8,}$", file.name))
    told.tell("mail_logs_waiting_bytes", {}, waiting)


def read_received(entry: Entry, told: Told) -> None:
    """Tell when lines of each sender came. Files whose names end otherwise are no longer written."""
    os.stat(entry["folder"])  # a sender without a folder sent nothing; without this one, nothing is known
    for sender in entry["senders"]:
        newest = 0.0
        try:
            with os.scandir(os.path.join(entry["folder"], sender)) as files:
                names = {file.name: file for file in files if not file.name.startswith(".")}
        except FileNotFoundError:
            names = {}
        written = [file for name, file in names.items() if name.endswith(".log")]
        for file in written or names.values():
            try:
                newest = max(newest, file.stat().st_mtime)
            except FileNotFoundError:  # it was compressed just now
                continue
        told.tell("mail_logs_received_timestamp_seconds", {"sender": sender}, newest)


def read_certificate(entry: Entry, told: Told) -> None:
    """Tell when the first certificate of a file expires."""
    command = ["openssl", "x509", "-noout", "-enddate", "-in", entry["path"]]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode:
        raise ValueError(f"{entry['path']} can't be read: {done.stderr.strip().splitlines()[0]}")
    labels = {"name": entry["name"], "path": entry["path"]}
    expires = ssl.cert_time_to_seconds(done.stdout.strip().partition("=")[2])
    told.tell("certificate_not_after_timestamp_seconds", labels, expires)


def read_volume(entry: Entry, told: Told) -> None:
    """Tell size and room of the file system that a folder is on."""
    volume = os.statvfs(entry["path"])
    told.tell("volume_size_bytes", {"name": entry["name"]}, volume.f_blocks * volume.f_frsize)
    told.tell("volume_free_bytes", {"name": entry["name"]}, volume.f_bavail * volume.f_frsize)


# Other programs' metrics --------------------------------------------------------------------------------------

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[ \t]*[a-zA-Z_][a-zA-Z0-9_]*[ \t]*=[ \t]*"(?:[^"\\]|\\["\\n])*"[ \t]*'
NUMBER = r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|Inf)|NaN"
# Without a time, which node_exporter refuses.
SAMPLE = re.compile(rf"({NAME})[ \t]*(?:\{{((?:{LABEL},)*(?:{LABEL})?)\}})?[ \t]*(?<=[ \t}}])(?:{NUMBER})[ \t]*")
COMMENT = re.compile(rf"#[ \t]+(HELP|TYPE)[ \t]+({NAME})(?:[ \t]+(.*))?")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
TYPES = {"counter", "gauge", "untyped", *SUFFIXES}
# node_exporter's own. It would answer with an error and no metric at all if a file had the same.
TAKEN = ("node_", "go_", "process_", "promhttp_", "scrape_")


def read_file(entry: Entry, told: Told) -> None:
    """Take over the metrics in a file, if node_exporter would understand them."""
    with open(entry["path"], "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
    told.foreign = parse(content.decode())


def parse(text: str) -> Foreign:
    """Check metrics in Prometheus' text format.

    One mistake in a file, or a metric that another one has, too, would hide all metrics of it.

    :raises ValueError: node_exporter would not take them.
    """
    if text and not text.endswith("\n"):
        raise ValueError("its last line has no end")
    told: dict[str, set[str]] = {"HELP": set(), "TYPE": set()}
    family_of: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    families: set[str] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if comment := COMMENT.fullmatch(line):
            kind, family, value = comment.groups()
            if family in told[kind]:
                raise ValueError(f"line {number} is a second {kind} of {family}")
            if kind == "TYPE":
                if value not in TYPES:
                    raise ValueError(f"line {number} has no type that is known")
                if any(name == family for name, _labels in seen):
                    raise ValueError(f"line {number} comes after a value of {family}")
                family_of.update({family + suffix: family for suffix in SUFFIXES.get(value, ())})
            told[kind].add(family)
        elif line.startswith("#"):
            continue
        elif sample := SAMPLE.fullmatch(line):
            name, labels = sample.groups()
            pairs = [re.sub(r"[ \t]*=[ \t]*", "=", pair.strip(), count=1) for pair in re.findall(LABEL, labels or "")]
            if len({pair.partition("=")[0] for pair in pairs}) < len(pairs):
                raise ValueError(f"line {number} has a label twice")
            if (name, frozenset(pairs)) in seen:
                raise ValueError(f"line {number} gives {name} a second value")
            seen.add((name, frozenset(pairs)))
            family = family_of.get(name, name)
        else:
            raise ValueError(f"line {number} is not a metric, or has a time")
        if family in FAMILIES or family.startswith(TAKEN):
            raise ValueError(f"line {number} has {family}, which is told by others")
        families.add(family)
    return Foreign(text, families)


# All of it ----------------------------------------------------------------------------------------------------


def sources_of(configuration: Entry) -> list[Source]:
    """Give what is to be asked."""
    named: list[tuple[str, str, Callable[[Entry, Told], None]]] = [
        ("postfix", "postfix", read_postfix),
        ("memcached", "memcached", read_memcached),
        ("memcached_proxy", "memcached_proxy", read_proxy),
        ("certificates", "certificate", read_certificate),
        ("volumes", "volume", read_volume),
    ]
    sources = [
        Source(kind, str(entry.get("name", "")), read, entry)
        for key, kind, read in named
        for entry in configuration.get(key) or ()
    ]
    logs = configuration.get("mail_logs") or {}
    if logs.get("spool"):
        sources.append(Source("mail_logs", "spool", read_spool, logs))
    if logs.get("folder"):
        sources.append(Source("mail_logs", "folder", read_received, {"senders": [], **logs}))
    sources += [Source("file", path, read_file, {"path": path}) for path in configuration.get("files") or ()]
    return sources


def collect(configuration: Entry) -> str:
    """Ask all sources, and give the text of the metrics. Problems are told on standard error, for the journal."""
    now = time.time()
    warning = "<4>" if "JOURNAL_STREAM" in os.environ else ""  # systemd's way to tell how grave a line is
    sources = sources_of(configuration)
    end = time.monotonic() + LIMIT
    for source in sources:
        source.start()
    for source in sources:
        source.join(max(0, end - time.monotonic()))
    result = Told()
    texts: list[str] = []
    families: set[str] = set()
    for source in sources:
        # One that hangs may still tell something.
        problem, told = source.problem, source.told.values.copy()
        if (foreign := source.told.foreign) and not problem:
            if families & foreign.families:
                problem = f"another file has {', '.join(sorted(families & foreign.families))}, too"
            else:
                families |= foreign.families
                texts.append(foreign.text)
        result.values.update(told)
        result.tell("site_metrics_success", source.labels, not problem)
        result.tell("site_metrics_duration_seconds", source.labels, round(min(source.seconds, LIMIT), 6))
        if problem:
            print(f"{warning}{' '.join(source.labels.values())}: {problem}", file=sys.stderr)
    tell_members(configuration, sources, result)
    result.tell("site_metrics_timestamp_seconds", {}, round(now, 3))
    return render(result) + "".join(texts)


def tell_members(configuration: Entry, sources: Iterable[Source], result: Told) -> None:
    """Tell the members of pools, as they should be and as the proxies of this host use them."""
    found: dict[tuple[str, str], Membership] = {
        (entry["pool"], entry.get("source") or "inventory"): membership(entry["members"])
        for entry in configuration.get("members") or ()
    }
    for source in sources:
        for pool, used in source.told.members.copy().items():
            # A host's proxies have one configuration. If one lags behind, it is that which has to be seen.
            if used != found.get((pool, "inventory")) or (pool, "proxy") not in found:
                found[pool, "proxy"] = used
    for (pool, where), members in found.items():
        labels = {"pool": pool, "source": where}
        result.tell("pool_members", labels, members.size)
        result.tell("pool_members_digest", labels, members.digest)


def render(told: Told) -> str:
    """Give values in Prometheus' text format."""
    samples: dict[str, list[str]] = {metric: [] for metric in FAMILIES}
    for (metric, labels), value in told.values.items():
        pairs = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
        samples[metric].append(f"{metric}{{{pairs}}} {_number(value)}\n" if pairs else f"{metric} {_number(value)}\n")
    return "".join(
        f"# HELP {metric} {FAMILIES[metric][1]}\n# TYPE {metric} {FAMILIES[metric][0]}\n{''.join(lines)}"
        for metric, lines in samples.items()
        if lines
    )


def _escaped(text: str) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)


def write(path: Path, text: str) -> None:
    """Write a file that nobody sees half of."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    scratch.chmod(0o644)
    scratch.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configuration", type=Path, help="JSON file with what is to be watched")
    parser.add_argument("--output", type=Path, help="file to write, instead of standard output")
    arguments = parser.parse_args()
    text = collect(json.loads(arguments.configuration.read_text(encoding="utf-8")))
    if arguments.output:
        write(arguments.output, text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Account for every acknowledged mail: delivered, bounced to its sender, or still in a queue. The rest is lost.

Prints counts by domain, mails that came more than once, and the delays of the good ones, as JSON. Mails of other runs
in the sinks and queues are left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import load_id


def quantile(values: list[float], part: float) -> float | None:
    """Give the value that this part of the sorted values doesn't exceed."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else None


def rows(paths: list[Path]) -> Iterator[list[str]]:
    """Give the words of each complete line."""
    for path in paths:
        with path.open() as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield line.split()


def spread(delays: list[float]) -> dict[str, float | None]:
    """Give the median, the 99th percentile and the longest of delays in seconds."""
    values = sorted(delays)
    return {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": values[-1] if values else None}


def account(
    acknowledged: list[Path], sinks: list[Path], queues: list[Path], warm: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Join the logs. Gives the counts, and the ids behind them.

    The delays of mails that were acknowledged before the time ``warm`` are told apart.
    """
    domain: dict[str, str] = {}
    tries: dict[str, int] = {}
    early: set[str] = set()
    for moment, name, of, tried in rows(acknowledged):
        domain[name], tries[name] = of, int(tried)
        if float(moment) < warm:
            early.add(name)
    runs = set(map(load_id.run_of, domain))
    copies: Counter[str] = Counter()
    bounced: set[str] = set()
    delays: dict[str, float] = {}
    for _time, kind, name, _host, delay in rows(sinks):
        if load_id.run_of(name) not in runs:
            continue
        if kind == "bounced":
            bounced.add(name)
        else:
            copies[name] += 1
            if delay != "-":
                delays.setdefault(name, float(delay))
    known = set(domain)
    delivered = known & set(copies)
    bounced &= known
    queued = (known & {name for (name,) in rows(queues)}) - delivered - bounced
    sets = {
        "acknowledged": known,
        "delivered": delivered,
        "bounced": bounced,
        "queued": queued,
        "lost": known - delivered - bounced - queued,
        # Of these, the submitter itself sent those again that it had tried more than once.
        "duplicated": {name for name in delivered if copies[name] > 1},
        "duplicated_first_try": {name for name in delivered if copies[name] > 1 and tries[name] == 1},
        "delivered_and_bounced": delivered & bounced,
        # A submitter whose session broke can't know that these were taken.
        "unacknowledged": set(copies) - known,
    }
    domains = {
        name: {kind: sum(domain.get(one) == name for one in sets[kind]) for kind in list(sets)[:6]}
        for name in sorted(set(domain.values()))
    }
    good = {name: delay for name, delay in delays.items() if domain.get(name) == "good"}
    counts = {
        **{kind: len(names) for kind, names in sets.items()},
        "extra_copies": sum(copies[name] - 1 for name in sets["duplicated"]),
        "domains": domains,
        "good_delay": spread([delay for name, delay in good.items() if name not in early]),
        "good_delay_at_start": spread([delay for name, delay in good.items() if name in early]),
    }
    return counts, {kind: sorted(names) for kind, names in sets.items()}


def main() -> None:
    """Read the options and account; ends with 1 if a mail is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acknowledged", type=Path, nargs="+", required=True, help="logs of submit.py")
    parser.add_argument("--sink", type=Path, nargs="+", required=True, help="logs of sink.py")
    parser.add_argument("--queued", type=Path, nargs="*", default=[], help="output of queues.py ids on the mail hosts")
    parser.add_argument("--warm", type=float, default=0, help="time at which every server had started")
    parser.add_argument("--sets", type=Path, help="file to write the ids behind each count to, as JSON")
    options = parser.parse_args()
    counts, sets = account(options.acknowledged, options.sink, options.queued, options.warm)
    if options.sets:
        options.sets.write_text(json.dumps(sets) + "\n")
    print(json.dumps(counts, indent=2))
    raise SystemExit(1 if counts["lost"] else 0)


if __name__ == "__main__":
    main()

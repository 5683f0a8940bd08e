# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the site's Prometheus says of the hosts: what fires, each host's newest numbers, and how they went."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from mailreport.prometheus import Alert, Prometheus, Series, side_by_side
from mailreport.web.charts import Axis, Chart, duration
from mailreport.web.forms import RANGES, Form

# What can be chosen, and the step that makes a readable number of points.
STEPS = {
    "1h": timedelta(minutes=1),
    "6h": timedelta(minutes=5),
    "24h": timedelta(minutes=15),
    "7d": timedelta(hours=2),
}
CHOICES = {name: RANGES[name][0] for name in STEPS}
DEFAULT = "6h"
LINES = 6  # of a chart: more cannot be told apart
TOLD = 2  # of them in words
DOMAINS = 10
UP = 'up{job="node"}'
# Labels of an alert that stand elsewhere, or are the same for all.
_SHOWN = ("alertname", "instance", "severity", "job")
_ORDER = {"page": 0, "ticket": 1}
_TIMES = (60, 300, 900, 1800, 3600, 7200, 21_600, 43_200, 86_400, 172_800, 432_000, 864_000)  # s, at the top of a chart


@dataclass(frozen=True)
class Unit:
    """How numbers of a kind are told, and where a chart of them ends."""

    text: Callable[[float], str]
    top: Callable[[float], float]


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 60 else duration(1000 * value)


def _round_up(value: float, least: float) -> float:
    """Give a round number that is at least as large."""
    power = 10.0 ** math.floor(math.log10(max(value, least)))
    return max(least, next(factor * power for factor in (1, 2, 4, 6, 8, 10, 20) if factor * power >= value))


COUNT = Unit("{:,.0f}".format, partial(_round_up, least=2))
RATE = Unit("{:,.3g}/s".format, partial(_round_up, least=0.1))
LOAD = Unit("{:,.2f}".format, partial(_round_up, least=1))
SHARE = Unit(lambda value: f"{100 * value:.1f} %", lambda value: 1.0 if value <= 1 else _round_up(value, 1))
SECONDS = Unit(_seconds, lambda value: next((float(top) for top in _TIMES if top >= value), value))


@dataclass(frozen=True)
class Measure:
    """A chart: a recording rule, and the labels that tell its lines apart.

    Each point is the worst of its step, and the lines are those with the worst of the whole time.
    """

    name: str
    title: str
    rule: str
    by: tuple[str, ...]
    unit: Unit
    adds: bool = False  # whether series that differ in other labels are added up
    low: bool = False  # whether less is worse

    def query(self, span: timedelta, step: timedelta) -> str:
        """Give the question for the points of some time."""
        chosen = f"{'bottomk' if self.low else 'topk'}({LINES}, {self.worst(span, ' @ end()')})"
        return f"{self.worst(step)} and {chosen}"

    def worst(self, span: timedelta, at: str = "") -> str:
        """Give the question for the worst of some time."""
        how = "sum" if self.adds else "min" if self.low else "max"
        over = f"{'min' if self.low else 'max'}_over_time({self.rule}[{span.total_seconds():.0f}s]{at})"
        return f"{how} by ({', '.join(self.by)}) ({over})"


MEASURES = (
    Measure("tiers", "Mails in the queues of each tier", "tier:postfix_queue_messages:sum", ("tier",), COUNT),
    Measure("oldest", "Oldest mail of each tier", "tier:postfix_queue_oldest_age:max", ("tier",), SECONDS),
    Measure(
        "queues", "Mails in the queues of each host", "instance:postfix_queue_messages:sum", ("instance", "tier"),
        COUNT, adds=True,
    ),
    Measure(
        "volumes", "Used of the queue's volume", "instance:postfix_queue_volume_used:ratio", ("instance", "tier"), SHARE
    ),
    Measure("cpu", "Processors in use", "instance:node_cpu:ratio", ("instance",), SHARE),
    Measure("memory", "Memory in use", "instance:node_memory_used:ratio", ("instance",), SHARE),
    Measure("load", "Load for each processor", "instance:node_load:per_cpu", ("instance",), LOAD),
    Measure("hits", "Cache: share of hits", "pool:memcached_hits:ratio5m", ("pool",), SHARE, low=True),
    Measure("evictions", "Cache: evictions", "pool:memcached_evictions:rate5m", ("pool",), RATE),
    Measure("connections", "Cache: connections in use", "pool:memcached_connections_used:ratio", ("pool",), SHARE),
)  # fmt: skip
# The newest numbers of each host: title, question, unit.
COLUMNS = {
    "cpu": ("Processors", "max by (instance) (instance:node_cpu:ratio)", SHARE),
    "memory": ("Memory", "max by (instance) (instance:node_memory_used:ratio)", SHARE),
    "load": ("Load", "max by (instance) (instance:node_load:per_cpu)", LOAD),
    "queue": ("Mails queued", "sum by (instance) (instance:postfix_queue_messages:sum)", COUNT),
    "volume": ("Queue's volume", "max by (instance) (instance:postfix_queue_volume_used:ratio)", SHARE),
}


class Host(NamedTuple):
    """A host, and its newest numbers in words, in the order of COLUMNS."""

    name: str
    is_up: bool
    numbers: list[str]  # "" for none


class Firing(NamedTuple):
    """An alert that fires."""

    name: str
    severity: str
    instance: str  # "" for what is about more than one
    others: dict[str, str]  # labels that tell it from others of its name
    since: datetime
    summary: str
    runbook: str


class Drawn(NamedTuple):
    """A chart, and its numbers in words: the begin of each step, and a text for each line, "" for none."""

    chart: Chart
    names: list[str]
    rows: list[tuple[datetime, list[str]]]


@dataclass(frozen=True)
class Report:
    """What the page shows. A part is None if Prometheus did not tell it."""

    alerts: list[Firing] | None
    hosts: list[Host] | None
    domains: list[tuple[str, float]] | None  # with the highest share deferred
    charts: list[Drawn]
    silent: list[str]  # titles of charts that have no numbers
    problems: dict[str, list[str]]  # sentences, and the parts that they are about
    step: timedelta

    @property
    def is_empty(self) -> bool:
        """Tell whether Prometheus told nothing."""
        told = (self.alerts, self.hosts, self.domains)
        return all(part is None for part in told) and not self.charts and not self.silent

    @property
    def down(self) -> list[str]:
        """Give the hosts that Prometheus does not reach."""
        return [host.name for host in self.hosts or [] if not host.is_up]


def report(prometheus: Prometheus, form: Form) -> Report:
    """Ask for all that the page shows, side by side."""
    span, step = RANGES[form.range][1], STEPS[form.range]
    end = form.end + (datetime.min - form.end) % step  # whole steps, so that a page that is loaded again shows the same
    begin = end - span
    deferred = f"topk({DOMAINS}, avg_over_time(domain:mail_deferred:ratio[{span.total_seconds():.0f}s]) > 0)"
    asked: dict[str, Callable[[], Any]] = {
        "Alerts": prometheus.firing,
        "Hosts": partial(prometheus.at, UP, form.end),
        "Domains": partial(prometheus.at, deferred, form.end),
        **{title: partial(prometheus.at, query, form.end) for title, query, _unit in COLUMNS.values()},
        # A point is about the step that ends there.
        **{one.title: partial(prometheus.over, one.query(span, step), begin + step, end, step) for one in MEASURES},
    }
    answers, failed = side_by_side(asked)
    problems: dict[str, list[str]] = {}
    for name, sentence in failed.items():
        problems.setdefault(sentence, []).append(name)
    drawing = _Drawing(form, begin, end, step)
    drawn = {one: drawing.lines(one, answers[one.title]) for one in MEASURES if one.title in answers}
    return Report(
        alerts=_firing(answers["Alerts"]) if "Alerts" in answers else None,
        hosts=_hosts(answers) if "Hosts" in answers else None,
        domains=_domains(answers["Domains"]) if "Domains" in answers else None,
        charts=[one for one in drawn.values() if one.names],
        silent=[measure.title for measure, one in drawn.items() if not one.names],
        problems=problems,
        step=step,
    )


def _firing(alerts: Sequence[Alert]) -> list[Firing]:
    """Give what fires, the most urgent first, then the oldest."""
    found = [
        Firing(
            name=alert.labels.get("alertname", ""),
            severity=alert.labels.get("severity", ""),
            instance=alert.labels.get("instance", ""),
            others={name: value for name, value in sorted(alert.labels.items()) if name not in _SHOWN},
            since=alert.since,
            summary=alert.annotations.get("summary", ""),
            runbook=alert.annotations.get("runbook", ""),
        )
        for alert in alerts
    ]
    return sorted(found, key=lambda one: (_ORDER.get(one.severity, len(_ORDER)), one.since, one.name, one.instance))


def _hosts(answers: Mapping[str, Sequence[Series]]) -> list[Host]:
    """Give all hosts by name, those that are down first."""
    newest = {
        name: {one.labels.get("instance", ""): value for one in answers.get(title, ()) for value in one.values.values()}
        for name, (title, _query, _unit) in COLUMNS.items()
    }
    hosts = []
    for one in answers["Hosts"]:
        instance = one.labels.get("instance", "")
        numbers = [
            unit.text(newest[name][instance]) if instance in newest[name] else ""
            for name, (_title, _query, unit) in COLUMNS.items()
        ]
        hosts.append(Host(instance, all(one.values.values()), numbers))
    return sorted(hosts, key=lambda host: (host.is_up, host.name))


def _domains(series: Sequence[Series]) -> list[tuple[str, float]]:
    """Give domains and their share, the highest first."""
    found = [(one.labels.get("domain", ""), value) for one in series for value in one.values.values()]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


class _Drawing(Axis):
    """The charts of the hosts."""

    def __init__(self, form: Form, begin: datetime, end: datetime, step: timedelta) -> None:
        super().__init__(form, begin, end, step)
        self._steps = [begin + number * step for number in range((end - begin) // step)]

    def lines(self, measure: Measure, series: Sequence[Series]) -> Drawn:
        """Draw a line for each series, the worst first."""
        unit = measure.unit
        worst = min if measure.low else max
        known = {
            " ".join(one.labels.get(name) or "none" for name in measure.by): one.values for one in series if one.values
        }
        ordered = sorted(
            known.items(), key=lambda pair: (worst(pair[1].values()) * (1 if measure.low else -1), pair[0])
        )
        lines = {name: [values.get(begin + self._step) for begin in self._steps] for name, values in ordered[:LINES]}
        most = max((value for values in lines.values() for value in values if value is not None), default=0)
        top = unit.top(most)
        rows = [
            (begin, ["" if (value := values[place]) is None else unit.text(value) for values in lines.values()])
            for place, begin in enumerate(self._steps)
        ]
        marks = [
            self._column(
                begin, 0, ", ".join(f"{name} {text or 'nothing'}" for name, text in zip(lines, texts, strict=True))
            )
            for begin, texts in rows
        ]
        styles = {f"line{number}": name for number, name in enumerate(lines, 1)}
        paths = {
            style: self._line(zip(self._steps, lines[name], strict=True), lambda value: value / top)
            for style, name in styles.items()
        }
        levels = [(0.0, unit.text(top)), (0.5, unit.text(top / 2))]
        told = [self._told(name, values, unit, measure.low) for name, values in [*lines.items()][:TOLD]]
        if more := len(lines) - len(told):
            told.append(f"{more} more lines in the table")
        chart = Chart(measure.name, measure.title, "; ".join(told), marks, paths, levels, self._ticks, styles)
        return Drawn(chart, list(lines), rows)

    def _told(self, name: str, values: Sequence[float | None], unit: Unit, low: bool) -> str:
        """Tell of a line in words."""
        known = [(value, begin) for value, begin in zip(values, self._steps, strict=True) if value is not None]
        worst, begin = (min if low else max)(known, key=lambda pair: pair[0])
        last = f"{unit.text(known[-1][0])} at last" if known[-1][1] == self._steps[-1] else "nothing at last"
        return f"{name}: {last}, at {'least' if low else 'most'} {unit.text(worst)} at {self._clock(begin)}"

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Charts as numbers: where bars, lines and labels lie. The template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta

from mailreport.questions import STEPS, Point
from mailreport.web.forms import Form

# The plot's own units; the page stretches it.
WIDTH, HEIGHT = 1000, 100
_POINTS = 120
_TICKS = (
    *(timedelta(minutes=minutes) for minutes in (5, 10, 15, 30)),
    *(timedelta(hours=hours) for hours in (1, 2, 3, 6, 12)),
    *(timedelta(days=days) for days in (1, 2, 7, 14, 28, 91)),
)
_DELAYS = {
    1: "1 ms", 10: "10 ms", 100: "100 ms", 1000: "1 s", 10_000: "10 s", 60_000: "1 min",
    600_000: "10 min", 3_600_000: "1 h", 21_600_000: "6 h", 86_400_000: "1 day", 604_800_000: "7 days",
}  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A column of a chart: a bar if it has a height, and what is told of it."""

    x: float
    width: float
    y: float
    height: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart of one measure, or of several lines."""

    name: str  # also the class of its style
    title: str
    summary: str  # for who cannot see it
    marks: list[Mark]
    lines: dict[str, str]  # paths by name
    levels: list[tuple[float, str]]  # of the vertical axis: share of the height from above, label
    ticks: list[tuple[float, str]]  # of the time axis: percent, label
    keys: dict[str, str] = field(default_factory=dict)  # what the lines are, by name


def step_of(form: Form) -> timedelta:
    """Give the step that makes a readable number of points."""
    return next((step for step in STEPS if (form.end - form.begin) / step <= _POINTS), STEPS[-1])


def share(point: Point) -> float | None:
    """Give the percentage delivered of the mails whose fate is known; None if there are none."""
    ended = sum(point.outcomes[outcome] for outcome in ("delivered", "bounced", "expired"))
    return 100 * point.outcomes["delivered"] / ended if ended else None


def charts(form: Form, points: Sequence[Point], step: timedelta) -> list[Chart]:
    """Give the charts of a range, all over the same time."""
    drawing = _Drawing(form, points, step)
    counts = {"delivered": "Delivered", "deferred": "Soft bounces", "bounced": "Hard bounces", "expired": "Expired"}
    bars = [drawing.bars(outcome, title) for outcome, title in counts.items()]
    return [bars[0], drawing.share(), *bars[1:], drawing.delays()]


class Axis:
    """The time that all charts of a page have in common."""

    def __init__(self, form: Form, begin: datetime, end: datetime, step: timedelta) -> None:
        self._form, self._begin, self._span, self._step = form, begin, end - begin, step
        self._ticks = self._time_ticks()

    def _column(self, begin: datetime, height: float, text: str) -> Mark:
        """Give a step's column: a bar if it has a height (0 to 1), and what is told of it."""
        x, width = self._x(begin), WIDTH * (self._step / self._span)
        high = max(HEIGHT * height, 1.5 if height else 0)  # one among many is seen, too
        told = f"{self._clock(begin)}: {text}"
        return Mark(round(x, 2), round(width, 2), round(HEIGHT - high, 2), round(high, 2), told)

    def _line(self, values: Iterable[tuple[datetime, float | None]], place: Callable[[float], float]) -> str:
        """Join the steps that have a value, by their begin; a lonely one becomes a dot."""
        path, pen = "", "M"
        for begin, value in values:
            if value is None:
                pen = "M"
                continue
            x, y = self._x(begin + self._step / 2), HEIGHT * (1 - place(value))
            path += f"{pen}{x:.1f} {y:.1f}" + ("h0" if pen == "M" else "")
            pen = "L"
        return path

    def _x(self, at: datetime) -> float:
        return WIDTH * ((at - self._begin) / self._span)

    def _time_ticks(self) -> list[tuple[float, str]]:
        """Give labels at round times of the form's zone."""
        every = next((tick for tick in _TICKS if self._span / tick <= 6), _TICKS[-1])
        midnight = self._form.local(self._begin).replace(hour=0, minute=0, second=0, microsecond=0)
        ticks = []
        for number in range(int((self._span + timedelta(days=1)) / every) + 1):
            local = midnight + number * every  # on the clock of the zone, also where that clock was changed
            place = 100 * ((local.astimezone(UTC).replace(tzinfo=None) - self._begin) / self._span)
            if 3 <= place <= 97:  # there is room for the label
                at_midnight = local.time() == time.min
                ticks.append((round(place, 2), f"{local.day} {local:%b}" if at_midnight else f"{local:%H:%M}"))
        return ticks

    def _clock(self, at: datetime) -> str:
        local = self._form.local(at)
        return f"{local.day} {local:%b %H:%M}"


class _Drawing(Axis):
    """The charts of points."""

    def __init__(self, form: Form, points: Sequence[Point], step: timedelta) -> None:
        # Whole steps, so that no bar is cut.
        begin = min([form.begin, *(point.begin for point in points)])
        super().__init__(form, begin, max([form.end, *(point.begin + step for point in points)]), step)
        self._points = points

    def bars(self, outcome: str, title: str) -> Chart:
        """Draw counts."""
        counts = [point.outcomes[outcome] for point in self._points]
        top = _ceiling(max(counts, default=0))
        pairs = zip(self._points, counts, strict=True)
        marks = [self._mark(point, count / top, f"{count:,}") for point, count in pairs]
        summary = f"{sum(counts):,} in all"
        if any(counts):
            most = max(range(len(counts)), key=counts.__getitem__)
            summary += f", at most {counts[most]:,} in {span(self._step)}, at {self._clock(self._points[most].begin)}"
        levels = [(0.0, f"{top:,}"), (0.5, f"{top / 2:,g}")]
        return Chart(outcome, f"{title} per {span(self._step)}", summary, marks, {}, levels, self._ticks)

    def share(self) -> Chart:
        """Draw the share delivered as a line."""
        values = [share(point) for point in self._points]
        known = [value for value in values if value is not None]
        floor = next((floor for floor in (99, 90, 50) if min(known, default=0) >= floor), 0)
        marks = [
            self._mark(point, 0, "none ended" if value is None else f"{value:.2f} %")
            for point, value in zip(self._points, values, strict=True)
        ]
        path = self._path(values, lambda value: (value - floor) / (100 - floor))
        summary = f"between {min(known):.2f} % and {max(known):.2f} %" if known else "none ended"
        levels = [(0.0, "100 %"), (0.5, f"{(100 + floor) / 2:g} %"), (1.0, f"{floor} %")]
        return Chart("share", "Share delivered of all that ended", summary, marks, {"share": path}, levels, self._ticks)

    def delays(self) -> Chart:
        """Draw the percentiles of the delay, on a logarithmic scale."""
        measures = {name: [getattr(point, f"{name}_ms") for point in self._points] for name in ("p50", "p90", "p99")}
        known = [max(value, 1) for values in measures.values() for value in values if value is not None]
        low = max((delay for delay in _DELAYS if delay <= min(known, default=1)), default=1)
        least = max([*known, 10 * low])
        high = min((delay for delay in _DELAYS if delay >= least), default=max(_DELAYS))

        def place(value: float) -> float:
            return min(1.0, math.log(max(value, low) / low) / math.log(high / low))

        marks = []
        for index, point in enumerate(self._points):
            values = {name: series[index] for name, series in measures.items()}
            told = [f"{name} {duration(value)}" for name, value in values.items() if value is not None]
            marks.append(self._mark(point, 0, ", ".join(told) or "none delivered"))
        lines = {name: self._path(values, place) for name, values in measures.items()}
        levels = [(1 - place(delay), label) for delay, label in _DELAYS.items() if low <= delay <= high]
        summary = f"between {duration(min(known))} and {duration(max(known))}" if known else "none delivered"
        keys = {name: name for name in lines}
        return Chart("delay", "Delay of what was delivered", summary, marks, lines, levels, self._ticks, keys)

    def _mark(self, point: Point, height: float, text: str) -> Mark:
        return self._column(point.begin, height, text)

    def _path(self, values: Sequence[float | None], place: Callable[[float], float]) -> str:
        return self._line(zip((point.begin for point in self._points), values, strict=True), place)


def _ceiling(value: float) -> int:
    """Give a round number that is at least as large, and even, so that its half is round, too."""
    power = 10 ** max(0, math.floor(math.log10(max(value, 1))))
    return max(2, next(int(factor * power) for factor in (1, 2, 4, 6, 8, 10) if factor * power >= value))


def span(step: timedelta) -> str:
    """Give a step in words."""
    minutes = step // timedelta(minutes=1)
    for size, word in ((1440, "day"), (60, "hour")):
        if minutes % size == 0:
            return word if minutes == size else f"{minutes // size} {word}s"
    return f"{minutes} minutes"


def duration(milliseconds: float) -> str:
    """Give a time span as a person says it, in its two largest units."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.1f} s"
    seconds = round(milliseconds / 1000)
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    largest = next(index for index, (_name, size) in enumerate(units) if seconds >= size)
    (name, size), (smaller_name, smaller) = units[largest : largest + 2]
    rest = seconds % size // smaller
    return f"{seconds // size} {name}" + (f" {rest} {smaller_name}" if rest else "")

#!/usr/bin/env python3
"""Draw Grafana's dashboards as PNG with what a running Prometheus tells, for people who have no Grafana at hand.

All queries are asked as Grafana asks them, so a picture also tells that they are understood and give something.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import requests
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, Wedge

matplotlib.use("agg")

COLUMN, LINE = 0.62, 0.36  # inches that a cell of Grafana's grid takes
POINTS = 240  # of a line
LEGENDS = 14  # lines that have a name; with more of them a legend is longer than its chart
ROWS = 12  # of a table
CUT = 46  # characters of a name
# Told apart by people with all kinds of colour vision (Okabe and Ito), then the same with other dashes.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000"]
DASHES: list[Any] = ["-", (0, (1, 1)), (0, (3, 1, 1, 1))]
RED, GREEN, INK, FAINT = "#c4162a", "#19730e", "#1f2328", "#6b7280"

TIMES = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080]  # minutes between ticks
DURATIONS = [0, 1, 10, 60, 600, 3600, 86400, 864000]  # seconds, on a logarithmic axis
# Grafana's units: sizes with their names.
UNITS: dict[str, list[tuple[float, str]]] = {
    "none": [(1, "")],
    "short": [(1, ""), (1e3, " k"), (1e6, " M"), (1e9, " G")],
    "ops": [(1, " /s"), (1e3, " k/s"), (1e6, " M/s")],
    "percentunit": [(0.01, "%")],
    "s": [(0.001, " ms"), (1, " s"), (60, " min"), (3600, " h"), (86400, " d"), (31557600, " y")],
    "bytes": [(1, " B"), *((1024.0**power, f" {letter}iB") for power, letter in enumerate("KMGTP", 1))],
    "Bps": [(1, " B/s"), *((1024.0**power, f" {letter}iB/s") for power, letter in enumerate("KMGTP", 1))],
}

Series = tuple[dict[str, str], list[tuple[float, float]]]


class RefusedError(RuntimeError):
    """Prometheus did not answer, or did not take a query; the message says why."""


@dataclass
class Prometheus:
    """The HTTP API at a time."""

    address: str
    end: float  # seconds since the epoch
    minutes: float
    session: requests.Session

    def _get(self, path: str, **parameters: Any) -> Any:
        try:
            answer = self.session.post(f"{self.address}/api/v1/{path}", data=parameters, timeout=60)
            told = answer.json()
        except requests.exceptions.JSONDecodeError:
            raise RefusedError(f"{self.address} answers with status {answer.status_code}") from None
        except requests.RequestException as error:
            raise RefusedError(f"{self.address} does not answer: {error}") from error
        if told["status"] != "success":
            raise RefusedError(f"{told['error']}: {parameters.get('query', path)}")
        return told["data"]

    @property
    def start(self) -> float:
        """Where the range begins, in seconds since the epoch."""
        return self.end - self.minutes * 60

    def lines(self, query: str) -> list[Series]:
        """Give the series of a query over the range.

        :raises RefusedError: as for all queries.
        """
        step = max(15, math.ceil(self.minutes * 60 / POINTS))
        found = self._get("query_range", query=query, start=self.start, end=self.end, step=step)["result"]
        return [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in found]

    def now(self, query: str) -> list[Series]:
        """Give the series of a query at the range's end."""
        data = self._get("query", query=query, time=self.end)
        if data["resultType"] == "scalar":
            return [({}, [(data["result"][0], float(data["result"][1]))])]
        return [(one["metric"], [(one["value"][0], float(one["value"][1]))]) for one in data["result"]]

    def values(self, query: str) -> list[str]:
        """Give what a variable can be, from label_values(series, label)."""
        parts = re.fullmatch(r"label_values\((.+),\s*(\w+)\)", query)
        if not parts:
            raise RefusedError(f"a variable's values are not of the form label_values(series, label): {query}")
        found = self._get("series", **{"match[]": parts[1], "start": self.start, "end": self.end})
        return sorted({one[parts[2]] for one in found if parts[2] in one})


@dataclass
class Picture:
    """One dashboard, as it is in its JSON."""

    board: dict[str, Any]
    prometheus: Prometheus
    chosen: dict[str, list[str]]  # values of variables that the caller gives
    empty: list[str] = field(default_factory=list)  # queries that gave nothing, with their panels
    variables: dict[str, str] = field(default_factory=dict)  # what stands for $name in queries
    subtitle: str = ""

    def fill(self, query: str) -> str:
        """Put the variables' values into a query."""
        return re.sub(r"\$(\w+)", lambda found: self.variables.get(found[1], found[0]), query)

    def discover(self) -> None:
        """Find what variables can be: all values where several are possible, or the first."""
        told = []
        for variable in self.board["templating"]["list"]:
            if variable["type"] != "query":
                continue
            values = self.prometheus.values(self.fill(variable["query"]["query"]))
            chosen = self.chosen.get(variable["name"]) or (values if variable["multi"] else values[:1])
            every = variable["multi"] and variable["name"] not in self.chosen
            # As Grafana does: a value may have a dot, which is one in a regular expression, and in a string.
            escaped = "(" + "|".join(re.escape(value) for value in chosen).replace("\\", "\\\\") + ")"
            one = chosen[0] if chosen else ""
            self.variables[variable["name"]] = variable["allValue"] if every else escaped if variable["multi"] else one
            told.append(f"{variable['label'].lower()} {'(all)' if every else ', '.join(chosen) or '(none)'}")
        self.subtitle = " · ".join(told)

    def ask(self, panel: dict[str, Any]) -> list[tuple[dict[str, Any], list[Series]]]:
        """Give each query of a panel with its answer.

        :raises RefusedError: Prometheus refused one.
        """
        answers = []
        for target in panel["targets"]:
            query = self.fill(target["expr"])
            answers.append((target, (self.prometheus.now if target["instant"] else self.prometheus.lines)(query)))
        # Of limits for different tiers only one is that of the host.
        limited = any(found for target, found in answers if limits(target))
        for target, found in answers:
            if not found and not (limits(target) and limited):
                self.empty.append(f"{self.board['title']}, {panel['title']}: {self.fill(target['expr'])}")
        return answers

    def figures(self, panel: dict[str, Any]) -> list[tuple[str, float]]:
        """Give the names and values of a stat or a gauge."""
        answers = self.ask(panel)
        return [
            (legend(target["legendFormat"], labels), points[-1][1])
            for target, found in answers
            for labels, points in found
        ]

    def draw(self, path: Path) -> None:
        """Write the picture."""
        self.discover()
        panels = self.board["panels"]
        lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        head = 1.8  # lines of the grid
        width, height = 24 * COLUMN, (lines + head) * LINE
        figure = Figure(figsize=(width, height), facecolor="white")
        figure.text(0.18 / width, 1 - 0.2 / height, self.board["title"], va="top", size=17, weight="bold", color=INK)
        minutes = (
            f"{self.prometheus.minutes:g} minutes until {datetime.fromtimestamp(self.prometheus.end, UTC):%F %R} UTC"
        )
        told = " · ".join(part for part in (self.subtitle, minutes) if part)
        figure.text(1 - 0.18 / width, 1 - 0.26 / height, told, va="top", ha="right", size=10, color=FAINT)
        for panel in panels:
            grid = panel["gridPos"]
            # The panel's edges in inches, from the picture's lower left corner.
            left, top = grid["x"] * COLUMN, height - (grid["y"] + head) * LINE
            if panel["type"] == "row":
                figure.text(
                    (left + 0.18) / width, (top - 0.3) / height, panel["title"], size=13, weight="bold", color=INK
                )
                continue
            wide, high = grid["w"] * COLUMN, grid["h"] * LINE
            title = panel["title"]
            edge = ((left + 0.05) / width, (top - high + 0.05) / height)
            frame = Rectangle(
                edge, (wide - 0.1) / width, (high - 0.1) / height, linewidth=0.8, edgecolor="#d0d7de", facecolor="none"
            )
            figure.add_artist(frame)
            figure.text((left + 0.18) / width, (top - 0.2) / height, title, size=10.5, va="center", color=INK)
            margins = (0.8, 0.2, 0.42, 0.2) if panel["type"] == "timeseries" else (0.18, 0.18, 0.42, 0.15)
            box = (
                left + margins[0],
                top - high + margins[3],
                wide - margins[0] - margins[1],
                high - margins[2] - margins[3],
            )
            axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            getattr(self, f"_{panel['type']}")(axes, panel, box[2], box[3])
        figure.savefig(path, dpi=100)

    def _timeseries(self, axes: Axes, panel: dict[str, Any], width: float, height: float) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        drawn: list[tuple[str, list[tuple[float, float]]]] = []
        dashed: list[tuple[str, list[tuple[float, float]]]] = []
        for target, found in self.ask(panel):
            for labels, points in found:
                name = legend(target["legendFormat"], labels)
                (dashed if limits(target) else drawn).append((name, points))
        if defaults["custom"].get("stacking"):
            stack(axes, drawn)
        else:
            for number, (name, points) in enumerate(drawn):
                plot(axes, name, points, COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)])
        for number, (name, points) in enumerate(dashed):
            plot(axes, name, points, RED, (0, (4, 2)) if number == 0 else (0, (1, 1.5)))
        start, end = self.prometheus.start, self.prometheus.end
        axes.set_xlim(start, end)
        step = next((60 * step for step in TIMES if self.prometheus.minutes / step <= 6), 60 * TIMES[-1])
        times = range(math.ceil(start / step) * step, int(end) + 1, step)
        form = "%H:%M" if step < 86400 else "%d %b"
        axes.set_xticks(times, [f"{datetime.fromtimestamp(at, UTC):{form}}" for at in times])
        values = [value for name, points in drawn + dashed for at, value in points if not math.isnan(value)]
        if defaults["custom"].get("stacking"):
            values = [axes.get_ylim()[1]]
        unit, low, high = defaults["unit"], min([0, *values]), max([0, *values])
        high = defaults.get("max") or high or 1
        axes.set_ylim(low * 1.04, high * 1.04)  # so that a line at the upper end is seen
        if defaults["custom"].get("scaleDistribution", {}).get("type") == "symlog":
            axes.set_yscale("symlog", linthresh=1)
            axes.set_ylim(low, high * 2)
            axes.yaxis.set_minor_locator(ticker.NullLocator())
            ticks = ([0] + [10**power for power in range(10)]) if unit != "s" else DURATIONS
            axes.set_yticks([tick for tick in ticks if tick <= high * 2], [])
        else:
            axes.set_yticks(steps(low, high, unit, all(value == int(value) for value in values)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, position: human(value, unit)))
        axes.tick_params(labelsize=8, colors=FAINT, length=2)
        axes.grid(color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_color("#d0d7de")
        self._shrink(axes, height, width, [name for name, points in drawn], bool(dashed))
        if not drawn:
            axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, color=FAINT)

    @staticmethod
    def _shrink(axes: Axes, height: float, width: float, names: list[str], limited: bool) -> None:
        """Put the legend below the chart, which gives the place that it needs."""
        handles, labels = axes.get_legend_handles_labels()
        shown = {label: handle for handle, label in zip(handles, labels, strict=True) if label}
        limits = {label: handle for label, handle in shown.items() if label not in names} if limited else {}
        lines = {label: handle for label, handle in shown.items() if label not in limits}
        more = len(lines) - LEGENDS
        kept = dict(list(lines.items())[: LEGENDS if more > 0 else None]) | limits
        if more > 0:
            kept[f"and {more} more"] = matplotlib.lines.Line2D([], [], linestyle="none")
        longest = max((len(label) for label in kept), default=1)
        columns = max(1, min(len(kept), int((width + 0.6) / (0.45 + 0.068 * min(longest, CUT)))))
        lines_of_legend = math.ceil(len(kept) / columns)
        room = 0.24 + 0.15 * lines_of_legend
        box = axes.get_position()
        axes.set_position((box.x0, box.y0 + box.height * room / height, box.width, box.height * (1 - room / height)))
        axes.legend(
            kept.values(),
            [label if len(label) <= CUT else label[: CUT - 1] + "…" for label in kept],
            loc="upper left",
            bbox_to_anchor=(-0.6 / width, -0.2 / (height - room)),
            ncols=columns,
            fontsize=7.5,
            frameon=False,
            borderaxespad=0,
            handlelength=2.0,
            columnspacing=1.0,
            labelspacing=0.25,
            labelcolor=INK,
        )

    def _stat(self, axes: Axes, panel: dict[str, Any], width: float, height: float) -> None:
        axes.set_axis_off()
        defaults = panel["fieldConfig"]["defaults"]
        steps = defaults["thresholds"]["steps"]
        figures = self.figures(panel)
        for number, (name, value) in enumerate(figures):
            colour = INK
            for step in steps[1:]:
                colour = RED if value >= step["value"] else GREEN
            x = (number + 0.5) / len(figures)
            text = human(value, defaults["unit"])
            size = min(30, 100 * width / len(figures) / (len(text) + 1))  # points that the text's width allows
            axes.text(x, 0.6, text, ha="center", va="center", size=size, color=colour)
            axes.text(x, 0.12, name, ha="center", va="center", size=9, color=FAINT)
        if not figures:
            axes.text(0.5, 0.5, "no data", ha="center", va="center", color=FAINT)

    def _gauge(self, axes: Axes, panel: dict[str, Any], width: float, height: float) -> None:
        axes.set_axis_off()
        defaults = panel["fieldConfig"]["defaults"]
        figures = self.figures(panel)
        axes.set_xlim(0, width)
        axes.set_ylim(0, height)
        for number, (name, value) in enumerate(figures):
            place = width / len(figures)
            centre, radius = (place * (number + 0.5), 0.28), min(place / 2.4, height - 0.35)
            share = min(1, max(0, (value - defaults["min"]) / (defaults["max"] - defaults["min"])))
            axes.add_patch(Wedge(centre, radius, 0, 180, width=radius * 0.25, color="#e5e7eb"))
            axes.add_patch(Wedge(centre, radius, 180 - 180 * share, 180, width=radius * 0.25, color=COLOURS[0]))
            axes.text(
                centre[0], centre[1] + radius * 0.22, human(value, defaults["unit"]), ha="center", size=16, color=INK
            )
            axes.text(centre[0], 0.1, name, ha="center", va="center", size=9, color=FAINT)
        if not figures:
            axes.text(width / 2, height / 2, "no data", ha="center", va="center", color=FAINT)

    def _table(self, axes: Axes, panel: dict[str, Any], width: float, height: float) -> None:
        axes.set_axis_off()
        options = next(step["options"] for step in panel["transformations"] if step["id"] == "organize")
        order = sorted(options["indexByName"], key=options["indexByName"].__getitem__)
        units = {one["matcher"]["options"]: one["properties"][0]["value"] for one in panel["fieldConfig"]["overrides"]}
        rows: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        for target, found in self.ask(panel):
            key = f"Value #{target['refId']}" if len(panel["targets"]) > 1 else "Value"
            title = options["renameByName"].get(key)
            for labels, points in found:
                shown = {name: labels.get(name, "") for name in order if not name.startswith("Value")}
                row = rows.setdefault(tuple(shown.items()), shown)
                if title:
                    row[key] = human(points[-1][1], units.get(title, panel["fieldConfig"]["defaults"]["unit"]))
        # Columns that are empty in all rows only take place.
        order = [name for name in order if any(row.get(name) for row in rows.values())]
        if not rows:
            axes.text(0.5, 0.5, "no data", ha="center", va="center", color=FAINT)
            return
        most = min(ROWS, int(height / 0.21) - 1)
        cells = [[row.get(name, "") for name in order] for row in rows.values()]
        more = len(cells) - most
        heads = [options["renameByName"].get(name, name) for name in order]
        cut = [cells[line] for line in range(min(len(cells), most))]
        if more > 0:
            cut[-1] = [f"and {more + 1} more", *[""] * (len(order) - 1)]
        widths = [max(len(text) for text in column) + 2 for column in zip(heads, *cut, strict=True)]
        left = 0.0
        for head, name, column, wide in zip(heads, order, zip(*cut, strict=True), widths, strict=True):
            number = name.startswith("Value")
            x = (left + (wide - 1 if number else 0)) / sum(widths)
            left += wide
            for line, text in enumerate([head, *column]):
                y = 1 - (line * 0.21 + 0.1) / height
                side = "right" if number else "left"
                axes.text(x, y, text, size=8, ha=side, va="center", color=FAINT if line == 0 else INK)
        axes.plot([0, 1], [1 - 0.21 / height] * 2, color="#d0d7de", linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)


def human(value: float, unit: str) -> str:
    """Give a value as people read it, in one of the units that Grafana knows.

    >>> human(0.934, "percentunit"), human(1536, "bytes"), human(-90, "s"), human(0.02, "s")
    ('93.4%', '1.5 KiB', '-1.5 min', '20 ms')
    """
    if math.isnan(value):
        return "none"
    size, name = scale(value, unit)
    shown = value / size
    return f"{shown:.0f}{name}" if abs(shown) >= 99.95 else f"{shown:.3g}{name}"


def scale(value: float, unit: str) -> tuple[float, str]:
    """Give the size and the name of what a value is best told in."""
    sizes = UNITS[unit]
    if value == 0:
        return next((one for one in sizes if one[0] == 1), sizes[0])
    return next((one for one in reversed(sizes) if abs(value) >= one[0] * 0.9995), sizes[0])


def steps(low: float, high: float, unit: str, counts: bool) -> list[float]:
    """Give the ticks of an axis, at round figures of its unit.

    :param counts: all values are whole numbers.
    """
    size = scale(max(abs(low), abs(high)), unit)[0]
    whole = size == 1 and (counts or high >= 4)
    ticks = ticker.MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low / size, high / size)
    return [float(value) * size for value in ticks if low <= value * size <= high * 1.0001]


def limits(target: dict[str, Any]) -> bool:
    """Tell whether a panel's query is that of a limit."""
    return target["refId"].startswith("limit")


def legend(text: str, labels: dict[str, str]) -> str:
    """Give a line's name: {{label}} in the text stands for a label's value."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), text).strip()


def gaps(points: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Give the points of a line, with none where samples are missing."""
    step = min((later[0] - one[0] for one, later in itertools.pairwise(points)), default=0.0)
    before = points[0][0]
    for at, value in points:
        if at - before > step * 1.5:
            yield at - step, math.nan
        yield at, value
        before = at


def plot(axes: Axes, name: str, points: list[tuple[float, float]], colour: str, dash: Any) -> None:
    """Draw a line; a single point, too, is seen."""
    times, values = zip(*gaps(points), strict=True)
    marker = "." if len(points) < 3 else ""
    axes.plot(times, values, label=name or "value", color=colour, linestyle=dash, linewidth=1.2, marker=marker)


def stack(axes: Axes, drawn: list[tuple[str, list[tuple[float, float]]]]) -> None:
    """Draw areas that stand on each other."""
    times = sorted({at for name, points in drawn for at, value in points})
    if not times:
        return
    heights = [[dict(points).get(at, 0.0) for at in times] for name, points in drawn]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(drawn))]
    axes.stackplot(times, *heights, labels=[name for name, points in drawn], colors=colours, alpha=0.75, linewidth=0)


def main() -> int:
    """Draw the dashboards of a file or a folder; give the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prometheus", help="its address, such as http://127.0.0.1:9090")
    parser.add_argument("dashboards", type=Path, help="a JSON file, or a folder of such files")
    parser.add_argument("--minutes", type=float, default=180, help="the range that is drawn (180)")
    parser.add_argument("--end", type=float, default=time.time(), help="its end, in seconds since the epoch (now)")
    parser.add_argument("--output", type=Path, help="folder of the pictures (that of the JSON)")
    parser.add_argument(
        "--variable",
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE]",
        help="instead of all values, or of the first",
    )
    parser.add_argument("--user", help="name, with the password in the file of --password")
    parser.add_argument("--password", type=Path, help="file with the password")
    parser.add_argument("--ca", help="file with the authority of Prometheus' certificate")
    arguments = parser.parse_args()
    session = requests.Session()
    session.trust_env = False  # a proxy or an authority of the environment is for other servers
    if arguments.user:
        session.auth = (arguments.user, arguments.password.read_text().strip())
    session.verify = arguments.ca or True
    prometheus = Prometheus(arguments.prometheus.rstrip("/"), arguments.end, arguments.minutes, session)
    chosen = {name: values.split(",") for name, values in (one.split("=", 1) for one in arguments.variable)}
    files = sorted(arguments.dashboards.glob("*.json")) if arguments.dashboards.is_dir() else [arguments.dashboards]
    try:
        for file in files:
            picture = Picture(json.loads(file.read_text()), prometheus, chosen)
            path = (arguments.output or file.parent) / f"{file.stem}.png"
            picture.draw(path)
            print(f"{path} is written")
            for query in picture.empty:
                print(f"  no data: {query}")
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

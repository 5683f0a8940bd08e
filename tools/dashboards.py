#!/usr/bin/env python3
"""Write Grafana's dashboards from roles/monitoring/dashboards (`make docs`), or tell which are not current.

Panels, their places and what they inherit of each other are what one forgets in Grafana's JSON, so the sources
have little more than titles and queries. The classes below say what their keys mean.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import written
import yaml
from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard, gauge, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

ROLE = written.ROOT / "roles/monitoring"
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Of the grid: columns and rows.
WIDTH = 24
SIZES = {"timeseries": (8, 8), "table": (8, 8), "stat": (6, 5), "gauge": (6, 5)}
OWN = {"timeseries": ("limits", "stacked", "logarithmic"), "stat": ("red",), "table": ("columns",)}
TAG = "tenfold"
PALETTE = model.FieldColorModeId.PALETTE_CLASSIC


@dataclass
class Variable:
    """What the reader chooses, `$name` in queries."""

    name: str
    label: str
    values: str  # label_values(series, label)
    multiple: bool = False  # several values, or all; write =~"$name" then

    def build(self) -> dashboard.QueryVariable:
        """Give Grafana's form."""
        variable = (
            dashboard.QueryVariable(self.name)
            .label(self.label)
            .datasource(SOURCE)
            .query({"query": self.values, "refId": self.name})
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
            .multi(self.multiple)
            .include_all(self.multiple)
        )
        if self.multiple:
            variable.all_value(".*").current(model.VariableOption(text="All", value="$__all"))
        return variable


@dataclass
class Query:
    """Lines of a chart, values of a stat or a gauge, a column of a table."""

    query: str
    legend: str = ""  # {{label}} stands for a label's value; a table shows no value without a legend
    unit: str = ""  # of a table's column, if it has another unit than the panel


@dataclass
class Limit:
    """A dashed line at a value of vars/limits.yml."""

    name: str
    legend: str = "limit"
    where: str = ""  # drawn only where this selector gives something


@dataclass
class Panel:
    """One picture, stat or table."""

    title: str
    queries: list[Query]
    description: str  # what a reader has to know to judge the figures
    kind: str = "timeseries"  # or stat, gauge, table, which show how it is now
    unit: str = "short"  # in Grafana's words: s, bytes, Bps, ops (a second), percentunit (0-1), short (a number)
    maximum: float | None = None  # upper end of the scale
    red: float | None = None  # a stat with this value, or a higher one, is red, and green below
    limits: list[Limit] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)  # labels that a table shows, before the values
    stacked: bool = False
    logarithmic: bool = False  # from 1 on, and linear below
    width: int = 0  # of the grid's columns; 0 means that of its kind
    height: int = 0  # likewise

    def __post_init__(self) -> None:
        """Make queries of what YAML gives.

        :raises ValueError: there is something that panels of this kind don't show.
        """
        self.queries = [Query(**query) for query in self.queries]  # type: ignore[arg-type]
        self.limits = [Limit(**limit) for limit in self.limits]  # type: ignore[arg-type]
        if self.kind not in SIZES:
            raise ValueError(f"{self.title}: there is no kind {self.kind}")
        for kind, names in OWN.items():
            for name in names:
                if getattr(self, name) and kind != self.kind:
                    raise ValueError(f"{self.title}: a panel of the kind {self.kind} has no {name}")
        width, height = SIZES[self.kind]
        self.width, self.height = self.width or width, self.height or height

    def build(self, number: int) -> Any:
        """Give Grafana's form.

        :param number: its id in the dashboard.
        """
        panel: Any = {"timeseries": timeseries, "stat": stat, "gauge": gauge, "table": table}[self.kind].Panel()
        panel.id(number).title(self.title).description(self.description).datasource(SOURCE)
        panel.span(self.width).height(self.height).unit(self.unit)
        if self.maximum is not None:
            panel.min(0).max(self.maximum)
        for letter, query in zip(string.ascii_uppercase, self.queries, strict=False):
            panel.with_target(self.target(letter, query.query, query.legend))
        getattr(self, f"_{self.kind}")(panel)
        return panel

    def target(self, letter: str, query: str, legend: str) -> prometheus.Dataquery:
        """Give a query in Grafana's form.

        :param letter: its name in the panel.
        """
        target = prometheus.Dataquery().ref_id(letter).expr(query).datasource(SOURCE)
        if self.kind == "timeseries":
            return target.range().legend_format(legend)
        if self.kind == "table":
            return target.instant().format(PromQueryFormat.TABLE)
        return target.instant().legend_format(legend)

    def _timeseries(self, panel: timeseries.Panel) -> None:
        panel.color_scheme(dashboard.FieldColor().mode(PALETTE)).axis_soft_min(0).line_width(1)
        panel.show_points(common.VisibilityMode.AUTO).fill_opacity(60 if self.stacked else 0)
        panel.tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        legend = build.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
        panel.legend(legend.display_mode(common.LegendDisplayMode.LIST))
        if self.stacked:
            panel.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
        if self.logarithmic:
            scale = build.ScaleDistributionConfig().type(common.ScaleDistribution.SYMLOG)
            panel.scale_distribution(scale.log(10).linear_threshold(1))
        for number, limit in enumerate(self.limits, 1):
            letter = f"limit{number}"
            query = f"limit:{limit.name}" + f" and on() {limit.where}" * bool(limit.where)
            panel.with_target(self.target(letter, query, limit.legend))
            looks = {
                "color": {"mode": "fixed", "fixedColor": "red"},
                "custom.fillOpacity": 0,
                "custom.lineStyle": {"fill": "dash", "dash": [10, 10]},
                "custom.stacking": {"mode": "none"},
            }
            panel.override_by_query(letter, [model.DynamicConfigValue(id_val=key, value=looks[key]) for key in looks])

    def _stat(self, panel: stat.Panel) -> None:
        steps = [model.Threshold(value=None, color="text" if self.red is None else "green")]
        if self.red is not None:
            steps.append(model.Threshold(value=self.red, color="red"))
        panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        panel.reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]))
        panel.graph_mode(common.BigValueGraphMode.NONE).text_mode(common.BigValueTextMode.VALUE_AND_NAME)

    def _gauge(self, panel: gauge.Panel) -> None:
        panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color("blue"))
        panel.reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"])).show_threshold_markers(False)

    def _table(self, panel: table.Panel) -> None:
        panel.show_header(True)
        names = {}  # what Grafana calls the values, and what they are called here
        for letter, query in zip(string.ascii_uppercase, self.queries, strict=False):
            value = f"Value #{letter}" if len(self.queries) > 1 else "Value"
            if query.legend:
                names[value] = query.legend
            if query.unit:
                panel.override_by_name(query.legend, [model.DynamicConfigValue(id_val="unit", value=query.unit)])
        fields = [*self.columns, *names]
        transformations = {
            "merge": {},
            "filterFieldsByName": {"include": {"names": fields}},
            "organize": {"indexByName": {name: i for i, name in enumerate(fields)}, "renameByName": names},
        }
        for name, options in transformations.items():
            panel.with_transformation(model.DataTransformerConfig(id_val=name, options=options))


@dataclass
class Dashboard:
    """A source."""

    title: str
    description: str
    variables: list[dict[str, Any]]
    rows: list[dict[str, Any]]  # each has a title and panels

    def build(self, name: str) -> dashboard.Dashboard:
        """Give Grafana's form.

        :param name: the source's name, by which Grafana knows the dashboard.
        :raises ValueError: two panels have one title, or a panel does not fit beside the others of its line.
        """
        board = (
            dashboard.Dashboard(self.title)
            .uid(f"{TAG}-{name.replace('_', '-')}")
            .description(self.description)
            .tags([TAG])
            .time("now-3h", "now")
            .refresh("30s")
            .timezone("browser")
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .link(
                dashboard.DashboardLink("Dashboards")
                .type(model.DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .keep_time(True)
                .as_dropdown(True)
            )
            .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        )
        for variable in self.variables:
            board.with_variable(Variable(**variable).build())
        number, titles = 0, set()
        for row in self.rows:
            number += 1
            column = 0
            board.with_row(dashboard.Row(row["title"]).id(number))
            for panel in (Panel(**options) for options in row["panels"]):
                if panel.title in titles:
                    raise ValueError(f"{name}: there are two panels {panel.title}")
                titles.add(panel.title)
                if column + panel.width > WIDTH:
                    raise ValueError(f"{name}: {panel.title} is too wide for its line")
                column = (column + panel.width) % WIDTH
                number += 1
                board.with_panel(panel.build(number))
        return board


def dashboards() -> Iterator[tuple[Path, str]]:
    """Give the path and the text of each dashboard."""
    for source in sorted(ROLE.glob("dashboards/*.yml")):
        board = Dashboard(**yaml.safe_load(source.read_text())).build(source.stem).build()
        text = json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True)
        yield ROLE / f"files/grafana/{source.stem}.json", text + "\n"


if __name__ == "__main__":
    sys.exit(written.main(__doc__, dashboards()))

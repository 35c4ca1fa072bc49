"""Kinds of panels, and how a dashboard is laid out: what the four share, over grafana-foundation-sdk.

A dashboard is rows; a row is a title and panels; the panels of a row fill lines of 24 columns without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import prometheus as prometheus_model

COLUMNS = 24
TAG = "edge-attention"
DATASOURCE = model.DataSourceRef("prometheus", "${datasource}")
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"

Panel: TypeAlias = (
    timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel | statetimeline.Panel | bargauge.Panel
)
P = TypeVar(
    "P",
    timeseries.Panel,
    stat.Panel,
    heatmap.Panel,
    table.Panel,
    statetimeline.Panel,
    bargauge.Panel,
)
Steps: TypeAlias = Sequence[tuple[float | None, str]]
"""Colours from a value on; the first value is None: from the start."""

Links: TypeAlias = Sequence[tuple[str, str]]
"""Title and address of what a click on a series or cell leads to."""

TO_NODE: Links = (
    ("This node", "/d/edge-attention-node?var-node=${__field.labels.node}&${__url_time_range}"),
)
TO_RUN: Links = (
    ("This run", "/d/edge-attention-training?var-run=${__field.labels.run}&${__url_time_range}"),
)


@dataclass(frozen=True)
class Query:
    """PromQL, and how its series are called: `{{node}}` stands for a label."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice above the dashboard: the values of `label` among the series of `metric`."""

    name: str
    label: str
    metric: str
    several: bool
    description: str


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    slug: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = field(default=())

    @property
    def uid(self) -> str:
        return f"edge-attention-{self.slug}"


def series(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    span: int = 8,
    height: int = 8,
    stack: bool = False,
    lowest: float | None = 0,
    highest: float | None = None,
    limits: Steps = (),
    log: bool = False,
    steps: bool = False,
    links: Links = (),
) -> timeseries.Panel:
    """Lines over time. `limits` are dashed lines; `log`: what spans decades; `steps`: counts that jump."""
    panel = _common(timeseries.Panel(), title, description, queries, unit, span, height, links)
    panel = (
        panel.legend(_legend())
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_model.TooltipDisplayMode.MULTI)
            .sort(common_model.SortOrder.DESCENDING)
        )
        .line_width(1)
        .fill_opacity(25 if stack else 6)
        .show_points(common_model.VisibilityMode.NEVER)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    )
    if lowest is not None and not log:
        panel = panel.min(lowest)
    if highest is not None:
        panel = panel.max(highest)
    if stack:
        panel = panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if log:
        panel = panel.scale_distribution(
            common.ScaleDistributionConfig().type(common_model.ScaleDistribution.LOG).log(10)
        )
    if steps:
        panel = panel.line_interpolation(common_model.LineInterpolation.STEP_AFTER)
    if limits:
        panel = panel.thresholds(_thresholds(limits)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_model.GraphTresholdsStyleMode.DASHED)
        )
    return panel


def number(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    colours: Steps = ((None, BLUE),),
    span: int = 4,
    height: int = 4,
    empty: str = "none",
    names: bool = False,
    words: dict[str, tuple[str, str]] | None = None,
    links: Links = (),
) -> stat.Panel:
    """The current value, large. `names` shows what the series are called instead; `words` maps values to a
    word and its colour; `empty` is what stands there without data."""
    panel = _common(stat.Panel(), title, description, queries, unit, span, height, links, instant=True)
    panel = (
        panel.graph_mode(common_model.BigValueGraphMode.NONE)
        .color_mode(common_model.BigValueColorMode.VALUE)
        .text_mode(common_model.BigValueTextMode.NAME if names else common_model.BigValueTextMode.AUTO)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .thresholds(_thresholds(colours))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .no_value(empty)
    )
    return panel.mappings(_words(words)) if words else panel


def heat(
    title: str,
    description: str,
    query: Query,
    unit: str,
    span: int = 12,
    height: int = 9,
    scheme: str = "Blues",
) -> heatmap.Panel:
    """A histogram's buckets over time."""
    panel = _common(heatmap.Panel(), title, description, [query], unit, span, height, (), heat=True)
    return (
        panel.calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_model.HeatmapColorMode.SCHEME)
            .scheme(scheme)
            .scale(heatmap_model.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
            .fill("dark-blue")
        )
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common_model.AxisPlacement.LEFT))
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .show_tooltip()
        .show_legend()
    )


def strip(
    title: str,
    description: str,
    query: Query,
    words: dict[str, tuple[str, str]],
    span: int = 12,
    height: int = 8,
    links: Links = (),
) -> statetimeline.Panel:
    """A state over time, a strip a series."""
    panel = _common(statetimeline.Panel(), title, description, [query], "short", span, height, links)
    return (
        panel.mappings(_words(words))
        .merge_values(True)
        .show_value(common_model.VisibilityMode.NEVER)
        .row_height(0.85)
        .fill_opacity(80)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .legend(
            common.VizLegendOptions().show_legend(False).display_mode(common_model.LegendDisplayMode.LIST)
        )
    )


def bars(
    title: str,
    description: str,
    query: Query,
    unit: str,
    colours: Steps,
    span: int = 12,
    height: int = 8,
    lowest: float = 0,
    highest: float | None = None,
    links: Links = (),
) -> bargauge.Panel:
    """The current values side by side, a bar a series."""
    panel = _common(bargauge.Panel(), title, description, [query], unit, span, height, links, instant=True)
    panel = (
        panel.orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .thresholds(_thresholds(colours))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .min(lowest)
        .show_unfilled(True)
    )
    return panel.max(highest) if highest is not None else panel


@dataclass(frozen=True)
class Column:
    """A column of a table: the value of a query with one series a row, or its label `field`."""

    title: str
    expr: str = ""
    field: str = ""
    unit: str = "short"
    colours: Steps = ()
    words: dict[str, tuple[str, str]] | None = None
    link: str = ""


def rows(
    title: str,
    description: str,
    key: str,
    columns: Sequence[Column],
    span: int = 24,
    height: int = 8,
    empty: str = "",
) -> table.Panel:
    """A table with a row for each value of the label `key`. Queries are joined by it; each must keep it."""
    queries = [Query(column.expr) for column in columns if column.expr]
    letters = {query.expr: chr(ord("A") + index) for index, query in enumerate(queries)}
    panel = _common(table.Panel(), title, description, queries, "short", span, height, (), tabular=True)
    # With one query Grafana calls the column Value, with several `Value #A`.
    names = {
        column.title: column.field or (f"Value #{letters[column.expr]}" if len(queries) > 1 else "Value")
        for column in columns
    }
    panel = panel.show_header(True).with_transformation(model.DataTransformerConfig("merge", options={}))
    panel = panel.with_transformation(
        model.DataTransformerConfig(
            "filterFieldsByName", options={"include": {"names": list(names.values())}}
        )
    )
    panel = panel.with_transformation(
        model.DataTransformerConfig(
            "organize",
            options={
                "excludeByName": {},
                "indexByName": {name: index for index, name in enumerate(names.values())},
                "renameByName": {name: title for title, name in names.items()},
            },
        )
    )
    for column in columns:
        properties = [model.DynamicConfigValue("unit", column.unit)]
        if column.colours:
            properties += [
                model.DynamicConfigValue("thresholds", _thresholds(column.colours).build()),
                model.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        if column.words:
            properties += [
                model.DynamicConfigValue("mappings", _words(column.words)),
                model.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        if column.link:
            link = {"title": f"Open this {key}", "url": column.link}
            properties.append(model.DynamicConfigValue("links", [link]))
        panel = panel.override_by_name(column.title, properties)
    return panel.no_value(empty) if empty else panel


def build(board: Board) -> model.Dashboard:
    """The dashboard, laid out.

    Raises:
        ValueError: a line of panels is not 24 columns wide.
    """
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .editable()
        .timezone("browser")
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .timepicker(dashboard.TimePicker().refresh_intervals(["5s", "10s", "30s", "1m", "5m", "15m"]))
        .link(
            dashboard.DashboardLink("Edge Attention")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")
            .current(model.VariableOption(False, "Prometheus", "edge-attention"))
        )
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(DATASOURCE)
            .enable(True)
            .icon_color(RED)
            .expr('ALERTS{alertname=~"Edge.*", alertstate="firing"}')
        )
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    number = 0
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(number := number + 1))
        column = 0
        for panel in row.panels:
            place = panel.build().grid_pos
            assert place is not None
            if column + place.w > COLUMNS:
                raise ValueError(f"{board.slug}: {row.title}: {panel.build().title} is too wide for its line")
            column = (column + place.w) % COLUMNS
            made = made.with_panel(panel.id(number := number + 1))
        if column:
            raise ValueError(f"{board.slug}: {row.title}: the last line is {column} columns wide")
    return made.build()


def _variable(variable: Variable) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(variable.name)
        .label(variable.name.capitalize())
        .description(variable.description)
        .datasource(DATASOURCE)
        .query({"query": f"label_values({variable.metric}, {variable.label})", "refId": variable.name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(variable.several)
        .include_all(variable.several)
    )
    if variable.several:
        made = made.all_value(".*").current(model.VariableOption(True, "All", "$__all"))
    return made


def _common(
    panel: P,
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    span: int,
    height: int,
    links: Links,
    instant: bool = False,
    heat: bool = False,
    tabular: bool = False,
) -> P:
    panel = panel.title(title).description(description).datasource(DATASOURCE).unit(unit)
    panel = panel.span(span).height(height)
    for index, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
        target = target.ref_id(chr(ord("A") + index)).datasource(DATASOURCE)
        target = target.instant() if instant or tabular else target.range()
        if heat:
            target = target.format(prometheus_model.PromQueryFormat.HEATMAP)
        if tabular:
            target = target.format(prometheus_model.PromQueryFormat.TABLE)
        panel = panel.with_target(target)
    if links:
        panel = panel.data_links([dashboard.DashboardLink(title).url(url) for title, url in links])
    return panel


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(common_model.LegendDisplayMode.LIST)
        .placement(common_model.LegendPlacement.BOTTOM)
        .calcs(["lastNotNull"])
    )


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    mode: Literal["absolute"] = "absolute"
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode(mode))
        .steps([model.Threshold(value, colour) for value, colour in steps])
    )


def _words(words: dict[str, tuple[str, str]]) -> list[model.ValueMapping]:
    return [
        model.ValueMap(
            {
                value: model.ValueMappingResult(text=text, color=colour, index=index)
                for index, (value, (text, colour)) in enumerate(words.items())
            }
        )
    ]

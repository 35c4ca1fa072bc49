"""Training: where runs are, whether they learn, what they wait for."""

from __future__ import annotations

from deploy.grafana.layout import (
    GREEN,
    RED,
    TO_RUN,
    YELLOW,
    Board,
    Column,
    Query,
    Row,
    Variable,
    heat,
    number,
    rows,
    series,
)
from deploy.grafana.names import A

RUN = '{run=~"$run"}'
THIS = "/d/edge-attention-training?var-run=${__data.fields.Run}&${__url_time_range}"
WAITS = {"1": ("waits", YELLOW), "0": ("no", GREEN)}

NOW = Row(
    "Now",
    [
        number("Going on", "Runs that train now.", Query(f"sum({A}runs)"), unit="short", span=4, height=4),
        number(
            "Rounds",
            "Committed a minute, over all runs.",
            Query(f"sum(rate({A}rounds_total[$__rate_interval])) * 60"),
            unit="short",
            span=5,
        ),
        number(
            "Nodes that lack for a quorum",
            "Above 0 a run cannot commit its round; after a minute an alert fires.",
            Query(f"sum({A}run_missing_nodes{RUN})"),
            unit="short",
            colours=((None, GREEN), (1, RED)),
            span=5,
        ),
        number(
            "Not finite",
            "Contributions and updates with NaN or infinity in the time shown; all of them were refused.",
            Query(f"sum(increase({A}nonfinite_total[$__range]))"),
            unit="short",
            colours=((None, GREEN), (1, RED)),
            span=5,
        ),
        number(
            "Since the last commit",
            "The longest among the runs chosen.",
            Query(f"max(time() - {A}run_last_commit_timestamp_seconds{RUN})"),
            unit="s",
            span=5,
        ),
        rows(
            "Runs",
            "One row a run; a click on it shows it alone. A run that ended leaves this table after a while.",
            "run",
            [
                Column("Run", field="run", link=THIS),
                Column("Round", f"max by (run) ({A}run_round{RUN})"),
                Column("Version", f"max by (run) ({A}run_version{RUN})"),
                Column("Loss", f"max by (run) ({A}run_loss{RUN})"),
                Column("Waits for a node", f"max by (run) ({A}run_waiting{RUN})", words=WAITS),
                Column(
                    "Lacks for its quorum",
                    f"max by (run) ({A}run_missing_nodes{RUN})",
                    colours=((None, GREEN), (1, RED)),
                ),
                Column(
                    "Since the last commit",
                    f"max by (run) (time() - {A}run_last_commit_timestamp_seconds{RUN})",
                    unit="s",
                ),
            ],
            height=6,
        ),
    ],
)

LEARNS = Row(
    "Does it learn",
    [
        series(
            "Loss",
            "Training loss of the last round, over the nodes that took part.",
            Query(f"max by (run) ({A}run_loss{RUN})", "{{run}}"),
            unit="short",
            span=12,
            height=9,
            lowest=None,
            links=TO_RUN,
        ),
        series(
            "Evaluation",
            "Shares over the held-out rows of all nodes, as `correct`. Empty for jobs without a holdout.",
            Query(f"max by (run, metric) ({A}run_metric{RUN})", "{{run}} {{metric}}"),
            unit="percentunit",
            span=12,
            height=9,
            lowest=None,
            links=TO_RUN,
        ),
        series(
            "Consensus losses",
            "How far nodes are apart on the probe batch; docs/arithmetic.md has the formulas. Empty for jobs "
            "without a probe.",
            Query(f"max by (run, kind) ({A}run_consensus_loss{RUN})", "{{run}} {{kind}}"),
            unit="short",
            log=True,
            links=TO_RUN,
        ),
        heat(
            "Staleness",
            "Versions between the parameters an update was computed on and the current; synchronous: 0.",
            Query(f"sum by (le) (increase({A}update_staleness_versions_bucket[$__rate_interval]))", "{{le}}"),
            unit="short",
            span=8,
            height=8,
            scheme="Oranges",
        ),
        series(
            "Updates",
            "folded; left_out: came too late or failed; refused: quarantined; stale: too old to count.",
            Query(f"sum by (outcome) (rate({A}updates_total[$__rate_interval]))", "{{outcome}}"),
            unit="ops",
            stack=True,
        ),
    ],
)

PACE = Row(
    "How fast",
    [
        series(
            "Seconds of a round",
            "Mean by stage. collect: asking to the last update; fold: with the commit; all. `collect` far "
            "above the time in graphs is the network, or one slow node.",
            Query(
                f"sum by (stage) (rate({A}round_seconds_sum[$__rate_interval]))\n"
                f"  / (sum by (stage) (rate({A}round_seconds_count[$__rate_interval])) > 0)",
                "{{stage}}",
            ),
            Query(
                f'histogram_quantile(0.95, sum by (le) (rate({A}round_seconds_bucket{{stage="all"}}'
                "[$__rate_interval])))",
                "95% of all",
            ),
            unit="s",
        ),
        series(
            "In graphs on nodes",
            "Seconds of a task in its graphs, as nodes report it.",
            Query(
                f"histogram_quantile(0.5, sum by (le) (rate({A}node_run_seconds_bucket[$__rate_interval])))",
                "median",
            ),
            Query(
                f"histogram_quantile(0.95, sum by (le) (rate({A}node_run_seconds_bucket[$__rate_interval])))",
                "95%",
            ),
            unit="s",
        ),
        series(
            "Bytes",
            "Parameters down, updates up, are bulk. docs/encodings.md makes them fewer.",
            Query("sum by (direction, kind) (edge_attention:bytes:rate5m)", "{{direction}} {{kind}}"),
            unit="Bps",
        ),
        series(
            "Round",
            "The round each run is in.",
            Query(f"max by (run) ({A}run_round{RUN})", "{{run}}"),
            unit="short",
            steps=True,
            links=TO_RUN,
        ),
        series(
            "Version",
            "The version each run committed last.",
            Query(f"max by (run) ({A}run_version{RUN})", "{{run}}"),
            unit="short",
            steps=True,
            links=TO_RUN,
        ),
        series(
            "Waits",
            "1 while a run waits for a node, how many nodes lack for its quorum, and how many it leaves out "
            "as their data is other than it began with.",
            Query(f"max by (run) ({A}run_waiting{RUN})", "{{run}} waits"),
            Query(f"max by (run) ({A}run_missing_nodes{RUN})", "{{run}} lacks"),
            Query(f"max by (run) ({A}run_other_data_nodes{RUN})", "{{run}} leaves out"),
            unit="short",
            steps=True,
            links=TO_RUN,
        ),
    ],
)

BOARD = Board(
    "training",
    "Edge Attention: training",
    "Where runs are, whether they learn, what they wait for.",
    [NOW, LEARNS, PACE],
    [
        Variable(
            "run", "run", f"{A}run_version", True, "Runs shown; sums over the fleet are not changed by it."
        )
    ],
)

"""`edge-attention plan`: how a model would be cut over given boxes, without a fleet; or what a job runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import onnx

from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, print_table, require_rich, say
from edge_attention.cli.plan import of_file, print_plan
from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.placement.cuts.boxes import ComputeBox
from edge_attention.core.placement.cuts.choice import FAMILIES, Choice, PlanWanted, PredictedPlan
from edge_attention.core.placement.cuts.plan_toml import dumps_toml
from edge_attention.core.printable import shown
from edge_attention.core.schedule.plan import Crossing
from edge_attention.core.schedule.saved_plan import dumps_plan
from edge_attention.failing import json_option
from edge_attention.graphs.axes.annotation import annotate
from edge_attention.graphs.axes.cut import analyse
from edge_attention.graphs.axes.input_forms import batch_names, size_said
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from edge_attention.graphs.axes.planning import plan_model, reference_slowness
from edge_attention.jobs.boxes_file import TEMPLATE, read_boxes
from edge_attention.options import sizes_said

_EPILOG = """
Examples:

\b
  edge-attention plan --template > boxes.toml
  edge-attention plan model.onnx --boxes boxes.toml --batch 1 --length 128
  edge-attention plan model.onnx --boxes boxes.toml --in-flight 8 --out plan.toml
  edge-attention plan job.toml
"""

_SHOWN = 12
"""Plans of the table; --json has all."""


@click.command(epilog=_EPILOG)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--boxes",
    "boxes_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The boxes that are there, and their links; see --template.",
)
@click.option("--template", is_flag=True, help="Print a file of boxes to start from.")
@click.option("--batch", type=click.IntRange(1), default=1, help="Samples of a request.")
@click.option("--length", type=click.IntRange(1), default=128, help="Tokens of a sample.")
@click.option(
    "--dimensions",
    "given",
    metavar="NAME=SIZE",
    multiple=True,
    help="The size of a dimension that the model leaves open, instead of --batch or --length.",
)
@click.option(
    "--in-flight", type=click.IntRange(1), default=1, help="Requests at a time: 1 for quick answers."
)
@click.option(
    "--plan", "family", type=click.Choice(("auto", *FAMILIES)), default="auto", help="Only plans of a kind."
)
@click.option(
    "--crossing", type=click.Choice([one.value for one in Crossing]), help="How parts by tokens are to meet."
)
@click.option("--halves", is_flag=True, help="Activations travel in float16.")
@click.option(
    "--measure",
    is_flag=True,
    help="Run the model here once, to correct what its operators are taken to cost.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the plan: .toml with its boxes, .json, or .onnx, the model with ONNX's sharding annotation.",
)
@json_option
@click.pass_obj
def plan(
    address: str,
    file: Path | None,
    boxes_file: Path | None,
    template: bool,
    batch: int,
    length: int,
    given: tuple[str, ...],
    in_flight: int,
    family: str,
    crossing: str | None,
    halves: bool,
    measure: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Predict every plan of the ONNX model FILE over the boxes of a file, and pick the best.

    Nothing is asked of a fleet. Where one box is quickest, that is what is picked. FILE may be a job (.toml):
    then it is the same as `train FILE --plan`, which asks the aggregator.
    """
    if template:
        say(*TEMPLATE.splitlines())
        return
    if file is None:
        raise click.UsageError("give the model, or the job: edge-attention plan FILE; or --template")
    if file.suffix == ".toml":
        with connect(address) as client:
            if not print_plan(of_file(client.plan, file), file, as_json):
                raise click.exceptions.Exit(1)
        return
    if boxes_file is None:
        raise click.UsageError(
            "say which boxes there are: --boxes boxes.toml; edge-attention plan --template prints such a file"
        )
    if not as_json:
        require_rich()
    boxes, links = read_boxes(boxes_file)
    wanted = PlanWanted(
        in_flight,
        "" if family == "auto" else family,
        None if crossing is None else Crossing(crossing),
        halves,
    )
    opened = open_model(file)
    sizes = sizes_by_name(_inputs(opened), batch, length, sizes_said(given))
    axes = analyse(opened, sizes)
    if measure:
        slowness = reference_slowness(opened, axes)
        boxes = [replace(box, slowness=slowness) for box in boxes]
        if not as_json:
            say(f"measured here: {slowness:.2f} times what the operators are taken to cost")
    choice = plan_model(opened, axes, boxes, links, wanted)
    if choice.chosen is None:
        raise FailedPrecondition(f"{file}: {choice.says}")
    if out is not None:
        _write(out, choice.chosen, file, axes)
    _print(file, choice, boxes, sizes, as_json)
    if out is not None and not as_json:
        say(f"written to {out}")


def _inputs(opened: OpenModel) -> Mapping[str, Sequence[str]]:
    """By input the names of its open dimensions, in order; of one that is fixed nothing."""
    graph = opened.model.graph
    weights = {tensor.name for tensor in graph.initializer}
    return {
        value.name: [
            "" if dim.HasField("dim_value") else dim.dim_param or f"{value.name}.{axis}"
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        ]
        for value in graph.input
        if value.name not in weights
    }


def sizes_by_name(
    inputs: Mapping[str, Sequence[str]], batch: int, length: int, given: Mapping[str, int]
) -> dict[str, int]:
    """Sizes of the dimensions that inputs leave open: as given, else the first of an input is its batch, if
    it is not called as tokens are, and all others are lengths.

    Raises:
        InvalidArgument: one is given that the model has not.
    """
    found: dict[str, int] = {}
    sums: list[str] = []
    batches = batch_names(inputs.values())
    for one, dims in inputs.items():
        for axis, name in enumerate(dims):
            if "+" in name and name not in given and axis:
                sums.append(name)
            elif name:
                first = name in batches or name == f"{one}.0"
                found.setdefault(name, given.get(name, batch if first else length))
    for name in sums:  # of others, as an exporter calls it
        found[name] = size_said(name, lambda term: given.get(term, found.get(term, length)))
    if unknown := sorted(given.keys() - found.keys()):
        there = ", ".join(map(shown, found)) or "none"
        raise InvalidArgument(
            f"--dimensions {shown(unknown[0])}: the model leaves no such dimension open; it has {there}"
        )
    return found


def _write(out: Path, chosen: PredictedPlan, file: Path, axes: Axes) -> None:
    match out.suffix:
        case ".toml":
            out.write_text(dumps_toml(chosen), "utf-8")
        case ".json":
            out.write_text(dumps_plan(chosen.plan), "utf-8")
        case ".onnx":
            model = onnx.load(file, load_external_data=False)
            elsewhere = out.resolve().parent != file.resolve().parent
            if elsewhere and any(tensor.external_data for tensor in model.graph.initializer):
                raise InvalidArgument(
                    f"{out}: weights of {file.name} are in files beside it; write it there, too"
                )
            out.write_bytes(annotate(model, chosen.plan, axes).SerializeToString())
        case _:
            raise click.BadParameter(
                f"{out}: a plan is written as .toml, .json or .onnx", param_hint="'--out'"
            )


def _print(
    file: Path, choice: Choice, boxes: Sequence[ComputeBox], sizes: Mapping[str, int], as_json: bool
) -> None:
    assert choice.chosen is not None
    if as_json:
        print_json(
            {
                "says": choice.says,
                "dimensions": sizes,
                "chosen": as_data(choice.chosen),
                "one_box": None if choice.one_box is None else as_data(choice.one_box),
                "rejected": [as_data(rejected) for rejected in choice.rejected],
                "refused": choice.refused,
            }
        )
        return
    at = ", ".join(f"{shown(name)} {size:,}" for name, size in sizes.items())
    plans = [choice.chosen, *(p for p in choice.rejected if not p.problem)]
    print_table(
        ("plan", "ms", "requests/s", "trips", "MB a request", "MB on a box"),
        (
            (
                plan.name,
                1e3 * plan.seconds,
                1 / plan.each,
                plan.trips,
                (sum(plan.down.values()) + sum(plan.up.values())) / 1e6,
                max(plan.weights.values(), default=0.0) / 1e6,
            )
            for plan in plans[:_SHOWN]
        ),
        title=f"{file.name} over {len(boxes)} boxes ({at}): predicted, the first is picked",
    )
    if len(plans) > _SHOWN:
        say(f"and {len(plans) - _SHOWN} slower ones, which --json has")
    for name, why in choice.refused.items():
        say(f"not by {name}: {why}")
    for plan in choice.rejected:
        if plan.problem:
            say(f"not {plan.name}: {plan.problem}")
    say(choice.says)
    for box, held in choice.chosen.weights.items():
        parts = [part for part, names in choice.chosen.boxes.items() if box in names]
        say(
            f"  {box}: part {', '.join(map(str, parts))}, {held / 1e6:,.1f} MB of weights, "
            f"{1e3 * choice.chosen.busy[box]:.3g} ms of its time a request"
        )


def as_data(plan: PredictedPlan) -> dict[str, object]:
    """A plan for JSON."""
    return {
        "name": plan.name,
        "seconds": plan.seconds,
        "requests_a_second": 1 / plan.each,
        "trips": plan.trips,
        "boxes": {str(part): list(names) for part, names in plan.boxes.items()},
        "stages": [
            {
                "layers": stage.layers,
                "cut": stage.cut,
                "crossing": stage.crossing,
                "parts": stage.parts,
                "shares": stage.shares,
            }
            for stage in plan.plan.stages
        ],
        "bytes_down": plan.down,
        "bytes_up": plan.up,
        "weights": plan.weights,
        "busy_seconds": plan.busy,
        "problem": plan.problem,
    }

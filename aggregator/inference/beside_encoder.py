"""A decoder beside an encoder: cut by the plan of that one, for the same nodes.

The deployment's model is the encoder, and it is planned, cut and asked as any. Its decoder's files lie beside
it; a session of the deployment begins with what the encoder made of an input (aggregator/inference/decoding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aggregator.inference.decoder_files import JOINED, decoder_model
from aggregator.inference.placement import even_layers
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.inference import ANY_RANK, ModelTensor
from edge_attention.core.schedule.pieces import DecoderForm
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import Schedule
from edge_attention.graphs.axes.folder import CutFolder
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.decoding.cutting import layers_of, write_steps
from edge_attention.graphs.decoding.joining import joined_decoder
from edge_attention.graphs.decoding.rewriting import SteppedModel, as_steps

__all__ = ["require_of_one_model", "write_beside"]

STATES = "float32", "float16"
"""Types of what an encoder makes, as `decoding/encoder_inputs.py` takes it."""


def write_beside(files: list[Path], plan: CutPlan, folder: Path) -> tuple[DecoderForm, OpenModel, Schedule]:
    """Cut the decoder of `files` as the encoder is by `plan`; what it is, its weights, and who needs which.

    Raises:
        EdgeAttentionError: it cannot be served so, and why.
    """
    stepped = as_steps(joined_decoder(files, folder / JOINED))
    form = write_steps(stepped, _plan_beside(plan, stepped), folder)
    path = decoder_model(files[0], folder)
    schedule = CutFolder(path, folder / str(form.rows[0])).schedule()
    return form, stepped.model, schedule


def require_of_one_model(form: DecoderForm, outputs: Sequence[ModelTensor]) -> None:
    """Raises FailedPrecondition where the decoder takes nothing of the `outputs` of the encoder."""
    if not form.states:
        raise FailedPrecondition(
            "the decoder takes nothing that an encoder makes: deploy its file alone, as MODEL"
        )
    of_type = [one.shape for one in outputs if one.data_type.value in STATES]
    widths = [shape[-1] for shape in of_type if len(shape) == 3 or shape == (ANY_RANK,)]
    if not widths:
        raise FailedPrecondition(
            f"the encoder gives no output {' or '.join(STATES)} [batch, tokens, width], as its decoder takes"
        )
    if widths[0].isdigit() and int(widths[0]) != form.states_width:
        raise FailedPrecondition(
            f"what the encoder makes has the width {widths[0]}, and the decoder takes {form.states_width}: "
            "they are not of one model"
        )


def _plan_beside(plan: CutPlan, stepped: SteppedModel) -> CutPlan:
    """As many stages, of about as many bytes each, of the same parts; of one stage the same cut and shares.

    What the encoder's parts share otherwise than by heads or tokens the first part does alone.

    Raises FailedPrecondition: there is no such plan.
    """
    if plan.mean:
        raise FailedPrecondition(
            "by averaging, what the encoder makes is not what its file makes: deploy it by another plan"
        )
    stages = [_stage_beside(stage) for stage in plan.stages]
    parts = [part for stage in stages for part in stage.parts]
    if sorted(parts) != list(range(len(parts))):
        raise FailedPrecondition(
            "by a plan in which a stage by batch comes before others, its decoder would have parts that do "
            "nothing: deploy it by heads, tokens or layers"
        )
    if len(stages) == 1:
        return CutPlan((replace(stages[0], layers=range(_ANY_LAYERS)),), halves=plan.halves)
    rows = even_layers(layers_of(stepped), len(stages))
    kept = zip(stages, rows, strict=False)  # there may be fewer layers than the encoder has stages
    return CutPlan(tuple(replace(stage, layers=row) for stage, row in kept), halves=plan.halves)


_ANY_LAYERS = 1 << 20


def _stage_beside(stage: Stage) -> Stage:
    if stage.cut in (Cut.HEADS, Cut.TOKENS) and len(stage.parts) > 1:
        return Stage(stage.layers, stage.parts, stage.cut, shares=stage.shares)
    return Stage(stage.layers, stage.parts[:1])

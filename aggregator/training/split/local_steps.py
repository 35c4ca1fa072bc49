"""A group's steps of a round: from the version that all began with to what the group has made of it.

They lie in a folder that nothing is durable in: a round that did not come to its end is run again, and comes
to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aggregator.store.tensor_file import TensorFile, TensorFileWriter
from aggregator.training.split.plan import SplitPlan
from aggregator.training.split.versions import Pull, optimizer_at, state_specs, take_step
from edge_attention.core.messages.training import SplitJob
from edge_attention.core.tensors import Float32

__all__ = ["LocalSteps"]


class LocalSteps:
    """Steps of one group from the parameters `began`, with an optimizer whose state begins anew. Calls block.

    Args:
        folder: of this group and round alone.
        proximal: what pulls back to where it began, times the distance.

    Attributes:
        parameters: as the last step left them.
    """

    def __init__(
        self, folder: Path, job: SplitJob, plan: SplitPlan, began: TensorFile, proximal: float
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.parameters = began
        self._folder = folder
        self._job = job
        self._plan = plan
        self._state: TensorFile | None = None
        self._pull = Pull(proximal, began) if proximal else None
        self._count = 0

    def step(self, number: int, gradients: Sequence[Float32]) -> None:
        """Take the next one. `number`: which of all the run's it is, for the learning rate.

        Raises:
            NotANumber: the step overflows; names the parameter.
        """
        self._count += 1
        optimizer, plan = optimizer_at(self._job, number), self._plan
        parameters = {f"p/{i}": (np.dtype(np.float32), shape) for i, shape in enumerate(plan.shapes)}
        state = state_specs(plan, optimizer)
        new = TensorFileWriter(self._folder / "parameters.safetensors", parameters, {})
        kept: TensorFileWriter | None = None
        try:
            kept = TensorFileWriter(self._folder / "state.safetensors", state, {}) if state else None
            take_step(
                optimizer, self._count, plan, self.parameters, self._state, gradients, new, kept, self._pull
            )
            for writer in (new, kept):
                if writer is not None:
                    writer.finish(durable=False)
        except BaseException:
            for writer in (new, kept):
                if writer is not None:
                    writer.abort()
            raise
        # Those of before stay readable without their names.
        self.parameters = TensorFile(new.path)
        self._state = TensorFile(kept.path) if kept is not None else None

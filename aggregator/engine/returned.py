"""What a node has returned of a shard: arrays in memory, and large tensors as files of the spool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aggregator.engine.spool import SpooledTensor
from edge_attention.core.tensors import Array

ReturnedTensor = Array | SpooledTensor


@dataclass(frozen=True, eq=False)
class Returned:
    """What `node` has returned of `shard`: one message of its task, or all of them as one answer.

    Whoever holds it last calls `close`: until then its large tensors take room on the disk.

    Attributes:
        coverage: the range of the whole that the shard stands for.
        tensors: by name; `array` reads one whether it lies in memory or on the disk.
        number: which message of its task it is, from 0; of a whole answer that of its last message.
        final: whether it is the last message of its task.
    """

    shard: str
    node: str
    coverage: range
    tensors: Mapping[str, ReturnedTensor]
    number: int = 0
    final: bool = True

    def array(self, name: str) -> Array:
        """The tensor `name` as an array. One that lies on the disk is read, which blocks.

        Raises:
            KeyError: it was not returned.
        """
        tensor = self.tensors[name]
        return tensor.array() if isinstance(tensor, SpooledTensor) else tensor

    def close(self) -> None:
        """Remove the files of its large tensors. Calling it again does nothing."""
        close(self.tensors)


def close(tensors: Mapping[str, ReturnedTensor]) -> None:
    """Remove the files of those of `tensors` that lie on the disk."""
    for tensor in tensors.values():
        if isinstance(tensor, SpooledTensor):
            tensor.close()

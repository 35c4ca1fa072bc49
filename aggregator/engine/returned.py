"""What nodes have returned: arrays, and what is large as it lies on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aggregator.engine.spool import SpooledTensor
from edge_attention.core.tensors import Array

ReturnedTensor = Array | SpooledTensor


@dataclass(frozen=True, eq=False)
class Returned:
    """What `node` has returned of a shard: one message of it, or all.

    Whose it is closes it: what lies on the disk stays there until then.

    Attributes:
        number, final: which message of its task it is, and whether the last.
    """

    shard: str
    node: str
    coverage: range
    tensors: Mapping[str, ReturnedTensor]
    number: int = 0
    final: bool = True

    def array(self, name: str) -> Array:
        """A tensor in memory; one on the disk is read, which blocks."""
        tensor = self.tensors[name]
        return tensor.array() if isinstance(tensor, SpooledTensor) else tensor

    def close(self) -> None:
        """Free what lies on the disk. Twice is once."""
        close(self.tensors)


def close(tensors: Mapping[str, ReturnedTensor]) -> None:
    """Free what of `tensors` lies on the disk."""
    for tensor in tensors.values():
        if isinstance(tensor, SpooledTensor):
            tensor.close()

"""What goes down with a program: parameters of a version, from the file they are committed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from aggregator.engine.bulk import INLINE_LIMIT, Bulk
from aggregator.store.tensor_file import TensorFile
from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.tensors import Array, DataType, Encoding


@dataclass(frozen=True, eq=False)
class Push:
    """Tensors for a program's node: small ones in the message, the others lent for download."""

    inline: Mapping[str, Array] = field(default_factory=dict)
    bulk: tuple[BulkTensor, ...] = ()

    def __add__(self, other: Push) -> Push:
        return Push({**self.inline, **other.inline}, self.bulk + other.bulk)


@contextmanager
def lent(bulk: Bulk, file: TensorFile, names: Mapping[str, str], share: int = 1) -> Iterator[Push]:
    """Tensors of `file` under other names (`names`: name in the file -> on the node), lent meanwhile.

    `share`: how many such pushes go into one program; together they fit a message.
    """
    inline: dict[str, Array] = {}
    large: list[BulkTensor] = []
    size, specs = 0, file.specs
    try:
        for name, target in names.items():
            dtype, shape = specs[name]
            path, offset, nbytes = file.location(name)
            size += nbytes
            if size <= INLINE_LIMIT // (2 * share):  # the other half is for rows and the rest
                inline[target] = file.kept(name)
                continue
            size -= nbytes
            digest = file.digest(name)
            bulk.lend_file(digest, path, offset, nbytes)
            large.append(BulkTensor(target, DataType.of(dtype), shape, Encoding.RAW, digest, nbytes))
        yield Push(inline, tuple(large))
    finally:
        for tensor in large:
            bulk.take_back(tensor.digest)


def renamed(count: int, prefix: str, target: Callable[[int], str]) -> dict[str, str]:
    """`<prefix>/<i>` -> target(i) for all parameters."""
    return {f"{prefix}/{index}": target(index) for index in range(count)}

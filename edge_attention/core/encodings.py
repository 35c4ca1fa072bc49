"""How the tensors of an update travel: whole, in half precision, as 8-bit integers, or the largest alone.

An update has one float32 tensor a parameter. The node's side is a graph (`graphs/steps/update.py`); here are
the names and shapes of what it returns, and the way back, for any range of a parameter's elements, so that an
update that lies on a disk is folded without ever being whole in memory. `encode_array` does in NumPy what
the graph does, to the bit; it makes the differences that bring nodes from one version to the next.

`int8` and `topk` lose much at once, so by default they keep an account of it: *error feedback* (Seide et
al., 2014; Karimireddy et al., arXiv:1901.09847) adds to an update what its predecessors lost.

To add an encoding: a frozen dataclass here, and its graph there.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.halves import from_wire, to_wire
from edge_attention.core.options import COUNT, POSITIVE, SWITCH, Configured, configure, find, option
from edge_attention.core.tensors import Array, Encoding, Float32

__all__ = [
    "BFloat16",
    "Float16",
    "Int8",
    "Plain",
    "TopK",
    "UpdateEncoding",
    "from_config",
]

Read = Callable[[str, int, int], Array]
"""`read(name, start, stop)`: flat elements start..stop of a tensor that was returned."""

Shape = tuple[int, ...]
LEVELS = 127
"""Steps of int8 on each side of zero: -128 is not used."""
MAX_BLOCK = 1 << 20
_INT8, _INT32, _FLOAT32 = np.dtype(np.int8), np.dtype(np.int32), np.dtype(np.float32)
_BY_NAME: dict[str, type[UpdateEncoding]] = {}


@lru_cache(4096)
def _names(what: str, index: int, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{what}/{index}{suffix}" for suffix in suffixes)


@dataclass(frozen=True)
class UpdateEncoding(Configured, ABC):
    """One way for float32 tensors to travel. `what` is how they are called, as `update` in `update/3/q`."""

    kind: ClassVar[str] = "encoding"
    wire: ClassVar[Encoding] = Encoding.RAW  # of every tensor returned
    suffixes: ClassVar[tuple[str, ...]] = ("",)  # of the tensors that stand for one parameter

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            _BY_NAME[cls.name] = cls

    @property
    def feedback(self) -> bool:
        """Whether the node keeps what an update lost, and adds it to the next."""
        return False

    @property
    def options(self) -> dict[str, Any]:
        """All options, written out; `from_config(name, **options)` gives the same encoding."""
        return dataclasses.asdict(self)

    def parts(self, index: int, what: str = "update") -> tuple[str, ...]:
        """Names of the tensors that stand for parameter `index`."""
        return _names(what, index, self.suffixes)

    def specs(self, index: int, shape: Shape, what: str = "update") -> dict[str, tuple[np.dtype[Any], Shape]]:
        """dtype (after the wire) and shape of each of `parts`, for a parameter of `shape`."""
        return dict(zip(self.parts(index, what), self._specs(shape), strict=True))

    def decode(
        self, index: int, shape: Shape, read: Read, start: int, stop: int, what: str = "update"
    ) -> Float32:
        """Flat elements start..stop of parameter `index`, float32 [stop - start].

        What `read` returns has the dtype of `specs`. Numbers that are not finite come through.

        Raises:
            InvalidTensor: the tensors contradict themselves.
        """
        return self._decode(self.parts(index, what), math.prod(shape), read, start, stop)

    def encode_array(self, index: int, array: Float32, what: str = "update") -> dict[str, Array]:
        """The tensors of `parts` for `array`, which is finite, as they arrive after the wire."""
        return dict(zip(self.parts(index, what), self._encode(array), strict=True))

    def decode_array(
        self, index: int, shape: Shape, tensors: Mapping[str, Array], what: str = "update"
    ) -> Float32:
        """The whole parameter `index`, float32 of `shape`; `tensors` as `encode_array` made them."""

        def read(name: str, start: int, stop: int) -> Array:
            return tensors[name].reshape(-1)[start:stop]

        return self.decode(index, shape, read, 0, math.prod(shape), what).reshape(shape)

    @abstractmethod
    def _specs(self, shape: Shape) -> tuple[tuple[np.dtype[Any], Shape], ...]: ...

    @abstractmethod
    def _decode(self, parts: tuple[str, ...], size: int, read: Read, start: int, stop: int) -> Float32: ...

    @abstractmethod
    def _encode(self, array: Float32) -> tuple[Array, ...]: ...


@dataclass(frozen=True)
class Plain(UpdateEncoding):
    """Element by element, in float32."""

    name: ClassVar[str] = "float32"

    def _specs(self, shape: Shape) -> tuple[tuple[np.dtype[Any], Shape], ...]:
        return ((_FLOAT32, shape),)

    def _decode(self, parts: tuple[str, ...], size: int, read: Read, start: int, stop: int) -> Float32:
        return np.asarray(read(parts[0], start, stop), np.float32)

    def _encode(self, array: Float32) -> tuple[Array, ...]:
        return (from_wire(to_wire(array, self.wire), self.wire),)


@dataclass(frozen=True)
class Float16(Plain):
    """Element by element, rounded to IEEE half precision on the wire; beyond 65,504 it is infinite."""

    name: ClassVar[str] = "float16"
    wire: ClassVar[Encoding] = Encoding.FLOAT16


@dataclass(frozen=True)
class BFloat16(Plain):
    """Element by element, rounded to bfloat16 on the wire: float32's range, 8 significant bits."""

    name: ClassVar[str] = "bfloat16"
    wire: ClassVar[Encoding] = Encoding.BFLOAT16


@dataclass(frozen=True)
class Int8(UpdateEncoding):
    """Blocks of `block` elements, each with a scale: `x = q * scale`, `scale = max |x| / 127`.

    `/q` int8 [blocks * block], flat, zeros at the end; `/scale` float32 [blocks]. Block-wise absmax
    quantization as Dettmers et al. (arXiv:2110.02861) have it, with linear steps, ties to even.
    """

    name: ClassVar[str] = "int8"
    suffixes: ClassVar[tuple[str, ...]] = ("/q", "/scale")
    block: int = option(256, COUNT)
    feedback: bool = option(True, SWITCH)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block > MAX_BLOCK:  # a parameter is padded to whole blocks
            raise InvalidArgument(
                f"option block of encoding int8 is {self.block}; it must be {MAX_BLOCK} at most"
            )

    def blocks(self, size: int) -> int:
        """How many blocks a parameter of `size` elements has."""
        return -(-size // self.block)

    def _specs(self, shape: Shape) -> tuple[tuple[np.dtype[Any], Shape], ...]:
        blocks = self.blocks(math.prod(shape))
        return (_INT8, (blocks * self.block,)), (_FLOAT32, (blocks,))

    def _decode(self, parts: tuple[str, ...], size: int, read: Read, start: int, stop: int) -> Float32:
        quantized, scale = parts
        first, last = start // self.block, self.blocks(stop)
        q = read(quantized, start, stop).astype(np.float32)
        scales = np.repeat(read(scale, first, last), self.block)
        offset = start - first * self.block
        q *= scales[offset : offset + len(q)]
        return q

    def _encode(self, array: Float32) -> tuple[Array, ...]:
        blocks = self.blocks(array.size)
        padded = np.zeros((blocks, self.block), np.float32)
        padded.reshape(-1)[: array.size] = array.reshape(-1)
        scale = np.abs(padded).max(axis=1, initial=0) / np.float32(LEVELS)
        # A block of zeros, or of numbers so small that the scale is zero, is divided by 1.
        padded /= np.where(scale > 0, scale, np.float32(1))[:, None]
        q = np.clip(np.rint(padded), -LEVELS, LEVELS).astype(np.int8)
        return q.reshape(-1), scale


@dataclass(frozen=True)
class TopK(UpdateEncoding):
    """The `fraction` of a parameter's elements that are largest in magnitude; the others are zero.

    `/indices` int32 [k], flat and increasing; `/values` float32 [k]. Of equal magnitudes the first is
    taken (Aji and Heafield, arXiv:1704.05021).
    """

    name: ClassVar[str] = "topk"
    suffixes: ClassVar[tuple[str, ...]] = ("/indices", "/values")
    fraction: float = option(0.01, POSITIVE)
    feedback: bool = option(True, SWITCH)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fraction > 1:
            raise InvalidArgument(
                f"option fraction of encoding topk is {self.fraction}; it must be 1 at most"
            )

    def kept(self, size: int) -> int:
        """k, how many of `size` elements travel: the fraction rounded up, one at least."""
        # 0.1 * 30 is a little more than 3 in floating point, and 3 is meant.
        return min(size, max(1, math.ceil(round(self.fraction * size, 6))))

    def _specs(self, shape: Shape) -> tuple[tuple[np.dtype[Any], Shape], ...]:
        k = self.kept(math.prod(shape))
        return (_INT32, (k,)), (_FLOAT32, (k,))

    def _decode(self, parts: tuple[str, ...], size: int, read: Read, start: int, stop: int) -> Float32:
        indices, values = parts
        k = self.kept(size)
        low = _search(indices, read, k, start) if start else 0
        high = max(low, _search(indices, read, k, stop) if stop < size else k)
        at = read(indices, low, high)
        inside = not len(at) or (at[0] >= start and at[-1] < stop)
        if not inside or (at[1:] <= at[:-1]).any():
            raise InvalidTensor(f"{indices} must increase from 0 or more to below {size}")
        decoded = np.zeros(stop - start, np.float32)
        decoded[at - start] = read(values, low, high)
        return decoded

    def _encode(self, array: Float32) -> tuple[Array, ...]:
        flat = array.reshape(-1)
        k = self.kept(flat.size)
        magnitude = np.abs(flat)
        if not k:
            chosen = np.zeros(0, np.int64)
        else:
            least = np.partition(magnitude, flat.size - k)[flat.size - k]
            taken = magnitude > least
            ties = np.flatnonzero(magnitude == least)[: k - np.count_nonzero(taken)]
            taken[ties] = True
            chosen = np.flatnonzero(taken)
        return chosen.astype(np.int32), flat[chosen]


def from_config(name: str, /, **options: float | bool) -> UpdateEncoding:
    """The encoding `name` with these options, the others at their defaults.

    Raises:
        InvalidArgument: a name or an option that does not exist (those that do are listed), or a value
            out of range.
    """
    return configure(find(_BY_NAME, UpdateEncoding.kind, name), options)


def _search(name: str, read: Read, count: int, value: int) -> int:
    """Where in the increasing tensor `name` of `count` elements the first one of `value` or more is."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if read(name, middle, middle + 1)[0] < value:
            low = middle + 1
        else:
            high = middle
    return low

"""What a session's encoder is asked: its inputs of one row, from what a caller gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_attention.core.errors import FailedPrecondition, InvalidTensor
from edge_attention.core.messages.inference import ModelTensor
from edge_attention.core.tensors import Array, Float32

__all__ = ["EncoderFeeds", "encoder_feeds", "states_of"]

_LEAST, _STEPS = 16, 512
"""Tokens of a text are padded to a power of two from the first on, and beyond the second to a multiple of it:
so that an encoder is cut for few lengths."""


@dataclass(frozen=True, eq=False)
class EncoderFeeds:
    """An encoder's inputs. `tokens`: how many there are without padding; None: nothing is padded."""

    arrays: Mapping[str, Array]
    tokens: int | None = None


def encoder_feeds(
    inputs: Sequence[ModelTensor], given: Mapping[str, Array], ids: Sequence[int], padded: bool
) -> EncoderFeeds:
    """The encoder's inputs.

    Args:
        inputs: that it takes.
        given: by name; the first axis may be left out.
        ids: tokens, where nothing is given.
        padded: whether a text may be padded, where the encoder takes a mask.

    Raises:
        FailedPrecondition: it takes no tokens, and an array is to be given.
        InvalidTensor: what was given is not what it takes.
    """
    named = {one.name: one for one in inputs}
    if unknown := sorted(given.keys() - named.keys()):
        raise InvalidTensor(f"the encoder has no input {unknown[0][:80]!r}; it takes {', '.join(named)}")
    masks = [one.name for one in inputs if "mask" in one.name and len(one.shape) == 2]
    whole = [one.name for one in inputs if one.name not in masks and one.data_type.value.startswith("int")]
    found = {name: _fitted(named[name], np.asarray(array)) for name, array in given.items()}
    if not given:
        if len(whole) != 1 or len(whole) + len(masks) != len(inputs):
            raise FailedPrecondition(
                f"the model begins with {', '.join(name for name in named if name not in masks)[:160]}: give "
                "inputs={name: array}, and as the prompt, if any, the decoder's first tokens"
            )
        found[whole[0]] = np.array([ids], named[whole[0]].data_type.value)
    if lacking := [name for name in named if name not in found and name not in masks]:
        raise InvalidTensor(f"input {lacking[0]!r} of the encoder lacks; it takes {', '.join(named)}")
    of_text = [name for name in whole if found[name].ndim == 2]
    for name in masks:
        if name in found and not (found[name] == 1).all():
            raise InvalidTensor(
                f"input {name!r} hides tokens: a session is one sequence; give it without padding"
            )
        if name not in found:
            if not of_text:
                raise InvalidTensor(f"input {name!r} of the encoder lacks; give ones")
            found[name] = np.ones(found[of_text[0]].shape, named[name].data_type.value)
    if not (padded and masks and of_text and len(found) == len(masks) + 1):
        return EncoderFeeds(found)
    tokens = found[of_text[0]].shape[1]
    more = _padded_to(tokens) - tokens
    if more == 0 or any(named[name].shape[1].isdigit() for name in found):
        return EncoderFeeds(found)
    # Ones where there are tokens, zeros behind them; what stands behind them is not looked at.
    return EncoderFeeds({name: np.pad(array, ((0, 0), (0, more))) for name, array in found.items()}, tokens)


def states_of(results: Mapping[str, Array], tokens: int | None) -> Float32:
    """What the encoder made of one row, float32 [tokens, width]: its first output of three dimensions,
    float32 or float16.

    Raises:
        FailedPrecondition: it has none.
    """
    for array in results.values():
        if array.ndim == 3 and array.dtype in (np.float32, np.float16) and array.shape[0] == 1:
            return np.array(array[0, :tokens], np.float32)
    raise FailedPrecondition("the encoder gives no output float32 or float16 [batch, tokens, width]")


def _padded_to(tokens: int) -> int:
    if tokens > _STEPS:
        return -(-tokens // _STEPS) * _STEPS
    size = _LEAST
    while size < tokens:
        size *= 2
    return size


def _fitted(wanted: ModelTensor, array: Array) -> Array:
    """The array with the batch's axis, of the type and sizes that are wanted."""
    if array.ndim == len(wanted.shape) - 1:
        array = array[None]
    fits = array.ndim == len(wanted.shape) and all(
        not want.isdigit() or int(want) == have for want, have in zip(wanted.shape, array.shape, strict=True)
    )
    if not fits or array.shape[0] != 1 or 0 in array.shape:
        raise InvalidTensor(
            f"input {wanted.name!r} of the encoder is {list(array.shape)}; it takes one row of "
            f"[{', '.join(wanted.shape)}]"
        )
    if array.dtype != wanted.data_type.value:
        kinds = array.dtype.kind + np.dtype(wanted.data_type.value).kind
        if kinds not in ("ff", "ii"):
            raise InvalidTensor(
                f"input {wanted.name!r} of the encoder is {array.dtype.name}; it takes "
                f"{wanted.data_type.value}"
            )
        given, array = array, array.astype(wanted.data_type.value)
        if kinds == "ii" and not np.array_equal(given, array):
            raise InvalidTensor(
                f"input {wanted.name!r} of the encoder has numbers that {wanted.data_type.value}, which it "
                "takes, does not hold"
            )
    return np.ascontiguousarray(array)

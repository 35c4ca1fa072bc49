"""An ensemble as people write it: a file in TOML (docs/ensembles.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

import numpy as np

from edge_attention.core.ensembles.ensemble import Absent, EnsembleMember, EnsembleSpec, How
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.core.tensors import Float32
from edge_attention.core.toml_text import read_toml_text

__all__ = ["ENSEMBLE_BYTES", "MAX_MEMBERS", "read_ensemble"]

ENSEMBLE_BYTES = 1024 * 1024
"""Of a file."""
MAX_MEMBERS = 32
MAX_SECONDS = 3600.0

_KEYS = {
    "output": str,
    "how": str,
    "seconds": float,
    "needs": list,
    "axis": int,
    "absent": str,
    "queries": (str, list),
    "scale": float,
    "head": str,
    "member": list,
}
_MEMBER_KEYS = {
    "name": str,
    "model": str,
    "version": str,
    "inputs": dict,
    "output": str,
    "keys": str,
    "values": str,
    "weight": float,
}


def read_ensemble(text: str | bytes) -> EnsembleSpec:
    """The ensemble of a file's text.

    Raises:
        InvalidArgument: it is too large, no TOML, or says what cannot be; names the place.
    """
    if len(text) > ENSEMBLE_BYTES:
        raise InvalidArgument(
            f"bound ENSEMBLE_BYTES: the file has {len(text):,} bytes, {ENSEMBLE_BYTES:,} at most"
        )
    said = "the ensemble's file is no TOML"
    try:
        written = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{said}: {error}") from None
    data = read_toml_text(written, said)
    _known("the ensemble", data, _KEYS)
    members = data.get("member", [])
    if len(members) > MAX_MEMBERS:
        raise InvalidArgument(f"bound MAX_MEMBERS: {len(members)} members, {MAX_MEMBERS} at most")
    more: dict[str, Any] = {key: data[key] for key in ("axis", "head") if key in data}
    if "output" in data:
        more["output"] = _text("output", data["output"])
    if "absent" in data:
        more["absent"] = _choice(Absent, data["absent"], "absent")
    if "seconds" in data:
        more["seconds"] = _number("seconds", data["seconds"], 0.0, MAX_SECONDS)
    if "scale" in data:
        more["scale"] = _number("scale", data["scale"], 0.0, 1e6)
    if "needs" in data:
        more["needs"] = frozenset(_text("needs", name) for name in data["needs"])
    if "queries" in data:
        given = data["queries"]
        more["queries"] = given if isinstance(given, str) else _numbers(given)
    made = EnsembleSpec(
        tuple(_member(number, one) for number, one in enumerate(members, 1)),
        _choice(How, data.get("how", How.MEAN.value), "how"),
        **more,
    )
    made.check()
    return made


def _member(number: int, data: Any) -> EnsembleMember:
    where = f"member {number}"
    if not isinstance(data, dict):
        raise InvalidArgument(f"{where} is no table: write [[member]]")
    _known(where, data, _MEMBER_KEYS)
    model = _text(f"{where}: model", data.get("model"))
    more = {key: data[key] for key in ("version", "output") if key in data}
    more |= {key: _text(f"{where}: {key}", data[key]) for key in ("keys", "values") if key in data}
    inputs = {name: _text(f"{where}: inputs: {name}", to) for name, to in data.get("inputs", {}).items()}
    weight = _number(f"{where}: weight", data.get("weight", 1.0), 0.0, 1e9, zero=True)
    name = _text(f"{where}: name", data.get("name", model))
    return EnsembleMember(name, model, inputs=inputs, weight=weight, **more)


def _known(where: str, data: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    for key, value in data.items():
        if key not in keys:
            raise InvalidArgument(f"{where} has no {shown(key, 40)!r}: there are {', '.join(keys)}")
        kind = (int, float) if keys[key] is float else keys[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and keys[key] is not bool):
            raise InvalidArgument(f"{where}: {key} is a {type(value).__name__}, which it cannot be")


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 256 or not value.isprintable():
        raise InvalidArgument(f"{where} must be a name of 1 to 256 letters")
    return value


def _number(where: str, value: Any, least: float, most: float, *, zero: bool = False) -> float:
    if not (math.isfinite(value) and least <= value <= most and (zero or value > least)):
        raise InvalidArgument(f"{where} is {value:g}; it must be above {least:g} and at most {most:g}")
    return float(value)


E = TypeVar("E", bound=Enum)


def _choice(cls: type[E], value: Any, key: str) -> E:
    try:
        return cls(value)
    except ValueError:
        known = ", ".join(str(one.value) for one in cls)
        raise InvalidArgument(f"{key} is {shown(str(value), 40)!r}; it must be one of {known}") from None


def _numbers(given: Any) -> Float32:
    try:
        array = np.array(given, np.float32)
    except (ValueError, TypeError, OverflowError):
        array = np.zeros(0, np.float32)
    if array.ndim != 3 or not array.size or not np.isfinite(array).all():
        raise InvalidArgument(
            "queries must be finite numbers [queries, heads, dim], lists in lists in a list"
        )
    return array

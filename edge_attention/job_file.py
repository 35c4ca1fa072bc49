"""A fusion job as a TOML file, whose format is in docs/client.md. Keys are called as the fields are."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from edge_attention.array_files import load_npy
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.jobs import MissingSamples, OptimizerSpec
from edge_attention.core.tensors import Array
from edge_attention.job import Encoder, FusionJob, Head, QueriesSpec

__all__ = ["read"]

T = TypeVar("T")


def read(path: Path) -> FusionJob:
    """The job of the file at `path`; see `FusionJob.from_toml`."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{path}, byte {error.start}: it is not UTF-8, which TOML must be; save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{path} is not TOML: {error}") from None
    table = _Table(path, "", content, _names(FusionJob))
    encoders = tuple(
        Encoder(**_part(_Table(path, "encoders", part, _names(Encoder))))
        for part in table.take("encoders", list)
    )
    head_table = _Table(path, "head", table.take("head", dict), _names(Head))
    metrics = head_table.strings("metrics")
    missing = table.take("missing", str, MissingSamples.LEAVE_OUT.value)
    if missing not in {member.value for member in MissingSamples}:
        raise InvalidArgument(f"{path}: missing is {missing!r}; it must be 'leave_out' or 'attend'")
    given = table.take("queries", dict)
    queries = _Table(path, "queries", given, {"file"} if "file" in given else _names(QueriesSpec) | {"file"})
    optimizer = _Table(path, "optimizer", table.take("optimizer", dict), None)
    return FusionJob(
        name=table.take("name", str, path.stem),
        encoders=encoders,
        head=Head(**_part(head_table), metrics=metrics),
        queries=_queries(queries),
        optimizer=OptimizerSpec(optimizer.take("name", str), optimizer.numbers()),
        rounds=table.take("rounds", int),
        batch=table.take("batch", int),
        seed=table.take("seed", int, 0),
        scale=table.optional_number("scale"),
        missing=MissingSamples(missing),
        holdout=table.optional_number("holdout") or 0.0,
        evaluate_every=table.take("evaluate_every", int, 0),
        patience_seconds=table.optional_number("patience_seconds"),
    )


def _names(cls: type[Any]) -> set[str]:
    return {field.name for field in fields(cls)}


class _Table:
    """A TOML table from which keys are taken one by one; a key that is not `known` is refused at once."""

    def __init__(self, file: Path, where: str, values: Any, known: set[str] | None) -> None:
        if not isinstance(values, dict):
            raise InvalidArgument(f"{file}: {where} must be a table")
        self.file, self._where, self._values = file, where, dict(values)
        if known is not None and (unknown := sorted(self._values.keys() - known)):
            near = get_close_matches(unknown[0], known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise InvalidArgument(f"{file}: the key {self.name(unknown[0])!r} is unknown; {hint}")

    def name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key`, which must be of `kind`; without a default it must be there."""
        if key not in self._values and default is not None:
            return default
        if key not in self._values:
            raise InvalidArgument(f"{self.file}: the key {self.name(key)!r} is missing")
        value = self._values.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InvalidArgument(f"{self.file}: {self.name(key)} is {value!r}; it must be {_KINDS[kind]}")
        return value

    def optional_number(self, key: str) -> float | None:
        if key not in self._values:
            return None
        value = self._values.pop(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidArgument(f"{self.file}: {self.name(key)} is {value!r}; it must be a number")
        return float(value)

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise InvalidArgument(f"{self.file}: {self.name(key)} must hold strings")
        return tuple(values)

    def numbers(self) -> dict[str, float]:
        """All that remains, as numbers by name."""
        return {key: self.optional_number(key) or 0.0 for key in list(self._values)}

    def path(self, key: str) -> Path:
        return self.file.parent / self.take(key, str)

    def has(self, key: str) -> bool:
        return key in self._values


_KINDS: dict[type, str] = {str: "a string", int: "a whole number", list: "a list", dict: "a table"}


def _part(table: _Table) -> dict[str, Any]:
    inputs = table.take("inputs", dict)
    for name, column in inputs.items():
        if not isinstance(column, str):
            raise InvalidArgument(f"{table.file}: {table.name('inputs')}.{name} must name a column")
    return {
        "node": table.take("node", str),
        "dataset": table.take("dataset", str),
        "model": table.path("model"),
        "inputs": inputs,
        "trainable": table.strings("trainable") if table.has("trainable") else None,
    }


def _queries(table: _Table) -> Array | QueriesSpec:
    if table.has("file"):
        return load_npy(table.path("file"))
    sizes = {key: table.take(key, int) for key in ("count", "heads", "dim")}
    return QueriesSpec(**sizes, seed=table.take("seed", int, 0))

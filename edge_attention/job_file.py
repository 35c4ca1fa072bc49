"""A fusion job as a TOML file, whose format is in docs/client.md. A new key is taken in `read`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.jobs import MissingSamples, OptimizerSpec
from edge_attention.core.tensors import Array
from edge_attention.job import Encoder, FusionJob, Head, QueriesSpec

__all__ = ["load_array", "read"]

T = TypeVar("T")


def read(path: Path) -> FusionJob:
    """The job of the file at `path`; see `FusionJob.from_toml`."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} is not TOML: {error}") from None
    table = _Table(path, "", content)
    encoders = tuple(
        Encoder(**_part(part)) for part in (table.table(i, "encoders") for i in table.tables("encoders"))
    )
    head_table = table.table(table.take("head", dict), "head")
    metrics = head_table.strings("metrics")
    missing = table.take("missing", str, MissingSamples.LEAVE_OUT.value)
    if missing not in {member.value for member in MissingSamples}:
        raise InvalidArgument(f"{path}: missing is {missing!r}; it must be 'leave_out' or 'attend'")
    job = FusionJob(
        name=table.take("name", str, path.stem),
        encoders=encoders,
        head=Head(**_part(head_table), metrics=metrics),
        queries=_queries(table.table(table.take("queries", dict), "queries")),
        optimizer=_optimizer(table.table(table.take("optimizer", dict), "optimizer")),
        rounds=table.take("rounds", int),
        batch=table.take("batch", int),
        seed=table.take("seed", int, 0),
        scale=table.optional_number("scale"),
        missing=MissingSamples(missing),
        holdout=table.optional_number("holdout") or 0.0,
        evaluate_every=table.take("evaluate_every", int, 0),
        patience_seconds=table.optional_number("patience_seconds"),
    )
    table.end()
    return job


class _Table:
    """A TOML table from which keys are taken one by one; what remains at the end is unknown."""

    def __init__(self, file: Path, where: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise InvalidArgument(f"{file}: {where} must be a table")
        self.file, self._where, self._values = file, where, dict(values)

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

    def tables(self, key: str) -> list[Any]:
        return self.take(key, list)

    def table(self, values: Any, where: str) -> _Table:
        return _Table(self.file, where, values)

    def numbers(self) -> dict[str, float]:
        """All that remains, as numbers by name."""
        return {key: self.optional_number(key) or 0.0 for key in list(self._values)}

    def path(self, key: str) -> Path:
        return self.file.parent / self.take(key, str)

    def has(self, key: str) -> bool:
        return key in self._values

    def end(self) -> None:
        """Refuse what was not taken."""
        if self._values:
            key = self.name(next(iter(self._values)))
            raise InvalidArgument(
                f"{self.file}: the key {key!r} is unknown; see docs/client.md for the format"
            )


_KINDS: dict[type, str] = {str: "a string", int: "a whole number", list: "a list", dict: "a table"}


def _part(table: _Table) -> dict[str, Any]:
    inputs = table.take("inputs", dict)
    for name, column in inputs.items():
        if not isinstance(column, str):
            raise InvalidArgument(f"{table.file}: {table.name('inputs')}.{name} must name a column")
    part = {
        "node": table.take("node", str),
        "dataset": table.take("dataset", str),
        "model": table.path("model"),
        "inputs": inputs,
        "trainable": table.strings("trainable"),
    }
    # A head's metrics were taken before.
    table.end()
    return part


def _queries(table: _Table) -> Array | QueriesSpec:
    queries: Array | QueriesSpec
    if table.has("file"):
        queries = load_array(table.path("file"))
    else:
        sizes = {key: table.take(key, int) for key in ("count", "heads", "dim")}
        queries = QueriesSpec(**sizes, seed=table.take("seed", int, 0))
    table.end()
    return queries


def _optimizer(table: _Table) -> OptimizerSpec:
    return OptimizerSpec(table.take("name", str), table.numbers())


def load_array(path: Path) -> Array:
    """The array of an .npy file.

    Raises:
        InvalidArgument: the file cannot be read, or is no .npy file.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise InvalidArgument(f"{path} is not an .npy file of numbers") from None
    if not isinstance(array, np.ndarray):
        raise InvalidArgument(f"{path} is an .npz file; an .npy file of one array is wanted")
    return array

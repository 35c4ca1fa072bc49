"""TOML files read key by key; what is wrong is said in one line that names the file and the key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.toml_text import read_toml_text

__all__ = ["TomlTable", "names_of", "read_toml"]

T = TypeVar("T")

_KINDS: dict[type, str] = {
    str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"
}  # fmt: skip


def read_toml(path: Path) -> dict[str, Any]:
    """What the TOML file holds.

    Raises:
        InvalidArgument: it cannot be read, is not UTF-8, or is not TOML.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{path}, byte {error.start}: it is not UTF-8, which TOML must be; save it as UTF-8"
        ) from None
    return read_toml_text(text, f"{path} is not TOML")


def names_of(cls: type[Any]) -> set[str]:
    """The names of a dataclass's fields."""
    return {field.name for field in fields(cls)}


class TomlTable:
    """A TOML table from which keys are taken one by one; a key that is not `known` is refused at once.

    Every method raises InvalidArgument, naming file and key, where a value is not what it must be.
    """

    def __init__(self, file: Path, where: str, values: Any, known: Collection[str] | None) -> None:
        if not isinstance(values, dict):
            raise InvalidArgument(f"{file}: {where} must be a table")
        self.file = file
        self._where = where
        self._values = dict(values)
        if known is not None and (unknown := sorted(self._values.keys() - set(known))):
            near = get_close_matches(unknown[0], known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise InvalidArgument(f"{file}: the key {self.name(unknown[0])!r} is unknown; {hint}")

    def name(self, key: str) -> str:
        """The key as it is called from the top of the file."""
        return f"{self._where}.{key}" if self._where else key

    def has(self, key: str) -> bool:
        return key in self._values

    def is_text(self, key: str) -> bool:
        return isinstance(self._values.get(key), str)

    def is_list(self, key: str) -> bool:
        return isinstance(self._values.get(key), list)

    def is_whole(self, key: str) -> bool:
        value = self._values.get(key)
        return isinstance(value, int) and not isinstance(value, bool)

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

    def table(self, key: str, known: Collection[str] | None) -> TomlTable:
        """The table under `key`, of which `known` keys may be there (None: any); empty if there is none."""
        return TomlTable(self.file, self.name(key), self.take(key, dict, {}), known)

    def optional_number(self, key: str) -> float | None:
        if key not in self._values:
            return None
        value = self._values.pop(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidArgument(f"{self.file}: {self.name(key)} is {value!r}; it must be a number")
        return float(value)

    def number(self, key: str, default: float) -> float:
        value = self.optional_number(key)
        return default if value is None else value

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise InvalidArgument(f"{self.file}: {self.name(key)} must hold strings")
        return tuple(values)

    def list_of_numbers(self, key: str) -> tuple[float, ...]:
        values = self.take(key, list, [])
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidArgument(f"{self.file}: {self.name(key)} holds {value!r}; it must hold numbers")
        return tuple(float(value) for value in values)

    def texts(self, key: str, what: str) -> dict[str, str]:
        """The table under `key`, name -> text that names `what`; empty if there is none."""
        values = self.take(key, dict, {})
        for name, text in values.items():
            if not isinstance(text, str):
                raise InvalidArgument(f"{self.file}: {self.name(key)}.{name} must name {what}")
        return values

    def sizes(self, key: str) -> dict[str, int]:
        """The table under `key`, name of a dimension -> its size; empty if there is none."""
        values = self.take(key, dict, {})
        for name, size in values.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise InvalidArgument(
                    f"{self.file}: {self.name(key)}.{name} is {size!r}; it must be a whole number"
                )
        return values

    def columns(self, key: str) -> dict[str, str | tuple[str, ...]]:
        """The table under `key`, name -> a column or a list of columns; empty if there is none."""
        values = self.take(key, dict, {})
        for name, given in values.items():
            listed = given if isinstance(given, list) and given else [given]
            if not all(isinstance(column, str) for column in listed):
                raise InvalidArgument(
                    f"{self.file}: {self.name(key)}.{name} must name a column, or list columns"
                )
        return {name: tuple(given) if isinstance(given, list) else given for name, given in values.items()}

    def numbers(self) -> dict[str, float]:
        """All that remains, as numbers by name; true and false are 1 and 0, as options travel."""
        return {
            key: float(value) if isinstance(value, bool) else self.number(key, 0.0)
            for key, value in list(self._values.items())
        }

    def path(self, key: str) -> Path:
        """The path under `key`, relative to the file."""
        return self.file.parent / self.take(key, str)

"""What became of a module in its file, said before anybody trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ExportReport", "ExportWarning"]

_SHOWN = 8
"""Names that a line lists."""


class ExportWarning(UserWarning):
    """Something of a module that will not train as in PyTorch."""


@dataclass(frozen=True)
class ExportReport:
    """A file and what it has of the module. It may be given wherever the file's path may.

    Attributes:
        path: the file; weights beyond a size lie beside it, in `<path>.data`.
        inputs: name -> sizes; a dimension that is open has its name.
        outputs: the same.
        numbers: elements of all parameters in the file.
        trained: parameters in the file, each under the name it has in the module, in the module's layout.
        frozen: those of the file with `requires_grad=False`, which do not train.
        unused: parameters that no output depends on; they are not in the file.
        tied: another name of a parameter -> its name in the file.
        notes: a sentence on each thing that is not as in PyTorch's training, or that is good to know.
        difference: between the file's answers and the module's to the example, the largest, relative to the
            largest value; None if it was not checked.
    """

    path: Path
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    numbers: int
    trained: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    tied: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    difference: float | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        shown = [
            f"{self.path}: {len(self.trained)} parameters train"
            + (f", {len(self.frozen)} are frozen" if self.frozen else "")
            + f" ({self.numbers:,} numbers)",
            f"  inputs   {_sizes(self.inputs)}",
            f"  outputs  {_sizes(self.outputs)}",
        ]
        if self.difference is not None:
            shown.append(f"  checked  ONNX Runtime answers as the module does, to {self.difference:.0e}")
        return "\n".join([*shown, *(f"  - {note}" for note in self.notes)])


def some(names: list[str] | tuple[str, ...]) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sizes(values: Mapping[str, tuple[int | str, ...]]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, sizes))}]" for name, sizes in values.items())

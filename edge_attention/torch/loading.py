"""`load`: what was trained, back into the module that it came from, all of it or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edge_attention.client.runs import AsyncRun
from edge_attention.client.sync import Run
from edge_attention.core.arrays import as_array
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, InvalidTensor
from edge_attention.core.tensors import Array
from edge_attention.graphs.models.module_note import ModuleNote, module_note
from edge_attention.graphs.onnx_file import first_line
from edge_attention.jobs.parameters import Parameters, read_safetensors
from edge_attention.torch.checking import require_module
from edge_attention.torch.report import some

__all__ = ["Restored", "load"]


@dataclass(frozen=True)
class Restored:
    """What `load` has put into a module.

    Attributes:
        names: parameters and buffers that have the values of what was loaded.
        left: parameters that stay as they were, as they are not in the file (no output depends on them) or,
            with `strict=False`, as there was nothing that fits.
        source: where the values are from.
    """

    names: tuple[str, ...]
    left: tuple[str, ...]
    source: str

    def __repr__(self) -> str:
        kept = f"; {len(self.left)} stay as they were: {some(self.left)}" if self.left else ""
        return f"{len(self.names)} tensors loaded from {self.source}{kept}"


@dataclass(frozen=True)
class _Values:
    """`arrays` by name; `note`: what the file says of its module. `all_fit`: each must be a tensor's."""

    arrays: Mapping[str, Array]
    note: ModuleNote | None
    source: str
    all_fit: bool


def load(
    module: nn.Module,
    source: Run | Mapping[str, Any] | str | os.PathLike[str] | bytes,
    *,
    version: int | None = None,
    part: str = "",
    strict: bool = True,
) -> Restored:
    """Put trained values into `module`, in place: every tensor, by the name and in the layout it has there.

    Args:
        source: a run; its `parameters()`, or any arrays by name; an ONNX or safetensors file, or its bytes.
        version: of a run's parameters; None: the latest.
        part: of a run by fusion, whose parameters `module` has: a node's name (its encoder) or `head`.
        strict: False: what does not fit is left as it is, and said in what is returned.

    Nothing is changed where something does not fit.

    Raises:
        InvalidArgument: naming everything that does not fit, and why.
    """
    require_module(module)
    values = _read(source, version, part)
    note = values.note or ModuleNote()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    together: dict[int, list[str]] = {}
    for name, tensor in parameters.items():
        together.setdefault(id(tensor), []).append(name)
    chosen: dict[str, Array] = {}
    left: list[str] = []
    missing: list[str] = []
    misshapen: list[str] = []
    for names in together.values():
        found = next((name for name in names if name in values.arrays), "")
        found = found or next((note.tied[name] for name in names if note.tied.get(name) in values.arrays), "")
        wanted = parameters[names[0]]
        if not found:
            (left if set(names) <= set(note.unused) else missing).append(names[0])
        elif (shape := values.arrays[found].shape) != tuple(wanted.shape):
            turned = ", transposed" if shape == tuple(wanted.shape)[::-1] else ""
            misshapen.append(f"{found} is {list(shape)}{turned}, in the module {list(wanted.shape)}")
        else:
            chosen[names[0]] = values.arrays[found]
    for name, tensor in buffers.items():
        if name in values.arrays and values.arrays[name].shape == tuple(tensor.shape):
            chosen[name] = values.arrays[name]
    known = {*parameters, *buffers}
    strange = [
        f"{name} {list(array.shape)}"
        for name, array in values.arrays.items()
        if name not in known and name not in note.tied.values() and array.dtype.kind == "f" and array.ndim
    ]
    if not (values.all_fit or missing):
        strange = []
    if strict and (missing or misshapen or strange):
        raise InvalidArgument(_unfit(module, values, missing, misshapen, strange))
    for name, array in chosen.items():  # before the first is changed
        if array.dtype.name != "bfloat16" and array.dtype.kind not in "biuf":
            raise InvalidTensor(f"{name} is {array.dtype}, which is no number; nothing was loaded")
    with torch.no_grad():
        for name, array in chosen.items():
            target = parameters.get(name, buffers.get(name))
            assert target is not None
            target.copy_(_tensor(array))
    names = [name for name in (*parameters, *buffers) if name in chosen]
    behind = [*left, *missing, *(one.partition(" ")[0] for one in misshapen)]
    return Restored(tuple(names), tuple(behind), values.source)


def _unfit(
    module: nn.Module, values: _Values, missing: list[str], misshapen: list[str], strange: list[str]
) -> str:
    said = []
    if missing:
        said.append(f"{len(missing)} of its parameters are not there: {', '.join(missing)}")
    if misshapen:
        said.append(f"{len(misshapen)} have another shape: {', '.join(misshapen)}")
    if strange:
        said.append(f"{len(strange)} values are no parameter of it: {', '.join(strange)}")
    if values.note is not None:
        remedy = "load into the module that was exported"
    elif missing and not strange and not misshapen:
        remedy = (
            "where a job trains some of a file's parameters, give the run or its ONNX file, which has all; "
            "where they stay as they are, strict=False"
        )
    else:
        remedy = (
            "an exporter renames, transposes and leaves out what it can compute, and what it left out has "
            "not trained: write the file with edge_attention.torch.export and train that; or load what fits "
            "with strict=False"
        )
    what = f"{values.source} does not fit {type(module).__name__}: {'; '.join(said)}"
    return f"{what}. Nothing was loaded; {remedy}"


def _read(source: Any, version: int | None, part: str) -> _Values:
    if isinstance(source, AsyncRun):
        raise InvalidArgument("the run is an asyncio client's: give `await run.onnx()`, or its parameters")
    if version is not None and not isinstance(source, Run):
        raise InvalidArgument("version is of a run, and none was given")
    if isinstance(source, Run):
        values = _of_run(source, version, part)
    elif isinstance(source, Mapping):
        label = f"version {source.version} of run {source.run}" if isinstance(source, Parameters) else "it"
        arrays = {str(name): as_array(value, str(name)) for name, value in source.items()}
        values = _Values(arrays, None, label, all_fit=True)
    elif isinstance(source, bytes | bytearray | memoryview):
        values = _of_file(bytes(source), "the file", None)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            values = _of_file(path.read_bytes(), str(path), path.parent)
        except OSError as error:
            raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from None
    else:
        raise InvalidArgument(
            f"what is loaded is {type(source).__name__}; give a run, its parameters, or an ONNX or "
            "safetensors file"
        )
    if not part:
        return values
    begin = f"{part}/"
    of = {name.removeprefix(begin): a for name, a in values.arrays.items() if name.startswith(begin)}
    if not of:
        parts = sorted({name.partition("/")[0] for name in values.arrays if "/" in name})
        raise InvalidArgument(f"part is '{part}'; {values.source} has {some(parts) or 'no parts'}")
    return _Values(of, values.note, values.source, values.all_fit)


def _of_run(run: Run, version: int | None, part: str) -> _Values:
    """A run's file, which has what did not train, too; of a run without one its parameters."""
    try:
        if not part:
            return _of_file(run.onnx(version), f"run {run.id}", None)
    except FailedPrecondition:
        pass
    parameters = run.parameters(version)
    label = f"version {parameters.version} of run {run.id}"
    return _Values(dict(parameters), None, label, all_fit=True)


def _of_file(data: bytes, label: str, folder: Path | None) -> _Values:
    if _is_safetensors(data):
        return _Values(read_safetensors(data, label), None, label, all_fit=True)
    try:
        model = onnx.load_model_from_string(data)
        if folder is not None:
            onnx.load_external_data_for_model(model, str(folder))
        graph = model.graph
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:  # onnx and protobuf raise a dozen classes on damaged bytes
        raise InvalidArgument(
            f"{label} is neither an ONNX nor a safetensors file: {first_line(error)}"
        ) from None
    return _Values(arrays, module_note(graph), label, all_fit=False)


def _is_safetensors(data: bytes) -> bool:
    """Eight bytes of a header's length, and a header that begins as JSON does."""
    return data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8


def _tensor(array: Array) -> Tensor:
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))

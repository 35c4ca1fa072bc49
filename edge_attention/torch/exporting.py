"""`export`: a module as an ONNX file that trains over the fleet, every parameter under its own name.

PyTorch's exporter folds what it can compute: a transposed weight becomes a new initializer `val_9`, two
biases that are zero become one or none, a batch norm goes into the convolution before it. What trains then is
not what the module has, and does not fit into it again. So parameters are inputs of the graph while it is
simplified, and initializers again afterwards: nothing that depends on them is folded, merged or dropped.

    torch.export --> graph, parameters lifted out --> simplified --> parameters in again --> file, checked
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.graphs.models.module_note import ModuleNote, write_note
from edge_attention.graphs.onnx_builder import IR_VERSION
from edge_attention.graphs.onnx_file import all_nodes, first_line, keep, strip
from edge_attention.torch.bags import plain_bags
from edge_attention.torch.checking import NO_SAMPLES, answer, differs, require_module
from edge_attention.torch.contents import write_file
from edge_attention.torch.keywords import named_keywords
from edge_attention.torch.module_notes import SaidOfModule, notes_of, notes_of_training
from edge_attention.torch.report import ExportReport, ExportWarning, some
from edge_attention.torch.trying import gradients_of, in_training, padding_of

__all__ = ["OPSET", "export"]

OPSET = 18
"""The operators that PyTorch's exporter is written in: ONNX Runtime has read them for years, and nothing is
converted on the way."""
EXTERNAL_BYTES = 1 << 30
"""Bytes of weights from which they lie in a file of their own, beside the graph's; one has 2 GiB at most."""
CHECKED_BYTES = 1 << 31
"""Bytes of weights up to which the file is run and compared with the module, unless said."""
WRONG, FAR = 1e-2, 1e-4
"""Relative differences from which a file is refused, and warned of."""


def export(
    module: nn.Module,
    example: Any,
    path: str | Path,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    batch: str = "batch",
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    opset: int = OPSET,
    external: bool | None = None,
    check: bool | None = None,
) -> ExportReport:
    """Write `module` as an ONNX file at `path`, as it is in evaluation mode.

    Args:
        example: what `module` is called with: a tensor, a tuple of what it takes, or a dict by name.
        inputs, outputs: their names in the file; by default those of `forward`'s arguments, and `output` or,
            where the module returns a dict or a dataclass of them, its keys.
        batch: what dimension 0 of every input is called, which is open then; "": it is as in the example.
        dynamic: other open dimensions: input -> axis -> name, as {"ids": {1: "sequence"}}.
        opset: of the standard operators, 18 to 26.
        external: whether weights lie in `<path>.data`; None: where they are larger than a GiB.
        check: whether ONNX Runtime's answers are compared with the module's; None: of less than 2 GiB.

    Returns what is in the file and what is not. What will not train as in PyTorch is an ExportWarning, too.

    Raises:
        InvalidGraph: PyTorch cannot export it, a dimension that was to be open is not, or the file answers
            something else than the module. Nothing is left at `path` then.
        InvalidArgument: an argument is wrong.
    """
    require_module(module)
    if any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(example)):
        raise InvalidArgument("the example holds an array of NumPy; give tensors, as torch.from_numpy(array)")
    if not 18 <= opset <= 26:
        raise InvalidArgument(f"opset is {opset}; PyTorch writes 18 and later, ONNX Runtime reads 26 at most")
    file, name = Path(path), type(module).__name__
    arguments, keywords = _example(example)
    leaves, shape = pytree.tree_flatten((arguments, keywords))
    names = _input_names(module, arguments, keywords, inputs)
    axes = _axes(names, leaves, batch, dynamic or {})
    leaves = [_doubled(leaf, of) for leaf, of in zip(leaves, axes, strict=True)]
    arguments, keywords = pytree.tree_unflatten(leaves, shape)
    tensors = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    with _evaluating(module):
        given, returned = answer(module, arguments, keywords)
        made = _output_names(returned, len(given), outputs)
        if clash := sorted({*names, *made} & module.state_dict().keys()):
            raise InvalidArgument(
                f"{some(clash)} is an input or output and a parameter, too; name it otherwise in inputs or "
                "outputs"
            )
        called, tries = (arguments, keywords), check is not False
        gradients = gradients_of(module, called) if tries else None
        training = in_training(module, called, given) if tries else None
        with plain_bags(module), named_keywords(module, keywords):
            program = _exported(
                module, arguments, keywords, shape, axes, [names[n] for n in tensors], made, opset
            )
        model, note = _assembled(program, module, gradients.none if gradients is not None else ())
        opened = {(names[n], axis): said for n in tensors for axis, said in axes[n].items()}
        _name_sizes(model, opened, name)
        sizes = write_file(file, model, _contents(module, note), external, EXTERNAL_BYTES)
        difference: float | None = None
        try:
            if check or (check is None and sizes.nbytes < CHECKED_BYTES):
                feeds = {names[n]: leaves[n] for n in tensors}
                difference = differs(file, module, (arguments, keywords), feeds, axes, batch)
                if difference > WRONG:
                    raise InvalidGraph(
                        f"{name}: the file answers otherwise than the module (difference {difference:.1e} of "
                        "the largest value): its forward does something that PyTorch's exporter takes for "
                        f"constant, or it is random. {NO_SAMPLES}"
                    )
        except BaseException:
            sizes.remove()
            raise
    notes = [
        *notes_of(module, note, model, [names[n] for n in tensors]),
        *notes_of_training(module, note, gradients, training),
    ]
    if difference is not None and difference > FAR:
        notes.append(
            SaidOfModule(f"the file's answers differ from the module's by {difference:.0e} of the largest")
        )
    report = ExportReport(
        path=file,
        inputs=_sizes(model.graph.input),
        outputs=_sizes(model.graph.output),
        numbers=sizes.numbers,
        trained=note.trained,
        frozen=note.frozen,
        unused=note.unused,
        tied=dict(note.tied),
        notes=tuple(said.text for said in notes),
        difference=difference,
    )
    for said in notes:
        if said.loud:
            warnings.warn(f"{name}: {said.text}", ExportWarning, stacklevel=2)
    return report


def _example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the module is called with, by position and by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple) else (example,)), {}


def _input_names(
    module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], wanted: Sequence[str]
) -> list[str]:
    """A name for each leaf of the arguments."""
    known = [
        one.name
        for one in inspect.signature(module.forward).parameters.values()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    names: list[str] = []
    by_place = [known[n] if n < len(known) else f"input_{n}" for n in range(len(arguments))]
    for name, value in [*zip(by_place, arguments, strict=True), *keywords.items()]:
        count = len(pytree.tree_leaves(value))
        alone = not isinstance(value, list | tuple | dict)
        names += [name] if alone and count == 1 else [f"{name}_{number}" for number in range(count)]
    if isinstance(wanted, str):
        raise InvalidArgument(f"inputs is {wanted!r}; give a list of names, as [{wanted!r}]")
    if wanted:
        if len(wanted) != len(names):
            raise InvalidArgument(f"inputs has {len(wanted)} names; the example has {len(names)} values")
        names = list(wanted)
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidArgument(f"inputs: {some(sorted(twice))} is there twice; name each once")
    return names


def _axes(
    names: Sequence[str], leaves: Sequence[Any], batch: str, dynamic: Mapping[str, Mapping[int, str]]
) -> list[dict[int, str]]:
    """Of each leaf the axes that are open, and what they are called."""
    if unknown := sorted(dynamic.keys() - set(names)):
        raise InvalidArgument(f"dynamic names {some(unknown)}; the inputs are {some(list(names))}")
    axes: list[dict[int, str]] = []
    for name, leaf in zip(names, leaves, strict=True):
        found: dict[int, str] = {}
        if isinstance(leaf, Tensor):
            if batch and leaf.dim():
                found[0] = batch
            for axis, said in dynamic.get(name, {}).items():
                if not 0 <= axis < leaf.dim():
                    raise InvalidArgument(f"dynamic: {name} has {leaf.dim()} axes, and no axis {axis}")
                found[axis] = said
            for axis in found:
                if axis and leaf.shape[axis] < 2:
                    raise InvalidArgument(
                        f"axis {axis} of the example's {name} has {leaf.shape[axis]} elements: PyTorch takes "
                        "one for fixed; give an example with 2 or more"
                    )
        axes.append(found)
    return axes


def _doubled(leaf: Any, axes: Mapping[int, str]) -> Any:
    """The same with two rows instead of one: PyTorch takes a size of 1 for one that never changes."""
    return torch.cat([leaf, leaf]) if 0 in axes and leaf.shape[0] == 1 else leaf


def _output_names(returned: Any, count: int, wanted: Sequence[str]) -> list[str]:
    if isinstance(wanted, str):
        raise InvalidArgument(f"outputs is {wanted!r}; give a list of names, as [{wanted!r}]")
    if wanted:
        if len(wanted) != count:
            raise InvalidArgument(f"outputs has {len(wanted)} names; the module returns {count} tensors")
        return list(wanted)
    keys = list(returned) if isinstance(returned, Mapping) else []
    if len(keys) == count:
        return [str(key) for key in keys]
    return ["output"] if count == 1 else [f"output_{number}" for number in range(count)]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode; each of its modules is as before afterwards."""
    training = [one for one in module.modules() if one.training]
    module.eval()
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        with torch.no_grad():
            yield
    finally:
        quiet.setLevel(level)
        for one in training:
            one.training = True


def _exported(
    module: nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    shape: Any,
    axes: Sequence[Mapping[int, str]],
    inputs: list[str],
    outputs: list[str],
    opset: int,
) -> Any:
    """The exporter's program, not simplified."""
    auto = torch.export.Dim.AUTO
    each = [dict.fromkeys(of, auto) or None for of in axes]
    positions, named = pytree.tree_unflatten(each, shape)
    # By the names of forward itself; what only its *args and **kwargs take is within those.
    dynamic = dict(inspect.signature(module.forward).bind(*positions, **named).arguments)
    name = type(module).__name__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                arguments,
                kwargs=keywords or None,
                input_names=inputs,
                output_names=outputs,
                opset_version=opset,
                dynamic_shapes=dynamic if any(each) else None,
                dynamo=True,
                optimize=False,
                verify=False,
                report=False,
                verbose=False,
            )
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"exporting needs {error.name}, which is not installed: pip install 'edge-attention[torch]'",
                name=error.name,
            ) from None
        except Exception as error:  # a dozen classes of PyTorch's own, which say what it does not know
            cause = error.__cause__ or error
            raise InvalidGraph(
                f"{name}: PyTorch cannot export it: {type(cause).__name__}: {first_line(cause)}; "  # type: ignore[arg-type]
                "torch.export.export(module, example) shows where"
            ) from error
    return program


def _assembled(program: Any, module: nn.Module, still: Collection[str]) -> tuple[Any, ModuleNote]:
    """The graph, simplified around the parameters, which are in it by name and not yet by value.

    `still`: parameters that have no gradient in PyTorch; they are frozen in the file.
    Returns an onnx.ModelProto without the tensors that the note names.
    """
    import onnx_ir

    held = dict(module.named_parameters(remove_duplicate=False))
    buffers = {
        name: tensor
        for name, tensor in module.named_buffers(remove_duplicate=False)
        if tensor.is_floating_point() and name in module.state_dict()
    }
    graph = program.model.graph
    lifted = [name for name in graph.initializers if name in held or name in buffers]
    for name in lifted:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    program.optimize()
    model = onnx_ir.to_proto(program.model)
    strip(model)
    model.producer_name, model.producer_version = "pytorch", torch.__version__
    model.ir_version = min(model.ir_version, IR_VERSION)
    proto = model.graph
    keep(proto.input, {value.name for value in proto.input} - set(lifted))
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in [*held.items(), *buffers.items()]:
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    for node in all_nodes(proto):
        for slot, name in enumerate(node.input):
            node.input[slot] = tied.get(name, name)
    read = {name for node in all_nodes(proto) for name in node.input}
    read |= {value.name for value in proto.output}
    own = [name for name in held if name not in tied and name in read]
    trains = {name for name in own if held[name].requires_grad and name not in still}
    note = ModuleNote(
        trained=tuple(name for name in own if name in trains),
        frozen=tuple(name for name in own if name not in trains),
        buffers=tuple(name for name in buffers if name in read and name not in tied),
        tied={other: name for other, name in tied.items() if name in read},
        unused=tuple(name for name in held if tied.get(name, name) not in read),
        padding={tied.get(name, name): row for name, row in padding_of(module).items() if name in read},
    )
    write_note(proto, note)
    return model, note


def _contents(module: nn.Module, note: ModuleNote) -> dict[str, Tensor]:
    """The tensors that the note names, as the module has them."""
    held = dict(module.named_parameters(remove_duplicate=False))
    held |= dict(module.named_buffers(remove_duplicate=False))
    return {name: held[name].detach() for name in (*note.trained, *note.frozen, *note.buffers)}


def _name_sizes(model: Any, opened: Mapping[tuple[str, int], str], place: str) -> None:
    """Give open dimensions of inputs and outputs the names that were asked for."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            wanted = opened.get((value.name, axis))
            if wanted is None:
                continue
            if dim.HasField("dim_value"):
                raise InvalidGraph(
                    f"{place}: axis {axis} of input '{value.name}' was to be open, as '{wanted}', and the "
                    f"module fixes it at {dim.dim_value}: look for a view, reshape or loop with that number; "
                    "or export it fixed, with batch='' or without it in dynamic"
                )
            names[dim.dim_param] = wanted
            dim.dim_param = wanted
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)


def _sizes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in value.type.tensor_type.shape.dim
        )
        for value in values
    }

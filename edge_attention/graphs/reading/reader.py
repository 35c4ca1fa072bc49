"""Reads an ONNX file that somebody sent: parses, checks, and writes out again what may be used of it.

    checked = read_graph(data, "graph 3ed7f0214bd0")
    session = onnxruntime.InferenceSession(checked.data)      # never of `data` itself

A check of bytes that another parser reads differently is no check. So what is checked is one parser's
message, and what anything else is given, ONNX Runtime above all, is what that message was written out as: a
field twice, a number written too long, an unknown field do not survive.

Needs protobuf alone, no `onnx`: nodes, the aggregator and the client read with the same code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from google.protobuf.message import DecodeError

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading.bounds import (
    MAX_BYTES,
    MAX_IR_VERSION,
    MAX_OPSET,
    MIN_CONVERTED,
    MIN_IR_VERSION,
    MIN_OPSET,
)
from edge_attention.graphs.reading.fields import new_model
from edge_attention.graphs.reading.folding import check_folding
from edge_attention.graphs.reading.names import check_name
from edge_attention.graphs.reading.needed import CutOff, cut_off, open_sizes
from edge_attention.graphs.reading.operators import DOMAINS, of_operators, standard
from edge_attention.graphs.reading.scan import scan
from edge_attention.graphs.reading.walk import Key, Walk, key_of

__all__ = [
    "CheckedGraph",
    "Wanted",
    "check_graph",
    "read_graph",
    "read_needed",
    "read_older",
    "read_with_notes",
]

Wanted = Callable[[tuple[str, ...]], Collection[str]]
"""From the names of a model's outputs to the values of it that are wanted; may raise InvalidGraph."""


@dataclass(frozen=True)
class CheckedGraph:
    """A graph that was read. `data` is all that ONNX Runtime, or any other parser, may be given of it."""

    digest: str
    """SHA-256 of the file as it was sent, in hex: what releases, caches and programs call it by."""
    data: bytes
    """The file as it was written out again, without what a run does not need. Reading it gives it again."""
    nodes: int
    """Those of graphs inside included, and those of functions as often as they are called."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: Mapping[str, tuple[int, tuple[int | str | None, ...]]]
    """Of each input that has to be given and is a tensor: ONNX's number of its type, and its shape."""
    operators: frozenset[tuple[str, str]]
    """Domain and name of each operator that is used, and of functions of the file."""


def read_graph(data: bytes, where: str) -> CheckedGraph:
    """Check an ONNX file and write it out again. `where` (what file it is) begins each message.

    Takes a few times the file's size in memory and time in proportion to it.

    Raises:
        InvalidGraph: it is no ONNX file, keeps data elsewhere, or has what is not allowed in a graph, or too
            much of it; says what and what to do.
    """
    model, walk, nodes = _read(data, where, notes=False)
    graph = model.graph
    return CheckedGraph(
        sha256(data).hexdigest(),
        model.SerializeToString(deterministic=True),
        nodes,
        tuple(value.name for value in graph.input),
        tuple(value.name for value in graph.output),
        _types(graph),
        frozenset(walk.used),
    )


def _types(graph: Any) -> dict[str, tuple[int, tuple[int | str | None, ...]]]:
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, tuple[int, tuple[int | str | None, ...]]] = {}
    for value in graph.input:
        tensor = value.type.tensor_type
        # Without a shape any is taken: nothing can be said of it beforehand.
        if value.name not in constants and value.type.HasField("tensor_type") and tensor.HasField("shape"):
            shape = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in tensor.shape.dim
            )
            found[value.name] = (tensor.elem_type, shape)
    return found


Declared = Mapping[str, tuple[int, tuple[int | None, ...] | None]]
"""Input -> its element type, as ONNX numbers them, and its shape: None where it is any."""


def check_graph(data: bytes, where: str) -> Declared:
    """The same check, for who only hands the file on: a third less time. What its inputs are declared to be.

    Raises:
        InvalidGraph: as `read_graph`.
    """
    model, _, _ = _read(data, where, notes=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    tensors = {v.name: v.type.tensor_type for v in model.graph.input if v.name not in constants}
    return {
        name: (
            tensor.elem_type,
            tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
            if tensor.HasField("shape")
            else None,
        )
        for name, tensor in tensors.items()
    }


def read_with_notes(data: bytes, where: str) -> bytes:
    """The same for who goes on with the package `onnx`: what exporters note is still there. Not for a run.

    Raises:
        InvalidGraph: as `read_graph`.
    """
    model, _, _ = _read(data, where, notes=True)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def read_older(data: bytes, where: str) -> bytes:
    """As `read_with_notes`, of an opset from MIN_CONVERTED on: one before MIN_OPSET has to be raised before
    anything runs it. A size of -1, as older exporters write what is open, is left out.

    Raises:
        InvalidGraph: as `read_graph`.
    """
    model = _parsed(data, where)
    open_sizes(model.graph)
    _checked(model, where, len(data), notes=True, oldest=MIN_CONVERTED)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def read_needed(data: bytes, where: str, wanted: Wanted) -> tuple[bytes, CutOff]:
    """The same of what the wanted values need alone, and what was cut off.

    What is cut off is not judged: an operator that is not allowed, a map, text. A model may be of an opset
    from MIN_CONVERTED on, which has to be raised before anything runs it. A size of -1, as older exporters
    write what is open, is left out.

    Raises:
        InvalidGraph: as `read_graph`, and what `wanted` raises.
    """
    model = _parsed(data, where)
    cut = cut_off(model, wanted(tuple(value.name for value in model.graph.output)))
    open_sizes(model.graph)
    _checked(model, where, len(data), notes=True, oldest=MIN_CONVERTED)
    written: bytes = model.SerializeToString(deterministic=True)
    return written, cut


def _read(data: bytes, where: str, notes: bool) -> tuple[Any, Walk, int]:
    model = _parsed(data, where)
    return (model, *_checked(model, where, len(data), notes, MIN_OPSET))


def _parsed(data: bytes, where: str) -> Any:
    if len(data) > MAX_BYTES:
        raise InvalidGraph(
            f"{where}: {len(data):,} bytes, more than the limit of {MAX_BYTES:,} (MAX_BYTES); bring a "
            "smaller one"
        )
    if data[4:8] == b"ORTM":
        raise InvalidGraph(f"{where} is in ONNX Runtime's own format; use ONNX")
    scan(data, where)
    model = new_model()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InvalidGraph(
            f"{where}: not an ONNX file (it is damaged, or has text that is no UTF-8); export it again"
        ) from None
    model.DiscardUnknownFields()  # there are none, or the scan reads otherwise than protobuf: none is written
    if not model.HasField("graph"):
        raise InvalidGraph(f"{where}: not an ONNX file (no graph in it); export it again")
    return model


def _checked(model: Any, where: str, size: int, notes: bool, oldest: int) -> tuple[Walk, int]:
    if model.training_info:
        raise InvalidGraph(f"{where}: it has training_info; export the graph for inference")
    if not MIN_IR_VERSION <= model.ir_version <= MAX_IR_VERSION:
        raise InvalidGraph(
            f"{where}: ir_version {model.ir_version} is not supported; save with {MIN_IR_VERSION} to "
            f"{MAX_IR_VERSION}"
        )
    model.ClearField("configuration")
    if not notes:
        for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            model.ClearField(field)
        # ONNX Runtime can be made to take options of the session from here.
        model.ClearField("metadata_props")
    functions = _functions(model, where)
    walk = Walk(where, functions, notes, oldest < MIN_OPSET)
    nodes = walk.graph(model.graph)
    for key in functions:
        walk.function(key)
    check_folding(model.graph, model.functions, size, where)
    used = {domain for domain, _ in walk.used}
    for item in (model, *model.functions):
        _check_imports(item, where, used, item is model, oldest)
    return walk, nodes


def _functions(model: Any, where: str) -> Mapping[Key, Any]:
    keys = [key_of(function) for function in model.functions]
    for (domain, name, _), times in Counter(keys).items():
        check_name(name, where, "a function's name")
        check_name(domain, where, "a function's domain")
        if times > 1:
            raise InvalidGraph(f"{where}: there are two functions {name!r} of domain {domain!r}; rename one")
        if of_operators(domain):
            raise InvalidGraph(
                f"{where}: function {name!r} is of domain {domain!r}, which is the operators'; choose another"
            )
    return dict(zip(keys, model.functions, strict=True))


def _check_imports(item: Any, where: str, used: set[str], main: bool, oldest: int) -> None:
    """Check the versions that the model or a function imports; drop domains of which nothing is used."""
    versions: dict[str, int] = {}
    kept = []
    for opset in item.opset_import:
        domain = standard(opset.domain)
        if versions.setdefault(domain, opset.version) != opset.version:
            raise InvalidGraph(f"{where}: imports domain {domain[:80]!a} twice; export it again")
        if domain in DOMAINS or domain in used:
            kept.append((domain, opset.version))
    version = versions.get("", 0)
    if ("" in versions or (main and "" in used)) and not oldest <= version <= MAX_OPSET:
        raise InvalidGraph(
            f"{where}: opset {version} is not supported; export with opset {oldest} to {MAX_OPSET}"
        )
    for domain, version in versions.items():
        if not domain:
            continue
        first, last = DOMAINS.get(domain, (version, version))
        if not first <= version <= last:
            raise InvalidGraph(
                f"{where}: version {version} of domain {domain!r} is not supported; use {first} to {last}"
            )
    item.ClearField("opset_import")
    for domain, version in dict(kept).items():
        item.opset_import.add(domain=domain, version=version)

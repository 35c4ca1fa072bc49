"""What the operator lets leave this node: `--allow-release`, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from edge_attention.core.errors import InvalidArgument, NotFound, PrivateTensor
from edge_attention.graphs.attention import library
from edge_node.store.store import Held

ALIGNMENT = "alignment"
"""The release of the keyed hashes of rows' ids, by which nodes find the rows they share."""

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")


class Releases:
    """The outputs of graphs that may leave though computed from private tensors.

    `allowed`: names of releases, digests of graphs or paths of .onnx files, each optionally `:out1,out2`;
    InvalidArgument for anything else. `announced`: what the aggregator is told of it, which is no path.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        names = dict.fromkeys(allowed)
        self.alignment = ALIGNMENT in names
        # Digest -> the outputs; None: all of them.
        self._outputs: dict[str, frozenset[str] | None] = {}
        announced = []
        for value in names:
            name, _, selected = value.removeprefix("sha256:").partition(":")
            outputs = frozenset(selected.split(",")) if selected else None
            announced.append(self._allow(name, outputs, value) + (f":{selected}" if selected else ""))
        self.announced = tuple(announced)

    def _allow(self, name: str, outputs: frozenset[str] | None, value: str) -> str:
        if name == ALIGNMENT:
            return name
        if match := _DIGEST.fullmatch(name):
            self._add(match[1].lower(), outputs)
            return match[1].lower()
        if name.endswith(".onnx"):
            try:
                digest = sha256(Path(name).read_bytes()).hexdigest()
            except OSError as error:
                raise InvalidArgument(f"--allow-release {value}: {error.strerror}") from None
            self._add(digest, outputs)
            return digest
        try:
            release = library.release(name)
        except NotFound:
            known = ", ".join((ALIGNMENT, *library.RELEASES))
            what = f"use a release ({known}), a graph's SHA-256 or its .onnx file"
            raise InvalidArgument(f"--allow-release {value}: {what}") from None
        for digest, released in release.items():
            self._add(digest, released & outputs if outputs else released)
        return name

    def _add(self, digest: str, outputs: frozenset[str] | None) -> None:
        have = self._outputs.get(digest, frozenset())
        self._outputs[digest] = None if outputs is None or have is None else have | outputs

    def allow(self, digest: str, output: str) -> bool:
        """Whether this output of this graph may leave, whatever it was computed from."""
        outputs = self._outputs.get(digest, frozenset())
        return outputs is None or output in outputs

    def require(self, name: str, held: Held) -> None:
        """Raises PrivateTensor for one, naming what made it and the flag that would let it leave, if any."""
        if held.origin is None:
            return
        digest, output = held.origin.digest, held.origin.output
        if digest:
            raise PrivateTensor(
                f"{name} is private: it is output {output!r} of graph {digest}, computed from private data; "
                f"the node's operator can let it leave with --allow-release {library.flag(digest, output)}"
            )
        if output == ALIGNMENT:
            raise PrivateTensor(f"{name} is private: hashes of ids leave with --allow-release {ALIGNMENT}")
        raise PrivateTensor(f"{name} is private: it is {output}; only results computed from it may leave")

"""What the operator lets leave this node: `--allow-release`, and nothing else."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Hashable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from edge_attention.core.errors import InvalidArgument, PrivateTensor
from edge_attention.core.job_release import ALIGNMENT, JOB, OWN_DATA, JobRelease
from edge_attention.core.release import (
    ANY,
    Edge,
    GraphRule,
    Release,
    any_rows,
    column,
    columns_of,
    numbered,
    plain_columns,
)
from edge_attention.graphs.attention import library
from edge_node.store.store import Held

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
_HOW = "GRAPH[:OUTPUT,...]@DATASET/COLUMN[,...]"
_KEPT, _LETTERS = 64, 16 * 1024
"""Findings that are kept, and letters of the outputs of one."""


class Releases:
    """The outputs of graphs that may leave though computed from private tensors.

    `allowed`, each one of:

        attention            a release of the library's, by name; attention@GRAPH: of what this encoder made
        alignment            keyed hashes of ids
        job:FINGERPRINT      all releases of a job, by the SHA-256 of their list, which programs bring
        DIGEST               a release, by the SHA-256 of its text, which programs bring
        GRAPH[:OUTPUT,...]@DATASET/COLUMN[,...]
                             outputs (or all) of a graph, of these columns' rows; by its digest or .onnx file

    InvalidArgument for anything else. `own_data`: besides, whatever programs bring releases of.
    `announced`: what the aggregator is told of it, which is no path. Thread-safe.
    """

    def __init__(self, allowed: Iterable[str] = (), own_data: bool = False) -> None:
        names = dict.fromkeys((*allowed, *(library.RELEASES if own_data else ())))
        self._own = own_data
        self.alignment = own_data or ALIGNMENT in names
        self._active: dict[str, Release] = {}
        """What is in force, by digest."""
        self._leaving: dict[Hashable, frozenset[str]] = {}
        """Found of what is in force: a graph, a flow and outputs -> those of them that may leave."""
        self._learned: tuple[str, ...] = ()
        """The texts that came last, all of which have been looked at."""
        self._digests: set[str] = set()
        """Allowed digests, of releases whose texts are still to come too."""
        self._jobs: set[str] = set()
        """Allowed fingerprints of jobs, whose texts are still to come."""
        announced = map(self._allow, names)
        self.announced = tuple(dict.fromkeys((*((OWN_DATA,) if own_data else ()), *announced)))

    def _allow(self, value: str) -> str:
        if value == ALIGNMENT:
            return value
        what, at, origins = value.rpartition("@")
        if not at:
            what, origins = value, ""
        if match := _DIGEST.fullmatch(value):
            self._digests.add(match[1].lower())
            return match[1].lower()
        if value.startswith(JOB) and (match := _DIGEST.fullmatch(value.removeprefix(JOB))):
            self._jobs.add(match[1].lower())
            return f"{JOB}{match[1].lower()}"
        if what in library.RELEASES:
            encoder = _graph(origins, value) if at else ANY
            self._add(library.release(what, encoder))
            return f"{what}@{encoder}" if at else what
        graph, _, selected = what.removeprefix("sha256:").partition(":")
        if not (_DIGEST.fullmatch(graph) or graph.endswith(".onnx")):
            known = ", ".join((ALIGNMENT, *library.RELEASES))
            raise InvalidArgument(
                f"--allow-release {value}: use a release ({known}), the digest that `train --plan` prints, "
                f"or {_HOW}"
            )
        if not at:
            raise InvalidArgument(
                f"--allow-release {value} names a graph, and not what private data its inputs may be: give "
                f"the digest that `train --plan` prints, or {_HOW}"
            )
        digest = _graph(graph, value)
        leaves = frozenset(map(numbered, selected.split(","))) if selected else frozenset({ANY})
        sources = frozenset(_column(origin, value) for origin in origins.split(","))
        self._add(Release({digest: GraphRule({ANY: sources}, leaves)}))
        return digest + (f":{selected}" if selected else "") + f"@{origins}"

    def _add(self, release: Release) -> None:
        self._active[release.digest] = release
        self._leaving = {}  # another: a thread may be about to keep in the old one what was so before

    def learn(self, texts: Iterable[str]) -> None:
        """Put in force what the operator has allowed of these texts of releases; others change nothing."""
        texts = tuple(texts)
        if texts == self._learned:
            return  # of the same nothing is new: a program that runs again brings them each time
        for text in texts if self._jobs else ():
            self._learn_job(text)
        for text in texts:
            digest = sha256(text.encode()).hexdigest()
            allowed = digest in self._digests or (self._own and JobRelease.of_text(text) is None)
            if not allowed or digest in self._active:
                continue
            try:
                release = Release.parse(text)
            except InvalidArgument as error:
                log.warning("--allow-release %s is not in force: %s", digest, error.message)
                self._digests.discard(digest)
                continue
            graphs = ", ".join(graph[:12] for graph, rule in release.graphs.items() if rule.leaves)
            columns = "; ".join(release.columns)
            log.info("release %s is in force: results of %s from %s", digest[:12], graphs, columns)
            self._add(release)
        self._learned = texts

    def _learn_job(self, text: str) -> None:
        """Allow all releases of a job that the operator has allowed, if this is its list."""
        fingerprint = sha256(text.encode()).hexdigest()
        if fingerprint not in self._jobs:
            return
        self._jobs.discard(fingerprint)
        try:
            job = JobRelease.parse(text)
        except InvalidArgument as error:
            log.warning("--allow-release %s%s is not in force: %s", JOB, fingerprint, error.message)
            return
        self._digests |= job.releases
        self.alignment = self.alignment or job.alignment
        hashes = ", and keyed hashes of ids" if job.alignment else ""
        log.info("job %s is allowed: %d releases%s", fingerprint[:12], len(job.releases), hashes)

    def allowed(self, digest: str, flow: Collection[Edge] | None, outputs: Iterable[str]) -> frozenset[str]:
        """Those of `outputs` of the graph that may leave, computed by `flow`; None: nobody knows by what."""
        if flow is None:
            return frozenset()
        known, names = self._leaving, tuple(outputs)
        key = digest, frozenset(flow), names
        if (found := known.get(key)) is None:
            active = tuple(self._active.values())
            named = [r for r in active if digest in r.graphs and r.stranger(flow) is None]
            found = frozenset(name for name in names if any(r.leaves(digest, name) for r in named))
            if sum(map(len, names)) <= _LETTERS:
                if len(known) >= _KEPT:
                    known.clear()
                known[key] = found
        return found

    def require(self, name: str, held: Held, offered: Sequence[str] = ()) -> None:
        """Raises PrivateTensor for one, naming what made it and the flag that would let it leave, if any.

        `offered`: the texts of releases that the program brings.
        """
        origin = held.origin
        if origin is None:
            return
        if origin.digest:
            what = (
                f"{name} is private: it is output {origin.output!r} of graph {origin.digest}, computed from "
            )
            raise PrivateTensor(
                f"{what}private data; {self._remedy(origin.digest, origin.output, origin.flow, offered)}"
            )
        if origin.output == ALIGNMENT:
            jobs = [job.flag for job in _jobs(offered) if job.alignment]
            raise PrivateTensor(
                f"{name} is private: hashes of ids leave with --allow-release {(jobs or [ALIGNMENT])[0]}"
            )
        raise PrivateTensor(
            f"{name} is private: it is {origin.output}; only results computed from it may leave"
        )

    def _remedy(self, digest: str, output: str, flow: Collection[Edge] | None, offered: Sequence[str]) -> str:
        """What would let an output of a graph leave that was computed by `flow`."""
        stranger: Edge | None = None
        known = {name: library.release(name) for name in library.RELEASES}
        whole = _jobs(offered)
        for flag, release in [*_parsed(offered), *known.items(), *self._active.items()]:
            if flow is None or not release.leaves(digest, output):
                continue
            stranger = release.stranger(flow)
            if stranger is None:
                # Of a job's releases each would be asked for in its turn: all of them at once.
                flag = next((job.flag for job in whole if release.digest in job.releases), flag)
                return f"the node's operator can let it leave with --allow-release {flag}"
        if stranger is not None:
            graph, name, source = stranger
            was = f"input {name!r} of graph {graph[:12]} was {source}"
            return f"a release of this output does not cover it: {was}"
        if flow is None:
            return "and no release covers it: of what it was computed is not known here"
        if digest in self._digests:
            said = f"--allow-release {digest} is a graph's digest, which says not what its inputs may be: "
        else:
            said = ""
        if columns := _columns(digest, flow):
            flag = f"{digest}:{output}@{','.join(columns)}"
            return f"{said}the node's operator can let it leave with --allow-release {flag}"
        return f"{said}the program brings no release for it; `train --plan` prints those of a job"


def _graph(name: str, value: str) -> str:
    """The digest of a graph that is named by it or by its file."""
    if match := _DIGEST.fullmatch(name):
        return match[1].lower()
    if not name.endswith(".onnx"):
        raise InvalidArgument(f"--allow-release {value}: {name[:80]!r} is neither a digest nor an .onnx file")
    try:
        return sha256(Path(name).read_bytes()).hexdigest()
    except OSError as error:
        raise InvalidArgument(f"--allow-release {value}: {error.strerror}") from None


def _column(origin: str, value: str) -> str:
    dataset, slash, name = origin.partition("/")
    if not (dataset and slash and name):
        raise InvalidArgument(f"--allow-release {value}: {origin!r} is not DATASET/COLUMN; use {_HOW}")
    return column(dataset, name)


def _jobs(texts: Iterable[str]) -> list[JobRelease]:
    """The lists of jobs' releases among the texts that a program brings."""
    return [job for text in texts if (job := JobRelease.of_text(text)) is not None]


def _parsed(texts: Iterable[str]) -> Iterable[tuple[str, Release]]:
    for text in texts:
        try:
            release = Release.parse(text)
        except InvalidArgument:
            continue
        yield f"sha256:{release.digest}", release


_PLAIN = re.compile(r"[^,@/\s]+")


def _columns(digest: str, flow: Iterable[Edge]) -> list[str]:
    """As the flag takes them, where a graph has read nothing but columns; else none."""
    found = []
    for graph, _, found_source in sorted(flow):
        source = any_rows(found_source)
        names = columns_of(source)
        if graph != digest or not names or not all(_PLAIN.fullmatch(name) for pair in names for name in pair):
            return []
        if source != column(*names[0]) and not plain_columns(source):
            return []
        found += ["/".join(pair) for pair in names]
    return list(dict.fromkeys(found))

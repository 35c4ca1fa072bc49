"""Which samples there are and where: keyed hashes from every source, matched. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_attention.core.errors import FailedPrecondition, InvalidTensor
from edge_attention.core.messages.training import MissingSamples
from edge_attention.core.tensors import Array, Int64, require

HASH_BYTES = 16


@dataclass(frozen=True, eq=False)
class Alignment:
    """The run's list of samples. A sample's position in it is what records call it.

    Attributes:
        rows: source -> int64 [samples], the sample's row in that source, -1 where it has none.
        complete, incomplete: samples on every source, and on some only.
        fingerprint: the same for the same samples in the same order.
        ranks: part's prefix -> int64 [rows of its source], the number of a row among those that lack nothing,
            where its node leaves out others.
    """

    rows: Mapping[str, Int64]
    complete: int
    incomplete: int
    fingerprint: str
    ranks: Mapping[str, Int64] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))


def align(
    hashes: Mapping[str, Array],
    labels: str,
    encoders: Sequence[str],
    missing: MissingSamples,
    whole: Mapping[str, Array] | None = None,
) -> Alignment:
    """Match the rows of all sources by their keyed hashes.

    The list is in the order of the rows of source `labels`, which every sample needs.

    Args:
        hashes: source -> uint8 [rows, 16].
        labels, encoders: the source of the labels, and those of the tokens.
        missing: whether a sample some source lacks is left out or attended without it.
        whole: source -> bool [rows]: where it is false the source counts as without that sample.

    Raises:
        InvalidTensor: hashes of the wrong shape, or the same one twice in a source.
        FailedPrecondition: a source has no sample of those with labels, or no sample is left.
    """
    places: dict[str, dict[bytes, int]] = {}
    for source, array in hashes.items():
        require(array, f"ids of {source}", shape=("rows", HASH_BYTES), dtype=np.uint8, finite=False)
        places[source] = {row.tobytes(): i for i, row in enumerate(array)}
        if len(places[source]) != len(array):
            raise InvalidTensor(f"{source}: two rows have the same id")
        if (there := (whole or {}).get(source)) is not None:
            places[source] = {key: i for key, i in places[source].items() if there[i]}
    everywhere = set.intersection(*(set(place) for place in places.values()))
    anywhere = set.union(*(set(place) for place in places.values()))
    used = [
        key
        for key in places[labels]
        if key in everywhere
        or (missing is MissingSamples.ATTEND and any(key in places[source] for source in encoders))
    ]
    # A dataset that matches nobody would be left out in silence, or leave out all the others.
    lost = [source for source in places if places[source].keys().isdisjoint(places[labels])]
    if lost or not used:
        said = "" if used else "no sample is on all nodes: do their datasets have the same ids? "
        if lost:
            said += (
                f"none of the ids of {', '.join(lost)} is among those of {labels}, which has the labels. Ids "
                "are compared as text, P1 is not p1, nor 7 007: mend them, or leave that dataset out. "
            )
        counts = "; ".join(f"{source}: {len(place)} rows" for source, place in places.items())
        raise FailedPrecondition(said + counts)
    rows = {
        source: np.array([place.get(key, -1) for key in used], np.int64) for source, place in places.items()
    }
    digest = hashlib.sha256(b"".join(used))
    for source in sorted(rows):
        digest.update(rows[source].tobytes())
    return Alignment(rows, len(everywhere), len(anywhere) - len(everywhere), digest.hexdigest())

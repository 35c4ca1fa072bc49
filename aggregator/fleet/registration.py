"""Checks what a node says of itself when it registers: it is kept, listed to clients and shown to people."""

from __future__ import annotations

from edge_attention.core.data_digests import DIGEST_LENGTH
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.box import Box
from edge_attention.core.messages.link import Dataset, Register
from edge_attention.core.tensors import MAX_RANK, require_name, require_stored

WORDS = 128
"""Characters of its software, its provider, its instance, its session and a column's name."""
RELEASES, RELEASE = 256, 256
DATASETS, COLUMNS = 256, 1_024
SEQUENCES = 16_384
"""As many as a node stores (edge_node/store/store.py)."""
DESCRIPTION = 64 * 1024
"""Bytes of what clients are told of one node."""

_NUMBER, _ITEM = 11, 5
"""Bytes a number takes at most on the wire with its tag; those of a text or message besides its own."""


def require_modest(register: Register) -> None:
    """Refuse what is no name, too long or too much, and control characters, which would reach a terminal.

    Raises:
        InvalidArgument: names the field and its limit.
    """
    require_name(register.name, "node")
    who = f"node {register.name!r}"
    if not register.instance:
        raise InvalidArgument(f"{who} gave no instance")
    for field in ("software", "provider", "instance", "session"):
        _require_text(getattr(register, field), f"{who}: {field}", WORDS)
    _require_count(register.releases, f"{who}: releases", RELEASES)
    for release in register.releases:
        _require_text(release, f"{who}: a release", RELEASE)
    _require_count(register.datasets, f"{who}: datasets", DATASETS)
    for dataset in register.datasets:
        _require_dataset(dataset, who)
    _require_count(register.sequences, f"{who}: sequences", SEQUENCES)
    for sequence in register.sequences:
        require_stored(sequence.name)
    if (size := description_bytes(register)) > DESCRIPTION:
        raise InvalidArgument(
            f"{who} describes itself in {size:,} bytes; the limit is {DESCRIPTION:,}: serve fewer datasets, "
            "or ones with fewer columns, or allow fewer releases"
        )


def _require_dataset(dataset: Dataset, who: str) -> None:
    require_name(dataset.name, f"{who}: dataset")
    what = f"{who}: dataset {dataset.name!r}: columns"
    _require_count(dataset.columns, what, COLUMNS)
    _require_text(dataset.digest, f"{who}: dataset {dataset.name!r}: its digest", DIGEST_LENGTH)
    for column in dataset.columns:
        _require_text(column.name, f"{what}: a name", WORDS)
        if len(column.shape) > MAX_RANK:
            raise InvalidArgument(
                f"{what}: {column.name!r} has over {MAX_RANK} dimensions, which is the limit"
            )


def _require_count(items: tuple[object, ...], what: str, limit: int) -> None:
    if len(items) > limit:
        raise InvalidArgument(f"{what}: there are {len(items):,}; the limit is {limit:,}")


def _require_text(text: str, what: str, limit: int) -> None:
    if len(text) > limit:
        raise InvalidArgument(f"{what} has {len(text):,} characters; the limit is {limit}")
    if not text.isprintable():
        raise InvalidArgument(f"{what} is {text!r}; it may hold printable characters only, at most {limit}")


def description_bytes(register: Register) -> int:
    """Bytes of what clients are told of this node, at most (core/messages/fleet.py: Node)."""
    size = _ITEM + 12 * _NUMBER + _text(register.name) + _text(register.software) + _text(register.provider)
    size += sum(map(_text, register.releases))
    for dataset in register.datasets:
        size += _ITEM + _text(dataset.name) + _text(dataset.digest) + 2 * _NUMBER
        for column in dataset.columns:
            size += 2 * _ITEM + _text(column.name) + _NUMBER * (1 + len(column.shape))
    return size + (_box(register.box) if register.box is not None else 0)


def _box(box: Box) -> int:
    texts = [box.id, box.provider_asked, *box.providers]
    versions = sum(_ITEM + _text(key) + _text(value) for key, value in box.versions.items())
    return _ITEM + 12 * _NUMBER + sum(map(_text, texts)) + versions


def _text(text: str) -> int:
    return _ITEM + len(text.encode("utf-8", "replace"))

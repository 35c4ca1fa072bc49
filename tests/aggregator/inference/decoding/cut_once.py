"""Decoders cut once for all tests that serve them: that takes longer than most of these tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable
from pathlib import Path

from edge_attention.core.schedule.pieces import DecoderForm

_CUT: dict[tuple[Path, Hashable], tuple[Path, DecoderForm]] = {}


def cut_once(what: Hashable, folder: Path, write: Callable[[Path], DecoderForm]) -> DecoderForm:
    """The form of the decoder that `write` writes into a folder; `folder` has the files then.

    `write` is called for the first folder of each `what` beside `folder`, of which the others are copies.
    """
    key = folder.parent, what
    if key not in _CUT:
        kept = folder.parent / f"decoder{len(_CUT)}"
        _CUT[key] = kept, write(kept)
    kept, form = _CUT[key]
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return form


async def whole() -> None:
    """No file of what the tests have cut is damaged."""

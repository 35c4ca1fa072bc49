"""Where the files of a decoder beside an encoder are: no more than paths."""

from __future__ import annotations

from pathlib import Path

from edge_attention.core.messages.inference import DECODER_FILES

__all__ = ["JOINED", "decoder_files", "decoder_model"]

JOINED = "joined"
"""The folder, in that of what was cut for sessions, of what was made of several files."""


def decoder_files(folder: Path) -> list[Path]:
    """The decoder's files among those of a model."""
    return [folder / name for name in DECODER_FILES if (folder / name).is_file()]


def decoder_model(model: Path, folder: Path) -> Path:
    """The file that has the weights of what was cut into `folder` for sessions; `model`: the deployment's."""
    joined = folder / JOINED / "model.onnx"
    if joined.is_file():
        return joined
    return next(iter(decoder_files(model.parent)), model)

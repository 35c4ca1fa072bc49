"""In which encoding a text file is, found by reading all of it once, in pieces."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from edge_attention.core.errors import InvalidArgument

__all__ = ["TextEncoding", "find_encoding"]

_PIECE = 1 << 17
_MARKS = (  # the longer before what it begins with
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)


@dataclass(frozen=True)
class TextEncoding:
    """`name`: Python's name of it. `words`: what to tell a person."""

    name: str
    words: str


def find_encoding(path: Path, given: str = "") -> TextEncoding:
    """The encoding that `path` says it is in, or can be decoded from.

    A file that is not UTF-8 and has no mark is taken for Windows-1252, of which latin-1 is a part as far as
    letters go: the words say so, and where.

    Raises:
        InvalidArgument: it is in none, or not in `given`, or no text at all; says in which line.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if given:
        _require(path, given)
        return TextEncoding(given, f"{given}, as said")
    for mark, name, words in _MARKS:
        if start.startswith(mark):
            _require(path, name)
            return TextEncoding(name, f"{words}, by its mark")
    if b"\0" in start:
        even, odd = start[::2].count(0), start[1::2].count(0)
        name = "utf-16-le" if odd > 3 * even else "utf-16-be" if even > 3 * odd else ""
        few = even + odd < len(start) // 4
        if few or not name or _fault(path, name) is not None:
            raise InvalidArgument(f"{path.name} is no text: it holds bytes of 0")
        return TextEncoding(name, f"{name.upper()}, by where its zeros are: it has no mark")
    fault = _fault(path, "utf-8")
    if fault is None:
        return TextEncoding("utf-8", "UTF-8")
    where, byte = fault
    if _fault(path, "cp1252") is not None:
        raise InvalidArgument(
            f"{path.name}, {where}: 0x{byte:02x} is neither UTF-8 nor Windows-1252; save the file as UTF-8, "
            "or say which it is: ?encoding=NAME"
        )
    return TextEncoding("cp1252", f"Windows-1252 (latin-1): it is not UTF-8 in {where}")


def _require(path: Path, encoding: str) -> None:
    if (fault := _fault(path, encoding)) is not None:
        raise InvalidArgument(
            f"{path.name}, {fault[0]}: 0x{fault[1]:02x} cannot be read as {encoding}; which encoding is it "
            "in? Say ?encoding=NAME, or save the file as UTF-8"
        )


def _fault(path: Path, encoding: str) -> tuple[str, int] | None:
    """Where it cannot be decoded, in words, and the byte there; None: it can be."""
    decoder = codecs.getincrementaldecoder(encoding)()
    before = lines = 0
    with path.open("rb") as file:
        while True:
            pending = (
                len(decoder.getstate()[0]) if isinstance(decoder, codecs.BufferedIncrementalDecoder) else 0
            )
            piece = file.read(_PIECE)
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                at = before - pending + error.start
                line = lines + 1 + piece.count(b"\n", 0, max(error.start - pending, 0))
                return f"line {line}, byte {at}", error.object[error.start]
            except UnicodeError:
                return f"line {lines + 1}", piece[0] if piece else 0
            if not piece:
                return None
            before += len(piece)
            lines += piece.count(b"\n")

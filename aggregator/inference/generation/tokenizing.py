"""A tokenizer that somebody sent, in a process of its own: its patterns may take for ever, its tables memory.

    python -m aggregator.inference.generation.tokenizing FILE        (by aggregator/engine/kept_process.py)

It answers `["encode", text]` with ids, `["encode_plain", text]` with those without special ones around them,
`["decode", [ids, ...]]` with texts, `["token", text]` with an id or null, and `["written", ids]` with each
token by itself: its bytes in hexadecimal digits, and whether a text shows it.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any

from aggregator.engine.kept_process import serve

__all__: list[str] = []

_LARGEST = 2**32 - 1
"""Number of a token that the library takes. Numbers may have gaps, so how many there are says nothing of the
last; what has no number is no text."""
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""A token that is a byte, where other tokens are text."""


def load(path: str) -> Callable[[Any], Any]:
    """What answers, of the file. Raises what the library raises."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise RuntimeError(
            "the aggregator lacks the library tokenizers; install edge-attention[text]"
        ) from None
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    written = functools.partial(_written, tokenizer, _before(tokenizer))

    def answer(question: Any) -> Any:
        what, given = question
        if what in ("encode", "encode_plain"):
            return tokenizer.encode(given, add_special_tokens=what == "encode").ids
        if what == "token":
            return tokenizer.token_to_id(given)
        if what == "written":
            return [written(one) for one in given]
        return [
            tokenizer.decode([t for t in window if t <= _LARGEST], skip_special_tokens=True)
            for window in given
        ]

    return answer


def _before(tokenizer: Any) -> list[int]:
    """A token that is a letter: what stands behind it is written as within a text, with its space."""
    ids = tokenizer.encode("a", add_special_tokens=False).ids
    return [one for one in ids if tokenizer.decode([one]) == "a"][-1:]


def _written(tokenizer: Any, before: list[int], token: int) -> tuple[str, bool]:
    """The token's bytes, in hexadecimal digits, and whether a text shows it."""
    if token > _LARGEST or (name := tokenizer.id_to_token(token)) is None:
        return "", True
    first = tokenizer.decode(before, skip_special_tokens=False)
    text = tokenizer.decode([*before, token], skip_special_tokens=False)
    alone = not text.startswith(first)
    text = tokenizer.decode([token], skip_special_tokens=False) if alone else text[len(first) :]
    shown = tokenizer.decode([*before, token], skip_special_tokens=True) != first or not text
    data = _part_of_character(name) if _UNFINISHED in text else None
    return (text.encode("utf-8", "replace") if data is None else data).hex(), shown


def _part_of_character(name: str) -> bytes | None:
    """The bytes that a token's name stands for; None: it is not known."""
    if byte := _BYTE.fullmatch(name):
        return bytes.fromhex(byte[1])
    letters = _byte_letters()
    return bytes(letters[one] for one in name) if all(one in letters for one in name) else None


@functools.cache
def _byte_letters() -> dict[str, int]:
    """Letter -> byte as tokens of bytes are named since GPT-2: printing Latin letters stand for themselves,
    those from U+0100 on for the others, in their order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


if __name__ == "__main__":
    sys.exit(serve(lambda: load(sys.argv[1])))

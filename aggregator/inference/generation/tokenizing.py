"""A tokenizer that somebody sent, in a process of its own: its patterns may take for ever, its tables memory.

    python -m aggregator.inference.generation.tokenizing FILE        (by aggregator/engine/kept_process.py)

It answers `["encode", text]` with ids, `["encode_plain", text]` with those without special ones around them,
`["decode", [ids, ...]]` with texts, `["token", text]` with an id or null.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from aggregator.engine.kept_process import serve

__all__: list[str] = []

_LARGEST = 2**32 - 1
"""Number of a token that the library takes. Numbers may have gaps, so how many there are says nothing of the
last; what has no number is no text."""


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

    def answer(question: Any) -> Any:
        what, given = question
        if what in ("encode", "encode_plain"):
            return tokenizer.encode(given, add_special_tokens=what == "encode").ids
        if what == "token":
            return tokenizer.token_to_id(given)
        return [
            tokenizer.decode([t for t in window if t <= _LARGEST], skip_special_tokens=True)
            for window in given
        ]

    return answer


if __name__ == "__main__":
    sys.exit(serve(lambda: load(sys.argv[1])))

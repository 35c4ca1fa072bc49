"""Makes others' words fit for a terminal, a log or an error: control characters as escapes.

What a terminal or a reader obeys instead of showing is shown as an escape: control characters (Cc), format
characters (Cf: those that turn the direction of a line, or take no room), separators of lines and paragraphs
(Zl, Zp), spaces other than the plain one (Zs), lone surrogates (Cs), and what is assigned to nobody (Co, Cn).
None is let through: a joiner that some scripts want is drawn as an escape in a name, which is ugly and safe;
let through, it would make two names of one look.
"""

from __future__ import annotations

WORDS = 4_000
"""Characters of an error's message."""

RUNTIME_WORDS = 2_000
"""Characters of what ONNX Runtime says: names of a node and of source files come first, the reason last."""

NODE_WORDS = 3_000
"""Characters of what a node says of its own failure."""


def shown(text: object, limit: int | None = None) -> str:
    """`text` in one line that can be shown anywhere, of at most `limit` characters.

    Example: `shown("a\\nb")` is one line, `a\\nb`.
    """
    found = str(text)
    if limit is not None and len(found) > limit:
        found = f"{found[: max(limit - 3, 0)]}..."
    if found.isprintable():
        return found
    found = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in found)
    # An escape is longer than what it stands for.
    return found if limit is None or len(found) <= limit else f"{found[: max(limit - 3, 0)]}..."


def json_line(text: str) -> str:
    """`text`, JSON in ASCII, without the one control character that JSON lets through."""
    return text.replace("\x7f", "\\u007f")

"""Words of others on a terminal or in a log."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def shown(text: object) -> str:
    """`text` with control characters escaped: a terminal would obey those that a node put into its words.

    Example: `shown("a\\nb")` is one line, `a\\x0ab`.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(text))

"""Words of others on a terminal or in a log."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def shown(text: object) -> str:
    """`text` with control characters escaped: a terminal would obey those that a node put into its words.

    Example: `shown("a\\nb")` is one line, `a\\nb`.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))

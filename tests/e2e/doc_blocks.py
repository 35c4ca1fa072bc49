"""Pages of docs/, and the blocks of them that tests run."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def text_of(name):
    """The text of docs/NAME."""
    return (DOCS / name).read_text(encoding="utf-8")


def block(text, name):
    """What the page `text` has behind `<!-- test: NAME -->`."""
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"the page has no block {name!r}"
    return found[1]

"""The runbook as a page: docs/runbook.md as HTML, a heading an anchor, so that alerts can point to it.

Markdown is read by markdown-it-py, as CommonMark with tables. HTML in the text stays text, and nothing on the
page leads elsewhere.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

import aggregator

__all__ = ["anchor", "as_html", "read_runbook"]

_TABLE = '<div class="card scroll" tabindex="0"><table>'


def read_runbook() -> str:
    """docs/runbook.md as it was packaged; in a checkout, as it is."""
    packaged = files("aggregator.http") / "page" / "runbook.md"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(aggregator.__file__).parents[1] / "docs" / "runbook.md").read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    """Where a heading is, as repositories' pages have it.

    >>> anchor("When `it` is away, all night")
    'when-it-is-away-all-night'
    """
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def as_html(text: str) -> str:
    """What the runbook says, as HTML without a frame.

    >>> print(as_html("## A b\\n\\nSee **[c](#c)**\\n& `d`."), end="")
    <h2 id="a-b">A b</h2>
    <p>See <strong><a href="#c">c</a></strong>
    &amp; <code>d</code>.</p>
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(text)
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(tokens[at + 1].content))
        elif token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.children:
            token.children = _links_within(token.children)
    said: str = markdown.renderer.render(tokens, markdown.options, {})
    return said.replace("<table>", _TABLE).replace("</table>", "</table></div>")


def _links_within(tokens: list[Token]) -> list[Token]:
    """Links within the page stay; one to another page of docs/, not served here, becomes its name."""
    kept: list[Token] = []
    page = ""
    for token in tokens:
        if token.type == "link_open":
            page = str(token.attrGet("href")).partition("#")[0]
        if not page or token.type not in ("link_open", "link_close"):
            kept.append(token)
        elif token.type == "link_close":
            if kept[-1].content == page:  # its words are its name
                kept[-1].content = f"docs/{page}"
            else:
                kept.append(Token("text", "", 0, content=f" (docs/{page})"))
    return kept

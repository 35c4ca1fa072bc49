"""The runbook as a page: docs/runbook.md as HTML, a heading an anchor, so that alerts can point to it.

The part of Markdown that the runbook is written in, and no more: headings, paragraphs, tables, lists, blocks
of commands, and in lines code, bold, emphasis and links. All text is escaped before it is anything else.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import aggregator

__all__ = ["anchor", "as_html", "read_runbook"]

_BOLD = re.compile(r"\*\*(.+?)\*\*")
_EMPHASIS = re.compile(r"\*(.+?)\*")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"(#{1,4}) (.+)")


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

    >>> print(as_html("## A b\\n\\nSee **[c](#c)**\\n& `d`."))
    <h2 id="a-b">A b</h2>
    <p>See <strong><a href="#c">c</a></strong> &amp; <code>d</code>.</p>
    """
    return "\n".join(_blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            end = next((i for i in range(at + 1, len(lines)) if lines[i].startswith("```")), len(lines))
            yield f"<pre><code>{html.escape(chr(10).join(lines[at + 1 : end]))}</code></pre>"
            at = end + 1
        elif heading := _HEADING.fullmatch(line):
            level = len(heading[1])
            yield f'<h{level} id="{html.escape(anchor(heading[2]))}">{_inline(heading[2])}</h{level}>'
            at += 1
        elif not line.strip():
            at += 1
        else:
            end = at
            while end < len(lines) and lines[end].strip() and not lines[end].startswith(("```", "#")):
                end += 1
            # A line that begins as a heading does and is none is a paragraph of its own.
            end = max(end, at + 1)
            yield _block(lines[at:end])
            at = end


def _block(lines: list[str]) -> str:
    """A table, a list or a paragraph."""
    if lines[0].startswith("|"):
        return _table(
            [[_inline(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in lines]
        )
    if lines[0].startswith("- "):
        items = re.split(r"^- ", "\n".join(lines), flags=re.MULTILINE)[1:]
        return "<ul>" + "".join(f"<li>{_inline(_joined(item.splitlines()))}</li>" for item in items) + "</ul>"
    return f"<p>{_inline(_joined(lines))}</p>"


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def _table(rows: list[list[str]]) -> str:
    """`rows`: the head, the line below it, and the rest."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows[2:])
    return (
        f'<div class="card scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _inline(text: str) -> str:
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backtick that nothing ends
        pieces[-2:] = ["`".join(pieces[-2:])]
    # What is code is set apart while the rest is read: a link may have some in its words.
    codes = [f"<code>{html.escape(code)}</code>" for code in pieces[1::2]]
    said = html.escape("\0".join(pieces[0::2]))
    said = _LINK.sub(lambda found: _link(found[1], found[2]), said)
    said = _EMPHASIS.sub(r"<em>\1</em>", _BOLD.sub(r"<strong>\1</strong>", said))
    first, *rest = said.split("\0")
    return first + "".join(code + after for code, after in zip(codes, rest, strict=True))


def _link(words: str, target: str) -> str:
    """Within this page a link; to another page of docs/, which is not served here, its name."""
    if target.startswith("#"):
        return f'<a href="{target}">{words}</a>'
    page = target.partition("#")[0]
    return f"docs/{page}" if words == page else f"{words} (docs/{page})"

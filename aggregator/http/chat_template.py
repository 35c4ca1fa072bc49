"""A deployment's chat template, which is somebody's code, in a process of its own: it may take for ever.

    python -m aggregator.http.chat_template        (by aggregator/engine/kept_process.py)

Each question is `[template, variables]`; the answer is the text. The template is Jinja as `transformers`
renders it: sandboxed, nothing it is given can be changed, blocks leave no lines of their own, and
`raise_exception`, `strftime_now`, `tojson` with its options and `{% generation %}` are there.
"""

from __future__ import annotations

import datetime
import functools
import json
import sys
from typing import Any, NoReturn

from aggregator.engine.kept_process import serve

__all__ = ["render"]

TEXT_CHARACTERS = 4 * 1024 * 1024
"""Of a rendered chat."""


def render(template: str, variables: dict[str, Any]) -> str:
    """The text that `template` makes of `variables`.

    Raises:
        Exception: whatever the template brings about, in its words.
    """
    pieces, size = [], 0
    for piece in _compiled(template).generate(**variables):
        size += len(piece)
        if size > TEXT_CHARACTERS:
            raise ValueError(f"it makes more than {TEXT_CHARACTERS:,} characters of this chat")
        pieces.append(piece)
    return "".join(pieces)


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}`: what the assistant says, which is of interest where models are trained."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes what HTML would take for tags.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(words: str) -> NoReturn:
    raise ValueError(str(words))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _hello() -> Any:
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise RuntimeError(
            "the aggregator lacks the library jinja2; install edge-attention[aggregator]"
        ) from None
    return lambda question: render(*question)


if __name__ == "__main__":
    sys.exit(serve(_hello))

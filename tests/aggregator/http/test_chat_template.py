"""Chat templates are rendered as `transformers` renders them; what they say of a chat is the error."""

from __future__ import annotations

import datetime

import pytest

pytest.importorskip("jinja2")

from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

from aggregator.http.chat_template import render

MESSAGES = [{"role": "user", "content": 'a <b> & "ö"'}, {"role": "assistant", "content": "yes"}]


def rendered(template: str, **more: object) -> str:
    return render(template, {"messages": MESSAGES, "add_generation_prompt": True, "tools": None} | more)


def test_what_is_for_training_is_text_as_any() -> None:
    """`{% generation %}`, which templates have around what the assistant says."""
    template = (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }};{% endgeneration %}{% else %}{{ m.content }};{% endif %}{% endfor %}"
    )
    assert rendered(template) == 'user: a <b> & "ö";assistant: yes;'


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("", '{"b": "<ö>", "a": [1]}'),
        ("(separators=(',', ':'))", '{"b":"<ö>","a":[1]}'),
        ("(sort_keys=true)", '{"a": [1], "b": "<ö>"}'),
        ("(ensure_ascii=true)", '{"b": "<\\u00f6>", "a": [1]}'),
        ("(indent=1)", '{\n "b": "<ö>",\n "a": [\n  1\n ]\n}'),
    ],
)
def test_tools_are_written_as_the_template_asks(options: str, text: str) -> None:
    assert rendered("{{ tools | tojson" + options + " }}", tools={"b": "<ö>", "a": [1]}) == text


def test_blocks_leave_no_lines_and_loops_may_end_early() -> None:
    loop = (
        "{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n{{ m.role }}\n{% endfor %}"
    )
    assert rendered(loop + "\nend") == "user\nend"


def test_what_a_template_says_of_a_chat_is_the_error() -> None:
    with pytest.raises(ValueError, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


def test_todays_date_is_there() -> None:
    before = datetime.datetime.now().strftime("%d %b %Y")
    assert rendered("{{ strftime_now('%d %b %Y') }}") in (
        before,
        datetime.datetime.now().strftime("%d %b %Y"),
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{% set x = tools.nothing.more %}{{ x }}",
        "{% include 'etc/passwd' %}",
        "{% generation %}never ends",
    ],
)
def test_what_a_template_may_not_do_is_refused(template: str) -> None:
    with pytest.raises((SecurityError, TemplateError, UndefinedError, TypeError)):
        rendered(template)

"""How values are written in files: numbers, truth, and that one is missing."""

from __future__ import annotations

import re

__all__ = [
    "DATE",
    "GROUPED",
    "MISSING",
    "MISSING_AMONG_NUMBERS",
    "NUMBER",
    "NUMBER_LIKE",
    "TRUTH",
    "WITH_COMMA",
    "is_number",
]

MISSING = frozenset(
    (
        "",
        "NA",
        "N/A",
        "n/a",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "<NA>",
        "NaN",
        "nan",
        "NAN",
        "-NaN",
        "-nan",
        "+nan",
        "1.#QNAN",
        "-1.#QNAN",
        "1.#IND",
        "-1.#IND",
        "NaT",
        "null",
        "NULL",
        "Null",
        "<null>",
        "\\N",
        "#DIV/0!",
        "#VALUE!",
        "#REF!",
        "#NULL!",
        "#NUM!",
        "#NAME?",
    )
)
"""Spaces around them taken off, these say in any column that there is no value."""

MISSING_AMONG_NUMBERS = frozenset(
    ("?", ".", "..", "-", "--", "*", "None", "none", "NONE", "na", "n.a.", "N.A.")
)
"""These say so where everything else is a number; among words they are words."""

TRUTH = {"True": 1, "TRUE": 1, "true": 1, "False": 0, "FALSE": 0, "false": 0}

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WITH_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?", re.ASCII)
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
"""`1,234`: one and a bit where decimals have a comma, more than a thousand where a comma groups digits."""
NUMBER_LIKE = re.compile(r"[-+(]?[$€£¥]?\s*\d[\d_,.'’ \u00a0\u202f]*\s*([%€$£]|[eE][+-]?\d+)?\)?", re.ASCII)
"""What people read as a number and this reader does not: `1_000`, `1,234.5`, `12 %`."""
DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[./-]\d\d?[./-]\d{2,4}( .*)?|\d{4}/\d\d?/\d\d?( .*)?", re.ASCII
)


def is_number(text: str) -> bool:
    """Whether `text`, without spaces around it, is a number with a decimal point or none."""
    return NUMBER.fullmatch(text) is not None

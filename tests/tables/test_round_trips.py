"""Tables written as programs write CSV, by hypothesis, and read back exactly."""

from __future__ import annotations

import csv
import io

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_attention.tables.options import TableOptions
from edge_attention.tables.reading import read_table
from edge_attention.tables.spellings import DATE, MISSING, MISSING_AMONG_NUMBERS, NUMBER_LIKE, TRUTH

_ORDINARY = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))
# A word is one that a person would not take for a number or a gap; spaces around it are no part of it.
WORDS = st.text(st.one_of(_ORDINARY, st.sampled_from("\",;\t|\n#' ")), min_size=1, max_size=8).filter(
    lambda word: (
        word == word.strip()
        and word not in MISSING | MISSING_AMONG_NUMBERS | TRUTH.keys()
        and word.lower().lstrip("+-") not in ("inf", "infinity")
        and any(c.isalpha() for c in word)
        and not word.startswith("#")
        and (NUMBER_LIKE.fullmatch(word) is None or DATE.fullmatch(word) is not None)
    )
)
GAPS = st.sampled_from(["", "NA", "NaN", "null", "N/A"])
INTEGERS = st.integers(-(2**63), 2**63 - 1)
DECIMALS = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)
SMALL = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6, width=32))
SETTINGS = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@st.composite
def columns(draw):
    """Name -> (kind, values); None: a gap. One row has a value in each, so that every kind is what it is."""
    rows = draw(st.integers(1, 12))
    names = draw(
        st.lists(WORDS.filter(lambda w: w not in ("id", "ids")), min_size=2, max_size=5, unique=True)
    )
    found = {}
    for name in names:
        kind = draw(st.sampled_from(["whole", "decimal", "truth", "word"]))
        values = {"whole": INTEGERS, "decimal": DECIMALS, "truth": st.booleans(), "word": WORDS}[kind]
        gappy = st.one_of(values, st.none())
        found[name] = (kind, [draw(values), *(draw(gappy) for _ in range(rows - 1))])
    return found


def written(draw, table, comma, dialect):
    """As csv.writer, or pandas' to_csv, writes it."""
    text = io.StringIO()
    writer = csv.writer(text, **dialect)
    names = draw(st.booleans())
    writer.writerow([*([""] if names else []), *table])
    count = len(next(iter(table.values()))[1])
    for row in range(count):
        cells = [str(row)] if names else []
        for kind, values in table.values():
            value = values[row]
            if value is None:
                cells.append(draw(GAPS))
            elif kind == "decimal":
                cells.append(repr(float(value)).replace(".", "," if comma else "."))
            else:
                cells.append(str(value))
        writer.writerow(cells)
    return text.getvalue()


@given(st.data())
@SETTINGS
def test_what_is_written_is_read(tmp_path, data):
    table = data.draw(columns())
    separator = data.draw(st.sampled_from([",", ";", "\t", "|"]))
    comma = separator != "," and data.draw(st.booleans())
    dialect = {
        "delimiter": separator,
        "lineterminator": data.draw(st.sampled_from(["\n", "\r\n"])),
        "quoting": data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    }
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    last = next(iter(table.values()))[1]
    if all(values[-1] is None for _, values in table.values()):
        last[-1] = last[0]  # a last line of separators alone is no row
    text = written(data.draw, table, comma, dialect)
    (tmp_path / "d.csv").write_bytes(text.encode(encoding))
    found = read_table(
        tmp_path / "d.csv",
        TableOptions(separator=separator, decimal="," if comma else ".", header=True, encoding=encoding),
    )
    assert list(found.columns) == list(table), found.set_aside
    for name, (kind, values) in table.items():
        column = found.columns[name]
        gaps = [value is None for value in values]
        assert (column.missing is None and not any(gaps)) or column.missing.tolist() == gaps
        if kind == "word":
            assert [column.words[c] if c >= 0 else None for c in column.values.tolist()] == values
        else:
            dtype = np.float32 if kind == "decimal" else np.int64
            np.testing.assert_array_equal(column.values, np.array([value or 0 for value in values], dtype))


@given(
    st.lists(st.lists(SMALL, min_size=3, max_size=3),
             min_size=2, max_size=20),
    st.sampled_from([",", ";", "\t", "|", ":", " "]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "\n\n", "# the end\n"]),
)  # fmt: skip
@SETTINGS
def test_a_table_of_numbers_is_read_with_nothing_said(tmp_path, rows, separator, ends, more):
    lines = [["alpha", "beta", "gamma"], *(map(repr, row) for row in rows)]
    text = ends.join(separator.join(line) for line in lines) + ends + more.replace("\n", ends)
    (tmp_path / "d.csv").write_bytes(text.encode())
    found = read_table(tmp_path / "d.csv")
    assert list(found.columns) == ["alpha", "beta", "gamma"]
    for at, column in enumerate(found.columns.values()):
        np.testing.assert_array_equal(
            column.values.astype(np.float32), np.array([r[at] for r in rows], np.float32)
        )
        assert column.missing is None
    assert [found.place(row) for row in range(len(rows))] == [f"line {row + 2}" for row in range(len(rows))]

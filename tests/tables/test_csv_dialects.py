"""Small files of each way in which CSV is written, read as a person would."""

from __future__ import annotations

import numpy as np
import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.tables.options import parse_options
from edge_attention.tables.reading import read_table


def read(tmp_path, text, options="", encoding="utf-8", name="d.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_table(tmp_path / name, parse_options(options))


def values(table):
    """Column -> values; a gap is None, a word is itself."""
    found = {}
    for name, column in table.columns.items():
        plain = column.values.tolist()
        if column.words is not None:
            plain = [column.words[code] if code >= 0 else None for code in plain]
        if column.missing is not None:
            plain = [None if gap else one for gap, one in zip(column.missing.tolist(), plain, strict=True)]
        found[name] = plain
    return found


@pytest.mark.parametrize(
    ("text", "expected", "decided"),
    [
        (",a,b\n0,2,3\n1,3,4\n", {"a": [2, 3], "b": [3, 4]}, {"row names": "which has no name"}),
        ('"","a"\n"1",2\n"2",3\n', {"a": [2, 3]}, {"row names": "first"}),
        ("Unnamed: 0,a\n0,2\n1,3\n", {"a": [2, 3]}, {"row names": "Unnamed: 0"}),
        ('"a","b"\n"x",1,2\n"y",3,4\n', {"a": [1, 3], "b": [2, 4]}, {"row names": "first"}),
        ("a;b\n1;2,5\n2;3,25\n", {"a": [1, 2], "b": [2.5, 3.25]},
         {"separator": "semicolon", "decimal sign": "comma"}),
        ("a;b\n1;2.5\n", {"a": [1], "b": [2.5]}, {"separator": "semicolon", "decimal sign": "point"}),
        ("a\tb\n1\t2\n", {"a": [1], "b": [2]}, {"separator": "tab"}),
        ("a\tb\n1\t2\n\t\n3\t4\n", {"a": [1, None, 3], "b": [2, None, 4]}, {"separator": "tab"}),
        ("a|b\n1|2\n", {"a": [1], "b": [2]}, {"separator": "bar"}),
        ("a:b\n1:2\n", {"a": [1], "b": [2]}, {"separator": "colon"}),
        ("a^b\n1^2\n", {"a": [1], "b": [2]}, {"separator": "'^'"}),
        ("a b  c\n1 2   3\n4\t5 6 \n", {"a": [1, 4], "b": [2, 5], "c": [3, 6]}, {"separator": "space"}),
        ("sep=;\na;b\n1;2\n", {"a": [1], "b": [2]}, {"separator": "semicolon, as said"}),
        ("'a' 'b'\n1 2\n", {"a": [1], "b": [2]}, {"separator": "space"}),
        ("a, b\n1, 2\n3,  4\n", {"a": [1, 3], "b": [2, 4]}, {}),
        ("a,b\n1,2\n\n   \n", {"a": [1], "b": [2]}, {"left out": "2 empty lines"}),
        ("a,b\n1,2\n\n3,4\n", {"a": [1, 3], "b": [2, 4]}, {"left out": "1 empty line"}),
        ("a,b\n1,2\n,\n,\n", {"a": [1], "b": [2]}, {"left out": "2 lines of separators"}),
        ("a,b\n,\n1,2\n", {"a": [None, 1], "b": [None, 2]}, {}),
        ("# made by hand\n# on Monday, it rained\na,b\n1,2\n# a remark\n3,4\n",
         {"a": [1, 3], "b": [2, 4]}, {"left out": "1 line with # before it", "header": "line 3"}),
        ("#a,b\n1,2\n", {"a": [1], "b": [2]}, {"header": "line 1"}),
        ("a,b\n#1,2\n#3,4\n", {"a": ["#1", "#3"], "b": [2, 4]}, {}),
        ("a,b,\n1,2,\n3,4,\n", {"a": [1, 3], "b": [2, 4]}, {}),
        ("a,b\n1,2,\n3,4,\n", {"a": [1, 3], "b": [2, 4]}, {}),
        ("a,,c\n1,5,2\n", {"a": [1], "column_2": [5], "c": [2]}, {}),
        ("1.5,2\n3,4\n", {"column_1": [1.5, 3], "column_2": [2, 4]}, {"header": "none"}),
        ("setosa,1\nsetosa,2\n", {"column_1": ["setosa"] * 2, "column_2": [1, 2]}, {"header": "none"}),
        ("5.1,setosa\n", {"column_1": [5.1], "column_2": ["setosa"]}, {"header": "none"}),
        ("land,1990,1991\nA,1,2\n", {"land": ["A"], "1990": [1], "1991": [2]}, {"header": "line 1"}),
        ('"1990","1991"\n5,6\n', {"1990": [5], "1991": [6]}, {"header": "line 1"}),
        ("a,b\r\n1,2\r\n", {"a": [1], "b": [2]}, {}),
        ("a,b\r1,2\r3,4\r", {"a": [1, 3], "b": [2, 4]}, {}),
        ("a,b\n1,2", {"a": [1], "b": [2]}, {}),
        ("a\n1\n2\n", {"a": [1, 2]}, {"separator": "there is one column"}),
        ('t,a\n"x, ""y""",1\n', {"t": ['x, "y"'], "a": [1]}, {}),
        ('t,a\n"x\ny",1\n', {"t": ["x\ny"], "a": [1]}, {}),
        ("a,b,b\n1,2,3\n", {"a": [1]}, {}),
    ],
)  # fmt: skip
def test_dialects(tmp_path, text, expected, decided):
    table = read(tmp_path, text)
    assert values(table) == {k: pytest.approx(v) if None not in v and not isinstance(v[0], str) else v
                             for k, v in expected.items()}  # fmt: skip
    for topic, words in decided.items():
        assert words in table.decided[topic], table.decided


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "", "3"], [1, None, 3]),
        (["1.5", "NA", "nan", "N/A", "NULL", "null", "<NA>", "#N/A", "?", ".", "-", "None", "#DIV/0!"],
         [1.5, *[None] * 12]),
        (["?", "?", "x"], ["?", "?", "x"]),
        (["NA", "", "x", "NaN"], [None, None, "x", None]),
        (["None", "Low", "Low"], ["None", "Low", "Low"]),
        (["True", "False", ""], [1, 0, None]),
        (["TRUE", "true", "false"], [1, 1, 0]),
        (["True", "1", "0"], ["True", "1", "0"]),
        (["T", "F", "T"], ["T", "F", "T"]),
        (["1.0", "2.0", "-3e2"], [1, 2, -300]),
        (["2020-01-01", "2020-01-02"], ["2020-01-01", "2020-01-02"]),
        ([" x ", "x", "x  "], ["x", "x", "x"]),
        (["+1", "-0", ".5", "1.", "1E3"], [1, 0, 0.5, 1, 1000]),
        (["9223372036854775807", "-9223372036854775808"], [2**63 - 1, -(2**63)]),
    ],
)  # fmt: skip
def test_values(tmp_path, cells, expected):
    table = read(tmp_path, "a,z\n" + "".join(f"{cell},1\n" for cell in cells))
    assert values(table)["a"] == expected


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["1_000", "2_000"], "like numbers, but not written as numbers are here (line 2)"),
        (['"1,234,567"', '"1,234"'], "like numbers"),
        (['"1,234"', '"5,678"'], "thousands, or decimals? ?decimal=comma"),
        (["5%", "7 %"], "like numbers"),
        (["$5", "$7"], "like numbers"),
        (["1", "inf"], "infinite, or too large for float32 (line 3)"),
        (["1", "1e300"], "infinite, or too large for float32 (line 3)"),
        (['"1,5"', "2.5"], "decimal commas (line 2) and points (line 3) are in one file"),
        (["", "NA"], "has no values"),
        (["x" * 300, "y"], "text with a value of over 256 characters"),
        (["1", "x" * 300], "text with a value of over 256 characters"),
    ],
)
def test_columns_that_are_set_aside(tmp_path, cells, said):
    table = read(tmp_path, "z,a\n" + "".join(f"1,{cell}\n" for cell in cells))
    assert list(table.columns) == ["z"]
    assert said in table.set_aside["a"]


def test_text_of_many_values_is_set_aside(tmp_path):
    text = "a,few,name,day\n" + "".join(
        f"{i},{'xyz'[i % 3]},n{i},2020-{i % 12 + 1:02}-{i % 28 + 1:02} {i}\n" for i in range(1500)
    )
    table = read(tmp_path, text)
    assert list(table.columns) == ["a", "few"]
    assert table.columns["few"].words == ("x", "y", "z")
    assert table.set_aside["name"] == "text with over 1,000 distinct values"
    assert table.set_aside["day"] == "dates with over 1,000 distinct values"


def test_a_column_whose_first_word_comes_late(tmp_path):
    """What came before it is a word as it was written, not as the number it had been taken for."""
    cells = [["1", "1.0", "007", "?", ""][i % 5] for i in range(20_000)]
    cells[15_000] = "high"
    table = read(tmp_path, "z,a\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    assert values(table)["a"] == [cell or None for cell in cells]
    assert values(table)["z"] == list(range(20_000))
    assert table.first_words == {"a": 15_000}


def test_a_type_is_of_all_rows(tmp_path):
    """Whole numbers in the first 9,999 pieces, and one that is not at the end."""
    rows = [*range(9_999), 0.5]
    column = read(tmp_path, "a,b\n" + "".join(f"{one},1\n" for one in rows)).columns["a"]
    assert column.values.dtype == np.float32
    np.testing.assert_array_equal(column.values, np.array(rows, np.float32))


def test_decimal_signs_of_two_kinds_in_one_file(tmp_path):
    text = "a;b;c\n1,5;1.234;7\n2,5;5.678;8\n"
    table = read(tmp_path, text)
    assert list(table.columns) == ["c"]
    assert "?decimal=comma" in table.set_aside["b"]
    assert "line 2" in table.set_aside["a"]
    comma = read(tmp_path, text, "decimal=comma")
    assert values(comma)["a"] == [1.5, 2.5]
    assert "like numbers" in comma.set_aside["b"]
    point = read(tmp_path, text, "decimal=point")
    assert values(point)["b"] == pytest.approx([1.234, 5.678])
    assert "like numbers" in point.set_aside["a"]


def test_grouped_or_decimal_is_for_the_operator_to_say(tmp_path):
    text = "a;b\n1,234;1\n5,678;2\n"
    assert "thousands" in read(tmp_path, text).set_aside["a"]
    assert values(read(tmp_path, text, "decimal=comma"))["a"] == pytest.approx([1.234, 5.678])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: a header and a row are needed"),
        ("\n\n", "line 1: a header"),
        ("id,a,b\n", "no rows below line 1"),
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 values under 2 columns"),
        ("a,b\n1,2\n1\n", "line 3: 1 value under 2 columns"),
        ('a,b\n"x\ny\nz",1\n\n3\n', "line 6: 1 value under 2 columns"),
        ('a,b\n1,2\n"x,4\n5,6\n', 'line 3: a quote (") is opened and never closed'),
        ("title\na,b\n1,2\n3,4\n", "?skip=LINES"),
        ("id\nx\n", "it has ids alone"),
        ("id,id\n1,2\n", "line 1: two columns are called 'id'"),
        ("a\tb,c\td\n1\t2,3\t4\n", "the separator could be comma and tab; say which: ?separator=comma"),
        ("id,a\nx,1\ny,2\nx,3\n", "id 'x' is in line 2 and again in line 4; ?id=COLUMN names another"),
        ("id,a\n,1\nz,2\n", "line 2, column 'id': the id is missing"),
        ("id,a\nx,1\n\nNA,2\n", "line 4, column 'id': the id is missing"),
        (b"a,b\n1,\0\n", "no text: it holds bytes of 0"),
        (b"a,b\n1,\x81\x8d\n", "line 2, byte 6: 0x81 is neither UTF-8 nor Windows-1252; save the file as"),
    ],
)  # fmt: skip
def test_refused_and_where(tmp_path, text, said):
    with pytest.raises(InvalidArgument) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)


def test_a_cell_without_end(tmp_path):
    with pytest.raises(InvalidArgument, match="line 3: a value of over 262,144 characters; is a quote"):
        read(tmp_path, 'a,b\n1,2\n"' + "x,1\n" * 400_000)


@pytest.mark.parametrize(
    ("encoding", "mark", "said"),
    [
        ("utf-8", b"", "UTF-8"),
        ("utf-8-sig", b"", "UTF-8, by its mark"),
        ("utf-16", b"", "UTF-16, by its mark"),
        ("utf-16-le", b"", "UTF-16-LE, by where its zeros are"),
        ("utf-16-be", b"", "UTF-16-BE, by where its zeros are"),
        ("utf-32", b"", "UTF-32, by its mark"),
        ("latin-1", b"", "Windows-1252 (latin-1): it is not UTF-8 in line 3, byte 17"),
        ("cp1252", b"", "Windows-1252"),
    ],
)
def test_encodings(tmp_path, encoding, mark, said):
    table = read(tmp_path, "name,größe\nx,1\ncafé,2\n".replace("größe", "size"), encoding=encoding)
    assert values(table) == {"name": ["x", "café"], "size": [1, 2]}
    assert said in table.decided["encoding"]


def test_an_encoding_that_is_said(tmp_path):
    table = read(tmp_path, "name,a\nПетр,1\n", "encoding=cp1251", encoding="cp1251")
    assert values(table)["name"] == ["Петр"]
    with pytest.raises(InvalidArgument, match="line 2, byte 7: 0xcf cannot be read as utf-8"):
        read(tmp_path, "name,a\nПетр,1\n", "encoding=utf-8", encoding="cp1251")


def test_true_lines(tmp_path):
    """After cells over several lines, empty lines and remarks, a row is where an editor shows it."""
    table = read(tmp_path, '# made\na,b\n"x\n\ny",1\n\nz,2\n# hm\nw,3\n')
    assert [table.place(row) for row in range(3)] == ["line 3", "line 7", "line 9"]


def test_ids_are_one_text_however_written(tmp_path):
    table = read(tmp_path, "id,a\n 1.0 ,1\nb'P1',2\n007,3\ncafe\u0301,4\n1.5,5\n")
    assert [one.decode() for one in table.ids] == ["1", "P1", "007", "caf\u00e9", "1.5"]
    with pytest.raises(InvalidArgument, match="id '1' is in line 2 and again in line 3; "):
        read(tmp_path, "id,a\n1.0,1\n1,2\n")


def test_which_column_is_the_ids(tmp_path):
    text = ",who,id,a\nr1,x,1,5\nr2,y,1,6\n"
    assert list(read(tmp_path, text, "id=who").ids) == [b"x", b"y"]
    assert list(read(tmp_path, text, "id=#1").ids) == [b"r1", b"r2"]
    none = read(tmp_path, text, "id=")
    assert none.ids is None
    assert values(none)["id"] == [1, 1]
    with pytest.raises(InvalidArgument, match=r"no column 'nobody' for ids; it has \(no name\), who, id, a"):
        read(tmp_path, text, "id=nobody")


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ("separator=;", "a,x;b\n1;2\n", {"a,x": [1], "b": [2]}),
        ("separator=%", "a%b\n1%2\n", {"a": [1], "b": [2]}),
        ("header=no", "a,b\nc,d\n", {"column_1": ["a", "c"], "column_2": ["b", "d"]}),
        ("header=yes", "1.5,2\n3,4\n", {"1.5": [3], "2": [4]}),
        ("skip=2", "a title\nwith, commas, in it\na,b\n1,2\n", {"a": [1], "b": [2]}),
        ("skip=1&separator=tab&id=", "x\nid\tb\n1\t2\n", {"id": [1], "b": [2]}),
    ],
)
def test_what_an_operator_says(tmp_path, options, text, expected):
    assert values(read(tmp_path, text, options)) == expected


@pytest.mark.parametrize(
    "options", ["x", "colour=red", "separator=ab", "separator=1", "decimal=x", "header=maybe", "skip=-1",
                "encoding=klingon", "encoding=base64", "separator="],
)  # fmt: skip
def test_options_that_are_none(options):
    with pytest.raises(InvalidArgument):
        parse_options(options)


@pytest.mark.parametrize("text", [",,,\n", ",,,\n,,,\n", '"",""\n', "#\n,\n", "," * 300_000])
def test_a_file_of_separators_alone_has_no_header(tmp_path, text):
    file = tmp_path / "d.csv"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=r"d\.csv, line \d: a header with a name for each column"):
        read_table(file)


def test_a_first_line_whose_value_is_too_long(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text(f"{'x' * 300_000},b\n1,2\n")
    with pytest.raises(InvalidArgument, match=r"line 1: a value of over 262,144 characters"):
        read_table(file)


def test_the_places_of_many_columns_of_one_name_are_counted(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text("a," * 5_000 + "b\n" + "1," * 5_000 + "2\n")
    assert read_table(file).set_aside["a"] == "columns 1, 2, 3, 4, 5, 6, 7, 8 and 4,992 more are called so"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", r"{} is a folder; name a file in it"),
        ("folder.csv", r"{}/folder.csv is a folder; name a file in it"),
        ("empty.csv", r"empty.csv is empty: a header and a row are needed"),
        ("rows", r"{}/rows is none of .npz, .csv, .tsv, .txt, .parquet, by the end of its name"),
        ("none.csv", "none.csv cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_table_is_said_by_its_path(tmp_path, name, said):
    (tmp_path / "folder.csv").mkdir()
    for file in ("empty.csv", "rows"):
        (tmp_path / file).touch()
    with pytest.raises(InvalidArgument) as raised:
        read_table(tmp_path / name)
    assert said.format(tmp_path) in str(raised.value)

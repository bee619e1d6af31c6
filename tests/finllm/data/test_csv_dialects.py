"""Small CSV texts in every dialect, in pieces of any size: whole rows with their lines, and what is refused."""

import csv
import io
import itertools
import random
import tracemalloc

import pytest

from finllm.data import csv_rows
from finllm.data.csv_rows import CANDIDATES, Dialect, Records, _fits, find_dialect, read_csv
from finllm.data.parts import TWICE, BadRow
from finllm.errors import UserError

WANTED = {"ask", "say"}


def read(content, encoding="", wanted=WANTED):
    """Each row as its line and its fields, one that is bad as its line, why, what was read of it, and if it is last."""
    content = content if isinstance(content, bytes) else content.encode()
    rows = list(read_csv(io.BytesIO(content), "a.csv", "the/a.csv", encoding, wanted))
    assert {row.file for row in rows} <= {"a.csv"} and {row.unit for row in rows} <= {"line"}
    return [
        (row.number, row.reason, row.content, row.last) if isinstance(row, BadRow) else (row.number, row.fields)
        for row in rows
    ]


# By quoting: a text with « for the delimiter and ¶ for the line end, and its records with the lines where they begin.
TEXTS = {
    "doubled": ('ask«"say"¶"Is ""it""«¶so?"«"an ""X"""¶¶Yes«"noX"¶"\'"«""',
                [(2, 'Is "it"«¶so?', 'an "X"'), (5, "Yes", "noX"), (6, "'", "")]),
    "backslash": (r'ask«"say"¶"Is \"it\"«¶so?"«"an \\\"X\\"¶¶Yes«"no\X"¶"""\\\\"«"\""',
                  [(2, 'Is "it"«¶so?', r'an \"X' + "\\"), (5, "Yes", r"no\X"), (6, r'"\\', '"')]),
    "single": ("'ask'«'say'¶'It''s «¶so'«'\"X'''¶¶Yes«'noX'¶'\"'«''",
               [(2, "It's «¶so", "\"X'"), (5, "Yes", "noX"), (6, '"', "")]),
    "none": ("ask«say¶\"Is \"it\" so?«\"an 'X¶¶Yes«\"noX¶\"'\"\"«\"",
             [(2, '"Is "it" so?', "\"an 'X"), (4, "Yes", '"noX'), (5, "\"'\"\"", '"')]),
}  # fmt: skip
ALL_DIALECTS = [
    Dialect(delimiter, quoting, blanks)
    for delimiter in (",", ";", "\t", "|")
    for quoting in ("doubled", "backslash", "single")
    for blanks in (False, True)
]
ALL_DIALECTS += [Dialect(delimiter, "none", blanks) for delimiter in ("\t", "|") for blanks in (False, True)]


def written(dialect, end):
    """A text in a dialect, and its rows."""

    def put(text):
        return text.replace("«", dialect.delimiter + " " * dialect.blanks).replace("¶", end)

    text, records = TEXTS[dialect.quoting]
    return put(text), [(line, {"ask": put(ask), "say": put(say)}) for line, ask, say in records]


@pytest.mark.parametrize("dialect", ALL_DIALECTS)
def test_each_dialect_is_found_and_read(dialect, monkeypatch):
    for end, last in itertools.product(("\n", "\r\n", "\r"), (False, True)):
        text, rows = written(dialect, end)
        text += end * last
        for mark in ("", "\ufeff"):
            assert read(mark + text) == read(mark + text, "utf-8") == read(mark + text, "UTF8") == rows
        assert find_dialect(text, True, WANTED) == dialect
        for encoding in ("utf-16", "latin-1"):
            assert read(text.encode(encoding), encoding) == rows
        for long in (2, 5, 20, len(text)):  # an empty line is never long
            monkeypatch.setattr(csv_rows, "LONG", long)
            assert read(text) == rows
        monkeypatch.undo()


@pytest.mark.parametrize("dialect", [each for each in ALL_DIALECTS if each.delimiter == "|"])
def test_a_file_is_read_in_pieces_of_any_size(dialect, monkeypatch):
    monkeypatch.setattr(csv_rows, "find_dialect", lambda *_: dialect)
    for end in ("\n", "\r\n", "\r"):
        text, rows = written(dialect, end)
        for size in range(1, len(text) + 3):
            monkeypatch.setattr(csv_rows, "SAMPLE", size)
            assert read(text + end) == read(text) == rows, size
            assert read(text + end + end + "a") == [*rows, (rows[-1][0] + 2, {"ask": "a", "say": None})], size


def test_a_head_that_ends_inside_quotes_says_nothing_against_its_dialect(monkeypatch):
    text, rows = (
        'ask,say\n"a,b","c\nd,e"\n"f;g",h\n',
        [(2, {"ask": "a,b", "say": "c\nd,e"}), (4, {"ask": "f;g", "say": "h"})],
    )
    for size in range(len("ask,say\n"), len(text) + 1):
        monkeypatch.setattr(csv_rows, "SAMPLE", size)
        assert read(text) == rows, size


def test_the_dialect_is_that_of_the_first_262144_characters():
    """Records of which two dialects make as much, and one that has a semicolon alone, before and after the limit."""
    begin, both, one = "no,ne;other\n", "a,b;" + "c" * 95 + "\n", "d;ef\n"
    text = begin + both * ((2**18 - len(begin)) // len(both))
    text += "e,f;" + "g" * (2**18 - len(text) - len(one) - 5) + "\n"
    assert len(text) == 2**18 - len(one)
    assert read(text + one + both)[0][1] == {"no,ne": "a,b", "other": "c" * 95}
    assert read(text + "d,;f\n" + one)[0][1] == {"no": "a", "ne;other": "b;" + "c" * 95}


def test_long_records_are_read_as_csv_reads_them(monkeypatch):
    monkeypatch.setattr(csv_rows, "LONG", 0)
    draw = random.Random(1)
    for _ in range(1500):
        text = "".join(draw.choices('ab ,;\t|\'"""\\\n\r,X', k=draw.randrange(1, 16)))
        lines, dialect = list(io.StringIO(text, newline="")), draw.choice(CANDIDATES)
        reader, records = dialect.records(dialect.plain(lines)), Records(dialect, lines)
        while True:
            try:
                theirs, line = next(reader, None), reader.line_num
            except csv.Error as error:
                theirs, line = str(error), reader.line_num
            try:
                ours = records.next()
            except csv.Error as error:
                ours = str(error)
            assert (ours, records.last) == (theirs or ([""] if theirs == [] else theirs), line), (text, dialect)
            if not isinstance(theirs, list):
                break


@pytest.mark.parametrize(
    "unit", ["word " * 7, "A line of words. " * 20 + "\n", 'They said ""no"" to it, ' + 9 * "and left it ", "a, b"]
)
def test_a_long_record_is_held_few_times(unit):
    """`csv` takes four bytes for each character of a field. Tried with the limits as they are."""
    field = unit * (2**20 // len(unit))
    content = f'ask,say\na,b\nc,"{field}"\nd,e\n'.encode()
    tracemalloc.start()
    try:
        rows, held = read(content), tracemalloc.get_traced_memory()[1] / len(content)
    finally:
        tracemalloc.stop()
    assert [fields["say"] for _, fields in rows] == ["b", field.replace('""', '"'), "e"]
    assert held < 5.5, held


NOT_CSV = "the record that starts here is not CSV"
OPEN = (
    "; it was read up to line {}, since a quote in it is not closed where it should be, and after it nobody knows what "
    "is quoted"
)


@pytest.mark.parametrize("long", [0, 4, 2**18])
def test_what_is_refused_and_what_is_read_beside_it(monkeypatch, long):
    monkeypatch.setattr(csv_rows, "LONG", long)
    after = f"{NOT_CSV} (',' expected after '\"')"
    text = 'ask,say\na,b\n"c"d,e\nf,g\n"h",i\nj,"k"l\n"m\nn",o\n"p\nq"r,s\nt,u\n'
    assert read(text) == [
        (2, {"ask": "a", "say": "b"}), (3, after, None, False), (4, {"ask": "f", "say": "g"}),
        (5, {"ask": "h", "say": "i"}), (6, after, None, False), (7, {"ask": "m\nn", "say": "o"}),
        (9, after + OPEN.format(10), None, True),
    ]  # fmt: skip
    end = f"{NOT_CSV} (unexpected end of data)"
    assert read('ask,say\na,b\nc,"d\n') == [(2, {"ask": "a", "say": "b"}), (3, end, None, False)]
    assert read('ask,say\na,b\nc,"d\ne\n') == [(2, {"ask": "a", "say": "b"}), (3, end + OPEN.format(4), None, True)]


@pytest.mark.parametrize("long", [0, 2**18])
def test_more_and_fewer_fields_than_the_header_has(monkeypatch, long):
    monkeypatch.setattr(csv_rows, "LONG", long)
    reason = "{} fields where the header has 2; put text that holds commas, quotes or line ends in double quotes"
    assert read("ask,say\na\nb,c\nd,e,\nf,g, ,\th\ni,j,,\t\nk,l,m\n,\nn,\n") == [
        (2, {"ask": "a", "say": None}), (3, {"ask": "b", "say": "c"}), (4, {"ask": "d", "say": "e"}),
        (5, reason.format(4), ["f", "g", " ", "\th"], False), (6, {"ask": "i", "say": "j"}),
        (7, reason.format(3), ["k", "l", "m"], False), (8, {"ask": "", "say": ""}), (9, {"ask": "n", "say": ""}),
    ]  # fmt: skip
    assert read("ask, say ,,\n1,2,3,4\n5") == [
        (2, {"ask": "1", "say": "2", "(unnamed)": TWICE}), (3, {"ask": "5", "say": None, "(unnamed)": TWICE}),
    ]  # fmt: skip


def test_names_that_stand_twice():
    a = {"ask": "1", "say": "2"}
    assert read("ask,say,x,x\n1,2,3,4\n") == [(2, a | {"x": TWICE})]
    assert read("x,ask,x,say,y,y,z\n0,1,3,2,5,6,7\n") == [(2, a | {"x": TWICE, "y": TWICE, "z": "7"})]
    assert read("x,ask,x,say,x\n0,1,3,2,\n0,1\n") == [
        (2, a | {"x": TWICE}), (3, {"ask": "1", "x": TWICE, "say": None}),
    ]  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_excel_takes_for_the_delimiter_is_no_header(end):
    rows = [(3, {"ask": "1,5", "say": "2"}), (4, {"ask": "3", "say": "4,5"})]
    for first in ("sep=;", "SEP=;", " Sep= ;"):
        assert read(end.join((first, "ask;say", "1,5;2", "3;4,5"))) == rows
        assert read(end.join((first, "", "a;b", "1,5;2"))) == [(4, {"a": "1,5", "b": "2"})]
    assert read(end.join(("sep=;x", "1;2"))) == [(2, {"sep=": "1", "x": "2"})]
    assert read(end.join(("sep=;;x", "1;2;3"))) == [(2, {"sep=": "1", "(unnamed)": "2", "x": "3"})]
    assert read(end.join(("ask;", "sep=;", "1;2"))) == [
        (2, {"ask": "sep=", "(unnamed)": ""}),
        (3, {"ask": "1", "(unnamed)": "2"}),
    ]
    assert read(end.join(("step;", "1;2"))) == [(2, {"step": "1", "(unnamed)": "2"})]


def test_bytes_that_are_not_in_the_encoding():
    bad = "byte 0xe9 is not UTF-8"
    assert read(b"ask,say\n\xe9,b\nc,\xe9\n\xc3\xa9,d\n\xe9,\xe8,,\n") == [
        (2, bad, {"ask": "\udce9", "say": "b"}, False), (3, bad, {"ask": "c", "say": "\udce9"}, False),
        (4, {"ask": "é", "say": "d"}), (5, bad, {"ask": "\udce9", "say": "\udce8"}, False),
    ]  # fmt: skip
    assert read(b"ask,say\n\xe9,b\n", "cp1252") == [(2, {"ask": "é", "say": "b"})]
    with pytest.raises(UserError, match=r"^the/a\.csv: it is not ascii \(.*\); give another --encoding$"):
        read(b"ask,say\n\xe9,b\n", "ascii")


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("ask,say\n1,2\n", ",d"), ("a\n1\n", ",d"), ("", ",d"), ("a;b\n1;2\n", ";d"), ("a|b,c\n1|2,3\n", ",d"),
        # Commas in texts, of the same number by chance in some of them
        ("a;b\nx, y;z\n1, 2;3\n", ";d"), ("a;b,c\nx, y;z\n1;3\n", ";d"), ("a,b;c\nx, y;z\n1,3\n", ",d"),
        # By names: two that are wanted say more than any records, and more than one
        ("ask,say|x\n1|2\n3|4\n5|6\n", ",d"), ("x,say|ask\n1|2\n3|4\n", "|d"), ("ASK;Say ,x\n1,2\n3,4\n", ";d"),
        ("ask|say;b;c\n1;2;3\n", "|d"), ("ask,ask;say\n1,2\n", ",d"),
        ("ask|b;c\n1;2\n", "|d"), ("b|say;c\n1;2\n", ";d"),
        # A quote after a blank
        ('ask, say\n1, "2, 3"\n', ",d "), ('ask, say\n"1", "2"\n', ",d "), ("ask, say\n1, 2\n", ",d"),
        ('ask,say\n "1",2\n', ",d "), ('ask,say\n1,2 "3"\n', ",d"),
        # A quote escaped in another way, or an apostrophe
        ('ask,say\n"a \\"b\\", c",d\n', ",b"), ('ask,say\n"a ""b"", c",d\n', ",d"), ("'ask','say'\n'a, b','c'\n", ",s"),
        ("\r\n 'ask','say'\n'a, b','c'\n", ",s "), ("\ufeff'ask','say'\n'a, b','c'\n", ",s"),
        ("ask,say\n'tis,so\n", ",d"), ("ask\tsay\n\"a\tb\nc\td\n", "\tn"), ("ask|say\n\"a|b\nc|d\n", "|n"),
        ("'ask,say\n'a,b\n", ",d"),
    ],
)  # fmt: skip
def test_the_dialect_that_fits_best(text, dialect):
    quoting = {"d": "doubled", "b": "backslash", "s": "single", "n": "none"}[dialect[1]]
    assert find_dialect(text, True, WANTED) == Dialect(dialect[0], quoting, dialect.endswith(" "))


@pytest.mark.parametrize(
    ("text", "blanks", "fits"),
    [
        ("", False, (0, 0, 1, 0)), ("ask,say", False, (2, 2, 1, 0)), ("Ask , b\n1,2\n", False, (1, 2, 1, 1)),
        ("ask,say,ask\n1,2,3\n", False, (2, 2, 1, 1)), ("sep=,\nx,y\n1,2\n", False, (0, 2, 1, 1)),
        ("say\n1\n2\n", False, (1, 1, 1, 2)), ("a,b,c\n1,2,3\n", False, (0, 2, 1, 1)),
        # Too few fields are half as bad as too many, unless those are empty
        ("a,b\n1\n", False, (0, 2, 1 / 1.5, 0)), ("a,b\n1,2,3\n", False, (0, 2, 1 / 2, 0)),
        ("a,b\n1,2,,\n", False, (0, 2, 1, 1)), ("a,b\n1,2,,3\n", False, (0, 2, 1 / 2, 0)),
        ("a,b\n1,2\n3,4\n5\n6\n", False, (0, 2, 3 / 4, 2)),
        ("a,b\n1\n\n\n2,3\n4,5,6\n7,8\n", False, (0, 2, 3 / 4.5, 2)),
        # A quote after a blank, where blanks are not left out
        ('a,b\n1, "2"\n', False, (0, 2, 1 / 2, 0)), ('a,b\n1, "2"\n', True, (0, 2, 1, 1)),
        ('a,b\n "1",2\n', False, (0, 2, 1 / 2, 0)), ('a,b\n"1",2\n', False, (0, 2, 1, 1)),
        ('a,b\n1, "2\n', False, (0, 2, 1 / 2, 0)), ('a,b\n1,2 "\n', False, (0, 2, 1, 1)),
        ('a,b\n "1\n', False, (0, 2, 1 / 1.5, 0)), ('a,b\n1, 2\n', False, (0, 2, 1, 1)),
        # What is no CSV is as bad as ten records, and what follows it is not looked at
        ('a,b\n1,2\n"3"4,5\n6,7\n', False, (0, 2, 2 / 12, 1)), ('a,b\n1\n"3"4,5\n', False, (0, 2, 1 / 11.5, 0)),
        ('a,b\n1,"2\n', False, (0, 2, 1 / 11, 0)),
    ],
)  # fmt: skip
def test_how_well_a_dialect_fits(text, blanks, fits):
    assert _fits(Dialect(",", "doubled", blanks), text, True, WANTED) == pytest.approx(fits, abs=1e-12)


def test_quotes_that_the_end_of_a_head_leaves_open():
    dialect = Dialect(",", "doubled", False)
    assert _fits(dialect, 'a,b\n1,2\n1,"2\n', False, ()) == (0, 2, 1, 1)
    assert _fits(dialect, 'a,b\n1\n1,"2\n', False, ()) == (0, 2, 1 / 1.5, 0)
    assert _fits(dialect, 'a,b\n1,2\n1,"2"3\n4,5', False, ()) == (0, 2, 2 / 12, 1)

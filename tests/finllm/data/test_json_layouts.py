"""Small JSON texts in every layout, in windows of any size: what a file is taken for, its rows, and what is refused."""

import io
import itertools
import re

import pytest

from finllm.data import json_rows
from finllm.data.json_rows import NumberText, layout_of, lists_of, read_json
from finllm.data.parts import TWICE, BadRow
from finllm.errors import UserError


def layout(text, name="a.json", encoding=""):
    return layout_of(io.BytesIO(text if isinstance(text, bytes) else text.encode()), name, f"the/{name}", encoding)


def read(text, form, key="", encoding=""):
    """Each row as its number and its fields, one that is bad as its number, why, what was read, and if it is last."""
    content = text if isinstance(text, bytes) else text.encode()
    rows = list(read_json(io.BytesIO(content), form, key, "a.json", "the/a.json", encoding))
    assert {row.file for row in rows} <= {"a.json"}
    assert {row.unit for row in rows} <= {"line" if form == "lines" else "row"}
    return [
        (row.number, row.reason, row.content, row.last) if isinstance(row, BadRow) else (row.number, row.fields)
        for row in rows
    ]


DEEP = '{"a":' + "[" * 100_000


@pytest.mark.parametrize(
    ("text", "as_json", "as_lines"),
    [
        ("[]", "array", "array"), (" \n\t[1", "array", "array"), ("", "lines", "lines"), (" \n", "lines", "lines"),
        ("x", None, "lines"), ('"text"', None, "lines"), ("(1)", None, "lines"),
        # One object on the first line, or over several
        ('{"a": 1}', "object", "lines"), ('{"a": 1}\n \n', "object", "lines"), ('{"a": 1}\n{', "lines", "lines"),
        ('{"a": 1}\nx', "lines", "lines"), ('{"a":\n1}', "object", "objects"), ('{"a":\n1}\n{', "objects", "objects"),
        ('{"a": 1} {"b": 2}', "objects", "objects"), ('{"a": 1}{', "objects", "objects"),
        ('{"a": 1} [2]', "object", "objects"), ('{"a":\n1}\n \n{"a": 2}', "objects", "objects"),
        # What is broken is one of many lines where most of the others are objects
        ('{"a" 1}\n{"b": 2}', "lines", "lines"), ('{"a" 1}\n{"b": 2}\n[3]', "object", "lines"),
        ('{"a" 1}\n{"b": 2}\n{"b": 3}\n[3]', "lines", "lines"), ('{"a" 1}\n \n\n\n{"b": 2}\n\n', "lines", "lines"),
        ('{"a" 1}', "object", "lines"), ('{"a" 1}\nx\n{"b": 2}\ny', "object", "lines"),
        (DEEP + '\n{"b": 2}', "lines", "lines"), ('{"a" 1}\n' + DEEP, "object", "lines"),
    ],
)  # fmt: skip
def test_what_a_file_is_taken_for(text, as_json, as_lines):
    for mark, encoding in itertools.product(("", "\ufeff"), ("", "utf-8", "UTF8")):
        for suffix in (".jsonl", ".ndjson", ".jsonl.gz"):
            assert layout(mark + text, f"a{suffix}", encoding) == as_lines
        if as_json:
            assert layout(mark + text, "a.json", encoding) == as_json
            continue
        message = "the/a.json: neither a JSON array of rows, nor an object with a list of rows, nor JSON Lines"
        with pytest.raises(UserError, match=f"^{message}$"):
            layout(mark + text, "a.json", encoding)


def test_of_what_is_cut_off_the_other_lines_say_nothing(monkeypatch):
    text = '{"a" 1}\n{"b": 2}'
    for size, taken in ((len(text), "object"), (len(text) + 1, "lines")):
        monkeypatch.setattr(json_rows, "HEAD", size)
        assert layout(text) == taken
    # And what stands behind the beginning is not looked at.
    monkeypatch.setattr(json_rows, "HEAD", 9)
    assert layout('{"a": 1}\n{"b": 2}') == "object" and layout('{"a": 1}\n', "a.jsonl") == "lines"
    monkeypatch.undo()
    for size, taken in ((2**20 - 1, "objects"), (2**20, "object")):
        assert layout('{"a":\n1}'.ljust(size) + '{"a"') == taken, size


@pytest.mark.parametrize("window", [1, 2, 7, 2**18])
def test_the_lists_of_an_object(monkeypatch, window):
    monkeypatch.setattr(json_rows, "WINDOW", window)

    def lists(text):
        return lists_of(io.BytesIO(text.encode()), "the/a.json", "")

    assert lists('{"a": [{"x": 1}], "n": [1, {}], "e": [], "o": {"e": [{}]}, "s": "[", "t": [[{}]], "u": [{}, 1]}') == [
        "a", "e", "u"
    ]  # fmt: skip
    assert lists(' { "a" : [ {"x": 1} , {"x": 2} ] } \n ') == ["a"]
    assert lists('{"a": [\n {"x" 1},\n {"x": 2}\n]}') == ["a"]
    for text, said in (
        ("{}", ": the JSON object holds no list of rows (its keys: )"),
        ('{"b": 1, "a": {"0": 1}}', ": the JSON object holds no list of rows (its keys: b, a); with pandas: to_json(…, "
         "orient='records', lines=True)"),
        ('{"b": [2], "c": [null]}', ": the JSON object holds no list of rows (its keys: b, c); with pandas: to_json(…, "
         "orient='records', lines=True)"),
        ('{"a": []}\n x', ", line 2: not JSON (Extra data, column 2); nothing after it can be read"),
        ('{"a": [],\n"b" 1}', ", line 2: not JSON (Expecting ':', column 5); nothing after it can be read"),
        ('{"a": []}x', ", line 1: not JSON (Extra data, column 10); nothing after it can be read"),
        ('{"a": [] "b": 1}', ", line 1: not JSON (Expecting ',', column 10); nothing after it can be read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^the/a.json{re.escape(said)}$"):
            lists(text)
    with pytest.raises(UserError, match=r"^the/a\.json: JSON that cannot be read "):
        lists(DEEP)


ROWS = [(1, {"a": 'x"}\n', "b": ""}), (2, {"a": "9.40", "b": "-Infinity"}), (3, {"a": 3, "b": TWICE}), (4, {}),
        (5, {"a": None, "b": {"c": [True]}}), (6, {"a": TWICE, "b": "x"})]  # fmt: skip
TEXTS = ['{"a": "x\\"}\\n", "b": NaN}', '{"a": 9.40, "b": -Infinity}', '{"a": 3, "b": 4, "b": 5}', "{}",
         '{"a": null, "b": {"c": [true]}}', '{"a": 1, "a": {}, "a": 1, "b": "x"}']  # fmt: skip


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 13, 2**18])
def test_rows_in_every_layout(monkeypatch, window):
    monkeypatch.setattr(json_rows, "WINDOW", window)
    for end, blank, mark in itertools.product(("\n", "\r\n"), ("", " ", "\n"), ("", "\ufeff")):
        lines = mark + end.join(TEXTS)
        array = f"{mark}{blank}[{blank}" + f"{blank},{end}".join(TEXTS) + f"{blank}]{blank}"
        for encoding in ("", "utf-8", *(("utf-16", "latin-1") if not mark else ())):
            codec = encoding or "utf-8"
            assert read(lines.encode(codec), "lines", encoding=encoding) == ROWS
            assert read((lines + end).encode(codec), "lines", encoding=encoding) == ROWS
            assert read(array.encode(codec), "array", encoding=encoding) == ROWS
            objects = mark + blank + blank.join(TEXTS) + blank
            assert read(objects.encode(codec), "objects", encoding=encoding) == ROWS
            held = array[len(mark) :]
            keyed = f'{mark}{{"n": [{{}}], "rows"{blank}:{held}, "m": {{"rows": [{{"a": 7}}]}}}}{blank}'
            assert read(keyed.encode(codec), "object", "rows", encoding) == ROWS
            assert read(keyed.encode(codec), "object", "n", encoding) == [(1, {})]
            assert read(keyed.encode(codec), "object", "o", encoding) == []
    (_, fields), (_, none) = read('{"a": 1.50}\n{"a": NaN}', "lines")
    assert type(fields["a"]) is NumberText and type(none["a"]) is str
    assert read("[]", "array") == read("", "lines") == read(" ", "objects") == []


def test_what_is_refused_in_lines():
    text = '{"a": 1}\n\n{"a" 2}\n[3]\n"x"\n \t \n' + DEEP + '\n{"a": 4\n  {"a": \n{"a": 5} 6\n{"a": 7}'
    rows = read(text, "lines")
    assert rows[4][1].startswith("JSON that cannot be read (") and rows[4][0] == 7 and rows[4][2] == DEEP + "\n"
    assert rows[:4] + rows[5:] == [
        (1, {"a": 1}), (3, "not JSON (Expecting ':' delimiter, column 6)", '{"a" 2}\n', False),
        (4, "not a JSON object", [3], False), (5, "not a JSON object", "x", False),
        (8, "not JSON (Expecting ',' delimiter, column 8)", '{"a": 4\n', False),
        (9, "not JSON (Expecting value, column 8)", '  {"a": \n', False),
        (10, "not JSON (Extra data, column 10)", '{"a": 5} 6\n', False), (11, {"a": 7}),
    ]  # fmt: skip
    assert (
        read("\ufeff\n\ufeff\n \ufeff\r\n{}", "lines")
        == read("\ufeff\n\ufeff\n \ufeff\r\n{}", "lines", "", "utf-8")
        == [(4, {})]
    )


def test_what_ends_a_line_and_what_does_not():
    for encoding in ("", "utf-8"):
        assert read(b'{"a":\r1}\r\n{"a": 2}', "lines", encoding=encoding) == [(1, {"a": 1}), (2, {"a": 2})]
        joined = '{"a": 1}\n\ufeff{"a": 2}\n\x0c\n{"a": "\ufeff"}'
        assert read(joined, "lines", encoding=encoding) == [(1, {"a": 1}), (2, {"a": 2}), (4, {"a": "\ufeff"})]


def test_a_key_that_stands_twice_wherever_it_stands():
    for keys, twice in (("aba", "a"), ("baa", "a"), ("aab", "a"), ("abab", "ab"), ("ab", "")):
        ((_, fields),) = read("{" + ", ".join(f'"{key}": 1' for key in keys) + "}", "lines")
        assert {key for key, value in fields.items() if value is TWICE} == set(twice)
    # In a row that has bytes which are not in the encoding, too
    assert read(b'{"a": "\xe9", "b": 1, "b": 2}', "lines") == [
        (1, "byte 0xe9 is not UTF-8", {"a": "\udce9", "b": TWICE}, False)
    ]  # fmt: skip


@pytest.mark.parametrize("window", range(1, 9))
def test_a_number_that_a_window_cuts(monkeypatch, window):
    monkeypatch.setattr(json_rows, "WINDOW", window)
    for number, value in (("1234", 1234), ("56.75", "56.75"), ("-1.5e+10", "-1.5e+10"), ("0.5E-7", "0.5E-7")):
        assert read(f"[{number}, {number}]", "array") == [
            (row, "not a JSON object", value, False) for row in (1, 2)
        ]  # fmt: skip
        text = f'{{"n": {number}, "true": true, "none": null, "rows": [{{"a": 1}}], "m": {number}}}'
        assert read(text, "object", "rows") == [(1, ONE)]
        assert lists_of(io.BytesIO(text.encode()), "the/a.json", "") == ["rows"]


@pytest.mark.parametrize("window", [1, 4, 2**18])
def test_bytes_that_are_not_in_the_encoding(monkeypatch, window):
    monkeypatch.setattr(json_rows, "WINDOW", window)
    bad, mark = "byte 0xe9 is not UTF-8", b"\xef\xbb\xbf"
    rows = [(1, bad, {"a": "\udce9"}, False), (2, {"a": "é"}), (3, bad, {"b": ["\udce9"]}, False)]
    texts = [b'{"a": "\xe9"}', b'{"a": "\xc3\xa9"}', b'{"b": ["\xe9"]}']
    for before in (b"", mark):
        assert read(before + b"\n".join(texts), "lines") == rows
        assert read(before + b"[" + b",\n".join(texts) + b"]", "array") == rows
        assert read(before + b"\n".join(texts), "objects") == rows
    assert read(b'{"a": "\xe9"}', "lines", encoding="latin-1") == [(1, {"a": "é"})]
    assert read(b'[{"a": "\xe9"}]', "array", encoding="latin-1") == [(1, {"a": "é"})]
    # An escape that is half a character is a text as it was written.
    assert read(b'[{"a": "\\udce9"}]', "array") == [(1, {"a": "\udce9"})]
    assert read(b'{"a": "\\udce9"}', "lines") == [(1, {"a": "\udce9"})]
    message = r"^the/a\.json: it is not {} \(.*\); give another --encoding$"
    forms = ("lines", "array", "object")[: 3 if window > 99 else 2]  # a list is no object, whatever stands behind "["
    for form, text in itertools.product(forms, (b'[{"a": "\xe9"}]', b'[{"a": "x"}]\xe9')):
        with pytest.raises(UserError, match=message.format("ascii")):
            read(text, form, encoding="ascii")
    with pytest.raises(UserError, match=message.format("utf-8")):
        read(b'[{"a": "x"}]\xc3', "array", encoding="utf-8")
    with pytest.raises(UserError, match=message.format("utf-16")):
        lists_of(io.BytesIO(b'{\0"\0a'), "the/a.json", "utf-16")


def broken(number, said, line, column, text):
    return (number, f"line {line}: not JSON ({said}, column {column})", text, False)


def last(number, said, line, column):
    return (number, f"line {line}: not JSON ({said}, column {column}); nothing after it can be read", None, True)


ONE, COLON, COMMA, VALUE = {"a": 1}, "Expecting ':' delimiter", "Expecting ','", "Expecting value"
NAME = "Expecting property name enclosed in double quotes"


@pytest.mark.parametrize("window", [1, 4, 9, 2**18])
@pytest.mark.parametrize("blanks", ["", " ", "\t", "   ", " " * 199])
def test_reading_goes_on_with_the_next_row_that_begins_its_line_as_the_broken_one(monkeypatch, window, blanks):
    monkeypatch.setattr(json_rows, "WINDOW", window)
    at = len(blanks)
    lines = ['{"a": 1}', '{"a" 2}', '{"a": {', ' "b" 2}}', "3", '{"a": }', '{"a": 1}']
    rows = [
        (1, ONE), broken(2, COLON, 3, at + 6, '{"a" 2},'),
        broken(3, NAME, 4, at + 8, f'{{"a": {{,\n{blanks} "b" 2}}}},\n{blanks}3,'),
        broken(4, VALUE, 7, at + 7, '{"a": },'), (5, ONE),
    ]  # fmt: skip
    text = "[\n" + ",\n".join(blanks + line for line in lines)
    assert read(f"{text}\n]", "array") == read(f"{text} ] \n ", "array") == rows
    assert read(f'{{"n": 1, "rows": {text}\n]}}', "object", "rows") == rows
    # The last one, and a comma that is missing
    assert read(f'[\n{blanks}{{"a": 1}},\n{blanks}{{"a" 2}}\n]\n', "array") == [
        (1, ONE),
        broken(2, COLON, 3, at + 6, '{"a" 2}'),
    ]
    assert read(f'[\n{blanks}{{"a": 1}}\n{blanks}{{"a": 2}},\n{blanks}{{"a": 1}}]', "array") == [
        (1, ONE), broken(2, COMMA, 3, at + 1, '{"a": 2},'), (3, ONE),
    ]  # fmt: skip
    text = f'[\n{blanks}{DEEP},\n{blanks}{{"a": 1}}]'
    (number, said, passed, ends), *rest = read(text, "array")
    assert said.startswith("JSON that cannot be read (") and (number, passed, ends) == (1, DEEP + ",", False)
    assert rest == [(2, ONE)]


@pytest.mark.parametrize("window", [1, 4, 9, 2**18])
@pytest.mark.parametrize(
    ("text", "rows"),
    [
        # Rows that do not begin a line, or are indented too much to be looked at
        ('[{"a": 1}, {"a" 1}, {"a": 1}]', [(1, ONE), last(2, COLON, 1, 17)]),
        ('[{"a" 1},\n{"a": 1}\n]', [last(1, COLON, 1, 7)]), ('[\n1, {"a" 1},\n{"a": 1}\n]', [
            (1, "not a JSON object", 1, False), last(2, COLON, 2, 9)]),
        (f'[\n{200 * " "}{{"a" 1}},\n{200 * " "}{{"a": 1}}\n]', [last(1, COLON, 2, 206)]),
        # A row of several lines that has nothing before it: what is inside may begin as it does
        ('[\n{\n"a" 1},\n{"a": 1}\n]', [last(1, COLON, 3, 5)]),
        ('[\n{\r\n"a" 1},\n{"a": 1}\n]', [last(1, COLON, 3, 5)]),
        ('[\n {\n"a" 1},\n {"a": 1}\n]', [broken(1, COLON, 3, 5, '{\n"a" 1},'), (2, ONE)]),
        # After what is no row nothing is looked for
        ('[\n3 4,\n{"a": 1}\n]', [(1, "not a JSON object", 3, False), last(2, COMMA, 2, 3)]),
        # What is cut off, and an end that may stand inside a row
        ('[\n{"a": 1},\n{"a": 1', [(1, ONE), last(2, "Expecting ',' delimiter", 3, 8)]),
        ('[\n{"a": 1},\n', [(1, ONE), last(2, VALUE, 3, 1)]), ("[", [last(1, VALUE, 1, 2)]),
        ('[\n{"a" [\n {"b": 1}\n ]', [last(1, COLON, 2, 6)]),
        ('[\n {"a" [\n {"b": 1}\n  ]', [broken(1, COLON, 2, 7, '{"a" ['), (2, {"b": 1})]),
        # What is no row
        ('[3, "x", null, {"a": 1}]', [(1, "not a JSON object", 3, False), (2, "not a JSON object", "x", False),
                                      (3, "not a JSON object", None, False), (4, ONE)]),
        ('[{"a": 1}]\n x', [(1, ONE), last(2, "Extra data", 2, 2)]), ("[1}", [
            (1, "not a JSON object", 1, False), last(2, COMMA, 1, 3)]),
    ],
)  # fmt: skip
def test_after_what_nothing_can_be_read(monkeypatch, window, text, rows):
    monkeypatch.setattr(json_rows, "WINDOW", window)
    assert read(text, "array") == rows


@pytest.mark.parametrize("window", [1, 4, 9, 2**18])
def test_objects_that_are_broken(monkeypatch, window):
    monkeypatch.setattr(json_rows, "WINDOW", window)
    assert read('{"a": 1}\n\n  {"a" 1} {"a": 1}', "objects") == [(1, ONE), last(2, COLON, 3, 8)]
    assert read('{"a": 1} 2 "x" {"a": 1}', "objects") == [
        (1, ONE), (2, "not a JSON object", 2, False), (3, "not a JSON object", "x", False), (4, ONE),
    ]  # fmt: skip
    assert read('{"n": 1,\n "rows" [{"a": 1}]}', "object", "rows") == [last(1, "Expecting ':'", 2, 9)]
    assert read('{"rows": [{"a": 1}] "n": 2}', "object", "rows") == [(1, ONE), last(2, COMMA, 1, 21)]
    assert read('{"rows": [{"a": 1}],', "object", "rows") == [(1, ONE), last(2, VALUE, 1, 21)]
    assert read('{"n": ]', "object", "rows") == [last(1, VALUE, 1, 7)]
    assert read("[]", "object", "rows") == [last(1, "Expecting '{'", 1, 1)]


def test_how_far_the_row_after_a_broken_one_is_searched(monkeypatch):
    def text(characters):
        return '[\n{"a" 1},\n' + "x" * characters + '\n{"a": 1}\n]'

    monkeypatch.setattr(json_rows, "WINDOW", 10)
    monkeypatch.setattr(json_rows, "MOST_PASSED_OVER", 100)
    assert read(text(90), "array") == [broken(1, COLON, 2, 6, '{"a" 1},\n' + 90 * "x"), (2, ONE)]
    assert read(text(900), "array") == [last(1, COLON, 2, 6)]
    for more in range(200):  # an end of lines that is no end of the file
        assert read('[\n{"a" 1},\n' + "x" * (100 + more) + "\n]" + "x" * 900, "array") == [last(1, COLON, 2, 6)]

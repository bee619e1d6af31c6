"""The same rows, laid out in every way that a JSON or CSV file can have them, in windows of any size: what was written
is what is read, and of a row that is broken the others are."""

import csv
import io
import itertools
import json

import datasets
import numpy
import pyarrow
import pyarrow.parquet
import pytest

from finllm.data import json_rows, tables
from finllm.data.conversations import Turn, Unfit, Unreadable, arranged, history_of, turns_of
from finllm.data.encoding import decoded, undecoded
from finllm.data.forms import Asked, Form, looks_fixed, recognise
from finllm.data.parts import BadRow
from finllm.data.rows import read_rows
from finllm.data.sources import find_source
from finllm.errors import UserError

ROWS = [
    {"instruction": "What is a bond?", "output": 'A loan: "in pieces", {and} [more].'},
    {"instruction": "Why, then?\n  {", "output": "]\n},\n{\\"},
    {"instruction": "Was heißt „β“ 债?", "output": "-1.5e3"},
    {"output": "12", "instruction": "How many? ]}"},
    {"instruction": "And now", "output": "Nothing."},
]
TEXTS = [json.dumps(row, ensure_ascii=False) for row in ROWS]
PRETTY = [json.dumps(row, ensure_ascii=False, indent=2) for row in ROWS]


def inside(text: str, by: str) -> str:
    return text.replace("\n", "\n" + by)


LINES = {
    "lines": "\n".join(TEXTS), "lines that end": "\n".join(TEXTS) + "\n", "Windows": "\r\n".join(TEXTS) + "\r\n",
    "blank lines": "\n\n" + "\n \n\t\n".join(TEXTS) + "\n\n",
}  # fmt: skip
ARRAYS = {
    "compact": json.dumps(ROWS), "one line": f"[{', '.join(TEXTS)}]", "blanks": f" \n\t [ {' , '.join(TEXTS)} ] \n ",
    "at the line's start": "[\n" + ",\n".join(TEXTS) + "\n]\n", "two": "[\n  " + ",\n  ".join(TEXTS) + "\n]",
    "tabs": "[\n\t" + ",\n\t".join(TEXTS) + "\n]", "Windows": "[\r\n  " + ",\r\n  ".join(TEXTS) + "\r\n]\r\n",
    "comma first": "[ " + "\n, ".join(TEXTS) + "\n]",
    "pretty": json.dumps(ROWS, indent=2, ensure_ascii=False), "four": json.dumps(ROWS, indent=4),
    "none": "[\n" + ",\n".join(PRETTY) + "\n]",
    "beside the bracket": "[" + ",\n ".join(TEXTS) + "]",
}  # fmt: skip
OBJECTS = {
    "after each other": "".join(TEXTS), "pretty": "\n".join(PRETTY), "blanks": "\n " + " \n\n ".join(PRETTY) + " \n",
}  # fmt: skip
KEYED = {
    "data": json.dumps({"data": ROWS}),
    "more": json.dumps({"version": 1, "about": {"a": [1]}, "rows": ROWS, "end": "x"}),
    "pretty": json.dumps({"version": None, "rows": ROWS}, indent=1), "blanks": f'\n {{ "rows" : {json.dumps(ROWS)} }} ',
}  # fmt: skip
FILES = [
    *((".jsonl", name, text) for name, text in LINES.items()),
    *((".json", name, text) for each in (LINES, ARRAYS, OBJECTS, KEYED) for name, text in each.items()),
    *((".jsonl", name, text) for name, text in ARRAYS.items()),
]  # fmt: skip


def read(path):
    return list(read_rows(find_source(path)))


@pytest.mark.parametrize("window", [1, 5, 64, None])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_in_every_layout(tmp_path, monkeypatch, window, mark):
    if window:
        monkeypatch.setattr(json_rows, "WINDOW", window)
    for number, (suffix, name, text) in enumerate(FILES):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes((mark + text).encode())
        rows = read(path)
        assert [row.fields for row in rows] == ROWS, (suffix, name)
        if name not in ("blank lines",):
            assert [row.number for row in rows] == [1, 2, 3, 4, 5], (suffix, name)


BROKEN = {
    "no colon": '{"instruction" "x", "output": "y"}', "no value": '{"instruction": , "output": "y"}',
    "a quote inside": '{"instruction": "a "b" c", "output": "y"}', "cut": '{"instruction": "x", "output": ',
    "a comma too many": '{"instruction": "x",, "output": "y"}', "not closed": '{"instruction": "x", "output": "y"',
    "a single quote": "{'instruction': 'x', 'output': 'y'}", "a word": '{"instruction": x, "output": "y"}',
}  # fmt: skip


@pytest.mark.parametrize("window", [3, None])
@pytest.mark.parametrize("place", range(5))
def test_of_a_row_that_is_broken_the_others_are_read(tmp_path, monkeypatch, window, place):
    if window:
        monkeypatch.setattr(json_rows, "WINDOW", window)
    for (name, broken), (blanks, end), suffix in itertools.product(
        BROKEN.items(), [("", "\n"), ("  ", "\n"), ("\t", "\r\n")], [".json", ".jsonl"]
    ):
        texts = [*TEXTS[:place], broken, *TEXTS[place:]]
        array = suffix == ".json"
        text = f"[{end}" + f",{end}".join(blanks + each for each in texts) + f"{end}]" if array else end.join(texts)
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(text.encode())
        rows = read(path)
        (bad,) = (row for row in rows if isinstance(row, BadRow))
        assert [row.fields for row in rows if row is not bad] == ROWS, (name, blanks, suffix)
        assert rows.index(bad) == place and bad.number == place + 1, (name, blanks, suffix)
        assert bad.content.strip().rstrip(",").strip() == broken.strip(), (name, blanks, suffix)
        # What is not closed is seen where the next row begins
        lines = [place + 2, place + 3][: 1 + (name in ("cut", "not closed"))]
        assert not array or any(bad.reason.startswith(f"line {line}: not JSON") for line in lines), (name, bad)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_csv_in_every_dialect(tmp_path, ends, delimiter, quoting):
    # Between records that end in \r alone, a \n in a text without quotes ends one too.
    kept = {key: str.maketrans({"\n": " "}) for key in ("instruction", "output")} if ends == "\r" else {}
    rows = [{key: text.translate(kept.get(key, {})) for key, text in row.items()} for row in ROWS]
    rows = [{**row, "note": delimiter.join("ab")} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["note", "instruction", "output"], delimiter=delimiter, quoting=quoting, lineterminator=ends
    )
    writer.writeheader()
    writer.writerows(rows)
    for number, (mark, more) in enumerate(itertools.product(("", "\ufeff"), ("", ends))):
        path = tmp_path / f"{number}.csv"
        path.write_bytes((mark + text.getvalue() + more).encode())
        assert [row.fields for row in read(path)] == rows


@pytest.mark.parametrize(
    ("history", "turns"),
    [
        (None, []), ("", []), ("[]", []), ([], []), ([["q", "a"]], [("user", "q"), ("assistant", "a")]),
        ('[["q", "a"], ["r", "b"]]', [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]),
        ([("q", "a")], [("user", "q"), ("assistant", "a")]),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
         [("user", "q"), ("assistant", "a")]),
    ],
)  # fmt: skip
def test_a_history_is_pairs_or_messages(history, turns):
    assert [(turn.role, turn.content) for turn in history_of(history)] == turns


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ("text", "not a list of pairs"), (7, "not a list of pairs"), ({"q": "a"}, "not a list of pairs"),
        (["ab"], "item 1 is .*, not a pair"), ([["q", "a"], ["r"]], "item 2 is .*, not a pair"),
        ([["q", "a", "b"]], "item 1 is .*, not a pair"), ([["q", "a"], 3], "item 2 is .*, not a pair"),
        ([["q", None]], "item 1 holds .* not two texts"), ([[1, "a"]], "item 1 holds .* not two texts"),
    ],
)  # fmt: skip
def test_what_is_no_history_is_named(history, said):
    with pytest.raises(Unreadable, match=said):
        history_of(history)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""), ("a", "a"), ([], ""), (["a", "b"], "a\nb"), ([{"type": "text", "text": "a"}, "b"], "a\nb"),
        ([{"text": "a"}], "a"), ([{"type": "input_text", "text": "a"}], "a"),
        ([{"type": "output_text", "text": "a"}], "a"),
    ],
)  # fmt: skip
def test_content_is_text_or_parts_of_text(content, text):
    (turn,) = turns_of([{"role": "user", "content": content}])
    assert turn.content == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (7, "as its content, not text"), ([{"type": "image_url", "image_url": "x"}], "a part of type image_url"),
        ([{"type": "image", "text": "x"}], "a part of type image"), ([{"type": "text", "text": None}], "of type text"),
        ([7], "turn 1 holds"), (["a", None], "turn 1 holds"),
    ],
)  # fmt: skip
def test_content_that_is_no_text_is_named(content, said):
    with pytest.raises(Unreadable, match=said):
        turns_of([{"role": "user", "content": content}])


def said_by(marks: str) -> list[Turn]:
    """ "s1 u2 a3" as the system's "1", the user's "2", and the assistant's "3"."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Turn(roles[mark[0]], mark[1:]) for mark in marks.split()]


@pytest.mark.parametrize(
    ("turns", "system", "own", "left", "changes"),
    [
        ("u1 a2", "", "", "u1 a2", ()), ("s1 u2 a3", "", "1", "u2 a3", ()), ("s1 s2 u3 a4", "", "1\n\n2", "u3 a4", ()),
        ("u1 a2", "S", "S", "u1 a2", ()), ("s1 u2 a3", "1", "1", "u2 a3", ()), ("s1 u2 a3", " 1 ", "1", "u2 a3", ()),
        ("u1 a2 u3 a4", "", "", "u1 a2 u3 a4", ()), ("u1 a2 u3", "", "", "u1 a2", ("open_end",)),
        ("u1 u2 a3", "", "", "u1\n\n2 a3", ("joined_turns",)), ("u1 a2 a3", "", "", "u1 a2\n\n3", ("joined_turns",)),
        ("u1 u2 a3 a4 u5 u6", "", "", "u1\n\n2 a3\n\n4", ("joined_turns", "open_end")),
    ],
)  # fmt: skip
def test_turns_as_they_can_be_learned(turns, system, own, left, changes):
    left = [Turn(turn.role, turn.content.replace("+", "\n\n")) for turn in said_by(left.replace("\n\n", "+"))]
    assert arranged(said_by(turns), system) == (own, tuple(left), changes)


@pytest.mark.parametrize(
    ("turns", "system", "error", "said"),
    [
        ("u1", "", Unfit, "nobody answers"), ("u1 u2", "", Unfit, "nobody answers"),
        ("s1", "", Unfit, "nobody answers"),
        ("a1 u2 a3", "", Unfit, "the assistant speaks first"), ("u1 s2 a3", "", Unfit, "after the first turn"),
        ("s1 u2 a3", "2", Unreadable, "holds another"), ("u1 a", "", Unfit, "a turn is empty"),
    ],
)  # fmt: skip
def test_turns_that_cannot(turns, system, error, said):
    with pytest.raises(error, match=said):
        arranged(said_by(turns), system)


@pytest.mark.parametrize(
    ("role", "taken"),
    [("user", "user"), ("human", "user"), ("assistant", "assistant"), ("gpt", "assistant"), ("agent", "assistant"),
     ("bot", "assistant"), ("chatgpt", "assistant"), ("model", "assistant"), ("system", "system"),
     ("developer", "system")],
)  # fmt: skip
@pytest.mark.parametrize(("who", "what"), [("role", "content"), ("from", "value")])
def test_who_speaks(role, taken, who, what):
    assert turns_of([{who: role, what: "x"}]) == [Turn(taken, "x")]


@pytest.mark.parametrize(
    ("block", "encoding"),
    [("\ufeffab".encode("utf-16-le"), "UTF-16"), ("\ufeffab".encode("utf-16-be"), "UTF-16"),
     ("ab".encode("utf-16-le"), "UTF-16-LE"), ("ab".encode("utf-16-be"), "UTF-16-BE")],
)  # fmt: skip
def test_two_bytes_a_character_are_told(block, encoding):
    with pytest.raises(UserError, match=f"it looks like {encoding}: give --encoding {encoding.lower()}"):
        decoded(block, "a.csv", "")
    assert decoded(block, "a.csv", encoding).strip("\ufeff") == "ab"


def test_a_byte_that_is_not_utf_8_is_named():
    text = b"a\x80b\xff".decode("utf-8", "surrogateescape")
    assert undecoded(text) == "byte 0x80 is not UTF-8" and undecoded(text[3:]) == "byte 0xff is not UTF-8"
    assert undecoded("a\x80ÿ") == "" and decoded(b"a\0b", "a", "") == "a\0b"


@pytest.mark.parametrize(
    ("columns", "form", "question", "given", "answer"),
    [
        ("instruction input output", "", "instruction", "input", "output"),
        ("instruction context input output", "", "instruction", "input", "output"),
        ("Instruction Context Output", "", "Instruction", "Context", "Output"),
        ("instruction context input response", "dolly", "instruction", "context", "response"),
        ("question input context answer", "", "question", "context", "answer"),
        ("question input answer", "", "question", "input", "answer"), ("query response", "", "query", None, "response"),
        ("prompt completion", "", "prompt", None, "completion"), ("context target", "", "context", None, "target"),
    ],
)  # fmt: skip
def test_which_column_holds_what(columns, form, question, given, answer):
    found = recognise(columns.split(), Asked(form, {}, ()), "file")
    assert (found.instruction, found.input, found.output) == (question, given, answer)


@pytest.mark.parametrize(
    ("instructions", "inputs", "rows", "fixed"),
    [(1, 20, 20, True), (2, 20, 20, True), (3, 20, 20, False), (1, 10, 20, False), (1, 11, 20, True), (1, 3, 3, True),
     (2, 3, 3, False), (1, 2, 2, False)],
)  # fmt: skip
def test_one_instruction_before_many_inputs(instructions, inputs, rows, fixed):
    made = [{"instruction": f"do {n % instructions}", "input": f"text {n % inputs}"} for n in range(rows)]
    form = recognise(["instruction", "input", "output"], Asked("", {}, ()), "file")
    assert isinstance(form, Form) and looks_fixed(made, form) is fixed


def as_text(row: dict) -> dict:
    return {name: each if each is None else str(each) for name, each in row.items()}


@pytest.mark.parametrize("batch", [1, 3, 4096])
@pytest.mark.parametrize("suffix", ["parquet", "arrow", "stream.arrow", "saved", "saved splits"])
def test_tables_in_batches_of_any_size(tmp_path, monkeypatch, batch, suffix):
    """Numbers of 16 and 32 bits are the shortest text that is them, others what they are; what is null stays so."""
    monkeypatch.setattr(tables, "BATCH", batch)
    numbers = [9.4, -0.1, 1e-3, None, 123.5]
    columns = {
        **{name: [row[name] for row in ROWS] for name in ("instruction", "output")},
        "half": pyarrow.array([None if n is None else numpy.float16(n) for n in numbers], pyarrow.float16()),
        "single": pyarrow.array(numbers, pyarrow.float32()), "double": pyarrow.array(numbers, pyarrow.float64()),
        "whole": pyarrow.array([1, 2, None, 4, 5], pyarrow.int32()),
    }  # fmt: skip
    table, path = pyarrow.table(columns), tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    elif "arrow" in suffix:
        new = pyarrow.ipc.new_stream if "stream" in suffix else pyarrow.ipc.new_file
        with new(path, table.schema) as file:
            file.write_table(table, max_chunksize=2)
    elif suffix == "saved":
        datasets.Dataset(table).save_to_disk(path)
    else:
        parts = {"train": table.slice(0, 3), "test": table.slice(3)}
        datasets.DatasetDict({name: datasets.Dataset(part) for name, part in parts.items()}).save_to_disk(path)
    rows = read(path)
    found = sorted((as_text(row.fields) for row in rows), key=lambda row: row["output"])
    expected = [
        {**ROWS[n], **{name: None if number is None else str(number) for name in ("half", "single", "double")},
         "whole": None if n == 2 else str(n + 1)}
        for n, number in enumerate(numbers)
    ]  # fmt: skip
    assert found == sorted(expected, key=lambda row: row["output"])
    assert sorted(row.number for row in rows) == ([1, 1, 2, 2, 3] if "splits" in suffix else [1, 2, 3, 4, 5])

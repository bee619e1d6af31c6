"""Nothing is lost or changed unseen: bad rows, columns, changes, odd CSV files and encodings are told."""

import json
import textwrap

import pytest

from finllm.data.dataset_dir import DatasetDir
from finllm.data.prepare import resolve
from finllm.data.split import SPLITS
from finllm.errors import UserError
from finllm.files import read_jsonl
from finllm.text.prompts import CHAT, TEMPLATE_HASH, TEMPLATE_ID


def rows_of(folder):
    return {row["instruction"]: row for split in SPLITS for row in DatasetDir(folder).rows(split)}


BAD = '{"instruction": "a", \n{"instruction": "b", "output": null}\n[1]\n{"instruction": ["c"], "output": "x"}\n'


def test_bad_rows_of_every_kind_are_found_in_one_go(tmp_path, make_rows, finllm_prepare):
    good = "".join(json.dumps(row) + "\n" for row in make_rows(20))
    (tmp_path / "a.jsonl").write_text(BAD + good)
    status, _, err = finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "data")
    assert status == 2 and [line.split(" (")[0] for line in err.splitlines()[1:]] == [
        "  a.jsonl, line 1: not JSON", "  a.jsonl, line 2: output is null or missing",
        "  a.jsonl, line 3: not a JSON object", "  a.jsonl, line 4: instruction is list",
    ]  # fmt: skip
    assert "error: 4 bad rows" in err and "--skip_bad_rows" in err and str(tmp_path / "data.bad_rows.jsonl") in err
    bad = read_jsonl(tmp_path / "data.bad_rows.jsonl")
    assert [row["line"] for row in bad] == [1, 2, 3, 4] and not (tmp_path / "data").exists()
    status, out, err = finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "data", "--skip_bad_rows")
    assert status == 0 and "bad rows left out: 4" in out and "4 dropped, 20 kept" in out, err
    assert read_jsonl(tmp_path / "data/rejected.jsonl") == bad and not (tmp_path / "data.bad_rows.jsonl").exists()
    manifest = DatasetDir(tmp_path / "data").manifest
    assert manifest["bad_rows"] == 4 and manifest["source"]["rows"] == 24


def test_twenty_bad_rows_are_shown_and_all_are_in_the_file(tmp_path, make_rows, finllm_prepare):
    rows = [*make_rows(5), *[{"instruction": "q", "output": None}] * 27]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, _, err = finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "data")
    assert len(err.splitlines()) == 22 and err.splitlines()[-1] == "  and 7 more"
    assert len(read_jsonl(tmp_path / "data.bad_rows.jsonl")) == 27


def test_what_cannot_be_read_on_is_not_skipped(tmp_path, make_rows, finllm_prepare):
    (tmp_path / "a.json").write_text(json.dumps(make_rows(9))[:-9])
    status, _, err = finllm_prepare(tmp_path / "a.json", "--output_dir", tmp_path / "data", "--skip_bad_rows")
    assert status == 2 and "nothing after it can be read" in err and "--skip_bad_rows does not help there" in err


def broken(rows, indent, prefix=""):
    """A JSON array whose rows 3 and 7 are broken, and what is left of it."""
    lines = [textwrap.indent(json.dumps(row, indent=indent), prefix) for row in rows]
    lines[2] = lines[2].replace('"output": "', '"output": ')
    lines[6] = lines[6].replace("}", "").rstrip()
    return "[\n" + ",\n".join(lines) + "\n]\n", [row for number, row in enumerate(rows, 1) if number not in (3, 7)]


@pytest.mark.parametrize(("indent", "prefix"), [(None, ""), (None, "  "), (2, "  "), (4, "\t")])
@pytest.mark.parametrize("window", [64, 1 << 18])
@pytest.mark.parametrize("keyed", [False, True])
def test_a_broken_row_of_an_array_is_skipped_where_rows_begin_lines(
    indent, prefix, window, keyed, tmp_path, make_rows, finllm_prepare, monkeypatch
):
    monkeypatch.setattr("finllm.data.json_rows.WINDOW", window)
    rows = [{**row, "history": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": "b"}]}
            for row in make_rows(12)]  # fmt: skip
    text, good = broken(rows, indent, prefix)
    (tmp_path / "a.json").write_text(f'{{"data": {text}, "more": 1}}' if keyed else text)
    status, _, err = finllm_prepare(tmp_path / "a.json", "--output_dir", tmp_path / "data")
    assert status == 2 and "2 bad rows" in err and "a.json, row 3: line" in err and "a.json, row 7: line" in err
    assert "pass --skip_bad_rows to go on without them" in err
    status, _, err = finllm_prepare(tmp_path / "a.json", "--output_dir", tmp_path / "data", "--skip_bad_rows")
    assert status == 0, err
    assert rows_of(tmp_path / "data").keys() == {row["instruction"] for row in good}
    left = read_jsonl(tmp_path / "data/rejected.jsonl")
    assert [row["line"] for row in left] == [3, 7]
    for row, wanted in zip(left, (rows[2], rows[6]), strict=True):  # all that was passed over is there
        assert wanted["instruction"] in row["row"] and row["row"].count('"instruction"') == 1


@pytest.mark.parametrize("kind", ["one line", "no indentation", "cut off", "cut off after a list", "last, on its line"])
def test_where_the_next_row_of_an_array_is_not_sure_nothing_is_skipped(kind, tmp_path, make_rows, finllm_prepare):
    rows = [{**row, "tags": [{"a": 1}, {"a": 2}]} for row in make_rows(9)]
    text = json.dumps(rows, indent=0 if kind == "no indentation" else None if kind == "one line" else 1)
    text = text[: text.rindex('"tags"')] if kind == "cut off" else text[: text.rindex("]", 0, -5) + 1] if (
        kind == "cut off after a list") else text.replace("fund 3, ", 'fund 3", ')  # fmt: skip
    text = text.replace("fund 8, ", 'fund 8", ')[:-2] + "]" if kind == "last, on its line" else text
    (tmp_path / "a.json").write_text(text)
    status, _, err = finllm_prepare(tmp_path / "a.json", "--output_dir", tmp_path / "data", "--skip_bad_rows")
    assert status == 2 and "nothing after it can be read" in err and "--skip_bad_rows does not help there" in err
    assert not (tmp_path / "data").exists()


def test_a_quote_that_nothing_closes_is_named_with_its_lines(tmp_path, finllm_prepare):
    rows = [f"Question {n}?,Answer {n}" for n in range(40)]
    rows[20] = 'Question 20?,"Answer 20'
    (tmp_path / "a.csv").write_text("question,answer\n" + "\n".join(rows) + "\n")
    status, _, err = finllm_prepare(tmp_path / "a.csv", "--output_dir", tmp_path / "data", "--skip_bad_rows")
    assert status == 2 and "--skip_bad_rows does not help there" in err
    assert "a.csv, line 22: the record that starts here is not CSV (unexpected end of data)" in err
    assert "it was read up to line 41, since a quote in it is not closed where it should be" in err


def test_columns_that_hold_something_and_bad_rows_and_other_files_are_told_at_once(tmp_path, make_rows, finllm_prepare):
    (tmp_path / "mine").mkdir()
    good = "".join(json.dumps({**row, "tools": ["a"]}) + "\n" for row in make_rows(20))
    (tmp_path / "mine/a.jsonl").write_text(BAD + good)
    (tmp_path / "mine/b.jsonl").write_text('{"Frage": "q", "Antwort": "a"}\n')
    (tmp_path / "mine/c.jsonl").write_text('{"chosen": "q", "rejected": "a", "prompt": "x"}\n')
    status, _, err = finllm_prepare(tmp_path / "mine", "--output_dir", tmp_path / "data")
    assert status == 2 and "error: 4 problems in" in err
    for said in ("the column 'tools' holds something", "4 bad rows", "b.jsonl, which has the columns Frage, Antwort",
                 "these are preferences", "a.jsonl, line 3: not a JSON object"):  # fmt: skip
        assert said in err, said
    assert len(read_jsonl(tmp_path / "data.bad_rows.jsonl")) == 4


def test_the_manifest_names_the_template_that_takes_all_rows(tmp_path, make_rows, write, finllm_prepare):
    write(tmp_path / "a.jsonl", make_rows(9))
    finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "single")
    assert DatasetDir(tmp_path / "single").manifest["template"] == {"id": TEMPLATE_ID, "hash": TEMPLATE_HASH}
    write(tmp_path / "b.jsonl", [*make_rows(9), {**make_rows(1, 9)[0], "system": "Be brief."}])
    finllm_prepare(tmp_path / "b.jsonl", "--output_dir", tmp_path / "chats")
    assert DatasetDir(tmp_path / "chats").manifest["template"] == {"id": CHAT, "hash": None}
    _, out, _ = finllm_prepare(tmp_path / "b.jsonl", "--output_dir", tmp_path / "chats")
    assert "left as it is" in out


def test_files_and_columns_are_told_and_in_the_manifest(tmp_path, make_rows, write, finllm_prepare):
    (tmp_path / "mine/below").mkdir(parents=True)
    write(tmp_path / "mine/below/a.jsonl", [{**row, "topic": "funds", "note": None} for row in make_rows(30)])
    (tmp_path / "mine/notes.txt").write_text("none")
    status, out, err = finllm_prepare(tmp_path / "mine", "--output_dir", tmp_path / "data")
    assert status == 0, err
    for line in ("below/a.jsonl: 30 rows", "notes.txt: the format '.txt' is not read", "topic (30), note (0)"):
        assert line in out
    manifest = DatasetDir(tmp_path / "data").manifest
    assert manifest["left_alone"] == [{"file": "notes.txt", "reason": "the format '.txt' is not read"}]
    assert manifest["left_out"] == {"topic": 30, "note": 0} and manifest["files"][0]["rows"] == 30


def test_every_change_is_written_and_one_of_each_step_is_shown(tmp_path, make_rows, write, finllm_prepare):
    write(tmp_path / "a.jsonl", [{**make_rows(1)[0], "output": " Itâ€™s "}, *make_rows(9, 1)])
    _, out, _ = finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "data")
    changes = read_jsonl(tmp_path / "data/changed.jsonl")
    assert changes[:2] == [
        {"file": "a.jsonl", "line": 1, "step": "strip", "field": "output", "before": " Itâ€™s ", "after": "Itâ€™s"},
        {"file": "a.jsonl", "line": 1, "step": "unicode", "field": "output", "before": "Itâ€™s", "after": "It’s"},
    ]
    assert len(changes) == 11 and "unicode, a.jsonl:1: 'Itâ€™s' → 'It’s'" in out


def test_sources_of_the_recipe_are_told_too_and_its_hints_name_a_command(tmp_path, make_rows, write, capsys):
    write(tmp_path / "a.jsonl", [{**row, "topic": "funds"} for row in (*make_rows(30), *make_rows(2))])
    for _ in range(2):  # prepared, and found ready
        resolve(tmp_path / "a.jsonl", tmp_path / "cache")
        told = capsys.readouterr().err
        assert "read as: Alpaca" in told and "topic (32)" in told and "32 rows read" in told and "2 dropped" in told
    write(tmp_path / "b.jsonl", [{"Frage": "q", "Antwort": "a"}])
    with pytest.raises(UserError) as raised:
        resolve(tmp_path / "b.jsonl", tmp_path / "cache")
    assert f"finllm prepare {tmp_path / 'b.jsonl'} --output_dir DATASET_DIR" in str(raised.value)


@pytest.mark.parametrize(("line", "said"), [
    ('{"instruction": "Q?", "output": "first", "output": "A"}', "two columns are named 'output'"),
    ('{"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "a", "content": "b"}]}',
     "turn 2 has _Twice (two values of one name) as its content"),
    ('{"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "a", "thinking": "So."}]}',
     "turn 2 has thinking beside its content, which would be lost"),
    ('{"functions": [{"name": "f"}], "question": "Q?", "answer": "A"}', "the column 'functions' holds something"),
])  # fmt: skip
def test_what_a_row_says_twice_or_beside_its_answer_is_not_lost(line, said, tmp_path, finllm_prepare):
    (tmp_path / "a.jsonl").write_text("".join(line.replace("Q?", f"Q{n}?") + "\n" for n in range(9)))
    status, _, err = finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "data")
    assert status == 2 and said in err


QUOTED = 'Is it "fair", or not?'
CSVS = {
    "comma": 'question,answer\n"Is it ""fair"", or not?","Yes, 7"\n',
    "semicolon": 'question;answer\n"Is it ""fair"", or not?";Yes, 7\n',
    "tab": 'question\tanswer\n"Is it ""fair"", or not?"\tYes, 7\n',
    "tab without quoting": 'question\tanswer\nIs it "fair", or not?\tYes, 7\n',
    "pipe": 'question|answer\nIs it "fair", or not?|Yes, 7\n',
    "blanks after commas": 'question, answer\n"Is it ""fair"", or not?", "Yes, 7"\n',
    "backslashes": 'question,answer\n"Is it \\"fair\\", or not?","Yes, 7"\n',
    "single quotes": "'question','answer'\n'Is it \"fair\", or not?','Yes, 7'\n",
    "return": 'question,answer\r"Is it ""fair"", or not?","Yes, 7"\r',
    "return and line feed": 'question,answer\r\n"Is it ""fair"", or not?","Yes, 7"\r\n',
    "trailing fields": 'question,answer,,\n"Is it ""fair"", or not?","Yes, 7",,\n',
    "missing fields": 'question,answer,topic\n"Is it ""fair"", or not?","Yes, 7"\n',
    "names twice": 'id,question,answer,id\n1,"Is it ""fair"", or not?","Yes, 7",2\n',
    "an index": ',Question,Answer\n0,"Is it ""fair"", or not?","Yes, 7"\n',
    "Excel's line": 'sep=;\nquestion;answer;topic\n"Is it ""fair"", or not?";Yes, 7;a\n',
    "byte order mark": '\ufeffquestion,answer\n"Is it ""fair"", or not?","Yes, 7"\n',
}


@pytest.mark.parametrize("kind", CSVS)
def test_csv_as_programs_write_it(kind, tmp_path, finllm_prepare):
    *head, row, _ = CSVS[kind].replace("\r\n", "\r").replace("\r", "\n").split("\n")
    end = "\r\n" if "\r\n" in CSVS[kind] else "\r" if "\r" in CSVS[kind] else "\n"
    lines = [*head, *(row.replace("fair", f"fair{n or ''}") for n in range(12))]
    (tmp_path / "a.csv").write_bytes((end.join(lines) + end).encode())
    status, _, err = finllm_prepare(tmp_path / "a.csv", "--output_dir", tmp_path / "data")
    assert status == 0, err
    rows = rows_of(tmp_path / "data")
    assert len(rows) == 12 and rows[QUOTED]["output"] == "Yes, 7"


def test_a_missing_field_matters_in_a_wanted_column_and_names_must_be_unique_there(tmp_path, finllm_prepare):
    rows = "".join(f"Question {n}?,Answer {n}\n" for n in range(9))
    (tmp_path / "a.csv").write_text(f"question,answer,topic\n{rows}Another?\n")
    status, _, err = finllm_prepare(tmp_path / "a.csv", "--output_dir", tmp_path / "data")
    assert status == 2 and "a.csv, line 11: output (column answer) is null or missing" in err
    (tmp_path / "a.csv").write_text("question,answer,answer\nWhy?,So,Thus\n")
    status, _, err = finllm_prepare(tmp_path / "a.csv", "--output_dir", tmp_path / "data")
    assert status == 2 and "two columns are named 'answer'" in err


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Was kostet das Café in Köln am Tag {}?"),
        ("gb18030", "请问第{}只基金的主要风险和费用分别是什么？"),
        ("shift_jis", "第{}番の投資信託の主なリスクは何ですか？"),
        ("utf-16", "Was kostet das Café in Köln am Tag {}?"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_another_encoding_is_named_and_read(encoding, text, suffix, tmp_path, finllm_prepare):
    rows = [{"question": text.format(n), "answer": f"A{n}"} for n in range(20)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if suffix == ".csv":
        lines = ["question,answer", *(f"{row['question']},{row['answer']}" for row in rows)]
    source = tmp_path / f"a{suffix}"
    source.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    status, _, err = finllm_prepare(source, "--output_dir", tmp_path / "data")
    assert status == 2 and f"--encoding {encoding}" in err
    status, _, err = finllm_prepare(source, "--output_dir", tmp_path / "data", "--encoding", encoding)
    assert status == 0, err
    assert text.format(7) in rows_of(tmp_path / "data")
    status, _, err = finllm_prepare(source, "--output_dir", tmp_path / "no", "--encoding", "utf-88")
    assert status == 2 and "--encoding 'utf-88' is not known (did you mean 'utf-8'?)" in err


def test_numbers_keep_their_text_in_every_container(tmp_path, finllm_prepare):
    import pyarrow
    import pyarrow.parquet

    values = ["9.40", "7", "1e5", "true", "-0.5", "100000000000000000000.5"]
    lines = [f'{{"question": "Q{n}?", "answer": {value}}}' for n, value in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "data")[0] == 0
    assert [rows_of(tmp_path / "data")[f"Q{n}?"]["output"] for n in range(6)] == values
    table = pyarrow.table(
        {"question": ["Q0?", "Q1?", "Q2?"], "answer": pyarrow.array([9.4, 0.1, 3], pyarrow.float32())}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert finllm_prepare(tmp_path / "a.parquet", "--output_dir", tmp_path / "tables")[0] == 0
    assert [rows_of(tmp_path / "tables")[f"Q{n}?"]["output"] for n in range(3)] == ["9.4", "0.1", "3"]
    (tmp_path / "b.jsonl").write_text("\n".join([*lines, '{"question": "None?", "answer": NaN}']))
    _, out, _ = finllm_prepare(tmp_path / "b.jsonl", "--output_dir", tmp_path / "nan")
    assert "1 dropped, 6 kept" in out


def test_a_conversation_late_in_a_source_gives_all_rows_the_two_fields(tmp_path, make_rows, write, finllm_prepare):
    write(tmp_path / "a.jsonl", [*make_rows(30), {**make_rows(1, 40)[0], "history": [["Hi", "Hello."]]}])
    assert finllm_prepare(tmp_path / "a.jsonl", "--output_dir", tmp_path / "data")[0] == 0
    rows = rows_of(tmp_path / "data")
    assert all(list(row)[-2:] == ["system", "history"] for row in rows.values()) and len(rows) == 31
    assert sum(bool(row["history"]) for row in rows.values()) == 1
    DatasetDir(tmp_path / "data").check()

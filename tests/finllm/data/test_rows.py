"""Reading: every format, alone, in a folder and in a zip; and what is said of files that cannot be read."""

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from finllm.data import parts as parts_module
from finllm.data.encoding import likely
from finllm.data.parts import BadRow
from finllm.data.rows import read_rows, source_hash
from finllm.data.sources import find_source
from finllm.errors import UserError

ROWS = [
    {
        "instruction": "What is a bond?",
        "input": "",
        "output": "A loan, cut into pieces that can be sold.\nIt pays interest.",
    },
    {
        "instruction": "What is “beta”?",
        "input": 'He said: "high, 1.4"',
        "output": "Swings – against the market’s.\u2028Always.",
    },
]


def read(path):
    return list(read_rows(find_source(path)))


def write(path: Path, rows=ROWS) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["instruction", "input", "output"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_gives_the_same_rows(tmp_path, suffix, zipped):
    path = write(tmp_path / f"Dataset{suffix}")
    name = path.name
    if zipped:
        with zipfile.ZipFile(tmp_path / "Dataset.zip", "w") as archive:
            archive.write(path, path.name)
            archive.writestr("__MACOSX/._Dataset.json", b"\x00")
            archive.writestr("README.md", "no data")
        path, name = tmp_path / "Dataset.zip", f"Dataset.zip/{path.name}"
    rows = read(path)
    assert [row.fields for row in rows] == ROWS
    assert {row.file for row in rows} == {name}
    assert [row.number for row in rows] == ([2, 4] if suffix == ".csv" else [1, 2])  # a header, an answer of two lines
    assert rows[1].place == (
        f"{name}, line 4" if suffix == ".csv" else f"{name}, {'line' if 'l' in suffix[-1] else 'row'} 2"
    )


def test_json_object_with_one_list(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert [row.fields for row in read(path)] == ROWS
    path.write_text(json.dumps({"train": ROWS, "more": ROWS}))
    with pytest.raises(UserError, match=r"rows\.json: the JSON object holds 2 lists \(train, more\)"):
        read(path)


def test_folder_is_read_in_order_of_names_and_below(tmp_path):
    for name in ("b.jsonl", "a.csv", ".hidden.jsonl"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "c.jsonl")
    names = ["a.csv", "b.jsonl", "below/c.jsonl"]
    assert [row.file for row in read(tmp_path)] == [name for name in names for _ in range(2)]
    left = {each.file: each.reason for each in find_source(tmp_path).left_alone}
    assert left == {".hidden.jsonl": "hidden", "notes.txt": "the format '.txt' is not read"}


def test_byte_order_mark_blank_lines_and_long_fields(tmp_path):
    long = {"instruction": "i", "input": "", "output": "word " * 100_000}
    path = write(tmp_path / "a.csv", [long])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row.fields for row in read(path)] == [long]
    path = write(tmp_path / "a.jsonl")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"}\n", b"}\r\n\r\n"))
    assert [(row.fields, row.number) for row in read(path)] == [(ROWS[0], 1), (ROWS[1], 3)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'"text"', "neither a JSON array of rows, nor an object"),
        ("a.json", b'{"a": 1}', "the JSON object holds no list of rows (its keys: a)"),
        ("a.json", b'{"a": {"0": "x"}}', "with pandas: to_json("),
        ("a.json", b'{"train": [{"a": 1}], "b": }', "a.json, line 1: not JSON"),
        ("a.parquet", b"PAR1 but no more", "not a Parquet file that can be read"),
        ("a.arrow", b"ARROW1 but no more", "not a Arrow file that can be read"),
        ("a.zip", b"PK\x03\x04 and no more", "not a zip file that can be read"),
        ("a.jsonl.gz", b"\x1f\x8b and no more", "not a .gz file that can be read"),
        ("a.jsonl.bz2", b"BZh and no more", "not a .bz2 file that can be read"),
        ("a.jsonl.zst", b"(\xb5/\xfd and no more", "not a .zst file that can be read"),
        ("a.xlsx", b"", "the format '.xlsx' is not read; known are .json, .jsonl,"),
        ("a.csv", "a,b\n1,é\n".encode("utf-16"), "a.csv is not UTF-8; it looks like UTF-16: give --encoding utf-16"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16-be"), "give --encoding utf-16-be"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS and holds no rows"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "data", "good", "bad"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n{"a": 2}\n', 2, "a.jsonl, line 2: not JSON (Expecting value, column 6)"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', 1, "a.jsonl, line 3: not a JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', 1, "a.jsonl, line 2: byte 0xe9 is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a":' + b"[" * 100_000, 1, "a.jsonl, line 2: JSON that cannot be read"),
        ("a.json", b'[{"a": 1},\n {"a": }]', 1, "a.json, row 2: line 2: not JSON"),
        ("a.json", b'[{"a": 1}, 7, {"a": 2}]', 2, "a.json, row 2: not a JSON object"),
        ("a.json", b'[{"a": 1}, {"a": "caf\xe9"}]', 1, "a.json, row 2: byte 0xe9 is not UTF-8"),
        ("a.json", b'[{"a": 1}] [{"a": 2}]', 1, "a.json, row 2: line 1: not JSON (Extra data"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n4,5\n", 2, "a.csv, line 3: 3 fields where the header has 2"),
        ("a.csv", b'a,b\n1,2\n1,"x" y\n4,5\n', 2, "a.csv, line 3: the record that starts here is not CSV"),
        ("a.csv", b'a,b\n1,2\n1,"2\n\n3', 1, "a.csv, line 3: the record that starts here is not CSV"),
        ("a.csv", b"a,b\n1,2\n1,\xff\n", 1, "a.csv, line 3: byte 0xff is not UTF-8"),
    ],
)
def test_bad_rows_are_named_and_the_others_are_read(tmp_path, name, data, good, bad):
    path = tmp_path / name
    path.write_bytes(data)
    rows = read(path)
    (found,) = (row for row in rows if isinstance(row, BadRow))
    assert f"{found.place}: {found.reason}".startswith(bad)
    assert len(rows) == good + 1


@pytest.mark.parametrize("member", ["../rows.jsonl", "/etc/rows.jsonl", "a/../../rows.jsonl", "C:/rows.jsonl"])
def test_zip_members_that_lead_outside_are_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.jsonl", json.dumps(ROWS[0]))
        archive.writestr(member, json.dumps(ROWS[0]))
    with pytest.raises(UserError, match=f"'{re.escape(member)}' leads outside the archive"):
        read(tmp_path / "a.zip")


def test_zip_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", json.dumps({"output": "0" * 50_000}))
    assert len(read(tmp_path / "a.zip")) == 1
    monkeypatch.setattr(parts_module, "MAX_UNZIPPED_BYTES", 50_000)
    with pytest.raises(UserError, match=r"unpacks to 50,0.. bytes and the limit is 50,000"):
        read(tmp_path / "a.zip")


def test_a_zip_whose_packed_data_is_damaged_is_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", "".join(json.dumps({"output": f"answer {n}"}) + "\n" for n in range(500)))
    content = bytearray(path.read_bytes())
    for damage in (b"\xff" * 20, b"\x00" * 20):
        content[60:80] = damage
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: not a zip file that can be read"):
            read(path)


def test_an_encrypted_zip_is_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.jsonl", "{}")
    content = bytearray(path.read_bytes())
    for signature, offset in (
        (b"PK\x03\x04", 6),
        (b"PK\x01\x02", 8),
    ):  # flags, at the data and in the directory
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: its member 'rows\.jsonl' is encrypted; pack it anew"):
        read(path)


def test_zip_without_data_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("README.md", "nothing")
    with pytest.raises(UserError, match="holds no file that can be read"):
        read(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["rows.jsonl", "data/rows.csv", "./a/b", "/no/such/folder", "markets", "a/b/c"])
def test_missing_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="missing file: there is no file or folder") as raised:
        find_source(name)
    assert str(Path(name).absolute()) in str(raised.value)


def test_missing_file_suggests_what_is_there(tmp_path):
    write(tmp_path / "finance.jsonl")
    with pytest.raises(UserError, match=r"did you mean '.*finance\.jsonl'"):
        find_source(tmp_path / "finanse.jsonl")
    with pytest.raises(UserError, match="did you mean 'sample'"):
        find_source("smaple")
    with pytest.raises(UserError, match="holds no file that can be read"):
        (tmp_path / "empty").mkdir()
        find_source(tmp_path / "empty")


def test_existing_path_wins_over_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_source("owner/name").files == ()
    (tmp_path / "owner/name").mkdir(parents=True)
    write(tmp_path / "owner/name/a.jsonl")
    assert len(read("owner/name")) == 2


def test_hub_splits_are_put_together(monkeypatch):
    import datasets

    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(splits))
    rows = read("owner/name")
    assert [row.fields for row in rows] == [*ROWS, ROWS[0]]
    assert rows[2].place == "owner/name (test), row 1"
    before = source_hash(find_source("owner/name"))
    splits["test"] = datasets.Dataset.from_list(ROWS[1:])
    assert source_hash(find_source("owner/name")) != before


def test_hub_out_of_reach_names_the_ways_without_it():
    code = (
        "from finllm.data.rows import *; from finllm.data.sources import find_source; "
        "list(read_rows(find_source('owner/name')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    for part in ("UserError: 'owner/name'", "a local file, a folder", "HF_HUB_OFFLINE=1", "'sample'"):
        assert part in last


def test_sample_is_the_one_that_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = read("sample")
    assert len(rows) > 100
    assert all({"instruction", "input", "output"} <= set(row.fields) for row in rows)


def test_source_hash_is_of_names_and_bytes(tmp_path):
    path = write(tmp_path / "a.jsonl")
    before = source_hash(find_source(path))
    assert source_hash(find_source(tmp_path)) == before  # the folder holds that file alone
    write(path, ROWS[:1])
    assert source_hash(find_source(path)) != before


def test_heavy_libraries_are_not_imported_for_text():
    code = (
        "import sys; from finllm.data import prepare; from finllm.data.rows import *; "
        "from finllm.data.sources import find_source; "
        "list(read_rows(find_source('sample'))); heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'ftfy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("café", "cp1252"),
        ("Müller, 5 €", "cp1252"),
        ("请问基金的风险是什么？", "gb18030"),
        ("株価は何ですか", "shift_jis"),
    ],
)
def test_the_likely_encoding_of_a_short_text(text, encoding):
    assert likely(text.encode(encoding)) == encoding

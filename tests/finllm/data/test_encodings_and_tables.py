"""Bytes that are not UTF-8, and rows of tables in batches: what is said, guessed and read, in literals."""

import io

import datasets
import numpy
import pyarrow
import pyarrow.parquet
import pytest

from finllm.data import tables
from finllm.data.encoding import KNOWN, check_encoding, codec, decoded, likely, undecoded
from finllm.data.parts import Part, RawRow
from finllm.errors import UserError


def test_an_encoding_that_nobody_knows():
    for name in ("", *KNOWN, "UTF8", "latin1"):
        check_encoding(name)
    with pytest.raises(UserError) as raised:
        check_encoding("cp1253x")
    assert str(raised.value) == (
        "--encoding 'cp1253x' is not known (did you mean 'cp1252'?); take one of utf-8, utf-16, cp1252, latin-1, "
        "cp1251, gb18030, big5, shift_jis, euc_jp, euc_kr, or another that Python knows"
    )


def test_a_byte_order_mark_is_no_part_of_a_text_in_utf_8():
    assert [codec(name) for name in ("", "utf-8", "UTF8", "utf_8_sig", "utf-16", "cp1252")] == [
        "utf-8-sig", "utf-8-sig", "utf-8-sig", "utf_8_sig", "utf-16", "cp1252",
    ]  # fmt: skip
    for name in ("", "utf-8"):
        assert decoded("\ufeffaé".encode(), "x", name) == decoded("aé".encode(), "x", name) == "aé"
    assert decoded("\ufeffaé".encode("utf-16-le"), "x", "utf-16") == "aé"


@pytest.mark.parametrize(
    ("block", "encoding", "text"),
    [
        (b"caf\xe9", "", "caf\ufffd"), (b"caf\xe9", "cp1252", "café"), (b"a\x81b", "cp1252", "a\ufffdb"), (b"", "", ""),
        # What the end of a block cuts off is left out where the encoding is given
        ("aé".encode()[:-1], "utf-8", "a"), ("a债".encode("gb18030")[:-1], "gb18030", "a"),
        # A third of the first 200 bytes may be zero, and no more
        (b"a\0b", "", "a\0b"), (b"ab\0" * 66 + b"ab" + b"\0" * 99, "", "ab\0" * 66 + "ab" + "\0" * 99),
    ],
)  # fmt: skip
def test_the_beginning_of_a_file_as_text(block, encoding, text):
    assert decoded(block, "x", encoding) == text


@pytest.mark.parametrize(
    ("block", "encoding"),
    [
        ("\ufeffab".encode("utf-16-le"), "utf-16"), ("\ufeff债".encode("utf-16-be"), "utf-16"),
        ("ab".encode("utf-16-le"), "utf-16-le"), ("ab".encode("utf-16-be"), "utf-16-be"), (b"a\0bc\0", "utf-16-le"),
        (b"ab\0c\0", "utf-16-be"), (b"ab\0" * 65 + b"\0\0bab" + b"x" * 99, "utf-16-be"),
    ],
)  # fmt: skip
def test_what_looks_like_two_bytes_a_character(block, encoding):
    with pytest.raises(UserError) as raised:
        decoded(block, "the/a.csv", "")
    assert str(raised.value) == (
        f"the/a.csv is not UTF-8; it looks like {encoding.upper()}: give --encoding {encoding}"
    )


def test_the_first_byte_that_could_not_be_decoded_is_named():
    assert undecoded(b"a\x80b\xff".decode("utf-8", "surrogateescape")) == "byte 0x80 is not UTF-8"
    assert undecoded(b"\xff\x80".decode("utf-8", "surrogateescape")) == "byte 0xff is not UTF-8"
    assert [undecoded(text) for text in ("", "aé债", "\x80ÿ", "\udc7f", "\udd00", "\ud800")] == [""] * 6


@pytest.mark.parametrize(
    ("sample", "encoding"),
    [
        ("Müller kauft für fünf Euro", "cp1252"), ("“Köln” – 5 €", "cp1252"),
        ("请问基金的风险是什么？股票和债券有什么区别", "gb18030"), ("株価は何ですか、債券と株式", "shift_jis"),
        ("Что такое облигация и как она работает", "cp1251"), ("채권은 무엇이며 주식과 어떻게 다른가요", "euc_kr"),
    ],
)  # fmt: skip
def test_which_encoding_is_likely(sample, encoding):
    assert likely(sample.encode(encoding)) == encoding


def test_accents_stand_alone_in_seven_runs_of_ten():
    def mixed(alone, pairs):
        return b"a\xe9b " * alone + "基金 ".encode("gb18030") * pairs

    assert likely(mixed(7, 3)) == likely(mixed(1, 0)) == "cp1252"
    assert likely(mixed(6, 4)) == "gb18030"
    assert likely(b"\0\xff\xff") == "cp1252"  # which is no text in any of them


ROWS = [
    {"a": "x", "half": "9.4", "single": "9.4", "double": 9.4, "n": 1, "list": ["a"]},
    {"a": None, "half": None, "single": None, "double": None, "n": None, "list": None},
    {"a": "é", "half": "-0.1", "single": "-0.1", "double": -0.1, "n": 3, "list": []},
    {"a": "", "half": "0.001", "single": "0.001", "double": 0.001, "n": 4, "list": ["b", "c"]},
    {"a": "z", "half": "123.5", "single": "1e+10", "double": 1e10, "n": 5, "list": ["d"]},
]  # fmt: skip


def table():
    numbers = {name: [row[name] and float(row[name]) for row in ROWS] for name in ("half", "single", "double")}
    return pyarrow.table({
        "half": pyarrow.array([n if n is None else numpy.float16(n) for n in numbers["half"]], pyarrow.float16()),
        "a": [row["a"] for row in ROWS],
        "double": pyarrow.array(numbers["double"], pyarrow.float64()),
        "n": pyarrow.array([row["n"] for row in ROWS], pyarrow.int8()), "list": [row["list"] for row in ROWS],
        "single": pyarrow.array(numbers["single"], pyarrow.float32()),
    })  # fmt: skip


def written(kind):
    file = io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table(), file, row_group_size=2)
    else:
        with getattr(pyarrow.ipc, kind)(file, table().schema) as writer:
            writer.write_table(table(), max_chunksize=2)
    file.seek(0)
    return file


READ = {"parquet": tables.read_parquet, "new_file": tables.read_arrow, "new_stream": tables.read_arrow}


@pytest.mark.parametrize("batch", [1, 2, 3, 1024])
def test_rows_of_tables_in_batches(monkeypatch, batch, tmp_path):
    monkeypatch.setattr(tables, "BATCH", batch)
    expected = [RawRow(row, "a.x", number, "row") for number, row in enumerate(ROWS, start=1)]
    for kind, read in READ.items():
        assert list(read(written(kind), "a.x", "the/a.x")) == expected
    dataset = datasets.Dataset(table())
    assert list(tables.read_dataset(dataset, "a.x")) == expected
    dataset.save_to_disk(tmp_path / "whole")
    assert list(tables.read_saved(Part(tmp_path / "whole", "a.x", "saved"))) == expected
    datasets.DatasetDict(test=dataset).save_to_disk(tmp_path / "splits")
    assert list(tables.read_saved(Part(tmp_path / "splits", "a.x", "saved", key="test"))) == expected
    assert list(tables.read_dataset(dataset.select([]), "a.x")) == []


@pytest.mark.parametrize(("kind", "what"), [("parquet", "Parquet"), ("new_file", "Arrow"), ("new_stream", "Arrow")])
def test_tables_that_are_damaged(kind, what):
    for content, number in ((b"no table at all", 0), (written(kind).getvalue()[:-400], None)):
        rows = READ[kind](io.BytesIO(content), "a.x", "the/a.x")
        read = []
        with pytest.raises(
            UserError, match=rf"^the/a\.x, after row \d: not a {what} file that can be read \("
        ) as raised:
            read.extend(rows)
        assert number is None or f"after row {number}:" in str(raised.value)


def test_a_folder_that_is_no_saved_dataset(tmp_path):
    with pytest.raises(UserError) as raised:
        list(tables.read_saved(Part(tmp_path, "a", "saved")))
    assert str(raised.value).startswith(f"{tmp_path}: not a saved dataset that can be read (")

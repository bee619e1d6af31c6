"""Records of many megabytes: read as `csv` reads them, and never held many times over."""

import csv
import io
import random
import tracemalloc

import pytest

from finllm.data import csv_rows
from finllm.data.csv_rows import CANDIDATES, Records
from finllm.data.prepare import prepare
from finllm.data.rows import read_rows
from finllm.data.sources import find_source
from finllm.data.split import SPLITS

SIZE = 4 << 20  # characters of the long field
FIELDS = {
    "one line": "word " * 7,
    "many lines": "A line of words. " * 20 + "\n",
    "quotes": 'They said "no" to it, and left. ',
    "delimiters": "a, b; c\td|e ",
}


def theirs(dialect, lines):
    reader = dialect.records(dialect.plain(lines))
    return _all(lambda: (next(reader, None), reader.line_num))


def ours(dialect, lines):
    records = Records(dialect, lines)
    return _all(lambda: (records.next(), records.last))


def _all(read):
    found = []
    while True:
        try:
            fields, line = read()
        except csv.Error as error:
            return [*found, str(error)]
        if fields is None:
            return found
        found.append((fields or [""], line))  # an empty line is no long record


def test_long_records_are_read_as_csv_reads_them(monkeypatch):
    monkeypatch.setattr(csv_rows, "LONG", 0)  # every record is long
    draw = random.Random(0)
    differ = []
    for _ in range(6000):
        text = "".join(draw.choices('ab ,;\t|\'"""\\\n\r,', k=draw.randrange(1, 16)))
        lines, dialect = list(io.StringIO(text, newline="")), draw.choice(CANDIDATES)
        if theirs(dialect, lines) != ours(dialect, lines):
            differ.append((text, dialect))
    assert not differ


def csv_file(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def peak(work):
    """The result of the work and the most bytes that Python held meanwhile, in sizes of the long field."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1] / SIZE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", FIELDS)
def test_a_long_field_is_read_whole_and_held_few_times(kind, tmp_path, make_rows):
    unit = FIELDS[kind]
    rows = [*make_rows(2), {"instruction": "Long?", "input": "", "output": unit * (SIZE // len(unit))}, *make_rows(1)]
    source = csv_file(tmp_path / "a.csv", rows)
    found, held = peak(lambda: [raw.fields for raw in read_rows(find_source(source))])
    assert found == rows, held
    assert held < 4, held


@pytest.mark.parametrize(("suffix", "end"), [(".csv", "end"), (".jsonl", "end"), (".csv", "– Köln")])
def test_a_long_field_is_prepared_in_less_than_four_times_its_size(suffix, end, tmp_path, make_rows, write):
    long = "word " * (SIZE // 5 // (1 if end.isascii() else 2)) + end  # in memory each sign then has two bytes
    rows = [*make_rows(9), {"instruction": "Long?", "input": "", "output": long}]
    source = (csv_file if suffix == ".csv" else write)(tmp_path / f"a{suffix}", rows)
    prepare(write(tmp_path / "first.jsonl", make_rows(9)), tmp_path / "first")  # so that modules are there
    dataset, held = peak(lambda: prepare(source, tmp_path / "data"))
    assert held < 4, held
    assert long in [row["output"] for split in SPLITS for row in dataset.each_row(split)]

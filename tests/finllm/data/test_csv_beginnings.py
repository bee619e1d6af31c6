"""CSV files that begin with an empty line, whatever ends it and wherever a piece ends; letters, which part nothing."""

import io
import itertools

import pytest

from finllm.data import csv_rows
from finllm.data.csv_rows import Dialect, _fits, find_dialect, read_csv


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_empty_lines_before_the_header_in_pieces_of_any_size(monkeypatch, end):
    monkeypatch.setattr(csv_rows, "find_dialect", lambda *_: Dialect(",", "doubled", False))
    for blank, size in itertools.product((0, 1, 2), range(1, 20)):
        monkeypatch.setattr(csv_rows, "SAMPLE", size)
        text = end * blank + end.join(("a,b", "1,2", "", '3,"4', '5"'))
        rows = [(row.number, row.fields) for row in read_csv(io.BytesIO(text.encode()), "a", "a", "", ())]
        assert rows == [(blank + 2, {"a": "1", "b": "2"}), (blank + 4, {"a": "3", "b": f"4{end}5"})], (blank, size)


@pytest.mark.parametrize("letter", "XaZ1_-:/.")
def test_a_letter_parts_no_fields_and_no_blank_from_a_quote(letter):
    plain = Dialect(",", "doubled", False)
    for text in ("ask{0}say\n1{0}2\n3{0}4\n", 'ask,say\n{0}"1",2\n3,{0}"4"\n5,"6; 7"\n'):
        assert find_dialect(text.format(letter), True, ()) == plain


def test_a_blank_inside_quotes_belongs_to_the_field():
    for blanks, fits in ((True, (0, 2, 1, 1)), (False, (0, 2, 1 / 2, 0))):
        assert _fits(Dialect(",", "doubled", blanks), 'a,b\n1, " ""2"\n', True, ()) == fits


def test_whether_the_head_is_the_whole_file(monkeypatch):
    heads = []

    def found(head, whole, wanted):
        heads.append((head, whole, wanted))
        return Dialect(",", "doubled", False)

    monkeypatch.setattr(csv_rows, "find_dialect", found)
    for size in (5, 6, 7, 8):
        monkeypatch.setattr(csv_rows, "SAMPLE", size)
        assert len(list(read_csv(io.BytesIO(b"a,b\n1,2"), "a", "a", "", {"a"}))) == 1
    # Of a head that is as long as it may be nobody knows whether more follows.
    assert heads == [("a,b\n1", False, {"a"}), ("a,b\n1,", False, {"a"}), ("a,b\n1,2", False, {"a"}),
                     ("a,b\n1,2", True, {"a"})]  # fmt: skip

"""A small source with a fault of each kind that counts here, and the dataset dir made of it."""

import json
import sys

import pytest

from finllm.cli import main
from finllm.data.prepare import prepare


def _rows(count, start=0):
    return [
        {"instruction": f"What is fund number {n}?", "input": "", "output": f"Itâ€™s fund {n}, one of many."}
        for n in range(start, start + count)
    ]


def _write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def make_rows():
    """`make_rows(count, start=0)`: rows whose questions differ; each answer has a quote that was decoded wrongly."""
    return _rows


@pytest.fixture
def write():
    """`write(path, rows)`: a JSONL file."""
    return _write


@pytest.fixture
def source(tmp_path):
    """200 questions in 203 rows: line 4 has no answer, line 202 repeats line 1, line 203 asks it again."""
    rows = _rows(200)
    rows.insert(3, {"instruction": "An empty one", "input": None, "output": "<nooutput>"})
    rows.append(rows[0])
    rows.append({"instruction": "what is FUND number 0", "input": "", "output": "Another answer."})
    return _write(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def dataset(source, tmp_path):
    return prepare(source, tmp_path / "dataset")


@pytest.fixture
def finllm_prepare(monkeypatch, capsys):
    """`finllm_prepare(SOURCE, flags…)`: the command line in this process; its status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["finllm", "prepare", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as exit:
            status = exit.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call

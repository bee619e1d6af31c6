"""Memory does not grow with the rows."""

import json
import random
import subprocess
import sys
import tracemalloc

import pyarrow
import pyarrow.parquet

from finllm.data.rows import read_rows
from finllm.data.sources import find_source

MEASURE = """
import resource, sys
from finllm.data.prepare import prepare
prepare(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_four_times_the_rows_take_hardly_more_memory(tmp_path):
    peaks = []
    for rows in (15_000, 60_000):
        source = tmp_path / f"{rows}.jsonl"
        with open(source, "w", encoding="utf-8") as file:
            for number in range(rows):
                row = {
                    "instruction": f"What is fund {number}?",
                    "output": f"Fund {number} " + "holds bonds and cash " * 15,
                }
                file.write(json.dumps(row) + "\n")
        command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / f"data_{rows}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]))  # MiB
    held = 45_000 * 0.35 / 1024  # MiB of text that came to it; as Python objects it was five times that
    assert peaks[1] - peaks[0] < 2 * held, peaks


def test_a_row_group_that_is_the_whole_file_is_read_in_pieces(tmp_path):
    """By what Python and pyarrow hold at most. Texts of random letters are made no smaller by packing."""
    draw, rows = random.Random(0), 50_000
    text = "".join(map(chr, draw.choices(range(33, 127), k=1_000_000)))
    places = [draw.randrange(len(text) - 200) for _ in range(rows)]
    table = pyarrow.table({"instruction": ["Why?"] * rows, "output": [text[at : at + 200] for at in places]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=rows, compression="none")
    del table
    usual = pyarrow.default_memory_pool()
    counted = pyarrow.proxy_memory_pool(usual)
    pyarrow.set_memory_pool(counted)
    tracemalloc.start()
    try:
        for place, row in zip(places, read_rows(find_source(tmp_path / "rows.parquet")), strict=True):
            assert row.fields["output"] == text[place : place + 200]
        held = tracemalloc.get_traced_memory()[1] + counted.max_memory()
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(usual)
    assert held < (tmp_path / "rows.parquet").stat().st_size / 2

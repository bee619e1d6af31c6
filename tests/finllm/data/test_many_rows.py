"""Memory does not grow with the rows."""

import json
import subprocess
import sys

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

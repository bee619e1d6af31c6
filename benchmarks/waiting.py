"""How much processor time passes before a command answers, or before a training takes its first step.

    python benchmarks/waiting.py [--times 3] [--commands help data_show …] [--output FILE.json]

Processor time, of all threads and of the kernel, is hardly touched by other work on the machine; the time by the clock
is what is waited for, where the machine is idle. The least of several is taken of each. A training counts until its
proofs are written, which is when its first step begins; it is then stopped.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import keep
from rich.console import Console
from rich.table import Table

from finllm.cpu import processor
from finllm.errors import UserError, run_command

ROOT = Path(__file__).resolve().parents[1]
CLI = ["-m", "finllm.cli"]
COMMANDS = {
    "python": ("python, doing nothing", ["-c", "pass"]),
    "help": ("finllm --help", [*CLI, "--help"]),
    "prepare_help": ("finllm prepare --help", [*CLI, "prepare", "--help"]),
    "prepare": ("finllm prepare sample", [*CLI, "prepare", "sample", "--output_dir", "FOLDER/data"]),
    "data_show": ("finllm data show DATASET_DIR", [*CLI, "data", "show", "FOLDER/held"]),
    "doctor": ("finllm doctor", [*CLI, "doctor"]),
    "generate_help": ("finllm generate --help", [*CLI, "generate", "--help"]),
    "leaderboard_help": ("eval/leaderboard.py --help", ["eval/leaderboard.py", "--help"]),
    "run_help": ("eval/run.py --help", ["eval/run.py", "--help"]),
    "compare_help": ("recipes/compare.py --help", ["recipes/compare.py", "--help"]),
    "sft_help": ("recipes/sft.py --help", ["recipes/sft.py", "--help"]),
}
TRAINING = "recipes/sft.py with recipes/configs/demo_lora.yaml, until its first step"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the processor time before commands answer.")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--commands", nargs="+", default=[*COMMANDS, "sft"], choices=[*COMMANDS, "sft"])
    parser.add_argument("--output", help="write the record here (default: a file in benchmarks/results/)")
    arguments = parser.parse_args()
    console, measured = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        held = f"{folder}/held"
        seconds_of([*CLI, "prepare", "sample", "--output_dir", held])
        for name in arguments.commands:
            with console.status(name):
                if name == "sft":
                    what, taken = TRAINING, [first_step(held, folder) for _ in range(arguments.times)]
                else:
                    what, words = COMMANDS[name]
                    words = [word.replace("FOLDER", folder) for word in words]
                    words += ["--overwrite"] if name == "prepare" else []
                    taken = [seconds_of(words) for _ in range(arguments.times)]
            seconds, by_clock = map(min, zip(*taken, strict=True))
            measured.append({"what": what, "seconds": seconds, "by_clock": by_clock})
    table = Table(title=f"{processor.name()}, seconds", title_justify="left")
    for head in ("", "of the processor", "by the clock"):
        table.add_column(head, justify="right" if head else "left")
    for one in measured:
        table.add_row(one["what"], f"{one['seconds']:.2f}", f"{one['by_clock']:.2f}")
    console.print(table)
    console.print(f"wrote {keep('waiting', measured, arguments.output, times=arguments.times)}", soft_wrap=True)


def around() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def seconds_of(words: list[str]) -> tuple[float, float]:
    """Seconds of a command of this checkout, of the processor and by the clock."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=around(), capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1 is how `finllm doctor` tells of a gap
        raise UserError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-300:]}")
    by_clock, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, by_clock


def first_step(data: str, folder: str) -> tuple[float, float]:
    """As `seconds_of`, of a training until its first step begins."""
    run = Path(tempfile.mkdtemp(dir=folder))
    words = ["recipes/sft.py", "--config", "recipes/configs/demo_lora.yaml", "--dataset_name", data, "--output_dir",
             str(run), "--eval_on_start", "false"]  # fmt: skip
    with tempfile.TemporaryFile("w+") as said:
        begun = time.monotonic()
        child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=around(), stdout=said, stderr=said)
        while not (run / "proofs.json").exists():
            if child.poll() is not None:
                said.seek(0)
                raise UserError(f"{' '.join(words)} ended with {child.returncode}: {said.read()[-300:]}")
            time.sleep(0.01)
        by_clock = time.monotonic() - begun
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        child.send_signal(signal.SIGKILL)
        child.wait()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), by_clock  # proc(5): utime and stime


if __name__ == "__main__":
    run_command(main)

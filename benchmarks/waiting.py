"""How much processor time passes before a command answers, or before a training takes its first step.

    python benchmarks/waiting.py [--times 3] [--commands help data_show …] [--output FILE.json]

Processor time, of all threads and of the kernel, is what an idle machine waits at most, and other work on the machine
counts little. The least of several times is taken. A training counts until its proofs are written, which is when its
first step begins; it is then stopped.
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
                    what, seconds = TRAINING, min(first_step(held, folder) for _ in range(arguments.times))
                else:
                    what, words = COMMANDS[name]
                    words = [word.replace("FOLDER", folder) for word in words]
                    words += ["--overwrite"] if name == "prepare" else []
                    seconds = min(seconds_of(words) for _ in range(arguments.times))
            measured.append({"what": what, "seconds": seconds})
    table = Table(title=f"{processor.name()}, seconds of processor time", title_justify="left")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for one in measured:
        table.add_row(one["what"], f"{one['seconds']:.2f}")
    console.print(table)
    console.print(f"wrote {keep('waiting', measured, arguments.output, times=arguments.times)}", soft_wrap=True)


def around() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def seconds_of(words: list[str]) -> float:
    """Processor time of a command of this checkout, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=around(), capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1 is how `finllm doctor` tells of a gap
        raise UserError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-300:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(data: str, folder: str) -> float:
    """Processor time of a training until its first step begins, in seconds."""
    run = Path(tempfile.mkdtemp(dir=folder))
    words = ["recipes/sft.py", "--config", "recipes/configs/demo_lora.yaml", "--dataset_name", data, "--output_dir",
             str(run), "--eval_on_start", "false"]  # fmt: skip
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=around(), stdout=said, stderr=said)
        while not (run / "proofs.json").exists():
            if child.poll() is not None:
                said.seek(0)
                raise UserError(f"{' '.join(words)} ended with {child.returncode}: {said.read()[-300:]}")
            time.sleep(0.01)
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        child.send_signal(signal.SIGKILL)
        child.wait()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime and stime


if __name__ == "__main__":
    run_command(main)

"""`make demo` as a user types it, with a small random GPT-2 in a folder as the base, and no network."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 1800  # seconds, far above what a machine under load takes


def test_make_demo_compares_any_base_without_a_network_and_twice_does_nothing(command, gpt2_dir, tmp_path):
    # A proxy that nobody answers: whatever reaches for the network fails.
    dead = "http://127.0.0.1:9"
    environment = {**os.environ, "HTTP_PROXY": dead, "HTTPS_PROXY": dead, "ALL_PROXY": dead}
    environment.pop("HF_HUB_OFFLINE", None)
    demo = [
        "make", "demo", f"BASE={gpt2_dir}", f"DEMO={tmp_path}/demo", f"BIN={Path(sys.executable).parent}",
        "--assume-old=setup", "SHORT=--max_steps 2 --eval_steps 2", "SHORT_SCRATCH=--max_steps 4 --eval_steps 4",
        "EVALUATION=--max_generated 2 --max_new_tokens 4 --max_examples 12",
    ]  # fmt: skip
    how = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": LONGEST, "check": False}
    done = subprocess.run(demo, **how)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    board = tmp_path / "demo" / "leaderboard"
    models = {model["name"] for model in json.loads((board / "leaderboard.json").read_text())["models"]}
    assert models == {"base", "full", "lora", "as_published", "causal", "seq2seq"}
    written = (board / "leaderboard.md").read_text().replace("\\_", "_")
    assert all(f"| {name} |" in written for name in models)
    assert str(board / "index.html") in done.stdout

    # Again: the same commands, one after the other as make prints them, in processes that are cheaper to start.
    printed = subprocess.run([demo[0], "--dry-run", *demo[1:]], **how).stdout
    again = [shlex.split(line) for line in printed.splitlines()]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    said = ""
    for program, *arguments in again:
        if program.endswith("accelerate"):
            arguments = arguments[arguments.index("recipes/sft.py") :]
        elif program.endswith("finllm"):
            arguments = ["finllm/cli.py", *arguments]
        done = command(*arguments)
        assert done.status == 0, done.err
        said += done.out
    assert len(again) == 8 and said.count("nothing to do") >= 11
    changed = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert {path.parent for path in changed} <= {board}

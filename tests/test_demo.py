"""`make demo` as a user types it, with a small random GPT-2 in a folder as the base, and no network."""

import json
import os
import subprocess
import sys
import tempfile
from multiprocessing.connection import Client, Listener
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What stands in BIN for python, accelerate and finllm: it hands its command to the test, which has imported torch.
PROGRAM = """#!{python}
import sys
from multiprocessing.connection import Client

with Client({address!r}) as test:
    test.send(sys.argv)
    status, out, err = test.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


@pytest.fixture
def make_demo(command, gpt2_dir, tmp_path, monkeypatch):
    """Run `make demo` on few steps; its exit status and output, and the commands that it ran."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # which nobody answers: whatever reaches for the network fails
    binaries = tmp_path / "bin"
    binaries.mkdir()
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        address = f"{folder}/test"
        for program in ("python", "accelerate", "finllm"):
            (binaries / program).write_text(PROGRAM.format(python=sys.executable, address=address))
            (binaries / program).chmod(0o755)

        def call():
            demo = [
                "make", "demo", f"BASE={gpt2_dir}", f"DEMO={tmp_path}/demo", f"BIN={binaries}", "--assume-old=setup",
                "SHORT=--max_steps 2 --eval_steps 2", "SHORT_SCRATCH=--max_steps 4 --eval_steps 4",
                "EVALUATION=--max_generated 2 --max_new_tokens 4 --max_examples 12",
            ]  # fmt: skip
            commands, printed = [], tmp_path / "printed"
            with Listener(address) as listener, printed.open("w") as output:
                make = subprocess.Popen(demo, cwd=ROOT, env=dict(os.environ), stdout=output, stderr=subprocess.STDOUT)
                Thread(target=lambda: (make.wait(), _end(address)), daemon=True).start()
                while (given := _answered(listener, command)) is not None:
                    commands.append(given)
            return make.returncode, printed.read_text(), commands

        yield call


def _end(address: str) -> None:
    with Client(address) as test:
        test.send(None)


def _answered(listener: Listener, command) -> list[str] | None:
    """Run the command that the next program hands over; None where make has ended."""
    with listener.accept() as program:
        if (given := program.recv()) is None:
            return None
        name, *arguments = given
        if name.endswith("accelerate"):
            arguments = arguments[arguments.index("recipes/sft.py") :]
        elif name.endswith("finllm"):
            arguments = ["finllm/cli.py", *arguments]
        done = command(*arguments)
        program.send((done.status, done.out, done.err))
        return given


def test_make_demo_compares_any_base_without_a_network_and_twice_does_nothing(make_demo, tmp_path):
    status, printed, commands = make_demo()
    assert status == 0, printed[-6000:]
    assert len(commands) == 8
    board = tmp_path / "demo" / "leaderboard"
    models = {model["name"] for model in json.loads((board / "leaderboard.json").read_text())["models"]}
    assert models == {"base", "full", "lora", "as_published", "causal", "seq2seq"}
    written = (board / "leaderboard.md").read_text().replace("\\_", "_")
    assert all(f"| {name} |" in written for name in models)
    assert str(board / "index.html") in printed

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    status, printed, again = make_demo()
    assert status == 0, printed[-6000:]
    assert printed.count("nothing to do") >= 11 and again == commands
    changed = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert {path.parent for path in changed} <= {board}

"""An evaluation by several processes, counted at the model: each does its part, all is done once, and one writes."""

import functools
import json
import os
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from threading import Thread

import pytest
from processes import LIMIT, STARTS_AND_JOINS, start

from finllm.data.dataset_dir import DatasetDir
from finllm.files import read_jsonl
from finllm.text.prompts import build_prompt

# What torchrun starts: it hands its script and environment to the test, which forks a process that has imported torch.
PROGRAM = """#!{python}
import os, sys
from multiprocessing.connection import Client

with Client({address!r}) as test:
    test.send((sys.argv[1:], dict(os.environ)))
    status, out, err = test.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


@pytest.fixture
def torchrun(shell):
    """`torchrun(2, script, …)`: torchrun's own processes, environment and ends, without importing torch in each."""

    def call(count, *command):
        with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
            place = Path(folder)
            program = place / "program"
            program.write_text(PROGRAM.format(python=sys.executable, address=f"{place}/test"))
            program.chmod(0o755)
            with Listener(f"{place}/test") as listener:
                for rank in range(count):
                    Thread(target=lambda rank=rank: _run_for(listener.accept(), place / str(rank)), daemon=True).start()
                return shell("torchrun", "--standalone", "--nproc-per-node", count, "--no-python", program, *command)

    return call


def _run_for(program: Connection, printed: Path) -> None:
    """Run the script that a program of torchrun hands over, until it ends or torchrun ends the program."""
    with program:
        (script, *arguments), environment = program.recv()
        out, err = printed.with_suffix(".out"), printed.with_suffix(".err")
        process = start(script, arguments, out, errors=err, environment=environment)
        if process.sentinel not in wait([process.sentinel, program], LIMIT):
            process.kill()
        with STARTS_AND_JOINS:
            process.join()
        program.send((process.exitcode, out.read_text(), err.read_text()))


@pytest.fixture
def counted(torchrun, forked, gpt2_dir, dataset_dir, tmp_path, monkeypatch):
    """Evaluate by so many processes; the run dir, and what each rank scored, answered and wrote.

    One thread a process: how a matrix product is cut among threads may change its last bit. No GPU, and no word to
    accelerate that there is none: processes that start as a user starts them must find each other.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)

    def call(count, *arguments):
        log, path = tmp_path / f"{count}.jsonl", tmp_path / str(count) / "base"
        run = forked if count == 1 else functools.partial(torchrun, count)
        done = run(
            "tests/eval/counted_run.py", log, "never", "--model_name_or_path", gpt2_dir, "--dataset_name",
            dataset_dir, "--split", "train", "--output_dir", path, "--batch_size", 2, "--max_new_tokens", 8, *arguments,
        )  # fmt: skip
        assert done.status == 0, done.err
        found = {}
        for line in log.read_text(encoding="utf-8").splitlines():
            rank, what, items = json.loads(line)
            found.setdefault((int(rank), what), []).extend(items)
        return done, path / "eval", found

    return call


def test_two_processes_share_all_of_it_and_one_writes_the_files_of_a_process_alone(counted, dataset_dir):
    _, one, alone = counted(1, "--max_generated", 5)
    done, two, found = counted(2, "--max_generated", 5)

    rows = DatasetDir(dataset_dir).rows("train")
    pairs = Counter(build_prompt(row["instruction"], row["input"]) + "\n" + row["output"] for row in rows)
    other = Counter(found[1, "score"])
    main, audits = found[0, "score"][: len(rows) - other.total()], found[0, "score"][len(rows) - other.total() :]
    assert Counter(main) + other == pairs and abs(len(main) - other.total()) <= 2  # a batch
    assert audits == alone[0, "score"][len(rows) :]  # which score a few again, on the main process alone
    answered = {rank: Counter(found[rank, "generate"]) for rank in (0, 1)}
    assert answered[0] + answered[1] == Counter(alone[0, "generate"])
    assert {answers.total() for answers in answered.values()} == {2, 3}

    assert (1, "write") not in found
    assert Counter(found[0, "write"])[str(two / "results.json")] == 1
    assert done.out.count("Answers: ") == 1

    assert (one / "predictions.jsonl").read_bytes() == (two / "predictions.jsonl").read_bytes()
    texts = []
    for folder in (one, two):
        content = json.loads((folder / "results.json").read_text())
        content["seconds"] = None
        texts.append(content)
    assert texts[0] == texts[1]
    assert len(read_jsonl(two / "predictions.jsonl")) == len(rows)
    assert sorted(path.name for path in two.iterdir()) == ["predictions.jsonl", "results.json"]

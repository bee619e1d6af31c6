"""What killed commands leave behind is swept by the next one in the same place, and what a living one makes stays.

And a disk that is full: the file is named, and nothing half-written lies there.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest
from processes import Moment, run, start, wait_for

from finllm.files import atomic_folder, atomic_open, sweep

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "finllm/data/sample/tax.jsonl"
SPLIT = ("--validation_fraction", 0.15, "--test_fraction", 0.15)
FEW = ("--max_examples", 2, "--max_generated", 1, "--max_new_tokens", 2)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


@pytest.fixture
def prepare(tmp_path):
    def call(*more, name="data", **how):
        arguments = ["prepare", SOURCE, "--output_dir", tmp_path / "place" / name, *SPLIT, *more]
        return run("finllm/cli.py", arguments, tmp_path / "log", **how)

    return call


@pytest.mark.parametrize(
    "moment", [Moment("replace", 1, ".part"), Moment("replace", 6, ""), Moment("fsync", 2, "")], ids=str
)
def test_what_a_killed_prepare_leaves_is_swept_by_the_next_in_that_place_alone(prepare, tmp_path, moment):
    assert prepare(moment=moment) == -signal.SIGKILL
    assert hidden(tmp_path / "place")
    assert prepare(name="another") == 0 and hidden(tmp_path / "place")
    assert prepare() == 0 and not hidden(tmp_path / "place")


def test_what_is_left_beside_a_finished_dataset_is_swept_too(prepare, tmp_path):
    assert prepare(moment=Moment("replace", 1, ".part")) == -signal.SIGKILL
    (left,) = (name for name in hidden(tmp_path / "place") if (tmp_path / "place" / name).is_dir())
    shutil.copytree(tmp_path / "place" / left, tmp_path / "kept")
    assert prepare() == 0
    shutil.move(tmp_path / "kept", tmp_path / "place" / left)
    assert prepare() == 0 and not hidden(tmp_path / "place")


def test_a_dataset_that_a_killed_overwrite_had_set_aside_comes_back(prepare, tmp_path):
    assert prepare() == 0
    held = (tmp_path / "place/data/manifest.json").read_bytes()
    setting_aside = Moment("replace", 2, "place/")  # the first of those left is of the folders, not in them
    for count in range(1, 9):
        assert prepare("--seed", 7, "--overwrite", moment=Moment("replace", count, setting_aside.word)) in (0, -9)
        if not (tmp_path / "place/data").exists():
            break
    else:
        pytest.fail("no kill hit the moment between the two renames")
    assert prepare() == 0
    assert (tmp_path / "place/data/manifest.json").read_bytes() == held and not hidden(tmp_path / "place")


def test_what_a_living_process_makes_is_not_swept(prepare, tmp_path):
    arguments = ["prepare", SOURCE, "--output_dir", tmp_path / "place/data", *SPLIT]
    slow = start("finllm/cli.py", arguments, tmp_path / "slow", Moment("replace", 1, ".part", signal.SIGSTOP))
    wait_for(lambda: (tmp_path / "place").exists() and any(".train" in name for name in hidden(tmp_path / "place")))
    wait_for(lambda: Path(f"/proc/{slow.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    before = sorted(hidden(tmp_path / "place"))
    assert prepare() == 0 and sorted(hidden(tmp_path / "place")) == before
    os.kill(slow.pid, signal.SIGCONT)
    slow.join(60)
    assert slow.exitcode == 0 and not hidden(tmp_path / "place"), (tmp_path / "slow").read_text()


def test_names_that_others_gave_are_left_alone(tmp_path):
    others = [".data.json.mybackup", ".data.json.old", ".other.json.abcdefgh.part", "data.json.abcdefgh.part"]
    for name in others:
        (tmp_path / name).write_text("dear")
    (tmp_path / "dear").mkdir()
    (tmp_path / ".data.json.abcdefgi.part").symlink_to(tmp_path / "dear")
    os.mkfifo(tmp_path / ".data.json.abcdefgj.part")
    (tmp_path / ".data.json.abcdefgh.part").write_text("left")
    with atomic_open(tmp_path / "data.json") as living:
        sweep(tmp_path / "data.json")
        assert sum(name.startswith(".data.json.") for name in os.listdir(tmp_path)) == 4
        living.write("new")
    assert (tmp_path / "data.json").read_text() == "new" and (tmp_path / "dear").is_dir()
    assert all((tmp_path / name).read_text() == "dear" for name in others)
    with atomic_folder(tmp_path / "folder") as work:
        sweep(tmp_path / "folder")
        assert work.is_dir()


def test_those_who_make_the_same_folder_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    """A folder lies there before it is locked, and whoever sweeps in that moment takes it for a leftover."""
    opened = os.open

    def swept_before_it_is_opened(path, *arguments, **how):
        if Path(path).suffix == ".part" and path not in seen:
            seen.append(path)
            if len(seen) % 2:
                sweep(tmp_path / "folder")
        return opened(path, *arguments, **how)

    seen = []
    monkeypatch.setattr(os, "open", swept_before_it_is_opened)
    with atomic_folder(tmp_path / "folder") as work:
        (work / "a").write_text("whole")
        os.rename(work, tmp_path / "folder")
    assert len(seen) >= 2 and (tmp_path / "folder/a").read_text() == "whole" and not hidden(tmp_path)


def test_leftovers_of_evaluation_and_of_the_report_are_swept(command, gpt2_dir, dataset_dir, tmp_path):
    base = ["--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "base", *FEW]
    for word in ("predictions.jsonl", "results.json"):
        moment = Moment("replace", 1, word)
        assert run("eval/run.py", base, tmp_path / "log", moment=moment) == -signal.SIGKILL
    assert any(".part" in name for name in hidden(tmp_path / "base/eval"))
    assert run("eval/run.py", base, tmp_path / "log") == 0 and not hidden(tmp_path / "base/eval")
    board = [tmp_path / "base", "--output_dir", tmp_path / "board"]
    assert run("eval/leaderboard.py", board, tmp_path / "log", moment=Moment("replace", 3, "")) == -signal.SIGKILL
    assert hidden(tmp_path / "board")
    assert run("eval/leaderboard.py", board, tmp_path / "log") == 0 and not hidden(tmp_path / "board")


def test_a_full_disk_is_named_and_leaves_nothing_half_written(gpt2_dir, dataset_dir, tmp_path):
    log = tmp_path / "log"
    data = ("--dataset_name", dataset_dir)
    sft = ("--model_name_or_path", gpt2_dir, *data, "--max_steps", 1, "--max_length", 256, "--disable_tqdm", "true",
           "--save_strategy", "no", "--output_dir", tmp_path / "run")  # fmt: skip
    scratch = (*data, "--output_dir", tmp_path / "scratch", "--max_steps", 2, "--save_steps", 1, "--logging_steps", 1,
               "--vocabulary_size", 400, "--width", 64, "--layers", 1, "--heads", 2, "--feed_forward", 64,
               "--max_length", 256)  # fmt: skip
    base = ("--model_name_or_path", gpt2_dir, *data, "--output_dir", tmp_path / "base", *FEW[2:])
    for script, arguments, limit, named in (
        ("recipes/sft.py", sft, 120_000, tmp_path / "run/model"),
        ("baselines/scratch/train.py", scratch, 50_000, tmp_path / "scratch/checkpoints/checkpoint-1"),
        (
            "finllm/cli.py",
            ("random-weights", gpt2_dir, "--output_dir", tmp_path / "random"),
            60_000,
            tmp_path / "random",
        ),
        ("eval/run.py", base, 3_000, tmp_path / "base/eval/predictions.jsonl"),
    ):
        assert run(script, list(arguments), log, file_limit=limit) == 2, log.read_text()
        printed = log.read_text()
        assert f"error: {named} cannot be written: File too large" in printed and "Traceback" not in printed, printed
        assert not named.exists()
    # What was scored stays for the same command to go on with; see eval/sharing.py.
    assert [name for name in hidden(tmp_path) if name not in (".lock", ".partial")] == []

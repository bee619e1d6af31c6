"""Run dirs come from anyone: whatever stands in their files, one line refuses it or the page is right."""

import copy
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from evaluated_runs import make_run

from eval import leaderboard
from finllm.data.dataset_dir import dataset_hash
from finllm.data.split import SPLITS
from finllm.errors import run_command

AUDITS = {
    "causality": {"passed": True, "summary": "Sees nothing.", "largest_change": 0.0},
    "contamination": {"passed": False, "summary": "One copy.", "contaminated": ["a"], "within": {"questions": 0}},
    "memorisation": {
        "passed": True, "summary": "Its own.", "longest_words": 3,
        "baselines": {"copy the question": {"rouge1": 0.1, "rougeL": 0.1, "bleu": 1.0}},
    },
}  # fmt: skip
SUMMARY = {"train_seconds": 7.0, "tokens_per_second": 9.0, "peak_memory_bytes": 5, "steps": 5, "epochs": 1.0}
PROVENANCE = {
    "git_commit": "c0ffee", "git_dirty": False, "packages": {"torch": "2.13"}, "hardware": {"cpu": "x", "cores": 2},
    "seed": 42, "dataset_hash": "d1", "base_model_hash": "b1",
}  # fmt: skip
EMPTY = hashlib.sha256().hexdigest()  # of each split's file
DATASET = dataset_hash(dict.fromkeys(SPLITS, EMPTY))
MANIFEST = {
    "source": {"name": "rows.jsonl", "rows": 4, "sha256": "s"}, "template": {"id": "alpaca", "hash": "t"},
    "columns": {}, "cleaning": [{"step": "encoding", "enabled": True, "changed": 1, "dropped": 0}],
    "split": {"seed": 42}, "rejected": 0, "sha256": DATASET,
    "splits": {name: {"rows": 2, "questions": 2, "sha256": EMPTY} for name in SPLITS},
}  # fmt: skip
PROOFS = {"proofs": [{"name": "head", "figure": 0.0, "limit": 0.1, "passed": True, "said": "It is its own."}]}
CONFIG = {"learning_rate": 0.0002, "seed": 1, "lora_target_modules": ["q_proj"], "model_init_kwargs": {"a": 1}}
JSON = (
    "eval/results.json", "eval/predictions.jsonl", "metrics.jsonl", "summary.json", "provenance.json", "proofs.json",
    "manifest",
)  # fmt: skip

# Values in the place of every value, as JSON writes them; those that no place may hold are tried in every tenth
VALUES = {
    "null": "null", "true": "true", "negative": "-1", "zero": "0", "a fraction": "0.5", "a huge float": "1e299",
    "text": '"word [bold] \\u001b[2J \\u202e <b>"', "empty text": '""', "long text": json.dumps("x" * 20_000),
    "an empty list": "[]", "an empty object": "{}", "a list": '[1, "a", null]', "an object": '{"value": 1, "low": 2}',
}  # fmt: skip
NOWHERE = {
    "beyond floats": "1e999", "NaN": "NaN", "Infinity": "-Infinity", "a huge integer": "9" * 40,
    "too many digits": "9" * 5000,
    "half a surrogate": '"\\ud800"', "no quotes": "word", "a key twice": '{"a": 1, "a": 2}',
    "deep lists": "[" * 3000 + "]" * 3000, "deep objects": '{"a": ' * 60 + "1" + "}" * 60,
}  # fmt: skip


YAML = (
    "2026-01-01", "2026-13-45", ".nan", "!!binary aGk=", "!!set {a}", "&a [*a]", "!!python/name:os.system", "*nowhere",
    "1:" * 60 + "1", "{1: a, b: c}", "{? [a] : 1}",
)  # fmt: skip


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """`ask(*runs)`: the leaderboard's exit status and what it says, in this process; any other error is raised."""

    def call(*runs: Path, out: Path = tmp_path / "out") -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["leaderboard.py", *map(str, runs), "--output_dir", str(out)])
        try:
            run_command(leaderboard.main)
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return call


@pytest.fixture
def good(tmp_path) -> Path:
    """A good run dir, in whose place a broken one is put, and the dataset dir's manifest beside it."""
    place = tmp_path / "finance"
    place.mkdir()
    for name in (*SPLITS, "rejected"):
        (place / f"{name}.jsonl").write_text("")
    run = make_run(tmp_path / "run", 1.5, ids="abc", answered="ab", audits=AUDITS, config=CONFIG, dataset_hash=DATASET)
    for path, content in (
        (run / "summary.json", SUMMARY), (run / "provenance.json", PROVENANCE), (run / "proofs.json", PROOFS),
        (place / "manifest.json", MANIFEST),
    ):  # fmt: skip
        path.write_text(json.dumps({"schema_version": 1, **content}))
    return run


def path_of(run: Path, name: str) -> Path:
    return run.parent / "finance" / "manifest.json" if name == "manifest" else run / name


def places(content, place=()):
    """Every place in a JSON value, the whole first."""
    yield place
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*place, key))


def with_value(content, place, value: str) -> str:
    """JSON text of `content` with another value at a place: any text, JSON or not."""
    if not place:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = "@@@"
    return json.dumps(content).replace('"@@@"', value)


def without(content, place) -> str:
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return json.dumps(content)


def variants(path: Path):
    """(what, text): a file of JSON or of JSON lines with each value in each place of its object or first line."""
    first, *lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    content = json.loads(first)
    for number, place in enumerate(places(content)):
        some = {**VALUES, **(NOWHERE if number % 10 == 0 else {})}
        changed = [(name, with_value(content, place, value)) for name, value in some.items()]
        if place:
            changed.append(("absent", without(content, place)))
        for name, text in changed:
            yield f"{name} at {'.'.join(map(str, place)) or 'the whole'}", "\n".join([text, *lines]) + "\n"


def held(status: int, said: str, what: str, out: Path) -> None:
    """One line with status 2 and nothing written; or a page, whose JSON is JSON and whose figures are numbers."""
    if status == 0:
        json.loads((out / "leaderboard.json").read_text(), parse_constant=lambda name: pytest.fail(f"{what}: {name}"))
        for name in ("index.html", "leaderboard.md", "leaderboard.json"):
            (out / name).unlink()
        return
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1 and len(said) < 4000, (what, said)
    assert not out.exists() or not any(out.iterdir()), what


@pytest.mark.parametrize("name", JSON)
def test_any_value_in_any_place_is_refused_in_one_line_or_makes_a_page(ask, good, tmp_path, name):
    path, statuses = path_of(good, name), {}
    for what, text in list(variants(path)):
        path.write_text(text)
        try:
            status, said = ask(good)
        except Exception as error:
            raise AssertionError(f"{name}: {what}") from error
        held(status, said, f"{name}: {what}", tmp_path / "out")
        if status == 2:
            assert str(good) in said or path.name in said, (what, said)
        if what.split(" at ")[0] in NOWHERE and name != "manifest":
            assert status == 2, what
        statuses[what] = status
    assert 0 in statuses.values()


def test_any_value_in_any_place_of_the_config(ask, good, tmp_path):
    path = good / "config.yaml"
    for key in ("learning_rate", "seed"):
        for value in (*VALUES.values(), *NOWHERE.values(), *YAML):
            others = {other: CONFIG[other] for other in CONFIG if other != key}
            path.write_text(yaml.safe_dump(others) + f"{key}: {value}")
            status, said = ask(good)
            held(status, said, f"{key}: {value[:50]}", tmp_path / "out")
            assert status == 0 or "config.yaml" in said
    for text in ("- a list", "5", "a: 1\na: 2", "1: a", "on: 1", "a: 1\n---\nb: 2", "a: [", "\0", "{" * 500):
        path.write_text(text)
        status, said = ask(good)
        assert status == 2 and said.count("\n") == 1 and "config.yaml" in said, text


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\xff\xfe\0", b"\x89PNG\r\n\x1a\n", b"{", b"caf\xe9", b"[]", b"\xef\xbb\xbf{}"]
)
def test_files_that_are_empty_binary_or_cut(ask, good, content):
    for name in ("eval/results.json", "eval/predictions.jsonl", "summary.json", "provenance.json", "metrics.jsonl"):
        before = (good / name).read_bytes()
        (good / name).write_bytes(content)
        status, said = ask(good)
        if not (name == "metrics.jsonl" and content == b""):  # no step was logged yet
            assert status == 2 and said.count("\n") == 1 and Path(name).name in said, (name, said)
        (good / name).write_bytes(before)


def bomb(depth: int, inner: str = "[x]", merge: str = "") -> str:
    """YAML of some 300 bytes that stands for 9 ** depth values."""
    lines = [f"k0: &k0 {inner}"]
    for number in range(1, depth + 1):
        aliases = ", ".join([f"*k{number - 1}"] * 9)
        lines.append(f"k{number}: &k{number} " + (f"{{<<: [{aliases}]}}" if merge else f"[{aliases}]"))
    return "\n".join(lines)


@pytest.mark.parametrize("text", [bomb(9), bomb(7, "{a: 1}", "merge"), bomb(25), "[" * 5000 + "]" * 5000])
def test_a_yaml_bomb_is_refused_at_once_wherever_yaml_is_read(command, good, tmp_path, text):
    (good / "config.yaml").write_text(text)
    (good / "model").mkdir()
    for script, flags in (
        ("recipes/sft.py", ["--config", good / "config.yaml"]),
        ("baselines/scratch/train.py", ["--config", good / "config.yaml"]),
        ("eval/run.py", [good]),
        ("eval/leaderboard.py", [good, "--output_dir", tmp_path / "out"]),
    ):
        done = command(script, *flags)
        assert "20,000" in done.err or "40 deep" in done.err
        assert done.status == 2 and "config.yaml" in done.err and len(done.err) < 500, (script, done.err[-500:])


def as_fifo(path: Path) -> str:
    os.mkfifo(path)
    return "FIFO"


def as_folder(path: Path) -> str:
    path.mkdir()
    return "folder"


def as_device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "device"


def as_sparse_file(path: Path) -> str:
    with open(path, "wb") as file:
        file.truncate(1 << 42)
    return "bytes"


@pytest.mark.parametrize("make", [as_fifo, as_folder, as_device, as_sparse_file])
def test_only_regular_files_of_a_sane_size_are_opened(ask, good, make):
    for name in ("eval/results.json", "eval/predictions.jsonl", "summary.json", "provenance.json", "metrics.jsonl",
                 "config.yaml"):  # fmt: skip
        path = good / name
        before = path.read_bytes()
        path.unlink()
        kind = make(path)
        status, said = ask(good)
        assert status == 2 and said.count("\n") == 1 and path.name in said and kind in said, (name, said)
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(before)


def test_a_fifo_anywhere_in_a_run_a_base_model_or_an_unfinished_run_is_named(
    command, good, gpt2_dir, dataset_dir, tmp_path
):
    (good / "model").mkdir()
    os.mkfifo(good / "model" / "model.safetensors")
    base = tmp_path / "base"
    base.mkdir()
    for path in gpt2_dir.iterdir():
        (base / path.name).symlink_to(path)
    os.mkfifo(base / "generation_config2.json")
    for script, *arguments in (
        ("eval/run.py", good),
        ("eval/run.py", "--model_name_or_path", base, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "o"),
        ("recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", good,
         "--resume", "auto"),
        ("recipes/sft.py", "--model_name_or_path", base, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "p"),
    ):  # fmt: skip
        (good / "summary.json").unlink(missing_ok=script == "recipes/sft.py") if script == "recipes/sft.py" else None
        done = command(script, *arguments)
        assert done.status == 2 and "FIFO" in done.err, (script, done.err)


def test_the_three_files_of_a_report_are_replaced_together_or_not_at_all(ask, good, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert ask(good)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    worse = make_run(tmp_path / "worse", 1.9, ids="abc", dataset_hash=DATASET)
    (out / "index.html").unlink()
    (out / "index.html").mkdir()
    status, said = ask(good, worse)
    assert status == 2 and "index.html is a folder" in said
    (out / "index.html").rmdir()
    (out / "index.html").write_bytes(before["index.html"])
    synced, fsync = [], os.fsync

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 3:  # the disk is full when the last of the three is written
            raise OSError(28, "No space left on device", str(out / "index.html"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    status, said = ask(good, worse)
    assert status == 2 and "No space left" in said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_one_id_with_other_texts_is_not_compared(ask, good, tmp_path):
    other = make_run(tmp_path / "other", 1.9, ids="abc", instruction="What is a share?", dataset_hash=DATASET)
    status, said = ask(good, other)
    assert status == 2 and "other questions or references" in said


def test_a_folder_whose_name_is_no_text_is_refused(command, good, gpt2_dir, dataset_dir, tmp_path):
    odd = tmp_path / os.fsdecode(b"run\xff")
    good.rename(odd)
    for script, *flags in (
        ("eval/leaderboard.py", odd, "--output_dir", tmp_path / "out"),
        ("eval/run.py", odd),
        ("recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", odd),
    ):
        done = command(script, *flags)
        assert done.status == 2 and "run\\udcff is not UTF-8" in done.err and done.err.count("\n") == 1

"""Files are whole or absent, and a run dir is one run's."""

import json
import stat

import pytest

from finllm.errors import UserError, did_you_mean, raise_problems
from finllm.files import atomic_open, read_json, read_jsonl, sha256_of_files, write_json, write_jsonl
from finllm.provenance import provenance
from finllm.run_dir import RunDir


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"value": 1})
    with pytest.raises(RuntimeError), atomic_open(path) as file:
        file.write("half")
        raise RuntimeError("the disk is full")
    assert read_json(path) == {"schema_version": 1, "value": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert read_json(path)["value"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_written_files_can_be_read_by_others_as_far_as_the_umask_lets_them(tmp_path, monkeypatch):
    import os

    before = os.umask(0o022)
    try:
        write_json(tmp_path / "file.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 2}', "has schema_version 2, this version of finllm reads 1"),
        ('{"value": 1}', "has schema_version None"),
        ("[1]", "has schema_version None"),
        ('{\n"a": }', "line 2: not JSON"),
    ],
)
def test_a_json_that_is_not_ours_is_refused(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "file.json")


def test_missing_files_and_broken_lines_are_named(tmp_path):
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path / "missing")
    write_jsonl(tmp_path / "rows.jsonl", [{"a": "é"}, {"a": "\u2028"}])
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": "é"}, {"a": "\u2028"}]
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: not JSON"):
        read_jsonl(tmp_path / "rows.jsonl")


def test_all_problems_come_at_once():
    raise_problems([], "nothing")
    with pytest.raises(UserError, match=r"^1 problem in x: a$"):
        raise_problems(["a"], "x")
    with pytest.raises(UserError, match=r"^2 problems in x: a; b$"):
        raise_problems(iter(["a", "b"]), "x")
    assert did_you_mean("lora_rnk", ["lora_r", "seed"]) == " (did you mean 'lora_r'?)"
    assert did_you_mean("zzz", ["lora_r", "seed"]) == ""


def test_a_run_dir_takes_one_run_and_resumes_only_the_same(tmp_path):
    run = RunDir(tmp_path / "run")
    run.start({"seed": 1}, {"git_commit": None}, resume=False)
    with pytest.raises(UserError, match="already holds a run; pass --resume auto"):
        run.start({"seed": 1}, {}, resume=False)
    run.start({"seed": 1}, {}, resume=True)
    with pytest.raises(UserError, match="seed was 1 and is now 2"):
        run.start({"seed": 2}, {}, resume=True)
    assert run.config() == {"seed": 1}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        RunDir(tmp_path / "full").start({}, {}, resume=True)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_an_incomplete_run_says_what_is_missing(tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(UserError, match="is not a folder"):
        run.require_complete()
    run.start({"dataset_name": "data"}, {"dataset_hash": "d1"}, resume=False)
    assert not run.complete
    with pytest.raises(UserError, match=r"metrics.jsonl, summary.json, model missing.*--resume auto"):
        run.require_complete()
    run.log({"step": 1, "loss": 2.0})
    run.model.mkdir()
    run.finish({"name": "run", "method": "full", "trainable_parameters": 1, "total_parameters": 1})
    assert run.complete and run.require_complete() is run
    assert json.loads(run.metrics.read_text()) == {"step": 1, "loss": 2.0}


def test_provenance_names_commit_versions_and_machine():
    origin = provenance(seed=3)
    assert origin["seed"] == 3
    assert origin["packages"]["torch"] and origin["hardware"]["cores"] >= 1
    assert origin["git_commit"] is None or len(origin["git_commit"]) == 40


def test_the_hash_of_files_follows_names_and_bytes(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    whole = sha256_of_files([a, b])
    assert whole == sha256_of_files([b, a])
    b.write_text("3")
    assert sha256_of_files([a, b]) != whole

"""A run dir is one run's."""

import json

import pytest

from finllm.errors import UserError
from finllm.run_dir import RunDir


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


def test_whoever_changes_what_was_read_of_a_config_changes_nobody_elses(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("layers: [a, b]\n")
    first = RunDir(tmp_path).config()
    first["layers"].append("c")
    assert RunDir(tmp_path).config() == {"layers": ["a", "b"]}
    path.write_text("layers: [d]\n")
    assert RunDir(tmp_path).config() == {"layers": ["d"]}

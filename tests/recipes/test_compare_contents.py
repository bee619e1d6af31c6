"""recipes/compare.py where the names of a study hold something else than when it began: its trainings are no longer
of one kind, and compared they would say nothing."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

from finllm.errors import Once, UserError
from finllm.files import write_json
from finllm.study.conduct import Found
from finllm.study.search import Job
from finllm.study.settings import read_study
from finllm.study.storage import Storage, Task

ROOT = Path(__file__).resolve().parents[2]
LOW, HIGH = (Task("a", Job(place, 20), 42) for place in (-12, -10))


@pytest.fixture
def path(tmp_path, gpt2_dir, dataset_dir):
    """The YAML of a small study."""
    shared = {"model_name_or_path": str(gpt2_dir), "dataset_name": str(dataset_dir), "max_length": 128}
    content = {
        "shared": shared, "methods": {"a": {"peft_type": "lora", "rates": [1e-3, 1e-2]}}, "search": {"points": 3},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


@pytest.fixture
def compare():
    """What the command is made of."""
    return runpy.run_path(str(ROOT / "recipes/compare.py"))


def train(storage, trials, *tasks, **origin):
    for task in tasks:
        write_json(trials / task.run / "provenance.json", origin)
        storage.end(task, storage.begin(task), 2.0, None, 1.0, 0)


@pytest.mark.parametrize(("key", "fix"), [
    ("dataset_hash", "put the old dataset back"), ("base_model_hash", "put the old base model back"),
    ("tokenizer_hash", "put the old tokenizer back"), ("template_hash", "give the template that it began with"),
])  # fmt: skip
def test_a_study_does_not_go_on_with_other_contents_under_the_same_names(command, compare, path, tmp_path, key, fix):
    study, out = read_study(path, lambda settings: (1e-3, 1e-2)), tmp_path / "out"
    (now,) = compare["contents_of"](study, Once()).values()
    assert len({*now.values()}) == 4 and all(len(hashed) >= 16 for hashed in now.values())
    storage = Storage(out)
    train(storage, out / "trials", LOW, HIGH, **now)
    compare["check_contents"](Found(study, storage), out / "trials", {"a": now})
    for task in (LOW, HIGH):
        write_json(out / "trials" / task.run / "provenance.json", {**now, key: "0123456789abcdef" * 4})
    (out / "study.yaml").write_text(yaml.safe_dump(study.content, sort_keys=False, allow_unicode=True))
    done = command("recipes/compare.py", "--config", path, "--output_dir", out, "--resume", "auto")
    said = f"{key} was 0123456789abcdef when {LOW.run} and 1 other began and is {now[key][:16]} now; {fix}"
    assert done.status == 2 and said in done.err, done.err
    assert f"1 problem in {out}: " in done.err and not (out / "plans").exists()


def test_what_changes_while_a_study_runs_is_told_before_it_is_evaluated(compare, path, tmp_path, monkeypatch):
    """Every training reads its names anew."""

    def changed(conduct, plans, devices):
        train(conduct.storage, conduct.trials, LOW, dataset_hash="another")

    replaced = {"train": changed, "plans_of": lambda *of: {}, "finish": lambda *of: pytest.fail("evaluated")}
    compare["main"].__globals__.update(replaced)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--config", str(path), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(UserError, match=f"dataset_hash was another when {LOW.run} began and is [0-9a-f]+ now; put the"):
        compare["main"]()


def test_a_run_of_a_killed_study_that_does_not_say_yet_what_it_is_made_from_is_let_be(compare, path, tmp_path):
    study, out = read_study(path, lambda settings: (1e-3, 1e-2)), tmp_path / "out"
    storage = Storage(out)
    storage.end(LOW, storage.begin(LOW), None, "killed", 1.0, 0)
    compare["check_contents"](Found(study, storage), out / "trials", {"a": {"dataset_hash": "now"}})

"""recipes/compare.py by its command line: what is refused before anything starts, and a small study from end to end."""

import json
import runpy
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import yaml
from processes import serve

ROOT = Path(__file__).resolve().parents[2]

SHARED = {
    "per_device_train_batch_size": 4, "max_length": 128, "max_eval_samples": 6, "eval_on_start": False,
    "save_strategy": "no", "logging_steps": 1,
}  # fmt: skip


@pytest.fixture
def study(tmp_path, gpt2_dir, dataset_dir):
    """Write a study's YAML and return its path."""

    def call(**content):
        shared = {"model_name_or_path": str(gpt2_dir), "dataset_name": str(dataset_dir), **SHARED}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({"shared": shared, **content}))
        return path

    return call


def test_every_mistake_of_every_method_is_told_before_anything_starts(command, study, tmp_path):
    path = study(
        methods={
            "lora": {"use_peft": True, "lora_rnk": 4},
            "ia4": {"peft_type": "ia4"},
            "full": {"seed": 3},
            "scratch": {"baseline": "scratch", "layer": 2, "width": 0},
        },
        seeds=[1],
    )
    done = command("recipes/compare.py", "--config", path, "--output_dir", tmp_path / "out")
    assert done.status == 2 and not (tmp_path / "out").exists()
    for said in (
        "methods.lora: 1 problem: unknown key 'lora_rnk' (did you mean 'lora_r'?)",
        "methods.ia4:", "peft_type is 'ia4' (did you mean 'ia3'?)", "methods.full: seed is set by the study; remove it",
        "methods.scratch: 1 problem: unknown key 'layer' (did you mean 'layers'?)",
    ):  # fmt: skip
        assert said in done.err, done.err


def test_a_folder_that_is_another_studys_or_none_is_refused(command, study, tmp_path):
    path = study(methods={"full": {}})
    (tmp_path / "out").mkdir()
    done = command("recipes/compare.py", "--config", path, "--output_dir", tmp_path / "out", "--join")
    assert done.status == 2 and "holds no study to join" in done.err
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    done = command("recipes/compare.py", "--config", path, "--output_dir", tmp_path / "out")
    assert done.status == 2 and "is not empty and holds no study" in done.err
    (tmp_path / "out" / "study.yaml").write_text("methods: {}\n")
    for flags, said in (((), "already holds a study"), (("--resume", "auto"), "is not the study that")):
        done = command("recipes/compare.py", "--config", path, "--output_dir", tmp_path / "out", *flags)
        assert done.status == 2 and said in done.err
    assert (tmp_path / "out" / "study.yaml").read_text() == "methods: {}\n"


def test_a_worker_is_told_how_many_others_share_its_device():
    asked = []
    conduct = SimpleNamespace(stop=Event(), work=lambda device, tell, beside: asked.append((device, beside)))
    assert runpy.run_path(str(ROOT / "recipes/compare.py"))["train"](conduct, {}, [0, 1, 0, None]) is None
    assert sorted(asked, key=str) == [(0, 1), (0, 1), (1, 0), (None, 0)]


@pytest.mark.soak
def test_a_study_from_yaml_to_report(command, study, tmp_path):
    serve()  # the server of all tests, of which a process has one, before the command starts its own
    path = study(
        methods={"full": {}, "lora": {"peft_type": "lora", "peft": {"r": 4}}, "odd": {"trainable": ["no.such.weight"]},
                 "scratch": {"baseline": "scratch", "layers": 1, "width": 16, "heads": 2, "vocabulary_size": 400}},
        budget={"steps": 6, "search_steps": 2}, search={"points": 3, "widenings": 1, "finer": False}, seeds=[1, 2],
        evaluation={"max_examples": 8, "max_generated": 2, "max_new_tokens": 4, "texts": 6},
    )  # fmt: skip
    arguments = ("recipes/compare.py", "--config", path, "--output_dir", tmp_path / "out")
    done = command(*arguments)
    assert done.status == 0, done.err
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    assert content["complete"] and "no.such.weight" in content["methods"]["odd"]["failed"]
    board = json.loads((tmp_path / "out" / "report" / "leaderboard.json").read_text())
    assert {row["name"] for row in board["study"]["rows"]} == {"full", "lora", "scratch", "base"}
    forgetting = {row["name"]: row["forgetting"] for row in board["study"]["rows"] if row["seeds"]}
    assert forgetting.pop("scratch") is None and None not in forgetting.values()
    assert sorted(map(sorted, board["study"]["groups"])) == [["full", "lora"], ["scratch"]]
    assert (tmp_path / "out" / "report" / "study.md").exists()
    trainings = content["trainings"]
    done = command(*arguments, "--resume", "auto")
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "out" / "study.json").read_text())["trainings"] == trainings

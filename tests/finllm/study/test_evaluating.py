"""What is evaluated once a study is trained, by which commands, on which GPUs; eval's commands are stood in for."""

import json
from pathlib import Path

import pytest
import yaml

from finllm.study.evaluating import Evaluating, names_of
from finllm.study.settings import read_study

STAND_IN = """
import json, os, sys
print("what it said")
with open({log!r}, "a") as log:
    own = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
    log.write(json.dumps([os.path.basename(__file__), sys.argv[1:], *own]) + "\\n")
broken = __file__.endswith("run.py") and any("broken" in argument for argument in sys.argv)
sys.exit(3 * broken)
"""
METHODS = {"full": {}, "lora": {"lora_r": 4}, "other": {"model_name_or_path": "models/B"}, "odd": {},
           "scratch": {"baseline": "scratch"}, "talk": {"template": "chat"}}  # fmt: skip


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Evaluate a study of some methods with two seeds each; what was called, in order."""
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    root, log = tmp_path / "root", tmp_path / "log"
    (root / "eval").mkdir(parents=True)
    for name in ("run", "forgetting", "scaling", "leaderboard"):
        (root / "eval" / f"{name}.py").write_text(STAND_IN.format(log=str(log)))

    def call(names: list[str], devices: list, **evaluation) -> list:
        content = {"shared": {"model_name_or_path": "models/A", "dataset_name": "data"}, "seeds": [1, 2],
                   "methods": {name: METHODS.get(name, {}) for name in names}, "evaluation": evaluation}  # fmt: skip
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        study = read_study(tmp_path / "study.yaml", lambda settings: (1e-4, 1e-3))
        finals = {
            name: {"finals": [{"run": f"{name}-{seed}", "validation_loss": 1.0} for seed in (1, 2)]} for name in names
        }
        if "odd" in finals:
            finals["odd"] = {"finals": []}
        folder = tmp_path / "study"
        folder.mkdir(exist_ok=True)
        Evaluating(root, folder, devices).evaluate(study, {"methods": finals})
        calls = [json.loads(line) for line in log.read_text().splitlines()]
        call.threads = [held for *_, held in calls]
        return [(name, [argument.removeprefix(f"{folder}/") for argument in said], gpu) for name, said, gpu, _ in calls]

    return call


def test_who_evaluates_beside_others_has_a_part_of_the_cores_and_alone_all_of_them(evaluated, monkeypatch):
    monkeypatch.setattr("finllm.threads.cores", lambda: 6)
    calls = evaluated(["full", "lora"], [None, None, None], texts=0, scales=[])
    assert [(name, held) for (name, *_), held in zip(calls, evaluated.threads, strict=True)] == [
        ("run.py", None), *[("run.py", "2")] * 3, ("leaderboard.py", None)
    ]  # fmt: skip
    evaluated(["full", "lora"], [0, 1], texts=0, scales=[])  # a GPU each: their own threads do little
    assert evaluated.threads[-4:] == [None] * 4


def test_one_worker_evaluates_all_and_then_reports(evaluated):
    calls = evaluated(["full", "lora", "odd"], [None], max_examples=9, texts=5, scales=[0.5])
    runs = [f"trials/{name}-{seed}" for name in ("full", "lora") for seed in (1, 2)]
    asked = ["--split", "test", "--max_new_tokens", "128", "--batch_size", "16", "--max_examples", "9"]
    of_base = ["--model_name_or_path", "models/A", "--dataset_name", "data", "--output_dir", "base"]
    texts = ["--base", "base", "--texts", "5"]
    assert calls == [
        ("run.py", of_base + asked, None),
        ("run.py", runs + asked, None),
        ("forgetting.py", runs[:1] + texts, None),
        ("forgetting.py", runs + texts, None),
        ("scaling.py", [runs[0], runs[2], "--scales", "0.5", "--batch_size", "16"], None),
        (
            "leaderboard.py",
            ["base", *runs, "--study", calls[-1][1][6], "--split", "test", "--output_dir", "report"],
            None,
        ),
    ]


def test_a_base_model_is_asked_as_the_models_that_were_made_of_it(evaluated):
    calls = evaluated(["talk"], [None], texts=0, scales=[])
    of_base = ["--model_name_or_path", "models/A", "--dataset_name", "data", "--template", "chat"]
    assert calls[0][1][:6] == of_base and "--template" not in calls[1][1]


def test_what_is_not_asked_for_is_not_done(evaluated):
    assert [name for name, *_ in evaluated(["full"], [None], texts=0, scales=[])] == [
        "run.py",
        "run.py",
        "leaderboard.py",
    ]


def test_several_gpus_share_the_runs(evaluated, tmp_path):
    calls = evaluated(["full", "lora"], [0, 1, 0], texts=0, scales=[])
    shared = {(*said[: said.index("--split")], gpu) for name, said, gpu in calls[1:-1]}
    assert shared == {
        ("trials/full-1", "trials/lora-2", "0"), ("trials/full-2", "1"), ("trials/lora-1", "0"),
    }  # fmt: skip
    assert (tmp_path / "study" / "evaluation" / "run-1.log").read_text() == "what it said\n"


def test_runs_are_held_against_the_base_model_that_they_began_with(evaluated):
    calls = evaluated(["full", "other"], [None], texts=5, scales=[])
    forgetting = [said for name, said, _ in calls if name == "forgetting.py"]
    assert forgetting[1] == ["trials/full-1", "trials/full-2", "--base", "base-A", "--texts", "5"]
    assert forgetting[3] == ["trials/other-1", "trials/other-2", "--base", "base-B", "--texts", "5"]
    assert calls[-1][1][:2] == ["base-A", "base-B"]


@pytest.mark.parametrize("others", [["lora"], []])
def test_what_began_from_nothing_is_evaluated_without_a_base(evaluated, others):
    """It has forgotten nothing, and there is nothing that it could be scaled from; alone it is held against no base."""
    calls = evaluated([*others, "scratch"], [None], texts=5, scales=[0.5])
    runs = [f"trials/{name}-{seed}" for name in (*others, "scratch") for seed in (1, 2)]
    given = {name: [each for each in said if each.startswith("trials/")] for name, said, _ in calls}
    own = [run for run in runs if "lora" in run]
    assert given == {
        "run.py": runs, **({"forgetting.py": own, "scaling.py": own[:1]} if others else {}), "leaderboard.py": runs,
    }  # fmt: skip
    bases = [said for name, said, _ in calls if name == "run.py" and "--model_name_or_path" in said]
    assert len(bases) == len(others) and calls[-1][1][: len(bases) + 1] == ["base"] * len(bases) + runs[:1]


def test_bases_that_are_called_alike_have_names_of_their_own():
    assert names_of(["a/gpt2", "b/gpt2", "c d/"]) == {
        "a/gpt2": "base-gpt2",
        "b/gpt2": "base-gpt2-2",
        "c d/": "base-c-d",
    }


@pytest.mark.parametrize("devices", [[None], [0, 1]])
def test_what_fails_ends_the_command_with_its_words(devices, evaluated, capfd):
    with pytest.raises(SystemExit) as ended:
        evaluated(["full", "broken"], devices, texts=0)
    assert ended.value.code == 3
    assert "what it said" in "".join(capfd.readouterr())


def test_a_study_dir_is_named_by_its_path(evaluated, tmp_path):
    last = evaluated(["full"], [None], texts=0, scales=[])[-1][1]
    assert Path(last[last.index("--study") + 1]) == tmp_path / "study"

"""A study under way, with processes that stand in for training: kills, several workers, failures, what is chosen."""

import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from processes import PRELOADED

from finllm.study.conduct import Conduct
from finllm.study.results import results_of
from finllm.study.settings import read_study
from finllm.study.starting import Forking, from_nothing
from finllm.study.storage import DISTRIBUTIONS, Storage

STAND_IN = Path(__file__).with_name("trainer.py")
STUDY = {
    "shared": {"model_name_or_path": "none"},
    "methods": {
        "full": {"best_rate": 1e-4, "rates": [1e-5, 1e-3]},
        "lora": {"best_rate": 2e-2, "rates": [1e-4, 1e-3]},
        "wild": {"best_rate": 1e-2, "diverges_above": 5e-4, "rates": [1e-4, 1e-3]},
        "odd": {"refused": True, "rates": [1e-4, 1e-3]},
    },
    "budget": {"steps": 6, "search_steps": 2},
    "search": {"points": 3},
    "seeds": [1, 2, 3],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A checkout whose recipe is the stand-in."""
    root = tmp_path_factory.mktemp("root")
    (root / "recipes").mkdir()
    shutil.copy(STAND_IN, root / "recipes" / "sft.py")
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory, root) -> Path:
    """The folder of a study that one worker took from its beginning to its end."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    conducted(folder, root)
    return folder


def study_of(folder: Path, content=STUDY):
    path = folder / "study.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return read_study(path, lambda settings: (1e-4, 1e-3))


def conducted(folder: Path, root: Path, workers: int = 1) -> dict:
    study = study_of(folder)
    # Forked, where it is not asked what several workers or kills do to processes of their own: a quarter of the time
    start = Forking((PRELOADED,)) if workers == 1 else from_nothing
    conduct = Conduct(study, Storage(folder), folder, root, start)
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(conduct.work, None, lambda line: None, workers - 1) for _ in range(workers)]:
            done.result()
    return found_in(folder)


def found_in(folder: Path) -> dict:
    return results_of(study_of(folder), Storage(folder), folder / "trials")


def told(content: dict) -> dict:
    """What a study found, without what it took."""
    return {
        name: {
            "tried": method["tried"], "chosen": method["chosen"], "failed": method["failed"],
            "finals": [(run["seed"], run["run"], run.get("validation_loss")) for run in method["finals"]],
        }
        for name, method in content["methods"].items()
    }  # fmt: skip


def steps_taken(folder: Path) -> dict[str, list[int]]:
    return {
        path.parent.name: [int(line) for line in path.read_text().split()] for path in folder.glob("trials/*/steps.log")
    }


def test_each_method_gets_its_own_rate_three_seeds_or_the_reason_why_not(whole):
    content = found_in(whole)
    methods = content["methods"]
    assert content["complete"]
    full, lora, wild, odd = (methods[name] for name in ("full", "lora", "wild", "odd"))
    assert full["chosen"]["rate"] == 1e-4 and full["chosen"]["edge"] == "inside"
    assert lora["chosen"]["rate"] == 0.0178, "two widenings beyond its first grid, and a quarter decade finer"
    assert [run["seed"] for run in full["finals"]] == [1, 2, 3]
    assert full["finals"][1]["validation_loss"] == pytest.approx(2.000002)
    # what diverged is a row with its reason, and no refusal of the method
    assert wild["chosen"]["rate"] < 5e-4 and wild["failed"] is None
    assert any("training loss is nan" in (each["failed"] or "") for each in wild["tried"]["wild"])
    assert odd["chosen"] is None and odd["finals"] == [] and odd["failed"] == "its layers cannot be adapted"
    assert len(odd["tried"]["odd"]) == 1, "what is refused at one rate is not tried at the others"
    # the rates that were not the best stopped at the part, and have the loss of the part
    steps = steps_taken(whole)
    assert sorted({len(taken) for name, taken in steps.items() if name.startswith("lora")}) == [2, 6]
    assert all(each["losses"]["2"] > 2.5 for each in full["tried"]["full"] if "2" in each["losses"])
    # no step is taken twice: what goes on, goes on from its checkpoint
    assert all(steps == list(range(1, len(steps) + 1)) for steps in steps_taken(whole).values())
    assert not [*(whole / "trials").glob("full-*/checkpoints")], "nothing is to be gone on with"


def test_a_final_run_that_was_taken_away_is_trained_again(tmp_path, root, whole):
    folder = shutil.copytree(whole, tmp_path / "study")  # of the same name, as its trials are kept under it
    before = found_in(folder)
    assert told(before) == told(found_in(whole)) and before["complete"]
    lost = before["methods"]["full"]["finals"][1]["run"]
    shutil.rmtree(folder / "trials" / lost)
    assert told(conducted(folder, root)) == told(before)
    assert steps_taken(folder)[lost] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("written", ["nothing", "one", "all but one"])
def test_whoever_was_killed_while_taking_a_task_keeps_nobody_from_it(written, tmp_path, root, whole):
    storage = Storage(tmp_path / "study")
    name = study_of(tmp_path / "study").candidates[0].name
    optuna_study = storage._study(name)
    optuna_study.enqueue_trial({"learning_rate": 1e-4, "steps": 2, "seed": 1})
    taken = optuna_study.ask()  # it runs, and who asked writes its parameters one by one
    for key in {"nothing": [], "one": ["learning_rate"], "all but one": ["steps", "seed"]}[written]:
        taken._suggest(key, DISTRIBUTIONS[key])
    assert told(conducted(tmp_path / "study", root)) == told(found_in(whole))


def test_two_workers_share_a_study_and_train_nothing_twice(tmp_path, root, whole):
    alone, shared = found_in(whole), conducted(tmp_path / "shared", root, workers=3)
    assert told(shared) == told(alone)
    for content, beside in ((alone, 0), (shared, 2)):
        finals = [run for method in content["methods"].values() for run in method["finals"] if "curve" in run]
        assert finals and {run["beside"] for run in finals} == {beside}
    assert steps_taken(whole) == steps_taken(tmp_path / "shared")


COMMAND = """
import sys
sys.path[:0] = {folders!r}
from pathlib import Path
from finllm.study.conduct import Conduct
from finllm.study.storage import Storage
from test_conduct import study_of
folder = Path({folder!r})
Conduct(study_of(folder), Storage(folder), folder, Path({root!r})).work(None, print, 0)
"""


@pytest.mark.parametrize("most", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_a_study_that_is_killed_again_and_again_ends_like_one_that_is_not(most, tmp_path, root, whole):
    folder, generator, kills = tmp_path / "killed", random.Random(7), 0
    folder.mkdir()
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # of this module and of what it imports
    code = COMMAND.format(folders=folders, folder=str(folder), root=str(root))
    environment = {**os.environ, "SECONDS_A_STEP": "0.02", "SECONDS_TO_SAVE": "1"}
    for _ in range(60):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=generator.uniform(0.8, 2.5) if kills < most else None)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert process.returncode == 0 and kills >= most / 2
    found = found_in(folder)
    assert found["complete"]
    assert told(found) == told(found_in(whole))

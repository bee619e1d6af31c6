"""What study.json says, as literals and by a second computation: what was chosen, how sure that is, at what cost."""

import math
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import yaml

from finllm.files import write_json, write_jsonl
from finllm.study.conduct import Conduct, Found, failure_of
from finllm.study.equal import losses_at_equal_seconds
from finllm.study.results import difference_error, results_of
from finllm.study.search import FAILED, Job, Rules, edge_of, next_jobs, place_of, rate_at, width_of
from finllm.study.settings import expected_steps, read_study
from finllm.study.storage import Outcome, Storage, Task
from finllm.study.trial import Ended

# Equal seconds -------------------------------------------------------------------------------------------------------


def final(seconds, steps, *losses):
    return {"train_seconds": seconds, "steps": steps, "curve": [[step, loss] for step, loss in losses]}


@pytest.mark.parametrize("order", [("slow", "quick"), ("quick", "slow")])
def test_losses_after_as_many_seconds_as_the_quickest_took(order):
    methods = {
        # 3 s a step on the mean of its seeds: 30 s in all
        "slow": {"finals": [final(20, 10, (0, 9.0), (4, 5.0), (10, 2.0)), final(40, 10, (0, 8.0), (10, 4.0)),
                            {"seed": 3}]},
        # 0.5 s a step: the quickest whole run, 5 s
        "quick": {"finals": [final(5, 10, (0, 9.0), (10, 3.0))]},
        "failed": {"finals": [{"seed": 1}]}, "none": {"finals": []},
    }  # fmt: skip
    found = losses_at_equal_seconds({"methods": {name: methods[name] for name in (*order, "failed", "none")}})
    assert tuple(found) == order
    step = 5 / 3
    slow = ((9 - 4 * step / 4) + (8 - 4 * step / 10)) / 2  # a straight line between two validations
    assert found["slow"] == pytest.approx({"seconds": 5.0, "step": step, "validation_loss": slow})
    assert found["quick"] == {"seconds": 5.0, "step": 10.0, "validation_loss": 3.0}
    assert losses_at_equal_seconds({"methods": {"failed": methods["failed"]}}) == {}


def test_paces_and_losses_of_three_seeds_are_means_and_no_medians():
    """Seeds of 1, 1 and 4 s a step take 2 s a step, so 5 s are two and a half of its steps."""
    methods = {
        "slow": {"finals": [final(10, 10, (0, 9.0), (10, 9.0)), final(10, 10, (0, 3.0), (10, 3.0)),
                            final(40, 10, (0, 0.0), (10, 0.0))]},
        "quick": {"finals": [final(5, 10, (0, 9.0), (10, 3.0))]},
    }  # fmt: skip
    found = losses_at_equal_seconds({"methods": methods})
    assert found == {
        "slow": {"seconds": 5.0, "step": 2.5, "validation_loss": 4.0},
        "quick": {"seconds": 5.0, "step": 10.0, "validation_loss": 3.0},
    }
    assert {type(number) for each in found.values() for number in each.values()} == {float}


# One standard error --------------------------------------------------------------------------------------------------


def written(folder, nll, tokens):
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "validation.jsonl", [{"nll": a, "tokens": b} for a, b in zip(nll, tokens, strict=True)])
    return folder


def test_the_error_of_a_difference_is_of_the_differences_of_rows(tmp_path):
    generator = np.random.default_rng(3)
    nll, other, tokens = generator.gamma(3, 5, 9), generator.gamma(3, 5, 9), generator.integers(1, 40, 9)
    first, second = written(tmp_path / "a", nll, tokens.tolist()), written(tmp_path / "b", other, tokens.tolist())
    # By hand, in plain loops: the residuals of a ratio.
    whole = sum(tokens)
    ratio = sum(a - b for a, b in zip(nll, other, strict=True)) / whole
    rest = sum((a - b - ratio * size) ** 2 for a, b, size in zip(nll, other, tokens, strict=True))
    expected = math.sqrt(9 / 8 * rest) / whole
    assert difference_error(first, second) == pytest.approx(expected)
    assert difference_error(second, first) == pytest.approx(expected)  # whichever is taken from which
    shifted = written(tmp_path / "c", other + 2.5 * tokens, tokens.tolist())  # as much better on each token: as sure
    assert difference_error(first, shifted) == pytest.approx(expected)
    assert difference_error(first, first) == 0


def test_runs_that_were_validated_on_other_rows_have_no_error(tmp_path):
    first = written(tmp_path / "a", [1.0, 2.0, 4.0], [1, 2, 3])
    assert difference_error(first, written(tmp_path / "b", [1.0, 2.0], [1, 2])) is None
    assert difference_error(first, written(tmp_path / "c", [1.0, 2.0, 4.0], [1, 2, 4])) is None
    assert difference_error(first, tmp_path / "none") is None and difference_error(tmp_path / "none", first) is None
    assert difference_error(*(written(tmp_path / name, [1.0], [2]) for name in "de")) is None
    assert difference_error(*(written(tmp_path / name, [1.0, 3.0], [2, 2]) for name in "fg")) == 0


@pytest.mark.parametrize(("place", "tried", "edge"), [
    (4, [2, 4, 6], "inside"), (2, [2, 4, 6], "lowest"), (6, [2, 4, 6], "highest"), (4, [4], "lowest"),
    (5, [4, 6], "inside"),
])  # fmt: skip
def test_at_which_edge_the_best_stands(place, tried, edge):
    assert edge_of(place, tried, dict.fromkeys(tried, 0.0)) == edge


def test_a_rate_as_far_off_as_its_error_is_as_good_and_no_farther():
    losses = {2: 1.5, 4: 1.0, 6: 1.25}
    assert width_of(4, losses, {2: 0.5, 6: 0.25}) == (2, 6)
    assert width_of(4, losses, {2: 0.49, 6: 0.24}) == (4, 4)
    assert width_of(4, losses, {}) == (4, 4) and width_of(4, {4: 1.0, 6: 1.0}, {}) == (4, 6)


# A study -------------------------------------------------------------------------------------------------------------

CONTENT = {
    "shared": {"model_name_or_path": "none", "lora_r": 8},
    "methods": {
        "lora": {"lora_r": 16, "lora_alpha": 4, "search": {"lora_dropout": [0.0, 0.1]}}, "full": {"lora_r": 8},
        "odd": {},
    },
    "budget": {"steps": 12, "search_steps": 4},
    "search": {"learning_rate": [1e-4, 3.16e-4, 1e-3]},
    "seeds": [7, 8],
}  # fmt: skip
RATES = (1e-4, 3.16e-4, 1e-3)


@pytest.fixture
def studied(tmp_path):
    """study.json of outcomes by candidate, rate and seed: a loss, or the reason why there is none."""

    def call(outcomes, content=CONTENT):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        study = read_study(path, lambda settings: (1e-4, 1e-3))
        held = {candidate.name: {} for candidate in study.candidates}
        for (name, rate, seed), loss in outcomes.items():
            task = Task(name, Job(place_of(rate), 12), seed)
            good = not isinstance(loss, str)
            held[name][task] = Outcome(loss if good else FAILED, None if good else loss, 10.0, loss != "interrupted", 2)
        storage = SimpleNamespace(outcomes=lambda name: held[name])
        return results_of(study, storage, tmp_path / "trials"), study, storage, tmp_path / "trials"

    return call


def searched(name, *losses, seed=7):
    return {(name, rate, seed): loss for rate, loss in zip(RATES, losses, strict=True)}


WHOLE = {
    **searched("lora-dropout0", 2.0, 1.5, 1.75), **searched("lora-dropout0.1", 3.0, 1.25, "nan"),
    ("lora-dropout0.1", 3.16e-4, 8): 1.375, **searched("full", 5.0, 4.0, 3.0),
    **searched("odd", "refused: no layers", "refused: no layers", "refused: no layers"),
}  # fmt: skip


def test_what_was_chosen_and_how_sure_that_is(studied, tmp_path):
    _, _, _, trials = studied(WHOLE)
    trials.mkdir()
    for rate, nll in ((1e-4, [9.0, 9.0, 6.0]), (3.16e-4, [4.0, 4.0, 2.0])):
        written(trials / f"lora-dropout0.1-{rate:g}-seed7", nll, [4, 2, 2])
    content, *_ = studied(WHOLE)
    lora, full, odd = (content["methods"][name] for name in ("lora", "full", "odd"))
    error = difference_error(trials / "lora-dropout0.1-0.0001-seed7", trials / "lora-dropout0.1-0.000316-seed7")
    assert lora["chosen"] == {
        "candidate": "lora-dropout0.1", "settings": {"lora_r": 16, "lora_alpha": 4, "lora_dropout": 0.1},
        "rate": 3.16e-4, "validation_loss": 1.25,
        "neighbours": [{"rate": 1e-4, "validation_loss": 3.0, "difference": 1.75, "error": error}],
        "edge": "inside", "width": [3.16e-4, 3.16e-4], "width_decades": 0.0,
    }  # fmt: skip
    assert 0 < error < 1.75
    assert lora["tried"]["lora-dropout0.1"] == [
        {"rate": 1e-4, "run": "lora-dropout0.1-0.0001-seed7", "losses": {"12": 3.0}, "failed": None},
        {"rate": 3.16e-4, "run": "lora-dropout0.1-0.000316-seed7", "losses": {"12": 1.25}, "failed": None},
        {"rate": 1e-3, "run": "lora-dropout0.1-0.001-seed7", "losses": {}, "failed": "nan"},
    ]
    assert list(lora["tried"]) == ["lora-dropout0", "lora-dropout0.1"]
    assert [(run["seed"], run["run"], run["done"]) for run in lora["finals"]] == [
        (7, "lora-dropout0.1-0.000316-seed7", True), (8, "lora-dropout0.1-0.000316-seed8", True),
    ]  # fmt: skip
    chosen = full["chosen"]
    assert (chosen["rate"], chosen["edge"], chosen["settings"]) == (1e-3, "highest", {})
    assert [each["error"] for each in chosen["neighbours"]] == [None, None]  # their rows are not here
    assert [(run["seed"], run["done"], run["failed"]) for run in full["finals"]] == [(7, True, None), (8, False, None)]
    assert (odd["chosen"], odd["finals"], odd["failed"]) == (None, [], "no layers")
    assert lora["failed"] is None and full["failed"] is None
    assert content["complete"] is False  # one run of full is due
    assert content["trainings"] == len(WHOLE) and content["seconds"] == 10.0 * len(WHOLE)
    assert content["budget"] == {"steps": 12, "search_steps": 12} and content["seeds"] == [7, 8]
    assert content["study"] == CONTENT


def test_a_width_in_decades(studied):
    _, _, _, trials = studied(WHOLE)
    trials.mkdir()
    for rate, nll in zip(RATES, ([9.0, 1.0], [1.0, 8.0], [4.5, 4.75]), strict=True):
        written(trials / f"full-{rate:g}-seed7", nll, [1, 1])
    content, *_ = studied({**WHOLE, **searched("full", 5.0, 4.5, 4.625)})
    chosen = content["methods"]["full"]["chosen"]
    assert (chosen["rate"], chosen["width"]) == (3.16e-4, [1e-4, 1e-3]) and chosen["edge"] == "inside"
    assert chosen["width_decades"] == pytest.approx(1, abs=1e-3)
    assert [(each["rate"], each["difference"]) for each in chosen["neighbours"]] == [(1e-4, 0.5), (1e-3, 0.125)]


def test_a_study_is_complete_where_every_method_has_its_runs_or_its_reason(studied):
    whole = {**WHOLE, ("full", 1e-3, 8): 3.5}
    assert studied(whole)[0]["complete"] is True
    assert studied({**whole, ("full", 1e-3, 8): "interrupted"})[0]["complete"] is False
    assert studied({key: loss for key, loss in whole.items() if key[0] != "odd"})[0]["complete"] is False
    assert studied({**whole, ("full", 1e-3, 8): "its disk was full"})[0]["complete"] is True  # and says so in its row


def test_of_equally_good_candidates_the_first_is_chosen_and_none_before_all_are_searched(studied):
    even = {**WHOLE, ("lora-dropout0", 3.16e-4, 7): 1.25}
    assert studied(even)[0]["methods"]["lora"]["chosen"]["candidate"] == "lora-dropout0"
    due = {key: loss for key, loss in WHOLE.items() if key[:2] != ("lora-dropout0", 1e-4)}
    lora = studied(due)[0]["methods"]["lora"]
    assert lora["chosen"] is None and lora["finals"] == [] and lora["failed"] is None


def test_why_a_method_has_no_settings(studied):
    diverged = {**WHOLE, **searched("full", "nan at step 3", "nan at step 2", "nan at step 1")}
    content, study, storage, _ = studied(diverged)
    assert content["methods"]["full"]["failed"] == "nan at step 1"
    found = Found(study, storage)
    assert failure_of(found, "lora") is None and failure_of(found, "odd") == "no layers"
    assert found.refused(study.of("odd")[0]) == "no layers" and found.due(study.of("odd")[0]) == []
    interrupted = searched("odd", "refused: no layers", "refused: no layers", "interrupted")
    assert studied({**WHOLE, **interrupted})[0]["methods"]["odd"]["failed"] == "no layers"
    assert failure_of(Found(study, SimpleNamespace(outcomes=lambda name: {})), "full") is None  # nothing has ended yet


def test_which_final_runs_are_due(studied):
    _, study, storage, trials = studied({**WHOLE, ("full", 1e-3, 8): "its disk was full"})
    found = Found(study, storage)
    trials.mkdir()
    (trials / "lora-dropout0.1-0.000316-seed8").mkdir()
    assert [task.seed for task in found.to_train("lora", trials)] == [7]  # its run dir was taken away
    assert [task.seed for task in found.to_train("full", trials)] == [7]  # what failed has none, and is not due again
    assert found.to_train("odd", trials) == []


def test_what_a_final_run_cost_is_read_from_its_own_files(studied):
    content, _, _, trials = studied(WHOLE)
    run = trials / "full-0.001-seed7"
    run.mkdir(parents=True)
    for name in ("config.yaml", "provenance.json"):
        (run / name).write_text("{}")
    write_jsonl(run / "metrics.jsonl", [{"step": 0, "validation_loss": 9.0}, {"step": 6, "loss": 4.0},
                                        {"step": 12, "validation_loss": 3.0}])  # fmt: skip
    assert "curve" not in content["methods"]["full"]["finals"][0]
    cost = {"train_seconds": 5.0, "peak_memory_bytes": 6, "trainable_parameters": 7, "total_parameters": 8, "steps": 12,
            "supervised_tokens": 99}  # fmt: skip
    write_json(run / "summary.json", {**cost, "method": "full", "final_validation_loss": 3.0})
    assert studied(WHOLE)[0]["methods"]["full"]["finals"][0] == {
        "seed": 7, "run": run.name, "done": True, "failed": None, "validation_loss": 3.0,
        "curve": [[0, 9.0], [12, 3.0]], "beside": 2, **cost,
    }  # fmt: skip


# Under way -----------------------------------------------------------------------------------------------------------


class Told(Conduct):
    """A study whose trainings end at once, each as `ends` says of its candidate, and leave an empty run dir."""

    ends: ClassVar = {
        "a": Ended(1.25, None, 1234.0), "b": Ended(None, "nan at step 3", 0.75),
        "c": Ended(None, "no layers", 2.0, refused=True),
    }  # fmt: skip

    def _train(self, task, device):
        self.run_dir(task).path.mkdir()
        return self.ends[task.candidate]


@pytest.fixture
def conduct(tmp_path):
    """One of the rate 0.0001, and of one seed if no others are named."""

    def call(*methods, seeds=(7,)):
        path = tmp_path / "study.yaml"
        content = {"shared": {"lora_r": 8}, "methods": {name: {} for name in methods}, "budget": {"steps": 1200},
                   "search": {"learning_rate": [1e-4]}, "seeds": [*seeds]}  # fmt: skip
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        study = read_study(path, lambda settings: (1e-4, 1e-3))
        return Told(study, Storage(tmp_path), tmp_path, tmp_path)

    return call


def test_a_worker_tells_what_it_trains_and_how_it_ended(conduct):
    lines = []
    conducting = conduct("a", "b", "c")
    conducting.work(None, lines.append, 0)
    assert lines == [
        "a-0.0001-seed7: training to step 1,200",
        "a-0.0001-seed7: validation loss 1.2500 at step 1,200, 1,234 s",
        "b-0.0001-seed7: training to step 1,200", "b-0.0001-seed7: failed: nan at step 3 at step 1,200, 1 s",
        "c-0.0001-seed7: training to step 1,200", "c-0.0001-seed7: failed: no layers at step 1,200, 2 s",
    ]  # fmt: skip


@pytest.mark.parametrize("held", ["a", "b"])
def test_a_worker_waits_for_what_another_is_at_whichever_method_it_is_of(conduct, held):
    conducting = conduct("a", "b")
    due = {each.name: Task(each.name, Job(-16, 1200), 7) for each in conducting.study.candidates}
    claim = conducting.storage.begin(due[held])
    (other,) = {"a", "b"} - {held}
    assert conducting._next() == (due[other], True)
    task = conducting.storage.begin(due[other])
    conducting.storage.end(due[other], task, None, "nan at step 3", 1.0, 0)
    assert conducting._next() == (None, True)
    conducting.storage.end(due[held], claim, None, "nan at step 3", 1.0, 0)
    assert conducting._next() == (None, False)


def test_checkpoints_of_a_method_stay_until_nothing_of_it_is_due(conduct):
    conducting = conduct("a", seeds=[7, 8])
    done, other = (Task("a", Job(-16, 1200), seed) for seed in (7, 8))
    conducting.storage.end(done, conducting.storage.begin(done), 1.25, None, 1.0, 0)
    checkpoints = conducting.run_dir(done).checkpoints
    checkpoints.mkdir(parents=True)
    claim = conducting.storage.begin(other)
    assert conducting._next() == (None, True) and checkpoints.exists()
    conducting.storage.end(other, claim, None, "nan at step 3", 1.0, 0)
    assert conducting._next() == (None, False) and not checkpoints.exists()


def test_a_study_begins_in_a_folder_that_is_not_there_and_goes_on_in_it(conduct, tmp_path):
    study = conduct("a").study
    for _ in range(2):
        Conduct(study, None, tmp_path / "a folder" / "of studies", tmp_path)
        assert (tmp_path / "a folder" / "of studies" / "trials").is_dir()


# What is due ---------------------------------------------------------------------------------------------------------

GRID = [0, 2, 4, 6, 8]


def due(tried, whole, **rules):
    losses = {Job(place, 4): loss for place, loss in tried.items()} | {
        Job(place, 9): loss for place, loss in whole.items()
    }
    return [(job.place, job.steps) for job in next_jobs(GRID, Rules(9, 4, **rules), losses)]


PARTS = {0: 5.0, 2: 4.0, 4: 3.0, 6: 3.5, 8: 6.0}


@pytest.mark.parametrize(("tried", "whole", "rules", "expected"), [
    ({}, {}, {}, [(place, 4) for place in GRID]),
    ({0: 1.0, 4: 2.0}, {}, {}, [(2, 4), (6, 4), (8, 4)]),
    (PARTS | {4: FAILED, 6: FAILED}, {}, {}, [(2, 9), (0, 9)]),
    (dict.fromkeys(GRID, FAILED), {}, {}, []),
    (PARTS, {}, {}, [(4, 9), (6, 9)]), (PARTS, {}, {"going_on": 1}, [(4, 9)]), (PARTS, {4: 1.0}, {}, [(6, 9)]),
    (PARTS | {8: 1.0}, {}, {}, [(10, 4)]), (PARTS | {0: 1.0}, {}, {}, [(-2, 4)]),  # beyond the edge
    (PARTS | {8: 1.0}, {}, {"widenings": 0}, [(8, 9), (4, 9)]),
    (PARTS | {8: 1.0, 10: 0.5}, {}, {"widenings": 1}, [(10, 9), (8, 9)]),
    (PARTS | {8: 1.0, 10: 0.5}, {}, {"widenings": 2}, [(12, 4)]),
    (PARTS, {4: 1.0, 6: 2.0}, {}, [(2, 9)]),  # the neighbour below
    (PARTS, {4: 2.0, 6: 1.0}, {}, [(8, 9)]),
    (PARTS | {8: FAILED}, {4: 2.0, 6: 1.0}, {}, [(5, 9), (7, 9)]),  # but none that failed
    (PARTS, {2: 5.0, 4: 1.0, 6: 2.0}, {}, [(3, 9), (5, 9)]), (PARTS, {2: 5.0, 4: 1.0, 6: 2.0}, {"finer": False}, []),
    (PARTS, {2: 5.0, 3: 0.5, 4: 1.0, 6: 2.0}, {}, [(5, 9)]), (PARTS, {2: 5.0, 3: 0.5, 4: 1.0, 5: 1.0, 6: 2.0}, {}, []),
    (PARTS, {4: FAILED, 6: FAILED}, {}, [(2, 9)]),  # the best of the part that is left
    (PARTS, {4: FAILED, 6: FAILED, 2: FAILED}, {}, []),
    (PARTS | {8: 3.25}, {4: 2.0, 6: 1.5, 8: 1.0}, {}, [(10, 9)]),
    (PARTS | {8: 3.25}, {4: 2.0, 6: 1.5, 8: 1.0}, {"widenings": 0}, [(7, 9), (9, 9)]),
    (dict.fromkeys(GRID, FAILED) | {4: 3.0}, {}, {}, [(4, 9)]),  # what failed does not go on, though two would
    # the room for widening is used up by what was tried beyond the grid, in part alone or whole alone
    (PARTS | {-2: FAILED, 0: 1.0}, {0: 4.0, 4: 3.0, 6: 2.0, 8: 1.0}, {"widenings": 1}, [(7, 9), (9, 9)]),
    (PARTS | {8: 3.25}, {4: 2.0, 6: 1.5, 8: 1.0, 10: 0.5}, {"widenings": 1}, [(9, 9), (11, 9)]),
])  # fmt: skip
def test_what_is_trained_next(tried, whole, rules, expected):
    assert due(tried, whole, **rules) == expected


def test_rates_have_three_digits_and_places_are_quarters_of_a_decade():
    assert [rate_at(place) for place in (-16, -15, -14, -13, -12)] == [1e-4, 1.78e-4, 3.16e-4, 5.62e-4, 1e-3]
    assert place_of(1e-3) == -12 and rate_at(0) == 1.0


@pytest.mark.parametrize(("search", "budget", "expected"), [
    ({"points": 5}, {"steps": 12, "search_steps": 4}, 5 * 4 + 3 * 8 + 2 * 12),
    ({"points": 5, "finer": False}, {"steps": 12, "search_steps": 4}, 5 * 4 + 3 * 8),
    ({"points": 3, "going_on": 5}, {"steps": 12, "search_steps": 4}, 3 * 4 + 5 * 8 + 2 * 12),
    ({"points": 3}, {"steps": 12, "search_steps": 12}, 3 * 12 + 2 * 12),
    ({"learning_rate": [1e-4, 1e-3]}, {"steps": 12}, 2 * 12),
])  # fmt: skip
def test_the_steps_that_a_search_is_planned_to_take(studied, search, budget, expected):
    _, study, _, _ = studied({}, {**CONTENT, "methods": {"full": {}}, "search": search, "budget": budget})
    assert expected_steps(study, study.candidates[0]) == expected

"""A study under way, each part by itself: how a training is started, waited for, stopped and told, what was found."""

from types import SimpleNamespace

import pytest
import yaml

from finllm.study import conduct as module
from finllm.study.conduct import Conduct, Found, failure_of
from finllm.study.results import results_of
from finllm.study.search import FAILED, Job
from finllm.study.settings import read_study
from finllm.study.storage import Outcome, Storage, Task
from finllm.study.trial import Ended

CONTENT = {
    "shared": {"lora_r": 8}, "methods": {"a": {}, "b": {"search": {"lora_alpha": [1, 2]}}},
    "budget": {"steps": 1200, "search_steps": 4}, "search": {"points": 3, "finer": False}, "seeds": [7, 8],
}  # fmt: skip
LOW, MIDDLE, HIGH = -16, -14, -12  # the places of a grid: the rates 0.0001, 0.000316 and 0.001


def study_of(folder, content=CONTENT):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_study(path, lambda settings: (1e-4, 1e-3))


def only(*methods, **more):
    return {**CONTENT, "methods": {name: CONTENT["methods"][name] for name in methods}, **more}


def quickly(settings, stop_at):
    """The middle rate is the best."""
    loss = {1e-4: 3.0, 3.16e-4: 2.0, 1e-3: 2.5}[settings["learning_rate"]]
    return Ended(loss + settings.get("lora_alpha", 0), None, 2.0)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A study whose trainings end at once: `trainings` holds how each was started, `end` says how one ends."""
    held = SimpleNamespace(trainings=[], end=quickly)

    def call(content):
        held.conduct = Conduct(study_of(tmp_path, content), Storage(tmp_path), tmp_path, tmp_path / "root", "start")
        return held

    def run_trial(root, run, settings, stop_at, device, stop, start):
        assert (root, stop, start) == (tmp_path / "root", held.conduct.stop, "start")
        ((task, since),) = held.conduct.at_work.items()  # what a terminal shows meanwhile
        assert run.path == tmp_path / "trials" / task.run and since > 0
        run.path.mkdir(exist_ok=True)
        held.trainings.append((run.path.name, stop_at, device, settings))
        return held.end(settings, stop_at)

    monkeypatch.setattr(module, "run_trial", run_trial)
    return call


def test_a_study_is_trained_to_its_end_and_each_training_is_started_with_its_own_settings(trained, tmp_path):
    held = trained(only("b"))
    held.conduct.work(3, lambda line: None, 2)
    rates = {"0.0001": 1e-4, "0.000316": 3.16e-4, "0.001": 1e-3}

    def training(alpha, rate, stop_at, seed=7):
        keys = {"lora_r": 8, "lora_alpha": alpha, "learning_rate": rates[rate], "seed": seed, "max_steps": 1200,
                "eval_strategy": "steps", "eval_steps": 200}  # fmt: skip
        return f"b-alpha{alpha}-{rate}-seed{seed}", stop_at, 3, keys

    searches = [
        training(alpha, rate, stop_at)
        for alpha in (1, 2)  # the parts of all rates, then whole the two best, and what stands beside the best
        for rates_of, stop_at in ((rates, 4), (("0.000316", "0.001", "0.0001"), None))
        for rate in rates_of
    ]
    assert held.trainings == [*searches, training(1, "0.000316", None, 8)]
    content = results_of(held.conduct.study, held.conduct.storage, tmp_path / "trials")
    chosen = content["methods"]["b"]["chosen"]
    assert (chosen["candidate"], chosen["rate"], chosen["edge"]) == ("b-alpha1", 3.16e-4, "inside")
    assert content["complete"] and content["trainings"] == 13 and content["seconds"] == 26.0
    assert held.conduct.at_work == {} and held.conduct.run_dir(Task("b-alpha1", Job(MIDDLE, 4), 7)).path == (
        tmp_path / "trials" / "b-alpha1-0.000316-seed7"
    )  # fmt: skip
    held.conduct.work(3, lambda line: None, 2)
    assert len(held.trainings) == 13  # nothing is due any more


def test_what_a_study_stopped_is_let_go_of_and_is_due_again(trained):
    held, lines = trained(only("a")), []
    held.end = lambda settings, stop_at: Ended(None, None, 1.0, stopped=True)
    held.conduct.work(None, lines.append, 0)
    assert lines == ["a-0.0001-seed7: training to step 4"] and held.conduct.at_work == {}
    first = Task("a", Job(LOW, 4), 7)
    assert held.conduct.storage.running("a") == set() and held.conduct._next() == (first, True)
    held.conduct.storage.begin(first).let_go()  # nobody holds it
    held.conduct.stop.set()
    held.end = quickly
    held.conduct.work(None, lines.append, 0)
    assert len(held.trainings) == 1 and len(lines) == 1  # a study that is to stop takes nothing more


def test_a_worker_that_finds_nothing_free_waits_and_goes_on(trained, monkeypatch):
    """Another is at the last part; when it has ended, there is more to do."""
    held, waited = trained(only("a")), []
    storage, parts = held.conduct.storage, [Task("a", Job(place, 4), 7) for place in (LOW, MIDDLE, HIGH)]
    claims = [storage.begin(task) for task in parts]
    for task, claim, loss in zip(parts[:2], claims[:2], (3.0, 2.0), strict=True):
        storage.end(task, claim, loss, None, 1.0, 0)

    def wait(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            storage.end(parts[2], claims[2], 2.5, None, 1.0, 0)

    monkeypatch.setattr(held.conduct.stop, "wait", wait)
    held.conduct.work(None, lambda line: None, 0)
    assert len(waited) == 2 and min(waited) > 0
    assert [training[:2] for training in held.trainings] == [
        ("a-0.000316-seed7", None), ("a-0.001-seed7", None), ("a-0.0001-seed7", None), ("a-0.000316-seed8", None)
    ]  # fmt: skip


def test_of_what_is_due_the_first_that_nobody_is_at_is_taken(trained):
    held = trained(CONTENT)
    storage, claims = held.conduct.storage, []
    order = [Task(name, Job(place, 4), 7) for name in ("a", "b-alpha1", "b-alpha2") for place in (LOW, MIDDLE, HIGH)]
    for number, task in enumerate(order):
        assert held.conduct._next() == (task, True)
        claims.append(storage.begin(task))
        assert storage.running(task.candidate) == {each for each in order[: number + 1]
                                                   if each.candidate == task.candidate}  # fmt: skip
    assert held.conduct._next() == (None, True)


def test_whoever_is_at_a_run_dir_is_at_all_that_would_be_trained_in_it(trained):
    """The part of a rate and its whole have one run dir."""
    held = trained(only("a"))
    storage, tasks = held.conduct.storage, [Task("a", Job(place, 4), 7) for place in (LOW, MIDDLE, HIGH)]
    for task, loss in zip(tasks, (3.0, 2.0, 2.5), strict=True):
        storage.end(task, storage.begin(task), loss, None, 1.0, 0)
    claim = storage.begin(tasks[1])
    assert held.conduct._next() == (Task("a", Job(HIGH, 1200), 7), True)
    claim.let_go()
    assert held.conduct._next() == (Task("a", Job(MIDDLE, 1200), 7), True)


def test_checkpoints_of_every_candidate_go_once_its_method_is_done_and_of_no_other_before(trained):
    held = trained(CONTENT)
    storage = held.conduct.storage
    parts = [Task(name, Job(place, 4), 7) for name in ("b-alpha1", "b-alpha2") for place in (LOW, MIDDLE, HIGH)]
    kept = {}
    for task in [Task("a", Job(LOW, 4), 7), *parts]:
        storage.end(task, storage.begin(task), None, "nan at step 1", 1.0, 0)
        kept[task] = held.conduct.run_dir(task).checkpoints
        kept[task].mkdir(parents=True)
    turned = Conduct(held.conduct.study, storage, held.conduct.folder, held.conduct.root)
    turned._next()  # of a two rates are due, and are found first
    assert all(path.exists() for path in kept.values())
    for place in (MIDDLE, HIGH):
        task = Task("a", Job(place, 4), 7)
        claim = storage.begin(task)
        assert held.conduct._next()[0] != task
        if place == HIGH:
            assert [task.candidate for task, path in kept.items() if path.exists()] == ["a"]
        storage.end(task, claim, None, "nan at step 1", 1.0, 0)
    assert held.conduct._next() == (None, False) and not any(path.exists() for path in kept.values())


# What was found ------------------------------------------------------------------------------------------------------


@pytest.fixture
def found(tmp_path):
    """Of outcomes by candidate, place, steps and seed: a loss, or the reason why there is none."""

    def call(outcomes, content=CONTENT):
        study = study_of(tmp_path, content)
        held = {candidate.name: {} for candidate in study.candidates}
        for (name, place, steps, seed), loss in outcomes.items():
            good = not isinstance(loss, str)
            outcome = Outcome(loss if good else FAILED, None if good else loss, 1.0, loss != "interrupted")
            held[name][Task(name, Job(place, steps), seed)] = outcome
        return Found(study, SimpleNamespace(outcomes=lambda name: held[name]))

    return call


def searched(name, best, seed=7, place=MIDDLE):
    """A search that is over, whose best rate is `place`."""
    return {(name, each, steps, seed): best + abs(each - place) + (steps == 4) for each in (LOW, MIDDLE, HIGH)
            for steps in (4, 1200)}  # fmt: skip


def test_losses_are_of_the_seed_of_the_search_and_of_what_was_settled(found):
    held = found({("a", LOW, 4, 7): 3.0, ("a", LOW, 1200, 7): 2.0, ("a", LOW, 1200, 8): 1.0, ("a", HIGH, 4, 7): "nan",
                  ("a", HIGH, 1200, 7): "interrupted", ("a", MIDDLE, 1200, 7): 4.0})  # fmt: skip
    (a,) = held.study.of("a")
    assert held.losses(a) == {Job(LOW, 4): 3.0, Job(LOW, 1200): 2.0, Job(HIGH, 4): FAILED, Job(MIDDLE, 1200): 4.0}
    assert held.whole(a) == {LOW: 2.0, MIDDLE: 4.0} and held.due(a) == [Task("a", Job(MIDDLE, 4), 7)]
    assert held.chosen("a") is None and held.finals("a") == [] and held.refused(a) is None
    assert held.ended(Task("a", Job(HIGH, 1200), 7)) is None and held.ended(Task("a", Job(HIGH, 1200), 8)) is None
    assert held.ended(Task("a", Job(LOW, 1200), 8)) == Outcome(1.0, None, 1.0, True)


@pytest.mark.parametrize(("bests", "chosen"), [
    ((2.0, 1.0), "b-alpha2"), ((1.0, 2.0), "b-alpha1"), ((1.0, 1.0), "b-alpha1"), ((None, 2.0), "b-alpha2"),
    ((2.0, None), "b-alpha1"), ((None, None), None),
])  # fmt: skip
def test_the_candidate_with_the_least_loss_is_chosen_and_trained_with_every_seed(found, tmp_path, bests, chosen):
    outcomes = {}
    for name, best in zip(("b-alpha1", "b-alpha2"), bests, strict=True):
        failing = {(name, place, 4, 7): "nan at step 1" for place in (LOW, MIDDLE, HIGH)}
        outcomes |= failing if best is None else searched(name, best)
    held = found(outcomes)
    if chosen is None:
        assert held.chosen("b") is None and held.finals("b") == held.to_train("b", tmp_path) == []
        return
    candidate, place = held.chosen("b")
    assert (candidate.name, place) == (chosen, MIDDLE)
    finals = [Task(chosen, Job(MIDDLE, 1200), seed) for seed in (7, 8)]
    assert held.finals("b") == finals and failure_of(held, "b") is None
    assert held.to_train("b", tmp_path) == finals  # that of the search has lost its run dir
    (tmp_path / finals[0].run).mkdir()
    assert held.to_train("b", tmp_path) == finals[1:]


@pytest.mark.parametrize(("first", "second", "why"), [
    ("refused: no layers", "nan at step 1", "nan at step 1"), ("nan at step 1", "refused: no layers", "no layers"),
    ("refused: no layers", "refused: no room", "no room"), ("nan at step 2", "nan at step 1", "nan at step 1"),
])  # fmt: skip
def test_why_none_of_two_candidates_was_trained(found, first, second, why):
    """The last reason that there is; what is refused at one rate is due at no other."""
    rates = {name: ([LOW] if reason.startswith("refused") else [LOW, MIDDLE, HIGH])
             for name, reason in (("b-alpha1", first), ("b-alpha2", second))}  # fmt: skip
    reasons = {"b-alpha1": first, "b-alpha2": second}
    outcomes = {(name, place, 4, 7): reasons[name] for name, places in rates.items() for place in places}
    held = found(outcomes)
    assert [held.due(candidate) for candidate in held.study.of("b")] == [[], []] and failure_of(held, "b") == why
    refused = [held.refused(candidate) for candidate in held.study.of("b")]
    assert refused == [reason.partition("refused: ")[2] or None for reason in (first, second)]


def test_what_ended_well_is_no_reason(found):
    ends = {("a", LOW, 4, 7): "nan at step 1", ("a", MIDDLE, 4, 7): 3.0}
    for outcomes in (ends, dict(reversed(ends.items()))):
        assert failure_of(found(outcomes), "a") == "nan at step 1"


def test_what_was_interrupted_is_no_refusal_and_no_failure(found):
    ends = {("a", HIGH, 4, 7): "nan at step 1", ("a", LOW, 4, 7): "interrupted"}
    assert failure_of(found(ends), "a") == "nan at step 1"
    held = found({("a", LOW, 4, 7): "interrupted"})
    assert held.refused(held.study.of("a")[0]) is None and failure_of(held, "a") is None
    assert [task.job.place for task in held.due(held.study.of("a")[0])] == [LOW, MIDDLE, HIGH]

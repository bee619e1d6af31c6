"""The YAML of a study: what all methods share, the methods, how their rates are searched, the seeds.

    shared:                  keys of recipes/sft.py that all methods have; a method's own come before them
    budget:                  steps of a run, and after how many the best rates go on
    methods:                 a name, and the keys that make the method; with `baseline: scratch` those of
                             baselines/scratch, and of `shared` the data alone
    search:                  the learning rates, for all methods alike
    seeds:                   the first is searched with, all are trained at the chosen settings
    evaluation:              flags of eval/run.py

Everything is checked before anything starts: the settings of every method by recipes/sft.py's own parser, what they
name, and what will be evaluated. What is wrong with several methods is told once.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from finllm.bounded import read_yaml
from finllm.data.split import SPLITS
from finllm.errors import UserError, did_you_mean, raise_problems, shortened
from finllm.study.alike import OfMethod, each_once
from finllm.study.names import NAME, labels, problems_of_names
from finllm.study.search import Rules, grid_of, place_of, rate_at

OURS = (
    "output_dir",
    "resume",
    "stop_at_step",
    "seed",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "eval_strategy",
    "eval_steps",
    "early_stopping_patience",
    "load_best_model_at_end",
)  # fmt: skip  set by the study, whose runs have equal steps and are compared at their ends
BASELINES = ("scratch",)  # what a method's `baseline` may be; finllm/study/trial.py knows their commands
OF_A_METHOD = ("rates", "search")  # keys of a method that are the study's and no setting
LOOKS = 6  # validation losses in the course of a whole run, for its curve


@dataclass(frozen=True)
class Budget:
    """`steps` of a run; after `search_steps` of them the best rates go on."""

    steps: int = 60
    search_steps: int | None = None  # a third


@dataclass(frozen=True)
class Search:
    """`learning_rate`: the rates themselves, all of them trained whole, or None for a search."""

    learning_rate: list[float] | None = None
    points: int = 5
    going_on: int = 2
    widenings: int = 6
    finer: bool = True


@dataclass(frozen=True)
class Evaluation:
    """Of the final runs, by eval/run.py; `texts` that the base model writes to find what was forgotten, 0 for none;
    `scales` of what was trained, tried on the validation split."""

    split: str = "test"
    max_examples: int | None = None
    max_generated: int | None = None
    max_new_tokens: int = 128
    batch_size: int = 16
    texts: int = 200
    scales: list[float] = field(default_factory=lambda: [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2])


@dataclass(frozen=True)
class Candidate:
    """A method, or one combination of the settings that are searched in it: `settings` are keys of the recipe."""

    method: str
    name: str  # the method's, and what was combined
    settings: Mapping[str, Any]
    grid: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """What a study's YAML says, checked."""

    candidates: tuple[Candidate, ...]
    budget: Budget
    search: Search
    seeds: tuple[int, ...]
    evaluation: Evaluation
    content: Mapping[str, Any] = field(repr=False)  # the YAML as it was read

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(candidate.method for candidate in self.candidates))

    @property
    def rules(self) -> Rules:
        whole, search = self.budget.steps, self.search
        fixed = search.learning_rate is not None
        part = whole if fixed else self.budget.search_steps or max(1, whole // 3)
        return Rules(whole, part, search.going_on, search.widenings, search.finer, fixed)

    def of(self, method: str) -> list[Candidate]:
        """The candidates of a method."""
        return [candidate for candidate in self.candidates if candidate.method == method]

    def settings_of(self, candidate: Candidate, place: float, seed: int) -> dict[str, Any]:
        """All keys of one run but its output_dir; validated so often that its curve can be drawn."""
        return {
            **candidate.settings,
            "learning_rate": rate_at(place),
            "seed": seed,
            "max_steps": self.budget.steps,
            **({} if "baseline" in candidate.settings else {"eval_strategy": "steps"}),
            "eval_steps": max(1, self.budget.steps // LOOKS),
        }


def read_study(
    path: Path | str,
    check: Callable[[Mapping[str, Any]], tuple[float, float]],
    obstacles: Callable[[Study], Iterable[str]] = lambda study: (),
) -> Study:
    """The study of a YAML file; all that is wrong with it is one `UserError`.

    `check` takes the keys of a run, raises a `UserError` where they cannot be trained, and returns the range
    of learning rates in which such a method is usually trained. `obstacles` takes the study as far as it can be
    trained, and says why that could not be evaluated.
    """
    content = read_yaml(path)
    known = ("shared", "methods", *PARTS, "seeds")
    problems = [f"unknown key {key!r}{did_you_mean(str(key), known)}" for key in content if key not in known]
    problems += [f"{key} is missing" for key in ("shared", "methods") if not content.get(key)]
    parts = {name: _part(name, kind, content.get(name) or {}, problems) for name, kind in PARTS.items()}
    seeds = content.get("seeds", [42, 43, 44])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)):
        problems.append(f"seeds is {shortened(seeds)}; it is a list of whole numbers, such as [42, 43, 44]")
        seeds = [42]
    if len({*seeds}) < len(seeds):
        problems.append(f"seeds is {shortened(seeds)}; each is named once")
    bounds = _out_of_bounds(**parts)
    problems += bounds
    shared = _mapping(content.get("shared") or {}, "shared", problems)
    methods = _mapping(content.get("methods") or {}, "methods", problems)
    candidates = [
        each
        for name, settings in methods.items()
        for each in _candidates(str(name), settings, shared, parts["search"], parts["budget"], check, problems)
    ]
    problems += problems_of_names(map(str, methods), ((each.method, each.name) for each in candidates))
    study = Study(tuple(candidates), **parts, seeds=tuple(seeds), content=content)
    if not bounds:
        problems += obstacles(study)
    raise_problems(each_once(problems, len(methods)), str(path))
    return study


PARTS = {"budget": Budget, "search": Search, "evaluation": Evaluation}


def _part(name: str, kind: type, held: Any, problems: list[str]) -> Any:
    """One of the small sections, with its defaults; what does not belong there is added to `problems`."""
    held = _mapping(held, name, problems)
    known = {each.name: each for each in fields(kind)}
    problems += [f"unknown key {name}.{key}{did_you_mean(str(key), known)}" for key in held if key not in known]
    values = {}
    for key, value in held.items():
        if key not in known or (value is None and "None" in known[key].type):
            continue
        kinds = {"int": int, "str": str, "bool": bool, "list[float]": list}[known[key].type.removesuffix(" | None")]
        if type(value) is not kinds:
            problems.append(f"{name}.{key} is {shortened(value)}, not {known[key].type}")
        else:
            values[key] = value
    return kind(**values)


def _out_of_bounds(budget: Budget, search: Search, evaluation: Evaluation) -> list[str]:
    """What is wrong with the numbers of the small sections."""
    least = {
        "budget.steps": (budget.steps, 1), "search.points": (search.points, 3), "search.going_on": (search.going_on, 1),
        "search.widenings": (search.widenings, 0), "evaluation.texts": (evaluation.texts, 0),
        "evaluation.max_examples": (evaluation.max_examples, 1), "evaluation.batch_size": (evaluation.batch_size, 1),
        "evaluation.max_generated": (evaluation.max_generated, 0),
        "evaluation.max_new_tokens": (evaluation.max_new_tokens, 1),
    }  # fmt: skip
    problems = [f"{key} is {value}; it must be at least {low}" for key, (value, low) in least.items()
                if value is not None and value < low]  # fmt: skip
    if evaluation.texts == 1:
        problems.append("evaluation.texts is 1; it must be at least 2, or 0 for none")
    if (split := evaluation.split) not in SPLITS:
        problems.append(f"evaluation.split is {split!r}{did_you_mean(split, SPLITS)}; it is one of {', '.join(SPLITS)}")
    scales = evaluation.scales
    if not all(type(scale) in (int, float) and 0 <= scale <= 4 for scale in scales):
        problems.append(f"evaluation.scales is {shortened(scales)}; it is a list of numbers from 0 to 4")
    part = budget.search_steps
    if part is not None and not 1 <= part <= budget.steps:
        problems.append(f"budget.search_steps is {part}; it must be 1 to budget.steps, {budget.steps}")
    rates = search.learning_rate
    if rates is not None and not (rates and all(isinstance(rate, float) and 1e-8 <= rate <= 100 for rate in rates)):
        problems.append(f"search.learning_rate is {shortened(rates)}; it is a list of rates, such as [1.0e-4, 3.0e-4]")
    elif any(float(f"{rate:.3g}") != rate for rate in rates or ()):
        problems.append(f"search.learning_rate is {shortened(rates)}; a rate has up to three digits, as 2.5e-4")
    return problems


def _candidates(
    name: str, settings: Any, shared: Mapping[str, Any], search: Search, budget: Budget, check, problems: list[Any]
) -> list[Candidate]:
    """A method's candidates, one a combination of what is searched in it; what is wrong is added to `problems`."""
    place = f"methods.{name}"
    if not NAME.fullmatch(name):
        return []  # which `problems_of_names` tells
    settings = _mapping(settings or {}, place, problems)
    if "baseline" in settings:
        if settings["baseline"] not in BASELINES:
            problems.append(f"{place}.baseline is {shortened(settings['baseline'])}; it is {' or '.join(BASELINES)}")
            return []
        shared = {key: value for key, value in shared.items() if key == "dataset_name"}
    wrong = [key for key in {**shared, **settings} if key in OURS]
    problems += [OfMethod(f"{key} is set by the study; remove it", name) for key in wrong]
    own = {key: value for key, value in settings.items() if key not in OF_A_METHOD}
    searched = _mapping(settings.get("search") or {}, f"{place}.search", problems)
    choices = {key: _choices(value, f"{place}.search.{key}", problems) for key, value in searched.items()}
    named = [zip(values, labels(key, values), strict=True) for key, values in choices.items()]
    found = []
    for combined in itertools.product(*named):
        chosen = {key: value for key, (value, _) in zip(choices, combined, strict=True)}
        keys = {key: value for key, value in {**shared, **own, **chosen}.items() if key not in wrong}
        try:
            usual = check({**keys, "max_steps": budget.steps, "output_dir": "none"})
        except UserError as error:
            problems += [OfMethod(problem, name) for problem in error.problems]
            continue
        low, high = _range(settings.get("rates"), usual, place, problems)
        grid = grid_of(low, high, search.points)
        if search.learning_rate is not None:
            grid = sorted({place_of(rate) for rate in search.learning_rate if isinstance(rate, float) and rate > 0})
        found.append(Candidate(name, name + "".join(label for _, label in combined), keys, tuple(grid)))
    return found


def _choices(value: Any, place: str, problems: list[str]) -> list[Any]:
    """What a searched key may be: the list that is given, or points of a range by equal factors."""
    if isinstance(value, list) and value:
        texts = [json.dumps(each, sort_keys=True) for each in value]
        again = [each for number, each in enumerate(value) if texts[number] in texts[:number]]
        if again:
            problems.append(f"{place} has {shortened(again[0])} more than once")
        return value
    if isinstance(value, dict) and {*value} == {"from", "to", "points"}:
        low, high, points = value["from"], value["to"], value["points"]
        if (
            all(type(each) in (int, float) for each in (low, high))
            and 0 < low < high
            and type(points) is int
            and points > 1
        ):
            steps = [low * (high / low) ** (number / (points - 1)) for number in range(points)]
            whole = type(low) is int and type(high) is int
            return list(dict.fromkeys(round(step) if whole else float(f"{step:.3g}") for step in steps))
    problems.append(f"{place} is {shortened(value)}; it is a list, or {{from: 4, to: 64, points: 3}}")
    return []


def _range(given: Any, usual: tuple[float, float], place: str, problems: list[str]) -> tuple[float, float]:
    """Lowest and highest rate to begin with: the method's `rates`, else what is usual for its kind."""
    if given is None:
        return usual
    numbers = isinstance(given, list) and len(given) == 2 and all(type(each) in (int, float) for each in given)
    if not numbers or not 1e-8 <= given[0] <= given[1] <= 100:
        problems.append(f"{place}.rates is {shortened(given)}; it is the lowest and the highest rate, [1.0e-4, 1.0e-3]")
        return usual
    return float(given[0]), float(given[1])


def _mapping(held: Any, name: str, problems: list[str]) -> dict[str, Any]:
    if isinstance(held, dict):
        return held
    problems.append(f"{name} is {shortened(held)}; it is a mapping of keys")
    return {}


def expected_steps(study: Study, candidate: Candidate) -> int:
    """Optimizer steps that a candidate will take if its best rate lies inside the first grid: for the plan."""
    rules, points = study.rules, len(candidate.grid)
    finer = 0 if rules.fixed else 2 * rules.whole * rules.finer
    if rules.part == rules.whole:
        return points * rules.whole + finer
    wholes = max(rules.going_on, 3)  # the best and its neighbours
    return points * rules.part + wholes * (rules.whole - rules.part) + finer

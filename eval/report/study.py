"""The study view of a report: what recipes/compare.py searched and chose, beside what the final runs are worth.

Of a method the final runs are seeds of one recipe, taken together as in eval/statistics/seeds.py; methods are ranked by
the tests of these. Every sentence is made from the figures. This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import yaml

from eval import shapes
from eval.evaluated import Run
from eval.report.findings import listing, machines_of, other_versions, places
from eval.shapes import COUNT, Each, Maybe
from eval.statistics.comparison import ALPHA, ranks
from eval.statistics.seeds import compare_recipes, recipes
from finllm.errors import MANY, UserError, raise_problems
from finllm.files import read_json
from finllm.run_dir import RunDir
from finllm.study.equal import losses_at_equal_seconds

SHAPE = {"budget": {"steps": COUNT, "search_steps": COUNT}, "seeds": Each(int), "methods": dict, "seconds": float,
         "trainings": COUNT}  # fmt: skip
METHOD = {
    "tried": dict,
    "chosen": Maybe(
        {"candidate": str, "rate": float, "validation_loss": float, "edge": str, "width": Each(float), "settings": dict}
    ),
    "finals": Each({"run": str, "seed": int}),
    "failed": Maybe(str),
}
TRIED = Each({"rate": float, "losses": dict})
SCALED = {"scales": Each(float), "nats_per_token": Each(float), "best": float, "split": str,
          "gain": {"nats_per_token": float, "low": float, "high": float}}  # fmt: skip
LONGER = 1.2  # times the training time of another: worth a sentence where both are as good
FEW = 0.1  # of the best method's trainable parameters: a method with fewer is worth a sentence


def read_study(folder: Path, runs: list[Run]) -> dict[str, Any]:
    """study.json, checked, with each method's `runs`; a `UserError` where these are not all among those given."""
    path = folder / "study.json"
    content = read_json(path)
    problems = list(shapes.problems(content, SHAPE, ""))
    for name, method in content["methods"].items() if not problems else ():
        problems += [*shapes.problems(method, METHOD, f"methods.{name}")] or _not_chosen(method, f"methods.{name}")
    raise_problems(problems, f"{path}; write it again: python recipes/compare.py … --resume auto", MANY)
    methods = {name: {"chosen": None, "failed": None, **method} for name, method in content["methods"].items()}
    by_place = {run.path.resolve(): run for run in runs}
    found, missing = {}, []
    for name, method in methods.items():
        places = [(folder / "trials" / final["run"]).resolve() for final in method["finals"] if "curve" in final]
        missing += [str(place) for place in places if place not in by_place]
        found[name] = [by_place[place] for place in places if place in by_place]
    raise_problems(
        [f"{place} is a final run of the study and was not given" for place in missing], "the runs to compare", MANY
    )
    if not any(found.values()):
        raise UserError(f"{path} has no final runs yet; finish it: python recipes/compare.py … --resume auto")
    return {**content, "methods": methods, "runs": found}


def _not_chosen(method: dict[str, Any], place: str) -> list[str]:
    """What is missing of the settings with which a method's final runs were made."""
    chosen = method.get("chosen")
    if chosen is None:
        made = any("curve" in final for final in method["finals"])
        return [f"{place} has final runs, and chosen says nothing of their settings"] if made else []
    return [*shapes.problems(method["tried"].get(chosen["candidate"]), TRIED, f"{place}.tried.{chosen['candidate']}")]


def view(study: dict[str, Any], runs: list[Run]) -> dict[str, Any]:
    """What page and study.md show: `rows`, a method each, best first, `findings`, and the figures of the charts."""
    own = [run for group in study["runs"].values() for run in group]
    bases = [run for run in runs if run.results.model.method == "base"]
    names = {run.name: method for method, group in study["runs"].items() for run in group}
    pooled = {names[recipe["runs"][0]]: recipe for recipe in recipes(own, names)}
    told = [
        {"a": names[each["a"][0]], "b": names.get(each["b"][0], each["b"][0]), **{
            key: each[key] for key in ("difference", "low", "high", "p_adjusted")}}
        for each in compare_recipes([*own, *bases], names)
    ]  # fmt: skip
    rows = [_row(study, name, group, pooled.get(name)) for name, group in study["runs"].items() if group]
    rows += [_base_row(base) for base in bases]
    rows.sort(key=lambda row: (row["bits_per_byte"], row["name"]))
    ranked = [SimpleNamespace(name=row["name"], ranked=True) for row in rows if row["seeds"] != 1]
    rank_of = ranks(ranked, told)  # type: ignore[arg-type]  of each only its name is read, and that it is ranked
    for row in rows:
        rank = rank_of.get(row["name"])
        row |= {"low": rank and rank.low, "high": rank and rank.high, "may_be_best": bool(rank and rank.may_be_best)}
    failed = {name: method["failed"] for name, method in study["methods"].items() if method["failed"]}
    failed |= {
        f"{name} with seed {final['seed']}": final["failed"]
        for name, method in study["methods"].items()
        for final in method["finals"]
        if final.get("failed")
    }
    groups = by_tokenizer({row["name"]: study["runs"][row["name"]][0].provenance.get("tokenizer_hash")
                           for row in rows if row["seeds"]})  # fmt: skip
    apart, why = _not_compared(study)
    equal: dict[str, Any] = {}
    for group in groups if "train_seconds" not in apart else ():
        equal |= losses_at_equal_seconds({"methods": {name: study["methods"][name] for name in group}})
    content = {"budget": study["budget"], "seeds": study["seeds"], "seconds": study["seconds"],
               "trainings": study["trainings"], "rows": rows, "comparisons": told, "failed": failed,
               "equal_seconds": equal, "groups": groups, "apart": apart, "why_apart": why}  # fmt: skip
    content["curves"] = [_curve(study, row["name"]) for row in rows if row["name"] in study["methods"]]
    content["scaled"] = [
        {"name": row["name"], **held}
        for row in rows
        if row["name"] in study["methods"] and (held := _scaled(study["runs"][row["name"]][0]))
    ]
    content["chosen"] = {
        name: yaml.safe_dump(
            {**method["chosen"]["settings"], "learning_rate": method["chosen"]["rate"]}, sort_keys=False
        )
        for name, method in study["methods"].items()
        if method["chosen"]
    }
    content["findings"] = [*findings(content, runs[0].split.questions), *other_versions(study["runs"])]
    return content


def _not_compared(study: dict[str, Any]) -> tuple[list[str], str]:
    """Which costs of the methods are not of one kind, and why: of other machines, or of one that did more meanwhile."""
    groups = study["runs"]
    if len(machines := machines_of(groups)) > 1:
        return ["train_seconds", "peak_memory_bytes"], (
            f"Trained on different machines, so times and memory are not compared: {places(machines)}."
        )
    beside = max(final.get("beside", 0) for method in study["methods"].values() for final in method["finals"])
    if beside:
        return ["train_seconds"], (
            f"Up to {beside + 1} trainings shared a device, so the times are of that and are not compared."
        )
    return [], ""


def by_tokenizer(methods: Mapping[str, Any]) -> list[list[str]]:
    """The methods of each tokenizer, the commonest first: losses a token are compared within a group alone."""
    groups: dict[Any, list[str]] = {}
    for method, tokenizer in methods.items():
        groups.setdefault(tokenizer, []).append(method)
    return sorted(groups.values(), key=len, reverse=True)


def _row(study: dict[str, Any], name: str, group: list[Run], pooled: dict[str, Any] | None) -> dict[str, Any]:
    chosen = study["methods"][name]["chosen"]
    bits = pooled["bits_per_byte"] if pooled else vars(group[0].split.metrics["bits_per_byte"])
    return {
        "name": name,
        "base_model": group[0].results.model.base_model,
        "seeds": len(group),
        "bits_per_byte": bits["value"],
        "interval": [bits["low"], bits["high"]],
        "spread": pooled["metrics"]["bits_per_byte"]["spread"] if pooled else None,
        "rate": chosen["rate"],
        "width": chosen["width"],
        "edge": chosen["edge"],
        "trainable_parameters": group[0].results.model.trainable_parameters,
        "train_seconds": mean(run.summary["train_seconds"] for run in group),
        "peak_memory_bytes": max(run.summary["peak_memory_bytes"] for run in group),
        "forgetting": _forgetting(group),
    }


def _forgetting(group: list[Run]) -> float | None:
    """The mean over seeds of what eval/forgetting.py wrote, in nats a token; None where it was not run on all of them,
    or on other weights."""
    held = []
    for run in group:
        path = RunDir(run.path).eval / "forgetting.json"
        content = read_json(path) if path.exists() else {}
        if content.get("weights") != run.results.hashes.get("weights") or not content:
            return None
        held.append(content)
    if len({(each.get("base"), each.get("texts"), each.get("seed")) for each in held}) > 1:
        return None
    raise_problems(
        [problem for each in held for problem in shapes.problems(each, {"nats_per_token": float}, "")],
        f"eval/forgetting.json of {group[0].path}",
    )
    return mean(each["nats_per_token"] for each in held)


def _scaled(run: Run) -> dict[str, Any] | None:
    """What eval/scaling.py found of a run; None where it was not run on these weights, or they cannot be scaled."""
    path = RunDir(run.path).eval / "scaling.json"
    content = read_json(path) if path.exists() else {}
    if content.get("weights") != run.results.hashes.get("weights") or not content or content.get("reason"):
        return None
    raise_problems([*shapes.problems(content, SCALED, "")], str(path))
    return {key: content[key] for key in ("scales", "nats_per_token", "best", "gain", "split")}


def _base_row(run: Run) -> dict[str, Any]:
    bits = run.split.metrics["bits_per_byte"]
    nothing = dict.fromkeys(("spread", "rate", "width", "edge", "train_seconds", "peak_memory_bytes", "forgetting"))
    return {
        "name": run.name,
        "base_model": run.results.model.base_model,
        "seeds": 0,
        "bits_per_byte": bits.value,
        "interval": [bits.low, bits.high],
        "trainable_parameters": 0,
        **nothing,
    }


def _curve(study: dict[str, Any], name: str) -> dict[str, Any]:
    """Validation losses by rate, of the whole budget and of the part, of the chosen candidate."""
    method = study["methods"][name]
    tried = method["tried"][method["chosen"]["candidate"]]
    whole, part = (str(study["budget"][key]) for key in ("steps", "search_steps"))
    points = {
        key: [[each["rate"], each["losses"][key]] for each in tried if key in each["losses"]] for key in {whole, part}
    }
    return {"name": name, "whole": points[whole], "part": points[part], "rate": method["chosen"]["rate"]}


def findings(content: dict[str, Any], questions: int) -> list[str]:
    """What the study says, in sentences, none of them written beforehand."""
    rows = [row for row in content["rows"] if row["seeds"]]
    seeds = len(content["seeds"])
    ranked = [row for row in rows if row["low"] is not None]
    best = (ranked or rows)[0]
    bases = [row for row in content["rows"] if not row["seeds"] and row["base_model"] == best["base_model"]]
    base = bases[0] if bases else None
    said = [
        f"{best['name']} predicts the reference answers best: {best['bits_per_byte']:.3f} bits per byte "
        f"({best['interval'][0]:.3f} to {best['interval'][1]:.3f}) over {seeds} seed{'s' if seeds > 1 else ''}, at its "
        f"own rate of {best['rate']:g}."
    ]
    if ranked:
        said += _compared(content, ranked, base, questions)
    if lonely := [row["name"] for row in rows if row["low"] is None]:
        said.append(f"Of one seed nothing can be said of how another training would compare: {listing(lonely)}.")
    for edge in ("lowest", "highest"):
        if names := [row["name"] for row in rows if row["edge"] == edge]:
            said.append(f"The best rate of {listing(names)} is the {edge} that was tried: a better one may lie beyond.")
    if better := [each for each in content["scaled"] if each["gain"]["low"] > 0]:
        splits = listing(sorted({each["split"] for each in better}))
        said.append(f"With what was learned scaled, on the {splits} rows where that was found, {_better(better)}.")
    if content["why_apart"]:
        said.append(content["why_apart"])
    if content["failed"]:
        said.append(f"Not trained: {'; '.join(f'{name} ({why})' for name, why in content['failed'].items())}.")
    return said


def _compared(
    content: dict[str, Any], rows: list[dict[str, Any]], base: dict[str, Any] | None, questions: int
) -> list[str]:
    """Which of the ranked methods, the best first, cannot be told apart, which do much with few parameters, and which
    take longer for nothing."""
    best, said, seeds = rows[0], [], len(content["seeds"])
    alike = [row for row in rows[1:] if row["may_be_best"]]
    if alike:
        said.append(
            f"{listing([best['name'], *(row['name'] for row in alike)])} cannot be told apart: any of them may be the "
            f"best, as far as {questions:,} questions and {seeds} seeds can show."
        )
    elif len(rows) > 1:
        said.append("Every other method is surely worse than some method here.")
    if base and base["may_be_best"]:
        said.append("Nor can the untrained base model be told from the best of them.")
    if base and base["bits_per_byte"] > best["bits_per_byte"]:
        gain = base["bits_per_byte"] - best["bits_per_byte"]
        told = [each for each in content["comparisons"] if each["p_adjusted"] < ALPHA]
        surely = {pair for each in told for pair in ((each["a"], each["b"]), (each["b"], each["a"]))}
        much = []
        for row in rows[1:]:
            share = 100 * (base["bits_per_byte"] - row["bits_per_byte"]) / gain
            less = row["trainable_parameters"] / best["trainable_parameters"]
            of_one_base = row["base_model"] == best["base_model"]
            if of_one_base and less < FEW and share > 0 and (base["name"], row["name"]) in surely:
                much.append((row["name"], "has ", f"{share:.0f} % with {less:.2g}", " of its trainable parameters"))
        if much:
            said.append(f"Of {best['name']}'s gain over the base model {_in_turn(much)}.")
    if "train_seconds" not in content["apart"]:
        nothing = f"for no difference that {questions:,} questions can show"
        ratios = {row["name"]: row["train_seconds"] / best["train_seconds"] for row in alike}
        slower = [(name, "takes ", f"{ratio:.1f}", "") for name, ratio in ratios.items() if ratio > LONGER]
        faster = [f"{1 / ratio:.1f} times that of {name}" for name, ratio in ratios.items() if ratio < 1 / LONGER]
        said += [f"{_in_turn(slower)} times the training time of {best['name']}, {nothing}."] if slower else []
        said += [f"The training time of {best['name']} is {listing(faster)}, {nothing}."] if faster else []
    return said


def _better(scaled: list[dict[str, Any]]) -> str:
    """Which methods would be better by how much at which scale, and how sure that is."""
    told = []
    for each in scaled:
        gain = each["gain"]
        sure = f" ({gain['low']:.3f} to {gain['high']:.3f}) at {each['best']:g}"
        told.append((each["name"], "would be ", f"{gain['nats_per_token']:.3f}", " nats a token better", sure))
    return _in_turn(told)


def _in_turn(told: list[tuple[str, ...]]) -> str:
    """One sentence of several methods, whose second and fourth words stand with the first alone:
    `a has 95 % with 0.1 of its parameters, b 90 % with 0.05 and c 80 % with 0.01`."""
    return listing([
        "".join([name, " ", "" if number else verb, figure, "" if number else what, *sure])
        for number, (name, verb, figure, what, *sure) in enumerate(told)
    ])  # fmt: skip

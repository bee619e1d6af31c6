"""What the numbers of a leaderboard say, in sentences, and what a reader must know before comparing them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eval.evaluated import Run
from eval.statistics.uncertainty import LEVEL
from finllm.errors import at_most
from finllm.provenance import computed_on
from finllm.text.prompts import TEMPLATE_ID


def reference_of(run: Run, runs: list[Run]) -> Run | None:
    """The base model that a run is held against: the one it was made from, else the only one there is."""
    if run.results.model.method == "base":
        return None
    bases = [other for other in runs if other.results.model.method == "base"]
    own = [base for base in bases if is_base_of(base, run)]
    return own[0] if own else bases[0] if len(bases) == 1 else None


def is_base_of(base: Run, run: Run) -> bool:
    """Whether a run was made from this base model: by the hash of its weights and, where it is not known, by name."""
    made_from, weights = run.provenance.get("base_model_hash"), base.results.hashes.get("weights")
    if made_from and weights:
        return made_from == weights
    return base.results.model.base_model == run.results.model.base_model


def finding(rows: list[dict[str, Any]], level: float) -> list[str]:
    """What the numbers say, in sentences: the best model with its interval, its base, and who else may be the best."""
    ranked = [row for row in rows if row["position"]]
    if not ranked:
        reasons = "; ".join(f"{row['name']}: {row['unranked']}" for row in rows)
        return [f"No model is ranked: {reasons}."]
    best = ranked[0]
    bits = best["metrics"]["bits_per_byte"]
    said = f"{bits['value']:.3f} bits per byte ({100 * level:g} % interval {bits['low']:.3f} to {bits['high']:.3f})"
    if len(ranked) == 1:
        return [f"{best['name']} predicts the reference answers with {said}."]
    base = next((row for row in ranked if row["name"] == best["reference"]), None)
    if best["method"] == "base":
        first = (
            f"No trained model here predicts the reference answers better than the base model {best['name']}: {said}."
        )
    elif base:
        held = base["metrics"]["bits_per_byte"]
        fewer = f"{held['value'] - bits['value']:.3f} fewer"
        whose = "its base model" if best["reference_is_its_base"] else "the base model"
        first = (
            f"{best['name']} predicts the reference answers best: {said}, {fewer} than "
            f"{whose} {base['name']} ({held['value']:.3f}, {held['low']:.3f} to {held['high']:.3f})."
        )
    else:
        first = f"{best['name']} predicts the reference answers best: {said}."
    candidates = [row["name"] for row in ranked if row["may_be_best"]]
    tested = "paired tests of every two on the same questions"
    if len(candidates) == 1:
        return [first, f"For every other model there is a surely better one, by {tested}."]
    return [first, f"The truly best one is among {listing(candidates)} ({100 * LEVEL:g} % sure, by {tested})."]


def listing(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def spreads(pooled: list[dict[str, Any]]) -> list[str]:
    """A sentence for each recipe that was run with several seeds."""
    return [
        f"Over the {len(recipe['runs'])} seeds of one recipe ({', '.join(recipe['runs'])}) bits per byte are "
        f"{recipe['metrics']['bits_per_byte']['mean']:.3f} ± {recipe['metrics']['bits_per_byte']['spread']:.3f} "
        "(standard deviation between seeds)."
        for recipe in pooled
    ]


def of_the_data(contamination: dict[str, Any] | None, runs: list[Run]) -> list[str]:
    """A sentence where examples have a duplicate in the training data: of the data, not of a model."""
    if not contamination or contamination["passed"]:
        return []
    models, number = contamination["models"], len(contamination["contaminated"])
    whose = "" if len(models) == len(runs) else f" of {listing(models)}"
    return [
        f"{number:,} of the {runs[0].split.examples:,} examples compared on "
        f"{'has' if number == 1 else 'have'} a duplicate in the training data{whose}: see the data card."
    ]


def machines_of(runs: Mapping[str, list[Run]]) -> dict[str, list[str]]:
    """What was trained on each machine, of `runs` by name; those that do not say where are left out."""
    found: dict[str, list[str]] = {}
    for name, group in runs.items():
        for machine in sorted({computed_on(run.provenance) for run in group if run.summary} - {""}):
            found.setdefault(machine, []).append(name)
    return found


def places(machines: dict[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(at_most(names))} on {machine}" for machine, names in machines.items())


def other_versions(runs: Mapping[str, list[Run]]) -> list[str]:
    """A sentence where `runs`, by name, were trained under different versions of a package; else none."""
    held: dict[str, dict[str, dict[str, None]]] = {}
    for name, group in runs.items():
        for origin in (run.provenance for run in group if run.summary):
            for package, version in (origin.get("packages") or {}).items():
                held.setdefault(package, {}).setdefault(version, {})[name] = None  # each once, in their order
    told = []
    for package, versions in sorted(held.items()):
        if len(versions) > 1:
            who = (f"{version} ({', '.join(at_most([*names]))})" for version, names in sorted(versions.items()))
            told.append(f"{package} {' and '.join(who)}")
    return [f"Trained under different versions, so a difference may be theirs: {'; '.join(told)}."] if told else []


def caveats(runs: list[Run]) -> list[str]:
    """What a reader must know before comparing the columns of this very table."""
    written = [run for run in runs if run.split.generated]
    tokenizers = {run.results.model.tokenizer for run in runs}
    limits = sorted({run.results.decoding["max_new_tokens"] for run in written})
    blind = [run for run in runs if not run.ranked]

    def differ(part: str, among: list[Run]) -> bool:
        return len({json.dumps(getattr(run.results, part), sort_keys=True) for run in among}) > 1

    said = []
    if blind:
        why = "; ".join(f"{run.name}: {run.results.unranked}" for run in blind)
        said.append(f"Listed and not ranked: {why}.")
    if len(tokenizers) > 1:
        said.append(
            f"There are {len(tokenizers)} tokenizers: compare perplexities only between models of the same one."
        )
    foreign = [run.name for run in runs if (base := reference_of(run, runs)) and not is_base_of(base, run)]
    if foreign:
        said.append(f"Held against the only base model here, which they were not made from: {', '.join(foreign)}.")
    most = max(run.split.generated for run in runs)
    fewer = [f"{run.split.generated} of {run.name}" for run in runs if run.split.generated < most]
    if 0 < most < runs[0].split.examples:
        said.append(f"Answers were written to {most} of the {runs[0].split.examples} examples.")
    if left_out := {id for run in runs for id in run.split.left_out}:
        said.append(
            f"{len(left_out)} of {runs[0].split.examples + len(left_out)} examples are not counted, of any model: "
            "they are too long for one that was evaluated with these."
        )
    cleaner = [run for run in runs if run.split.clean and run.split.clean.examples < run.split.examples]
    if cleaner:
        bits = ", ".join(
            f"{run.name} {run.split.clean.metrics['bits_per_byte'].value:.3f} ({run.split.clean.examples})"
            for run in cleaner
        )
        said.append(
            "Bits per byte without the examples that have a duplicate in the training data, and how many are left of "
            f"{runs[0].split.examples}: {bits}."
        )
    if len(machines := machines_of({run.name: [run] for run in runs})) > 1:
        said.append(
            f"Trained on different machines, so that times and memory are not to be compared: {places(machines)}."
        )
    said += other_versions({run.name: [run] for run in runs})
    if fewer:
        said.append(f"ROUGE, BLEU and stop rate cover {most} answers, but only {', '.join(fewer)}.")
    if len(limits) > 1:
        said.append(f"Answers were cut at different limits: {', '.join(map(str, limits))} new tokens.")
    asked = {run.name: run.results.template["id"] for run in runs}
    if differ("template", runs):
        named = ", ".join(f"{name} in {template}" for name, template in asked.items())
        said.append(f"The models were asked in different templates: {named}.")
    elif {*asked.values()} != {TEMPLATE_ID}:
        said.append(f"All models were asked in template {runs[0].results.template['id']}.")
    if differ("signatures", written):
        said.append("ROUGE or BLEU were computed with different settings; see the signatures of each run.")
    if differ("confidence", runs):
        said.append("The intervals were made in different ways; see each run's results.json.")
    return said

"""Put small faults into the source, one at a time, and look whether a test notices: `make mutants`.

    python tests/mutation/run.py                       every mutant of every module in modules.toml
    python tests/mutation/run.py --sample 60           60 of them, the same at every run; --seed draws others
    python tests/mutation/run.py --modules eval/run.py finllm/data        these modules, or folders of them

This process imports torch and its like once, and nothing of ours. Each worker is a fork of it with a copy of the tree,
and looks at some mutants of one module at a time (stage.py). Before the first mutant each file of tests runs once
unchanged, and it is noted which of its tests reach which lines: a mutant is shown to those that reach its statement
alone, up to the first that fails. What was found is kept (held.py): a run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import random
import sys

import held
from held import ROOT
from mutants import Mutant, mutants_of
from workers import in_parallel, look_at_file, look_at_mutants

HEAVY = (  # what our modules import of others
    "torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama", "transformers.trainer", "peft", "trl", "trl.trainer.sft_trainer",
    "accelerate", "datasets", "evaluate", "scipy.stats", "scipy.sparse.csgraph", "sacrebleu", "optuna", "krippendorff",
    "rouge_score.rouge_scorer", "hypothesis", "rich.table", "rich.progress", "ftfy", "sentencepiece", "tokenizers",
    "jinja2", "matplotlib", "psutil", "gguf",
)  # fmt: skip
TOGETHER = 20  # mutants of one module that a worker takes at a time


def main() -> None:
    parser = argparse.ArgumentParser(description="Put small faults into the source and see which of them tests notice.")
    parser.add_argument("--modules", nargs="*", default=[], help="modules of modules.toml, or folders of them")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn evenly from these modules")
    parser.add_argument("--each", type=int, help="up to so many mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="look again at mutants that survived")
    arguments = parser.parse_args()
    tests_of = held.tests_of_modules()
    modules = [m for m in tests_of if not arguments.modules or any(_within(m, part) for part in arguments.modules)]
    if not modules:
        sys.exit(f"none of {', '.join(arguments.modules)} is in modules.toml, which has {', '.join(tests_of)}")
    every = {module: mutants_of(ROOT / module, held.HELD) for module in modules}
    chosen = _chosen(every, arguments)
    known = held.known(arguments.again)
    todo = [(module, mutant) for module, mutant in chosen if held.key_of(module, mutant) not in known]
    print(f"{len(chosen):,} mutants of {len(modules)} modules; {len(chosen) - len(todo):,} are known", flush=True)
    if todo:
        for name in HEAVY:
            importlib.import_module(name)
        # One thread: those of a process are missing in its forks.
        sys.modules["torch"].set_num_threads(1)
        gc.collect()
        gc.freeze()
        wanted = sorted({(file, module) for module, _ in todo for file in held.files_of(tests_of[module])})
        untraced = [file for file, module in wanted if held.trace_of(file, module) is None]
        in_parallel(list(dict.fromkeys(untraced)), arguments.workers, look_at_file)
        held.trace_of.cache_clear()
        in_parallel(_shares(todo), arguments.workers, look_at_mutants)
        known = held.known()
    _report(chosen, known)
    _estimate(every, known, arguments.workers)


def _within(module: str, part: str) -> bool:
    return module == part or module.startswith(part.rstrip("/") + "/")


def _chosen(every: dict[str, list[Mutant]], arguments: argparse.Namespace) -> list[tuple[str, Mutant]]:
    """The mutants to look at: all, or a sample that is spread over the modules by their number of mutants."""
    drawn: list[tuple[str, Mutant]] = []
    for module, found in every.items():
        shuffled = random.Random(f"{arguments.seed} {module}").sample(found, len(found))
        drawn += [(module, mutant) for mutant in shuffled[: arguments.each]]
    if arguments.sample is not None and arguments.sample < len(drawn):
        drawn = random.Random(arguments.seed).sample(drawn, arguments.sample)
    return drawn


def _shares(todo: list[tuple[str, Mutant]]) -> list[tuple[str, list[Mutant]]]:
    """What a worker takes at a time: mutants of one module, the slowest module first."""
    shares = []
    for module, pairs in itertools.groupby(sorted(todo, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        mutants = [mutant for _, mutant in pairs]
        shares += [(module, mutants[start : start + TOGETHER]) for start in range(0, len(mutants), TOGETHER)]
    return sorted(shares, key=lambda share: -len(share[1]) * _seconds_of_tests(share[0]))


def _seconds_of_tests(module: str) -> float:
    traces = (held.trace_of(file, module) for file in held.files_of(held.tests_of_modules()[module]))
    return sum(sum(trace.seconds.values()) for trace in traces)


def _report(chosen: list[tuple[str, Mutant]], known: dict[str, dict]) -> None:
    accepted = held.cannot_matter()
    rows: dict[str, list[int]] = {}
    survivors = []
    for module, mutant in sorted(chosen, key=lambda each: (each[0], each[1].begin)):
        counts, found = rows.setdefault(module, [0, 0, 0]), known.get(held.key_of(module, mutant))
        if found is None:
            continue
        counts[0] += 1
        if found["verdict"] == "killed":
            counts[1] += 1
            continue
        diff = mutant.diff((ROOT / module).read_text(encoding="utf-8"), module)
        if any(name == module and text in diff for name, text, _ in accepted):
            counts[2] += 1
        else:
            survivors.append(diff + "\n" + ("" if found["reached"] else "    no test reaches it\n"))
    print("\n" + "\n".join(survivors))
    print(f"{'module':40} mutants  killed  cannot matter  score")
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    for module, (seen, killed, same) in rows.items():
        score = f"{100 * killed / (seen - same):.0f} %" if seen > same else "–"
        print(f"{module:40} {seen:7} {killed:7} {same:14}  {score}")


def _estimate(every: dict[str, list[Mutant]], known: dict[str, dict], workers: int) -> None:
    """How long all mutants of these modules take, by what those that are known took; without tracing the tests."""
    taken: dict[str, list[float]] = {}
    for each in known.values():
        taken.setdefault(each["module"], []).append(each["seconds"])
    seconds = {module: sum(found) / len(found) for module, found in taken.items()}
    if seconds:
        middle = sum(seconds.values()) / len(seconds)
        total = sum(len(found) * seconds.get(module, middle) for module, found in every.items()) / workers
        number = sum(map(len, every.values()))
        print(f"all {number:,} mutants of these modules take some {total / 60:,.0f} minutes at this pace")


if __name__ == "__main__":
    main()

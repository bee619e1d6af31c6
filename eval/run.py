"""Evaluate run dirs, a base model or both: likelihood of the references, answers, and what both are worth.

    accelerate launch eval/run.py runs/NAME … [--split test]
    python eval/run.py --model_name_or_path gpt2 --output_dir runs/base --dataset_name DATASET_DIR
    python eval/run.py runs/NAME … --model_name_or_path gpt2 --output_dir runs/base

Writes eval/results.json and eval/predictions.jsonl into each run dir. A model is known by its four
methods alone (eval/models/language_model.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put eval/ on the path, where `statistics` would hide the standard library's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

from accelerate import PartialState
from accelerate.utils import gather_object
from rich.table import Table

from eval.audits.audit import audit
from eval.evaluated import predictions_of
from eval.metrics import bleu, rouge
from eval.metrics.figures import measure
from eval.models.language_model import Generation, LanguageModel, Score
from eval.models.loading import open_run
from eval.report.numbers import decimals
from eval.results import Results, SplitResults
from eval.statistics.uncertainty import LEVEL, METHOD, RESAMPLES, SEED
from finllm.cpu import machine
from finllm.data.dataset_dir import DatasetDir, is_dataset_dir
from finllm.data.prepare import resolve
from finllm.errors import UserError, raise_problems, run_command
from finllm.files import cache_dir, write_json, write_jsonl
from finllm.provenance import provenance
from finllm.run_dir import RunDir
from finllm.terminal import Parser, Terminal, progress, say
from finllm.text.prompts import TEMPLATE_HASH, TEMPLATE_ID, build_prompt


def main() -> None:
    parser = Parser(description="Evaluate run dirs, a base model or both.")
    parser.add_argument("runs", nargs="*", help="run dirs of recipes/sft.py or of a baseline")
    parser.add_argument("--model_name_or_path", help="a base model too: hub id, folder, .gguf file, built-in name")
    parser.add_argument("--dataset_name", help="dataset dir or source; a run dir brings its own")
    parser.add_argument("--output_dir", help="where a base model's results go")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--max_examples", type=int, help="score only N examples, a fixed random choice")
    parser.add_argument("--max_generated", type=int, help="answer only N of them, a fixed random choice")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--overwrite", action="store_true", help="replace results made with other settings")
    arguments = parser.parse_args()
    for name in ("max_examples", "max_new_tokens", "batch_size"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    base = (arguments.model_name_or_path, arguments.output_dir)
    if any(base) != all(base):
        raise UserError("a base model needs both --model_name_or_path and --output_dir")
    if not arguments.runs and not (all(base) and arguments.dataset_name):
        raise UserError("give run dirs, or --model_name_or_path with --dataset_name and --output_dir, or both")
    machine.keep_freed_memory()
    # Every run is checked before the first is evaluated: minutes later is too late to learn of a misspelt name.
    runs = [RunDir(path).require_complete() for path in arguments.runs]
    datasets = {run: _dataset(arguments.dataset_name or run.config()["dataset_name"]) for run in runs}
    if arguments.model_name_or_path:
        from eval.models.transformers_lm import load_base

        run = RunDir(arguments.output_dir)
        if (run.path / "config.yaml").exists():
            raise UserError(f"{run.path} holds a training run; take another --output_dir for the base model")
        dataset = _dataset(arguments.dataset_name) if arguments.dataset_name else datasets[runs[0]]
        _evaluate(run, dataset, arguments, lambda: load_base(arguments.model_name_or_path, arguments.batch_size))
        if PartialState().is_main_process and not (run.path / "provenance.json").exists():
            origin = provenance(dataset_hash=dataset.hash, base_model=arguments.model_name_or_path)
            write_json(run.path / "provenance.json", origin)
    for run in runs:
        _evaluate(run, datasets[run], arguments, lambda run=run: open_run(run, arguments.batch_size))


def _dataset(name: str) -> DatasetDir:
    with PartialState().main_process_first():
        return resolve(name, cache_dir() / "datasets")


def _evaluate(
    run: RunDir, dataset: DatasetDir, arguments: argparse.Namespace, load: Callable[[], LanguageModel]
) -> None:
    """Evaluate one model and write its two files; nothing is done where they already say the same."""
    # In the order of ids, which are hashes: the first N of them are a fixed random choice.
    examples = sorted(dataset.rows(arguments.split), key=lambda row: row["id"])[: arguments.max_examples]
    if not examples:
        raise UserError(f"the {arguments.split} split of {dataset.path} is empty; prepare the dataset with more rows")
    empty = [f"example {example['id']}" for example in examples if not example["output"]]
    if empty:
        raise UserError(
            f"{dataset.path}: {', '.join(empty[:5])} of {arguments.split} has an answer of 0 bytes, which has no bits "
            "per byte; prepare the dataset anew"
        )
    generated = len(examples) if arguments.max_generated is None else min(arguments.max_generated, len(examples))
    decoding = {"do_sample": False, "max_new_tokens": arguments.max_new_tokens}
    wanted = {
        "dataset": dataset.hash, "split": [arguments.split], "examples": len(examples), "generated": generated,
        "decoding": decoding, "template": TEMPLATE_HASH,
    }  # fmt: skip
    for path in (run.eval, run.eval / "results.json", run.eval / "predictions.jsonl"):
        if path.exists() and path.is_dir() != (path == run.eval):
            raise UserError(f"{path} is in the way of what is to be written; move it away")
    if (run.eval / "results.json").exists() and not arguments.overwrite:
        _already_evaluated(run, wanted, arguments.split)
        return
    model = load()
    prompts = [build_prompt(example["instruction"], example["input"]) for example in examples]
    pairs = _encoded(model, examples, prompts)

    def in_batches(title: str, indices: list[int], length: Callable[[int], int], work: Callable) -> tuple[dict, float]:
        order = sorted(indices, key=lambda index: -length(index))  # like lengths together: a batch holds little padding
        start = time.perf_counter()
        done = work_shared(f"{run.path.name}: {title}", order, arguments.batch_size, work)
        return done, time.perf_counter() - start

    scores, score_seconds = in_batches(
        "scoring", list(range(len(examples))), lambda i: len(pairs[i][0]) + len(pairs[i][1]),
        lambda batch: model.score([prompts[i] for i in batch], [examples[i]["output"] for i in batch]),
    )  # fmt: skip
    unsound = [examples[i]["id"] for i in sorted(scores) if not math.isfinite(scores[i].nll)]
    if unsound:
        raise UserError(
            f"{run.path}: the likelihood of {len(unsound):,} of {len(examples):,} examples is not finite "
            f"({', '.join(unsound[:3])}{' …' if len(unsound) > 3 else ''}); the weights are broken or training diverged"
        )
    answers, generate_seconds = in_batches(
        "answering", list(range(generated)), lambda i: len(pairs[i][0]),
        lambda batch: model.generate([prompts[i] for i in batch], arguments.max_new_tokens),
    )  # fmt: skip
    if not PartialState().is_main_process:
        return
    rows = [
        _prediction(arguments.split, example, prompts[index], scores[index], answers.get(index))
        for index, example in enumerate(examples)
    ]
    start = time.perf_counter()
    tokenizer = bleu.tokenizer_for(row["reference"] for row in rows)  # BLEU's, of the clean part too
    split = measure(rows, tokenizer)
    training = _training(run, dataset)
    found = audit(model, run, training, examples, rows, pairs, scores, arguments.batch_size)
    copied = found["contamination"].get("contaminated")
    if copied is not None:
        kept = [row for row in rows if row["id"] not in set(copied)]
        split = dataclasses.replace(split, clean=(measure(kept, tokenizer) if copied else split) if kept else None)
    results = Results(
        name=run.path.name,
        model=model.description,
        dataset={"name": str(dataset.path), "hash": dataset.hash},
        template={"id": TEMPLATE_ID, "hash": TEMPLATE_HASH},
        splits={arguments.split: split},
        confidence={"level": LEVEL, "method": METHOD, "resamples": RESAMPLES, "seed": SEED},
        signatures={"rouge": rouge.SIGNATURE, "bleu": bleu.signature(tokenizer)},
        decoding=decoding,
        audits=found,
        seconds={"score": score_seconds, "generate": generate_seconds, "audit": time.perf_counter() - start},
    )
    results.check(run.path)  # before predictions.jsonl is replaced, so that the two files belong together
    write_jsonl(run.eval / "predictions.jsonl", rows)
    results.write(run.path)
    _print(results, split, run)


def _encoded(model: LanguageModel, examples: list[dict[str, str]], prompts: list[str]) -> list[tuple]:
    """Token ids of every example; all that the tokenizer cannot write are named at once."""
    pairs, problems = [], []
    for example, prompt in zip(examples, prompts, strict=True):
        try:
            pairs.append(model.encode(prompt, example["output"]))
        except UserError as error:
            problems.append(f"example {example['id']}: {error}")
    if len(problems) > 3:
        problems[3:] = [f"and {len(problems) - 3} more"]
    raise_problems(problems, "the references")
    return pairs


def work_shared(
    title: str, order: list[int], batch_size: int, work: Callable[[list[int]], list[Any]]
) -> dict[int, Any]:
    """What `work` makes of each index of `order`, a batch at a time, with a bar; every process gets all of it.

    Batches are cut before they are dealt out, so any number of processes computes the same ones.
    """
    process = PartialState()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine = batches[process.process_index :: process.num_processes]
    done = []
    with progress(disable=not process.is_main_process) as bar:
        for batch in bar.track(mine, description=title):
            found = work(batch)
            if len(found) != len(batch):
                raise UserError(f"{title}: the model gave {len(found)} results for {len(batch)} examples")
            done += zip(batch, found, strict=True)
    return dict(sorted(gather_object(done)))


def _prediction(
    split: str, example: dict[str, str], prompt: str, score: Score, answer: Generation | None
) -> dict[str, Any]:
    """A line of predictions.jsonl, still without its ROUGE and BLEU."""
    return {
        "id": example["id"],
        "split": split,
        "question_id": example["question_id"],
        "instruction": example["instruction"],
        "input": example["input"],
        "prompt": prompt,
        "reference": example["output"],
        "prediction": answer.text if answer else None,
        "nll": score.nll,
        "tokens": score.tokens,
        "correct_tokens": score.correct_tokens,
        "bytes": len(example["output"].encode()),
        "stopped": answer.stopped if answer else None,
        "prediction_tokens": answer.tokens if answer else None,
    }


def _training(run: RunDir, dataset: DatasetDir) -> list[dict[str, str]] | None:
    """The rows that a run was trained on; those of the evaluated dataset for a base model; None where they are gone."""
    if not run.complete:
        return dataset.rows("train")
    config, trained_on = run.config(), run.provenance()["dataset_hash"]
    split = config.get("dataset_train_split") or "train"
    if dataset.hash == trained_on:
        return dataset.rows(split)
    if not is_dataset_dir(config["dataset_name"]):
        return None
    own = DatasetDir(config["dataset_name"])
    return own.rows(split) if own.hash == trained_on else None


def _already_evaluated(run: RunDir, wanted: dict[str, Any], split: str) -> None:
    """Say that the run's results are what was asked for, or refuse to replace those of other settings."""
    held = Results.read(run.path)
    counts = held.splits.get(split)
    found = {
        "dataset": held.dataset["hash"],
        "split": list(held.splits),
        "examples": counts and counts.examples,
        "generated": counts and counts.generated,
        "decoding": held.decoding,
        "template": held.template["hash"],
    }
    other = [f"{key} {found[key]}, now {wanted[key]}" for key in wanted if found[key] != wanted[key]]
    if other:
        raise UserError(f"{run.eval}/results.json was made with {'; '.join(other)}; pass --overwrite to replace it")
    predictions_of(run.path, split, held.splits[split])  # damaged ones are no evaluation
    say(f"{run.path} is evaluated; nothing to do")


def _print(results: Results, split: SplitResults, run: RunDir) -> None:
    table = Table(
        title=f"{results.name}: {split.examples:,} examples, {split.generated:,} answers", title_justify="left"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column(f"{results.confidence['level']:.0%} interval", justify="right")
    for name, interval in split.metrics.items():
        figures = (interval.value, interval.low, interval.high) if interval else (None,) * 3
        value, low, high = (decimals(figure, 4) for figure in figures)
        table.add_row(name, value, f"{low} – {high}" if interval else "–")
    console = Terminal()
    console.print(table)
    for name, found in results.audits.items():
        mark = "passed" if found["passed"] else "FAILED"
        console.print(f"{name} {mark}: {found['summary']}", soft_wrap=True)
    console.print(
        f"Answers: {run.eval}/predictions.jsonl\nNext: python eval/leaderboard.py {run.path} … --output_dir DIR",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main)

"""Evaluate run dirs, a base model or both: likelihood of the references, answers, and what both are worth.

    accelerate launch eval/run.py runs/NAME … [--split test]
    python eval/run.py --model_name_or_path gpt2 --output_dir runs/base --dataset_name DATASET_DIR
    python eval/run.py runs/NAME … --model_name_or_path gpt2 --output_dir runs/base

Writes eval/results.json and eval/predictions.jsonl into each run dir. A model is known by its four
methods alone (eval/models/language_model.py). Several processes share the work, on GPUs or on a CPU
(`torchrun --nproc-per-node 2 eval/run.py …`); an evaluation that was killed goes on with the same command.
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

from rich.table import Table

from eval.audits.audit import audit
from eval.identity import already_evaluated, bleu_tokenizer, wanted_of
from eval.metrics import number
from eval.metrics.figures import measure
from eval.models.fitting import Subject, encoded, examples_of, left_out_of_all
from eval.models.language_model import Generation, Score
from eval.models.loading import open_reader, open_run
from eval.report.numbers import decimals
from eval.results import Results, SplitResults
from eval.sharing import Kept, processes, work_shared
from finllm.cpu import machine
from finllm.data.dataset_dir import DatasetDir
from finllm.data.prepare import resolve
from finllm.errors import UserError, run_command
from finllm.files import cache_dir, sweep, write_json, write_jsonl
from finllm.provenance import package_versions, provenance
from finllm.run_dir import RunDir
from finllm.terminal import Parser, Terminal
from finllm.text.conversations import without_marks
from finllm.text.prompts import TEMPLATE_ID


def main() -> None:
    parser = Parser(description="Evaluate run dirs, a base model or both.")
    parser.add_argument("runs", nargs="*", help="run dirs of recipes/sft.py or of a baseline")
    parser.add_argument("--model_name_or_path", help="a base model too: hub id, folder, .gguf file, built-in name")
    parser.add_argument("--template", help="for the base model: alpaca (the default), chat or a Jinja file")
    parser.add_argument("--dataset_name", help="dataset dir or source; a run dir brings its own")
    parser.add_argument("--output_dir", help="where a base model's results go")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--max_examples", type=int, help="score only N examples, a fixed random choice")
    parser.add_argument("--max_generated", type=int, help="answer only N of them, a fixed random choice")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument(
        "--skip_too_long", action="store_true",
        help="leave out the examples that one of these models cannot read or answer whole, of all of them alike",
    )  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="check all that, and that the examples fit, and no more")
    parser.add_argument("--overwrite", action="store_true", help="replace results made with other settings")
    arguments = parser.parse_args()
    for name in ("max_examples", "max_new_tokens", "batch_size"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    if arguments.max_generated is not None and arguments.max_generated < 0:
        raise UserError(f"--max_generated is {arguments.max_generated}; it must be at least 0, which answers none")
    base = (arguments.model_name_or_path, arguments.output_dir)
    if any(base) != all(base):
        raise UserError("a base model needs both --model_name_or_path and --output_dir")
    if not arguments.runs and not (arguments.model_name_or_path and arguments.dataset_name):
        raise UserError("give run dirs, or --model_name_or_path with --dataset_name and --output_dir, or both")
    machine.keep_freed_memory()
    # Every run is checked before the first is evaluated: minutes later is too late to learn of a misspelt name.
    runs = [RunDir(path).require_complete() for path in arguments.runs]
    subjects = [
        Subject(
            run,
            _dataset(arguments.dataset_name or run.config()["dataset_name"]),
            lambda run=run: open_reader(run, None if arguments.model_name_or_path else arguments.template),
            lambda run=run: open_run(run, arguments.batch_size),
        )
        for run in runs
    ]
    if arguments.model_name_or_path:
        from eval.models.transformers_lm import load_base
        from eval.models.transformers_reader import base_reader

        run, name = RunDir(arguments.output_dir), arguments.model_name_or_path
        run.refuse_links()
        if (run.path / "config.yaml").exists():
            raise UserError(f"{run.path} holds a training run; take another --output_dir for the base model")
        dataset = _dataset(arguments.dataset_name) if arguments.dataset_name else subjects[0].dataset
        load = lambda: load_base(name, arguments.batch_size, arguments.template)  # noqa: E731
        subjects.insert(0, Subject(run, dataset, lambda: base_reader(name, arguments.template), load))
    for path in (each.run.eval / name for each in subjects for name in ("", "results.json", "predictions.jsonl")):
        if path.exists() and path.is_dir() != (path.name == "eval"):
            raise UserError(f"{path} is in the way of what is to be written; move it away")
    done = [each for each in subjects if (each.run.eval / "results.json").exists() and not arguments.overwrite]
    looked_at = [each for each in subjects if arguments.skip_too_long or arguments.dry_run or each not in done]
    left_out = left_out_of_all(looked_at, arguments)
    if arguments.dry_run:
        return
    out_of = {each.dataset.hash: left_out.get(each.dataset.hash, set()) for each in subjects}
    for subject in done:  # results of another model or other settings are found out before any work is done
        already_evaluated(subject, wanted_of(subject, arguments, out_of[subject.dataset.hash]), arguments.split)
    for subject in subjects:
        if subject not in done:
            _evaluate(subject, arguments, out_of[subject.dataset.hash])


def _dataset(name: str) -> DatasetDir:
    with processes().local_main_process_first():
        return resolve(name, cache_dir() / "datasets")


def _evaluate(subject: Subject, arguments: argparse.Namespace, left_out: set[str]) -> None:
    """Evaluate one model and write its two files."""
    for name in ("results.json", "predictions.jsonl"):
        sweep(subject.run.eval / name)
    run, dataset = subject.run, subject.dataset
    examples = [example for example in examples_of(dataset, arguments) if example["id"] not in left_out]
    wanted = wanted_of(subject, arguments, left_out)
    generated = wanted["generated"]
    process = processes()
    with process.local_main_process_first():  # a .gguf file is converted once
        model = subject.load()
    prompts = model.template.prompts(examples)
    pairs = encoded(model, examples, prompts)
    so_far = Kept(
        run.eval,
        description=dataclasses.asdict(model.description),
        settings=wanted,
        texts=pairs,
        batch_size=arguments.batch_size,
        device=process.device.type,
        versions=package_versions(),
    )

    def in_batches(stage: str, title: str, indices: list[int], length: Callable[[int], int], work: Callable) -> tuple:
        order = sorted(indices, key=lambda index: -length(index))  # like lengths together: a batch holds little padding
        return work_shared(f"{run.path.name}: {title}", stage, order, arguments.batch_size, work, so_far)

    scores, score_seconds = in_batches(
        "score", "scoring", list(range(len(examples))), lambda i: len(pairs[i][0]) + len(pairs[i][1]),
        lambda batch: model.score([prompts[i] for i in batch], [examples[i]["output"] for i in batch]),
    )  # fmt: skip
    unsound = [examples[i]["id"] for i in scores if not math.isfinite(scores[i].nll)]
    if unsound:
        if process.is_main_process:
            so_far.remove()
        raise UserError(
            f"{run.path}: the likelihood of {len(unsound):,} of {len(examples):,} examples is not finite "
            f"({', '.join(unsound[:3])}{' …' if len(unsound) > 3 else ''}); the weights are broken or training diverged"
        )
    answers, generate_seconds = in_batches(
        "answer", "answering", list(range(generated)), lambda i: len(pairs[i][0]),
        lambda batch: model.generate([prompts[i] for i in batch], arguments.max_new_tokens),
    )  # fmt: skip
    if not process.is_main_process:
        return
    rows = [
        _prediction(arguments.split, example, prompts[index], scores[index], answers.get(index))
        for index, example in enumerate(examples)
    ]
    start = time.perf_counter()
    tokenizer = bleu_tokenizer(examples)
    training = _training(run, dataset)
    split = dataclasses.replace(
        measure(rows, tokenizer), left_out=sorted(left_out), number_floors=number.floors(rows, training)
    )
    found = audit(model, run, training, examples, rows, pairs, scores)
    copied = found["contamination"].get("contaminated")
    if copied is not None:
        kept = [row for row in rows if row["id"] not in copied]
        split = dataclasses.replace(split, clean=(measure(kept, tokenizer) if copied else split) if kept else None)
    results = Results(
        name=run.path.name,
        model=model.description,
        dataset={"name": str(dataset.path), "hash": dataset.hash},
        template={"id": model.template.id, "hash": model.template.hash},
        splits={arguments.split: split},
        confidence=wanted["confidence"],
        signatures=wanted["signatures"],
        decoding=wanted["decoding"],
        audits=found,
        seconds={"score": score_seconds, "generate": generate_seconds, "audit": time.perf_counter() - start},
        hashes=wanted["hashes"],
    )
    results.check(run.path)  # before predictions.jsonl is replaced, so that the two files belong together
    write_jsonl(run.eval / "predictions.jsonl", ({**row, "prompt": without_marks(row["prompt"])} for row in rows))
    if not run.complete:  # of a base model; a run has its own from training
        name, weights = arguments.model_name_or_path, wanted["hashes"]["weights"]
        asked = {"template": arguments.template or TEMPLATE_ID, "template_hash": model.template.hash}
        origin = provenance(dataset_hash=dataset.hash, base_model=name, base_model_hash=weights, **asked)
        write_json(run.path / "provenance.json", origin)
    results.write(run.path)
    so_far.remove()
    _print(results, split, run)


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
        **{key: example[key] for key in ("system", "history") if example.get(key)},
        "prompt": prompt,
        "reference": example["output"],
        "prediction": answer.text if answer else None,
        "nll": score.nll,
        "tokens": score.tokens,
        "correct_tokens": score.correct_tokens,
        "bytes": len(example["output"].encode()),
        **number.as_fields(example),
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
    try:
        own = DatasetDir(config["dataset_name"])
    except UserError:  # gone, or broken by now
        return None
    return own.rows(split) if own.hash == trained_on else None


def _print(results: Results, split: SplitResults, run: RunDir) -> None:
    title = f"{results.name}: {split.examples:,} examples, {split.generated:,} answers"
    title += f", {len(split.left_out):,} left out as too long" if split.left_out else ""
    table = Table(title=title, title_justify="left")
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

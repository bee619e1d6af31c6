"""Evaluate run dirs, a base model or both: likelihood of the references, answers, and what both are worth.

    accelerate launch eval/run.py runs/NAME … [--split test]
    python eval/run.py --model_name_or_path gpt2 --output_dir runs/base --dataset_name DATASET_DIR
    python eval/run.py runs/NAME … --model_name_or_path gpt2 --output_dir runs/base

Writes eval/results.json and eval/predictions.jsonl into each run dir. Any model goes through `eval.lm` alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eval.figures import measure
from eval.lm import LanguageModel, open_run
from eval.metrics import bleu, rouge
from eval.results import Results, SplitResults
from eval.uncertainty import LEVEL, RESAMPLES, SEED
from finllm import machine
from finllm.data.dataset_dir import DatasetDir
from finllm.data.prepare import resolve
from finllm.models import cache_dir
from finllm.prompts import TEMPLATE_HASH, TEMPLATE_ID, build_prompt
from finllm.run import RunDir, UserError, provenance, run_command, write_json, write_jsonl

CHUNK = 4  # batches between two moves of the progress bar


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate run dirs, a base model or both.")
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
        from eval.transformers_lm import load_base

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
    generated = len(examples) if arguments.max_generated is None else min(arguments.max_generated, len(examples))
    decoding = {"do_sample": False, "max_new_tokens": arguments.max_new_tokens}
    wanted = {
        "dataset": dataset.hash, "split": [arguments.split], "examples": len(examples), "generated": generated,
        "decoding": decoding, "template": TEMPLATE_HASH,
    }  # fmt: skip
    if (run.eval / "results.json").exists() and not arguments.overwrite:
        _already_evaluated(run, wanted, arguments.split)
        return
    model = load()
    process = PartialState()
    mine = list(range(len(examples)))[process.process_index :: process.num_processes]
    prompts = [build_prompt(example["instruction"], example["input"]) for example in examples]
    # Long and short examples in order of length, so that a batch holds little padding
    mine.sort(key=lambda index: -len(prompts[index] + examples[index]["output"]))
    with Progress(disable=not process.is_main_process) as progress:
        step = arguments.batch_size * CHUNK
        start = time.perf_counter()
        scores = _in_chunks(
            progress, f"{run.path.name}: scoring", mine, step,
            lambda chunk: model.score([prompts[i] for i in chunk], [examples[i]["output"] for i in chunk]),
        )  # fmt: skip
        scored = time.perf_counter()
        answers = _in_chunks(
            progress, f"{run.path.name}: answering", [i for i in mine if i < generated], step,
            lambda chunk: model.generate([prompts[i] for i in chunk], arguments.max_new_tokens),
        )  # fmt: skip
        seconds = {"score": scored - start, "generate": time.perf_counter() - scored}
    scores, answers = dict(gather_object(list(scores.items()))), dict(gather_object(list(answers.items())))
    if not process.is_main_process:
        return
    rows = [
        {
            "id": example["id"],
            "split": arguments.split,
            "question_id": example["question_id"],
            "instruction": example["instruction"],
            "input": example["input"],
            "prompt": prompts[index],
            "reference": example["output"],
            "prediction": answers[index].text if index in answers else None,
            "nll": scores[index].nll,
            "tokens": scores[index].tokens,
            "correct_tokens": scores[index].correct_tokens,
            "bytes": len(example["output"].encode()),
            "stopped": answers[index].stopped if index in answers else None,
            "prediction_tokens": answers[index].tokens if index in answers else None,
        }
        for index, example in enumerate(examples)
    ]
    split = measure(rows)
    results = Results(
        name=run.path.name,
        model=model.description,
        dataset={"name": str(dataset.path), "hash": dataset.hash},
        template={"id": TEMPLATE_ID, "hash": TEMPLATE_HASH},
        splits={arguments.split: split},
        confidence={
            "level": LEVEL,
            "method": "percentile bootstrap over questions",
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        signatures={"rouge": rouge.SIGNATURE, "bleu": bleu.signature()},
        decoding=decoding,
        audits={},
        seconds=seconds,
    )
    write_jsonl(run.eval / "predictions.jsonl", rows)
    results.write(run.path)
    _print(results, split, run)


def _in_chunks(
    progress: Progress, title: str, indices: list[int], step: int, work: Callable[[list[int]], list[Any]]
) -> dict[int, Any]:
    """What `work` makes of each index, with a bar."""
    task = progress.add_task(title, total=len(indices))
    done = {}
    for start in range(0, len(indices), step):
        chunk = indices[start : start + step]
        done.update(zip(chunk, work(chunk), strict=True))
        progress.advance(task, len(chunk))
    return done


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
    print(f"{run.path} is evaluated; nothing to do")


def _print(results: Results, split: SplitResults, run: RunDir) -> None:
    table = Table(
        title=f"{results.name}: {split.examples:,} examples, {split.generated:,} answers", title_justify="left"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column(f"{results.confidence['level']:.0%} interval", justify="right")
    for name, interval in split.metrics.items():
        table.add_row(name, f"{interval.value:.4f}", f"{interval.low:.4f} – {interval.high:.4f}")
    console = Console()
    console.print(table)
    console.print(
        f"Answers: {run.eval}/predictions.jsonl\nNext: python eval/leaderboard.py {run.path} … --output_dir DIR",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main)

"""Write a run's results in the format of EleutherAI's lm-evaluation-harness, for tools that read its results files.

    python eval/export.py runs/NAME --output results_NAME.json [--split test]

Metrics are named `metric,none` as there, each with the standard error that its confidence interval implies.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put eval/ on the path, where `statistics` would hide the standard library's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from statistics import NormalDist

from eval.results import Results
from finllm.errors import UserError, run_command
from finllm.files import write_text
from finllm.run_dir import RunDir
from finllm.terminal import Parser, say

LOWER_IS_BETTER = ("nll_per_token", "perplexity", "bits_per_byte", "repetition", "no_number", "text_after_number")


def export(results: Results, split: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """The content of a results file of lm-eval 0.4.x: `results`, `configs`, `versions`, `n-shot`, `config` and more.

    A standard error is half the interval's width over the normal quantile of its level: the interval itself, which is
    not symmetric, has no place in that format.
    """
    held = results.splits.get(split)
    if held is None:
        raise UserError(f"no results on split {split!r}; there are {', '.join(results.splits)}")
    task = f"{Path(results.dataset['name']).name}_{split}"
    quantile = NormalDist().inv_cdf((1 + results.confidence["level"]) / 2)
    figures: dict[str, Any] = {"alias": task}
    measured = {name: interval for name, interval in held.metrics.items() if interval}
    for name, interval in measured.items():
        figures[f"{name},none"] = interval.value
        figures[f"{name}_stderr,none"] = (interval.high - interval.low) / (2 * quantile)
    config = {
        "task": task,
        "dataset_path": results.dataset["name"],
        "test_split": split,
        "output_type": "loglikelihood",
        "num_fewshot": 0,
        "metric_list": [{"metric": name, "higher_is_better": name not in LOWER_IS_BETTER} for name in measured],
        "generation_kwargs": results.decoding,
        "metadata": {"version": 1, "dataset_hash": results.dataset["hash"], "template": results.template},
    }
    return {
        "results": {task: figures},
        "group_subtasks": {task: []},
        "configs": {task: config},
        "versions": {task: 1},
        "n-shot": {task: 0},
        "higher_is_better": {task: {name: name not in LOWER_IS_BETTER for name in measured}},
        "n-samples": {task: {"original": held.examples + len(held.left_out), "effective": held.examples}},
        "config": {
            "model": "finllm",
            "model_args": f"name={results.name},method={results.model.method},base_model={results.model.base_model}",
            "model_num_parameters": results.model.total_parameters,
            "model_dtype": f"torch.{results.model.dtype}",
            "bootstrap_iters": results.confidence.get("resamples", 0),
        },
        "git_hash": provenance.get("git_commit"),
        "task_hashes": {task: results.dataset["hash"]},
        "model_source": "finllm",
        "model_name": results.name,
        "model_name_sanitized": results.name.replace("/", "__"),
        "total_evaluation_time_seconds": str(sum(results.seconds.values())),
    }


def main() -> None:
    parser = Parser(description="Write a run's results in lm-evaluation-harness's format.")
    parser.add_argument("run", type=Path, help="a run dir that eval/run.py has evaluated")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    results = Results.read(arguments.run)
    if arguments.output.exists():
        raise UserError(f"{arguments.output} exists; take another --output or remove it")
    folder = RunDir(arguments.run)
    origin = folder.provenance() if (folder.path / "provenance.json").exists() else {}
    content = export(results, arguments.split, origin)
    write_text(arguments.output, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    say(f"{arguments.output} holds the results of {results.name} in lm-eval's format")


if __name__ == "__main__":
    run_command(main)

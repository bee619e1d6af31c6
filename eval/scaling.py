"""What a trained model is worth with its change of the base model scaled: from 0, the base itself, over 1, to 1.2.

    python eval/scaling.py runs/A runs/B … [--split validation] [--max_examples 64] [--scales 0 0.5 1]

Every weight is W_base + s · (W_trained − W_base), an adapter merged into its base model (the interpolation of Wortsman
et al. 2022, "Robust fine-tuning of zero-shot models", eq. 1; of LoRA it is the same as scaling its product). Where the
least loss lies at s < 1, training went too far for these rows, above 1 not far enough, and the better model is free.
The figures lie in eval/scaling.json of the run dir.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put eval/ on the path, where `statistics` would hide the standard library's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import numpy as np
import torch
from peft import PeftModel
from rich.table import Table
from scipy.special import stdtrit

from eval.models.fitting import encoded, examples_of
from eval.models.loading import open_run
from eval.models.transformers_lm import TransformersLM, load_base
from eval.statistics.uncertainty import LEVEL, Spread, ratios
from finllm.cpu import machine
from finllm.data.prepare import resolve
from finllm.errors import UserError, run_command
from finllm.files import cache_dir, read_json, write_json
from finllm.models.find import weights_hash
from finllm.models.merge import CannotMerge, merged
from finllm.run_dir import RunDir
from finllm.terminal import Parser, Terminal, progress

SCALES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)


def main() -> None:
    parser = Parser(description="What trained models are worth with their change of the base model scaled.")
    parser.add_argument("runs", nargs="+", type=Path, help="run dirs of recipes/sft.py")
    parser.add_argument("--scales", nargs="+", type=float, default=SCALES, help="1 is always among them")
    parser.add_argument("--split", default="validation", choices=["train", "validation", "test"])
    parser.add_argument("--max_examples", type=int, default=64, help="score only N examples, a fixed random choice")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    for name in ("max_examples", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    if wrong := [scale for scale in arguments.scales if not 0 <= scale <= 4]:
        raise UserError(f"--scales has {', '.join(f'{scale:g}' for scale in wrong)}; a scale is 0 to 4")
    machine.keep_freed_memory()
    runs = [RunDir(path).require_complete() for path in arguments.runs]
    scales = sorted({*arguments.scales, 1.0})
    with progress() as bar:
        for run in bar.track(runs, description="scaling"):
            asked = {"split": arguments.split, "max_examples": arguments.max_examples, "scales": scales}
            if not _is_done(run, asked):
                write_json(run.eval / "scaling.json", {**asked, **_curve(run, arguments, scales)})
    _print(runs)


@torch.no_grad()
def _curve(run: RunDir, arguments: argparse.Namespace, scales: list[float]) -> dict[str, Any]:
    """Losses by scale, and how much better the best of them is than 1; or why there are none."""
    held: dict[str, Any] = {"weights": weights_hash(run.model), "reason": None}
    tuned = open_run(run, arguments.batch_size)
    if not isinstance(tuned, TransformersLM):
        return {**held, "reason": "it was not made from a base model"}
    if getattr(tuned.model, "quantization_method", None) or getattr(tuned.model, "is_quantized", False):
        return {**held, "reason": "its base model's weights are quantised, and nothing is merged into them"}
    try:
        model = (merged(tuned.model) if isinstance(tuned.model, PeftModel) else tuned.model).float()
    except CannotMerge as error:
        return {**held, "reason": f"it cannot be merged: {error}"}
    model.eval()
    base = dict(load_base(tuned.description.base_model, 1).model.float().named_parameters())
    own = dict(model.named_parameters())
    if {name: weight.shape for name, weight in own.items()} != {name: weight.shape for name, weight in base.items()}:
        return {**held, "reason": "it has other weights than its base model"}
    changed = {name: (base[name], weight - base[name]) for name, weight in own.items()
               if not torch.equal(weight, base[name])}  # fmt: skip
    language_model = TransformersLM(model, tuned.tokenizer, tuned.description, arguments.batch_size, tuned.template)
    examples = examples_of(resolve(run.config()["dataset_name"], cache_dir() / "datasets"), arguments)
    pairs = encoded(language_model, examples, language_model.template.prompts(examples))
    sizes = np.array([len(response) for _, response in pairs])
    nats = []
    for scale in scales:
        for name, (start, change) in changed.items():
            own[name].copy_(start + scale * change)
        nats.append([-found.sum() for found in language_model.log_probs(pairs)])
    return {**held, **best_of(scales, np.array(nats), sizes), "examples": len(examples)}


def best_of(scales: list[float], nats: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    """Of `nats` (scales, rows) and `sizes` (rows), tokens: the loss of every scale in nats a token, and by how much the
    best is better than 1, with its interval over rows. The best was chosen on these rows, so its gain is at most that.
    """
    losses = nats.sum(1) / sizes.sum()
    best = losses.argmin()
    gains = nats[scales.index(1.0)] - nats[best]
    (value,), deviations, shares = ratios(gains[:, None], sizes[:, None])
    spread = Spread.of(deviations, shares)
    (below,), (above,) = spread.reach(-stdtrit(spread.freedom, (1 - LEVEL) / 2))
    return {
        "nats_per_token": [float(loss) for loss in losses],
        "best": scales[best],
        "gain": {"nats_per_token": float(value), "low": float(value - below), "high": float(value + above)},
    }


def _is_done(run: RunDir, asked: dict[str, Any]) -> bool:
    """Whether a run has these very figures already, of the weights that it holds."""
    place = run.eval / "scaling.json"
    held = read_json(place) if place.exists() else {}
    return all(held.get(key) == value for key, value in {**asked, "weights": weights_hash(run.model)}.items())


def _print(runs: list[RunDir]) -> None:
    table = Table(title="The change of the base model, scaled: nats a token", title_justify="left")
    held = {run.path.name: read_json(run.eval / "scaling.json") for run in runs}
    scales = sorted({scale for each in held.values() for scale in each["scales"]})
    for head in ("run", *(f"{scale:g}" for scale in scales), f"gain of the best, {LEVEL:.0%} interval"):
        table.add_column(head, justify="left" if head == "run" else "right")
    scaled = {name: each for name, each in held.items() if not each["reason"]}
    for name, each in scaled.items():
        losses, gain = dict(zip(each["scales"], each["nats_per_token"], strict=True)), each["gain"]
        best = f"{each['best']:g}: {gain['nats_per_token']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})"
        table.add_row(name, *(f"{losses[scale]:.4f}" if scale in losses else "–" for scale in scales), best)
    console = Terminal()
    if scaled:
        console.print(table)
    for name in held.keys() - scaled.keys():
        console.print(f"{name} is not scaled: {held[name]['reason']}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)

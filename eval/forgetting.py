"""How far a trained model has moved from its base model where it was taught nothing: forgetting, without any data.

    python eval/forgetting.py runs/A runs/B … --base runs/base [--texts 200]

The base model writes texts, at temperature 1 with a fixed seed, half of them from nothing and half after a few general
words. The mean of log p_base − log p_tuned over their tokens is an estimate of the Kullback-Leibler divergence
KL(base ‖ tuned) in nats a token: 0 for the base model itself. The texts lie in the base model's dir, so that all models
are asked of the same ones; the figure of each lies in eval/forgetting.json of its run dir.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python put eval/ on the path, where `statistics` would hide the standard library's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import numpy as np
import torch
from rich.table import Table
from scipy.special import stdtrit
from transformers import GenerationConfig

from eval.models.language_model import Pair
from eval.models.loading import open_run
from eval.models.transformers_lm import TransformersLM, load_base
from eval.results import Results
from eval.statistics.uncertainty import LEVEL, Spread, ratios
from finllm.errors import UserError, run_command
from finllm.files import read_json, write_json
from finllm.models.find import weights_hash
from finllm.models.generate import nothing_of_its_own
from finllm.run_dir import RunDir
from finllm.terminal import Parser, Terminal, progress

TOKENS, SEED, BATCH = 48, 0, 16
OPENINGS = (
    "The", "In the morning", "Once upon a time", "The capital of", "She said that", "To make bread, you need",
    "The history of", "Dear Sir or Madam,", "A good friend is", "Scientists have found", "def main():", "Yesterday",
    "My favourite book", "The weather in", "Water is", "The first step is", "When he opened the door", "Music",
    "There are many reasons", "In 1969",
)  # fmt: skip


def main() -> None:
    parser = Parser(description="How far trained models have moved from their base model, on texts of its own.")
    parser.add_argument("runs", nargs="+", type=Path, help="run dirs of recipes/sft.py")
    parser.add_argument("--base", type=Path, required=True, help="the evaluated base model's dir (eval/run.py)")
    parser.add_argument("--texts", type=int, default=200, help="how many texts the base model writes")
    arguments = parser.parse_args()
    if arguments.texts < 2:
        raise UserError(f"--texts is {arguments.texts}; it must be at least 2")
    results = Results.read(arguments.base)
    if results.model.method != "base":
        raise UserError(f"{arguments.base} is a {results.model.method} run; --base names an evaluated base model's dir")
    name, weights = results.model.base_model, results.hashes.get("weights", "")
    wanted = {"base": weights, "texts": arguments.texts, "tokens": TOKENS, "seed": SEED}
    runs = [RunDir(path).require_complete() for path in arguments.runs]
    open_runs = [run for run in runs if not _is_done(run, wanted)]
    foreign = [run for run in open_runs if weights and run.provenance().get("base_model_hash") != weights]
    for run in foreign:
        Terminal().print(
            f"{run.path} was not made from {arguments.base}: its forgetting is not measured", soft_wrap=True
        )
    if todo := [run for run in open_runs if run not in foreign]:
        base = load_base(name, BATCH)
        pairs = _texts(base, arguments.base, wanted)
        own = base.log_probs(pairs)
        del base
        with progress() as bar:
            for run in bar.track(todo, description="forgetting"):
                model = open_run(run, BATCH)
                figure = divergence(own, model.log_probs(pairs))
                write_json(run.eval / "forgetting.json", {**wanted, "weights": weights_hash(run.model), **figure})
    _print([run for run in runs if run not in foreign])


def divergence(own: list[np.ndarray], tuned: list[np.ndarray]) -> dict[str, float]:
    """Of each text's log-probabilities a token, under the base and the tuned model: the mean of their differences in
    nats a token, with its interval over texts."""
    amounts = np.array([(a - b).sum() for a, b in zip(own, tuned, strict=True)])
    sizes = np.array([len(each) for each in own])
    (value,), deviations, shares = ratios(amounts[:, None], sizes[:, None])
    spread = Spread.of(deviations, shares)
    (below,), (above,) = spread.reach(-stdtrit(spread.freedom, (1 - LEVEL) / 2))
    return {
        "nats_per_token": float(value),
        "low": float(value - below),
        "high": float(value + above),
        "scored_tokens": int(sizes.sum()),
    }


@torch.inference_mode()
def _texts(base: TransformersLM, folder: Path, wanted: dict[str, Any]) -> list[Pair]:
    """The base model's own texts as (opening ids, ids that it wrote), written once and kept in its dir."""
    place = RunDir(folder).eval / "own_texts.json"
    if place.exists() and (held := read_json(place))["wanted"] == wanted:
        return [(pair[0], pair[1]) for pair in held["pairs"]]
    tokenizer, model = base.tokenizer, base.model
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    openings = [[start] if number % 2 else [start, *tokenizer(OPENINGS[number // 2 % len(OPENINGS)]).input_ids]
                for number in range(wanted["texts"])]  # fmt: skip
    sampled = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=TOKENS, min_new_tokens=1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    pairs: dict[int, Pair] = {}
    by_length = sorted(range(len(openings)), key=lambda number: len(openings[number]))
    torch.manual_seed(SEED)
    with progress() as bar:
        task = bar.add_task("the base model writes", total=len(openings))
        while by_length:
            length = len(openings[by_length[0]])  # of one length, so that nothing is padded
            batch = [number for number in by_length if len(openings[number]) == length][:BATCH]
            by_length = [number for number in by_length if number not in batch]
            ids = torch.tensor([openings[number] for number in batch], device=model.device)
            with nothing_of_its_own(model):
                written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=sampled)
            for number, row in zip(batch, written[:, length:].tolist(), strict=True):
                ends = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
                pairs[number] = (openings[number], row[:ends])
            bar.advance(task, len(batch))
    found = [pairs[number] for number in range(len(openings))]
    write_json(place, {"wanted": wanted, "pairs": found})
    return found


def _is_done(run: RunDir, wanted: dict[str, Any]) -> bool:
    """Whether a run has this very figure already, of the weights that it holds."""
    place = run.eval / "forgetting.json"
    if not place.exists():
        return False
    held = read_json(place)
    return all(held.get(key) == value for key, value in wanted.items()) and held.get("weights") == weights_hash(
        run.model
    )


def _print(runs: list[RunDir]) -> None:
    table = Table(title="Forgetting: KL(base ‖ tuned) on the base model's own texts", title_justify="left")
    for head in ("run", "nats a token", f"{LEVEL:.0%} interval"):
        table.add_column(head, justify="left" if head == "run" else "right")
    for run in runs:
        held = read_json(run.eval / "forgetting.json")
        table.add_row(run.path.name, f"{held['nats_per_token']:.4f}", f"{held['low']:.4f} – {held['high']:.4f}")
    Terminal().print(table)


if __name__ == "__main__":
    run_command(main)

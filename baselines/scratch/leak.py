"""See the leak: how well a model predicts an answer that lies before it, and one that it has yet to write.

python baselines/scratch/leak.py runs/NAME … [--questions 8] [--split test] [--dataset_name DATASET_DIR]

For each run, over the first 64 tokens of some reference answers:

    at once            the perplexity as a test loss gives it: one forward pass over prompt and answer
    token by token     the same tokens, each asked for before it is there to be seen, as in writing
    moved by           the largest change of a log-probability when only the tokens after it are replaced
"""

import math
import random
import sys
from pathlib import Path

if not __package__:  # run as a file: see train.py
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import numpy as np
import torch
from rich.progress import track
from rich.table import Table

from baselines.scratch.generation import Recomputed
from baselines.scratch.lm import Pair, ScratchLanguageModel, load
from finllm.data.dataset_dir import DatasetDir
from finllm.errors import UserError, run_command
from finllm.run_dir import RunDir
from finllm.terminal import Parser, Terminal
from finllm.text.prompts import build_prompt

ROWS = (
    "variant",
    "perplexity, at once",
    "perplexity, token by token",
    "tokens right, at once",
    "tokens right, token by token",
    "moved by (nats)",
    "sees the future",
)
LONGEST = 64  # tokens of an answer that are looked at
TOLERANCE = 1e-3  # nats that rounding alone may move a log-probability


def main() -> None:
    parser = Parser(description="Does a model see the token that it is to predict?")
    parser.add_argument("runs", nargs="+", help="run dirs of baselines/scratch/train.py")
    parser.add_argument("--questions", type=int, default=8, help="how many, the first by id; default 8")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--dataset_name", help="a dataset dir; a run dir brings its own")
    arguments = parser.parse_args()
    if arguments.questions < 1:
        raise UserError(f"--questions is {arguments.questions} and must be at least 1")
    title = f"{arguments.questions} answers of the {arguments.split} split"
    table = Table("", title=title, title_justify="left")
    columns = []
    for path in arguments.runs:
        run = RunDir(path).require_complete()
        model = load(run, batch_size=16)
        rows = DatasetDir(arguments.dataset_name or run.config()["dataset_name"]).rows(arguments.split)
        if not rows:
            raise UserError(f"the {arguments.split} split of {run.path} is empty; take another --split")
        rows = sorted(rows, key=lambda row: row["id"])[: arguments.questions]
        pairs = [model.encode(build_prompt(row["instruction"], row["input"]), row["output"]) for row in rows]
        pairs = [(prompt, response[:LONGEST]) for prompt, response in pairs]
        table.add_column(run.path.resolve().name, justify="right", overflow="fold")
        columns.append([model.model.config.variant, *figures(model, pairs)])
    for row in zip(ROWS, *columns, strict=True):
        table.add_row(*row)
    Terminal().print(table)


def figures(model: ScratchLanguageModel, pairs: list[Pair]) -> list[str]:
    """What stands below the variant in a model's column."""
    tokens = sum(len(response) for _, response in pairs)
    predicted = model.predict(pairs)
    at_once = -np.concatenate([nll for nll, _ in predicted])
    right_at_once = sum(correct for _, correct in predicted)
    one_by_one = [token_by_token(model, pair) for pair in track(pairs, "token by token", transient=True)]
    log_p = np.concatenate([log_p for log_p, _ in one_by_one])
    right = sum(correct for _, correct in one_by_one)
    moved = largest_move(model, pairs)
    return [
        f"{math.exp(-at_once.mean()):,.2f}", f"{math.exp(-log_p.mean()):,.2f}",
        f"{right_at_once / tokens:.1%}", f"{right / tokens:.1%}", f"{moved:.2g}", "yes" if moved > TOLERANCE else "no",
    ]  # fmt: skip


@torch.inference_mode()
def token_by_token(model: ScratchLanguageModel, pair: Pair) -> tuple[np.ndarray, int]:
    """The log-probability of each response token when only what stands before it is read, and how many are right."""
    prompt, response = pair
    log_p, correct = [], 0
    for start in range(0, len(response), model.batch_size):
        ends = range(start, min(start + model.batch_size, len(response)))
        texts = Recomputed(model.model, [prompt] * len(ends), [response[:end] for end in ends])
        log_p_BV = texts.next_logits().cpu().double().log_softmax(dim=-1)
        wanted_B = torch.tensor([response[end] for end in ends])
        log_p.append(log_p_BV.gather(-1, wanted_B[:, None])[:, 0].numpy())
        correct += int((log_p_BV.argmax(dim=-1) == wanted_B).sum())
    return np.concatenate(log_p), correct


def largest_move(model: ScratchLanguageModel, pairs: list[Pair]) -> float:
    """Replace the second half of each response by tokens of the others: by how much does the first half move?"""
    draw = random.Random(0)
    pool = sorted({id for _, response in pairs for id in response})
    halves = [len(response) // 2 for _, response in pairs]
    changed = [
        (prompt, response[:half] + [draw.choice([other for other in pool if other != id]) for id in response[half:]])
        for (prompt, response), half in zip(pairs, halves, strict=True)
    ]
    before, after = model.log_probs(pairs), model.log_probs(changed)
    return max(float(np.abs(a[:h] - b[:h]).max(initial=0)) for a, b, h in zip(before, after, halves, strict=True))


if __name__ == "__main__":
    run_command(main)

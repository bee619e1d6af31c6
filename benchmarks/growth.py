"""How cost grows with sequence length, batch size and model size: this suite's step against TRL's with its best flags.

    python benchmarks/growth.py [--rounds 3] [--steps 2] [--output FOLDER]

Rows are random tokens of one exact length, the second half supervised, and models have random weights in GPT-2's form,
so that one thing varies at a time. Every point is a process of its own, the ways go by turns, and all points come once
before any comes again. Written: growth.json, with every measurement, and growth.png, with medians.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from engine import VARIANTS, timed, trainer_for
from records import keep
from rich.console import Console
from rich.progress import track
from rich.table import Table
from turns import measured_in_child, set_up

from finllm.errors import run_command

PAIR = ("trl_best", "ours")
COLORS = {"trl_best": "#d97706", "ours": "#1d4ed8"}
MIDDLE = {"length": 128, "batch": 4, "width": 512}
VARIED = {"length": (32, 64, 128, 256, 512), "batch": (1, 2, 4, 8, 16), "width": (128, 256, 512, 768)}
LABELS = {"length": "tokens a row", "batch": "rows a step", "width": "million weights"}
LAYERS = {128: 2, 256: 4, 512: 8, 768: 12}  # the last is GPT-2's own shape
VOCABULARY = 50_257


def main() -> None:
    parser = argparse.ArgumentParser(description="Time steps over sequence length, batch size and model size.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="measured steps; one more before them is warm-up")
    parser.add_argument("--output", default="growth", help="folder for growth.json and growth.png")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(json.loads(arguments.child), arguments.steps)))
        return
    points = {
        tuple(sorted({**MIDDLE, name: value}.items())): None for name, values in VARIED.items() for value in values
    }
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    measured = []
    for point in track([*points] * arguments.rounds, "measuring"):
        for variant in PAIR:
            child = json.dumps({**dict(point), "variant": variant})
            measured.append(measured_in_child(child, str(dict(point))))
            path = keep("growth", measured, str(output / "growth.json"), rounds=arguments.rounds)
    medians = medians_of(measured)
    show(medians, console := Console())
    draw(medians, output / "growth.png")
    console.print(f"wrote {path} and {output / 'growth.png'}", soft_wrap=True)


def medians_of(measured: list[dict]) -> list[dict]:
    """One measurement for each point and way, every figure the median of its rounds."""
    rounds: dict[tuple, list[dict]] = {}
    for found in measured:
        rounds.setdefault(tuple(found[name] for name in (*MIDDLE, "variant")), []).append(found)
    figures = ("seconds", "supervised_per_second", "peak_memory_bytes")
    return [
        {**found[0], **{name: statistics.median(one[name] for one in found) for name in figures}}
        for found in rounds.values()
    ]


def line_of(measured: list[dict], name: str, variant: str) -> list[dict]:
    """The points of one way where only `name` varies, in its order."""
    others = {other: value for other, value in MIDDLE.items() if other != name}
    line = [point for point in measured if point["variant"] == variant and point.items() >= others.items()]
    return sorted(line, key=lambda point: point[name])


def show(measured: list[dict], console: Console) -> None:
    """A table for each thing that varies: seconds a step and GiB of both ways."""
    for name, values in VARIED.items():
        table = Table(title=f"Seconds a step and memory by {LABELS[name]}", title_justify="left")
        table.add_column("")
        for value in values:
            table.add_column(f"{name} {value}", justify="right")
        for variant in PAIR:
            line = line_of(measured, name, variant)
            table.add_row(VARIANTS[variant], *(f"{point['seconds']:.2f} s" for point in line))
            table.add_row("", *(f"{point['peak_memory_bytes'] / 2**30:.1f} GiB" for point in line))
        console.print(table)


def measure(point: dict, steps: int) -> dict:
    """`point` with its model's weights, seconds a step, supervised tokens a second and peak memory of the process."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

    variant, length, batch, width = (point[name] for name in ("variant", "length", "batch", "width"))
    set_up(ours=variant == "ours")
    set_seed(0)
    shape = GPT2Config(n_embd=width, n_layer=LAYERS[width], n_head=width // 64, n_positions=512, vocab_size=VOCABULARY)
    model = GPT2LMHeadModel(shape)
    model.set_attn_implementation("sdpa")
    ids = torch.randint(10, VOCABULARY, (batch * (steps + 1), length)).tolist()
    half = length // 2
    if variant == "ours":
        labels = [[-100] * half + row[half:] for row in ids]
        dataset = Dataset.from_dict({"input_ids": ids, "labels": labels})
    else:
        dataset = Dataset.from_dict(
            {"input_ids": ids, "completion_mask": [[0] * half + [1] * (length - half)] * len(ids)}
        )
    words = Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
    with tempfile.TemporaryDirectory() as folder:
        result = timed(trainer_for(variant, model, tokenizer, dataset, folder, batch=batch))
    seconds = result["seconds"] / steps
    return {
        **point,
        "parameters": model.num_parameters(),
        "seconds": seconds,
        "supervised_per_second": batch * (length - half) / seconds,
        "peak_memory_bytes": result["peak_memory_bytes"],
    }


def draw(measured: list[dict], path: Path) -> None:
    """A column for each thing that varies; rows: seconds a step, supervised tokens a second, peak memory."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = (
        ("seconds", "seconds a step", 1),
        ("supervised_per_second", "supervised tokens a second", 1),
        ("peak_memory_bytes", "peak memory, GiB", 2**30),
    )
    figure, grid = plt.subplots(3, 3, figsize=(10, 8), layout="constrained", sharex="col")
    for column, (name, values) in enumerate(VARIED.items()):
        for variant in PAIR:
            line = line_of(measured, name, variant)
            x = [point["parameters"] / 1e6 if name == "width" else point[name] for point in line]
            for row, (field, label, unit) in enumerate(shown):
                axes = grid[row][column]
                y = [point[field] / unit for point in line]
                axes.plot(x, y, marker="o", markersize=4, color=COLORS[variant], label=VARIANTS[variant])
                axes.set_xscale("log")
                axes.set_xticks(x, [f"{value:.0f}" for value in x], minor=False)
                axes.minorticks_off()
                axes.spines[["top", "right"]].set_visible(False)
                if column == 0:
                    axes.set_ylabel(label)
                if row == len(shown) - 1:
                    axes.set_xlabel(LABELS[name])
        assert len(line) == len(values)
    for axes in grid.flat:
        axes.set_ylim(bottom=0)  # after all lines: it fixes the top too
    grid[0][0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)

"""What a comparison at one learning rate would have said, beside what it says with each method at its own.

    python benchmarks/places.py runs/study --rate 1e-4 [--picture places.png] [--against lora_r16]

Both are read off the search of a study of recipes/compare.py: losses on the validation rows with the search's seed, of
the whole budget. A change of places is counted for each pair of methods whose order turns round, and for sure where the
difference is more than two standard errors on both sides (of the differences row by row). `--against` holds the final
runs of all methods against those of one, seed by seed on the same validation rows.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rich.table import Table
from scipy.stats import kendalltau

from finllm.errors import UserError, did_you_mean, run_command
from finllm.files import read_json
from finllm.study.results import difference_error
from finllm.terminal import Parser, Terminal

SURE = 2.0  # standard errors


def main() -> None:
    parser = Parser(description="Places of methods at one learning rate for all, and at each one's own.")
    parser.add_argument("study", type=Path, help="the study dir of recipes/compare.py")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--picture", type=Path, help="where to draw it")
    parser.add_argument("--against", help="a method that all others are held against")
    arguments = parser.parse_args()
    content = read_json(arguments.study / "study.json")
    own, one = losses_of(content, arguments.rate)
    if arguments.against is not None and arguments.against not in content["methods"]:
        raise UserError(f"--against is {arguments.against!r}{did_you_mean(arguments.against, content['methods'])}")
    if len(own) < 2:
        raise UserError(f"{arguments.study}: fewer than two methods were trained at {arguments.rate:g} to the end")
    console, places = Terminal(), {"own": places_of(own), "one": places_of(one)}
    table = Table(title=f"Validation loss at each one's own rate and at {arguments.rate:g}", title_justify="left")
    for head in ("method", "rate", "loss", "place", f"loss at {arguments.rate:g}", "place"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for name in sorted(own, key=places["own"].__getitem__):
        table.add_row(name, f"{own[name]['rate']:g}", f"{own[name]['loss']:.3f}", str(places["own"][name]),
                      f"{one[name]['loss']:.3f}", str(places["one"][name]))  # fmt: skip
    console.print(table)
    turned, surely, pairs = turned_round(arguments.study / "trials", own, one)
    moved = sum(places["own"][name] != places["one"][name] for name in own)
    names = [*own]
    agreement = kendalltau([places["own"][name] for name in names], [places["one"][name] for name in names]).statistic
    console.print(
        f"{moved} of {len(own)} methods change their place. Of {pairs} pairs {turned} turn round, {surely} of them for "
        f"sure on both sides. Kendall's tau of the two orders is {agreement:.2f}.",
        soft_wrap=True,
    )
    if arguments.against:
        console.print(held_against(arguments.against, content, arguments.study / "trials"))
    if arguments.picture:
        draw(own, one, places, arguments.rate, arguments.picture)


def losses_of(content: dict[str, Any], rate: float) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """By method its loss, rate and run at its own rate, and at `rate`; of the methods that have both."""
    own, one, whole = {}, {}, str(content["budget"]["steps"])
    for name, method in content["methods"].items():
        tried = {
            each["rate"]: {"rate": each["rate"], "loss": each["losses"][whole], "run": each["run"]}
            for held in method["tried"].values()
            for each in held
            if whole in each["losses"]
        }
        if method["chosen"] and rate in tried:
            own[name], one[name] = tried[method["chosen"]["rate"]], tried[rate]
    return own, one


def places_of(losses: dict[str, dict[str, Any]]) -> dict[str, int]:
    order = sorted(losses, key=lambda name: losses[name]["loss"])
    return {name: place for place, name in enumerate(order, 1)}


def turned_round(trials: Path, own: dict[str, dict], one: dict[str, dict]) -> tuple[int, int, int]:
    """Pairs of methods whose order turns round, those of them that do for sure, and all pairs."""
    turned = surely = pairs = 0
    for a, b in itertools.combinations(own, 2):
        pairs += 1
        differences = [side[a]["loss"] - side[b]["loss"] for side in (own, one)]
        if differences[0] * differences[1] >= 0:
            continue
        turned += 1
        errors = [difference_error(trials / side[a]["run"], trials / side[b]["run"]) for side in (own, one)]
        surely += all(
            error is not None and abs(difference) > SURE * error
            for difference, error in zip(differences, errors, strict=True)
        )
    return turned, surely, pairs


def held_against(name: str, content: dict[str, Any], trials: Path) -> Table:
    """Of every method with a chosen rate the mean validation loss of its final runs less that of `name`, over the seeds
    that both have, with its standard error over rows."""
    finals = {
        method: {run["seed"]: run for run in held["finals"] if "validation_loss" in run}
        for method, held in content["methods"].items()
    }
    rows = []
    for method, runs in finals.items():
        pairs = [(run, finals[name][seed]) for seed, run in runs.items() if seed in finals[name] and method != name]
        errors = [difference_error(trials / a["run"], trials / b["run"]) for a, b in pairs]
        if pairs and None not in errors:
            mean = sum(a["validation_loss"] - b["validation_loss"] for a, b in pairs) / len(pairs)
            error = sum(each**2 for each in errors) ** 0.5 / len(pairs)
            rows.append((mean, error, method, len(pairs), pairs[0][0]["trainable_parameters"]))
    table = Table(title=f"Validation loss less that of {name}, nats a token", title_justify="left")
    for head in ("method", "trainable", "seeds", "difference", "standard error"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for mean, error, method, seeds, trainable in sorted(rows):
        table.add_row(method, f"{trainable:,}", str(seeds), f"{mean:+.3f}", f"{error:.3f}")
    return table


def draw(own: dict, one: dict, places: dict[str, dict[str, int]], rate: float, path: Path) -> None:
    """Two columns of places, a line a method; thick where it moves by two places and more."""
    figure, axes = plt.subplots(figsize=(7.2, 0.42 * len(own) + 1.2))
    for name in own:
        left, right = places["one"][name], places["own"][name]
        far = abs(left - right) > 1
        colour = "#1f5fa8" if right < left else "#b3541e" if right > left else "#777777"
        axes.plot(
            [0, 1], [left, right], color=colour, linewidth=2.4 if far else 1.2, alpha=1 if far else 0.6, marker="o"
        )
        axes.text(-0.03, left, f"{name}  {one[name]['loss']:.2f}", ha="right", va="center", fontsize=10)
        axes.text(
            1.03,
            right,
            f"{own[name]['loss']:.2f}  {name}  ({own[name]['rate']:g})",
            ha="left",
            va="center",
            fontsize=10,
        )
    axes.set_xlim(-0.75, 2.0)
    axes.set_ylim(len(own) + 0.6, -0.1)
    axes.text(0, 0.2, f"all at {rate:g}", ha="center", fontsize=11, fontweight="bold")
    axes.text(1, 0.2, "each at its own rate", ha="center", fontsize=11, fontweight="bold")
    axes.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)

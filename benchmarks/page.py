"""docs/performance.md and its picture, made of the records in benchmarks/results/: no figure on the page is typed.

    python benchmarks/page.py [--results benchmarks/results] [--output docs/performance.md]

The prose stands in benchmarks/performance.md.j2. Of each benchmark and kind of processor the newest record is taken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from records import RESULTS, read_all

from finllm.errors import UserError, run_command
from finllm.files import atomic_open, write_text

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
PICTURE = "performance.png"  # beside the page
GIB = 2**30
OURS = "this suite"
# Of engine.py's variants the program and the method; TRL with our allocator settings is no program of its own
VARIANTS = {
    "trl": ("TRL as it comes", "full"),
    "trl_best": ("TRL, best flags", "full"),
    "notebook": ("Trainer, padded to 350", "full"),
    "ours": (OURS, "full"),
    "trl_best_lora": ("TRL, best flags", "lora"),
    "ours_lora": (OURS, "lora"),
}
PROGRAMS = {"ours": OURS, "llama_factory": "LLaMA-Factory", "litgpt": "LitGPT", "trl": "TRL",
            "trainer": "transformers' Trainer"}  # fmt: skip
# What stands for each program in the picture: a mark, its colour, and its name there
MARKS = {
    OURS: ("s", "#1d4ed8", OURS), "transformers' Trainer": ("o", "#d97706", "transformers' Trainer"),
    "Trainer, padded to 350": ("o", "#d97706", "transformers' Trainer"), "LitGPT": ("v", "#7c3aed", "LitGPT"),
    "LLaMA-Factory": ("^", "#047857", "LLaMA-Factory"), "TRL": ("D", "#b91c1c", "TRL"),
    "TRL, best flags": ("D", "#b91c1c", "TRL"), "TRL as it comes": ("x", "#b91c1c", "TRL as it comes"),
}  # fmt: skip
METHODS = {"full": "full", "lora": "LoRA r=16"}
MODELS = {"smollm2-135m": "SmolLM2-135M", "gpt2": "GPT-2 124M"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make docs/performance.md of the benchmarks' records.")
    parser.add_argument("--results", default=str(RESULTS), help="the folder of records")
    parser.add_argument("--output", default=str(PAGE), help="the page; the picture goes beside it")
    arguments = parser.parse_args()
    records = read_all(Path(arguments.results))
    output = Path(arguments.output)
    write_text(output, text_of(records))
    draw(records, output.parent / PICTURE)


def kind_of(record: dict[str, Any]) -> str:
    """What a processor is called in a table: the instructions that decide, or its name but for its maker and memory."""
    name = record["processor"]
    return name.rpartition(", ")[2] if name.endswith(KINDS) else re.sub(r"^NVIDIA (\w+) \d+GB.*", r"\1", name)


KINDS = ("AMX", "AVX512-BF16", "AVX512", "AVX2")


def newest(records: Sequence[dict[str, Any]], benchmark: str) -> dict[str, dict[str, Any]]:
    """By kind of processor the newest record of a benchmark; CPUs first, the widest instructions first."""
    found = {kind_of(record): record for record in records if record["benchmark"] == benchmark}
    order = {kind: number for number, kind in enumerate(KINDS)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def machines(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Each kind of processor in words: cores and name, and the versions of torch, as the page's records have them."""
    words: dict[str, tuple[list[str], list[str]]] = {kind: ([], []) for kind in KINDS}
    for one in records:
        if one["benchmark"] != "method_speed":  # that is docs/methods.md's
            names, versions = words.setdefault(kind := kind_of(one), ([], []))
            cores = f"{one['cores']} cores of " if kind in KINDS else ""
            names.append(cores + one["processor"].removesuffix(f", {kind}"))
            versions += [f"torch {one['packages']['torch']}"] if "torch" in one.get("packages", {}) else []
    return {kind: ", ".join(" or ".join(_in_order(each)) for each in said if each)
            for kind, said in words.items() if said[0]}  # fmt: skip


def figures_of_engine(record: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Of each variant the rate (supervised tokens a second), memory in GiB, share of the product rate."""
    found = {}
    for variant, runs in record["measured"].items():
        if isinstance(runs, dict):  # of before there were records, as medians
            found[variant] = runs
            continue
        found[variant] = {
            "rate": statistics.median(run["supervised"] / run["seconds"] for run in runs),
            "memory_gib": statistics.median(run["peak_memory_bytes"] for run in runs) / GIB,
            "share": statistics.median(run["flops"] / run["seconds"] / run["matrix_product_flops"] for run in runs),
        }  # fmt: skip
    return found


def figures_of_evaluation(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each way its seconds, low, high, and memory in GiB."""
    found = {}
    for way, runs in record["measured"].items():
        if isinstance(runs, dict):
            found[way] = runs
            continue
        seconds = [run["seconds"] for run in runs]
        found[way] = {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds),
                      "memory_gib": statistics.median(run["peak_memory_bytes"] for run in runs) / GIB}  # fmt: skip
        if "floor_seconds" in runs[0]:
            floors = [name for name in runs[0] if name.endswith("floor_seconds")]
            found[way] |= {name: statistics.median(run[name] for run in runs) for name in floors}
    return found


def trainings(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every program's speed by processor, model and method: of peers.py, and of engine.py where that was not run."""
    found, peers = [], newest(records, "peers")
    of_record: dict[tuple, dict] = {}  # of each processor, model and method the newest record
    for record in records:
        if record["benchmark"] == "peers":
            of_record |= {(kind_of(record), one["model"], one["method"]): record for one in record["measured"]}
    for (kind, model, method), record in sorted(of_record.items(), key=lambda item: [*peers].index(item[0][0])):
        runs: dict[str, list[dict]] = {}
        for one in record["measured"]:
            if (one["model"], one["method"]) == (model, method):
                runs.setdefault(one["program"], []).append(one)
        for program, each in runs.items():
            about = {"kind": kind, "record": record, "model": MODELS.get(model, model), "method": METHODS[method],
                     "program": PROGRAMS[program]}  # fmt: skip
            fine = [one for one in each if "error" not in one]
            if not fine:
                found.append({**about, "error": each[-1]["error"]})
                continue
            seconds = statistics.median(one["seconds"] for one in fine)
            middle = {name: statistics.median(one[name] for one in fine) for name in (
                "supervised_per_second", "command_seconds", "peak_memory_bytes", "first_loss", "last_loss",
            ) if name in fine[0]}  # fmt: skip
            found.append({**about, **middle, "seconds": seconds, "speed": record["rows"] / seconds})
    for kind, record in newest(records, "engine").items():
        for variant, figures in figures_of_engine(record).items():
            if kind not in peers and variant in VARIANTS:
                program, method = VARIANTS[variant]
                found.append({
                    "kind": kind, "record": record, "model": "GPT-2 124M", "method": METHODS[method],
                    "program": program, "speed": figures["rate"], "supervised_per_second": figures["rate"],
                    "peak_memory_bytes": figures["memory_gib"] * GIB,
                })  # fmt: skip
    return found


def beside(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each processor, model and method ours, the fastest other program, and how many times it is as fast."""
    groups: dict[tuple, list[dict]] = {}
    for one in found:
        groups.setdefault((one["kind"], one["model"], one["method"]), []).append(one)
    rows = []
    for each in groups.values():
        ran = [one for one in each if "error" not in one]
        own = next((one for one in ran if one["program"] == OURS), None)
        others = [one for one in ran if one["program"] != OURS]
        if own and others:
            best = max(others, key=lambda one: one["speed"])
            rows.append({"ours": own, "best": best, "times": own["speed"] / best["speed"], "all": each})
    return rows


def number(value: Any, digits: int = 0, unit: str = "") -> str:
    """A figure of a table; a pair is from–to, and an en dash stands where nothing was measured."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return "–".join(f"{each:,.{digits}f}" for each in value) + unit
    return f"{value:,.{digits}f}{unit}"


def percent(value: float, digits: int = 0) -> str:
    return number(100 * value, digits, " %")


def signed(share: float, limit: float) -> str:
    """A deviation in per cent, with its sign; bold beyond the limit."""
    said = f"{100 * share:+.0f} %".replace("-", "−")
    return said if abs(share) <= limit else f"**{said}**"


def deviations(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each model of a record: its runs, how far from the plan they were at least and at most in seconds and GiB, in
    words, and which were further than the limits or could not be had, and why."""
    found = []
    for model in _in_order(one["run"].partition(", ")[0] for one in plan["measured"]):
        held = [one for one in plan["measured"] if one["run"].startswith(f"{model}, ")]
        row = {"model": model, "runs": len(held), "beyond": []}
        for key, limit, of in (("seconds", 0.25, "time"), ("gib", 0.15, "memory")):
            far = {one["run"].partition(", ")[2]: one[key] / one[f"planned_{key}"] - 1 for one in held if key in one}
            ends = sorted({min(far.values()), max(far.values())}) if far else []
            row[key] = " to ".join(signed(each, limit) for each in ends) or "–"
            row["beyond"] += [f"{of} of {name}" for name, each in far.items() if abs(each) > limit]
        cannot = {one["run"].partition(", ")[2]: one["cannot"].split(": ")[:2] for one in held if "cannot" in one}
        row["beyond"] += [": ".join([name, *why]) for name, why in cannot.items()]  # how far stands in the record
        found.append(row)
    return found


def gib(size: float | None) -> str:
    return number(None if size is None else size / GIB, 1)


def text_of(records: Sequence[dict[str, Any]]) -> str:
    """The page; a `UserError` where a record that it tells of is missing."""
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)  # fmt: skip
    environment.filters |= {"number": number, "percent": percent, "signed": signed, "gib": gib}
    environment.globals |= {
        "figures_of_engine": figures_of_engine, "figures_of_evaluation": figures_of_evaluation,
        "newest": lambda name: newest(records, name),
    }  # fmt: skip

    def only(benchmark: str) -> dict[str, Any]:
        found = [record for record in records if record["benchmark"] == benchmark]
        if not found:
            raise UserError(f"the page tells of {benchmark}, and no record is of it")
        return found[-1]

    found = trainings(records)
    environment.globals |= {
        "columns_of": lambda record: _in_order(_column(one) for one in found if one["record"] is record),
        "programs_of": lambda record: _in_order(one["program"] for one in found if one["record"] is record),
        "reasons_of": lambda record: _in_order(
            f"{one['program']} on {one['model']}: {one['error']}"
            for one in found
            if one["record"] is record and "error" in one
        ),
        "training_of": lambda record, program, column: next(
            (one for one in found if (one["program"], _column(one)) == (program, column) and one["record"] is record),
            None,
        ),
        "deviations": deviations,
    }
    return environment.get_template("performance.md.j2").render(
        METHODS=METHODS,
        only=only,
        beside=beside(found),
        picture=PICTURE,
        peers=list(
            {one["record"]["file"]: one["record"] for one in found if one["record"]["benchmark"] == "peers"}.values()
        ),
        engines=newest(records, "engine"),
        machines=machines(records),
        kind_of=kind_of,
    )


def _column(training: dict[str, Any]) -> str:
    return f"{training['model']}, {training['method']}"


def _in_order(names: Iterable[str]) -> list[str]:
    """Each once, as they came."""
    return list(dict.fromkeys(names))


def hash_of(records: Sequence[dict[str, Any]]) -> str:
    """What the picture shows, as a hash: it stands in the picture, so that an old one is known."""
    shown = [(one["kind"], one["model"], one["method"], one["program"], round(one.get("speed", 0), 6))
             for one in trainings(records)]  # fmt: skip
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """A line for each processor, model and method, and on it a mark for every program's speed, ours being 100 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = beside(trainings(records))
    kinds = _in_order(row["ours"]["kind"] for row in rows)
    figure = Figure(figsize=(8, 0.8 + 0.25 * (len(rows) + len(kinds))), layout="constrained")
    FigureCanvasAgg(figure)
    axes, place, ticks = figure.subplots(), 0, {}
    for kind in kinds:
        record = next(row["ours"]["record"] for row in rows if row["ours"]["kind"] == kind)
        axes.text(0, place, f"{record['processor']}, {record['cores']} cores", va="center", fontsize=8, weight="bold")
        place -= 1
        for row in (row for row in rows if row["ours"]["kind"] == kind):
            ticks[place] = _column(row["ours"])
            axes.hlines(place, 0, 100, color="#d4d4d8", linewidth=0.7, zorder=0)
            for one in row["all"]:
                if "error" not in one:
                    marker, color, label = MARKS[one["program"]]
                    style = {"color": color, "fillstyle": "none" if marker == "o" else "full", "label": label}
                    axes.plot(100 * one["speed"] / row["ours"]["speed"], place, marker, **style)
            axes.text(102, place, f"{row['times']:.1f} times the next", va="center", fontsize=8)
            place -= 1
    axes.set_yticks([*ticks], [*ticks.values()], fontsize=8)
    axes.set_ylim(place + 0.4, 0.6)
    axes.set_xlim(0, 122)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("training speed, this suite = 100 %", fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    shown = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one mark a label
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), fontsize=8, frameon=False)
    with atomic_open(path, "wb") as file:
        figure.savefig(file, dpi=110, metadata={"Description": hash_of(records)}, format="png")


if __name__ == "__main__":
    run_command(main)

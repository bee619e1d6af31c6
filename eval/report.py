"""How the leaderboard looks: its numbers in words, the table of a pull request, and the page, one self-contained file.

In the page, names, sentences and tables are rendered here, escaped by Jinja. Questions, answers and curves travel as
JSON in a data block and are put into the page by report_*.js as text, never as markup. The Content-Security-Policy
names the hashes of our own style and script: nothing else is loaded or run, from the file or from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from eval.leaderboard import Run

FOLDER = Path(__file__).parent
SCRIPTS = ("report_table.js", "report_charts.js", "report_questions.js")
CURVE_POINTS = 300  # a training curve with more logged steps is averaged down to about this many points
HUES = 8  # colours in report_page.css; beyond them they repeat with dashed lines
SECRET = re.compile(r"(_token|_key|password|secret)$")  # a config key whose value is never shown

# Numbers -------------------------------------------------------------------------------------------------------------


def decimals(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def count(value: float) -> str:
    """1234567 as 1.23M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(value: float | None) -> str:
    """Bytes as decimal gigabytes."""
    return "–" if value is None else f"{value / 1e9:.1f} GB" if value >= 1e8 else f"{value / 1e6:.0f} MB"


def half_width(interval: dict[str, float]) -> str:
    return f"{(interval['high'] - interval['low']) / 2:.3f}"


DIGITS = {"bits_per_byte": 3, "perplexity": 2, "rougeL": 3, "bleu": 1}


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row's numbers as the tables write them; – where there is none."""
    metrics = row["metrics"]
    stop_rate, to_base = metrics.get("stop_rate"), row["bits_per_byte_to_base"]
    return {
        **{name: decimals(metrics.get(name, {}).get("value"), digits) for name, digits in DIGITS.items()},
        "stop_rate": f"{100 * stop_rate['value']:.0f} %" if stop_rate else "–",
        "to_base": "–" if to_base is None else f"{to_base:+.3f}".replace("-", "−"),
        "trainable_parameters": count(row["trainable_parameters"]),
        "trainable_share": f"{100 * row['trainable_share']:.3g} %",
        "train_seconds": duration(row["train_seconds"]),
        "memory": memory(row["peak_memory_bytes"]),
    }


def interval_text(name: str, interval: dict[str, float]) -> str:
    """The interval's ends in the digits of its value."""
    if name == "stop_rate":
        return f"{100 * interval['low']:.0f}–{100 * interval['high']:.0f}"
    return f"{interval['low']:.{DIGITS[name]}f}–{interval['high']:.{DIGITS[name]}f}"


# The table of a pull request -----------------------------------------------------------------------------------------

HOW_TO_READ = (
    "Bits per byte of the reference answers, lower is better, ± half the width of the interval; models whose intervals "
    "overlap are not called different. Perplexity stands beside its tokenizer: do not compare it between tokenizers."
)


def markdown(rows: list[dict[str, Any]], sentences: list[str], notes: list[str]) -> str:
    """leaderboard.md: the table as a pull request shows it, the finding above it and how to read it below."""

    def cell(text: str) -> str:
        return re.sub(r"([\\`*_{}\[\]<>|~#$&!])", r"\\\1", " ".join(str(text).split()))

    heads = ["#", "model", "method", "bits per byte", "to base", "perplexity (tokenizer)", "ROUGE-L", "BLEU"]
    heads += ["stop rate", "trainable parameters", "train time", "peak memory"]
    lines = [" | ".join(heads), " | ".join(["--:", ":--", ":--"] + ["--:"] * (len(heads) - 3))]
    for row in rows:
        metrics, show = row["metrics"], shown(row)
        cells = [str(row["rank"] or "–"), cell(row["name"]), row["method"]]
        cells += [f"{show['bits_per_byte']} ± {half_width(metrics['bits_per_byte'])}", show["to_base"]]
        cells += [f"{show['perplexity']} ({cell(row['tokenizer'])})", show["rougeL"], show["bleu"], show["stop_rate"]]
        cells += [f"{show['trainable_parameters']} ({show['trainable_share']})", show["train_seconds"], show["memory"]]
        lines.append(" | ".join(cells))
    table = "\n".join(f"| {line} |" for line in lines)
    return "\n\n".join([cell(" ".join(sentences)), table, " ".join([HOW_TO_READ, *map(cell, notes)])]) + "\n"


# The page ------------------------------------------------------------------------------------------------------------


def page(runs: list[Run], rows: list[dict[str, Any]], sentences: list[str], notes: list[str], split: str) -> str:
    """index.html as text; `rows` are the runs' rows in the same order."""
    style = (FOLDER / "report_page.css").read_text(encoding="utf-8")
    parts = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n{{\n{parts}}}\n'  # in a block, so that no name of ours meets one of the window's
    allowed = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    colours = _colours(rows)
    bits = [row["metrics"]["bits_per_byte"] for row in rows]
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(shown=shown, interval_text=interval_text, duration=duration)
    return environment.get_template("report.html.j2").render(
        runs=list(zip(runs, rows, colours, strict=True)),
        sentences=sentences,
        notes=notes,
        split=split,
        dataset=Path(runs[0].results.dataset["name"]).name or "dataset",  # the name may be a path of another machine
        scale=(
            min(min(each["low"], each["value"]) for each in bits),
            max(max(each["high"], each["value"]) for each in bits),
        ),
        origins=[_origin(run) for run in runs],
        policy=f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(embed(_data(runs, rows, colours))),
    )


def embed(content: Any) -> str:
    """JSON that is safe inside <script>: no <, > or & and, being ASCII, no U+2028 or U+2029."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _colours(rows: list[dict[str, Any]]) -> list[str]:
    """CSS classes, one a row: grey for base models, a hue each for the others, dashed once the hues are used up."""
    taken = {"base": 0, "trained": 0}
    classes = []
    for row in rows:
        kind = "base" if row["method"] == "base" else "trained"
        number, taken[kind] = taken[kind], taken[kind] + 1
        hue, dashed = ("base", number > 0) if kind == "base" else (str(number % HUES), number >= HUES)
        classes.append(f"hue-{hue}" + (" dashed" if dashed else ""))
    return classes


def _data(runs: list[Run], rows: list[dict[str, Any]], colours: list[str]) -> dict[str, Any]:
    """What the scripts draw. An answer is [text, bits per byte of the reference, ROUGE-L, stopped, its tokens]."""
    answers = [{row["id"]: row for row in run.predictions} for run in runs]
    return {
        "models": [
            {
                **{key: row[key] for key in ("name", "method", "trainable_parameters", "train_seconds")},
                "peak_memory_bytes": row["peak_memory_bytes"],
                "bits_per_byte": row["metrics"]["bits_per_byte"],
                "limit": run.results.decoding["max_new_tokens"],
                "colour": colour,
                "training": _thinned(_curve(run.metrics, "loss")),
                "validation": _curve(run.metrics, "validation_loss"),
            }
            for run, row, colour in zip(runs, rows, colours, strict=True)
        ],
        "questions": [
            {
                **{key: row[key] for key in ("instruction", "input", "reference")},
                "answers": [_answer(answer[row["id"]]) for answer in answers],
            }
            for row in runs[0].predictions
        ],
    }


def _answer(row: dict[str, Any]) -> list[Any]:
    bits = row["nll"] / (math.log(2) * row["bytes"])
    rouge = row["rougeL"] if row["rougeL"] is None else round(row["rougeL"], 4)
    return [row["prediction"], round(bits, 4), rouge, row["stopped"], row["prediction_tokens"]]


def _curve(metrics: list[dict[str, Any]], key: str) -> list[list[float]]:
    """[step, value] in the order of steps; of a step that a resumed run logged twice the later line counts."""
    return [
        [step, value] for step, value in sorted({line["step"]: line[key] for line in metrics if key in line}.items())
    ]


def _thinned(curve: list[list[float]]) -> list[list[float]]:
    """Means of as many neighbours as it takes to come down to CURVE_POINTS points."""
    width = math.ceil(len(curve) / CURVE_POINTS) or 1
    groups = [curve[start : start + width] for start in range(0, len(curve), width)]
    return [[group[-1][0], sum(value for _, value in group) / len(group)] for group in groups]


def _origin(run: Run) -> dict[str, Any]:
    """What the page tells of where a run comes from; config.yaml without empty values and without secrets."""
    held, results = run.provenance, run.results
    decoding = "sampled" if results.decoding["do_sample"] else "greedy"
    score, generate = duration(results.seconds["score"]), duration(results.seconds["generate"])
    config = {key: value for key, value in run.config.items() if value is not None and not SECRET.search(key)}
    commit = held.get("git_commit")
    facts = {
        "Run dir": run.path,
        "Base model": results.model.base_model,
        "Base model hash": held.get("base_model_hash"),
        "Git commit": f"{commit or 'not recorded'}{', with uncommitted changes' if held.get('git_dirty') else ''}",
        "Python": held.get("python"),
        "Packages": ", ".join(f"{name} {version}" for name, version in held.get("packages", {}).items()),
        "Hardware": ", ".join(f"{name} {value}" for name, value in held.get("hardware", {}).items()),
        "Seed": held.get("seed"),
        "Evaluated on": f"{results.dataset['name']}, hash {results.dataset['hash']}",
        "Trained on dataset hash": held.get("dataset_hash") if run.summary else None,
        "Template": f"{results.template['id']}, hash {results.template['hash']}",
        "Answers": f"{decoding}, at most {results.decoding['max_new_tokens']} new tokens",
        "Signatures": "; ".join(f"{name}: {text}" for name, text in results.signatures.items()),
        "Audits": ", ".join(
            f"{name} {'passed' if audit['passed'] else 'failed'}" for name, audit in results.audits.items()
        ),
        "Evaluation took": f"{score} to score, {generate} to write the answers",
    }
    return {
        "facts": {name: str(value) for name, value in facts.items() if value not in (None, "")},
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
    }

"""The leaderboard as a page: one self-contained file.

Names, sentences and tables are rendered here, escaped by Jinja. Questions, answers and curves travel as
data (eval/report/data.py) and are put into the page by the scripts beside this file as text, never as markup. The
Content-Security-Policy names the hashes of our own style and script: nothing else is loaded or run.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.evaluated import Run
from eval.report import data, people_tables, right_numbers
from eval.report.numbers import count, decimals, difference_interval, duration, interval_text, memory, percentage, shown
from eval.report.tables import p_text
from eval.results import MOST_TEXT, UNRANKED
from eval.statistics.uncertainty import LEVEL
from finllm.text.credentials import without_credentials

FOLDER = Path(__file__).parent
SCRIPTS = ("table.js", "texts.js", "charts.js", "study.js", "compare.js", "questions.js")
HUES = 8  # colours in page.css; beyond them they repeat with dashed lines

AUDITS = {
    "causality": "A token is as likely within the whole text as after the text cut right before it: neither it nor "
    "anything later was seen. A model that fails is listed and not ranked.",
    "reproducibility": "The same text is as likely at a second call, and whatever stands beside it in the batch. A "
    "model that fails is listed and not ranked.",
    "likelihood": "The reported score is the sum of the log-probabilities that were audited, and the probabilities of "
    "all tokens sum to 1. A model that fails is listed and not ranked.",
    "padding": "Padding on the left and packing, where this model is run so, do not change a likelihood.",
    "question": "References are not less likely after their own question than after another's.",
    "contamination": "No test question or answer stands, word for word or nearly, in the training data.",
    "stopping": "Training taught the model where an answer ends, and at least half of its answers end by themselves.",
    "memorisation": "The answers are the model's own: hardly any holds a long passage of one training answer.",
    "template": "The model is asked in the very words, as a hash tells, in which it was trained.",
}


def page(
    runs: list[Run],
    rows: list[dict[str, Any]],
    sentences: list[str],
    notes: list[str],
    split: str,
    comparisons: Sequence[dict[str, Any]] = (),
    recipes: Sequence[dict[str, Any]] = (),
    recipe_comparisons: Sequence[dict[str, Any]] = (),
    contamination: dict[str, Any] | None = None,
    study: dict[str, Any] | None = None,
    numbers: dict[str, Any] | None = None,
    votes: dict[str, Any] | None = None,
) -> str:
    """index.html as text; `rows` are the runs' rows in the same order, the others those of leaderboard.json."""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    parts = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n{{\n{parts}}}\n'  # in a block, so that no name of ours meets one of the window's
    allowed = f"style-src '{csp_hash(style)}'; script-src '{csp_hash(script)}'"
    colours = _colours(rows)
    bits = [row["metrics"]["bits_per_byte"] for row in rows]
    entries = list(zip(runs, rows, colours, strict=True))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            runs=entries,
            rows=rows,
            ranked=[entry for entry in entries if entry[1]["position"]],
            unranked=[entry for entry in entries if not entry[1]["position"]],
            unranking=UNRANKED,
            level=LEVEL,
            seen=_seen(runs[0].split.questions),
            floors=_floors(runs),
            audits=[(name, said) for name, said in AUDITS.items() if any(name in run.results.audits for run in runs)],
            sentences=sentences,
            notes=notes,
            recipes=recipes,
            recipe_comparisons=recipe_comparisons,
            clean_part=any(run.split.clean and run.split.clean.examples < run.split.examples for run in runs),
            split=split,
            tested=bool(comparisons),
            study=study,
            numbers=numbers,
            votes=votes,
            dataset=Path(runs[0].results.dataset["name"]).name
            or "dataset",  # the name may be a path of another machine
            card=data.data_card(runs),
            contamination=contamination,
            scale=(
                min(min(each["low"], each["value"]) for each in bits),
                max(max(each["high"], each["value"]) for each in bits),
            ),
            origins=[_origin(run) for run in runs],
            policy=f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
            style=Markup(style),
            script=Markup(script),
            data=Markup(
                data.embed({**data.figures(runs, rows, colours, comparisons, contamination), "study": _charted(study)})
            ),
            packs=[Markup(pack) for pack in data.packs(runs)],
        )
    )


@cache
def _environment() -> Environment:
    """Jinja with our templates, which it compiles once a process."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(shown=shown, interval_text=interval_text, decimals=decimals, p_text=p_text)
    environment.globals.update(difference_interval=difference_interval, count=count, duration=duration, memory=memory)
    environment.globals.update(percentage=percentage, right_numbers=right_numbers, people=people_tables)
    return environment


def _charted(study: dict[str, Any] | None) -> dict[str, Any] | None:
    """What study.js draws, each method with a colour."""
    if study is None:
        return None
    trained = [row["name"] for row in study["rows"] if row["seeds"]]
    colours = dict(zip(trained, _colours([{"method": name} for name in trained]), strict=True))
    return {
        "groups": study["groups"],
        "apart": study["apart"],
        "curves": [{**curve, "colour": colours[curve["name"]]} for curve in study["curves"]],
        "scaled": [{**each, "colour": colours[each["name"]]} for each in study["scaled"]],
        "methods": [{**row, "colour": colours.get(row["name"], "hue-base")} for row in study["rows"]],
    }


def _seen(questions: int) -> int:
    """Of a kind of question that is 1 in this many, at least one is among so many questions, LEVEL sure."""
    return math.floor(1 / (1 - (1 - LEVEL) ** (1 / questions)))


def _floors(runs: list[Run]) -> dict[str, dict[str, float]]:
    """What copying scores on the examples that the models answered, from the memorisation audit with most answers."""
    most = max(
        runs, key=lambda run: (bool(run.results.audits.get("memorisation", {}).get("baselines")), run.split.generated)
    )
    return most.results.audits.get("memorisation", {}).get("baselines") or {}


def csp_hash(text: str) -> str:
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


def _origin(run: Run) -> dict[str, Any]:
    """What the page tells of where a run comes from; config.yaml without empty values and without secrets."""
    held, results = run.provenance, run.results
    decoding = "sampled" if results.decoding["do_sample"] else "greedy"
    score, generate = duration(results.seconds["score"]), duration(results.seconds["generate"])
    config = without_credentials({key: value for key, value in run.config.items() if value is not None})
    commit = held.get("git_commit")
    facts = {
        "Run dir": run.path,
        "Base model": results.model.base_model,
        "Base model hash": held.get("base_model_hash"),
        "Git commit": f"{commit or 'not recorded'}{', with uncommitted changes' if held.get('git_dirty') else ''}",
        "Python": held.get("python"),
        "Packages": ", ".join(f"{name} {version}" for name, version in (held.get("packages") or {}).items()),
        "Hardware": ", ".join(f"{name} {value}" for name, value in (held.get("hardware") or {}).items()),
        "Seed": held.get("seed"),
        "Evaluated on": f"{results.dataset['name']}, hash {results.dataset['hash']}",
        "Trained on dataset hash": held.get("dataset_hash") if run.summary else None,
        "Template": f"{results.template['id']}, hash {results.template['hash']}",
        "Answers": f"{decoding}, at most {results.decoding['max_new_tokens']} new tokens",
        "Signatures": "; ".join(f"{name}: {text}" for name, text in results.signatures.items()),
        "Evaluation took": f"{score} to score, {generate} to write the answers",
    }
    return {
        "facts": {
            name: _beginning(without_credentials(str(value)))
            for name, value in facts.items()
            if value not in (None, "")
        },
        "proofs": [{**proof, "said": _beginning(proof["said"])} for proof in run.proofs],
        "config": _beginning(yaml.safe_dump(config, sort_keys=False, allow_unicode=True)) if config else "",
    }


def _beginning(text: str) -> str:
    """What a browser can lay out of a text, and how much is left out."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} … {len(text) - MOST_TEXT:,} more characters"

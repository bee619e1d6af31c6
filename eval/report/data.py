"""What the report's page carries inside: figures as JSON that is read at once, texts in packs that wait.

A report of 20 models and 2,000 questions holds 40,000 answers. Their figures are one JSON block; questions, references
and answers lie beside it in packs of PACK questions, each JSON, deflated and in base64, which the page unpacks when one
of them comes into view or is searched. Nothing here is markup: the scripts put it into the page as text nodes.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval import shapes
from eval.evaluated import Run
from eval.statistics.uncertainty import LEVEL
from finllm.data.dataset_dir import DatasetDir, is_dataset_dir
from finllm.errors import UserError, raise_problems

CURVE_POINTS = 300  # a training curve with more logged steps is averaged down to about this many points
PACK = 50  # questions a pack: some 100 KB of text, unpacked in a few milliseconds


def embed(content: Any) -> str:
    """JSON that is safe inside <script>: no <, > or & and, being ASCII, no U+2028 or U+2029."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def contamination_apart(runs: list[Run]) -> tuple[dict[str, Any] | None, list[Run]]:
    """The contamination audit of the data, with `models`, whose it is; and the runs, these without it.

    What stands in the training data is no fault of a model: it is said once, of the data. A run that was trained on
    other data than most, or whose data are gone, has another audit and keeps it. Where there are as many of one as of
    another, those count that were trained on the dataset that all are evaluated on. None where no run has this audit.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        audit = run.results.audits.get("contamination", {})
        if audit.get("contaminated") is not None:
            groups.setdefault(json.dumps(audit, sort_keys=True), []).append(run)
    if not groups:
        return None, runs

    def weight(group: list[Run]) -> tuple[int, int]:
        return len(group), sum(run.provenance.get("dataset_hash") == run.results.dataset["hash"] for run in group)

    most = max(groups.values(), key=weight)
    models = [run.name for run in most]
    found = {**most[0].results.audits["contamination"], "models": models}
    return found, [_without_contamination(run) if run.name in models else run for run in runs]


def _without_contamination(run: Run) -> Run:
    audits = {name: audit for name, audit in run.results.audits.items() if name != "contamination"}
    return replace(run, results=replace(run.results, audits=audits))


def figures(
    runs: list[Run],
    rows: list[dict[str, Any]],
    colours: list[str],
    comparisons: list[dict[str, Any]],
    contamination: dict[str, Any] | None,
) -> dict[str, Any]:
    """What the scripts draw, sort and filter by; a model's `scores` are columns in the order of the questions."""
    order = [row["id"] for row in runs[0].predictions]
    audits = [contamination or {}, *(run.results.audits.get("contamination", {}) for run in runs)]
    duplicated = {id for audit in audits for id in audit.get("contaminated") or ()}
    return {
        "models": [
            {
                **{key: row[key] for key in ("name", "method", "position", "trainable_parameters", "train_seconds")},
                "peak_memory_bytes": row["peak_memory_bytes"],
                "bits_per_byte": row["metrics"]["bits_per_byte"],
                "limit": run.results.decoding["max_new_tokens"],
                "colour": colour,
                "training": thinned(curve(run.metrics, "loss")),
                "validation": curve(run.metrics, "validation_loss"),
                "scores": _scores(run, order),
            }
            for run, row, colour in zip(runs, rows, colours, strict=True)
        ],
        "comparisons": list(comparisons),
        "level": LEVEL,
        "questions": len(order),
        "duplicated": [number for number, id in enumerate(order) if id in duplicated],
        "pack": PACK,
    }


def _scores(run: Run, order: list[str]) -> dict[str, list[Any]]:
    """Bits per byte of each reference; ROUGE-L, whether it stopped and whether its number is right (1, 0) of each
    answer, null where there is none."""
    rows = {row["id"]: row for row in run.predictions}
    ours = [rows[id] for id in order]
    return {
        "bits": [round(row["nll"] / (math.log(2) * row["bytes"]), 4) for row in ours],
        "rougeL": [row["rougeL"] if row["rougeL"] is None else round(row["rougeL"], 3) for row in ours],
        **{
            name: [row.get(key) if row.get(key) is None else int(row[key]) for row in ours]
            for name, key in (("stopped", "stopped"), ("number", "number_right"))
        },
    }


def packs(runs: list[Run]) -> list[str]:
    """Questions as [instruction, input, reference, [each model's answer or null], earlier turns], PACK at a time.

    A turn is [role, text]; each pack is deflated and in base64.
    """
    answers = [{row["id"]: row["prediction"] for row in run.predictions} for run in runs]
    questions = [
        [
            row["instruction"],
            row["input"],
            row["reference"],
            [answer[row["id"]] for answer in answers],
            turns_before(row),
        ]
        for row in runs[0].predictions
    ]
    texts = (embed(questions[start : start + PACK]) for start in range(0, len(questions), PACK))
    return [base64.b64encode(zlib.compress(text.encode(), 9)).decode() for text in texts]


def turns_before(row: dict[str, Any]) -> list[list[str]]:
    """What stands before the last question: the system text and the turns of a conversation."""
    system = [["system", row["system"]]] if row.get("system") else []
    return [*system, *([turn["role"], turn["content"]] for turn in row.get("history") or [])]


def curve(metrics: list[dict[str, Any]], key: str) -> list[list[float]]:
    """[step, value] in the order of steps; of a step that a resumed run logged twice the later line counts."""
    return [
        [step, value] for step, value in sorted({line["step"]: line[key] for line in metrics if key in line}.items())
    ]


def thinned(points: list[list[float]]) -> list[list[float]]:
    """Means of as many neighbours as it takes to come down to CURVE_POINTS points."""
    width = math.ceil(len(points) / CURVE_POINTS) or 1
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [[group[-1][0], sum(value for _, value in group) / len(group)] for group in groups]


def data_card(runs: list[Run]) -> dict[str, Any]:
    """What is known of the dataset: `manifest` of the very data that the runs were evaluated on, or `missing`, why not.

    It is looked for where the runs say that the dataset is and, since a folder of runs may have been moved as a whole,
    under the same name beside the runs.
    """
    held = runs[0].results.dataset
    places = {Path(run.results.dataset["name"]) for run in runs}
    places |= {run.path.resolve().parent / place.name for run in runs for place in places if place.name}
    missing = f"no dataset dir with this hash is at {held['name']} or beside the runs"
    for place in sorted(places):
        if not is_dataset_dir(place):
            continue
        try:
            dataset = DatasetDir(place)
            raise_problems(shapes.problems(dataset.manifest, shapes.MANIFEST, ""), f"{place}/manifest.json")
        except UserError as error:
            missing = str(error)
            continue
        if dataset.hash == held["hash"]:
            return {"manifest": dataset.manifest, "missing": None}
        missing = f"{place} holds another dataset, hash {dataset.hash}"
    return {"manifest": None, "missing": missing}

"""Run dirs as training and evaluation leave them, made up; the command that compares them, and the page it writes."""

import base64
import contextlib
import io
import json
import math
import runpy
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import yaml

from eval.models.language_model import Description
from eval.results import GENERATION_METRICS, Interval, Results, SplitResults
from finllm.files import write_json, write_jsonl

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "eval" / "leaderboard.py"
BYTES, TOKENS = 20, 5  # of each reference


def make_run(
    path: Path,
    bits: float,
    method: str = "lora",
    *,
    name: str | None = None,
    base_model: str | None = "gpt2",
    dataset_hash: str = "d1",
    ids: str = "abcdefghijkl",
    instruction: str = "What is a bond?",
    answer: str | None = "A loan.",
    answered: str | None = None,
    audits: dict | None = None,
    margin: float = 0.05,
    noise: float = 0.0,
    config: dict | None = None,
) -> Path:
    """A run dir as the other stages leave it, whose numbers belong together: `bits` ± `margin` bits per byte.

    `noise` moves every second example's likelihood up by that share and the others down; their sum stays.
    """
    nll = bits * math.log(2) * BYTES
    answered = (ids if answered is None else answered) if answer is not None else ""
    rows = [
        {"id": id, "split": "test", "question_id": id, "instruction": instruction, "input": "", "prompt": "p"}
        | {
            "reference": "A loan to the state.",
            "prediction": answer if id in answered else None,
            "nll": nll * (1 + (noise if number % 2 else -noise)),
            "tokens": TOKENS,
            "correct_tokens": 2,
        }
        | {
            "bytes": BYTES,
            "stopped": id != "a" if id in answered else None,
            "prediction_tokens": 3 if id in answered else None,
        }
        | dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 0.25 if id in answered else None)
        | {"bleu": 2.5 if id in answered else None}
        for number, id in enumerate(ids)
    ]
    metrics = {
        "nll_per_token": Interval(nll / TOKENS, nll / TOKENS - 0.1, nll / TOKENS + 0.1),
        "perplexity": Interval(math.exp(nll / TOKENS), 1.0, 99.0),
        "bits_per_byte": Interval(bits, bits - margin, bits + margin),
        "token_accuracy": Interval(0.4, 0.3, 0.5),
    }
    if answered:
        metrics |= {metric: Interval(0.25, 0.125, 0.5) for metric in GENERATION_METRICS}
    Results(
        name=name or path.name,
        model=Description(method, base_model, "gpt2" if base_model else "own", 1000, 0 if method == "base" else 250),
        dataset={"name": "data/finance", "hash": dataset_hash},
        template={"id": "alpaca", "hash": "t1"},
        splits={"test": SplitResults(len(ids), len(ids), TOKENS * len(ids), BYTES * len(ids), len(answered), metrics)},
        confidence={"level": 0.95, "method": "jackknife over questions"},
        signatures={"rouge": "r", "bleu": "b"},
        decoding={"do_sample": False, "max_new_tokens": 64},
        audits=audits or {},
        seconds={"score": 1.0, "generate": 2.0},
    ).write(path)
    write_jsonl(path / "eval" / "predictions.jsonl", rows)
    write_json(path / "provenance.json", {"git_commit": "c0ffee", "packages": {"torch": "2.13"}, "seed": 42})
    if method != "base":
        lines = [{"step": 0, "epoch": 0, "validation_loss": 3.0}, {"step": 5, "epoch": 1, "loss": 2.0}]
        write_jsonl(path / "metrics.jsonl", [*lines, {"step": 5, "epoch": 1, "validation_loss": 2.5}])
        write_json(path / "summary.json", {"train_seconds": 754.0, "peak_memory_bytes": 2_500_000_000, "steps": 5})
        config = {"learning_rate": 0.0002, "hub_token": "hf_confidential"} | (config or {})
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def leaderboard(*arguments, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The command as python runs it: in a process of its own where a folder is given, else in this one, in no time."""
    command = [str(SCRIPT), *map(str, arguments)]
    if cwd is not None:
        return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)
    status, out, err = 0, io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as exit:
            status = exit.code or 0
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def report(*runs: Path, out: Path) -> dict:
    done = leaderboard(*runs, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "leaderboard.json").read_text())


class Page(HTMLParser):
    """The start tags of a page, the text of its <script> and <style> elements, and all other text."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.tags, self.raw, self.parts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.style, self.figures, *self.packs, self.script = self.raw
        self.data = json.loads(self.figures)
        self.questions = [each for pack in self.packs for each in json.loads(zlib.decompress(base64.b64decode(pack)))]
        self.text = "".join(self.parts)
        self.words = " ".join(" ".join(self.parts).split())  # cells of a table stand apart

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.raw.append("")

    def handle_data(self, data):
        if self.cdata_elem in ("script", "style"):  # newer Pythons read <title> so, too
            self.raw[-1] += data
        else:
            self.parts.append(data)

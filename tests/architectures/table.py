"""Makes docs/models.md anew: python tests/architectures/table.py

Every tiny model of tiny.py goes through recipes/sft.py, in full and with LoRA, and what its proofs say becomes a row.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path

import tiny
from tiny import TARGETS

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "docs" / "models.md"
HEAD = """# Architectures

What `recipes/sft.py` found out about a tiny random model of each architecture before its first step, on a CPU in
float32. Nothing here is a list that the code reads: the same is proved on every model that is brought, and written into
its `proofs.json`.

- **rows**: end to end where that gives the model's own loss and gradients; else padded.
- **loss by**: the head alone, of supervised positions only, where the logits are no more than the last hidden state
  times the head; else the model's own logits, which take more memory.
- A model that sees the future is refused before training, with the figure.

`tests/architectures/test_architectures.py` trains each of them for three steps, in full and with LoRA, saves, loads and
evaluates it, and compares losses, weights and likelihoods with a loop of transformers and peft alone. This page is made
by `python tests/architectures/table.py`.

| architecture | class | rows | loss by | full | LoRA |
|---|---|---|---|---|---|
"""


def row_of(name: str, folder: Path, runs: dict[str, Path]) -> str:
    """A line of the table, from the base model's folder and its runs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    taken = set()
    for run in runs.values():
        proofs = json.loads((run / "proofs.json").read_text(encoding="utf-8"))["proofs"]
        taken.add(next(p["name"] for p in proofs if p["name"].startswith("gradients, ") and p["passed"]))
    rows, loss = (sorted({name.removeprefix("gradients, ").split(" · ")[part] for name in taken}) for part in (0, 1))
    lora = "trains" if name not in TARGETS else f"trains on {TARGETS[name]}, not on `all-linear`"
    return f"| {name} | `{config['architectures'][0]}` | {', '.join(rows)} | {', '.join(loss)} | trains | {lora} |"


def refusal_of(name: str, folder: Path, said: str) -> str:
    """A line of the table for a model that is refused, from what the command said."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    reason = said.strip().splitlines()[-1].removeprefix("error: ")
    reason = reason.replace(f"base model {folder}", "it").replace(str(folder), "it")
    reason = re.sub(r"(, |; |: log-prob| \(limit).*", "", reason)
    return f"| {name} | `{config['architectures'][0]}` | – | – | refused: {reason} | refused |"


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "architectures")]
    os.environ["HF_HUB_OFFLINE"] = "1"
    from finllm.data.prepare import prepare
    from tests.conftest import make_tokenizer

    work = Path(tempfile.mkdtemp())
    tokenizer = make_tokenizer(work / "tokenizer")
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(ROOT / "finllm/data/sample/tax.jsonl", work / "data", test_fraction=0.2)
    lines = []
    for number, name in enumerate(tiny.ARCHITECTURES):
        folder, runs = tiny.save(name, work / f"{number}", tokenizer), {}
        for method in ("full", "lora"):
            runs[method] = work / f"{number}-{method}"
            targets = tiny.TARGETS.get(name, "all-linear")
            flags = (
                ["--use_peft", "true", "--lora_dropout", 0, "--lora_target_modules", targets]
                if method == "lora"
                else []
            )
            status, said = _recipe(
                "--model_name_or_path", folder, "--dataset_name", work / "data", "--output_dir", runs[method],
                "--max_steps", 1, "--max_train_samples", 8, "--max_eval_samples", 4, "--bf16", "false",
                "--dtype", "float32", "--max_length", 400, "--save_strategy", "no", "--disable_tqdm", "true", *flags,
            )  # fmt: skip
            if status:
                lines.append(refusal_of(name, folder, said))
                break
        else:
            lines.append(row_of(name, folder, runs))
        print(lines[-1], flush=True)
    ROWS.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def _recipe(*arguments: object) -> tuple[int, str]:
    """The recipe in this process: its exit status and what it wrote to stderr."""
    sys.argv, said = ["recipes/sft.py", *map(str, arguments)], io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            runpy.run_path(str(ROOT / "recipes/sft.py"), run_name="__main__")
    except SystemExit as exit:
        return exit.code or 0, said.getvalue()
    return 0, said.getvalue()


if __name__ == "__main__":
    main()

"""The arrows between the parts, held: recipes → finllm, baselines → eval → finllm."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("recipes", "baselines", "eval", "finllm")
ALLOWED = {
    "finllm": {"finllm"},
    "eval": {"eval", "finllm"},
    "baselines": {"baselines", "eval", "finllm"},
    "recipes": {"finllm"},
}
# Within finllm a module may import those of its own rank and below.
RANKS = [
    ("run", "machine", "checkpoints", "stopping", "kernels"),
    ("prompts",),
    ("data",),
    ("tokens",),
    ("models", "loss", "plots", "config", "joined", "batches", "callbacks"),
    ("resumable",),
    ("trainer", "generate"),
]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.split(".")[0] in PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_no_part_imports_what_stands_above_it(part):
    files = sorted((ROOT / part).rglob("*.py"))
    assert files
    wrong = [
        (str(f.relative_to(ROOT)), name)
        for f in files
        for name in imports(f)
        if name.split(".")[0] not in ALLOWED[part]
    ]
    assert wrong == []


def test_finllm_is_layered_and_run_imports_nothing_of_ours():
    rank_of = {module: rank for rank, modules in enumerate(RANKS) for module in modules}
    wrong = []
    for file in (ROOT / "finllm").rglob("*.py"):
        own = file.relative_to(ROOT / "finllm").with_suffix("").parts[0]
        if own not in rank_of:
            continue
        for name in imports(file):
            other = name.split(".")[1]
            if rank_of.get(other, 99) > rank_of[own]:
                wrong.append((str(file.relative_to(ROOT)), name))
    assert wrong == []
    assert imports(ROOT / "finllm" / "run.py") == set()


def test_no_file_is_named_like_a_library():
    taken = {"evaluate", "datasets", "peft", "accelerate", "tokenize", "trl", "torch", "transformers", "utils"}
    assert [str(f) for part in PARTS for f in (ROOT / part).rglob("*.py") if f.stem in taken] == []


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [("import eval.leaderboard", "torch"), ("import finllm.cli", "torch"), ("import finllm.data.prepare", "torch")],
)
def test_what_must_start_quickly_does_not_load_torch(statement, heavy):
    code = f"import sys; {statement}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

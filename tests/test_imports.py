"""The house, held: which part may import which, the floors of finllm, no circle, no corridor, no file of two things."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "finllm": {"finllm"},
    "eval": {"eval", "finllm"},
    "baselines": {"baselines", "eval", "finllm"},
    "recipes": {"finllm"},
    "benchmarks": {"benchmarks", "baselines", "eval", "finllm"},
}
# Within finllm a module imports those of its own room, and of the floors below its own; never from beside or above.
FLOORS = [
    {"deferred", "threads"},
    {"finllm", "errors", "provenance"},
    {"bounded", "terminal"},
    {"text", "files"},
    {"cpu", "data", "run_dir"},
    {"models", "study"},
    {"training"},
    {"show", "doctor"},
    {"cli"},
]
ROOMS = {
    "finllm": {"data", "text", "models", "study", "cpu", "training"},
    "eval": {"models", "metrics", "audits", "statistics", "report", "judge"},
}
# On top of finllm/ and eval/ stand the ground, what belongs to no room, and the commands.
ON_TOP = {
    "finllm": {
        *("__init__", "bounded", "cli", "deferred", "doctor", "errors", "files"),
        *("provenance", "run_dir", "show", "terminal", "threads"),
    },
    "eval": {
        "__init__",
        "run",
        "leaderboard",
        "export",
        "identity",
        "results",
        "shapes",
        "evaluated",
        "sharing",
        "forgetting",
        "scaling",
    },
}
MOST_LINES = 320


def sources(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def module_of(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, known: set[str]) -> set[str]:
    """The `known` modules that a source imports anywhere: at the top, in functions, under TYPE_CHECKING, relatively.

    Importing a module runs its packages first, but one's own packages run before oneself and count as no import.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level or None] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{name.name}" for name in node.names)}
    return {name for name in found & known if not f"{module}.".startswith(f"{name}.")}


def graph(root: Path, parts) -> dict[str, set[str]]:
    paths = {module_of(path, root): path for part in parts for path in sorted((root / part).rglob("*.py"))}
    return {module: imports(path.read_text("utf-8"), module, set(paths)) for module, path in paths.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, in the order of their imports; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module not in done:
            for other in sorted(arrows.get(module, ())):
                if found := walk(other, [*trail, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in sorted(arrows) if (found := walk(module, []))), [])


def beside_or_above(arrows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports within finllm that go to another room of the same floor, or up."""
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}

    def room(module: str) -> str:
        return module.split(".")[1] if "." in module else module

    return [
        (module, other)
        for module, others in arrows.items()
        for other in sorted(others)
        if room(module) != room(other) and floor_of[room(other)] >= floor_of[room(module)]
    ]


@pytest.mark.parametrize("part", ALLOWED)
def test_no_part_imports_what_stands_above_it(part):
    assert sources(part)
    arrows = graph(ROOT, ALLOWED)
    wrong = [(m, other) for m in arrows for other in arrows[m] if m.split(".")[0] == part
             and other.split(".")[0] not in ALLOWED[part]]  # fmt: skip
    assert wrong == []


def test_within_finllm_imports_go_down_the_floors():
    arrows = graph(ROOT, ["finllm"])
    assert beside_or_above(arrows) == []
    assert arrows["finllm.errors"] == arrows["finllm.provenance"] == set()


def test_there_is_no_circle():
    assert circle(graph(ROOT, ALLOWED)) == []


@pytest.mark.parametrize("part", ROOMS)
def test_every_file_stands_in_a_room(part):
    folder = ROOT / part
    assert {path.stem for path in folder.glob("*.py")} == ON_TOP[part]
    assert {path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"} == ROOMS[part]
    assert [path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"] == []


def test_no_file_holds_two_things():
    files = [path for part in ALLOWED for path in sources(part)]
    long = {str(path.relative_to(ROOT)): lines for path in files
            if (lines := len(path.read_text("utf-8").splitlines())) > MOST_LINES}  # fmt: skip
    assert long == {}


def test_no_file_is_named_like_a_library():
    taken = {"evaluate", "datasets", "peft", "accelerate", "tokenize", "trl", "torch", "transformers", "utils"}
    assert [str(path) for part in ALLOWED for path in sources(part) if path.stem in taken] == []


def test_the_checks_see_what_they_look_for(tmp_path):
    """An arrow up, one beside, and circles: at the top, in a function, under TYPE_CHECKING, relative, by a package."""
    for name, source in {
        "finllm/text/up.py": "import finllm.training.top",
        "finllm/cpu/beside.py": "def late():\n    from finllm.data import rows",
        "finllm/data/rows.py": "",
        "finllm/training/top.py": "",
        "finllm/text/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    arrows = graph(tmp_path, ["finllm"])
    assert beside_or_above(arrows) == [
        ("finllm.cpu.beside", "finllm.data.rows"),
        ("finllm.text.up", "finllm.training.top"),
    ]
    assert circle(arrows) == []
    for back in (
        "from finllm.text.up import x",
        "def late():\n    import finllm.text.up",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from finllm.text import up",
        "from ..text import up",
        "from ..text.up import x",
    ):
        (tmp_path / "finllm/training/top.py").write_text(back)
        assert circle(graph(tmp_path, ["finllm"])) == ["finllm.text.up", "finllm.training.top", "finllm.text.up"], back
    (tmp_path / "finllm/training/top.py").write_text("from finllm.text import names")
    (tmp_path / "finllm/text/__init__.py").write_text("from finllm.text.up import names")
    assert circle(graph(tmp_path, ["finllm"]))[0] == "finllm.text"


def loaded_by(*commands: list[str], environment: dict[str, str] | None = None) -> set[str]:
    """What is in `sys.modules` after commands (a script and its arguments) in one process; each may end it."""
    code = (
        "import contextlib, io, runpy, sys\n"
        f"for argv in {commands!r}:\n"
        "    sys.argv = argv\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        runpy.run_path(argv[0], run_name='__main__')\n"
        "print(*[name for name, module in sys.modules.items() if module is not None], sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )  # fmt: skip
    assert done.stderr == ""
    return set(done.stdout.split())


LIBRARIES = {"accelerate", "bitsandbytes", "datasets", "matplotlib", "optuna", "peft", "scipy", "sklearn", "torch",
             "transformers", "trl"}  # fmt: skip
CLI = "finllm/cli.py"


def test_what_answers_at_once_imports_no_large_library(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "What is a bond?", "output": "A loan."}\n' * 3)
    helps = [[CLI, name, "--help"] for name in ("prepare", "generate", "merge", "export", "plan", "random-weights")]
    wrong = [[CLI, "generate", "nothing", "--file", "a"], [CLI, "export", "nothing", "--format", "onnx"]]
    prepare = [CLI, "prepare", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "data"), "--help"]
    loaded = loaded_by([CLI, "--help"], *helps, prepare, environment={"PYTHONWARNINGS": "error"})
    assert loaded & (LIBRARIES | {"numpy"}) == set() and "finllm.data.prepare" in loaded
    for command in wrong:
        done = subprocess.run([sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and "| torch\n" not in done.stderr and "| numpy\n" not in done.stderr


def test_preparing_and_reporting_wait_for_no_model(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"instruction": "What is {i}?", "output": "A number."}}\n' for i in range(40))
    )
    prepare = [CLI, "prepare", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "data")]
    loaded = loaded_by(prepare, [CLI, "doctor"], ["eval/leaderboard.py", "--help"], ["recipes/compare.py", "--help"],
                       environment={"HF_HUB_OFFLINE": "1"})  # fmt: skip
    assert (tmp_path / "data" / "manifest.json").exists()
    assert loaded & (LIBRARIES - {"scipy", "optuna"} | {"scipy.stats", "scipy.optimize"}) == set()


def test_a_run_imports_nothing_that_it_never_uses():
    """In one process, since each of these takes seconds: evaluation needs no model to be asked for help, training no
    compiler, and neither what a library imports for others."""
    evaluation = loaded_by(["eval/run.py", "--help"])
    assert evaluation & (LIBRARIES - {"accelerate", "datasets", "scipy", "torch"}) == set()
    assert evaluation & {"scipy.stats", "torch._dynamo", "evaluate.evaluator"} == set() and "evaluate" in evaluation
    training = loaded_by(["recipes/sft.py", "--help"])
    assert training & {"torch._inductor.compile_fx", "scipy", "sklearn", "matplotlib", "optuna", "evaluate"} == set()
    assert {"trl.trainer.sft_trainer", "transformers.loss.loss_utils"} <= training

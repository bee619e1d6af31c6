"""Put small faults into the source, one at a time, and look whether a test notices: `make mutants`.

    python tests/mutation/run.py                       every mutant of every module in modules.toml
    python tests/mutation/run.py --sample 60           60 of them, the same at every run; --seed draws others
    python tests/mutation/run.py --modules eval/run.py finllm/data        these modules, or folders of them

A mutant costs what importing costs, so this process imports torch and its like once, and nothing of ours. For each
mutant it forks a child, which imports the mutated module from a copy of the tree and runs the tests there. Before the
first mutant each file of tests runs once unchanged, and it is noted which of its tests reach which lines of which
modules: a mutant is shown to those that reach its line alone, the quickest first, up to the first that fails. What was
found is kept in runs/mutants, so that a run goes on where it was stopped; a module or a test that has changed since is
looked at again.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mutate import Mutant, mutants_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HELD = ROOT / "runs" / "mutants"
HEAVY = (  # what our modules import of others
    "torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama", "transformers.trainer", "peft", "trl", "trl.trainer.sft_trainer",
    "accelerate", "datasets", "evaluate", "scipy.stats", "scipy.sparse.csgraph", "sacrebleu",
    "rouge_score.rouge_scorer", "hypothesis", "rich.table", "rich.progress", "ftfy", "sentencepiece", "tokenizers",
    "jinja2", "matplotlib", "psutil", "gguf",
)  # fmt: skip
OURS = ("finllm", "eval", "baselines", "conftest", "processes")
MEMORY = 8 * 2**30  # bytes that a child may take beyond what it begins with: some mutants never stop allocating
PATIENCE, LEAST_SECONDS = 4, 30  # a mutant may take so many times as long as its tests, and so many seconds more


def main() -> None:
    parser = argparse.ArgumentParser(description="Put small faults into the source and see which of them tests notice.")
    parser.add_argument("--modules", nargs="*", default=[], help="modules of modules.toml, or folders of them")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn evenly from these modules")
    parser.add_argument("--each", type=int, help="up to so many mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="look again at mutants that survived")
    arguments = parser.parse_args()
    tests_of = tomllib.loads((HERE / "modules.toml").read_text(encoding="utf-8"))
    modules = [m for m in tests_of if not arguments.modules or any(_within(m, part) for part in arguments.modules)]
    if not modules:
        sys.exit(f"none of {', '.join(arguments.modules)} is in modules.toml, which has {', '.join(tests_of)}")
    chosen = _chosen(modules, arguments)
    HELD.mkdir(parents=True, exist_ok=True)
    known = _known(tests_of, arguments.again)
    todo = [(module, mutant) for module, mutant in chosen if _key(module, mutant) not in known]
    print(f"{len(chosen):,} mutants of {len(modules)} modules; {len(chosen) - len(todo):,} are known", flush=True)
    if todo:
        for name in HEAVY:
            importlib.import_module(name)
        unknown = _unknown_files(sorted({module for module, _ in todo}), tests_of)
        gc.collect()
        gc.freeze()
        _in_parallel(unknown, tests_of, arguments.workers, _look_at_file)
        _in_parallel(todo, tests_of, arguments.workers, _look_at_mutant)
        known = _known(tests_of, again=False)
    _report(chosen, known)


def _within(module: str, part: str) -> bool:
    return module == part or module.startswith(part.rstrip("/") + "/")


def _chosen(modules: list[str], arguments: argparse.Namespace) -> list[tuple[str, Mutant]]:
    """The mutants to look at: all, or a sample that is spread over the modules by their number of mutants."""
    drawn: list[tuple[str, Mutant]] = []
    for module in modules:
        found = mutants_of(ROOT / module)
        random.Random(f"{arguments.seed} {module}").shuffle(found)
        drawn += [(module, mutant) for mutant in found[: arguments.each]]
    if arguments.sample is not None and arguments.sample < len(drawn):
        drawn = random.Random(arguments.seed).sample(drawn, arguments.sample)
    return drawn


# What is known -------------------------------------------------------------------------------------------------------


@functools.cache
def _hash(*paths: Path) -> str:
    """Of files as they are when they are first asked for: whoever edits one meanwhile does not stop this run."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()[:16]


def _key(module: str, mutant: Mutant) -> str:
    content = f"{_hash(ROOT / module)} {mutant.begin} {mutant.end} {mutant.new}"
    return hashlib.sha256(f"{module} {content}".encode()).hexdigest()[:20]


def _tests_hash(files: list[str]) -> str:
    return _hash(*(ROOT / file for file in files), *sorted(ROOT.glob("tests/**/conftest.py")))


def _known(tests_of: dict[str, list[str]], again: bool) -> dict[str, dict[str, Any]]:
    """By key what was found: killed ones while the test that killed them is as it was, others while all tests are."""
    found = {}
    path = HELD / "found.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # cut short by a kill
            each = json.loads(line)
            if each["verdict"] == "survived":
                holds = not again and each["tests"] == _tests_hash(tests_of[each["module"]])
            else:
                holds = not each["by"] or each["file"] == _hash(ROOT / each["by"].split("::")[0])
            if holds:
                found[each["key"]] = each
            else:
                found.pop(each["key"], None)
    return found


# Looking -------------------------------------------------------------------------------------------------------------


def _in_parallel(items: list, tests_of: dict[str, list[str]], workers: int, look) -> None:
    """Each worker, a fork of this process with a copy of the tree, takes every nth item."""
    children = []
    for number in range(min(workers, len(items))):
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            status = 1
            try:
                with tempfile.TemporaryDirectory(prefix="mutants") as folder:
                    tree = _copied(Path(folder) / "tree")
                    for item in items[number::workers]:
                        look(item, tests_of, tree)
                status = 0
            except BaseException as error:
                print(f"worker {number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(status)
        children.append(child)
    failed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(failed):
        sys.exit("a worker failed, see above; what was found is kept")


def _copied(tree: Path) -> Path:
    """The files that git knows or would add, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree


def _selected(module: str, tests_of: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """By file what a module's tests are: the whole file, or single tests of it."""
    found: dict[str, tuple[str, ...]] = {}
    for name in tests_of[module]:
        file = name.split("::")[0]
        found[file] = (*found.get(file, ()), name)
    return found


def _baseline_path(module: str, file: str, selected: tuple[str, ...]) -> Path:
    content = f"{_hash(ROOT / module)} {_tests_hash([file])} {_hash(HERE / 'run.py')} {selected}"
    name = f"{module} {file}".replace("/", ".")
    return HELD / f"{name}.{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"


def _unknown_files(modules: list[str], tests_of: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Files of tests, each with the modules of which it is not known yet which lines its tests reach."""
    found: dict[str, list[str]] = {}
    for module in modules:
        for file, selected in _selected(module, tests_of).items():
            if not _baseline_path(module, file, selected).exists():
                found.setdefault(file, []).append(module)
    return list(found.items())


def _look_at_file(item: tuple[str, list[str]], tests_of: dict[str, list[str]], tree: Path) -> None:
    """Run a file's tests as the modules are: how long each takes, and which lines of each module it reaches."""
    file, modules = item
    begun = time.perf_counter()
    selected = {module: _selected(module, tests_of)[file] for module in modules}
    wanted = sorted({name for names in selected.values() for name in names})
    noted = _run(tree, wanted, seconds=1800, traced={str(tree / module): module for module in modules})
    if noted is None or noted["failed"]:
        raise RuntimeError(f"the tests of {file} fail as they are: {noted and noted['failed']}")
    for module, names in selected.items():
        path = _baseline_path(module, file, names)
        for old in HELD.glob(f"{path.name[: -len('????????????.json')]}????????????.json"):
            old.unlink()
        seconds = {test: each for test, each in noted["seconds"].items() if test.startswith(names)}
        path.write_text(json.dumps({"seconds": seconds, "lines": noted["lines"].get(module, {})}), encoding="utf-8")
    print(f"{file}: {len(noted['seconds'])} tests, {time.perf_counter() - begun:.0f} s", flush=True)


def _noted_of(module: str, tests_of: dict[str, list[str]]) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Of each test of a module how long it takes, and which lines it reaches."""
    seconds, lines = {}, {}
    for file, selected in _selected(module, tests_of).items():
        noted = json.loads(_baseline_path(module, file, selected).read_text(encoding="utf-8"))
        seconds |= noted["seconds"]
        lines |= noted["lines"]
    return seconds, lines


def _look_at_mutant(item: tuple[str, Mutant], tests_of: dict[str, list[str]], tree: Path) -> None:
    module, mutant = item
    taken, reached = _noted_of(module, tests_of)
    path, source = tree / module, (ROOT / module).read_text(encoding="utf-8")
    inside = _in_a_function(source, mutant)
    lines = set(range(mutant.line, mutant.last_line + 1)) if inside else None
    reaching = [test for test in taken if lines is None or lines.intersection(reached.get(test, ()))]
    reaching.sort(key=taken.__getitem__)
    verdict, by, begun = "survived", None, time.perf_counter()
    if reaching:
        path.write_text(mutant.applied(source), encoding="utf-8")
        try:
            seconds = PATIENCE * sum(taken[test] for test in reaching) + LEAST_SECONDS
            found = _run(tree, tests_of[module], seconds, chosen=reaching)
        finally:
            path.write_text(source, encoding="utf-8")
            _forget(path)
        if found is None:
            verdict = "killed"  # it hung, or took the process down
        elif found["failed"]:
            verdict, by = "killed", found["failed"]
    line = {
        "key": _key(module, mutant), "module": module, "verdict": verdict, "by": by, "reached": len(reaching),
        "file": by and _hash(ROOT / by.split("::")[0]), "tests": _tests_hash(tests_of[module]),
        "seconds": round(time.perf_counter() - begun, 2),
    }  # fmt: skip
    with open(HELD / "found.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{verdict} {line['seconds']:.1f} s  {module}:{mutant.line} {mutant.kind}  {by or ''}", flush=True)


def _in_a_function(source: str, mutant: Mutant) -> bool:
    """Whether a mutant's lines run when a function is called, and not when the module is imported."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.Lambda)))
    bodies = (node.body if isinstance(node.body, list) else [node.body] for node in functions)
    return any(body[0].lineno <= mutant.line and mutant.last_line <= body[-1].end_lineno for body in bodies)


def _forget(path: Path) -> None:
    """Remove a module's bytecode: Python knows it by second and size, and two mutants may have both in common."""
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def _run(
    tree: Path, files: list[str], seconds: float, chosen: list[str] | None = None, traced: dict[str, str] | None = None
) -> dict[str, Any] | None:
    """What a child finds that runs tests in `tree`; None where it took too long or died."""
    noted = tree.parent / "noted.json"
    noted.unlink(missing_ok=True)
    if chosen is not None:
        files = list(dict.fromkeys(test.split("::")[0] for test in chosen))
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            _be_a_child(tree, [file.split("::")[0] for file in files], _Plugin(noted, chosen, traced, files))
        finally:
            os._exit(70)
    end = time.monotonic() + seconds
    try:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # whoever it started, and itself where this process is interrupted
    return json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else None


def _be_a_child(tree: Path, files: list[str], plugin: _Plugin) -> None:
    out = os.open(tree.parent / "printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    # A process that a test starts would import this script under multiprocessing's name for the main module, and fail.
    del sys.modules["__main__"].__file__
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    sys.path[:] = [str(tree), *(place for place in sys.path if Path(place).resolve() != HERE)]
    assert not any(name.split(".")[0] in OURS for name in sys.modules), "nothing of ours may be there before the fork"
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not soak and not gpu", "--rootdir", str(tree)]
    temporary = ["--basetemp", str(tree.parent / "temporary")]
    pytest.main([*options, *temporary, *(["-x"] if plugin.chosen is not None else []), *files], plugins=[plugin])
    plugin.write()


class _Plugin:
    """Chooses and orders tests; notes what failed, how long each took, and the lines of modules that it reached.

    `traced` has the name of each module by its path.
    """

    def __init__(self, noted: Path, chosen: list[str] | None, traced: dict[str, str] | None, files: list[str]):
        self.noted, self.chosen, self.traced, self.files = noted, chosen, traced or {}, files
        self.seconds: dict[str, float] = defaultdict(float)
        self.lines: dict[str, dict[str, set[int]]] = {module: defaultdict(set) for module in self.traced.values()}
        self.failed, self.test, self.tracing = "", "", traced is not None

    def pytest_collection_modifyitems(self, items: list) -> None:
        if self.chosen is None:
            wanted = tuple(self.files)
            items[:] = [item for item in items if item.nodeid.startswith(wanted)]
        else:
            place = {test: number for number, test in enumerate(self.chosen)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item) -> Iterator[None]:
        """What a fixture reaches counts for every test of its file: a module's fixture runs in the first one alone."""
        self.test = item.nodeid.split("::")[0]
        try:
            return (yield)
        finally:
            self.test = item.nodeid

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item) -> Iterator[None]:
        self.test, begun = item.nodeid, time.perf_counter()
        if self.tracing:
            threading.settrace(self._called)
            sys.settrace(self._called)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.seconds[item.nodeid] += time.perf_counter() - begun

    def _called(self, frame, event, argument):
        return self._line if frame.f_code.co_filename in self.traced else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.lines[self.traced[frame.f_code.co_filename]][self.test].add(frame.f_lineno)
        return self._line

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid
            if self.chosen is not None:
                self.write()  # what a teardown does after it is of no interest

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def write(self) -> None:
        lines = {
            module: {test: sorted(reached[test] | reached[test.split("::")[0]]) for test in self.seconds}
            for module, reached in self.lines.items()
        }
        content = {"failed": self.failed, "seconds": self.seconds, "lines": lines}
        self.noted.write_text(json.dumps(content), encoding="utf-8")


# Telling -------------------------------------------------------------------------------------------------------------


def _report(chosen: list[tuple[str, Mutant]], known: dict[str, dict[str, Any]]) -> None:
    accepted = _accepted()
    rows: dict[str, list[int]] = {}
    survivors = []
    for module, mutant in sorted(chosen, key=lambda each: (each[0], each[1].begin)):
        found = known.get(_key(module, mutant))
        counts = rows.setdefault(module, [0, 0, 0])
        if found is None:
            continue
        counts[0] += 1
        if found["verdict"] == "killed":
            counts[1] += 1
            continue
        source = (ROOT / module).read_text(encoding="utf-8")
        why = next(
            (why for name, text, why in accepted if name == module and text in mutant.diff(source, module)), None
        )
        if why:
            counts[2] += 1
        else:
            reached = "" if found["reached"] else "    no test reaches it\n"
            survivors.append(mutant.diff(source, module) + "\n" + reached)
    print("\n" + "\n".join(survivors))
    print(f"{'module':40} mutants  killed  cannot matter  score")
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    for module, (seen, killed, same) in rows.items():
        score = f"{100 * killed / (seen - same):.0f} %" if seen > same else "–"
        print(f"{module:40} {seen:7} {killed:7} {same:14}  {score}")


def _accepted() -> list[tuple[str, str, str]]:
    """Of mutants that cannot matter: the module, a text that their diff holds, and why."""
    content = tomllib.loads((HERE / "cannot_matter.toml").read_text(encoding="utf-8"))
    return [(module, text, why) for module, each in content.items() for text, why in each.items()]


if __name__ == "__main__":
    main()

"""Workers: forks of the run, each with a copy of the tree, that take what is to be looked at one after another."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import held
import stage
from held import ROOT
from mutants import Mutant, changed_codes


def in_parallel(items: list, workers: int, look: Callable[[Any, Path], None]) -> None:
    """Call `look` with each item and the worker's own copy of the tree; the first items first."""
    children, taken = [], multiprocessing.get_context("fork").Value("i", 0)
    for number in range(min(workers, len(items))):
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            status = 1
            try:
                with tempfile.TemporaryDirectory(prefix="mutants") as folder:
                    tree = _copied(Path(folder) / "tree")
                    while (place := _next(taken)) < len(items):
                        look(items[place], tree)
                status = 0
            except BaseException as error:
                print(f"worker {number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(status)
        children.append(child)
    failed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(failed):
        sys.exit("a worker failed, see above; what was found is kept")


def _next(taken) -> int:
    with taken.get_lock():
        taken.value += 1
        return taken.value - 1


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


def look_at_file(file: str, tree: Path) -> None:
    """Run a file's tests as everything is: how long each takes, and which lines of the modules it reaches."""
    begun, names = time.perf_counter(), held.selected(file)
    modules = [module for module, tests in held.tests_of_modules().items() if file in held.files_of(tests)]
    noted = tree.parent / "traced.json"
    noted.unlink(missing_ok=True)
    tracer = stage.Tracer(tree, modules, names, lambda found: noted.write_text(json.dumps(found), encoding="utf-8"))
    status = stage.run(tree, [file], tracer, seconds=1800)
    found = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else {"failed": "all"}
    if status or found["failed"]:
        printed = (tree.parent / "printed").read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"the tests of {file} fail as they are: {found['failed']}\n{printed}")
    hashes = {module: held.hash_of(ROOT / module) for module in modules}
    trace = held.Trace(names, held.tests_hash([file]), hashes, found["seconds"], found["lines"])
    place = held.trace_path(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(asdict(trace)), encoding="utf-8")
    print(f"{file}: {len(trace.seconds)} tests, {time.perf_counter() - begun:.0f} s", flush=True)


def look_at_mutants(share: tuple[str, list[Mutant]], tree: Path) -> None:
    """Look at mutants of one module: those inside functions in one stage, each other one in its own."""
    module, mutants = share
    looks = [(mutant, _look_at(module, mutant, tree)) for mutant in mutants]
    for mutant, look in looks:
        if not look.tests:
            _note(module, mutant, look, stage.Seen("survived", None, 0.0))
    inside = [(mutant, look) for mutant, look in looks if look.tests and look.codes is not None]
    anew = [(mutant, look) for mutant, look in looks if look.tests and look.codes is None]
    if inside:
        for number in _in_one_stage(module, inside, tree):
            mutant, look = inside[number]
            anew.append((mutant, stage.Look(**vars(look) | {"codes": None})))
    for mutant, look in anew:
        begun = time.perf_counter()
        look.path.write_text(look.mutated, encoding="utf-8")
        try:
            left = _in_one_stage(module, [(mutant, look)], tree)
        finally:
            stage.restore(look)
        if left:  # its import never ended, or took the stage down
            _note(module, mutant, look, stage.Seen("killed", None, time.perf_counter() - begun))


def _look_at(module: str, mutant: Mutant, tree: Path) -> stage.Look:
    source = (ROOT / module).read_text(encoding="utf-8")
    path = tree / module
    codes = None if held.is_imported(module, mutant) else changed_codes(str(path), source, mutant)
    return stage.Look(path, source, mutant.applied(source), codes, held.reaching(module, mutant))


def _in_one_stage(module: str, looks: list[tuple[Mutant, stage.Look]], tree: Path) -> list[int]:
    """Look at them; the numbers of those that a stage of their own must look at."""
    open_ones = tree.parent / "open.json"
    left = [*range(len(looks))]
    open_ones.write_text(json.dumps(left), encoding="utf-8")

    def seen(number: int, found: stage.Seen) -> None:  # in the stage
        if found.verdict != "not in place":
            _note(module, *looks[number], found)
            left.remove(number)
            open_ones.write_text(json.dumps(left), encoding="utf-8")

    files = sorted({file for _, look in looks for file in look.tests})
    looker = stage.Looker([look for _, look in looks], tree.parent / "failed", seen)
    stage.run(tree, files, looker, sum(look.seconds for _, look in looks) + stage.LEAST_WAIT)
    return json.loads(open_ones.read_text(encoding="utf-8"))


def _note(module: str, mutant: Mutant, look: stage.Look, found: stage.Seen) -> None:
    held.note(module, mutant, found.verdict, found.by, len(look.order), found.seconds)
    line = f"{found.verdict} {found.seconds:.1f} s  {module}:{mutant.line} {mutant.kind}  {found.by or ''}\n"
    os.write(TOLD, line.encode())  # a stage's own standard output is a file


TOLD = os.dup(1)

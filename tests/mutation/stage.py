"""Processes in which tests run on a copy of the tree: once as it is, to see what they reach, and once for each mutant.

A stage has imported the tests of a module, and what they import of ours. For each mutant it forks, gives the functions
in question the mutant's code, and runs the tests that reach it. A mutant of what runs at import has a stage of its own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from coverage import Coverage

HERE = Path(__file__).resolve().parent
OURS = ("finllm", "eval", "baselines", "conftest", "processes")
MEMORY = 8 * 2**30  # bytes that a stage may take beyond what it begins with: some mutants never stop allocating
PATIENCE = 4  # so many times as long as without a mutant may a test compute, and all of them take
LEAST_SECONDS, LEAST_WAIT = 10, 60  # and so many seconds more: of one test's computing, and of all of them


@dataclass(frozen=True)
class Look:
    """A mutant to look at: the module's file as it is and as the mutant has it, and the tests by file with seconds."""

    path: Path
    source: str
    mutated: str
    codes: dict[tuple[str, int], CodeType] | None  # of functions, in place of theirs; None: it is imported anew
    tests: dict[str, dict[str, float]]

    @property
    def order(self) -> list[str]:
        return [test for tests in self.tests.values() for test in tests]

    @property
    def seconds(self) -> float:
        return PATIENCE * sum(sum(tests.values()) for tests in self.tests.values()) + LEAST_WAIT


@dataclass(frozen=True)
class Seen:
    """What came of a look: "survived", "killed" (`by` which test, None where it hung or died), or "not in place"."""

    verdict: str
    by: str | None
    seconds: float


def run(tree: Path, files: list[str], plugin: object, seconds: float) -> int:
    """Import `files` of tests in a stage and run them under a plugin of pytest; its status, −9 if it took too long."""
    child = os.fork()
    if not child:
        status = 70
        try:
            os.setpgid(0, 0)
            _prepare(tree)
            options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-m", "not soak and not gpu"]
            places = ["--rootdir", str(tree), "--basetemp", str(tree.parent / "temporary")]
            status = int(pytest.main([*options, *places, *files], plugins=[plugin]))
        finally:
            os._exit(status)
    return _waited_for(child, seconds)


def _waited_for(child: int, seconds: float) -> int:
    end, status = time.monotonic() + seconds, None
    try:
        while status is None and time.monotonic() < end:
            ended, found = os.waitpid(child, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(found)
            else:
                time.sleep(0.005)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # whoever it started, and itself where it took too long
        if status is None:
            os.waitpid(child, 0)
    return -signal.SIGKILL if status is None else status


def _prepare(tree: Path) -> None:
    out = os.open(tree.parent / "printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    # A process that a test starts would import this script under multiprocessing's name for the main module, and fail.
    with contextlib.suppress(AttributeError):
        del sys.modules["__main__"].__file__
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    sys.path[:] = [str(tree), *(place for place in sys.path if Path(place).resolve() != HERE)]
    assert not any(name.split(".")[0] in OURS for name in sys.modules), "nothing of ours may be there before the fork"


class Tracer:
    """Notes which lines of `modules`, by path, each test reaches, how long it takes, and which one failed first.

    What a fixture reaches counts for every test of its file: a module's fixture runs in the first of them alone.
    """

    def __init__(self, tree: Path, modules: list[str], names: list[str], write: Callable[[dict], None]):
        self.tree, self.modules, self.names, self.write = tree, modules, tuple(names), write
        self.coverage = Coverage(data_file=None, include=[str(tree / module) for module in modules], config_file=False)
        self.seconds: dict[str, float] = {}
        self.failed = ""

    def pytest_sessionstart(self) -> None:
        self.coverage.start()
        import_modules(self.tree / module for module in self.modules)

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = [item for item in items if item.nodeid.startswith(self.names)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item) -> Iterator[None]:
        self.coverage.switch_context("fixtures")
        try:
            return (yield)
        finally:
            self.coverage.switch_context(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - begun

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    pytest_collectreport = pytest_runtest_logreport

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data, lines = self.coverage.get_data(), {}
        for module in self.modules:
            reached = data.contexts_by_lineno(str(self.tree / module))
            lines[module] = {
                test: sorted(line for line, tests in reached.items() if {test, *fixtures} & {*tests})
                for test, fixtures in [("", ()), *((test, ("fixtures",)) for test in self.seconds)]
            }
        self.write({"failed": self.failed, "seconds": self.seconds, "lines": lines})


class Looker:
    """Looks at mutants one after another, each in a fork of the stage, and tells `seen` what came of it."""

    def __init__(self, looks: list[Look], place: Path, seen: Callable[[int, Seen], None]):
        self.looks, self.place, self.seen = looks, place, seen
        self.look: Look | None = None  # in a fork
        self.failed = ""  # what could not be imported

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session) -> bool | None:
        """Everything is imported: fork for each look. None in a fork, where pytest's own loop then runs the tests."""
        if paths := {look.path for look in self.looks if look.codes is not None}:
            import_modules(paths)
        live = _live_functions({str(path) for path in paths})
        for number, look in enumerate(self.looks):
            begun, codes = time.perf_counter(), look.codes or {}
            if self.failed:
                self.seen(number, Seen("killed", self.failed, 0.0))
            elif any(name not in live for name in codes):
                self.seen(number, Seen("not in place", None, 0.0))
            else:
                self.place.unlink(missing_ok=True)
                look.path.write_text(look.mutated, encoding="utf-8")  # a command that a test runs reads it from there
                child = os.fork()
                if not child:
                    self._begin(session, look, [(live[name], code) for name, code in codes.items()])
                    return None
                try:
                    status = _waited_for(child, look.seconds)
                finally:
                    restore(look)
                by = self.place.read_text(encoding="utf-8") if self.place.exists() else None
                self.seen(number, Seen("killed" if status else "survived", by, time.perf_counter() - begun))
        return True

    def _begin(self, session, look: Look, patches: list[tuple[list[FunctionType], CodeType]]) -> None:
        os.setpgid(0, 0)
        for functions, code in patches:
            for function in functions:
                function.__code__ = code
        place = {test: number for number, test in enumerate(look.order)}
        items = (item for item in session.items if item.nodeid in place)
        session.items[:] = sorted(items, key=lambda item: place[item.nodeid])
        self.look = look

    def pytest_runtest_protocol(self, item) -> None:
        """A test that computes far longer than it did never ends: SIGPROF ends the process."""
        seconds = sum(self.look.tests[item.nodeid.split("::")[0]].values())  # it may be the first, with the fixtures
        signal.setitimer(signal.ITIMER_PROF, PATIENCE * seconds + LEAST_SECONDS)

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.place.write_text(report.nodeid, encoding="utf-8")
            os._exit(1)  # other tests, and what a teardown does, are of no interest


def import_modules(paths: Iterable[Path]) -> None:
    """Now, what a test might only import on its way."""
    for path in paths:
        importlib.import_module(".".join(path.relative_to(Path.cwd()).with_suffix("").parts))


def _live_functions(paths: set[str]) -> dict[tuple[str, int], list[FunctionType]]:
    """All functions of modules, by qualified name and first line."""
    found: dict[tuple[str, int], list[FunctionType]] = {}
    for each in gc.get_objects() if paths else ():
        if type(each) is FunctionType and each.__code__.co_filename in paths:
            found.setdefault((each.__code__.co_qualname, each.__code__.co_firstlineno), []).append(each)
    return found


def restore(look: Look) -> None:
    """The module as it was. Its bytecode goes: Python knows it by second and size, and two mutants may share both."""
    look.path.write_text(look.source, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(look.path))).unlink(missing_ok=True)

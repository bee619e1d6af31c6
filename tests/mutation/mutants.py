"""The mutants of a module: each is the module with one fault in it (faults.py)."""

from __future__ import annotations

import ast
import bisect
import difflib
import hashlib
import inspect
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType

from faults import Fault, Faults

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Mutant(Fault):
    """A fault, and the lines from `first` to `last` of the statement that it is in.

    `inside` says that these are run by a call of a function and not when the module is imported.
    """

    first: int
    last: int
    inside: bool

    def applied(self, source: str) -> str:
        data = source.encode()
        return (data[: self.begin] + self.new.encode() + data[self.end :]).decode()

    def diff(self, source: str, path: str) -> str:
        lines = (source.splitlines(), self.applied(source).splitlines())
        changed = [line for line in difflib.unified_diff(*lines, lineterm="", n=0) if line[:2] not in ("--", "++")]
        return f"{path}:{self.line} {self.kind}\n" + "\n".join(f"    {line}" for line in changed[1:])


def mutants_of(path: Path, held: Path) -> list[Mutant]:
    """All mutants of a module, in the order of its lines; the list is kept in the folder `held`."""
    content = b"\0".join(each.read_bytes() for each in (path, *sorted(HERE.glob("*.py"))))
    place = held / "listed" / f"{hashlib.sha256(content).hexdigest()[:20]}.json"
    if not place.exists():
        found = [asdict(mutant) for mutant in _listed(path.read_text(encoding="utf-8"))]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found), encoding="utf-8")
    return [Mutant(**each) for each in json.loads(place.read_text(encoding="utf-8"))]


def _listed(source: str) -> Iterator[Mutant]:
    """Those that are Python and that no other of the same place is like."""
    data, module = source.encode(), ast.parse(source)
    lines = [0, *itertools.accumulate(map(len, data.splitlines(keepends=True)))]
    blocks = [(lines[first - 1], lines[last]) for first, last in _blocks(module)]
    begins, statements, functions = [begin for begin, _ in blocks], list(_statements(module)), list(_bodies(module))
    meant, seen = {}, set()
    for fault in sorted(Faults(source).found, key=lambda each: (each.begin, each.end, each.new)):
        begin, end = block = blocks[bisect.bisect_right(begins, fault.begin) - 1]
        if block not in meant:
            meant[block] = _meaning(data[begin:end])
        meaning = _meaning(data[begin : fault.begin] + fault.new.encode() + data[fault.end : end])
        if meaning in (None, meant[block]) or (begin, meaning) in seen:
            continue
        seen.add((begin, meaning))
        around = [(last - first, first, last) for first, last in statements if first <= fault.line <= last]
        _, first, last = min(around)
        inside = any(start <= first and last <= stop for start, stop in functions)
        yield Mutant(**asdict(fault), first=first, last=last, inside=inside)


def _meaning(block: bytes) -> str | None:
    """What a piece of a module, which may be indented, is to Python; None where it is no Python."""
    try:
        return ast.dump(ast.parse(b"if 1:\n" + block if block[:1].isspace() else block))
    except SyntaxError:
        return None


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def _blocks(module: ast.Module) -> Iterator[tuple[int, int]]:
    """The lines of pieces that are Python by themselves: of a mutant only its own is parsed again."""
    for node in module.body:
        pieces = node.body if isinstance(node, ast.ClassDef) else [node]
        for piece in pieces:
            yield _first_line(piece), piece.end_lineno


def _statements(module: ast.Module) -> Iterator[tuple[int, int]]:
    """The lines of every statement; of one that holds others those of its head."""
    for node in ast.walk(module):
        if isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case)) and hasattr(node, "lineno"):
            body = getattr(node, "body", None)
            yield node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno


def _bodies(module: ast.Module) -> Iterator[tuple[int, int]]:
    """The lines of the body of every function that is in no other."""
    for node in module.body:
        for each in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(each, ast.FunctionDef) and each.body[0].lineno > each.lineno:
                yield each.body[0].lineno, each.end_lineno


def changed_codes(path: str, source: str, mutant: Mutant) -> dict[tuple[str, int], CodeType]:
    """The code of functions as the mutant has it where it differs, by qualified name and first line before.

    Only of functions that are in no other: those that these hold change with them.
    """
    before, after = ([*_codes(compile(text, path, "exec"))] for text in (source, mutant.applied(source)))
    pairs = zip(before, after, strict=True)
    return {(old.co_qualname, old.co_firstlineno): new for old, new in pairs if old != new}


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            if each.co_flags & inspect.CO_NEWLOCALS:
                yield each
            else:  # the body of a class
                yield from _codes(each)

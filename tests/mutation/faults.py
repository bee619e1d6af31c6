"""Every small fault that can be put into a module: each is a piece of its text replaced by another.

What cannot change a result is left out by rule: what is raised, said, printed or shown, prose (a text with a blank in
it), docstrings, annotations, imports, and what a command says of its flags.
"""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass

from rules import (
    BINARY,
    COMPARE,
    FUNCTIONS,
    METHODS,
    NOT_SWAPPED,
    RENAMED,
    SAID,
    SAYING,
    SHOWING,
    SIGN,
    TELLING,
)


@dataclass(frozen=True)
class Fault:
    """Of a module's bytes those from `begin` to `end` become `new`; `kind` is what it is, `line` where."""

    kind: str
    begin: int
    end: int
    new: str
    line: int


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_prose(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        return any(isinstance(part, ast.Constant) and " " in part.value for part in node.values)
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


def _says(node: ast.Call) -> bool:
    """Whether a call adds to what is said: `said.append(…)`, `problems.append(…)`."""
    return isinstance(node.func, ast.Attribute) and _name(node.func.value) in SAID


class Faults(ast.NodeVisitor):
    """Visits a module and collects in `found` every fault that could be put into it."""

    def __init__(self, source: str):
        self.source, self.found = source, []
        self.starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.visit(ast.parse(source))

    def text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.source, node)

    def place(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def put(self, node: ast.AST, kind: str, new: str, until: ast.AST | None = None) -> None:
        """`new` in place of the text from `node` on, to the end of `until`."""
        until, begin = until or node, self.place(node)
        end = self.starts[until.end_lineno - 1] + until.end_col_offset
        self.found.append(Fault(kind, begin, end, new, node.lineno))

    def between(self, left: ast.AST, right: ast.AST, kind: str, old: str, new: str) -> None:
        """`new` for the operator `old` that stands between two operands."""
        begin = self.starts[left.end_lineno - 1] + left.end_col_offset
        end = self.starts[right.lineno - 1] + right.col_offset
        gap = self.source.encode()[begin:end].decode()
        if old in gap:
            self.found.append(Fault(kind, begin, end, gap.replace(old, new, 1), left.lineno))

    # What is left out ------------------------------------------------------------------------------------------------

    def visit(self, node: ast.AST) -> None:
        if _is_prose(node) or isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom)):
            return
        if isinstance(node, ast.Call) and _name(node.func) in SAYING:
            return
        super().visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in SHOWING and node.arg != "strict":  # what zip is given here is always of one length
            self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in TELLING:
            return
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self.body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.body(node.body)

    def visit_Module(self, node: ast.Module) -> None:
        self.body(node.body)

    def visit_If(self, node: ast.If) -> None:
        if _name(node.test) == "TYPE_CHECKING":
            return
        self.condition(node.test)
        self.visit(node.test)
        self.body(node.body)
        self.body(node.orelse)

    def body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.visit(statement)

    # What is changed -------------------------------------------------------------------------------------------------

    def condition(self, test: ast.expr) -> None:
        for always in ("True", "False"):
            self.put(test, f"always {always}", always)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        if _is_prose(node.body) or _is_prose(node.orelse):
            return
        self.condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.put(node.test, "never", "False")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.elements(node.iter)
        for test in node.ifs:
            self.condition(test)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self.elements(node.iter)
        self.generic_visit(node)

    def elements(self, iterated: ast.expr) -> None:
        for part in ("[1:]", "[:-1]"):
            self.put(iterated, "an element dropped", f"list({self.text(iterated)}){part}")

    def visit_Break(self, node: ast.Break) -> None:
        self.put(node, "goes on", "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.put(node, "stops", "break")

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            old = {ast.In: "in", ast.Is: "is", ast.NotIn: "not in", ast.IsNot: "is not"}.get(type(op))
            old = old or {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}.get(type(op), "!=")
            for new in COMPARE[type(op)]:
                self.between(left, right, f"{old} to {new}", old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if _is_prose(node.left) or _is_prose(node.right):
            return
        old = SIGN[type(node.op)]
        text = any(isinstance(each, (ast.JoinedStr, ast.List, ast.ListComp)) or _is_text(each)
                   for each in (node.left, node.right))  # fmt: skip
        if type(node.op) in BINARY and not text:
            new = BINARY[type(node.op)]
            self.between(node.left, node.right, f"{old} to {new}", old, new)
        if not isinstance(node.op, (ast.MatMult, ast.BitOr)) or not text:
            self.put(node, "operand dropped", self.text(node.left))
            if isinstance(node.op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
                self.put(node, "operand dropped", self.text(node.right))
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if _name(node.target) in SAID:
            return
        old = SIGN[type(node.op)] + "="
        if type(node.op) in BINARY and not isinstance(node.value, (ast.List, ast.JoinedStr, ast.ListComp)):
            new = BINARY[type(node.op)] + "="
            self.between(node.target, node.value, f"{old} to {new}", old, new)
        self.between(node.target, node.value, f"{old} to =", old, "=")
        self.put(node, "statement dropped", "pass")
        self.visit(node.value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.put(node, "sign or not dropped", f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in itertools.pairwise(node.values):
            self.between(left, right, f"{old} to {new}", old, new)
        texts = [f"({self.text(value)})" for value in node.values]
        for number in range(len(texts)):
            rest = f" {old} ".join(texts[:number] + texts[number + 1 :])
            self.put(node, "operand dropped", f"({rest})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.put(node, "constant", str(not value))
        elif isinstance(value, int):
            for other in (value + 1, value - 1, *([2 * value] if abs(value) > 2 else [])):
                self.put(node, "constant", f"({other})")
        elif isinstance(value, float):
            for other in (value * 2, value / 2, -value):
                self.put(node, "constant", f"({other!r})")
        elif isinstance(value, str) and value and value.isascii() and len(value) < 40:
            self.put(node, "text", repr(value + "X"))

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and _name(node.value.func) not in SAYING:
            base = node.value.func.value if isinstance(node.value.func, ast.Attribute) else None
            if _name(base) in SAID:
                return
            self.put(node, "statement dropped", "pass")
        if not isinstance(node.value, ast.Constant):
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(_name(target) in SAID for target in node.targets):
            return
        self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        value = node.value
        if value is None or _is_prose(value):
            return
        if isinstance(value, (ast.Compare, ast.BoolOp)) or isinstance(getattr(value, "op", None), ast.Not):
            self.condition(value)
        elif isinstance(value, (ast.BinOp, ast.Call)) and not _is_text(value):
            self.put(value, "returns 0", "0")
        self.visit(value)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if isinstance(node.func, ast.Attribute) and not _says(node):
            base, method = self.text(node.func.value), node.func
            for other in RENAMED.get(name, ()):
                self.put(node.func, f"{name} to {other}", f"{base}.{other}")
            if name in METHODS:
                self.put(node, f"{name} dropped", base)
            if name in FUNCTIONS and len(node.args) == 1 and _name(method.value) in ("np", "math", "torch"):
                self.put(node, f"{name} dropped", f"({self.text(node.args[0])})")
        elif isinstance(node.func, ast.Name):
            for other in RENAMED.get(name, ()):
                if other in ("max", "min", "any", "all", "sum"):
                    self.put(node.func, f"{name} to {other}", other)
            if name in FUNCTIONS and node.args and not isinstance(node.args[0], ast.Starred):
                argument = self.text(node.args[0])
                if isinstance(node.args[0], ast.GeneratorExp):
                    argument = f"[{argument.strip()[1:-1]}]"
                self.put(node, f"{name} dropped", f"({argument})")
        plain = [each for each in node.args if not isinstance(each, ast.Starred)]
        if len(plain) == len(node.args) and name not in NOT_SWAPPED:
            for left, right in itertools.pairwise(plain):
                if isinstance(left, (ast.Name, ast.Attribute, ast.Subscript)) and type(left) is type(right):
                    self.put(left, "arguments swapped", f"{self.text(right)}, {self.text(left)}", until=right)
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in SHOWING | {"strict", "file", "flush", "encoding", "device"}:
                rest = [self.text(each) for each in node.args]
                rest += [self.text(each) for each in node.keywords if each is not keyword]
                self.put(node, f"{keyword.arg} dropped", f"{self.text(node.func)}({', '.join(rest)})")
        if not _says(node):
            self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        firsts = [key or value for key, value in zip(node.keys, node.values, strict=True)]
        begins = [
            self.place(first) - (0 if key else 2) for first, key in zip(firsts, node.keys, strict=True)
        ]  # **value
        ends = [self.starts[value.end_lineno - 1] + value.end_col_offset for value in node.values]
        for number, (key, value) in enumerate(zip(node.keys, node.values, strict=True)):
            if not _is_prose(value) and not (isinstance(key, ast.Constant) and key.value in SAID):
                last = number == len(ends) - 1
                begin, end = (ends[number - 1] if last and number else begins[number],
                              ends[number] if last else begins[number + 1])  # fmt: skip
                self.found.append(Fault("entry dropped", begin, end, "", firsts[number].lineno))
                self.visit(value)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        if isinstance(node.ctx, ast.Load):
            self.generic_visit(node)

    def visit_List(self, node: ast.List) -> None:
        if any(isinstance(each, ast.Starred) for each in node.elts) and len(node.elts) > 1:
            texts = [self.text(each) for each in node.elts]
            for number in range(len(texts)):
                self.put(node, "element dropped", "[" + ", ".join(texts[:number] + texts[number + 1 :]) + "]")
        self.generic_visit(node)

    def visit_Set(self, node: ast.Set) -> None:
        texts = [self.text(each) for each in node.elts]
        for number in range(len(texts) if len(texts) > 1 else 0):
            self.put(node, "element dropped", "{" + ", ".join(texts[:number] + texts[number + 1 :]) + "}")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        if not _is_text(node.slice):  # another key is a KeyError
            self.visit(node.slice)

    def visit_Slice(self, node: ast.Slice) -> None:
        bounds = [self.text(bound) if bound else "" for bound in (node.lower, node.upper)]
        step = f":{self.text(node.step)}" if node.step else ""
        if node.lower:
            self.put(node, "bound dropped", f":{bounds[1]}{step}")
        if node.upper:
            self.put(node, "bound dropped", f"{bounds[0]}:{step}")
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """A text that is hashed, matched or a name: what is put into it, each dropped."""
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and len(node.values) > 1:
                self.put(part.value, "value dropped", "''")

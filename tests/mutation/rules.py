"""What a fault is, and which texts and calls have none: tables that faults.py reads."""

import ast

COMPARE = {
    ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"), ast.Eq: ("!=",),
    ast.NotEq: ("==",), ast.In: ("not in",), ast.NotIn: ("in",), ast.Is: ("is not",), ast.IsNot: ("is",),
}  # fmt: skip
BINARY = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "*", ast.Pow: "*",
    ast.LShift: ">>", ast.RShift: "<<", ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "|",
}  # fmt: skip
SIGN = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.MatMult: "@",
}  # fmt: skip
_PAIRS = (
    "argmax argmin", "max min", "amax amin", "any all", "sum mean", "floor ceil", "maximum minimum", "log exp",
    "sin cos", "tril triu", "cumsum cumprod", "lstrip rstrip", "startswith endswith", "softmax log_softmax",
    "add_ sub_", "fullmatch match", "search match", "partition rpartition", "expm1 exp", "zeros ones",
    "permutations combinations", "repeat_interleave repeat", "update clear", "median mean",
)  # fmt: skip
RENAMED: dict[str, list[str]] = {}
for _pair in _PAIRS:
    for _one, _other in (_pair.split(), _pair.split()[::-1]):
        RENAMED.setdefault(_one, []).append(_other)
# What may be left undone: `f(x)` becomes `x`, and `x.f(…)` too
FUNCTIONS = {
    "sorted", "abs", "sqrt", "cbrt", "float", "int", "round", "ceil", "floor", "reversed", "set", "exp", "log", "mixed",
    "frozenset", "shuffle", "normalised_question", "ratios", "log_softmax", "cumsum", "unique", "logit", "expit",
}  # fmt: skip
METHODS = {
    "float", "double", "copy", "clamp", "clone", "detach", "lower", "casefold", "strip", "eval", "abs", "sqrt", "exp",
    "log", "cumsum", "softmax", "log_softmax", "sort", "contiguous", "neg", "mul_", "to", "masked_fill", "tril",
    "removeprefix", "translate", "astype", "view", "int", "long", "bool", "transpose", "split", "encode", "rstrip",
    "lstrip", "ljust", "where", "requires_grad_", "require_complete",
}  # fmt: skip
SAYING = {"say", "print", "print_exception", "write_text", "add_argument", "add_column", "add_row", "warn", "warning"}
SHOWING = {"help", "description", "title", "desc", "citation", "inputs_description", "metavar"}
SAID = {"said", "title", "summary", "fix", "problems", "reason", "more", "verb", "floors", "whose", "noise", "counted"}
TELLING = {"_print", "_tell", "_some", "_shown", "_percent", "_milder"}  # functions that make words and nothing else
NOT_SWAPPED = {"isinstance", "getattr", "hasattr", "setattr", "print", "Counter", "field"}

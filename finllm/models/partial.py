"""Training without an adapter: some of the model's own weights, chosen by pattern.

A weight's name is a path, `transformer.h.11.ln_1.weight`. A pattern, in the shell's signs, stands for a run of its
parts: `h.11` is all of the last layer, `ln_*` every norm, `bias` every bias, `h.1?.attn` the attention of some layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import combinations

from transformers import PreTrainedModel

from finllm.errors import did_you_mean, raise_problems
from finllm.models.proofs import Proof


def matches(name: str, pattern: str) -> bool:
    """Whether a run of the parts of a weight's name is what the pattern stands for."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[i:j]), pattern) for i, j in combinations(range(len(parts) + 1), 2))


def choose_weights(model: PreTrainedModel, patterns: Sequence[str]) -> list[Proof]:
    """Let those weights of `model` train that one of the patterns names, and no others; all empty choices are refused.

    Weights that share memory, as a tied head and embedding, are one weight with two names.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    problems = [
        f"trainable names {pattern!r}, and no weight of this model is called so{did_you_mean(pattern, parts)}"
        for pattern in patterns
        if not any(matches(name, pattern) for name in names)
    ]
    if not patterns:
        problems = ["trainable is empty, so nothing would train"]
    if problems:
        problems[-1] += f"; the parts of their names are {', '.join(parts)}"
    raise_problems(problems, "trainable")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(matches(name, pattern) for pattern in patterns):
            parameter.requires_grad_(True)
    chosen = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for _, parameter in chosen)
    said = f"{count:,} numbers train, in {len(chosen):,} of the model's {len(names):,} weights"
    return [Proof("weights chosen", float(len(chosen)), float(len(names)), True, said)]

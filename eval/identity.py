"""What results are of: the model by content, data, template and settings; and whether they are there already."""

from __future__ import annotations

import argparse
from typing import Any

from eval.evaluated import predictions_of
from eval.metrics import bleu, number, rouge
from eval.models.fitting import Subject, examples_of
from eval.results import Results
from eval.sharing import processes
from eval.statistics.uncertainty import LEVEL, METHOD
from finllm.errors import UserError
from finllm.terminal import say


def wanted_of(subject: Subject, arguments: argparse.Namespace, left_out: set[str]) -> dict[str, Any]:
    """All that results come from: the model by content, the data, the settings, and how figures are computed."""
    examples = [example for example in examples_of(subject.dataset, arguments) if example["id"] not in left_out]
    reader = subject.reader()
    return {
        "hashes": reader.hashes(),
        "dataset": subject.dataset.hash,
        "split": [arguments.split],
        "examples": len(examples),
        "generated": len(examples) if arguments.max_generated is None else min(arguments.max_generated, len(examples)),
        "left out": sorted(left_out),
        "decoding": {"do_sample": False, "max_new_tokens": arguments.max_new_tokens},
        "template": reader.template.hash,
        "confidence": {"level": LEVEL, "method": METHOD},
        "signatures": {
            "rouge": rouge.SIGNATURE,
            "bleu": bleu.signature(bleu_tokenizer(examples)),
            **({"number": number.SIGNATURE} if any(map(number.wanted_of, examples)) else {}),
        },
    }


def bleu_tokenizer(examples: list[dict[str, str]]) -> str:
    """BLEU's, of all models evaluated on these examples and of the clean part of them."""
    return bleu.tokenizer_for(example["output"] for example in examples)


def already_evaluated(subject: Subject, wanted: dict[str, Any], split: str) -> None:
    """Say that the results are those of this very model, data and settings, or refuse to replace what they are of."""
    run, held = subject.run, Results.read(subject.run.path)
    if not held.hashes:
        raise UserError(
            f"{run.eval}/results.json does not say which weights were evaluated, as results of older versions do not, "
            "and cannot be told from those of another model; pass --overwrite to replace it"
        )
    counts = held.splits.get(split)
    found = {
        "hashes": held.hashes,
        "dataset": held.dataset["hash"],
        "split": list(held.splits),
        "examples": counts and counts.examples,
        "generated": counts and counts.generated,
        "left out": counts and counts.left_out,
        "decoding": held.decoding,
        "template": held.template["hash"],
        "confidence": held.confidence,
        "signatures": held.signatures,
    }
    other = []
    for key in wanted:
        was, now = found[key], wanted[key]
        if key == "hashes":  # each by its name, and as much of it as tells them apart
            parts = sorted(part for part in {*was, *now} if was.get(part) != now.get(part))
            other += [f"{part} {str(was.get(part))[:60]}, now {str(now.get(part))[:60]}" for part in parts]
        elif was != now:
            other.append(f"{key} {was}, now {now}")
    if other:
        raise UserError(f"{run.eval}/results.json was made with {'; '.join(other)}; pass --overwrite to replace it")
    predictions_of(run.path, split, held.splits[split])  # damaged ones are no evaluation
    if processes().is_main_process:
        say(f"{run.path} is evaluated; nothing to do")

"""The model card of a merged run: what it is, how to run it, what it reached, what the audits said, what was proved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finllm.errors import UserError, visible
from finllm.files import read_json
from finllm.models.find import weights_hash
from finllm.models.proofs import Proof
from finllm.run_dir import RunDir

SHOWN = ("bits_per_byte", "perplexity", "nll_per_token", "rougeL", "bleu", "stop_rate")


def of_merged(run: RunDir, name: str, dtype: str, into: str, proofs: Sequence[Proof]) -> str:
    """`README.md` of a plain model in a folder called `name`."""
    summary, origin = run.summary(), run.provenance()
    base, method = _line(summary.get("base_model")), _line(summary["method"])
    made = f"{into[0].upper()}{into[1:]}" if into else "All of its weights"
    versions = ", ".join(f"{package} {version}" for package, version in origin.get("packages", {}).items())
    earlier = [f"- {_line(proof['said'])}{'' if proof['passed'] else ' (does not hold)'}" for proof in run.proofs()]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [finllm, sft, {method}]
---

# {_line(name)}

`{base}`, fine-tuned ({method}) on financial instructions with FinLLM, as one plain model. {made}, in {dtype}.

    transformers serve {_line(name)}
    finllm generate {_line(name)} "What is an index fund?"

The chat template is the one that it was trained in, and `generation_config.json` names the tokens that end an answer.

## Results

{_results(run)}

## What was proved

{chr(10).join(f"- Merged: {_line(proof.said)} (limit {proof.limit:g})" for proof in proofs)}
{chr(10).join(earlier)}

Dataset `{_line(origin.get("dataset_hash"))[:16]}`, base model `{_line(origin.get("base_model_hash"))[:80]}`. Made with
{_line(versions)}.
Answers are not financial advice.
"""


def _line(text: object) -> str:
    """What came from files, on one line, as a page may show it."""
    return visible(" ".join(str(text).split()), lines=False)


def _results(run: RunDir) -> str:
    """Figures with their intervals and the audits, of results of these very weights; else what is missing."""
    path = run.eval / "results.json"
    if not path.exists():
        return f"It was not evaluated before this was written (`python eval/run.py {_line(run.path.name)}`)."
    held = read_json(path)
    try:
        if held["hashes"].get("weights") != weights_hash(run.model):
            return "Its results are of other weights than these, and are left out; evaluate the run again."
        level = f"{held['confidence']['level']:.0%} interval"
        lines = [f"| split | examples | metric | value | {level} |", "|---|--:|---|--:|---|"]
        for split, content in held["splits"].items():
            for metric in SHOWN:
                found = content["metrics"].get(metric)
                if found:
                    interval = f"{_number(found['low'])} – {_number(found['high'])}"
                    count = f"{content['examples']:,}" if metric in SHOWN[:3] else f"{content['generated']:,}"
                    lines.append(f"| {_line(split)} | {count} | {metric} | {_number(found['value'])} | {interval} |")
        audits = [
            f"- {_line(name)}: {'passed' if audit['passed'] else '**failed**'}. {_line(audit['summary'])}"
            for name, audit in held["audits"].items()
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not what eval/run.py writes ({type(error).__name__}: {error}); evaluate the run again: python "
            f"eval/run.py {run.path} --overwrite"
        ) from None
    return "\n".join([*lines, "", "Audits:", "", *audits])


def _number(value: Any) -> str:
    return f"{float(value):.4g}"

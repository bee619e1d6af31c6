"""What a training run tells the person who started it: before, what will be learned; after, what came out."""

from __future__ import annotations

import re
from typing import Any

from rich.table import Table

from finllm.errors import at_most
from finllm.files import read_json, write_text
from finllm.run_dir import RunDir
from finllm.terminal import Terminal
from finllm.text.tokens import LengthReport

# Settings by which no run takes other time or memory, as a plan counts them
NOT_IN_A_PLAN = (
    "output_dir|run_name|learning_rate|.*seed|lr_scheduler.*|warmup.*|weight_decay|adam_.*|.*eval.*|save_.*|log.*|"
    "report_to|disable_tqdm|early_stopping_.*|load_best_.*|metric_for_.*|greater_.*|dataset_test_split"
)
SHOWN_DROPS = 3


def print_lengths(reports: dict[str, LengthReport]) -> None:
    """The table of every split: rows, tokens, what `max_length` cut, and which rows were dropped and why."""
    console = Terminal()
    table = Table(title="What will be read and learned", title_justify="left")
    table.add_column("")
    for split in reports:
        table.add_column(split, justify="right")
    for name, number_of in (
        ("rows", lambda report: len(report.lengths)),
        ("tokens a row, median", lambda report: sorted(report.lengths)[len(report.lengths) // 2]),
        ("tokens a row, longest", lambda report: max(report.lengths)),
        ("supervised tokens", lambda report: report.supervised_tokens),
        ("rows cut by max_length", lambda report: report.truncated_rows),
        ("response tokens lost by it", lambda report: report.lost_tokens),
        ("rows that spell a control token, kept as text", lambda report: report.spells_control),
        ("rows dropped", lambda report: len(report.dropped)),
    ):
        table.add_row(name, *(f"{number_of(report):,}" for report in reports.values()))
    console.print(table)
    for split, report in reports.items():
        for id, reason in report.dropped[:SHOWN_DROPS]:
            console.print(f"  {split} {id} dropped: {reason}", soft_wrap=True)
        if len(report.dropped) > SHOWN_DROPS:
            console.print(f"  … and {len(report.dropped) - SHOWN_DROPS:,} more rows of {split}")


def print_summary(run: RunDir) -> None:
    """Validation loss before and after, time, rate, memory, trainable share, and the next command."""
    summary = run.summary()
    of = f" of {summary['base_model']}" if summary["base_model"] else ""
    table = Table(title=f"{summary['name']}: {summary['method']}{of}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    planned, why = _plan_of(run)

    def beside(key: str, text: str) -> str:
        """`text` of a measured figure, with how far it is from the plan's."""
        return f"{text} ({summary[key] / planned[key] - 1:+.0%} of the plan)" if key in planned else text

    share = summary["trainable_parameters"] / summary["total_parameters"]
    for name, value in (
        ("validation loss before", _nats(summary["first_validation_loss"])),
        ("validation loss after", _loss_after(summary)),
        ("best validation loss", _nats(summary["best_validation_loss"])),
        ("training time", beside("train_seconds", f"{summary['train_seconds']:,.0f} s")),
        ("rate", beside("tokens_per_second", f"{summary['tokens_per_second']:,.0f} tokens/s")),
        ("proofs, before and after", f"{summary['proof_seconds']:,.1f} s"),
        ("peak memory", beside("peak_memory_bytes", f"{summary['peak_memory_bytes'] / 2**30:.1f} GiB")),
        ("trainable", f"{summary['trainable_parameters']:,} of {summary['total_parameters']:,} ({share:.2%})"),
    ):
        table.add_row(name, value)
    console = Terminal()
    console.print(table)
    if why:
        console.print(why, soft_wrap=True)
    console.print(f"Loss curves: {run.path}/loss.png\nNext: python eval/run.py {run.path}", soft_wrap=True)


def _plan_of(run: RunDir) -> tuple[dict[str, Any], str]:
    """What `finllm plan` left in the run dir, empty where that is of another run, and then why."""
    if not (run.path / "plan.json").exists():
        return {}, ""
    plan, config = read_json(run.path / "plan.json"), run.config()
    planned = plan.get("config", {})
    other = [
        f"{key} {planned[key]} and not {value}"
        for key, value in config.items()
        if planned.get(key, value) != value and not re.fullmatch(NOT_IN_A_PLAN, key)
    ]
    if other:
        return {}, f"plan.json is of another run, with {', '.join(at_most(other))}: it is not compared"
    return plan, ""


def _nats(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f} nats per token"


def _loss_after(summary: dict[str, Any]) -> str:
    """Of the model that was saved, which may be of an earlier step than the last one."""
    step, loss = summary["saved_step"], _nats(summary["final_validation_loss"])
    return loss if step == summary["steps"] else f"{loss} (step {step:,}, the best saved)"


def already_finished(run: RunDir) -> None:
    Terminal().print(f"{run.path} is finished; nothing to do", soft_wrap=True)


def proved(run: RunDir) -> str:
    """The lines of `proofs.json` as a list of Markdown; what was tried and not taken is among them, and marked."""
    return "\n".join(f"- {proof['said']}{'' if proof['passed'] else ' (does not hold)'}" for proof in run.proofs())


def write_model_card(run: RunDir, summary: dict[str, Any]) -> None:
    """`model/README.md`: what was trained from what, with which result, and how to use it."""
    origin = run.provenance()
    versions = ", ".join(f"{package} {version}" for package, version in origin["packages"].items())
    write_text(
        run.model / "README.md",
        f"""---
library_name: {"transformers" if summary["method"] == "full" else "peft"}
pipeline_tag: text-generation
tags: [finllm, sft, {summary["method"]}]
---

# {summary["name"]}

`{summary["base_model"]}`, fine-tuned ({summary["method"]}) on financial instructions with FinLLM.

| | |
|---|---|
| validation loss before | {_nats(summary["first_validation_loss"])} |
| validation loss after | {_loss_after(summary)} |
| trainable parameters | {summary["trainable_parameters"]:,} of {summary["total_parameters"]:,} |
| steps | {summary["steps"]:,} |
| dataset | `{origin["dataset_hash"][:16]}` |
| base model | `{origin["base_model_hash"][:16]}` |
| template | `{origin["template_hash"][:16]}` |

Loss is on responses and their EOS only. Answers are not financial advice.

## What was proved

{proved(run)}

    finllm generate {run.path} "What is an index fund?"

Made with {versions}.
""",
    )

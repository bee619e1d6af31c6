"""Train a small transformer from nothing on a dataset dir.

    python baselines/scratch/train.py --config recipes/configs/demo_scratch.yaml [--dataset_name DATASET_DIR]
        [--output_dir runs/NAME] [--resume auto] [any key of config.py]

On several GPUs: accelerate launch baselines/scratch/train.py … ; the steps are the same on any number of processes.
The run dir it leaves in output_dir is described in finllm/run_dir.py.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the checkout takes the place of this file's folder, whose `data.py` is no library
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from baselines.scratch.checkpoint import Progress, copy_of, load_checkpoint, patience_used
from baselines.scratch.config import TrainConfig, read_config
from baselines.scratch.data import Example, encode_rows, refuse_conversations, truncate
from baselines.scratch.loop import Training, adamw
from baselines.scratch.model import Transformer
from baselines.scratch.proofs import prove_causality, prove_saved
from baselines.scratch.tokenizer import Tokenizer
from finllm.cpu import machine
from finllm.data.dataset_dir import DatasetDir
from finllm.errors import Gathering, UserError, run_command
from finllm.files import read_jsonl, write_json, write_jsonl, write_text
from finllm.models.proofs import PROVING
from finllm.provenance import provenance
from finllm.run_dir import RunDir
from finllm.terminal import Terminal
from finllm.text.prompts import TEMPLATE_HASH
from finllm.training import checkpoints
from finllm.training.going_on import GoingOn
from finllm.training.plots import plot_loss
from finllm.training.summary import already_finished, print_summary, proved


def main() -> None:
    asked = read_config(sys.argv[1:], "Train a small transformer from nothing on a dataset dir.")
    if asked.dry_run:
        gathering = Gathering()
        with gathering:
            check_arithmetic(asked.config)
        with gathering:
            data_of(asked.config)
        gathering.raise_all()
    else:
        train(asked.config, asked.resume, asked.stop_at_step)


def train(config: TrainConfig, resume: bool = False, stop_at_step: int | None = None) -> None:
    """Train, and leave a complete run dir in `config.output_dir`; with `resume`, go on from its newest checkpoint.

    After `stop_at_step`, a checkpoint and a validation loss of it, `SystemExit` with 0.
    """
    run = RunDir(config.output_dir)
    run.check_place(resume)
    machine.use_all_cores()
    machine.keep_freed_memory()
    set_seed(config.seed)
    # bf16 is for the steps alone, see Training.step; told nothing, accelerate gives a CPU no second process.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    console = Terminal(quiet=not accelerator.is_main_process)
    check_arithmetic(config)

    # Text to tokens, by a tokenizer that has seen the training split and nothing else
    dataset, rows = data_of(config)
    if resume and (run.model / "tokenizer.model").exists():
        tokenizer = Tokenizer.load(run.model)
    else:
        texts = (row[column] for row in rows["train"] for column in ("instruction", "input", "output"))
        tokenizer = Tokenizer.train(texts, config.vocabulary_size, config.tokenizer)

    # What this run is made from. Where the folder holds a run already, it must be the same
    settings = settings_of(run, config, resume)
    origin = provenance(
        gpu=machine.gpu_name(),
        dataset_hash=dataset.hash,
        base_model_hash=None,
        tokenizer_hash=tokenizer.hash,
        template_hash=TEMPLATE_HASH,
        seed=config.seed,
        processes=accelerator.num_processes,
    )
    going_on = GoingOn.of(run, settings, origin, resume, patience_used, any_processes=True)
    accelerator.wait_for_everyone()  # each has looked before one writes
    if going_on.finished:
        if accelerator.is_main_process:
            already_finished(run)
        return

    whole = encode_rows(tokenizer, rows["train"], config.variant, config.loss_on_prompt)
    examples = cut("train", whole, config, console)
    # The validation loss is that of response and EOS, whatever is trained on: any two runs can be compared.
    validation = cut("validation", encode_rows(tokenizer, rows["validation"], config.variant), config, console)

    if accelerator.is_main_process:
        going_on.start(run, settings, resume)
        tokenizer.save(run.model)
        report = tokenizer.report(
            [example.source + example.ids[bool(example.source) :] for example in whole], config.max_length
        )
        write_json(run.model / "tokenizer_report.json", report)
    accelerator.wait_for_everyone()

    # The model, from random weights or from the newest checkpoint
    model = Transformer(config.model(tokenizer.vocabulary_size)).to(accelerator.device)
    proving_before = PROVING.seconds
    proofs = [prove_causality(model, tokenizer, rows["validation"])]
    if accelerator.is_main_process:
        run.write_proofs(proof.as_json() for proof in proofs)
    optimizer = adamw(model, config)
    progress, best = Progress(), copy_of(model)
    place = checkpoints.newest(run.checkpoints) if resume else None
    accelerator.wait_for_everyone()
    if place:
        progress, best = load_checkpoint(place, model, optimizer)
    if accelerator.is_main_process:  # every step is in metrics.jsonl once: the lines after the checkpoint come again
        checkpoints.set_damaged_aside(run.checkpoints, place)
        lines = run.metrics_so_far() if place else []
        write_jsonl(run.metrics, [line for line in lines if line["step"] <= progress.step])

    training = Training(config, run, accelerator, console, model, optimizer, examples, validation, progress, best,
                        stop_at_step)  # fmt: skip
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{parameters:,} parameters, {len(examples):,} examples, {training.total_steps:,} steps on "
        f"{accelerator.num_processes} x {accelerator.device.type}" + (f", from step {progress.step:,}" if place else "")
    )
    training.run_to_end()

    if accelerator.is_main_process:
        model.save(run.model, training.best)
        model.load_state_dict(training.best)
        proofs.append(prove_saved(model, run.model, rows["validation"]))
        run.write_proofs(proof.as_json() for proof in proofs)
        write_text(run.model / "README.md", model_card(run, config, progress, parameters))
        plot_loss(run)
        best = progress.best_validation_loss
        validated = [line for line in read_jsonl(run.metrics) if "validation_loss" in line]
        run.finish(
            {
                "name": run.path.resolve().name,
                "method": "scratch",
                "base_model": None,
                "trainable_parameters": parameters,
                "total_parameters": parameters,
                "proof_seconds": PROVING.seconds - proving_before,
                "train_seconds": progress.train_seconds,
                "tokens_per_second": progress.tokens / progress.train_seconds,
                "peak_memory_bytes": progress.peak_memory_bytes,
                "steps": progress.step,
                "epochs": progress.epoch,
                "supervised_tokens": progress.supervised_tokens,
                "first_validation_loss": progress.first_validation_loss,
                "final_validation_loss": best,  # of the model that is saved
                "best_validation_loss": best,
                "saved_step": next(line["step"] for line in validated if line["validation_loss"] == best),
            }
        )
        print_summary(run)
    accelerator.end_training()


def check_arithmetic(config: TrainConfig) -> None:
    """Refuse bfloat16 where it would be slow."""
    if config.bf16 and not machine.bf16_is_fast():
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        raise UserError(
            f"bf16 is true and this {device.type} has no arithmetic for it; it needs a CUDA GPU that has "
            "bfloat16, or a CPU with AMX or AVX512-BF16; set bf16 to false"
        )


def data_of(config: TrainConfig) -> tuple[DatasetDir, dict[str, list[dict[str, Any]]]]:
    """The dataset and the rows of its training and validation splits; refuse one that cannot be trained on."""
    dataset = DatasetDir(config.dataset_name)
    rows = {}
    for split in ("train", "validation"):
        dataset.require_rows(split)
        rows[split] = dataset.rows(split)
        refuse_conversations(rows[split], f"the {split} split of {dataset.path}")
    return dataset, rows


def cut(split: str, examples: list[Example], config: TrainConfig, console: Terminal) -> list[Example]:
    """The examples cut to `max_length`; says what was lost, and refuses a split of which nothing is left."""
    kept, truncated, dropped = truncate(examples, config.max_length)
    if truncated or dropped:
        console.print(
            f"{split}: {truncated:,} of {len(examples):,} examples cut to max_length, {config.max_length} tokens; "
            f"{dropped:,} more dropped, whose prompt alone is as long"
        )
    if not kept:
        shortest = min(example.length for example in examples)
        raise UserError(
            f"max_length is {config.max_length} and no prompt of the {split} split leaves room for a response: the "
            f"shortest example has {shortest:,} tokens; raise max_length"
        )
    return kept


def settings_of(run: RunDir, config: TrainConfig, resume: bool) -> dict[str, Any]:
    """What config.yaml holds. A key that came after the run in this folder began has its default there."""
    settings = dataclasses.asdict(config)
    if resume and (run.path / "config.yaml").exists():
        held, defaults = run.config(), vars(TrainConfig(config.dataset_name, config.output_dir))
        settings = {key: value for key, value in settings.items() if key in held or value != defaults[key]}
    return settings


KINDS = {
    "as_published": "A bidirectional encoder that sees the token it is to predict: a failure kept to be studied",
    "causal": "A decoder-only transformer",
    "seq2seq": "An encoder-decoder transformer",
}


def model_card(run: RunDir, config: TrainConfig, progress: Progress, parameters: int) -> str:
    return f"""---
pipeline_tag: text-generation
tags: [finllm, scratch]
---

# {run.path.resolve().name}

{KINDS[config.variant]}, trained from random weights on financial instructions with FinLLM.

| | |
|---|---|
| variant | {config.variant} |
| parameters | {parameters:,} |
| layers, width, heads, feed-forward | {config.layers}, {config.width}, {config.heads}, {config.feed_forward} |
| tokenizer | SentencePiece {config.tokenizer}, {config.vocabulary_size:,} pieces |
| steps | {progress.step:,} |
| best validation loss | {progress.best_validation_loss:.4f} nats per token |

Loss is on responses and their EOS only. The model is far too small to be trusted: its answers read like finance and
are mostly wrong. They are not financial advice.

## What was proved

{proved(run)}

    python baselines/scratch/generate.py {run.path} "What is an index fund?"
"""


if __name__ == "__main__":
    run_command(main)

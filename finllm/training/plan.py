"""What a run will need, before it is started: `finllm plan --config X.yaml [any flag of the recipe]`.

A model is its embeddings, its head and L equal layers. So the same model with one layer and with m, half of them,
their weights random, is measured on batches of the run's own rows: the difference is m − 1 layers. No base weights are
loaded.

    seconds a step   = s₁ + (L − 1)(sₘ − s₁)/(m − 1) + optimizer
                                            s: forward and backward, mean over batches of the faster of two goes
    optimizer        = trainable parameters · seconds a parameter, measured on the same models, clipping included
    seconds a run    = steps · seconds a step + w₁ + (L − 1)(wₘ − w₁)/(m − 1)
                                            w: what the first two steps take more than later ones
    peak memory      = pₘ + (L − m) · (weights + optimizer state + max(activations, gradients) + gₘ/m)
                                            p: resident memory's peak, first go only; the others: bytes a layer
                                            g: how much of p came after the largest batch, times the frozen share

The measured peak holds all there is: libraries, rows, the vocabulary's part, and what the allocator keeps in between.
It is no exact figure, so it is not multiplied: what a layer adds is counted, its activations as the tensors that
autograd keeps for backward, which frees a layer's activations as it forms its gradients. Batches of other sizes leave
gaps between buffers, more of them in more layers, which only gradients as large as the model fill. The first step
faults its memory in and compiles kernels, which a short run feels. Where the peak is more than the machine has, the
plan says which flag trains the same in less.

Where a run would use a GPU, the same is measured on it, of rows as they are padded there, and peak memory is the GPU's
own. On n GPUs nothing is measured. A step is its operations at an assumed share of the data sheet's rate, and the part
of the gradients' ring all-reduce, 2(n − 1)/n of their bytes (Patarasuk and Yuan 2009), that backward, two thirds of a
step, does not hide. docs/scaling.md follows the arithmetic through an example.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from transformers.trainer_pt_utils import get_length_grouped_indices

from finllm.cpu import machine
from finllm.data.prepare import resolve
from finllm.errors import UserError
from finllm.files import cache_dir, write_json
from finllm.models.configs import causal_config
from finllm.models.find import load_tokenizer, resolve_base_model
from finllm.models.settings import not_planned
from finllm.run_dir import RunDir
from finllm.terminal import Terminal
from finllm.text.templates import template_of
from finllm.text.tokens import IGNORED, tokenize
from finllm.training.batches import batches_of_epoch
from finllm.training.config import parse, resolved
from finllm.training.probe import TIMED, probed, way_on

GPUS = (1, 2, 4, 8)
GPU_FLOPS = 0.4 * 989e12  # 40 % of an H100's dense bfloat16 rate by its data sheet
LINK = 100e9  # bytes a second between GPUs that a ring reaches; NVLink gives more, PCIe 4 some 25e9
MOST = 12  # layers of the larger of the two small models, which has half the model's where that is less
DRAWS = 400  # batches are looked at, to know their mean and the largest


@dataclass(frozen=True)
class Plan:
    """A prediction. Bytes, seconds, and tokens as the run's own metrics count them."""

    total_parameters: int
    trainable_parameters: int
    rows: int
    tokens: int  # of an epoch
    supervised_tokens: int
    steps: int
    step_seconds: float
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    memory_bytes: int  # that the machine has, or a container leaves of it
    activation_checkpointing: bool
    flops_per_step: float
    machine_flops: float  # a second, of products in the run's own dtype
    dtype: str  # that one: float32, or bfloat16 under autocast
    device: str  # the name of what computed


def main(arguments: list[str]) -> None:
    """Predict a run of recipes/sft.py from its flags, print it, and leave plan.json in the run dir."""
    recipe, training, model_arguments = parse(arguments)
    config = resolved(recipe, training, model_arguments)
    RunDir(training.output_dir).refuse_links()
    if unknown := not_planned(model_arguments):
        raise UserError(f"finllm plan measures some layers and adds the others up, and {unknown}; plan it without")
    on_cpu = training.device.type == "cpu"
    if not on_cpu and (count := torch.cuda.device_count()) > 1:
        raise UserError(
            f"this machine has {count} GPUs and finllm plan measures one; run it with CUDA_VISIBLE_DEVICES=0, or with "
            "--use_cpu true for a CPU's plan"
        )
    if recipe.keep_freed_memory and on_cpu:
        machine.keep_freed_memory()
    base = resolve_base_model(model_arguments.model_name_or_path, weights=False)
    causal_config(base, model_arguments.model_revision)  # refused before the data is read
    tokenizer = load_tokenizer(base, model_arguments.model_revision)
    split = resolve(recipe.dataset_name, cache_dir() / "datasets").split(recipe.dataset_train_split)
    if recipe.max_train_samples:
        split = split.shuffle(training.seed).select(range(min(recipe.max_train_samples, len(split))))
    template = template_of(recipe.template, tokenizer, model_arguments.model_name_or_path)
    prompt_loss = training.completion_only_loss is False
    rows, report = tokenize(
        tokenizer, split, training.max_length, prompt_loss, template=template, loss_on=recipe.loss_on
    )
    plan = predict(base, recipe, training, model_arguments, rows.to_list(), report.supervised_tokens)
    show(plan)
    if training.output_dir:
        write_json(RunDir(training.output_dir).path / "plan.json", asdict(plan) | {"config": config})


def predict(base: str, recipe, training, model_arguments, rows: list[dict[str, Any]], supervised: int) -> Plan:
    """Measure the model with few and more layers on a batch of `rows`, and add up."""
    config = causal_config(base, model_arguments.model_revision)
    layers = config.num_hidden_layers
    lengths = [len(row["input_ids"]) for row in rows]
    accumulated = training.gradient_accumulation_steps
    epoch = _batches(training, lengths)
    steps = round(training.num_train_epochs * math.ceil(len(epoch) / accumulated))
    if training.max_steps > 0:
        steps = training.max_steps
    drawn = [[rows[index] for index in batch] for batch in epoch[: min(DRAWS, steps * accumulated)]]
    sizes, tokens = zip(*map(way_on(training.device).size, drawn), strict=True)
    average = sum(sizes) / len(sizes)
    by_size = [drawn[number] for number in sorted(range(len(drawn)), key=sizes.__getitem__)]
    timed = [by_size[(2 * part + 1) * len(by_size) // (2 * TIMED)] for part in range(TIMED)]
    half = max(2, min(MOST, layers // 2))
    few, more = (probed(config, count, recipe, training, model_arguments, timed, by_size[-1]) for count in (1, half))

    def extrapolate(first: float, second: float) -> float:
        return first + (layers - 1) * (second - first) / (half - 1)

    def in_more_layers(name: str) -> float:
        """Bytes that the layers beyond those measured add."""
        return (layers - half) * (getattr(more, name) - getattr(few, name)) / (half - 1)

    trainable = round(extrapolate(few.trainable, more.trainable))
    total = round(extrapolate(few.total, more.total))
    optimizer = trainable * more.optimizer_seconds / more.trainable
    seconds = accumulated * extrapolate(few.seconds, more.seconds) + optimizer
    head = config.vocab_size * config.hidden_size
    labels = sum(label != IGNORED for batch in drawn for row in batch for label in row["labels"]) / len(drawn)
    body = total - head * (1 if config.tie_word_embeddings else 2)
    passes = 4 if model_arguments.use_peft else 6
    passes += 2 if training.activation_checkpointing else 0  # the forward pass again
    return Plan(
        total_parameters=total,
        trainable_parameters=trainable,
        rows=len(rows),
        tokens=sum(lengths),
        supervised_tokens=supervised,
        steps=steps,
        step_seconds=seconds,
        train_seconds=seconds * steps + max(0.0, extrapolate(few.first_seconds, more.first_seconds)),
        tokens_per_second=accumulated * sum(tokens) / len(tokens) / seconds,
        peak_memory_bytes=round(
            more.peak_memory_bytes
            + in_more_layers("held_bytes")
            + max(in_more_layers("activation_bytes"), in_more_layers("gradient_bytes"))
            + more.gap_bytes * (layers - half) / half * (1 - trainable / total)
        ),
        memory_bytes=machine.memory_to_train_in(),
        activation_checkpointing=training.activation_checkpointing,
        flops_per_step=accumulated * passes * (body * average + head * labels),
        machine_flops=machine.matrix_product_rate(torch.bfloat16 if training.bf16 else torch.float32),
        dtype="bfloat16" if training.bf16 else "float32",
        device=machine.name(),
    )


def _batches(training, lengths: list[int]) -> list[list[int]]:
    """The batches of the run's first epoch, or some that are made as they are."""
    size, generator = training.per_device_train_batch_size, torch.Generator().manual_seed(training.seed)
    if training.max_tokens_per_batch is not None:
        return batches_of_epoch(lengths, training.max_tokens_per_batch, training.seed, epoch=0)
    if training.train_sampling_strategy == "group_by_length":  # the longest rows come first
        order = get_length_grouped_indices(lengths, size * training.gradient_accumulation_steps, generator=generator)
    else:
        order = torch.randperm(len(lengths), generator=generator).tolist()
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def on_gpus(plan: Plan, count: int, flops: float = GPU_FLOPS, link: float = LINK) -> tuple[int, float]:
    """Steps and seconds of the same epochs on `count` GPUs, each with the plan's batch. Assumed rates, not measured."""
    steps = -(-plan.steps // count)
    compute = plan.flops_per_step / flops
    reduce = 2 * (count - 1) / count * 4 * plan.trainable_parameters / link
    return steps, steps * (compute + max(0.0, reduce - 2 / 3 * compute))


def show(plan: Plan) -> None:
    """The prediction as tables: the run on this machine, and the arithmetic on several GPUs."""
    table = Table(title=f"Planned, measured on {plan.device}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("trainable", f"{plan.trainable_parameters:,} of {plan.total_parameters:,}"),
        ("rows, tokens, supervised tokens", f"{plan.rows:,}, {plan.tokens:,}, {plan.supervised_tokens:,}"),
        ("steps", f"{plan.steps:,}"),
        ("a step", f"{plan.step_seconds:.2f} s, {plan.flops_per_step / 1e9:,.0f} GFLOP"),
        (f"this machine's {plan.dtype} products", f"{plan.machine_flops / 1e9:,.0f} GFLOP/s"),
        ("of which the run reaches", f"{plan.flops_per_step / plan.step_seconds / plan.machine_flops:.0%}"),
        ("training time", f"{plan.train_seconds:,.0f} s"),
        ("rate", f"{plan.tokens_per_second:,.0f} tokens/s"),
        ("peak memory", f"{plan.peak_memory_bytes / 2**30:.1f} of {plan.memory_bytes / 2**30:.1f} GiB"),
    ):
        table.add_row(name, value)
    console = Terminal()
    console.print(table)
    if plan.peak_memory_bytes > plan.memory_bytes:
        fix = "halve per_device_train_batch_size and double gradient_accumulation_steps, or lower max_length"
        if not plan.activation_checkpointing:
            fix = f"add --activation_checkpointing true and plan again; where that is not enough, {fix}"
        console.print(f"This will not fit: {fix}.", soft_wrap=True)
    table = Table(title="On H100s, on paper: 40 % of 989 TFLOP/s and 100 GB/s assumed", title_justify="left")
    for column in ("GPUs", "steps", "training time"):
        table.add_column(column, justify="right")
    for count in GPUS:
        steps, seconds = on_gpus(plan, count)
        table.add_row(str(count), f"{steps:,}", f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s")
    console.print(table)

"""Training speed, side by side: this suite's recipe and its peers, same model, same rows, same rows a step.

    python benchmarks/engine.py --model_name_or_path DIR --dataset_name FILE [--rounds 3]

Every variant is a process of its own, and the rounds go through all of them in turn, so that a slow minute of the
machine hits each alike. The first steps are warm-up. Printed: the median over rounds, its spread, and ratios.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import json
import statistics
import tempfile
import time

from records import keep
from rich.console import Console
from rich.table import Table
from turns import by_turns, common_flags, set_up

from finllm.cpu import machine
from finllm.errors import run_command
from finllm.files import cache_dir

VARIANTS = {
    "trl": "(a) TRL as it comes",
    "trl_best": "(b) TRL, best flags",
    "trl_best_kept": "(b) with our allocator settings",
    "notebook": "(c) the notebook: Trainer, padded to 350",
    "ours": "(d) ours",
    "trl_best_lora": "(b) LoRA r=16",
    "ours_lora": "(d) ours, LoRA r=16",
}
BATCH, LENGTH = 8, 512


def main() -> None:
    parser = argparse.ArgumentParser(description="Time recipes/sft.py against its peers.")
    common_flags(parser)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are measured")
    parser.add_argument("--steps", type=int, default=4, help="measured steps")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return
    console = Console()
    measured = by_turns({variant: VARIANTS[variant] for variant in arguments.variants}, arguments.rounds, console)
    products = str(products_dtype()).removeprefix("torch.")
    show(measured, products, console)
    path = keep("engine", measured, arguments.output, products=products, rounds=arguments.rounds)
    console.print(f"wrote {path}", soft_wrap=True)


def show(measured: dict[str, list[dict]], dtype: str, console: Console) -> None:
    """Median supervised tokens a second with spread, ratio to (b), peak memory, and the share of the product rate."""
    rates = {variant: [run["supervised"] / run["seconds"] for run in runs] for variant, runs in measured.items()}
    # Measured beside every variant: a shared machine is not the same from one minute to the next.
    products = statistics.median(run["matrix_product_flops"] for runs in measured.values() for run in runs)
    place = f"{machine.name()}, {machine.cores()} cores"
    table = Table(title=f"{place}, {products / 1e9:.0f} GFLOP/s of {dtype} products")
    for column in ("variant", "tokens/s", "low – high", "to (a)", "to (b)", "memory", "of products"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant, runs in measured.items():
        rate = statistics.median(rates[variant])
        peers = ("trl", "trl_best_lora" if variant.endswith("lora") else "trl_best")
        ratios = [f"{rate / statistics.median(rates[peer]):.2f}" if peer in rates else "–" for peer in peers]
        memory = statistics.median(run["peak_memory_bytes"] for run in runs)
        share = statistics.median(run["flops"] / run["seconds"] / run["matrix_product_flops"] for run in runs)
        table.add_row(
            VARIANTS[variant], f"{rate:.0f}", f"{min(rates[variant]):.0f} – {max(rates[variant]):.0f}", *ratios,
            f"{memory / 2**30:.1f} GiB", f"{share:.0%}",
        )  # fmt: skip
    console.print(table)


def measure(arguments: argparse.Namespace) -> dict:
    """One variant's steps after the warm-up: seconds, supervised tokens, needed operations; and peak memory."""
    from transformers import AutoModelForCausalLM, set_seed

    from finllm.data.prepare import resolve
    from finllm.models.base import count_parameters
    from finllm.models.find import load_tokenizer, resolve_base_model
    from finllm.text.tokens import tokenize

    variant = arguments.child
    set_up(ours=variant.startswith("ours") or variant.endswith("kept"))
    base = resolve_base_model(arguments.model_name_or_path)
    tokenizer = load_tokenizer(base)
    split = resolve(arguments.dataset_name, cache_dir() / "datasets").split("train").shuffle(0)
    split = split.select(range(BATCH * (arguments.warmup + arguments.steps)))
    rows, _ = tokenize(tokenizer, split, LENGTH)
    set_seed(0)
    # A frozen base is in bfloat16 where that is fast, as recipes/sft.py has it, for all alike
    dtype = "bfloat16" if variant.endswith("lora") and machine.bf16_is_fast() else "float32"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(variant, model, tokenizer, dataset_for(variant, split, rows, tokenizer), folder)
        products = [machine.matrix_product_rate(products_dtype())]
        measured = timed(trainer, arguments.warmup)
        products.append(machine.matrix_product_rate(products_dtype()))
    needed = operations(model, rows, count_parameters(trainer.model).trainable if variant.endswith("lora") else None)
    supervised = sum(supervised_of(rows))
    return {
        "seconds": measured["seconds"],
        "supervised": supervised * measured["share"],
        "flops": needed * measured["share"],
        "matrix_product_flops": statistics.mean(products),
        "peak_memory_bytes": measured["peak_memory_bytes"],
    }


def supervised_of(rows) -> list[int]:
    """Of each row how many of its tokens teach."""
    return [sum(label != -100 for label in labels[1:]) for labels in rows["labels"]]


def operations(model, rows, adapter: int | None) -> float:
    """What training on the rows needs on any engine: no padding, and only supervised tokens through the head.

    `adapter` is the number of numbers that train beside a frozen model; without it the model itself trains.
    """
    lengths = [len(ids) for ids in rows["input_ids"]]
    head = model.config.vocab_size * model.config.hidden_size
    body = model.get_base_model().num_parameters() if hasattr(model, "get_base_model") else model.num_parameters()
    body -= head + (adapter or 0)
    needed = (6 if adapter is None else 4) * (body * sum(lengths) + head * sum(supervised_of(rows)))
    # Attention to what came before, forward and twice that backward, as Chowdhery et al. 2022, appendix B, but causal.
    needed += 6 * model.config.num_hidden_layers * model.config.hidden_size * sum(length**2 for length in lengths)
    return needed + 6 * (adapter or 0) * sum(lengths)


def products_dtype():
    """What this machine multiplies fastest: bfloat16 or float32."""
    import torch

    return torch.bfloat16 if machine.bf16_is_fast() else torch.float32


def dataset_for(variant: str, split, rows, tokenizer):
    """The same rows as each variant reads them: tokenized by us, prompt and completion, or text padded to 350."""
    from datasets import Dataset

    from finllm.text.prompts import build_prompt

    def whole(row):
        text = build_prompt(row["instruction"], row["input"]) + row["output"] + tokenizer.eos_token
        return tokenizer(text, truncation=True, max_length=350, padding="max_length")

    if variant.startswith("ours"):
        return rows
    if variant == "notebook":
        return split.map(whole, remove_columns=split.column_names)
    return Dataset.from_list(
        [{"prompt": build_prompt(row["instruction"], row["input"]), "completion": row["output"]} for row in split]
    )


def trainer_for(variant: str, model, tokenizer, dataset, folder: str, *, batch=BATCH, length=LENGTH, **flags):
    """The variant's trainer, one epoch of `dataset` ahead of it; `flags` are TrainingArguments over the common ones."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    from finllm.models.dropout import set_dropout
    from finllm.run_dir import RunDir
    from finllm.training.config import TrainingConfig
    from finllm.training.trainer import SupervisedTrainer

    common = {
        "output_dir": folder, "per_device_train_batch_size": batch, "num_train_epochs": 1, "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "use_cpu": not torch.cuda.is_available(), "disable_tqdm": True,
        "bf16": machine.bf16_is_fast(), "learning_rate": 1e-4, "seed": 0, **flags,
    }  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=True)
    if variant.startswith("ours"):
        if variant.endswith("lora"):
            set_dropout(model, 0.0)
            model = get_peft_model(model, lora)
        args = TrainingConfig(**common, max_length=length, eval_on_start=False)
        return SupervisedTrainer(
            model, run=RunDir(folder), args=args, train_dataset=dataset, processing_class=tokenizer
        )
    if variant == "notebook":
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        return Trainer(model, TrainingArguments(**common), collator, dataset)
    best = {} if variant == "trl" else {"activation_checkpointing": False, "train_sampling_strategy": "group_by_length"}
    return SFTTrainer(
        model,
        SFTConfig(**{**common, **best}, max_length=length),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora if variant.endswith("lora") else None,
    )


def timed(trainer, warmup: int = 1, clock=time.perf_counter) -> dict[str, float]:
    """Train; seconds of the steps after the warm-up, their share of the epoch's supervised tokens, and peak memory."""
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            times.append(clock())

        def on_step_end(self, *args, **kwargs):
            times.append(clock())

    supervised: list[int] = []
    loss = trainer.compute_loss

    def counting(model, inputs, *args, **kwargs):
        """Which rows a step had is known by their labels alone, whatever sampler and collator made the batch."""
        supervised.append(int((inputs["labels"] != -100).sum()))
        return loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    trainer.add_callback(Clock())
    trainer.train()
    return {
        "seconds": sum(
            end - begin for begin, end in zip(times[2 * warmup :: 2], times[2 * warmup + 1 :: 2], strict=True)
        ),
        "share": sum(supervised[warmup:]) / sum(supervised),
        "peak_memory_bytes": machine.peak_memory_bytes(),
    }


if __name__ == "__main__":
    run_command(main)

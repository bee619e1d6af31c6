"""The floor of a training step on this machine: its matrix products alone, at its own shapes, one after the other.

    python benchmarks/products.py --model_name_or_path DIR_OF_GPT2 --dataset_name ROWS

The batches are those of benchmarks/engine.py. Of each the products of every linear layer and of the head are made,
forward and backward, with weights of their own; attention's, an adapter's and all that is no product are left out. The
share is that of the operations that the task needs (benchmarks/engine.py) in the rate of 1,024³ products.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import time

import torch
from engine import BATCH, LENGTH, operations, products_dtype, supervised_of
from records import keep
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from turns import set_up

from finllm.cpu import joined, machine, processor
from finllm.cpu.products import product
from finllm.data.prepare import resolve
from finllm.errors import run_command
from finllm.files import cache_dir
from finllm.models.find import load_tokenizer, resolve_base_model
from finllm.text.tokens import tokenize
from finllm.threads import cores


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the products of training steps alone.")
    parser.add_argument("--model_name_or_path", required=True, help="a folder of GPT-2, random weights will do")
    parser.add_argument("--dataset_name", required=True, help="a dataset dir, or a source of rows")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", help="write the record here (default: a file in benchmarks/results/)")
    arguments = parser.parse_args()
    set_up(ours=True)
    base, dtype = resolve_base_model(arguments.model_name_or_path), products_dtype()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False)
    split = resolve(arguments.dataset_name, cache_dir() / "datasets").split("train").shuffle(0)
    rows, _ = tokenize(load_tokenizer(base), split.select(range(BATCH * (1 + arguments.steps))), LENGTH)
    batches = [[rows[at + number] for number in range(BATCH)] for at in range(0, len(rows), BATCH)]
    counts, seconds = supervised_of(rows), {"full": 0.0, "lora": 0.0}
    rates = [machine.matrix_product_rate(dtype)]
    for number, batch in enumerate(batches):
        tokens = joined.collate(batch)["input_ids"].shape[1]
        taken = of_step(model, tokens, sum(counts[number * BATCH :][:BATCH]))
        if number:  # the first warms up
            seconds = {method: seconds[method] + taken[method] for method in seconds}
    rates.append(machine.matrix_product_rate(dtype))
    measured = rows.select(range(BATCH, len(rows)))
    rate = sum(rates) / len(rates)
    shares = {
        "full": operations(model, measured, None) / seconds["full"] / rate,
        "lora": operations(model, measured, 1) / seconds["lora"] / rate,  # the adapter's own are left out
    }
    table = Table(title=f"{processor.name()}, {cores()} cores, {rate / 1e9:.0f} GFLOP/s of 1,024³ products")
    for column in ("products alone", "seconds a step", "of the rate"):
        table.add_column(column)
    for method, share in shares.items():
        table.add_row(method, f"{seconds[method] / arguments.steps:.2f}", f"{share:.0%}")
    console = Console()
    console.print(table)
    path = keep("products", [{"method": method, "seconds": seconds[method] / arguments.steps, "share": share}
                             for method, share in shares.items()], arguments.output,
                products_gflops=rate / 1e9)  # fmt: skip
    console.print(f"wrote {path}", soft_wrap=True)


@torch.no_grad()
def of_step(model, tokens: int, supervised: int) -> dict[str, float]:
    """Seconds of the products of one step of so many tokens, in full and where the weights are frozen."""
    head, frozen, trained = model.get_output_embeddings(), 0.0, 0.0
    for layer in model.modules():
        if not isinstance(layer, nn.Linear | Conv1D):
            continue
        weight_IO = layer.weight if isinstance(layer, Conv1D) else layer.weight.T
        count = -(-supervised // 64) * 64 if layer is head else tokens
        x, grad = (torch.ones(count, width, dtype=weight_IO.dtype) for width in weight_IO.shape)
        frozen += _seconds(lambda: (product(x, weight_IO), product(grad, weight_IO.T)))  # noqa: B023  called at once
        trained += _seconds(lambda: x.T @ grad)  # noqa: B023
    return {"full": frozen + trained, "lora": frozen}


def _seconds(made) -> float:
    begin = time.perf_counter()
    made()
    return time.perf_counter() - begin


if __name__ == "__main__":
    run_command(main)

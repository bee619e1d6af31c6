"""A training step of each of peft's methods here and through TRL with peft as they come, on GPT-2, by turns.

    python benchmarks/method_speed.py --model_name_or_path DIR --dataset_name sample --output speed.json

Two processes wait for the name of a method, one with TRL and one with this suite, each with its own allocator; each
method is timed in the one and at once in the other. Both see the same rows, 8 a step. What is counted is the processor
time of one thread, the kernel's for memory included, so that other work on the machine does not count. Of our step the
operations of its matrix products are counted too: no method takes less time than they do.
`benchmarks/methods.py --speed speed.json` puts the figures into docs/methods.md.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from engine import BATCH, timed
from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from records import keep
from turns import common_flags, set_up

from finllm.cpu import machine, processor
from finllm.errors import run_command
from finllm.files import cache_dir
from finllm.models.methods import known_method

LENGTH = 512
DORA = "LORA, use_dora"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time each of peft's methods here and through TRL.")
    common_flags(parser)
    kinds = sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
    kinds = ["LORA", DORA, *(kind for kind in kinds if kind != "LORA" and not known_method(kind).refused)]
    parser.add_argument("--methods", nargs="+", default=kinds, choices=kinds, metavar="METHOD")
    parser.add_argument("--warmup", type=int, default=1, help="steps before those that are measured")
    parser.add_argument("--steps", type=int, default=1, help="measured steps")
    arguments = parser.parse_args()
    if arguments.child:
        serve(arguments)
        return
    found: dict[str, dict] = {}
    with _server("trl") as trl, _server("ours") as ours:
        for kind in arguments.methods:
            here, there = found.setdefault(kind, {}), {}
            for name, server, into in (("trl", trl, there), ("ours", ours, here)):
                server.stdin.write(json.dumps(kind) + "\n")
                server.stdin.flush()
                into |= json.loads(server.stdout.readline() or json.dumps({"error": f"{name} ended"}))
            here["trl"] = there
            print(kind, _said(here), flush=True)
            keep("method_speed", found, arguments.output, machine=f"one thread of an {processor.name()}")


def _said(here: dict) -> str:
    if "error" in here or "error" in here["trl"]:
        return f"ours: {here.get('error', here.get('seconds'))}; TRL: {here['trl'].get('error', 'ran')}"
    return f"{here['seconds']:.2f} s a step, {here['trl']['seconds'] / here['seconds']:.1f} times as fast as TRL"


@contextlib.contextmanager
def _server(child: str):
    command = [sys.executable, sys.argv[0], *sys.argv[1:], "--child", child]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def serve(arguments: argparse.Namespace) -> None:
    """Read names of methods from stdin, and answer each with a line of JSON on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    set_up(ours=arguments.child == "ours")
    torch.set_num_threads(1)
    for line in sys.stdin:
        machine.give_back_freed_memory()
        machine.forget_peak()
        try:
            measured = measure(arguments, json.loads(line))
        except Exception as error:  # of a method that does not run at all
            measured = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        answers.write(json.dumps(measured) + "\n")
        answers.flush()
        gc.collect()


def measure(arguments: argparse.Namespace, kind: str) -> dict:
    """Seconds of processor time of a step after the warm-up, peak memory in bytes, and the way that rows took."""
    from transformers import AutoModelForCausalLM, set_seed
    from trl import SFTConfig, SFTTrainer

    from finllm.data.prepare import resolve
    from finllm.models.adapters import adapter_config
    from finllm.models.dropout import set_dropout
    from finllm.models.find import load_tokenizer
    from finllm.models.fit import fit
    from finllm.models.method_proofs import adapt
    from finllm.models.settings import MethodConfig, float32_base
    from finllm.run_dir import RunDir
    from finllm.text.tokens import tokenize
    from finllm.training.config import TrainingConfig
    from finllm.training.trainer import SupervisedTrainer

    tokenizer = load_tokenizer(arguments.model_name_or_path)
    split = resolve(arguments.dataset_name, cache_dir() / "datasets").split("train").shuffle(0)
    split = split.select(range(BATCH * (arguments.warmup + arguments.steps)))
    rows, _ = tokenize(tokenizer, split, LENGTH)
    set_seed(0)
    name, _, variant = kind.partition(", ")
    asked = MethodConfig(peft_type=name, peft={variant: True} if variant else None)
    # As recipes/sft.py loads a base that is frozen; TRL's own is float32.
    coarse = arguments.child == "ours" and machine.bf16_is_fast() and not float32_base(asked)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model_name_or_path, dtype="bfloat16" if coarse else "float32", attn_implementation="sdpa",
        trust_remote_code=False,
    )  # fmt: skip
    common = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "bf16": machine.bf16_is_fast(), "max_length": LENGTH,
        "learning_rate": 1e-4, "seed": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if arguments.child == "ours":
            set_dropout(model, 0.0)
            model, _ = adapt(model, asked, rows)
            args = TrainingConfig(output_dir=folder, **common, eval_on_start=False)
            trainer = SupervisedTrainer(
                model, run=RunDir(folder), args=args, train_dataset=rows, processing_class=tokenizer
            )
        else:
            from datasets import Dataset

            from finllm.text.prompts import build_prompt

            config, given = adapter_config(model, asked, rows)
            assert not fit(config, given, model)
            dataset = Dataset.from_list(
                [
                    {"prompt": build_prompt(row["instruction"], row["input"]), "completion": row["output"]}
                    for row in split
                ]
            )
            trainer = SFTTrainer(
                model, SFTConfig(output_dir=folder, **common), train_dataset=dataset, processing_class=tokenizer,
                peft_config=config,
            )  # fmt: skip
        measured = timed(trainer, arguments.warmup, time.process_time)
        peak = machine.recent_peak_bytes()
        counted = {"flops": _operations(trainer, rows)} if arguments.child == "ours" else {}
    return {
        **counted,
        "seconds": measured["seconds"] / arguments.steps,
        "peak_memory_bytes": peak,
        "rows": "joined" if getattr(trainer, "joins_rows", False) else "padded",
    }


def _operations(trainer, rows) -> int:
    """Of the products of one step, forward and backward, counted as torch makes them."""
    from torch.utils.flop_counter import FlopCounterMode

    def in_place(result: tuple, left: tuple, right: tuple, **others) -> int:  # shapes; torch counts other products
        return 2 * left[0] * left[1] * right[1]

    batch = trainer._prepare_inputs(trainer.data_collator([dict(rows[number]) for number in range(BATCH)]))
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})
    with counter, trainer.compute_loss_context_manager():
        nll, _, _ = trainer._likelihood(trainer.model, batch)
        nll.backward()
    return counter.get_total_flops()


if __name__ == "__main__":
    run_command(main)

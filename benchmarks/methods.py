"""docs/methods.md: every method of peft, what it trains in GPT-2 and SmolLM2-135M, where it runs, and where to begin.

    python benchmarks/methods.py [--speed RECORD …] [--study leaderboard.md] > docs/methods.md

Counts and the layers that must be turned are found on models without memory for their weights, or with random ones
where a method is built of numbers. What starts as the base, merges and runs in 4 and 8 bits is tried on a tiny Llama.
The figures of speed come from benchmarks/method_speed.py; what a later RECORD measured again stands as it says, beside
the LoRA of its own run.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, set_seed

from finllm.errors import UserError
from finllm.files import read_json
from finllm.models import conv1d
from finllm.models.adapters import adapter_config, needs_linear
from finllm.models.base import load_base_model
from finllm.models.fit import fit
from finllm.models.merge import merged_proof
from finllm.models.method_proofs import choose
from finllm.models.methods import BENCHMARK, known_method
from finllm.models.proofs import nll_of
from finllm.models.settings import MethodConfig
from finllm.models.skeletons import skeleton

SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
)  # fmt: skip
TINY = LlamaConfig(
    vocab_size=600, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
)  # fmt: skip
SLOW = ("FROD",)  # it decomposes every layer, and takes minutes for a count
PAGE = """# Methods

Every method that peft 0.21 has can be asked for by its own name, with any field of its config class:

    python recipes/sft.py --config … --peft_type ia3 --peft '{{"target_modules": ["k_proj", "v_proj", "down_proj"]}}'

In a YAML `peft` is a mapping. Unknown fields, fields of another class and values that fit no layer are refused before
anything is trained. `use_peft` and the `lora_*` keys are TRL's; `peft` adds any other field of `LoraConfig`.

- **Proved before training**: the adapted model gives a row the loss of the base model, or it is known why not; every
  tensor that trains has a finite gradient once its first zeros are left; a variant of LoRA is in every layer. **After
  it**: what trains has moved; loaded on a fresh base the adapter gives the loss of the trained one; so does the model
  that it is merged into. Figures are in `proofs.json`.
- **GPT-2** has `Conv1D` layers. Where a method works on linear ones only (*turned* below) they become equal ones for
  the run, `model/base_layers.json` says so, loading does it again, and a merged model has `Conv1D` again.
- **Merged** by `finllm merge RUN --output_dir DIR`, which proves that it is the same model ([serving.md](serving.md)).
  A run on 4 bits is merged into what these bits stand for, so nothing shifts. Into the original weights, a QLoRA run of
  SmolLM2-135M shifts from 1.213 bits per byte to 1.178, on 20 validation rows, and one token by 4.8 nats: 2026-11-26,
  10 steps of `recipes/configs/demo_lora.yaml` with `--load_in_4bit true --bnb_4bit_quant_type nf4`, then
  `finllm merge RUN --output_dir DIR --into original --max_examples 20`.
- **AdaLoRA** moves its ranks after each step and has its orthogonality term in the loss, which Trainers leave out.
- **PiSSA, OLoRA, CorDA, LoRA-GA** take their beginning out of the base weights. They are saved as the plain LoRA of
  twice the rank that says the same of the base itself. EVA, CorDA and LoRA-GA read training rows before the first step.
- **Without peft**: `trainable: [h.11, ln_f]` trains those of the model's own weights, by patterns of their names.
- **Optimizers**: `loraplus_lr_ratio: 16` is LoRA+, `lora_fa: true` LoRA-FA. `optim` takes transformers' names;
  `galore_adamw` and `apollo_adamw` (`pip install 'finllm[galore,apollo]'`) project every linear layer but the head,
  GPT-2's too. Their layerwise forms, LOMO and AdaLOMO step within backward and are refused.

Rates are where to begin looking: one end is the named source's own rate, the other up to two decades from it. Where no
source is named it is peft's method_comparison of July 2026. Where no `learning_rate` is given with a `peft_type`, it is
the geometric middle of the two, and the command says so. C is the model's width, r the rank, in and out the sides of a
layer, P virtual tokens. *Starts* is whether the adapted model begins as the base, *bits* whether it trains on a base in
4 bits (nf4) and in 8, all tried on a tiny Llama. All run on GPT-2 and Llama. Made by `python benchmarks/methods.py` on
{today}, with the defaults of `finllm/models/methods.py`.

*Speed* is how many times as fast as TRL with peft a step is, then its time in steps of LoRA, in brackets how many
times LoRA's its products' operations are, then the peak memory in GiB: GPT-2 124M with random weights, 8 rows of the
bundled data, processor time of one step by `python benchmarks/method_speed.py` on {measured}. *fails* is
where TRL with peft ends in an error: it does not take GPT-2's layers, or counts no virtual tokens. LoRA with `use_dora`
has {dora}. What takes long takes it in peft's own products, which both sides have: OSF's are of whole
weights, HRA and BOFT multiply square matrices as wide as a layer, and HRA keeps each of them for backward.

| `peft_type` | trains, a layer | SmolLM2-135M | GPT-2 | its layers | starts | merges | bits | speed | rates | paper |
|---|---|--:|--:|---|---|---|---|---|---|---|
{rows}

Refused:

{refused}
"""


def with_weights(config):
    """A model of the config with random weights."""
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def count(config, kind: str) -> tuple[str, bool]:
    """Trainable numbers of a method by its defaults, and whether `Conv1D` must be turned for it."""
    turned = False
    for build in (skeleton, *(() if kind in SLOW else (with_weights,))):
        model = build(config)
        settings, given = adapter_config(model, MethodConfig(peft_type=kind))
        assert not fit(settings, given, model)
        turned = needs_linear(model, settings)
        if turned:
            conv1d.to_linear(model)
        if hasattr(settings, "fan_in_fan_out"):
            settings.fan_in_fan_out = conv1d.has_conv1d(model)
        try:
            with torch.device("meta" if build is skeleton else "cpu"):
                adapted = get_peft_model(model, copy.deepcopy(settings))
        except (NotImplementedError, RuntimeError):  # built of numbers, of which there are none on meta
            continue
        return f"{sum(p.numel() for p in adapted.parameters() if p.requires_grad):,}", turned
    return "–", turned


def tried(kind: str, folder: str) -> tuple[bool, bool, str]:
    """Whether a method starts as the base model and merges into it, and in which bits it runs: by the recipe's proofs.

    In so many bits it runs where a pass with gradients through the whole model does, and where its own proofs hold.
    """
    tokens = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 500, (40,), generator=tokens).tolist() for _ in range(4)]
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = MethodConfig(model_name_or_path=folder, peft_type=kind, dtype="float32")
    set_seed(0)
    adapted, proofs = choose(load_base_model(folder, arguments), arguments, rows)
    starts = next(proof.passed for proof in proofs if proof.name == "starts as the base")
    with torch.no_grad():
        own_N = nll_of(adapted.eval(), rows).double()
    merge = merged_proof(adapted, rows, own_N)
    bits = []
    for few in ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}):
        try:
            asked = dataclasses.replace(arguments, **few)
            adapted, _ = choose(load_base_model(folder, asked), asked, rows)
        except UserError:
            continue
        nll_of(adapted, rows).sum().backward()
        bits.append("8" if "load_in_8bit" in few else "4")
    return starts, merge.passed and merge.figure is not None, ", ".join(bits) or "–"


def speed_of(speeds: Sequence[dict[str, Any]], kind: str) -> str:
    """How many times as fast as TRL, a step beside LoRA's, and memory, by the last record that has the method."""
    measured = next((each["measured"] for each in reversed(speeds) if kind in each["measured"]), {})
    here = measured.get(kind)
    if here is None or "error" in here:
        return "–"
    step = f"{here['seconds'] / measured['LORA']['seconds']:.1f}"
    if "flops" in here:  # in records of before they were counted there are none
        step += f" ({here['flops'] / measured['LORA']['flops']:.1f})"
    step += f" · {here['peak_memory_bytes'] / 2**30:.1f}"
    there = here["trl"]
    return f"{there['seconds'] / here['seconds']:.1f} · {step}" if "error" not in there else f"fails · {step}"


def measured_on(speeds: Sequence[dict[str, Any]]) -> str:
    """On which machine and day, and which methods a later record measured again."""
    if not speeds:
        return "no machine yet"
    first, *later = speeds
    again = [", ".join(f"`{kind.lower()}`" for kind in each["measured"] if kind != "LORA") for each in later]
    where = [f"{each['machine']}, " if each["machine"] != first["machine"] else "" for each in later]
    said = [f"{kinds} again on {at}{each['date']}" for kinds, at, each in zip(again, where, later, strict=True)]
    return "; ".join([f"{first['machine']}, {first['date']}", *said])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", type=Path, nargs="+", default=[], help="what benchmarks/method_speed.py wrote")
    parser.add_argument("--study", type=Path, help="Markdown that goes below the table as it is")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    speeds = [read_json(path) for path in arguments.speed]
    rows, refused = [], []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        set_seed(0)
        with_weights(TINY).save_pretrained(folder)
        for kind in sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING):
            method = known_method(kind)
            if method.refused:
                refused.append(f"- `{kind.lower()}` ({method.title}): {method.refused}.")
                continue
            (smol, _), (gpt2, turned) = count(SMOLLM2, kind), count(GPT2Config(), kind)
            starts, merges, bits = tried(kind, folder)
            yes = {True: "yes", False: "–"}
            rates = f"{method.rates[0]:g} – {method.rates[1]:g}" if method.rates else "–"
            source = "" if method.source == BENCHMARK else f", {method.source}"
            layers = "turned" if turned else ""
            rows.append(
                f"| `{kind.lower()}` | {method.title}: {method.trains} | {smol} | {gpt2} | {layers} "
                f"| {yes[starts]} | {yes[merges]} | {bits} | {speed_of(speeds, kind)} "
                f"| {rates}{source} | {method.paper} |"
            )
            print(rows[-1])
    print(PAGE.format(rows="\n".join(rows), refused="\n".join(refused), dora=speed_of(speeds, "LORA, use_dora"),
                      today=time.strftime("%Y-%m-%d"), measured=measured_on(speeds)))  # fmt: skip
    print(arguments.study.read_text(encoding="utf-8") if arguments.study else "", end="")


if __name__ == "__main__":
    main()

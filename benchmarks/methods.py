"""docs/methods.md: every method of peft, what it trains in GPT-2 and SmolLM2-135M, where it runs, and where to begin.

    python benchmarks/methods.py > docs/methods.md

Counts and the layers that must be turned are found on models without memory for their weights; nothing is trained.
Where a method is built of numbers and not of shapes alone, no count is given.
"""

from __future__ import annotations

import copy
import warnings

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model
from transformers import GPT2Config, LlamaConfig

from finllm.errors import UserError
from finllm.models import conv1d
from finllm.models.adapters import adapter_config, needs_linear
from finllm.models.fit import fit
from finllm.models.methods import known_method
from finllm.models.settings import MethodConfig
from finllm.models.skeletons import skeleton

SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
)  # fmt: skip
PAGE = """# Methods

Every method that peft 0.21 has can be asked for by its own name, with any field of its config class:

    python recipes/sft.py --config … --peft_type ia3 --peft '{{"target_modules": ["k_proj", "v_proj", "down_proj"]}}'

In a YAML `peft` is a mapping. Unknown fields, fields of another class and values that fit no layer are refused before
anything is trained. `use_peft` and the `lora_*` keys are TRL's; `peft` adds any other field of `LoraConfig`.

- **Proved before training**: the adapted model gives rows the loss of the base model, or it is known why not; every
  tensor that trains has a finite gradient once its first zeros are left; a variant of LoRA is in every layer. **After
  it**: every such tensor has moved; loaded on a fresh base the adapter gives the
  loss of the trained one; so does the model that it is merged into. Figures are in `proofs.json`.
- **GPT-2** has `Conv1D` layers. Where a method works on linear ones only (*turned* below) they become equal ones for
  the run, `model/base_layers.json` says so, loading does it again, and a merged model has `Conv1D` again.
- **Merged** by `finllm merge RUN --output_dir DIR`, which proves that it is the same model. Of a run on 4 or 8 bits the
  adapter is put on the base model in float32, and how far that is from what was trained is told.
- **AdaLoRA** moves its ranks after each step and has its orthogonality term in the loss, which Trainers leave out.
- **PiSSA, OLoRA, CorDA, LoRA-GA** take their beginning out of the base weights. They are saved as the plain LoRA of
  twice the rank that says the same of the base itself. EVA, CorDA and LoRA-GA read training rows before the first step.
- **Without peft**: `trainable: [h.11, ln_f]` trains those of the model's own weights, by patterns of their names.

Rates are where to begin looking: one end is the named source's own rate, the other up to two decades from it. Where no
`learning_rate` is given with a `peft_type`, it is the geometric middle of the two, and the command says so. C is the
model's width, r the rank, in and out the sides of a layer, P virtual tokens. Made by
`python benchmarks/methods.py` on 2026-11-26; defaults are those of
`finllm/models/methods.py`. – is a method whose count depends on the weights.

| `peft_type` | what it trains, a layer | SmolLM2-135M | GPT-2 | GPT-2's layers | rates | from | paper |
|---|---|--:|--:|---|---|---|---|
{rows}

Refused:

{refused}
"""


def count(config, kind: str) -> tuple[str, bool]:
    """Trainable numbers of a method by its defaults, and whether `Conv1D` must be turned for it."""
    model, turned = skeleton(config), False
    try:
        settings, given = adapter_config(model, MethodConfig(peft_type=kind))
        assert not fit(settings, given, model)
        turned = needs_linear(model, settings)
        if turned:
            conv1d.to_linear(model)
        if hasattr(settings, "fan_in_fan_out"):
            settings.fan_in_fan_out = conv1d.has_conv1d(model)
        with torch.device("meta"):
            adapted = get_peft_model(model, copy.deepcopy(settings))
    except UserError:
        return "–", turned
    except (NotImplementedError, RuntimeError):  # built of numbers, of which there are none here
        return "–", turned
    return f"{sum(p.numel() for p in adapted.parameters() if p.requires_grad):,}", turned


def main() -> None:
    warnings.simplefilter("ignore")
    rows, refused = [], []
    for kind in sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING):
        method = known_method(kind)
        if method.refused:
            refused.append(f"- `{kind.lower()}` ({method.title}): {method.refused}.")
            continue
        (smol, _), (gpt2, turned) = count(SMOLLM2, kind), count(GPT2Config(), kind)
        rates = f"{method.rates[0]:g} – {method.rates[1]:g}" if method.rates else "–"
        layers = "turned" if turned else "as they are"
        rows.append(
            f"| `{kind.lower()}` | {method.title}: {method.trains} | {smol} | {gpt2} | {layers}"
            f" | {rates} | {method.source} | {method.paper} |"
        )
    print(PAGE.format(rows="\n".join(rows), refused="\n".join(refused)), end="")


if __name__ == "__main__":
    main()

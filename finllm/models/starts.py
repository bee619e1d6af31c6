"""Beginnings of an adapter that look at data, or that rewrite the weights under it.

EVA, CorDA and LoRA-GA read some of the training rows before the first step. PiSSA, OLoRA, CorDA and LoRA-GA take what
the adapter begins with out of the layer's weight: W = W' + s·B₀A₀. Loaded on a fresh base such an adapter is right only
if the same B₀A₀ is taken out again, which a random SVD (`pissa_niter_N`) or other rows do not do. So they are saved as
the plain LoRA of twice the rank that says the same of the base model itself: W + s·(BA − B₀A₀).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from finllm.errors import UserError
from finllm.files import write_text
from finllm.models import checked
from finllm.text.tokens import IGNORED

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig

FROM_DATA = ("eva", "corda", "lora_ga")
TAKES_OUT = ("pissa", "olora", "corda", "lora_ga")
MOST_ROWS, LONGEST = 256, 512  # rows that are read, and tokens of each
TOKENS_A_WIDTH = 4  # tokens to read for each column of the covariance matrices that are formed


def _init(config: PeftConfig) -> str:
    return str(getattr(config, "init_lora_weights", ""))


def takes_out(config: PeftConfig) -> bool:
    return _init(config).lower().startswith(TAKES_OUT)


def look_at(model: PreTrainedModel, config: LoraConfig, rows: Sequence[Mapping[str, Any]]) -> None:
    """What CorDA and LoRA-GA do before the adapter is built: rows through the model, forward and, for the latter, back.

    `config` gets the names of the layers in the place of `all-linear`.
    """
    if _init(config) not in ("corda", "lora_ga"):
        return
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    config.target_modules = _maybe_include_all_linear_layers(copy.deepcopy(config), model).target_modules
    batches = list(_batches(model, config, rows))

    def forward() -> None:
        for batch in batches:
            model(input_ids=batch["input_ids"], use_cache=False)

    def backward() -> None:
        for batch in batches:
            model(**batch, use_cache=False).loss.backward()

    training = model.training
    model.eval()
    if _init(config) == "corda":
        with torch.no_grad():
            preprocess_corda(model, config, run_model=forward)
    else:
        preprocess_loraga(model, config, backward)
        model.zero_grad()
    model.train(training)


def finish(adapted: PreTrainedModel, rows: Sequence[Mapping[str, Any]]) -> None:
    """What EVA does once the adapter is there, and DoRA's magnitudes; and what the adapter takes out of its base is
    kept, to be saved with."""
    config = adapted.active_peft_config
    if _init(config) == "eva":
        from peft import initialize_lora_eva_weights

        batches = [
            {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
            for batch in _batches(adapted, config, rows)
        ]
        training = adapted.training
        adapted.eval()
        initialize_lora_eva_weights(adapted, batches, show_progress_bar=False)
        adapted.train(training)
    _measure_magnitudes(adapted)
    if takes_out(config):
        adapted.taken_out = {
            name: tensor.detach().clone().cpu()
            for name, tensor in adapted.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }


@torch.no_grad()
def _measure_magnitudes(adapted: PreTrainedModel) -> None:
    """DoRA's magnitudes from norms in float32: peft takes them in the weights' own precision, and of bfloat16 that is a
    beginning 0.04 nats a token away from the base (SmolLM2-135M)."""
    from peft.utils.integrations import dequantize_module_weight

    for module in adapted.modules():
        for name, direction in getattr(module, "lora_magnitude_vector", {}).items():
            if name not in module.lora_A:  # of an embedding
                continue
            weight = dequantize_module_weight(module.get_base_layer()).float()
            change = direction.get_lora_weight(module.lora_A[name].float(), module.lora_B[name].float())
            norm = direction.get_weight_norm(weight, change, module.scaling[name])
            direction.weight.data.copy_(norm.view_as(direction.weight))


def _batches(model, config, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Tensor]]:
    """Training rows, one a batch: for those that CorDA reads peft has no other shape."""
    if not rows:
        raise UserError(f"init_lora_weights is {_init(config)!r}, which reads training rows, and there are none here")
    device = next(model.parameters()).device
    needed, read = TOKENS_A_WIDTH * model.config.get_text_config().hidden_size, 0
    for row in (rows[number] for number in range(min(MOST_ROWS, len(rows)))):
        ids, labels = row["input_ids"][:LONGEST], row["labels"][:LONGEST]
        if all(label == IGNORED for label in labels[1:]):
            continue
        yield {"input_ids": torch.tensor([ids], device=device), "labels": torch.tensor([labels], device=device)}
        read += len(ids)
        if read >= needed:
            return


def save_as_plain_lora(adapted: PreTrainedModel, folder: Path) -> None:
    """Rewrite the adapter saved in `folder` as the plain LoRA of its base that it is, where it took something out."""
    taken = getattr(adapted, "taken_out", None)
    if taken is None:
        return
    held = load_file(folder / checked.ADAPTER_WEIGHTS)
    for name, first in taken.items():
        key = name.replace(f".{adapted.active_adapter}.", ".")
        side = 0 if ".lora_A." in name else 1
        held[key] = torch.cat([held[key], first.to(held[key].dtype) * (1 if side == 0 else -1)], side).contiguous()
    save_file(held, folder / checked.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / checked.ADAPTER_CONFIG).read_text(encoding="utf-8"))
    # s is alpha / r, or alpha / √r with use_rslora, and must stay.
    factor = math.sqrt(2) if config["use_rslora"] else 2
    config |= {
        "init_lora_weights": True,
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in (config["rank_pattern"] or {}).items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in (config["alpha_pattern"] or {}).items()},
        **dict.fromkeys(("corda_config", "lora_ga_config")),
    }
    write_text(folder / checked.ADAPTER_CONFIG, json.dumps(config, indent=2) + "\n")

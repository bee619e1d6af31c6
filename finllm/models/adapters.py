"""Adapters: put one on a base model, look under it, and what the way to train is called."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, get_peft_config

from finllm.errors import UserError
from finllm.models.patterns import check_patterns


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The base model under an adapter; a model without one as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_adapter(model: PreTrainedModel, arguments: ModelConfig) -> PreTrainedModel:
    """`model` with the adapter that TRL's flags describe (LoRA, DoRA, rsLoRA), its base frozen. Seed before calling."""
    from peft import get_peft_model

    config = get_peft_config(arguments)
    assert config is not None, "called only with use_peft"
    # GPT-2 keeps its weights transposed (Conv1D); peft must know, and only guesses with a warning.
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    if isinstance(config.target_modules, str) and config.target_modules.isidentifier():
        # TRL makes a list of one name a string, and peft reads a string as a regular expression for whole paths.
        config.target_modules = {config.target_modules}
    check_patterns(config.to_dict(), model, "the adapter's flags")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({name.split(".")[-1] for name, module in model.named_modules() if _is_linear(module)})
        raise UserError(
            f"lora_target_modules {arguments.lora_target_modules!r}: {str(error).splitlines()[0]}; "
            f"this model's linear layers are {', '.join(linear)}, and `all-linear` takes all but lm_head"
        ) from error


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)


def method_of(arguments: ModelConfig) -> str:
    """`full`, `lora` or `qlora`."""
    if not arguments.use_peft:
        return "full"
    return "qlora" if arguments.load_in_4bit or arguments.load_in_8bit else "lora"

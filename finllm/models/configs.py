"""Configs of base models, which come from others: what they describe, and whether it can be built here."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from finllm.cpu.machine import memory_bytes
from finllm.errors import UserError, raise_problems
from finllm.models import checked
from finllm.models.find import not_loaded
from finllm.models.skeletons import skeleton

MOST_BUILT = 200  # layers of a model that is built without memory in well under a second


def read_config(resolved: str, revision: str = "main") -> PreTrainedConfig:
    """The config of a resolved base model; a `UserError` where it describes none."""
    if Path(resolved).is_dir():
        checked.check_configs(Path(resolved))
    try:
        return AutoConfig.from_pretrained(resolved, revision=revision, trust_remote_code=False)
    except Exception as error:  # of a file of somebody else's a library may raise anything
        raise not_loaded(resolved, error) from error


def check_size(config: PreTrainedConfig, bytes_a_parameter: int = 4) -> None:
    """Refuse a config whose model cannot be built, or is larger than this machine's memory, before any is allocated.

    The model is built without memory ("meta"). Of very many layers only two are, and the others count as the second.
    """
    text = config.get_text_config()
    sizes = {name: getattr(text, name, None) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    raise_problems(
        (f"{name} is {size!r} and must be a whole number of 1 or more" for name, size in sizes.items()
         if size is not None and (type(size) is not int or size < 1)),
        f"the config of {config.name_or_path}",
    )  # fmt: skip
    layers = sizes["num_hidden_layers"] or 1
    try:
        if layers <= MOST_BUILT:
            numbers = _numbers(config)
        else:
            one, two = (_numbers(with_layers(config, count)) for count in (1, 2))
            numbers = one + (layers - 1) * (two - one)
    except Exception as error:  # of sizes that do not go together a model may raise anything
        raise not_loaded(config.name_or_path, error) from error
    needed, held = numbers * bytes_a_parameter, memory_bytes()
    if needed > held:
        said = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)
        raise UserError(
            f"the config of {config.name_or_path} ({said}) asks for {needed / 2**30:,.1f} GiB of weights and this "
            f"machine has {held / 2**30:,.1f} GiB of memory; take a smaller model, or put the config right"
        )


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config of the same model with so many layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = (text.layer_types * layers)[:layers]  # the model may have fewer
    return config


def _numbers(config: PreTrainedConfig) -> int:
    """Numbers in the parameters and buffers of a config's model."""
    model = skeleton(config)
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def causal_config(resolved: str, revision: str = "main") -> PreTrainedConfig:
    """The config of a resolved base model, if it is a causal language model's; else a `UserError`.

    An encoder-decoder is refused although transformers has causal classes for some: those leave the encoder out.
    """
    config = read_config(resolved, revision)
    if config.is_encoder_decoder:
        kind = "an encoder-decoder, whose encoder reads the question and whose decoder writes the answer"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "no language model that writes, in this version of transformers"
    else:
        return config
    raise UserError(
        f"base model {resolved} is of type {config.model_type}: {kind}; take a causal language model, which reads and "
        "writes in one go (GPT-2, Llama, Qwen, SmolLM2, …)"
    )

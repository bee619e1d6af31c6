"""Base models, and the models that runs made of them: load them, count them, hold them against what is asked."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from trl import ModelConfig, get_quantization_config

from finllm.cpu import kernels
from finllm.cpu.machine import attend_at_any_length, use_all_cores, uses_gpu
from finllm.errors import UserError
from finllm.files import atomic_folder
from finllm.models import checked
from finllm.models.configs import causal_config, check_size
from finllm.models.find import load_tokenizer, not_loaded, resolve_base_model, run_of, weights_hash
from finllm.models.proofs import tokenizer_fits
from finllm.models.saved import load_adapter
from finllm.models.settings import MethodConfig
from finllm.models.virtual import virtual_tokens
from finllm.run_dir import RunDir


def make_random_model(config_dir: Path | str, output_dir: Path | str, seed: int = 42) -> None:
    """Save a model with random weights made from a folder's config.json and tokenizer, for benchmarks and tests."""
    output_dir = Path(output_dir)
    if run_of(str(config_dir)) is not None:
        config_dir = resolve_base_model(str(config_dir), weights=False)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"{output_dir} is not empty; take another --output_dir")
    if not (Path(config_dir) / "config.json").exists():
        raise UserError(f"{config_dir} holds no config.json; give a folder with a model's config and tokenizer")
    config = causal_config(str(config_dir))
    check_size(config)
    tokenizer = load_tokenizer(str(config_dir))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    with atomic_folder(output_dir.resolve()) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        os.replace(work, output_dir)


def load_base_model(resolved: str, arguments: ModelConfig) -> PreTrainedModel:
    """A causal language model with float32 weights, or as `dtype`, `load_in_4bit` and `load_in_8bit` ask."""
    use_all_cores()
    attend_at_any_length()
    check_quantisation(arguments)
    check_base_model(resolved, arguments.model_revision, bytes_a_parameter(arguments))
    quantised = arguments.load_in_4bit or arguments.load_in_8bit
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            resolved,
            revision=arguments.model_revision,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            quantization_config=get_quantization_config(arguments),
            device_map={"": _local_device()} if quantised else None,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # of a file of somebody else's a library may raise anything
        raise not_loaded(resolved, error) from error
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers would go on with random numbers
        raise UserError(
            f"base model {resolved} has no weights for {len(missing):,} tensors that its config asks for "
            f"({', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}); {checked.ANEW}"
        )
    for module in model.modules():
        # In evaluation on a CPU with bfloat16, bitsandbytes repacks the weights, in place and for good: training cannot
        # read them then, and rows that are no multiple of the block size fail (0.50.2).
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        # What a layer of 8 bits answers is a view of its own making, which methods that add to it in place (C3A,
        # GraLoRA, Poly) may not change where gradients are wanted.
        if hasattr(module, "init_8bit_state"):
            module.register_forward_hook(lambda layer, given, output: output.clone())
    return model


def check_quantisation(arguments: ModelConfig) -> None:
    """Refuse weights in few bits where the package that makes them is not installed."""
    if (arguments.load_in_4bit or arguments.load_in_8bit) and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed; run: pip install 'finllm[qlora]'"
        )


def bytes_a_parameter(arguments: ModelConfig) -> int:
    """At most, of the weights as they are loaded."""
    quantised = arguments.load_in_4bit or arguments.load_in_8bit
    return 2 if quantised or arguments.dtype in ("bfloat16", "float16") else 4


def check_base_model(resolved: str, revision: str, bytes_a_parameter: int) -> PreTrainedConfig:
    """The config of a resolved base model that can be loaded as far as its files' headers tell, and has room here."""
    if Path(resolved).is_dir():
        checked.check_base(Path(resolved))
    config = causal_config(resolved, revision)
    check_size(config, bytes_a_parameter)
    return config


def _local_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if uses_gpu() else "cpu"


@dataclass(frozen=True)
class Parameters:
    total: int
    trainable: int

    @property
    def share(self) -> float:
        """Trainable share, 0 to 1."""
        return self.trainable / self.total


def count_parameters(model: torch.nn.Module) -> Parameters:
    """Parameters in all and those that train. Tied weights count once, 4-bit weights as what they stand for."""
    total = trainable = 0
    for parameter in model.parameters():
        # bitsandbytes packs two 4-bit weights into a byte and keeps the shape they stand for aside
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return Parameters(total, trainable)


def base_model_hash(resolved: str, model: PreTrainedModel | None = None, revision: str = "main") -> str:
    """What identifies a base model by its content: `weights_hash` of a folder; for a hub id its commit.

    That is the commit which `model` was loaded from or, without one, which would be loaded now.
    """
    if Path(resolved).is_dir():
        return weights_hash(resolved)
    try:
        config = (
            model.config
            if model is not None
            else AutoConfig.from_pretrained(resolved, revision=revision, trust_remote_code=False)
        )
    except (OSError, ValueError) as error:
        raise not_loaded(resolved, error) from error
    return f"{resolved}@{config._commit_hash}"


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many tokens a model can read; None where its config names no end."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_length(model: PreTrainedModel, max_length: int | None, taken: int | None = None) -> None:
    """Refuse a `max_length` beyond the model's positions, of which `taken` are for virtual tokens: else its own."""
    positions, taken = positions_of(model.config), virtual_tokens(model) if taken is None else taken
    if positions is not None and (max_length is None or max_length > positions - taken):
        raise UserError(
            f"max_length is {max_length} and {model.config.name_or_path} has {positions:,} positions"
            + (f", {taken} of which are for virtual tokens" if taken else "")
            + f"; set max_length to {positions - taken} or less"
        )


def model_arguments(config: dict[str, Any]) -> MethodConfig:
    """The MethodConfig part of a run's config.yaml; a `UserError` where it is none."""
    named = config.get("model_name_or_path")
    try:
        if not isinstance(named, str):
            raise ValueError(f"model_name_or_path is {named!r}, not the name of a base model")
        return MethodConfig(**{key: config[key] for key in MethodConfig.__dataclass_fields__ if key in config})
    except (TypeError, ValueError) as error:
        raise UserError(f"the run's config.yaml: {error}; put back the file that training wrote") from error


def load_run_model(run: RunDir) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a run of recipes/sft.py saved: full weights, or its base model with the adapter on."""
    config = run.require_complete().config()
    arguments = model_arguments(config)
    base = resolve_base_model(arguments.model_name_or_path) if arguments.use_peft else None
    if base is not None:
        then, now = run.provenance().get("base_model_hash"), base_model_hash(base, revision=arguments.model_revision)
        if now != then:
            raise UserError(
                f"{run.path} holds an adapter of {arguments.model_name_or_path} as it was (hash {str(then)[:80]}), and "
                f"what is there now has hash {now[:80]}; put that base model back"
            )
    return load_saved(run.model, base, arguments), load_tokenizer(str(run.model))


def load_saved(folder: Path, base: str | None, arguments: ModelConfig) -> PreTrainedModel:
    """What training saved in a folder: full weights, or an adapter put on the resolved `base`, freshly loaded."""
    if not arguments.use_peft:  # as it was saved: what trains may be more precise than the `dtype` it was loaded in
        return load_base_model(str(folder), dataclasses.replace(arguments, dtype="auto"))
    return load_adapter(load_base_model(base, arguments), folder)


def load_for_inference(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A run dir's model or a base model, on the best device, in evaluation mode, with its tokenizer."""
    run = run_of(name)
    if run is not None:
        model, tokenizer = load_run_model(run)
    else:
        resolved = resolve_base_model(name)
        model, tokenizer = load_base_model(resolved, MethodConfig()), load_tokenizer(resolved)
    if not getattr(model, "quantization_method", None):
        model.to("cuda" if uses_gpu() else "cpu")
    if not uses_gpu():
        kernels.use_in(model)
    tokenizer_fits(tokenizer, model)
    return model.eval(), tokenizer


# transformers reports every weight it loads; a bar of its own would stand between ours.
logging.disable_progress_bar()

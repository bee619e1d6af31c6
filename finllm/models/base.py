"""Base models, and the models that runs made of them: load them, count them, hold them against what is asked."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import ModelConfig, get_quantization_config

from finllm.bounded import MOST_JSON_BYTES, parse_json, read_text
from finllm.cpu import kernels
from finllm.cpu.machine import use_all_cores
from finllm.errors import UserError
from finllm.files import sha256_of_files
from finllm.models.find import load_tokenizer, not_loaded, resolve_base_model
from finllm.models.patterns import check_patterns
from finllm.run_dir import RunDir


def make_random_model(config_dir: Path | str, output_dir: Path | str, seed: int = 42) -> None:
    """Save a model with random weights made from a folder's config.json and tokenizer, for benchmarks and tests."""
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"{output_dir} is not empty; take another --output_dir")
    if not (Path(config_dir) / "config.json").exists():
        raise UserError(f"{config_dir} holds no config.json; give a folder with a model's config and tokenizer")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config_dir))
    tokenizer = load_tokenizer(str(config_dir))
    output_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def load_base_model(resolved: str, arguments: ModelConfig) -> PreTrainedModel:
    """A causal language model with float32 weights, or as `dtype`, `load_in_4bit` and `load_in_8bit` ask."""
    use_all_cores()
    quantised = arguments.load_in_4bit or arguments.load_in_8bit
    if quantised and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed; run: pip install 'finllm[qlora]'"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolved,
            revision=arguments.model_revision,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            quantization_config=get_quantization_config(arguments),
            device_map={"": _local_device()} if quantised else None,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise not_loaded(resolved, error) from error
    for module in model.modules():
        # In evaluation on a CPU with bfloat16, bitsandbytes repacks the weights, in place and for good: training cannot
        # read them then, and rows that are no multiple of the block size fail (0.50.2).
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _local_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def set_dropout(model: PreTrainedModel, share: float) -> None:
    """Give every dropout of the model, its attention's included, the same share (0 to 1) of dropped values."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        if isinstance(getattr(module, "attention_dropout", None), float):  # Llama and its kin keep a number
            module.attention_dropout = share


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


def base_model_hash(resolved: str, model: PreTrainedModel) -> str:
    """SHA-256 of a folder's weights and config; for a hub id the commit that was loaded."""
    folder = Path(resolved)
    if folder.is_dir():
        return sha256_of_files([*folder.glob("*.safetensors"), folder / "config.json"])
    return f"{resolved}@{model.config._commit_hash}"


def check_length(model: PreTrainedModel, max_length: int | None) -> None:
    """Refuse a `max_length` beyond the model's positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and (max_length is None or max_length > positions):
        raise UserError(
            f"max_length is {max_length} and {model.config.name_or_path} has {positions:,} positions; "
            f"set max_length to {positions} or less"
        )


def model_arguments(config: dict[str, Any]) -> ModelConfig:
    """The ModelConfig part of a run's config.yaml."""
    return ModelConfig(**{key: config[key] for key in ModelConfig.__dataclass_fields__ if key in config})


def load_run_model(run: RunDir) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a run of recipes/sft.py saved: full weights, or its base model with the adapter on."""
    config = run.require_complete().config()
    tokenizer = load_tokenizer(str(run.model))
    arguments = model_arguments(config)
    if not arguments.use_peft:
        return load_base_model(str(run.model), arguments), tokenizer
    from peft import PeftModel

    base = load_base_model(resolve_base_model(config["model_name_or_path"]), arguments)
    adapter = run.model / "adapter_config.json"
    settings = parse_json(read_text(adapter, MOST_JSON_BYTES), str(adapter))
    if not isinstance(settings, dict):
        raise UserError(f"{adapter} holds no JSON object; put the file back or train the run anew")
    check_patterns(settings, base, str(adapter))
    return PeftModel.from_pretrained(base, run.model), tokenizer


def load_for_inference(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A run dir's model or a base model, on the best device, in evaluation mode, with its tokenizer."""
    run = RunDir(name)
    if (run.path / "config.yaml").exists() or (run.path / "summary.json").exists():
        model, tokenizer = load_run_model(run)
    else:
        resolved = resolve_base_model(name)
        model, tokenizer = load_base_model(resolved, ModelConfig()), load_tokenizer(resolved)
    if not getattr(model, "quantization_method", None):
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        kernels.use_in(model)
    return model.eval(), tokenizer


# transformers reports every weight it loads; a bar of its own would stand between ours.
logging.disable_progress_bar()

"""Base models, and the models that runs made of them: load them, count them, hold them against what is asked."""

from __future__ import annotations

import copy
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
from finllm.cpu.machine import memory_bytes, use_all_cores
from finllm.errors import UserError, raise_problems
from finllm.files import atomic_folder, sha256_of_files
from finllm.models import checked
from finllm.models.adapters import load_adapter, skeleton
from finllm.models.find import load_tokenizer, not_loaded, resolve_base_model
from finllm.run_dir import RunDir

MOST_BUILT = 200  # layers of a model that is built without memory in well under a second


def make_random_model(config_dir: Path | str, output_dir: Path | str, seed: int = 42) -> None:
    """Save a model with random weights made from a folder's config.json and tokenizer, for benchmarks and tests."""
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"{output_dir} is not empty; take another --output_dir")
    if not (Path(config_dir) / "config.json").exists():
        raise UserError(f"{config_dir} holds no config.json; give a folder with a model's config and tokenizer")
    config = read_config(str(config_dir))
    check_size(config)
    tokenizer = load_tokenizer(str(config_dir))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    with atomic_folder(output_dir.resolve()) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        os.replace(work, output_dir)


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


def load_base_model(resolved: str, arguments: ModelConfig) -> PreTrainedModel:
    """A causal language model with float32 weights, or as `dtype`, `load_in_4bit` and `load_in_8bit` ask."""
    use_all_cores()
    quantised = arguments.load_in_4bit or arguments.load_in_8bit
    if quantised and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed; run: pip install 'finllm[qlora]'"
        )
    if Path(resolved).is_dir():
        checked.check_base(Path(resolved))
    half = quantised or arguments.dtype in ("bfloat16", "float16")
    check_size(read_config(resolved, arguments.model_revision), bytes_a_parameter=2 if half else 4)
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
    """The ModelConfig part of a run's config.yaml; a `UserError` where it is none."""
    named = config.get("model_name_or_path")
    try:
        if not isinstance(named, str):
            raise ValueError(f"model_name_or_path is {named!r}, not the name of a base model")
        return ModelConfig(**{key: config[key] for key in ModelConfig.__dataclass_fields__ if key in config})
    except (TypeError, ValueError) as error:
        raise UserError(f"the run's config.yaml: {error}; put back the file that training wrote") from error


def load_run_model(run: RunDir) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a run of recipes/sft.py saved: full weights, or its base model with the adapter on."""
    config = run.require_complete().config()
    tokenizer = load_tokenizer(str(run.model))
    arguments = model_arguments(config)
    if not arguments.use_peft:
        return load_base_model(str(run.model), arguments), tokenizer
    resolved = resolve_base_model(arguments.model_name_or_path)
    base = load_base_model(resolved, arguments)
    then, now = run.provenance().get("base_model_hash"), base_model_hash(resolved, base)
    if now != then:
        raise UserError(
            f"{run.path} holds an adapter of {arguments.model_name_or_path} as it was (hash {str(then)[:80]}), and "
            f"what is there now has hash {now[:80]}; put that base model back"
        )
    return load_adapter(base, run.model), tokenizer


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

"""Adapters: put one on a base model, look under it."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finllm.cpu.machine import memory_bytes
from finllm.errors import UserError, at_most, raise_problems
from finllm.models import conv1d, starts
from finllm.models.fit import fit, numbers_bounded
from finllm.models.methods import known_method
from finllm.models.patterns import check_patterns
from finllm.models.settings import KEYS, given_settings
from finllm.models.skeletons import numbers_at_most, shapes_made, skeleton
from finllm.models.virtual import hide_virtual_tokens, of_one_task

if TYPE_CHECKING:
    from peft import PeftConfig
    from trl import ModelConfig

CONTEXT = 20  # tokens of the first row that CPT takes for its context where none is given
ALL_BUT = ", and `all-linear` takes all but lm_head"
UNKNOWN_STEPS = 1 << 30  # AdaLoRA's, until training begins (finllm.training.method_steps)


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The base model under an adapter; a model without one as it is."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, "model", base) if _is_tuner(base) else base  # Poly's is peft's wrapper still


def _is_tuner(module: torch.nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTuner

    return isinstance(module, BaseTuner)


def add_adapter(
    model: PreTrainedModel, arguments: ModelConfig, rows: Sequence[Mapping[str, Any]] = ()
) -> PreTrainedModel:
    """`model` with the adapter that is asked for (finllm.models.settings), its base frozen. Seed before calling.

    `rows` of `input_ids` and `labels`, in one fixed order, are for methods that look at data before they begin. Where
    the method knows no `Conv1D`, those layers of `model` become equal linear ones, for good (finllm.models.conv1d).
    """
    from peft import get_peft_model

    layers = _layers(model)  # before peft has wrapped some of them
    config = fitting_config(model, arguments, rows)
    if needs_linear(model, config):
        conv1d.to_linear(model)
    if hasattr(config, "fan_in_fan_out"):
        # GPT-2 keeps its weights transposed (Conv1D); peft must know, and only guesses with a warning.
        config.fan_in_fan_out = conv1d.has_conv1d(model)
    try:
        numbers = 3 * model.num_parameters() if numbers_bounded(config) else math.inf
        if 4 * numbers > memory_bytes():  # then it is worth a second to know
            shapes = shapes_made(model, config)
            numbers = sum(map(math.prod, shapes.values())) if shapes else numbers_at_most(config, model)
        if 4 * numbers > memory_bytes():
            raise UserError(
                f"{_said(arguments, config)} makes an adapter of {4 * numbers / 2**30:,.1f} GiB, and this machine has "
                f"{memory_bytes() / 2**30:,.1f} GiB of memory; lower its rank, or the number of its virtual tokens"
            )
        starts.look_at(model, config, rows)
        adapted = get_peft_model(model, config)
        starts.finish(adapted, rows)
    except UserError:
        raise
    except Exception as error:  # of a method and a model that do not go together peft raises many
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        about_layers = f"; {layers}{ALL_BUT}" if re.search("target|module", reason, re.I) else ""
        raise UserError(f"{_said(arguments, config)}: {reason}{about_layers}") from error
    return as_it_answers(adapted)


def fitting_config(
    model: PreTrainedModel, arguments: ModelConfig, rows: Sequence[Mapping[str, Any]] = ()
) -> PeftConfig:
    """The config of peft that is asked for; a `UserError` where it names what `model` has not, or sizes do not fit.

    Of `model` names and shapes are looked at, so one without memory for its weights will do (finllm.models.skeletons).
    """
    config, given = adapter_config(model, arguments, rows)
    place = _place_of(config)
    modules, parameters = ([name for name, _ in named] for named in (model.named_modules(), model.named_parameters()))
    for field, names in (
        ("target_modules", modules), ("modules_to_save", modules), ("target_parameters", parameters),
        ("feedforward_modules", modules), ("exclude_modules", modules),
    ):  # fmt: skip
        asked = given.get(field) or []  # one string is `all-linear`, or an expression for peft
        for part in asked if isinstance(asked, list | set) else []:
            if not any(name == part or name.endswith(f".{part}") for name in names):  # peft leaves it out in silence
                raise UserError(f"{place(field)} names {part!r}, and this model has none; {_layers(model)}")
    if isinstance(getattr(config, "target_modules", None), str) and config.target_modules.isidentifier():
        # TRL makes a list of one name a string, and peft reads a string as a regular expression for whole paths.
        config.target_modules = {config.target_modules}
    check_patterns(config.to_dict(), model, "the adapter's flags")
    excluded = given.get("exclude_modules")
    if isinstance(excluded, str) and not any(re.fullmatch(excluded, name) for name in modules):  # as peft reads it
        raise UserError(
            f"peft.exclude_modules is {excluded!r}, an expression for whole paths, and this model has none that it is "
            f"of; {_layers(model)}"
        )
    targets = set(_targets(config, model))
    if getattr(config, "target_modules", None) and not (targets or getattr(config, "target_parameters", None)):
        raise UserError(
            f"{_said(arguments, config)}: no module of this model is meant by it; {_layers(model)}{ALL_BUT}"
        )
    if any(module is model.get_output_embeddings() for name, module in model.named_modules() if name in targets):
        raise UserError(
            f"{_said(arguments, config)} adapts the head, which TRL's loss goes past; take it out, or train the whole "
            f"head with {place('modules_to_save')}"
        )
    raise_problems(fit(config, given, model), "the adapter's flags")
    return config


def _targets(config: PeftConfig, model: PreTrainedModel) -> list[str]:
    """The names of the modules that a config of peft means."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists

    if not getattr(config, "target_modules", None):
        return []
    expanded = _maybe_include_all_linear_layers(copy.deepcopy(config), model)
    return [name for name, _ in model.named_modules() if check_target_module_exists(expanded, name)]


def as_it_answers(adapted: PreTrainedModel) -> PreTrainedModel:
    """The adapted model, asked and answering as any other: see finllm.models.virtual."""
    hide_virtual_tokens(adapted)
    if str(adapted.active_peft_config.peft_type.value) == "ADAPTION_PROMPT":
        # peft's holds the forward that the base model had then, which would go past what is taught to it later.
        adapted.base_model.forward = lambda *given, **named: adapted.base_model.model(*given, **named)
    if known_method(str(adapted.active_peft_config.peft_type.value)).one_task:
        of_one_task(adapted)
    return adapted


def _place_of(config: PeftConfig) -> Callable[[str], str]:
    """What a field of the config is called by who gives it."""
    keys = {name: key for key, name in KEYS.items()} if config.peft_type == "LORA" else {}
    return lambda field: keys.get(field, f"peft.{field}")


def _said(arguments: ModelConfig, config: PeftConfig) -> str:
    targets = getattr(config, "target_modules", None)
    if config.peft_type == "LORA" and not getattr(arguments, "peft", None):
        return f"lora_target_modules {arguments.lora_target_modules!r}"
    some = [targets] if isinstance(targets, str) else at_most(sorted(targets or ()), 3)
    named = f" on {', '.join(some)}" if some else ""
    return f"peft_type {config.peft_type.value.lower()}{named}"


def adapter_config(
    model: PreTrainedModel, arguments: ModelConfig, rows: Sequence[Mapping[str, Any]] = ()
) -> tuple[PeftConfig, dict[str, Any]]:
    """The config of peft that is asked for, with defaults that suit the model, and the fields that were given."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind, given = getattr(arguments, "kind", None) or "LORA", given_settings(arguments)
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    plain_lora = kind == "LORA" and not getattr(arguments, "peft_type", None)  # as TRL has it
    settings = {**({} if plain_lora else known_method(kind).settings), **given}
    if kind == "LN_TUNING" and "target_modules" not in given:
        norms = {
            name.rpartition(".")[2] for name, module in model.named_modules() if "norm" in type(module).__name__.lower()
        }
        settings["target_modules"] = sorted(norms)
    if {"layers_to_transform", "layers_pattern"} & {*given} and settings.get("target_modules") == "all-linear":
        head = model.get_output_embeddings()  # peft takes these fields beside a list of names alone
        linear = {name for name, module in model.named_modules() if _is_linear(module) and module is not head}
        settings["target_modules"] = sorted({name.rpartition(".")[2] for name in linear})
    if kind == "ADAPTION_PROMPT" and "adapter_layers" not in given:
        settings["adapter_layers"] = model.config.get_text_config().num_hidden_layers
    if kind == "CPT" and settings.get("cpt_token_ids") is None:
        settings["cpt_token_ids"] = list(rows[0]["input_ids"][:CONTEXT]) if rows else [0] * CONTEXT
    if kind == "ADALORA":
        settings["total_step"] = UNKNOWN_STEPS
    if kind == "PREFIX_TUNING" and settings.get("prefix_projection") and "encoder_hidden_size" not in given:
        settings["encoder_hidden_size"] = model.config.get_text_config().hidden_size
    try:
        return cls(task_type="CAUSAL_LM", **settings), given
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"peft_type {kind.lower()}: {' '.join(str(error).split())[:300]}") from error
    except ImportError as error:
        extra = "; run: pip install 'finllm[adamss]'" if kind == "ADAMSS" else ""
        raise UserError(f"peft_type {kind.lower()}: {' '.join(str(error).split())[:200]}{extra}") from error


def needs_linear(model: PreTrainedModel, config: PeftConfig) -> bool:
    """Whether the method works only where the model's `Conv1D` are linear layers: tried without memory for any weight.

    It does where building the adapter or a first forward fails, or nothing would train, and with linear layers neither.
    """
    if not conv1d.has_conv1d(model):
        return False
    wrong = _wrong_on(skeleton(model.config), config)
    if wrong is None:
        return False
    linear = skeleton(model.config)
    conv1d.to_linear(linear)
    return _wrong_on(linear, config) is None or "Conv1D" in wrong


def _wrong_on(without_memory: PreTrainedModel, config: PeftConfig) -> str | None:
    """Why an adapter of this config does not work on a model without memory; None where it does."""
    from peft import get_peft_model

    config = copy.deepcopy(config)
    if getattr(config, "init_lora_weights", True) in starts.FROM_DATA:
        config.init_lora_weights = True
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = conv1d.has_conv1d(without_memory)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            adapted = get_peft_model(without_memory, config)
            if not any(parameter.requires_grad for parameter in adapted.parameters()):
                return "nothing would train"
            adapted(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except Exception as error:  # as above
        return str(error) or type(error).__name__
    return None


def _layers(model: PreTrainedModel) -> str:
    linear = sorted({name.split(".")[-1] for name, module in model.named_modules() if _is_linear(module)})
    return f"its linear layers are {', '.join(linear)}"


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)


# peft asks transformers by the older name; nobody who runs a command can change that.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

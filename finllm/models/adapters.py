"""Adapters: put one on a base model, look under it, and what the way to train is called."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finllm.cpu.machine import memory_bytes
from finllm.errors import UserError, did_you_mean, raise_problems
from finllm.models import checked
from finllm.models.patterns import check_patterns

if TYPE_CHECKING:
    from trl import ModelConfig


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The base model under an adapter; a model without one as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_adapter(model: PreTrainedModel, arguments: ModelConfig) -> PreTrainedModel:
    """`model` with the adapter that TRL's flags describe (LoRA, DoRA, rsLoRA), its base frozen. Seed before calling."""
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from trl import get_peft_config

    modules, parameters = ([name for name, _ in named] for named in (model.named_modules(), model.named_parameters()))
    for key, names in (
        ("lora_target_modules", modules), ("lora_modules_to_save", modules), ("lora_target_parameters", parameters),
    ):  # fmt: skip
        asked = getattr(arguments, key) or []  # one string is `all-linear`, or an expression for peft
        for part in asked if isinstance(asked, list) else []:
            if not any(name == part or name.endswith(f".{part}") for name in names):  # peft leaves it out in silence
                raise UserError(f"{key} names {part!r}, and this model has none; {_layers(model)}")
    config = get_peft_config(arguments)
    assert config is not None, "called only with use_peft"
    # GPT-2 keeps its weights transposed (Conv1D); peft must know, and only guesses with a warning.
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    if isinstance(config.target_modules, str) and config.target_modules.isidentifier():
        # TRL makes a list of one name a string, and peft reads a string as a regular expression for whole paths.
        config.target_modules = {config.target_modules}
    layers = _layers(model)  # before peft has wrapped some of them
    check_patterns(config.to_dict(), model, "the adapter's flags")
    try:
        numbers = sum(map(math.prod, _shapes_made(model, config).values()))
        if 4 * numbers > memory_bytes():
            raise UserError(
                f"lora_r is {arguments.lora_r:,}, which makes an adapter of {4 * numbers / 2**30:,.1f} GiB, and this "
                f"machine has {memory_bytes() / 2**30:,.1f} GiB of memory; lower lora_r"
            )
        adapted = get_peft_model(model, config)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"lora_target_modules {arguments.lora_target_modules!r}: {str(error).splitlines()[0]}; {layers}, "
            "and `all-linear` takes all but lm_head"
        ) from error
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            f"lora_target_modules {arguments.lora_target_modules!r} adapts the head, which TRL's loss goes past; take "
            "it out, or train the whole head with lora_modules_to_save"
        )
    return adapted


def _layers(model: PreTrainedModel) -> str:
    linear = sorted({name.split(".")[-1] for name, module in model.named_modules() if _is_linear(module)})
    return f"its linear layers are {', '.join(linear)}"


def load_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`base` with the adapter saved in `folder`, which comes from others: proved to fit before anything is allocated.

    Its tensors must be, in name and shape, those that its config makes on this very model. Else peft would allocate
    what the config asks for, or leave out what the file lacks.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel

    held, shapes = checked.check_adapter(folder)
    kind, place = held.get("peft_type"), folder / checked.ADAPTER_CONFIG
    if kind not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
        known = [str(each.value) for each in PEFT_TYPE_TO_CONFIG_MAPPING]
        raise UserError(
            f"{place}: peft_type is {kind!r}{did_you_mean(str(kind), known)}; peft has {', '.join(sorted(known))}"
        )
    check_patterns(held, base, str(place))
    try:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_pretrained(str(folder), trust_remote_code=False)
        if config.is_prompt_learning:
            raise ValueError(f"{kind} puts tokens of its own before every text, which is not done here")
        made = _shapes_made(base, config)
    except Exception as error:  # of a config of somebody else's a library may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{place} makes no adapter of {base.config.name_or_path}: {reason}") from error
    own = {name: tuple(tensor.shape) for name, tensor in base.state_dict().items()}
    raise_problems(_differences(made, shapes, own), f"{folder}, whose weights are not those that its config makes")
    return PeftModel.from_pretrained(base, str(folder), trust_remote_code=False)


def _differences(made: checked.Shapes, held: checked.Shapes, base: checked.Shapes) -> list[str]:
    """What an adapter's file lacks, has in another shape, or has beside; layers of the base may be saved with it."""
    found = [
        f"{name} is {held.get(name, 'missing')} and must be {shape}"
        for name, shape in made.items()
        if held.get(name) != shape
    ]
    beside = [name for name in held if name not in made and name.removeprefix("base_model.model.") not in base]
    found += [f"{name} belongs to nothing" for name in beside]
    return found if len(found) < 4 else [*found[:3], f"and {len(found) - 3:,} more"]


def _shapes_made(base: PreTrainedModel, config) -> checked.Shapes:
    """The shapes of the tensors that an adapter of this config saves, found without memory for any of them."""
    from peft import get_peft_model, get_peft_model_state_dict

    config = copy.deepcopy(config)
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # other beginnings compute with the base's weights, and have the same shapes
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        adapted = get_peft_model(skeleton(base.config), config)
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in saved.items()}


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config without memory for its weights; no random number of the process is used up."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)


def method_of(arguments: ModelConfig) -> str:
    """`full`, `lora` or `qlora`."""
    if not arguments.use_peft:
        return "full"
    return "qlora" if arguments.load_in_4bit or arguments.load_in_8bit else "lora"


# peft asks transformers by the older name; nobody who runs a command can change that.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

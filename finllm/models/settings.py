"""What is asked of a model and its method: TRL's `ModelConfig`, and any method of peft by peft's own names.

    peft_type: ia3                 any of peft's types, in small letters or capitals
    peft: {feedforward_modules: [mlp.c_proj]}      any field of that type's config class
    trainable: ["h.11.*", "ln_f"]  or no adapter: which of the model's own weights train

`use_peft` and the `lora_*` keys mean what they mean in TRL, and `peft` adds to them any other field of LoRA's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig

from finllm.errors import UserError, did_you_mean
from finllm.models.methods import OWN, known_method
from finllm.models.values import ABOVE_0, AT_LEAST_1, Limit, beyond, limit_of_field, shown, wrong_type

LORA = "LORA"
# ModelConfig's key: the field of LoraConfig
KEYS = {
    "lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters", "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora", "use_dora": "use_dora",
}  # fmt: skip
# Fields whose value is a config of its own, by the class of peft that it is one of
NESTED = {
    "eva_config": "EvaConfig", "corda_config": "CordaConfig", "lora_ga_config": "LoraGAConfig",
    "loftq_config": "LoftQConfig", "velora_config": "VeloraConfig", "monteclora_config": "MontecloraConfig",
    "kasa_config": "KasaConfig", "arrow_config": "ArrowConfig", "use_bdlora": "BdLoraConfig",
}  # fmt: skip
# Inits that need their config, which has a default for everything
NEEDS = {"eva": "eva_config", "corda": "corda_config", "lora_ga": "lora_ga_config"}
ANY = "any"
# By method and field: another field, and the values of it with which peft reads the first; ANY is all but none and 0.0
READ_WHERE = {
    **{("LORA", f"{init}_config"): ("init_lora_weights", (init,)) for init in ("eva", "corda", "lora_ga", "loftq")},
    ("LORA", "qalora_group_size"): ("use_qalora", (True,)),
    ("PREFIX_TUNING", "encoder_hidden_size"): ("prefix_projection", (True,)),
    **{("P_TUNING", name): ("encoder_reparameterization_type", ("LSTM",))
       for name in ("encoder_dropout", "encoder_num_layers")},
    **{(kind, name): ("prompt_tuning_init", ("TEXT",)) for kind in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING")
       for name in ("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")},
    ("OFT", "eps"): ("coft", (True,)),
    **{(kind, "num_cayley_neumann_terms"): ("use_cayley_neumann", (True,)) for kind in ("OFT", "PSOFT")},
    ("PSOFT", "cayley_neumann_eps"): ("use_cayley_neumann", (True,)),
    ("PSOFT", "psoft_svd_lowrank_niter"): ("psoft_svd", ("lowrank",)),
    ("PSOFT", "random_seed"): ("psoft_svd", ("lowrank",)),
    ("LOKR", "rank_dropout_scale"): ("rank_dropout", (ANY,)),
    **{("ADAMSS", name): ("use_asa", (True,))
       for name in ("asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval", "asa_schedule_exponent")},
    ("ADAMSS", "svd_threshold"): ("use_dynamic_rank", (True,)),
    (ANY, "layers_pattern"): ("layers_to_transform", (ANY,)),
}  # fmt: skip
OF_LAYERS = ("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "exclude_modules")
REFUSED = {
    ("ADALORA", "total_step"): "it is the run's number of steps, and set by the recipe",
    ("ADALORA", "rank_pattern"): "it is what training finds",
    ("LORA", "layer_replication"): "layers that stand twice share weights, and merging adds both adapters (peft #1707)",
    ("LORA", "arrow_config"): "it mixes LoRAs that were trained before",
    ("CPT", "opt_weighted_loss_type"): "only the likelihood of answers is computed here",
    ("CPT", "cpt_tokens_type_mask"): "only the likelihood of answers is computed here, none of the context's own",
    ("CPT", "opt_loss_decay_factor"): "only the likelihood of answers is computed here",
    ("CPT", "tokenizer_name_or_path"): "its context is given as ids (cpt_token_ids)",
    ("MULTITASK_PROMPT_TUNING", "num_tasks"): "all rows here are of one task",
    ("POLY", "n_tasks"): "all rows here are of one task",
    ("ADAMSS", "use_asa"): "its masks are not in a checkpoint, so a resumed run would end elsewhere",
}


@dataclass
class MethodConfig(ModelConfig):
    """ModelConfig, and the method: one of peft's types with its fields, or weights of the model's own."""

    peft_type: str | None = field(
        default=None, metadata={"help": "A method of peft by peft's own name: lora, ia3, vera, prompt_tuning, …"}
    )
    peft: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of that method's config class: a mapping, on the command line JSON."}
    )
    trainable: list[str] | None = field(
        default=None,
        metadata={"help": "Instead of an adapter: patterns (`h.11.*`, `*bias`) of the model's weights that train."},
    )

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.peft, str):
            try:
                self.peft = json.loads(self.peft)
            except json.JSONDecodeError as error:
                raise UserError(f"peft is {shown('peft', self.peft)}, which is not JSON ({error})") from None
        if self.peft is not None and not isinstance(self.peft, dict):
            raise UserError(f"peft is {shown('peft', self.peft)}; it must map fields of the method's config to values")
        if isinstance(self.trainable, str):
            self.trainable = [self.trainable]
        if self.peft_type is not None:
            self.peft_type = str(self.peft_type).upper().replace("-", "_")
        # A method that is named is one to be used; a run's config.yaml says both.
        self.use_peft = self.use_peft or self.peft_type is not None or bool(self.peft)

    @property
    def kind(self) -> str | None:
        """Peft's type, in capitals; None without an adapter."""
        return (LORA if self.peft_type is None else self.peft_type) if self.use_peft else None


def name_of(arguments: ModelConfig) -> str:
    """What the way to train is called: full, partial, lora, qlora, ia3, ia3_in_4bit, …"""
    kind = getattr(arguments, "kind", LORA if arguments.use_peft else None)
    if kind is None:
        return "partial" if getattr(arguments, "trainable", None) else "full"
    bits = "4bit" if arguments.load_in_4bit else "8bit" if arguments.load_in_8bit else ""
    if kind == LORA:
        return "qlora" if bits else "lora"
    return kind.lower() + (f"_in_{bits}" if bits else "")


def settings_problems(arguments: MethodConfig) -> Iterator[str]:
    """What is wrong with the method and its fields, as far as it can be known without a model."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    if arguments.trainable is not None and arguments.use_peft:
        yield "trainable names weights of the model's own and an adapter is asked for too; remove one of them"
    if not arguments.use_peft:
        return
    known = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = arguments.kind
    if kind not in known:
        suggestion = did_you_mean(kind.lower(), [name.lower() for name in known])
        yield (
            f"peft_type is {kind.lower()!r}{suggestion}; peft has " + ", ".join(name.lower() for name in sorted(known))
        )
        return
    if reason := known_method(kind).refused:
        yield f"peft_type is {kind.lower()!r}; {reason}"
        return
    given, usual = arguments.peft or {}, ModelConfig()
    of_lora = {key: name for key, name in KEYS.items() if getattr(arguments, key) != getattr(usual, key)}
    for key, name in of_lora.items():
        if kind != LORA:
            yield (
                f"{key} is {getattr(arguments, key)!r} and belongs to LoRA, and peft_type is {kind.lower()!r}: "
                f"two methods at once; " + (f"give peft: {{{name}: …}}" if name in _names(known[kind]) else "remove it")
            )
        elif name in given:
            yield f"{key} and peft.{name} are two ways to say one thing; remove one of them"
    yield from field_problems(known[kind], given, kind)
    yield from _idle(known[kind], given, kind)


def field_problems(config: type, given: dict[str, Any], kind: str) -> Iterator[str]:
    """Fields that `config` does not have or that are not a person's to set, values of another type or beyond limits."""
    names, hints = _names(config), typing.get_type_hints(config)
    for name, value in given.items():
        if (kind, name) in REFUSED:
            if value != _default(config, name):
                yield f"peft.{name} is {shown(name, value)}; {REFUSED[kind, name]}; remove it"
        elif name not in names:
            others = sorted(other.lower() for other in _who_has(name) if other != kind)
            belongs = f"; it belongs to {', '.join(others[:4])}" if others else ""
            yield f"peft.{name} is no field of {config.__name__}{did_you_mean(str(name), names)}{belongs}"
        elif name in NESTED and isinstance(value, dict):
            nested = _nested(name)
            inner = typing.get_type_hints(nested)
            for key, each in value.items():
                if key not in inner:
                    yield f"peft.{name}.{key} is no field of {nested.__name__}{did_you_mean(str(key), inner)}"
                else:
                    yield from _value_problems(f"peft.{name}.{key}", inner[key], each, None)
        elif name in NESTED and value is not None and not isinstance(value, bool):
            yield f"peft.{name} is {shown(name, value)}; it must be a mapping"
        elif name in PATTERNS and isinstance(value, dict):
            for pattern, each in value.items():
                yield from _value_problems(f"peft.{name}.{pattern}", PATTERNS[name][0], each, PATTERNS[name][1])
        else:
            yield from _value_problems(f"peft.{name}", hints.get(name), value, limit_of_field(name))


def _idle(config: type, given: dict[str, Any], kind: str) -> Iterator[str]:
    """Fields that peft reads only where another one has some value, and it has not."""
    for (of, name), (other, needed) in READ_WHERE.items():
        if of not in (kind, ANY) or name not in given or given[name] == _default(config, name):
            continue
        there = given.get(other, _default(config, other))
        nothing = there is None or (isinstance(there, float) and not there)  # 0 is the number of a layer
        if nothing if needed == (ANY,) else getattr(there, "value", there) not in needed:
            values = " or ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in needed)
            wants = f"peft.{other}" if needed == (ANY,) else f"peft.{other}: {values}"
            yield f"peft.{name} is {shown(name, given[name])} and does nothing without {wants}; add that or remove it"


# Of each layer that they name: of which type its number is, and its limit
PATTERNS = {"rank_pattern": (int, AT_LEAST_1), "alpha_pattern": (float, ABOVE_0)}


def _value_problems(key: str, hint: Any, value: Any, limit: Limit | None) -> Iterator[str]:
    if (must := wrong_type(hint, value)) is not None:
        yield f"{key} is {shown(key, value)}; it must be {must}"
    elif (wrong := beyond(key, value, limit)) is not None:
        yield wrong


def _config_of(kind: str) -> type:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[kind]


def _names(config: type) -> list[str]:
    return [known.name for known in dataclasses.fields(config) if known.init and known.name not in OWN]


def _default(config: type, name: str) -> Any:
    known = next((known for known in dataclasses.fields(config) if known.name == name), None)
    return None if known is None or known.default is dataclasses.MISSING else known.default


@functools.cache
def _who_has(name: str) -> tuple[str, ...]:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    return tuple(str(kind.value) for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name in _names(config))


def _nested(name: str) -> type:
    import peft
    from peft.tuners.lora import config

    return getattr(peft, NESTED[name], None) or getattr(config, NESTED[name])


def given_settings(arguments: MethodConfig) -> dict[str, Any]:
    """The fields that were given, of LoRA those of TRL's keys too, nested configs as peft wants them."""
    given = dict(getattr(arguments, "peft", None) or {})
    if getattr(arguments, "kind", LORA) == LORA:
        named = getattr(arguments, "peft_type", None) is not None
        usual = ModelConfig()
        of_keys = {name: getattr(arguments, key) for key, name in KEYS.items()}
        if named:  # then what is all its default in TRL has ours
            of_keys = {
                name: value for (key, name), value in zip(KEYS.items(), of_keys.values(), strict=True)
                if value != getattr(usual, key)
            }  # fmt: skip
        of_keys = {name: value for name, value in of_keys.items() if value is not None or name not in given}
        given = {**of_keys, **given}
        needed = NEEDS.get(str(given.get("init_lora_weights")))
        if needed and needed not in given:
            given[needed] = {}
    return {
        name: _nested(name)(**value) if name in NESTED and isinstance(value, dict) else value
        for name, value in given.items()
    }


def float32_base(arguments: ModelConfig) -> str:
    """What needs the weights under it in float32, or nothing: a method that begins by rewriting them, which a coarse
    format would round, trains numbers that stand among theirs and are not cast to it, or draws what is to cancel."""
    if not arguments.use_peft:
        return ""
    given, kind = given_settings(arguments), getattr(arguments, "kind", LORA)
    init = str(given.get("init_lora_weights", ""))
    if init.startswith(("pissa", "olora", "corda", "lora_ga", "orthogonal")):
        return f"{name_of(arguments)} with init_lora_weights {init}"
    for name, usual in (("modules_to_save", None), ("bias", "none")):
        if given.get(name, usual) not in (None, usual):
            return f"{name_of(arguments)} with {name} {given[name]}"
    return name_of(arguments) if known_method(kind).float32_base else ""


def not_planned(arguments: MethodConfig) -> str:
    """What of the method cannot be measured on a few random layers and added up (finllm.training.plan), or nothing."""
    given = arguments.peft or {}
    if arguments.trainable is not None:
        return "trainable names weights of a model with all its layers"
    if of_layers := [name for name in OF_LAYERS if given.get(name)]:
        return f"peft.{of_layers[0]} makes them unequal"
    if str(given.get("init_lora_weights")) in NEEDS:
        return f"init_lora_weights: {given['init_lora_weights']} reads rows by the trained base model"
    return ""

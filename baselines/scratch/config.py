"""The settings of a training run: a YAML file, then flags over it. Every problem is named at once."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, NamedTuple

from finllm.bounded import read_yaml
from finllm.errors import did_you_mean, raise_problems
from finllm.terminal import Parser
from finllm.text.credentials import credentials
from finllm.text.prompts import TEMPLATE_ID

VARIANTS = ("as_published", "causal", "seq2seq")
LANGUAGE_MODEL = "baselines.scratch.lm"
ALPACA_ALONE = (
    "its tokenizer has no control tokens, so it asks single questions, in alpaca; conversations and other templates "
    "are for recipes/sft.py"
)
CHOICES = {
    "variant": VARIANTS,
    "norm": ("pre", "post"),
    "tokenizer": ("bpe", "unigram"),
    "positions": ("sinusoidal", "learned", "rotary"),
    "language_model": (LANGUAGE_MODEL,),
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model: C = `width`, H = `heads`, F = `feed_forward`, V = `vocabulary_size`."""

    vocabulary_size: int
    max_length: int  # tokens that one training text may have
    layers: int  # of the encoder and of the decoder, where there are both
    width: int
    heads: int
    feed_forward: int
    dropout: float
    positions: str  # sinusoidal, learned, rotary
    tie_embeddings: bool  # one matrix VC for the tokens read and the tokens written (Press and Wolf 2017)
    variant: str = "causal"  # what a model saved before there were three is
    norm: str = "pre"  # pre, post


@dataclass(frozen=True)
class TrainConfig:
    """Every key of a config file, each also a flag of the same name."""

    dataset_name: str  # a dataset dir
    output_dir: str  # the run dir to write
    seed: int = 0
    variant: str = "causal"  # which model: as_published, causal, seq2seq; see model.py

    tokenizer: str = "bpe"
    vocabulary_size: int = 8000
    max_length: int = 350  # tokens of one example; what is longer loses its end
    loss_on_prompt: bool = False

    layers: int = 4
    width: int = 256
    heads: int = 4
    feed_forward: int = 512
    dropout: float = 0.1
    positions: str = "sinusoidal"
    tie_embeddings: bool = False
    norm: str | None = None  # pre or post; none: post for as_published, pre for the others

    num_train_epochs: int = 10
    max_steps: int | None = None  # in place of num_train_epochs
    batch_tokens: int = 4096  # tokens of one step, padding and all processes included
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.1  # share of the steps
    weight_decay: float = 0.1
    adam_beta2: float = 0.99
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0  # share of each target that is spread over all tokens
    unlikelihood: float = 0.0  # weight of the loss against repetition
    bf16: bool = False  # matrix products of training in bfloat16, on a GPU or CPU that has it

    logging_steps: int = 10
    eval_steps: int = 100
    save_steps: int = 500  # a checkpoint; a multiple of logging_steps
    early_stopping_patience: int | None = None  # evaluations without a better validation loss

    language_model: str = LANGUAGE_MODEL  # how eval/run.py finds the code of this model

    def __post_init__(self):
        if self.norm is None:
            object.__setattr__(self, "norm", "post" if self.variant == "as_published" else "pre")

    def model(self, vocabulary_size: int) -> ModelConfig:
        names = {field.name for field in dataclasses.fields(ModelConfig)} - {"vocabulary_size"}
        return ModelConfig(vocabulary_size, **{name: getattr(self, name) for name in names})


TYPES = typing.get_type_hints(TrainConfig)


class Asked(NamedTuple):
    """What a command line asks for."""

    config: TrainConfig
    resume: bool  # `--resume auto`
    stop_at_step: int | None
    dry_run: bool  # settings and data were to be checked, and no more


def read_config(arguments: list[str], description: str) -> Asked:
    """The settings of a command line, and what it asks for beside them; a `UserError` names every problem."""
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of the keys below; a flag stands over the file")
    parser.add_argument("--resume", choices=["auto"], help="go on with the run in output_dir, or begin it")
    parser.add_argument("--dry_run", action="store_true", help="check the settings and the data, and no more")
    parser.add_argument("--stop_at_step", metavar="VALUE", help="stop after this step; --resume auto goes on")
    parser.add_argument("--template", default=TEMPLATE_ID, help="alpaca, and no other")
    for field in dataclasses.fields(TrainConfig):
        default = "required" if field.default is dataclasses.MISSING else f"default {field.default}"
        parser.add_argument(f"--{field.name}", metavar="VALUE", default=argparse.SUPPRESS, help=default)
    known, unknown = parser.parse_known_args(arguments)
    flags = vars(known)
    path, resume, template = flags.pop("config"), flags.pop("resume") == "auto", flags.pop("template")
    stop, dry_run = flags.pop("stop_at_step"), flags.pop("dry_run")

    names = [field.name for field in dataclasses.fields(TrainConfig)]
    problems = []
    if stop is not None and not (stop.isdecimal() and int(stop)):
        problems.append(f"stop_at_step is {stop!r} and must be a whole number, at least 1")
    for before, word in itertools.pairwise(["", *unknown]):
        if word.startswith("--"):
            flag = word.split("=")[0]
            problems.append(f"unknown flag '{flag}'{did_you_mean(flag[2:], names)}")
        elif not before.startswith("--") or "=" in before:  # else it is the unknown flag's value
            problems.append(f"'{word}' belongs to no flag")
    from_file = read_yaml(path) if path else {}
    for asked in (from_file.pop("template", TEMPLATE_ID), template):
        if asked != TEMPLATE_ID:
            problems.append(f"template is {asked!r} and must be {TEMPLATE_ID}: {ALPACA_ALONE}")
    problems += [f"unknown key '{key}'{did_you_mean(str(key), names)}" for key in from_file if key not in names]
    values = {key: value for key, value in {**from_file, **flags}.items() if key in names}
    for key, value in values.items():
        try:
            values[key] = _typed(value, TYPES[key])
        except ValueError:
            problems.append(f"{key} is {value!r} and must be {_name(TYPES[key])}")
    problems += [f"{place} looks like a credential, and config.yaml would show it; remove it" for place in
                 credentials(values)]  # fmt: skip
    for name in ("dataset_name", "output_dir"):
        if name not in values:
            problems.append(f"{name} is missing; give it in the config file or as --{name}")
    where = f"{path} and the flags" if path and flags else path or "the flags"
    if not problems:
        problems = list(_limits(TrainConfig(**values)))
    raise_problems(problems, where)
    return Asked(TrainConfig(**values), resume, None if stop is None else int(stop), dry_run)


def _typed(value: Any, kind: Any) -> Any:
    """`value` as `kind`, from a flag's text or YAML's reading of it (in YAML, 1e-3 is text); else a ValueError."""
    if isinstance(kind, types.UnionType):
        if value is None or value in ("none", "null"):
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind is str or kind is bool:
        if isinstance(value, kind):
            return value
    elif not isinstance(value, bool) and isinstance(value, (str, int, float)):
        number = float(value)
        if kind is float and math.isfinite(number):
            return number
        if kind is int and number.is_integer():
            return int(number)
    raise ValueError


def _name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return " or ".join(names[part] for part in (typing.get_args(kind) or (kind,)))


def _limits(config: TrainConfig) -> typing.Iterator[str]:
    """What is wrong with values of the right type."""
    for key, choices in CHOICES.items():
        value = getattr(config, key)
        if value not in choices:
            yield f"{key} is '{value}' and must be {' or '.join(choices)}{did_you_mean(value, choices)}"
    for key, kind in TYPES.items():
        value = getattr(config, key)
        if kind in (int, int | None) and key != "seed" and value is not None and value < 1:
            yield f"{key} is {value} and must be at least 1"
    for key, low, high in (("dropout", 0, 1), ("warmup_ratio", 0, 1), ("adam_beta2", 0, 1), ("label_smoothing", 0, 1)):
        if not low <= getattr(config, key) < high:
            yield f"{key} is {getattr(config, key)} and must be at least {low} and below {high}"
    for key in ("learning_rate", "max_grad_norm"):
        if getattr(config, key) <= 0:
            yield f"{key} is {getattr(config, key)} and must be above 0"
    for key in ("weight_decay", "unlikelihood"):
        if getattr(config, key) < 0:
            yield f"{key} is {getattr(config, key)} and must be at least 0"
    if config.heads > 0 and config.width % config.heads:
        yield f"width is {config.width} and heads is {config.heads}: the heads must divide the width"
    if config.positions == "sinusoidal" and config.width % 2:
        yield f"width is {config.width} and must be even for sinusoidal positions"
    if config.positions == "rotary" and config.heads > 0 and config.width // config.heads % 2:
        yield f"width / heads is {config.width // config.heads} and must be even for rotary positions"
    if config.variant == "seq2seq" and config.loss_on_prompt:
        yield "loss_on_prompt is true and variant is seq2seq, whose encoder reads the prompt and predicts nothing of it"
    if config.logging_steps > 0 and config.save_steps % config.logging_steps:
        yield f"save_steps is {config.save_steps} and must be a multiple of logging_steps ({config.logging_steps})"
    if config.batch_tokens < config.max_length:
        yield f"batch_tokens is {config.batch_tokens} and must be at least max_length ({config.max_length})"

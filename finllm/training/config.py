"""The recipe's flags: TRL's own names from YAML and command line, refused all at once where they are unknown.

A key has the effect that it has in TRL, or is refused with the reason (finllm.training.unsupported). Beyond TRL there
are a few keys of ours (`RecipeArguments`), and defaults that suit the machine: TRL's own raise without a GPU, and turn
on bfloat16 and activation checkpointing everywhere.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import integrations
from trl import SFTConfig, TrlParser

from finllm.bounded import read_yaml
from finllm.cpu.machine import bf16_is_fast
from finllm.errors import UserError, did_you_mean, raise_problems
from finllm.models.methods import known_method, usual_rate
from finllm.models.settings import MethodConfig, float32_base, settings_problems
from finllm.terminal import say
from finllm.text.credentials import credentials
from finllm.text.prompts import CHAT, TEMPLATE_ID
from finllm.text.tokens import ALL_TURNS, LAST_TURN
from finllm.training.limits import beyond_limits, of_yaml, scheduler_problems
from finllm.training.unsupported import unsupported

REPORTER_EXTRAS = ("tensorboard", "wandb", "trackio")  # extras of pyproject.toml


@dataclass
class RecipeArguments:
    """Which data, where from, and what this recipe adds to TRL."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A dataset dir of `finllm prepare`, or any source it takes (prepared into a cache)."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="validation", metadata={"help": "Split for the validation loss; TRL's name for it, not the test split."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, drawn by the seed."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate on this many rows, drawn by the seed."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this many evaluations without a better validation loss; keeps the best."},
    )
    base_dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout of the base model. Default: as its config says, and 0 where it is frozen."},
    )
    keep_freed_memory: bool = field(
        default=True, metadata={"help": "On a CPU, keep large buffers instead of giving them back at every step."}
    )
    template: str = field(
        default=TEMPLATE_ID,
        metadata={"help": "alpaca, chat (the base model's own chat template), or the path of a Jinja file."},
    )
    loss_on: str = field(
        default=ALL_TURNS,
        metadata={"help": "In conversations, whose answers are learned: all_turns, or last_turn alone."},
    )
    resume: str | None = field(
        default=None, metadata={"help": "`auto`: go on with the run in output_dir, or start it.", "choices": ["auto"]}
    )
    stop_at_step: int | None = field(
        default=None,
        metadata={"help": "Stop after this step with a validation loss and a checkpoint; --resume auto goes on."},
    )


@dataclass
class TrainingConfig(SFTConfig):
    """SFTConfig with defaults for the machine at hand; every flag means what it means in TRL."""

    output_dir: str | None = field(default=None, metadata={"help": "The run dir."})
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Batches of like length with at most this many tokens, instead of a number of rows."},
    )
    join_rows: bool | None = field(
        default=None,
        metadata={"help": "Rows end to end instead of padded. Default: on a CPU, where model and compiler allow it."},
    )
    loraplus_lr_ratio: float | None = field(
        default=None, metadata={"help": "LoRA+: B learns so many times as fast as A, 16 in its paper."}
    )
    lora_fa: bool = field(default=False, metadata={"help": "LoRA-FA: A stays as it was drawn, by peft's optimizer."})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "The older name of activation_checkpointing, which is off unless asked for."}
    )
    report_to: str = field(default="none", metadata={"help": "tensorboard, wandb, trackio or none."})
    eval_on_start: bool = field(default=True, metadata={"help": "Validate before the first step."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resume with early stopping's count as it was."}
    )
    save_only_model: bool = field(
        default=False, metadata={"help": "Checkpoints without the optimizer; cannot be resumed."}
    )

    def __post_init__(self):
        self.output_dir = self.output_dir or ""  # transformers would make up a name; `parse` asks for one
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and bf16_is_fast(gpu=not self.use_cpu)
        super().__post_init__()


def parse(arguments: list[str] | None = None) -> tuple[RecipeArguments, TrainingConfig, MethodConfig]:
    """Read `--config X.yaml` and the flags over it. Unknown keys and impossible combinations raise one `UserError`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = TrlParser([RecipeArguments, TrainingConfig, MethodConfig], allow_abbrev=False)
    path = _config_path(arguments)
    known = {action.dest for action in parser._actions} | {"env"}
    from_file: dict[str, Any] = {}
    if path is not None:
        from_file = read_yaml(path)
        problems = [f"unknown key {key!r}{did_you_mean(str(key), known)}" for key in from_file if key not in known]
        settings = {key: value for key, value in from_file.items() if key in known}
        env = settings.pop("env", {})
        if not isinstance(env, dict):
            problems.append("env must map names of environment variables to values")
        settings, of_types = of_yaml(settings, (RecipeArguments, TrainingConfig, MethodConfig))
        raise_problems(problems + of_types, path)
        os.environ.update({name: str(value) for name, value in env.items()})
        parser.set_defaults_with_config(**settings)  # as TRL does, which would read the file without bounds
    flags = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    unknown = [flag for flag in flags if flag not in parser._option_string_actions and flag != "--config"]
    raise_problems(
        (f"unknown flag {flag}{did_you_mean(flag, parser._option_string_actions)}" for flag in unknown),
        "the command line",
    )
    try:
        position = arguments.index("--config") if path is not None else len(arguments)
        recipe, training, model = parser.parse_args_and_config(arguments[:position] + arguments[position + 2 :])
    except (ValueError, ImportError) as error:
        raise UserError(f"{path or 'the command line'}: {' '.join(str(error).split())}") from error
    looking = [
        f"{place} looks like a credential, and config.yaml and the report would show it; remove it, and give it in the "
        "environment (HF_TOKEN)"
        for place in credentials(resolved(recipe, training, model))
    ]
    given = {*from_file, *(flag.removeprefix("--") for flag in flags)}
    problems = _impossible(recipe, training, model) + looking
    raise_problems(problems or _rate(training, model, given), path or "the command line")
    if model.use_peft:
        # Frozen weights need no optimizer, so none of their last bits: half the memory, and no cast in every product.
        if training.bf16 and "dtype" not in given and not float32_base(model):
            model.dtype = "bfloat16"
        if recipe.base_dropout is None:
            recipe.base_dropout = 0.0
    if recipe.early_stopping_patience is not None:
        training.load_best_model_at_end = True
        training.metric_for_best_model, training.greater_is_better = "eval_loss", False
    return recipe, training, model


def _rate(training: TrainingConfig, model: MethodConfig, given: set[str]) -> Iterator[str]:
    """Give a method that is asked for by name its own learning rate where none was given; what is wrong with that."""
    if model.peft_type is None or "learning_rate" in given:
        return
    rate = usual_rate(model.peft_type)
    if rate is None:
        yield f"learning_rate is not set, and none is known for {model.peft_type.lower()}; set it"
        return
    training.learning_rate = rate
    if os.environ.get("RANK", "0") == "0":
        low, high = known_method(model.peft_type).rates
        say(f"learning_rate is {rate:g}, the middle of {model.peft_type.lower()}'s own range ({low:g} to {high:g})")


def _config_path(arguments: list[str]) -> str | None:
    if "--config" not in arguments:
        return None
    position = arguments.index("--config") + 1
    if position == len(arguments):
        raise UserError("--config needs a path to a YAML file")
    return arguments[position]


def _impossible(recipe: RecipeArguments, training: TrainingConfig, model: MethodConfig) -> list[str]:
    """Combinations that cannot work, or that would train something else than what was asked for."""
    problems = []
    for name, value in (
        ("model_name_or_path", model.model_name_or_path),
        ("dataset_name", recipe.dataset_name),
        ("output_dir", training.output_dir),
    ):
        if not value:
            problems.append(f"{name} is not set; add it to the YAML or pass --{name}")
    for part in (recipe, training, model):  # argparse looks at flags alone
        for known in fields(part):
            value, choices = getattr(part, known.name), known.metadata.get("choices")
            if choices and value is not None and value not in choices:
                near = did_you_mean(str(value), choices)
                problems.append(f"{known.name} is {value!r}{near}; it is one of {', '.join(choices)}")
    if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
        problems.append("load_in_4bit and load_in_8bit freeze the weights, so they need use_peft: true")
    found = list(settings_problems(model))
    if not found and model.dtype in ("bfloat16", "float16") and (method := float32_base(model)):
        found = [f"dtype is {model.dtype}, and {method} needs its base model in float32; remove dtype"]
    problems += [*found, *unsupported(training, model)]
    if training.push_to_hub:
        problems.append(
            "push_to_hub is true, and nothing is sent away while a run is trained; remove it, and push what it made: "
            f"hf upload {training.hub_model_id or 'USER/NAME'} {training.output_dir}/model"
        )
    if recipe.early_stopping_patience is not None and training.eval_strategy == "no":
        problems.append("early_stopping_patience needs eval_strategy: steps or epoch")
    stops = recipe.early_stopping_patience is not None
    by_steps = training.eval_strategy == training.save_strategy == "steps"  # transformers wants both to be the same
    if (stops or training.load_best_model_at_end) and by_steps and training.save_steps != training.eval_steps:
        keeps = "early_stopping_patience" if stops else "load_best_model_at_end"
        problems.append(
            f"{keeps} is set, save_steps is {training.save_steps:g} and eval_steps {training.eval_steps:g}: the best "
            f"model may be one that was never saved; set save_steps to {training.eval_steps:g}"
        )
    if recipe.resume and training.save_only_model:
        problems.append(
            "resume needs whole checkpoints and save_only_model leaves the optimizer out; remove one of them"
        )
    if recipe.stop_at_step is not None and training.save_only_model:
        problems.append(
            "stop_at_step leaves a run to be gone on with, and save_only_model leaves the optimizer out; remove one of "
            "them"
        )
    problems += _reporters(training.report_to)
    if training.torch_compile and (missing := _what_compiling_lacks(training.use_cpu)):
        problems.append(f"torch_compile is true and {missing}; install it or remove torch_compile")
    if training.bf16 and training.use_cpu and not bf16_is_fast(gpu=False):
        problems.append("bf16 is true and this CPU has no bfloat16 instructions (some 100 times slower); remove it")
    if recipe.template not in (TEMPLATE_ID, CHAT) and not os.path.isfile(recipe.template):
        problems.append(
            f"template is {recipe.template!r}{did_you_mean(recipe.template, (TEMPLATE_ID, CHAT))}, and there is no "
            "such file; give alpaca, chat or the path of a Jinja file"
        )
    if recipe.loss_on not in (turns := (ALL_TURNS, LAST_TURN)):
        problems.append(
            f"loss_on is {recipe.loss_on!r}{did_you_mean(recipe.loss_on, turns)}; it is one of {', '.join(turns)}"
        )
    if recipe.loss_on == LAST_TURN and training.completion_only_loss is False:
        problems.append(
            "loss_on is last_turn and completion_only_loss false, which learns whole rows; remove one of them"
        )
    problems += [*beyond_limits(recipe, training, model), *scheduler_problems(training)]
    if training.max_tokens_per_batch is not None and training.packing:
        problems.append("max_tokens_per_batch and packing are two ways to the same; set one of them")
    return problems


def _reporters(names: list[str]) -> list[str]:
    """What is wrong with `report_to`: each callback is made as the trainer will make it, before the data is read."""
    problems, known = [], integrations.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            problems.append(f"report_to is {name!r}, which is none of {', '.join(known)}{did_you_mean(name, known)}")
            continue
        try:
            known[name]()
        except (ImportError, RuntimeError, ValueError) as error:
            requirement = f"'finllm[{name}]'" if name in REPORTER_EXTRAS else name.replace("_", "-")
            reason = str(error).strip().splitlines()[0]
            problems.append(
                f"report_to is {name!r} and that cannot be used ({reason}); run pip install {requirement}, or set "
                "report_to: none"
            )
    return problems


def _what_compiling_lacks(use_cpu: bool) -> str:
    """What torch.compile's default backend needs and this machine has not; nothing where it compiles."""
    if use_cpu:
        found = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "c++", "clang++") if name)
        return "" if found else "there is no C++ compiler (c++, g++ or $CXX)"
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton, which writes its kernels"
    try:  # Triton needs a C compiler and Python's headers besides, and finds out when it writes its first kernel
        torch.compile(torch.sin)(torch.zeros(2, device="cuda"))
    except RuntimeError as error:
        return f"a first kernel was not compiled ({str(error).strip().splitlines()[0]})"
    finally:
        torch._dynamo.reset()
    return ""


def resolved(*arguments: RecipeArguments | TrainingConfig | MethodConfig) -> dict[str, Any]:
    """Every key and value of a run, as config.yaml holds them; `--config` reads them back. Holds no token."""
    config = {}
    for part in arguments:
        for known in fields(part):
            if not known.init or known.name in ("hub_token", "resume", "stop_at_step", "local_rank"):
                continue
            value = getattr(part, known.name)
            if hasattr(value, "to_dict"):
                value = value.to_dict()
            config[known.name] = value.value if isinstance(value, enum.Enum) else value
    return config

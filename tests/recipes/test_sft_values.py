"""Values of the recipe's keys that are of another type than the key, or beyond what it may have: all are refused."""

import json
import math
import typing
from dataclasses import fields

import pytest
import yaml
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, C3AConfig, LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel

from finllm.errors import UserError
from finllm.models.adapters import fitting_config
from finllm.models.fit import fit
from finllm.models.settings import READ_WHERE, MethodConfig, settings_problems
from finllm.training.config import RecipeArguments, TrainingConfig, parse
from finllm.training.limits import LIMITS, scheduler_problems
from finllm.training.unsupported import REASONS

# Numbers without a limit here: the launcher's, and one of which only 0 is taken
WITHOUT = {*REASONS, "local_rank", "lora_r", "loraplus_lr_ratio"}
NUMBERS = {int, float, int | None, float | None, int | str | None}


@pytest.fixture
def read(tmp_path):
    def read(settings, *flags):
        held = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "use_cpu": True}
        text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(held) + (text if settings else ""))
        return parse(["--config", str(path), *flags])

    return read


@pytest.fixture
def tiny():
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32))


def problems(read, settings, *flags):
    with pytest.raises(UserError) as found:
        read(settings, *flags)
    return found.value.problems


# By what it must be, keys and a value of another type
OF_ANOTHER_TYPE = [
    {"per_device_train_batch_size": 2.5, "learning_rate": True, "max_grad_norm": None, "packing": 2, "bf16": [],
     "lora_target_modules": 3, "template": 4, "report_to": False, "lr_scheduler_kwargs": 3, "eval_strategy": 3},
    {"max_steps": 2.5, "learning_rate": [1e-4], "max_train_samples": True, "seed": 1.5, "lora_r": 4.0, "packing": 0,
     "lora_target_modules": ["c_attn", 3], "trainable": [4], "peft": 3},
]  # fmt: skip
MUST = {
    "a whole number": ("per_device_train_batch_size", "max_steps", "max_train_samples", "seed", "lora_r"),
    "a number": ("learning_rate", "max_grad_norm"), "true or false": ("packing", "bf16"),
    "a list of texts": ("lora_target_modules", "trainable"), "a text": ("template", "eval_strategy"),
    "a text or a list of texts": ("report_to",), "a mapping or a text": ("lr_scheduler_kwargs", "peft"),
}  # fmt: skip


@pytest.mark.parametrize("settings", OF_ANOTHER_TYPE)
def test_values_of_another_type(read, settings):
    must = {key: words for words, keys in MUST.items() for key in keys}
    shown = {key: "true" if value is True else "false" if value is False else "null" if value is None else repr(value)
             for key, value in settings.items()}  # fmt: skip
    assert problems(read, settings) == [f"{key} is {shown[key]}; it must be {must[key]}" for key in sorted(settings)]


ABOVE_0, AT_LEAST_0, AT_LEAST_1, SHARE = "above 0", "at least 0", "at least 1", "at least 0 and below 1"
BEYOND = [
    {"learning_rate": (0.0, ABOVE_0), "num_train_epochs": (-1.0, ABOVE_0), "lora_alpha": (0, ABOVE_0),
     "weight_decay": (-0.5, AT_LEAST_0), "adam_epsilon": (-1e-8, AT_LEAST_0), "max_grad_norm": (-1.0, AT_LEAST_0),
     "neftune_noise_alpha": (-5.0, AT_LEAST_0), "dataloader_num_workers": (-1, AT_LEAST_0),
     "per_device_train_batch_size": (0, AT_LEAST_1), "per_device_eval_batch_size": (-2, AT_LEAST_1),
     "gradient_accumulation_steps": (0, AT_LEAST_1), "save_total_limit": (0, AT_LEAST_1),
     "max_eval_samples": (0, AT_LEAST_1), "max_tokens_per_batch": (0, AT_LEAST_1), "lora_dropout": (-0.1, SHARE),
     "adam_beta1": (1.0, SHARE), "adam_beta2": (1.5, SHARE), "base_dropout": (-0.1, SHARE),
     "seed": (-1, "from 0 to 4,294,967,295"), "data_seed": (2**32, "from 0 to 4,294,967,295"),
     "max_length": (1, "at least 2"), "max_steps": (0, "at least 1, or -1 for num_train_epochs")},
    {"learning_rate": (-1.0, ABOVE_0), "num_train_epochs": (0.0, ABOVE_0), "logging_steps": (-1.0, ABOVE_0),
     "eval_steps": (-1.0, ABOVE_0), "lora_alpha": (-3, ABOVE_0), "eval_delay": (-0.5, AT_LEAST_0),
     "save_steps": (-1.0, AT_LEAST_0), "lora_dropout": (1.0, SHARE), "adam_beta1": (-0.5, SHARE),
     "adam_beta2": (1.0, SHARE), "base_dropout": (1.5, SHARE), "max_train_samples": (-1, AT_LEAST_1),
     "early_stopping_patience": (0, AT_LEAST_1), "stop_at_step": (0, AT_LEAST_1),
     "seed": (2**32, "from 0 to 4,294,967,295"), "max_steps": (-2, "at least 1, or -1 for num_train_epochs")},
    {key: (math.nan, "a finite number") for key in ("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon",
                                                    "num_train_epochs", "lora_dropout", "neftune_noise_alpha")},
    {key: (math.inf, "a finite number") for key in ("learning_rate", "weight_decay", "max_grad_norm", "lora_dropout")},
]  # fmt: skip


@pytest.mark.parametrize("beyond", BEYOND)
def test_numbers_beyond_their_limits(read, beyond):
    """On the command line: YAML holds no number that is not finite."""
    told = problems(read, {"peft_type": "lora", "eval_strategy": "steps", "save_strategy": "no"},
                    *(f"--{key}={value}" for key, (value, _) in beyond.items()))  # fmt: skip
    assert {f"{key} is {value}; it must be {must}" for key, (value, must) in beyond.items()} == set(told)


def test_a_number_of_yaml_beyond_its_limit(read):
    assert problems(read, {"seed": -1, "adam_beta1": 1}) == [
        "adam_beta1 is 1; it must be at least 0 and below 1", "seed is -1; it must be from 0 to 4,294,967,295"
    ]  # fmt: skip


def test_numbers_at_their_limits_are_taken(read):
    for settings in (
        {"learning_rate": 1e-9, "max_grad_norm": 0.0, "adam_beta1": 0.0, "seed": 2**32 - 1, "max_steps": -1},
        {"max_steps": 1, "weight_decay": 0, "logging_steps": 1, "max_length": 2, "eval_steps": 0.5},
    ):
        _, training, _ = read(settings)
        assert {key: getattr(training, key) for key in settings} == settings


def test_every_number_has_a_limit():
    """A new key of TRL's is to be looked at."""
    hints = {name: hint for part in (RecipeArguments, TrainingConfig, MethodConfig)
             for name, hint in typing.get_type_hints(part).items()
             if any(known.name == name and known.init for known in fields(part))}  # fmt: skip
    numbers = {name for name, hint in hints.items() if hint in NUMBERS}
    assert numbers - WITHOUT == LIMITS.keys() - WITHOUT and len(numbers) > 30


def test_all_that_is_wrong_with_a_file_is_told_at_once(read):
    found = problems(read, {"seed": 1.5, "packing": 1, "lerning_rate": 1e-4})
    assert len(found) == 3 and "did you mean 'learning_rate'?" in found[0]


def test_numbers_of_a_methods_own_fields():
    for kind, given, must in (
        ("lora", {"lora_dropout": -0.1, "lora_alpha": -3}, (SHARE, ABOVE_0)),
        ("vera", {"vera_dropout": 1.0}, (SHARE,)),
        ("loha", {"module_dropout": 1.5, "alpha": -1}, (SHARE, ABOVE_0)),
        ("lokr", {"rank_dropout": -1.0, "alpha": 0}, (SHARE, ABOVE_0)),
        ("randlora", {"randlora_alpha": -1}, (ABOVE_0,)),
        ("oft", {"module_dropout": math.inf}, ("a finite number",)),
        ("fourierft", {"scaling": math.nan}, ("a finite number",)),
    ):
        found = list(settings_problems(MethodConfig(peft_type=kind, peft=json.dumps(given))))
        assert found == [
            f"peft.{name} is {value}; it must be {each}"
            for (name, value), each in zip(given.items(), must, strict=True)
        ]


def test_texts_that_peft_would_take_for_none_of_its_own_and_go_on():
    for kind, given, must in (
        ("prompt_tuning", {"prompt_tuning_init": "random"}, "one of ['TEXT', 'SAMPLE_VOCAB', 'RANDOM']"),
        ("p_tuning", {"encoder_reparameterization_type": "LSTMM"}, "one of ['MLP', 'LSTM']"),
        ("miss", {"init_weights": "batt"}, "one of ['bat', 'mini'] or true or false"),
        ("lokr", {"init_weights": "lycoriss"}, "one of ['lycoris'] or true or false"),
        ("lora", {"init_lora_weights": 3}, None),
        ("lora", {"bias": "True"}, "one of ['none', 'all', 'lora_only']"),
        ("lora", {"rank_pattern": {"c_attn": 2.5}}, "a whole number"),
        ("lora", {"rank_pattern": {"c_attn": 0}}, "at least 1"),
        ("lora", {"alpha_pattern": {"c_attn": "x"}}, "a number"),
        ("lora", {"alpha_pattern": {"c_attn": -1.0}}, "above 0"),
        ("lora", {"eva_config": {"rho": "x"}, "init_lora_weights": "eva"}, "a number"),
        ("lora", {"eva_config": 3, "init_lora_weights": "eva"}, "a mapping"),
        ("adalora", {"deltaT": 0}, "at least 1"),
        ("adalora", {"beta1": 1.0}, "above 0 and below 1"),
        ("vera", {"r": -1}, "at least 0"),
    ):
        (found,) = settings_problems(MethodConfig(peft_type=kind, peft=given))
        assert must is None or found.endswith(f"; it must be {must}"), found
        assert "'True'" in found or given.get("bias") is None, found  # a text is shown as one


def test_texts_that_are_pefts_own():
    for kind, given in (
        ("prompt_tuning", {"prompt_tuning_init": "SAMPLE_VOCAB"}), ("miss", {"init_weights": "bat"}),
        ("lokr", {"init_weights": "lycoris"}), ("lora", {"init_lora_weights": "pissa_niter_4"}),
        ("lora", {"init_lora_weights": "lora_ga"}), ("lora", {"init_lora_weights": False}),
        ("lora", {"rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_attn": 2.5}}),
    ):  # fmt: skip
        assert not [*settings_problems(MethodConfig(peft_type=kind, peft=given))], given


def test_fields_that_peft_reads_only_where_another_has_some_value():
    for kind, given, missing in (
        ("lora", {"eva_config": {"rho": 2.0}}, "peft.init_lora_weights: eva"),
        ("lora", {"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "eva"}, "peft.init_lora_weights: loftq"),
        ("lora", {"qalora_group_size": 7}, "peft.use_qalora: true"),
        ("lora", {"layers_pattern": "h"}, "peft.layers_to_transform"),
        ("prefix_tuning", {"encoder_hidden_size": 5}, "peft.prefix_projection: true"),
        ("prompt_tuning", {"prompt_tuning_init_text": "hello"}, "peft.prompt_tuning_init: TEXT"),
        ("p_tuning", {"encoder_num_layers": 3}, "peft.encoder_reparameterization_type: LSTM"),
        ("oft", {"num_cayley_neumann_terms": 7, "use_cayley_neumann": False}, "peft.use_cayley_neumann: true"),
        ("lokr", {"rank_dropout_scale": True}, "peft.rank_dropout"),
        ("lokr", {"rank_dropout_scale": True, "rank_dropout": 0.0}, "peft.rank_dropout"),
    ):
        (found,) = settings_problems(MethodConfig(peft_type=kind, peft=given))
        assert found.endswith(f" and does nothing without {missing}; add that or remove it"), found
    for kind, given in (
        ("lora", {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"}),
        ("lora", {"layers_pattern": "h", "layers_to_transform": [0]}),
        ("lora", {"layers_pattern": "h", "layers_to_transform": 0}),
        ("prefix_tuning", {"encoder_hidden_size": 5, "prefix_projection": True}),
        ("p_tuning", {"encoder_dropout": 0.5, "encoder_reparameterization_type": "LSTM"}),
        ("oft", {"num_cayley_neumann_terms": 7}),
        ("lokr", {"rank_dropout_scale": True, "rank_dropout": 0.1}),
        ("prompt_tuning", {"prompt_tuning_init_text": None}),
    ):
        assert not [*settings_problems(MethodConfig(peft_type=kind, peft=given))], given


def test_the_fields_that_are_looked_at_are_pefts():
    """A field that peft renames would never be found."""
    configs = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    for (kind, field), (other, _) in READ_WHERE.items():
        names = {known.name for known in fields(configs[kind if kind in configs else "LORA"])}
        assert {field, other} <= names, (kind, field, other)


def test_an_expression_that_excludes_nothing(tiny):
    for excluded, wrong in (("nosuch.*", True), (r".*\.c_fc", False), (["c_fc"], False)):
        arguments = MethodConfig(peft_type="lora", peft={"exclude_modules": excluded})
        if wrong:
            with pytest.raises(UserError, match=r"peft\.exclude_modules is 'nosuch"):
                fitting_config(tiny, arguments)
        else:
            fitting_config(tiny, arguments)


def test_layers_that_are_not_there_and_sizes_of_0(tiny):
    for asked, wrong in (([0, 9], "9"), ([0, 1], None), (1, None), ([-1, 1], "-1")):
        given = {"target_modules": ["c_attn"], "layers_to_transform": asked}
        found = fit(LoraConfig(**given), given, tiny)
        assert found == [] if wrong is None else found[0].startswith(f"peft.layers_to_transform names {wrong}, and "), (
            asked
        )
    given = {"target_modules": ["c_attn"], "block_size": 0}
    (found,) = fit(C3AConfig(**given), given, tiny)
    assert found.startswith("peft.block_size is 0 and must divide both sides") and found.endswith(
        "largest that fits is 1"
    )


def test_a_plain_no_is_read_as_it_was_meant(read):
    """YAML 1.1 reads it as false."""
    _, training, _ = read("eval_strategy: no\nsave_strategy: no\nlogging_strategy: off\n")
    assert (training.eval_strategy, training.save_strategy, training.logging_strategy) == ("no", "no", "no")
    assert problems(read, "lr_scheduler_type: no\n") == ["lr_scheduler_type is false; it must be a text"]


def test_numbers_that_yaml_reads_as_texts(read):
    _, training, _ = read("learning_rate: 1e-4\n")
    assert training.learning_rate == 1e-4


def test_a_schedule_that_cannot_be_made():
    for settings, said in (
        ({"lr_scheduler_kwargs": {"foo": 1}}, "unexpected keyword argument 'foo'"),
        ({"lr_scheduler_kwargs": '{"num_cycles": 2}'}, "unexpected keyword argument 'num_cycles'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr or min_lr_rate should be set"),
    ):
        found = list(scheduler_problems(TrainingConfig(**settings)))
        assert len(found) == 1 and found[0].startswith("lr_scheduler_type is ") and said in found[0]


def test_schedules_that_can_be_made():
    for kind, settings in (
        ("cosine", {"num_cycles": 2}), ("cosine_with_min_lr", {"min_lr_rate": 0.1}), ("polynomial", None),
        ("inverse_sqrt", None), ("constant", None), ("warmup_stable_decay", {"num_decay_steps": 2}),
    ):  # fmt: skip
        assert not [*scheduler_problems(TrainingConfig(lr_scheduler_type=kind, lr_scheduler_kwargs=settings))]


def test_the_command_line_says_it_with_status_2(command, tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: true\nmax_steps: 2.5\n")
    done = command("recipes/sft.py", "--config", tmp_path / "run.yaml")
    assert done.status == 2 and "2 problems in " in done.err
    assert "learning_rate is true; it must be a number; max_steps is 2.5; it must be a whole number" in done.err

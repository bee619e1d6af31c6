"""Every key of SFTConfig and ModelConfig: it works in this recipe, or is refused, or no figure depends on it.

A new version of TRL or transformers with a new key fails here until somebody has decided what it is.
"""

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from trl import ModelConfig, SFTConfig

from finllm.models.find import load_tokenizer
from finllm.run_dir import RunDir
from finllm.training.unsupported import REASONS

ROOT = Path(__file__).resolve().parents[2]
KEYS = {known.name for config in (SFTConfig, ModelConfig) for known in fields(config) if known.init}

LORA = "--use_peft true --lora_target_modules c_attn"
# Key: what is given beside it, and a value under which the same seed trains something else, or logs at other steps.
MOVES = {
    "lr_scheduler_type": ("", "cosine"),
    "lr_scheduler_kwargs": ("--lr_scheduler_type cosine", '{"num_cycles": 2}'),
    "warmup_steps": ("", 2),
    "optim": ("", "adafactor"),
    "optim_args": ("--optim sgd", "momentum=0.9"),
    "weight_decay": ("", 0.9),
    "adam_beta1": ("", 0.5),
    "adam_beta2": ("", 0.5),
    "adam_epsilon": ("", 0.1),
    "max_grad_norm": ("", 0.01),
    "seed": ("", 7),
    "data_seed": ("", 7),
    "train_sampling_strategy": ("", "sequential"),
    "completion_only_loss": ("", "false"),
    "packing": ("", "true"),
    "logging_strategy": ("", "no"),
    "logging_first_step": ("--logging_steps 2", "true"),
    "eval_on_start": ("", "true"),
    "eval_steps": ("--eval_strategy steps --eval_steps 3", 1),
    "eval_delay": ("--eval_strategy steps --eval_steps 1", 2),
    "load_best_model_at_end": (
        "--eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 --learning_rate 1 "
        "--lr_scheduler_type constant", "true",
    ),
    "attn_implementation": ("--join_rows false --base_dropout 0.5", "eager"),  # draws other random numbers
    "dtype": (f"{LORA} --bf16 false", "bfloat16"),
    "lora_r": (LORA, 3),
    "lora_alpha": (LORA, 3),
    "lora_dropout": (LORA, 0.5),
    "lora_modules_to_save": (LORA, "ln_f"),
    "use_rslora": (LORA, "true"),
    "use_dora": (LORA, "true"),
}  # fmt: skip

# Key: the file of tests that shows what it does.
SHOWN = {
    **dict.fromkeys(
        ("output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate",
         "gradient_accumulation_steps", "gradient_checkpointing", "torch_compile", "torch_compile_backend",
         "logging_steps", "eval_strategy", "per_device_eval_batch_size", "hub_token", "disable_tqdm", "report_to",
         "eos_token", "model_name_or_path", "use_peft", "lora_target_modules", "load_in_4bit", "save_steps"),
        "tests/recipes/test_sft.py",
    ),
    **dict.fromkeys(("bf16", "use_cpu", "max_length", "save_strategy"), "tests/recipes/test_processes.py"),
    "pad_token": "tests/recipes/test_keys.py",
    "save_total_limit": "tests/faults/test_kill.py",
    "neftune_noise_alpha": "tests/recipes/test_sft_neftune.py",
    "activation_checkpointing": "tests/finllm/training/test_plan.py",
}  # fmt: skip

# Key: why no figure of a run depends on it, or where alone it does something.
NEUTRAL = {
    **dict.fromkeys(
        ("log_level", "log_level_replica", "log_on_each_node", "logging_nan_inf_filter", "run_name", "project",
         "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "what is told, and to whom",
    ),
    **dict.fromkeys(
        ("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
         "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        "how fast rows come; those that need workers are refused without",
    ),
    **dict.fromkeys(
        ("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
         "ddp_timeout", "average_tokens_across_devices", "local_rank"),
        "several processes only, read by transformers and accelerate",
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        "where a model goes after training",
    ),
    **dict.fromkeys(
        ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "torch_compile_mode",
         "torch_empty_cache_steps", "eval_accumulation_steps", "activation_offloading", "pad_to_multiple_of"),
        "memory and time; refused where they would do nothing on a CPU",
    ),
    **dict.fromkeys(("fp16", "tf32"), "a GPU's arithmetic; true is refused without one"),
    **dict.fromkeys(("do_train", "do_eval"), "what they ask for is always done"),
    "save_only_model": "what a checkpoint holds",
    "restore_callback_states_from_checkpoint": "what resuming reads of a checkpoint",
    "full_determinism": "the same figures, by slower kernels",
    "metric_for_best_model": "the loss, or refused",
    "greater_is_better": "false, or refused",
    "model_revision": "which commit of a hub id",
    "lora_target_parameters": "of models with experts; one that is not there is refused",
    "eval_packing": "the validation loss is that of the rows; refused without packing",
    **dict.fromkeys(
        ("load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
        "bitsandbytes' own, passed on; refused where they would do nothing",
    ),
}  # fmt: skip

# Key: a value, and what else is given. Some are refused in this company only, or for this value.
JUST_TRUE = dict.fromkeys(REASONS, True)
WITHOUT = {
    "metric_for_best_model": "accuracy", "greater_is_better": True, "optim": "galore_adamw_layerwise",
    "optim_args": "a=1", "fp16": True, "tf32": True, "lora_r": 4, "lora_alpha": 4, "lora_dropout": 0.5,
    "lora_target_modules": ["a"],
    "lora_target_parameters": ["a"], "lora_modules_to_save": ["a"], "use_rslora": True, "use_dora": True,
    "bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True, "bnb_4bit_quant_storage": "float32",
    "dataloader_persistent_workers": True, "dataloader_multiprocessing_context": "fork",
    "dataloader_prefetch_factor": 2, "activation_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_checkpointing_kwargs": {"use_reentrant": False}, "eval_packing": True, "activation_offloading": True,
    "pad_to_multiple_of": 8, "train_sampling_strategy": "batch_rebalance",
}  # fmt: skip
REFUSED = {
    **JUST_TRUE,
    **WITHOUT,
    **dict.fromkeys(
        ("eval_do_concat_batches", "dataloader_in_order", "remove_unused_columns", "skip_memory_metrics"), False
    ),
    "liger_kernel_config": {"a": True}, "model_init_kwargs": {"a": True}, "dataset_kwargs": {"a": True},
    **dict.fromkeys(
        ("resume_from_checkpoint", "chat_template_path", "dataset_text_field", "length_column_name", "deepspeed"), "a"
    ),
    "fsdp_config": {"version": 2}, "accelerator_config": {"split_batches": True}, "optim_target_modules": "a",
    "label_smoothing_factor": 0.1, "router_aux_loss_coef": 0.1, "include_num_input_tokens_seen": "all",
    "include_for_metrics": ["inputs"], "label_names": ["a"], "debug": "underflow_overflow", "dataset_num_proc": 2,
    "truncation_mode": "keep_end", "packing_strategy": "wrapped", "loss_type": "dft", "lora_task_type": "SEQ_CLS",
}  # fmt: skip
BESIDE = {"fsdp_config": {"fsdp": True}, "packing": {"max_length": None}, "lora_task_type": {"use_peft": True}}


def test_the_table_holds_every_key_of_trl_and_says_one_thing_of_each():
    tables = {"moves": {*MOVES}, "shown": {*SHOWN}, "neutral": {*NEUTRAL}, "refused": {*REASONS}}
    decided = set().union(*tables.values())
    assert decided == KEYS, f"decide: {KEYS - decided}, no longer there: {decided - KEYS}"
    assert sum(map(len, tables.values())) == len(KEYS), "a key stands in two tables"
    fixture = (ROOT / "tests/recipes/conftest.py").read_text(encoding="utf-8")
    for key, file in SHOWN.items():
        assert re.search(rf"\b{key}\b", (ROOT / file).read_text(encoding="utf-8") + fixture), (key, file)


@pytest.mark.parametrize("key", sorted({*REFUSED, "packing"} - {"parallelism_config"}))
def test_what_would_not_do_what_it_says_is_refused(key, command, tmp_path):
    """`parallelism_config` is an object of accelerate, which neither a flag nor a YAML can hold."""
    config = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": str(tmp_path / "run"), "use_cpu": True}
    config |= {key: REFUSED.get(key, True), **BESIDE.get(key, {})}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = command("recipes/sft.py", "--config", tmp_path / "config.yaml")
    assert done.status == 2, done
    assert key in done.err and "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_what_a_run_wrote_is_taken_again(sft, command, tmp_path):
    """Every key of a run's config.yaml can be given, those at their defaults too, and they give the same run."""
    _, run = sft("--seed", 5, "--weight_decay", 0.5, steps=2)
    config = run.config() | {"output_dir": str(tmp_path / "again")}
    assert set(config) >= KEYS - set(REFUSED) - {"parallelism_config", "hub_token", "local_rank"}
    assert (config["seed"], config["weight_decay"], config["max_steps"]) == (5, 0.5, 2)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    done = command("recipes/sft.py", "--config", tmp_path / "again.yaml")
    assert done.status == 0, done.err
    again = RunDir(tmp_path / "again")
    assert again.config() == config and figures_of(again) == figures_of(run) and len(figures_of(run)) == 4
    assert (again.model / "model.safetensors").read_bytes() == (run.model / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def known() -> dict[str, tuple]:
    """What runs without the key came to, by what is given beside it."""
    return {}


@pytest.mark.parametrize("key", MOVES)
def test_what_works_changes_the_run(key, sft, known, tmp_path):
    beside, value = MOVES[key]
    flags = ("--eval_on_start", "false", "--base_dropout", 0, *beside.split())

    def outcome(*more) -> tuple:
        done, run = sft(*flags, *more, output_dir=tmp_path / f"run{len(more)}")
        assert done.status == 0, done.err
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        measured = ("tokens_per_second", "peak_memory_bytes")
        figures = [[pair for pair in line.items() if pair[0] not in measured] for line in lines]
        (weights,) = run.model.glob("*.safetensors")
        return figures, hashlib.sha256(weights.read_bytes()).hexdigest()

    if beside not in known:
        known[beside] = outcome()
    assert outcome(f"--{key}", value) != known[beside]


def figures_of(run) -> list[dict]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: line[key] for key in ("loss", "validation_loss", "grad_norm") if key in line} for line in lines]


def test_what_is_neutral_changes_no_figure(sft, tmp_path):
    neutral = """--dataloader_num_workers 1 --dataloader_persistent_workers true --dataloader_prefetch_factor 3
        --eval_accumulation_steps 1 --torch_empty_cache_steps 1 --log_level error --run_name a --project b
        --do_train true --do_eval true --logging_nan_inf_filter false --full_determinism true --ddp_timeout 60
        --pad_to_multiple_of 8 --average_tokens_across_devices false --hub_model_id a/b --save_only_model true"""
    padded = ("--join_rows", "false")
    try:
        done, run = sft(*padded, *neutral.split(), output_dir=tmp_path / "neutral")
    finally:
        torch.use_deterministic_algorithms(False)
    assert done.status == 0, done.err
    _, plain = sft(*padded, output_dir=tmp_path / "plain")
    for found, expected in zip(figures_of(run), figures_of(plain), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_packing_of_the_validation_rows_moves_no_loss(sft, tmp_path):
    losses = []
    for packed in ("true", "false"):
        done, run = sft("--packing", "true", "--eval_packing", packed, steps=1, output_dir=tmp_path / packed)
        assert done.status == 0, done.err
        losses.append([line["validation_loss"] for line in figures_of(run) if "validation_loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_pad_token_is_saved_with_the_tokenizer(sft):
    done, run = sft("--pad_token", "!", steps=1)
    assert done.status == 0, done.err
    assert load_tokenizer(str(run.model)).pad_token == "!"


@pytest.mark.parametrize(
    ("key", "value"), [("lora_target_modules", ["c_attn", "c_atn"]), ("lora_modules_to_save", ["ln_g"]),
                       ("lora_target_parameters", ["expert"]), ("lora_target_modules", ["lm_head"])],
)  # fmt: skip
def test_a_layer_that_is_not_there_or_cannot_be_adapted_is_named(sft, key, value):
    done, run = sft("--use_peft", "true", "--lora_target_modules", "c_attn", f"--{key}", *value)
    assert done.status == 2 and key in done.err and value[-1] in done.err
    assert not run.path.exists()

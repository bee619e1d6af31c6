"""Keys of SFTConfig and ModelConfig that this recipe refuses, each with its reason.

TRL's scripts ignore some keys without a word, and some would do here something else than what they say. Neither may
happen: a key either has its effect in this recipe, or is refused where it is set to anything but its default.
tests/recipes/test_keys.py goes through all keys and says of each which it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from trl import ModelConfig, SFTConfig

from finllm.text.credentials import without_credentials
from finllm.training import optimizers

OWN_BATCHES = "batches are made and dealt out by the recipe, so that a resumed run finds the same ones"
OWN_LOSS = "the validation loss is Σ nll / Σ tokens of the whole split, and nothing else is computed"
OWN_ROWS = "rows are those of a dataset dir, and are tokenized by the recipe"
PROVED = "it would change the model after the recipe has proved it"

REASONS = {
    "optim_target_modules": "GaLore and APOLLO project the weights of all linear layers, and no other reads it",
    "label_smoothing_factor": "only the likelihood itself is computed here",
    "bf16_full_eval": "the trained weights themselves would be rounded before they are saved",
    "fp16_full_eval": "the trained weights themselves would be rounded before they are saved",
    "use_liger_kernel": PROVED,
    "liger_kernel_config": PROVED,
    "use_cache": "training and validation read whole rows, which need no cache",
    "auto_find_batch_size": "the batch would change within a run; where memory runs out, it says what trains the same",
    "include_num_input_tokens_seen": "metrics.jsonl has supervised_tokens and tokens_per_second, summary.json the sum",
    "prediction_loss_only": OWN_LOSS,
    "eval_do_concat_batches": OWN_LOSS,
    "eval_use_gather_object": OWN_LOSS,
    "include_for_metrics": OWN_LOSS,
    "batch_eval_metrics": OWN_LOSS,
    "label_names": OWN_LOSS,
    "save_on_each_node": "output_dir must be a folder that all machines see",
    "enable_jit_checkpoint": "SIGTERM ends the step and is saved without it",
    "ignore_data_skip": "a resumed run would train on rows that it has seen in this epoch",
    "accelerator_config": OWN_BATCHES,
    "parallelism_config": "a row's loss is computed on one device, whole",
    "dataloader_drop_last": "rows would be left out of training, and of the validation loss",
    "dataloader_in_order": OWN_BATCHES,
    "remove_unused_columns": "rows come tokenized and have no other columns",
    "length_column_name": "lengths are those of the tokens",
    "debug": "a loss or a gradient that is no number is refused with its step",
    "skip_memory_metrics": "metrics.jsonl and summary.json have the peak memory",
    "do_predict": "answers are made by eval/run.py",
    "resume_from_checkpoint": "use resume: auto, which takes the newest whole checkpoint of output_dir",
    "model_init_kwargs": "the model is loaded by model_name_or_path, model_revision, dtype and attn_implementation",
    "trust_remote_code": "no code of a model repository is run here",
    "router_aux_loss_coef": "only the likelihood itself is computed here",
    "chat_template_path": "use template, which takes the path of a Jinja file too",
    "assistant_only_loss": "the loss is always on answers alone; loss_on says whether on those of all turns",
    "dataset_text_field": OWN_ROWS,
    "dataset_kwargs": OWN_ROWS,
    "dataset_num_proc": "rows are tokenized once a machine, by one process, and kept in the cache",
    "truncation_mode": "only 'keep_start' keeps the prompt whole",
    "shuffle_dataset": "rows come in an order that seed draws; see train_sampling_strategy",
    "packing_strategy": "only 'bfd' keeps documents whole and apart; rows are cut to max_length before",
    "padding_free": "use packing, or on a CPU join_rows",
    "loss_type": "only 'nll' is computed here",
    "fsdp": "give it by accelerate launch --config_file recipes/accelerate/fsdp2.yaml",
    "fsdp_config": "give it by accelerate launch --config_file recipes/accelerate/fsdp2.yaml",
    "deepspeed": "give it by accelerate launch --config_file recipes/accelerate/zero2.yaml",
    "lora_task_type": "only CAUSAL_LM writes answers",
}
ONLY_WITH_ADAPTER = (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save",
    "use_rslora", "use_dora",
)  # fmt: skip
ONLY_IN_4_BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
ONLY_WITH_WORKERS = (
    "dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_prefetch_factor",
)  # fmt: skip
ONLY_CHECKPOINTED = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
METRICS = ("loss", "eval_loss")


def unsupported(training: SFTConfig, model: ModelConfig) -> Iterator[str]:
    """What is set to another value than its default and would not do what it says, each with its reason."""
    plain = type(training)(output_dir=training.output_dir, use_cpu=training.use_cpu)
    changed = {key: getattr(training, key) for key in _keys(plain) if getattr(training, key) != getattr(plain, key)}
    usual = ModelConfig()
    changed |= {key: getattr(model, key) for key in _keys(usual) if getattr(model, key) != getattr(usual, key)}
    changed = {key: without_credentials(value) for key, value in changed.items()}  # it is printed
    if changed.get("router_aux_loss_coef") == 0:
        del changed["router_aux_loss_coef"]  # no loss beside the likelihood is what there is
    yield from (f"{key} is {changed[key]!r}; {reason}; remove it" for key, reason in REASONS.items() if key in changed)
    for keys, needed, there in (
        (ONLY_WITH_ADAPTER, "use_peft: true", model.use_peft),
        (ONLY_IN_4_BIT, "load_in_4bit: true", model.load_in_4bit),
        (ONLY_WITH_WORKERS, "dataloader_num_workers", training.dataloader_num_workers),
        (ONLY_CHECKPOINTED, "activation_checkpointing: true", training.activation_checkpointing),
        (("eval_packing",), "packing: true", training.packing),
    ):
        if not there:
            yield from (
                f"{key} is {changed[key]!r} and does nothing without {needed}" for key in keys if key in changed
            )
    if training.metric_for_best_model not in (None, *METRICS) or training.greater_is_better:
        yield (
            f"metric_for_best_model is {training.metric_for_best_model!r} and greater_is_better "
            f"{training.greater_is_better}; the best model here is the one with the lowest eval_loss, remove both"
        )
    if training.fp16 and training.use_cpu:
        yield "fp16 is true and this run is on a CPU, which has no float16 products with scaled gradients; remove it"
    if "activation_offloading" in changed and training.use_cpu:
        yield "activation_offloading is true and this run is on a CPU, where activations are; remove it"
    if "pad_to_multiple_of" in changed and training.use_cpu and getattr(training, "join_rows", None) is not False:
        yield "pad_to_multiple_of pads rows, and on a CPU they are joined; add join_rows: false or remove it"
    if training.packing and training.max_length is None:
        yield "packing fills rows of max_length tokens, and max_length is null; set it"
    if training.train_sampling_strategy == "batch_rebalance":
        yield "train_sampling_strategy is 'batch_rebalance'; use max_tokens_per_batch, which a resumed run finds again"
    yield from optimizers.problems(training, model)


def _keys(config: SFTConfig | ModelConfig) -> list[str]:
    return [key for key, known in config.__dataclass_fields__.items() if known.init]

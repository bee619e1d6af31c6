"""Supervised fine-tuning of a causal language model on instructions: full, or by any method of peft, from one YAML.

    accelerate launch --config_file accelerate_config.yaml recipes/sft.py --config recipes/configs/gpt2_lora.yaml

Every flag is TRL's own (SFTConfig, ModelConfig) but for the few in finllm.training.config.RecipeArguments; flags
override the YAML. The run dir it leaves in output_dir is described in finllm/run_dir.py.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import sys

from accelerate import PartialState
from transformers import EarlyStoppingCallback, set_seed

from finllm.cpu import machine
from finllm.errors import run_command
from finllm.files import cache_dir, naming
from finllm.models.base import check_length, count_parameters, load_base_model, load_saved
from finllm.models.dropout import set_dropout
from finllm.models.method_proofs import choose
from finllm.models.proofs import PROVING, template_proofs, tokenizer_fits
from finllm.models.settings import name_of
from finllm.provenance import provenance
from finllm.run_dir import RunDir
from finllm.text.tokens import tokenize
from finllm.training import summary
from finllm.training.batches import check_budget
from finllm.training.beforehand import made_from
from finllm.training.config import parse, resolved
from finllm.training.going_on import GoingOn
from finllm.training.plots import plot_loss
from finllm.training.resumable import patience_used
from finllm.training.trainer import SupervisedTrainer


def main() -> None:
    recipe, training, model_arguments = parse()
    run = RunDir(training.output_dir)
    run.refuse_links()
    process = PartialState()
    if process.device.type == "cuda":
        machine.use_all_gpus(process.num_processes, sys.argv)
    if recipe.keep_freed_memory and process.device.type == "cpu":
        machine.keep_freed_memory()
    config, resume = resolved(recipe, training, model_arguments), recipe.resume is not None
    run.check_place(resume)
    proving_before = PROVING.seconds

    # The data, prepared once a machine and mapped into the memory of each of its processes, and what is to learn them
    with process.local_main_process_first():
        made = made_from(recipe, training, model_arguments)
        train, validation = (
            sample(made.dataset.split(split), rows, training.seed)
            for split, rows in (
                (recipe.dataset_train_split, recipe.max_train_samples),
                (recipe.dataset_test_split, recipe.max_eval_samples),
            )
        )

    base, tokenizer, template = made.base, made.tokenizer, made.template

    # Where the folder holds a run already, it must be made from the same
    origin = provenance(
        gpu=machine.gpu_name(),
        **made.hashes(model_arguments.model_revision),
        seed=training.seed,
        processes=process.num_processes,
    )
    going_on = GoingOn.of(run, config, origin, resume, patience_used)
    if going_on.finished:
        if process.is_main_process:
            summary.already_finished(run)
        return

    # The base model, seeded first, since an adapter begins with random numbers
    set_seed(training.seed)
    with process.local_main_process_first():
        model = load_base_model(base, model_arguments)
    check_length(model, training.max_length)
    tokenizer_fits(tokenizer, model, template.ids)
    if recipe.base_dropout is not None:
        set_dropout(model, recipe.base_dropout)

    # Text to tokens, with a table of what max_length cuts and drops. The template is saved with the tokenizer
    prompt_loss = training.completion_only_loss is False
    with process.local_main_process_first(), naming(cache_dir() / "arrow"):
        asked = template_proofs(template, train)
        (train, train_lengths), (validation, validation_lengths) = (
            tokenize(tokenizer, split, training.max_length, prompt_loss, template=template, loss_on=recipe.loss_on)
            for split in (train, validation)
        )
    tokenizer.chat_template = template.jinja

    if process.is_main_process:
        summary.print_lengths({"train": train_lengths, "validation": validation_lengths})
    if training.max_tokens_per_batch is not None:
        check_budget(train_lengths.lengths, training.max_tokens_per_batch, process.num_processes)

    # What trains: an adapter, some of the weights, or all of them
    model, proofs = choose(model, model_arguments, train)
    check_length(model, training.max_length)

    training.output_dir = str(run.checkpoints)
    trainer = SupervisedTrainer(
        model,
        run=run,
        args=training,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        stops=template.stops,
        stop_at_step=recipe.stop_at_step,
        callbacks=[EarlyStoppingCallback(recipe.early_stopping_patience)] if recipe.early_stopping_patience else [],
    )
    trainer.proofs = [*proofs, *trainer.proofs, *asked]
    if recipe.base_dropout is not None:
        trainer.prove_dropout(recipe.base_dropout)
    if process.is_main_process:
        going_on.start(run, config, resume)
        run.write_proofs(proof.as_json() for proof in trainer.proofs)
    process.wait_for_everyone()
    measured = trainer.train_run(resume)
    trainer.save_to_run(lambda folder: load_saved(folder, base, model_arguments))

    if process.is_main_process:
        parameters = count_parameters(model)
        result = {
            "name": run.path.resolve().name,
            "method": name_of(model_arguments),
            "base_model": model_arguments.model_name_or_path,
            "trainable_parameters": parameters.trainable,
            "total_parameters": parameters.total,
            "proof_seconds": PROVING.seconds - proving_before,
            **measured,
        }
        run.write_proofs(proof.as_json() for proof in trainer.proofs)
        summary.write_model_card(run, result)
        plot_loss(run)
        run.finish(result)
        summary.print_summary(run)


def sample(split, rows: int | None, seed: int):
    """`rows` rows drawn by the seed, or all."""
    return split if rows is None or rows >= len(split) else split.shuffle(seed).select(range(rows))


if __name__ == "__main__":
    run_command(main)

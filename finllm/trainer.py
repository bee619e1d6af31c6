"""TRL's SFTTrainer as we run it: exact losses, only supervised positions through the vocabulary, a run dir.

What differs from SFTTrainer, and why:
- Rows come tokenized, with labels, from finllm.tokens: one place owns the mask.
- On a CPU the loss is finllm.loss, which skips prompt and padding; SFTTrainer projects every position there.
- On a CPU the rows of a batch stand end to end without padding (finllm.joined). Elsewhere they are padded on the right,
  which needs no attention mask in a causal model: a response never sees what stands to its right. Either way is proved
  on the model and two of its rows before training.
- Batches can have a budget of tokens instead of a number of rows (finllm.batches).
- Checkpoints are complete or absent (finllm.checkpoints) and hold all that an exact resume needs. transformers' miss
  the counts behind our metrics, early stopping's unless asked, and the order of rows that are grouped by length.
- Validation loss is Σ nll / Σ tokens over the whole split, for any batch size and number of processes.
  transformers' own is a mean of batch means (transformers#39241).
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import time
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import EvalPrediction, PreTrainedModel, ProgressCallback
from transformers.trainer_callback import EarlyStoppingCallback
from trl import SFTTrainer

from finllm import checkpoints, joined, kernels
from finllm.batches import LengthGroupedSampler, TokenBudgetSampler
from finllm.callbacks import MetricsWriter, ProgressBar, SaveAfterEpochsEnd, StopOnSignal
from finllm.config import TrainingConfig
from finllm.loss import add_supervised_head, has_plain_head
from finllm.machine import peak_memory_bytes
from finllm.models import base_of
from finllm.run import RunDir, UserError, read_json, write_json
from finllm.stopping import Stop, resume_command
from finllm.tokens import lengths_of

PROGRESS = "progress.json"  # in a checkpoint: the counts behind metrics.jsonl and summary.json


class SupervisedTrainer(SFTTrainer):
    """SFTTrainer on tokenized rows that writes its metrics into a run dir. Arguments as SFTTrainer's, and `run`."""

    def __init__(self, model: PreTrainedModel, *, run: RunDir, args: TrainingConfig, **arguments: Any):
        self.skips_masked_positions = args.device.type == "cpu" and has_plain_head(model)
        self.joins_rows = _joins_rows(model, args, self.skips_masked_positions)
        if not args.packing:
            args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        self.stop = Stop()
        callbacks = [MetricsWriter(run), *arguments.pop("callbacks", []), StopOnSignal(self.stop), SaveAfterEpochsEnd()]
        super().__init__(
            model=model,
            args=args,
            compute_metrics=_exact_loss,
            callbacks=callbacks,
            **arguments,
        )
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ProgressBar)
        if self.skips_masked_positions:
            add_supervised_head(base_of(self.model))
            kernels.use_in(self.model)
        for parameter in model.parameters():
            # SFTTrainer casts QLoRA's adapters to bfloat16, which most CPUs multiply a hundred times slower.
            if parameter.requires_grad and self.args.device.type == "cpu":
                parameter.data = parameter.data.float()
        if self.joins_rows:
            self._set_joined(True)
        self._prove_separation()
        self.run = run
        self._checkpoints = run.checkpoints
        self._since = time.perf_counter()  # training began, or went on
        self.train_seconds = self.evaluation_seconds = 0.0  # before that; since then
        self.supervised_tokens = self.tokens = 0  # of this process since training began
        self._window = {"nll": 0.0, "tokens": 0}  # since the last log
        self._logged = {"time": time.perf_counter(), "tokens": 0}

    def _get_train_sampler(self, train_dataset=None):
        """Batches under `max_tokens_per_batch`, or grouped by length; without either, SFTTrainer's."""
        args, dataset = self.args, train_dataset or self.train_dataset
        budget, grouped = args.max_tokens_per_batch, args.train_sampling_strategy == "group_by_length"
        if budget is None and not grouped:
            return super()._get_train_sampler(train_dataset)
        lengths = lengths_of(dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        if budget is None:
            return LengthGroupedSampler(lengths, args.train_batch_size * args.gradient_accumulation_steps, seed)
        epochs = math.ceil(self.args.num_train_epochs)
        if self.args.max_steps > 0:  # an epoch has at least so many batches
            accumulated = self.args.gradient_accumulation_steps * self.args.world_size
            epochs = 1 + math.ceil(self.args.max_steps * accumulated * budget / sum(lengths))
        return TokenBudgetSampler(
            lengths, budget, seed, epochs, rank=self.args.process_index, processes=self.args.world_size
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Σ nll over the batch's supervised tokens, divided by those of the whole optimizer step."""
        assert not return_outputs, "no logits are kept"
        nll, nll_B, tokens_B = self._likelihood(model, inputs)
        if self.model.training:
            summed = float(nll_B.sum())
            if not math.isfinite(summed):  # before backward, so the weights stay as the last step left them
                raise UserError(
                    f"the training loss is {summed} in step {self.state.global_step + 1} and was not applied; "
                    f"{self._milder()}"
                )
            counted = inputs["lengths"] if self.joins_rows else inputs.get("attention_mask", inputs["input_ids"].ne(-1))
            self.tokens += int(counted.sum())
            self.supervised_tokens += int(tokens_B.sum())
            self._window["nll"] += summed
            self._window["tokens"] += int(tokens_B.sum())
        divisor = tokens_B.sum() if num_items_in_batch is None else num_items_in_batch
        loss = nll / torch.as_tensor(divisor).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # num_items_in_batch counts the tokens of all processes, and DDP averages gradients over processes
            loss = loss * self.accelerator.num_processes
        return loss

    def _likelihood(self, model, inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The batch's summed nll (with gradient), and per row its nll (B,) and supervised tokens (B,)."""
        labels = inputs["labels"]
        left_out = ("labels", "attention_mask", "rows", "lengths")
        batch = {key: value for key, value in inputs.items() if key not in left_out}
        if self.skips_masked_positions:
            output = model(**batch, labels=labels, use_cache=False, supervised_head=True)
            nll, nll_N, mask = output.nll, output.nll_N, output.mask
        else:
            output = model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
            nll, nll_N, mask = -output.log_probs.sum(), -output.log_probs[output.label_mask], output.label_mask
        rows_N = inputs["rows"][:, 1:][mask] if self.joins_rows else mask.nonzero()[:, 0]
        zeros_B = torch.zeros(len(inputs["lengths"]) if self.joins_rows else len(mask), device=mask.device)
        nll_B = zeros_B.index_add(0, rows_N, nll_N.detach().float())
        return nll, nll_B, zeros_B.long().index_add(0, rows_N, torch.ones_like(rows_N))

    def _set_joined(self, joins: bool) -> None:
        """Give model and collator the one form of a batch or the other."""
        base_of(self.model).set_attn_implementation(joined.NAME if joins else "sdpa")
        self.joins_rows = joins
        if joins:
            self._padding_collator, self.data_collator = self.data_collator, joined.join
        else:
            self.data_collator = self._padding_collator

    def _prove_separation(self) -> None:
        """Two rows in one batch must be as likely as each alone, on this very model.

        A model that mixes tokens elsewhere than in its attention fails when rows are joined, and is padded instead; one
        that fails otherwise cannot be trained in batches, or not on packed rows.
        """
        pair = list(itertools.islice((part for row in self.train_dataset for part in joined.documents_of(row)), 2))
        apart = self._apart(pair)
        if self.joins_rows and apart > self._tolerance():
            print(f"rows are padded: end to end, a row's loss moves by {apart:.2g} nats a token with its neighbour")
            self._set_joined(False)
            apart = self._apart(pair)
        if apart > self._tolerance():
            raise UserError(
                f"this model does not keep the rows of a batch apart: a row's loss moves by {apart:.2g} nats a token "
                f"with its neighbour (limit {self._tolerance():.0e}); set "
                + ("packing: false" if self.args.packing else "per_device_train_batch_size: 1")
            )

    def _apart(self, pair: list[dict[str, list[int]]]) -> float:
        """By how many nats a token the loss of rows in one batch differs from that of each alone."""
        together = pair
        if self.args.packing and not self.joins_rows:
            pair = [{**row, "seq_lengths": [len(row["input_ids"])]} for row in pair]
            together = [{key: [*itertools.chain(*(row[key] for row in pair))] for key in pair[0]}]
        training = self.model.training
        self.model.eval()
        nll, tokens = [], []
        with torch.no_grad(), self.compute_loss_context_manager():
            for rows in (together, *([row] for row in pair)):
                _, nll_B, tokens_B = self._likelihood(self.model, self._prepare_inputs(self.data_collator(rows)))
                nll.append(float(nll_B.double().sum()))
                tokens.append(int(tokens_B.sum()))
        self.model.train(training)
        return abs(nll[0] - sum(nll[1:])) / max(1, tokens[0])

    def _tolerance(self) -> float:
        exact = next(self.model.parameters()).dtype == torch.float32 and not (self.args.bf16 or self.args.fp16)
        return 1e-4 if exact else 2e-2

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Per row its nll and its supervised tokens; transformers gathers them and drops repeated rows."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            _, nll_B, tokens_B = self._likelihood(model, inputs)
        return None, nll_B, tokens_B

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add exact figures to what transformers logs; runs on every process, since counts are summed over them."""
        if "loss" in logs:
            now = time.perf_counter()
            window = [
                self._window["nll"],
                self._window["tokens"],
                self.tokens - self._logged["tokens"],
                self.supervised_tokens,
            ]
            nll, tokens, seen, supervised = self.accelerator.reduce(
                torch.tensor(window, dtype=torch.float64, device=self.args.device)
            ).tolist()
            logs["loss"] = nll / max(tokens, 1)
            logs["tokens_per_second"] = seen / (now - self._logged["time"])
            logs["supervised_tokens"] = int(supervised)
            logs["peak_memory_bytes"] = peak_memory_bytes()
            self._logged = {"time": now, "tokens": self.tokens}
            self._window = {"nll": 0.0, "tokens": 0}
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As SFTTrainer's, with its time left out of the time and rate of training."""
        start = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        seconds = time.perf_counter() - start
        self.evaluation_seconds += seconds
        self._logged["time"] += seconds
        return metrics

    def _clip_grad_norm(self, model):
        """As transformers', and a gradient that is no number never reaches the optimizer."""
        norm = super()._clip_grad_norm(model)
        if not self.args.fp16 and norm is not None and not math.isfinite(float(norm)):  # fp16's scaler expects some
            raise UserError(
                f"the gradient's norm is {float(norm)} in step {self.state.global_step + 1} and was not applied; "
                f"{self._milder()}"
            )
        return norm

    def _milder(self) -> str:
        return (
            f"lower learning_rate (now {self.args.learning_rate:g}), raise warmup_steps (now "
            f"{self.args.warmup_steps:g}), or look for a broken base model"
        )

    # Checkpoints and resuming ----------------------------------------------------------------------------------------

    def _get_output_dir(self, trial) -> str:
        return str(self._checkpoints)

    def _save_checkpoint(self, model, trial) -> None:
        """As transformers', but complete or absent: see finllm.checkpoints."""
        folder = self.run.checkpoints
        place = folder / f"{checkpoints.PREFIX}{self.state.global_step}"
        work = folder / checkpoints.WRITING / place.name
        progress = self._progress()
        try:
            if self.args.should_save:
                shutil.rmtree(work.parent, ignore_errors=True)
                work.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._checkpoints = work.parent
            super(SFTTrainer, self)._save_checkpoint(model, trial)  # SFTTrainer's own adds a model card
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(place)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(work / "trainer_state.json"))
                write_json(work / PROGRESS, progress)
                (work / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
                checkpoints.seal(work, place)
                work.parent.rmdir()
                checkpoints.rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            last, free = checkpoints.by_step(folder), shutil.disk_usage(self.run.path).free
            raise UserError(
                f"{place} could not be written: {error} ({free / 2**30:,.1f} GiB are free there); make room, and go on "
                f"with {resume_command(self.args.world_size)}, which takes "
                + (f"{last[-1].name}, the last one written" if last else "the run from its beginning")
            ) from error
        finally:
            self._checkpoints = folder
        self.accelerator.wait_for_everyone()

    def _progress(self) -> dict[str, float]:
        """What our metrics need beyond transformers' state, summed over the processes."""
        own = [self.tokens, self.supervised_tokens, self._window["nll"], self._window["tokens"]]
        counts = torch.tensor(own, dtype=torch.float64, device=self.args.device)
        tokens, supervised, window_nll, window_tokens = self.accelerator.reduce(counts).tolist()
        return {
            "tokens": int(tokens),
            "supervised_tokens": int(supervised),
            "window_nll": window_nll,
            "window_tokens": int(window_tokens),
            "train_seconds": self._train_seconds(),
        }

    def _train_seconds(self) -> float:
        return self.train_seconds + time.perf_counter() - self._since - self.evaluation_seconds

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        """As transformers', and our own counts; where the run dir was moved, the best checkpoint has moved with it."""
        result = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            progress = read_json(Path(resume_from_checkpoint) / PROGRESS)
            self.train_seconds = progress["train_seconds"]
            if self.is_world_process_zero():  # the counts of all, kept by one
                self.tokens, self.supervised_tokens = progress["tokens"], progress["supervised_tokens"]
                self._window = {"nll": progress["window_nll"], "tokens": progress["window_tokens"]}
                self._logged["tokens"] = self.tokens
            best = self.run.checkpoints / f"{checkpoints.PREFIX}{self.state.best_global_step}"
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)
        return result

    def _run_epoch(self, **arguments) -> None:
        """Nothing where the checkpoint resumed from was the run's last: transformers would take one more step."""
        stopped_early = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        if stopped_early or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**arguments)

    def _load_best_model(self) -> None:
        wrong = checkpoints.damage(Path(self.state.best_model_checkpoint))
        if wrong:
            raise UserError(
                f"the best checkpoint, {self.state.best_model_checkpoint}, is damaged: {wrong}; train again"
            )
        super()._load_best_model()

    def train_run(self, resume: bool) -> dict[str, Any]:
        """Train, from the newest whole checkpoint with `resume`, and validate at the end; its part of summary.json.

        Raises `SystemExit` with 143 or 130 where SIGTERM or SIGINT stopped the run, after a checkpoint is written.
        """
        last = checkpoints.newest(self.run.checkpoints) if resume else None
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoints.set_damaged_aside(self.run.checkpoints, last)
        self.args.eval_on_start = self.args.eval_on_start and last is None
        self._since = self._logged["time"] = time.perf_counter()
        self.stop.listen()
        try:
            self.train(resume_from_checkpoint=None if last is None else str(last))
        except UnpicklingError as error:
            raise UserError(
                f"{last}: the state of its optimizer, schedule or random numbers holds something other than numbers "
                "and was not read, since reading it could run code; take a checkpoint that you wrote yourself"
            ) from error
        except RuntimeError as error:  # which torch.OutOfMemoryError is, and what a CPU's allocator raises
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise UserError(
                f"out of memory in step {self.state.global_step + 1}: {str(error).splitlines()[0]}; halve "
                f"per_device_train_batch_size (now {self.args.per_device_train_batch_size}) and double "
                f"gradient_accumulation_steps (now {self.args.gradient_accumulation_steps}), which is the same "
                "training, or set activation_checkpointing: true, or lower max_length"
            ) from error
        finally:
            self.stop.leave()
        if self.stop.signal:
            self.stop.exit(self.state.global_step, self.args.world_size, self.is_world_process_zero())
        seconds = self._train_seconds()
        if self.state.global_step not in [line["step"] for line in self.state.log_history if "eval_loss" in line]:
            self.evaluate()
        losses = [line["eval_loss"] for line in self.state.log_history if "eval_loss" in line]
        progress = self._progress()
        return {
            "train_seconds": seconds,
            "tokens_per_second": progress["tokens"] / seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "steps": self.state.global_step,
            "epochs": float(self.state.epoch),
            "supervised_tokens": progress["supervised_tokens"],
            "first_validation_loss": losses[0],
            "final_validation_loss": losses[-1],
            "best_validation_loss": min(losses),
        }

    def save_to_run(self) -> None:
        """Save the weights or the adapter, and the tokenizer, as `model/`, whole or not at all."""
        work = self.run.path / ".model"
        self.save_model(str(work))
        if self.is_world_process_zero():
            (work / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
            checkpoints.check_weights(work)
            self._check_reloaded(work)
            checkpoints.move_whole(work, self.run.model)

    def _check_reloaded(self, saved: Path) -> None:
        """Load a saved adapter beside the trained one: a probe batch must be as likely under both.

        Where an engine has sharded the model no process holds all of it, and `check_weights` is the only check.
        """
        if not isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        rows = [self.eval_dataset[index] for index in range(min(4, len(self.eval_dataset)))]
        active, nll = self.model.active_adapter, {}
        self.model.eval()
        self.model.load_adapter(str(saved), "reloaded")
        for adapter in (active, "reloaded"):
            self.model.set_adapter(adapter)
            with torch.no_grad(), self.compute_loss_context_manager():
                inputs = self._prepare_inputs(self.data_collator([dict(row) for row in rows]))
                _, nll_B, tokens_B = self._likelihood(self.model, inputs)
            nll[adapter] = float(nll_B.double().sum() / tokens_B.sum())
        self.model.set_adapter(active)
        self.model.delete_adapter("reloaded")
        if abs(nll["reloaded"] - nll[active]) > self._tolerance():
            raise UserError(
                f"the adapter just saved to {saved} is not the one that was trained: {len(rows)} validation rows have "
                f"{nll['reloaded']:.6f} nats a token under it and {nll[active]:.6f} before saving (limit "
                f"{self._tolerance():.0e}); its checkpoints are kept"
            )


def _joins_rows(model: PreTrainedModel, args: TrainingConfig, skips_masked_positions: bool) -> bool:
    """Whether batches are joined: on a CPU where the model can, unless `join_rows` says no."""
    possible = skips_masked_positions and joined.can_join(base_of(model)) and not args.torch_compile
    if args.join_rows and not possible:
        raise UserError(
            f"join_rows is true and {type(base_of(model)).__name__} on '{args.device}' cannot: it needs a CPU, "
            "sdpa attention of every token to all earlier ones, and no torch_compile; remove it"
        )
    return possible and args.join_rows is not False


def _exact_loss(prediction: EvalPrediction) -> dict[str, float]:
    """Σ nll / Σ tokens of a split, in nats per supervised token."""
    nll, tokens = np.float64(prediction.predictions).sum(), np.int64(prediction.label_ids).sum()
    return {"loss": float(nll / tokens), "supervised_tokens": int(tokens)}


def _masks_are_needed(record: logging.LogRecord) -> bool:
    return "strongly recommend passing in an `attention_mask`" not in record.getMessage()


# GPT-2 warns of every padded batch without a mask. That is right for padding on the left; ours stands on the right.
logging.getLogger("transformers.modeling_utils").addFilter(_masks_are_needed)
# TRL asks peft, which asks transformers, by the older name; nobody who runs a recipe can change that.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

"""TRL's SFTTrainer as we run it: exact losses, only supervised positions through the vocabulary, a run dir.

What differs from SFTTrainer, and why:
- Rows come tokenized, with labels, from finllm.text.tokens: one place owns the mask.
- On a CPU the loss is finllm.cpu.loss, which skips prompt and padding; SFTTrainer projects every position there.
- On a CPU the rows of a batch stand end to end without padding (finllm.cpu.joined). Elsewhere they are padded on the
  right, which needs no attention mask in a causal model: a response never sees what stands to its right. Either way is
  proved on the model and two of its rows before training.
- Batches can have a budget of tokens instead of a number of rows (finllm.training.batches).
- Rows grouped by length come in an order that a resumed run finds again, which transformers' sampler does not keep.
- Validation loss is Σ nll / Σ tokens over the whole split, for any batch size and number of processes.
  transformers' own is a mean of batch means (transformers#39241).
- Checkpoints, signals and the counts behind the figures are finllm.training.resumable's.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import EvalPrediction, PreTrainedModel

from finllm.cpu import joined, kernels
from finllm.cpu.loss import add_supervised_head, has_plain_head
from finllm.errors import UserError
from finllm.models.adapters import base_of
from finllm.terminal import say
from finllm.text.tokens import lengths_of
from finllm.training import checkpoints
from finllm.training.batches import LengthGroupedSampler, TokenBudgetSampler
from finllm.training.config import TrainingConfig
from finllm.training.resumable import ResumableTrainer


class SupervisedTrainer(ResumableTrainer):
    """SFTTrainer on tokenized rows. Arguments as SFTTrainer's, and `run`, the run dir that it writes into."""

    def __init__(self, model: PreTrainedModel, *, args: TrainingConfig, **arguments: Any):
        self.skips_masked_positions = args.device.type == "cpu" and has_plain_head(model)
        self.joins_rows = _joins_rows(model, args, self.skips_masked_positions)
        if not args.packing:
            args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__init__(model=model, args=args, compute_metrics=_exact_loss, **arguments)
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
            self.count(int(counted.sum()), int(tokens_B.sum()), summed)
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
            say(f"rows are padded: end to end, a row's loss moves by {apart:.2g} nats a token with its neighbour")
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

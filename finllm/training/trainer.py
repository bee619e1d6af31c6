"""TRL's SFTTrainer as we run it: exact losses, only supervised positions through the vocabulary, a run dir.

What differs from SFTTrainer, and why:
- Rows come tokenized, with labels, from finllm.text.tokens: one place owns the mask.
- On a CPU the loss is finllm.cpu.loss, which skips prompt and padding; SFTTrainer projects every position there.
- On a CPU the rows of a batch stand end to end without padding (finllm.cpu.joined). Elsewhere they are padded on the
  right, which needs no attention mask in a causal model: a response never sees what stands to its right.
- Both are proved on the model and its rows before training, and where one is not this model's own loss, a slower way is
  taken (finllm.training.proving). What was saved is loaded anew and must be what was trained.
- Batches can have a budget of tokens instead of a number of rows (finllm.training.batches).
- Rows grouped by length come in an order that a resumed run finds again, which transformers' sampler does not keep.
- Validation loss is Σ nll / Σ tokens over the whole split, for any batch size and number of processes.
  transformers' own is a mean of batch means (transformers#39241).
- Checkpoints, signals and the counts behind the figures are finllm.training.resumable's.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import EvalPrediction, GenerationConfig, PreTrainedModel

from finllm.cpu import joined
from finllm.cpu.loss import add_supervised_head
from finllm.errors import UserError
from finllm.files import naming, write_jsonl
from finllm.models import conv1d, starts, virtual
from finllm.models.adapters import base_of
from finllm.text.tokens import lengths_of
from finllm.training import checkpoints, optimizers
from finllm.training.batches import LengthGroupedSampler, TokenBudgetSampler, by_falling_length
from finllm.training.config import TrainingConfig
from finllm.training.learning import Learning, allocation_proof, own_term
from finllm.training.proving import prove, prove_dropout_of, prove_saved
from finllm.training.resumable import ResumableTrainer


class SupervisedTrainer(ResumableTrainer):
    """SFTTrainer on tokenized rows. Arguments as SFTTrainer's, and `run`, the run dir that it writes into.

    `stops` are the ids that end an answer: what is saved stops `generate` at each of them.
    """

    def __init__(self, model: PreTrainedModel, *, args: TrainingConfig, stops: Sequence[int] = (), **arguments: Any):
        self._stops = stops
        self._may_join = args.device.type == "cpu" and joined.can_join(base_of(model)) and not args.torch_compile
        if args.join_rows and not self._may_join:
            raise UserError(
                f"join_rows is true and {type(base_of(model)).__name__} on '{args.device}' cannot: it needs a CPU, "
                "sdpa attention of every token to all earlier ones, and no torch_compile; remove it"
            )
        if not args.packing:
            args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        if args.lora_fa:
            optimizers.keep_a_as_drawn(model)
        self.learning = Learning()
        callbacks = [*arguments.pop("callbacks", []), self.learning]
        super().__init__(model=model, args=args, compute_metrics=self._validated, callbacks=callbacks, **arguments)
        add_supervised_head(base_of(self.model))
        for parameter in model.parameters():
            # SFTTrainer casts QLoRA's adapters to bfloat16, where a step of 1e-4 is rounded away from a weight of 0.1,
            # and which most CPUs multiply a hundred times slower. A whole model on a GPU is as `dtype` says.
            if parameter.requires_grad and (self.on_cpu or getattr(model, "peft_config", None)):
                parameter.data = parameter.data.float()
        self._padding_collator = self.data_collator
        self._own_attention = base_of(self.model).config._attn_implementation
        self.joins_rows, self.uses_own_logits = False, False
        self.proofs = prove(self)

    @property
    def on_cpu(self) -> bool:
        return self.args.device.type == "cpu"

    def ways(self, plain_head: bool) -> list[tuple[str, str]]:
        """The ways to the loss that this trainer may take, the fastest first; see finllm.training.proving."""
        rows = ["joined", "padded"] if self._may_join and self.args.join_rows is not False else ["padded"]
        return list(itertools.product(rows, ["head", "logits"] if plain_head or not self.on_cpu else ["logits"]))

    def set_way(self, rows: str, loss: str) -> None:
        """Give model and collator one form of a batch, and choose between the head and the model's own logits."""
        joins = rows == "joined"
        if joins != self.joins_rows:
            base_of(self.model).set_attn_implementation(joined.NAME if joins else self._own_attention)
        self.joins_rows, self.uses_own_logits = joins, loss == "logits"
        count = virtual.tokens_among_ids(self.model)
        together = functools.partial(joined.collate, virtual=count) if count else joined.collate
        self.data_collator = together if joins else self._padding_collator

    def packed(self, rows: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
        """Rows as the collator of this run takes them: under packing without joining, one row of all."""
        if not self.args.packing or self.joins_rows:
            return [dict(row) for row in rows]
        whole = {key: [*itertools.chain(*(row[key] for row in rows))] for key in ("input_ids", "labels")}
        return [{**whole, "seq_lengths": [len(row["input_ids"]) for row in rows]}]

    def prove_dropout(self, share: float) -> None:
        """The base model's dropout is `share` on the run's own rows, else a `UserError`. Nothing is learned."""
        collator = self.data_collator
        if self.joins_rows:  # an adapter is off meanwhile, and its virtual tokens are with it
            self.data_collator = joined.collate
        self.proofs.append(prove_dropout_of(self, share))
        self.data_collator = collator

    def create_optimizer(self, model=None):
        """As transformers', and those that it does not know or that find no layers in GPT-2."""
        if self.optimizer is None:
            whole = self.model if model is None else model
            self.optimizer = optimizers.create(self.args, whole, {*self.get_decay_parameter_names(whole)})
        return super().create_optimizer(model)

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

    def _get_eval_sampler(self, eval_dataset):
        """Rows grouped by length come longest first; transformers draws them, which would move training's numbers."""
        if self.args.train_sampling_strategy != "group_by_length":
            return SequentialSampler(eval_dataset)
        return by_falling_length(lengths_of(eval_dataset))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Σ nll over the batch's supervised tokens, divided by those of the whole optimizer step."""
        assert not return_outputs, "no logits are kept"
        nll, nll_B, tokens_B = self._likelihood(model, inputs)
        if self.model.training:
            counted = inputs["lengths"] if self.joins_rows else inputs.get("attention_mask", inputs["input_ids"].ne(-1))
            sums = torch.stack([nll_B.sum(), counted.sum().float(), tokens_B.sum().float()])  # counts below 2 ** 24
            summed, tokens, supervised = sums.tolist()  # one wait for a GPU, not three
            if not math.isfinite(summed):  # before backward, so the weights stay as the last step left them
                raise UserError(
                    f"the training loss is {summed} in step {self.state.global_step + 1} and was not applied; "
                    f"{self._milder()}"
                )
            self.count(int(tokens), int(supervised), summed)
        divisor = tokens_B.sum() if num_items_in_batch is None else num_items_in_batch
        loss = nll / torch.as_tensor(divisor).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # num_items_in_batch counts the tokens of all processes, and DDP averages gradients over processes
            loss = loss * self.accelerator.num_processes
        if self.model.training:  # a term of the method's own; it is none of the likelihood that is logged
            loss = loss + own_term(self.model, inputs["labels"]) / self.args.gradient_accumulation_steps
        return loss

    def _likelihood(self, model, inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The batch's summed nll (with gradient), and per row its nll (B,) and supervised tokens (B,)."""
        labels = inputs["labels"]
        left_out = ("labels", "attention_mask", "rows", "lengths")
        batch = {key: value for key, value in inputs.items() if key not in left_out}
        if self.joins_rows and self.model.training and self.args.neftune_noise_alpha is not None:
            # Its noise falls with the length of a sequence, and this one is many rows: as strong as on them padded.
            strength = math.sqrt(batch["input_ids"].shape[1] / int(inputs["lengths"].max()))
            base_of(self.model).get_input_embeddings().neftune_noise_alpha = strength * self.args.neftune_noise_alpha
        if not (self.on_cpu or self.uses_own_logits):
            output = model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
            nll_BxT = -output.log_probs.detach().float().where(output.label_mask, 0.0)
            return -output.log_probs.sum(), nll_BxT.sum(1), output.label_mask.sum(1)
        output = model(**batch, labels=labels, use_cache=False, supervised_head=True, own_logits=self.uses_own_logits)
        rows_N = inputs["rows"][:, 1:][output.mask] if self.joins_rows else output.mask.nonzero()[:, 0]
        zeros_B = torch.zeros(len(inputs["lengths"] if self.joins_rows else labels), device=labels.device)
        nll_B = zeros_B.index_add(0, rows_N, output.nll_N.detach().float())
        return output.nll, nll_B, zeros_B.long().index_add(0, rows_N, torch.ones_like(rows_N))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Per row its nll and its supervised tokens; transformers gathers them and drops repeated rows."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            _, nll_B, tokens_B = self._likelihood(model, inputs)
        return None, nll_B, tokens_B

    def _validated(self, prediction: EvalPrediction) -> dict[str, float]:
        """The split's loss; what each row has of it goes into validation.jsonl, for two runs to be compared by rows.

        A loss that is no number is refused: a step can leave finite weights whose products are infinite.
        """
        step, broken = self.state.global_step, int((~np.isfinite(prediction.predictions)).sum())
        if broken:
            raise UserError(
                f"the validation loss is no number after step {step}, in {broken:,} of {len(prediction.predictions):,} "
                f"rows; {self._milder()}"
            )
        if self.is_world_process_zero():
            sums = zip(prediction.predictions.tolist(), prediction.label_ids.tolist(), strict=True)
            rows = sorted(zip(self._get_eval_sampler(self.eval_dataset), sums, strict=True))
            lines = ({"step": step, "row": row, "nll": nll, "tokens": tokens} for row, (nll, tokens) in rows)
            write_jsonl(self.run.validation, lines)
        return _exact_loss(prediction)

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

    def save_to_run(self, load_saved: Callable[[Path], PreTrainedModel]) -> None:
        """Save the weights or the adapter, and the tokenizer, as `model/`, whole or not at all.

        `load_saved` loads what a folder holds as any later reader will: it must be the model that was trained.
        """
        work = self.run.path / ".model"
        base, tokenizer = base_of(self.model), self.processing_class
        held = base.generation_config.eos_token_id
        stops = [*self._stops, *(held if isinstance(held, list) else [] if held is None else [held])]
        stops = list(dict.fromkeys(stops))
        # What a base model's own config holds besides, such as a repetition penalty, nothing here was measured with.
        base.generation_config = GenerationConfig(
            eos_token_id=stops if len(stops) > 1 else next(iter(stops), None),
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        try:
            with naming(self.run.model):
                self.save_model(str(work))
        except OSError:  # the disk is full: what was written of it is in the way
            shutil.rmtree(work, ignore_errors=True)
            raise
        if self.is_world_process_zero():
            (work / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
            if not (work / "generation_config.json").exists():  # peft saves none beside an adapter
                base.generation_config.save_pretrained(work)
            checkpoints.check_weights(work)
            conv1d.write_record(base_of(self.model), work)
            starts.save_as_plain_lora(self.accelerator.unwrap_model(self.model), work)
            # Where an engine has sharded the model no process holds all of it, and `check_weights` is the only check.
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                self.proofs += [*self.learning.proof(self.model), *allocation_proof(self.model)]
                self.proofs += prove_saved(self, work, load_saved)
            checkpoints.move_whole(work, self.run.model)


def _exact_loss(prediction: EvalPrediction) -> dict[str, float]:
    """Σ nll / Σ tokens of a split, in nats per supervised token."""
    nll, tokens = np.float64(prediction.predictions).sum(), np.int64(prediction.label_ids).sum()
    return {"loss": float(nll / tokens), "supervised_tokens": int(tokens)}


def _masks_are_needed(record: logging.LogRecord) -> bool:
    return "strongly recommend passing in an `attention_mask`" not in record.getMessage()


# GPT-2 warns of every padded batch without a mask. That is right for padding on the left; ours stands on the right.
logging.getLogger("transformers.modeling_utils").addFilter(_masks_are_needed)

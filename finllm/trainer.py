"""TRL's SFTTrainer as we run it: exact losses, only supervised positions through the vocabulary, a run dir.

What differs from SFTTrainer, and why:
- Rows come tokenized, with labels, from finllm.tokens: one place owns the mask.
- On a CPU the loss is finllm.loss, which skips prompt and padding; SFTTrainer projects every position there.
- Right padding needs no attention mask in a causal model: a response never sees what stands to its right.
- Validation loss is Σ nll / Σ tokens over the whole split, for any batch size and number of processes.
  transformers' own is a mean of batch means (transformers#39241).
"""

from __future__ import annotations

import functools
import logging
import shutil
import time
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, ProgressCallback, TrainerCallback
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer

from finllm.config import TrainingConfig
from finllm.loss import linear_cross_entropy
from finllm.machine import peak_memory_bytes
from finllm.run import RunDir, read_jsonl, write_jsonl
from finllm.tokens import IGNORED

# A model whose config sets one of these changes its logits after the projection; TRL's head knows how, ours does not.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class SupervisedTrainer(SFTTrainer):
    """SFTTrainer on tokenized rows that writes its metrics into a run dir. Arguments as SFTTrainer's, and `run`."""

    def __init__(self, model: PreTrainedModel, *, run: RunDir, args: TrainingConfig, **arguments: Any):
        if not args.packing:
            args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__init__(
            model=model,
            args=args,
            compute_metrics=_exact_loss,
            callbacks=[MetricsWriter(run), *arguments.pop("callbacks", [])],
            **arguments,
        )
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ProgressBar)
        text_config = model.config.get_text_config()
        changed = any(getattr(text_config, name, None) is not None for name in LOGIT_CHANGES)
        self.skips_masked_positions = self.args.device.type == "cpu" and not changed
        if self.skips_masked_positions:
            _add_supervised_head(model.get_base_model() if hasattr(model, "get_base_model") else model)
        for parameter in model.parameters():
            # SFTTrainer casts QLoRA's adapters to bfloat16, which most CPUs multiply a hundred times slower.
            if parameter.requires_grad and self.args.device.type == "cpu":
                parameter.data = parameter.data.float()
        self.run = run
        self.evaluation_seconds = 0.0
        self.supervised_tokens = self.tokens = 0  # of this process since training began
        self._window = {"nll": 0.0, "tokens": 0}  # since the last log
        self._logged = {"time": time.perf_counter(), "tokens": 0}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Σ nll over the batch's supervised tokens, divided by those of the whole optimizer step."""
        assert not return_outputs, "no logits are kept"
        nll, nll_B, tokens_B = self._likelihood(model, inputs)
        if self.model.training:
            self.tokens += int(inputs.get("attention_mask", inputs["input_ids"].ne(-1)).sum())
            self.supervised_tokens += int(tokens_B.sum())
            self._window["nll"] += float(nll_B.sum())
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
        batch = {key: value for key, value in inputs.items() if key not in ("labels", "attention_mask")}
        if self.skips_masked_positions:
            output = model(**batch, labels=labels, use_cache=False, supervised_head=True)
            nll, nll_N, mask = output.nll, output.nll_N, output.mask
        else:
            output = model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
            nll, nll_N, mask = -output.log_probs.sum(), -output.log_probs[output.label_mask], output.label_mask
        rows_N = mask.nonzero()[:, 0]
        nll_B = torch.zeros(len(mask), device=mask.device).index_add(0, rows_N, nll_N.detach().float())
        return nll, nll_B, mask.sum(1)

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

    def train_run(self, resume: bool) -> dict[str, Any]:
        """Train, from the last checkpoint with `resume`, and validate at the end; returns its part of summary.json."""
        last = get_last_checkpoint(self.args.output_dir) if resume and Path(self.args.output_dir).is_dir() else None
        self.args.eval_on_start = self.args.eval_on_start and last is None
        start = time.perf_counter()
        self.train(resume_from_checkpoint=last)
        seconds = time.perf_counter() - start - self.evaluation_seconds
        if self.state.global_step not in [line["step"] for line in self.state.log_history if "eval_loss" in line]:
            self.evaluate()
        losses = [line["eval_loss"] for line in self.state.log_history if "eval_loss" in line]
        counts = torch.tensor([self.tokens, self.supervised_tokens], dtype=torch.float64, device=self.args.device)
        tokens, supervised = self.accelerator.reduce(counts).tolist()
        return {
            "train_seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "steps": self.state.global_step,
            "epochs": float(self.state.epoch),
            "supervised_tokens": int(supervised),
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
            shutil.rmtree(self.run.model, ignore_errors=True)
            work.rename(self.run.model)


def _exact_loss(prediction: EvalPrediction) -> dict[str, float]:
    """Σ nll / Σ tokens of a split, in nats per supervised token."""
    nll, tokens = np.float64(prediction.predictions).sum(), np.int64(prediction.label_ids).sum()
    return {"loss": float(nll / tokens), "supervised_tokens": int(tokens)}


@dataclass
class SupervisedOutput(ModelOutput):
    """`nll` summed with gradient, `nll_N` of each supervised position, `mask` (B, T-1) of where these stand."""

    nll: torch.Tensor = None
    nll_N: torch.Tensor = None
    mask: torch.Tensor = None


def _add_supervised_head(model: PreTrainedModel) -> None:
    """Teach `model.forward` the argument `supervised_head=True`, with which it returns losses and builds no logits.

    It is the model's own forward that changes, so that DDP's hooks and peft's wrappers stay on the way.
    """
    forward = model.forward

    @functools.wraps(forward)
    def with_supervised_head(self, *args, labels=None, supervised_head=False, **kwargs):
        if not supervised_head:
            return forward(*args, **kwargs) if labels is None else forward(*args, labels=labels, **kwargs)
        hidden_BTC = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        labels_BT = labels[:, 1:]
        mask = labels_BT != IGNORED
        head = self.get_output_embeddings()
        nll, nll_N, _ = linear_cross_entropy(hidden_BTC[mask], head.weight, labels_BT[mask], head.bias)
        return SupervisedOutput(nll=nll, nll_N=nll_N, mask=mask)

    model.forward = types.MethodType(with_supervised_head, model)


class MetricsWriter(TrainerCallback):
    """Writes metrics.jsonl: a line a logged training step, a line an evaluation."""

    TRAINING = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "supervised_tokens", "peak_memory_bytes")

    def __init__(self, run: RunDir):
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the lines that a stopped run wrote after its last checkpoint: their steps will be done again."""
        if state.is_world_process_zero and self.run.metrics.exists():
            lines = read_jsonl(self.run.metrics)
            write_jsonl(self.run.metrics, [line for line in lines if 0 < state.global_step >= line["step"]])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        place = {"step": state.global_step, "epoch": round(float(state.epoch or 0), 4)}
        if "loss" in logs:
            self.run.log({**place, **{key: logs[key] for key in self.TRAINING if key in logs}})
        elif "eval_loss" in logs:
            self.run.log({**place, "validation_loss": logs["eval_loss"]})


def _masks_are_needed(record: logging.LogRecord) -> bool:
    return "strongly recommend passing in an `attention_mask`" not in record.getMessage()


# GPT-2 warns of every padded batch without a mask. That is right for padding on the left; ours stands on the right.
logging.getLogger("transformers.modeling_utils").addFilter(_masks_are_needed)
# TRL asks peft, which asks transformers, by the older name; nobody who runs a recipe can change that.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


class ProgressBar(ProgressCallback):
    """transformers' bars, with the losses beside them instead of a dictionary printed at every log."""

    def __init__(self):
        super().__init__()
        self.losses: dict[str, str] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name, key in (("loss", "loss"), ("validation", "eval_loss")):
            if key in logs:
                self.losses[name] = f"{logs[key]:.3f}"
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.set_postfix(self.losses)

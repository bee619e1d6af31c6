"""The loop over the steps, with what it logs, validates and saves on the way. Shapes: see model.py."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from baselines.scratch.checkpoint import Progress, Weights, copy_of, save_checkpoint
from baselines.scratch.config import TrainConfig
from baselines.scratch.data import Example, batches_of_epoch, collate, training_batches
from baselines.scratch.losses import IGNORED, Objective
from baselines.scratch.model import Transformer
from finllm.cpu.machine import peak_memory_bytes
from finllm.errors import UserError
from finllm.files import write_jsonl
from finllm.run_dir import RunDir
from finllm.terminal import Terminal
from finllm.training.stopping import Stop


def adamw(model: Transformer, config: TrainConfig) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    Only matrix weights decay: not norms, biases and embeddings.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed, others = [], []
    for parameter in model.parameters():
        (decayed if parameter.dim() == 2 and id(parameter) not in embeddings else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.adam_beta2), fused=True)


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up to `learning_rate`, then a cosine down to 0 (Loshchilov and Hutter 2017, eq. 5). Steps from 1."""
    warmup = round(config.warmup_ratio * total_steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup + 1)))


def part_of_this_process(batch: list[Example], accelerator: Accelerator) -> list[Example]:
    """Every n-th example of a batch; a process without one gets an example that teaches nothing, to stay in step."""
    part = batch[accelerator.process_index :: accelerator.num_processes]
    return part or [Example(batch[0].ids, [IGNORED] * len(batch[0].ids), batch[0].source)]


@dataclass
class Window:
    """Sums since the last logged step, or since a run went on."""

    first_token: int  # `Progress.tokens` where the window begins
    started: float
    loss: torch.Tensor | float = 0.0  # of this process
    supervised_tokens: int = 0


class Training:
    """The loop over the steps, with what it logs, validates and saves on the way."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunDir,
        accelerator: Accelerator,
        console: Terminal,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        examples: list[Example],
        validation: list[Example],
        progress: Progress,
        best: Weights,
        stop_at_step: int | None = None,
    ):
        self.config, self.run, self.accelerator, self.console = config, run, accelerator, console
        self.model, self.plain_optimizer = model, optimizer
        self.parallel_model, self.optimizer = accelerator.prepare(model, optimizer)
        self.examples, self.validation, self.progress, self.best = examples, validation, progress, best
        self.stop_at_step = stop_at_step
        self.sizes = [example.size for example in examples]
        self.objective = Objective(config.label_smoothing, config.unlikelihood)
        self.total_steps = config.max_steps or sum(
            len(batches_of_epoch(self.sizes, config.batch_tokens, config.seed, epoch))
            for epoch in range(config.num_train_epochs)
        )

    def run_to_end(self) -> None:
        """All steps that are left. A signal or `stop_at_step` ends with one, and a checkpoint, the process."""
        stop = Stop()
        stop.listen()
        try:
            self._run(stop)
        finally:
            stop.leave()
        if stop.signal:
            stop.exit(self.progress.step, self.accelerator.num_processes, self.accelerator.is_main_process)
        if self.progress.step == self.stop_at_step and self.progress.step < self.total_steps:
            self.console.print(
                f"{self.run.path} is at step {self.progress.step:,} of {self.total_steps:,}, as stop_at_step asked; "
                "--resume auto goes on"
            )
            self.run.let_go()
            raise SystemExit(0)

    def _run(self, stop: Stop) -> None:
        config, progress = self.config, self.progress
        started = time.perf_counter() - progress.train_seconds
        self.window = Window(progress.tokens, time.perf_counter())
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with ProgressBar(*columns, console=self.console) as bar:
            task = bar.add_task("", total=self.total_steps, completed=progress.step)
            if progress.step == 0:
                self.evaluate()
                progress.first_validation_loss = progress.final_validation_loss
            for epoch, batch in training_batches(self.sizes, config.batch_tokens, config.seed, progress.step):
                patience = config.early_stopping_patience
                if progress.step == self.total_steps or (patience and progress.evaluations_since_best >= patience):
                    break
                progress.step, progress.epoch = progress.step + 1, epoch
                self.step([self.examples[index] for index in batch])
                bar.update(task, completed=progress.step)
                last = progress.step == self.total_steps
                asked = progress.step == self.stop_at_step
                if last or progress.step % config.logging_steps == 0:
                    self.log()
                if last or progress.step % config.eval_steps == 0:
                    self.evaluate()
                elif asked:
                    self.validated()  # for who asked: the run goes on as if nobody had
                progress.train_seconds = time.perf_counter() - started
                stopped = stop.agree(self.accelerator.num_processes, self.accelerator.device) or asked
                due = stopped or last or progress.step % config.save_steps == 0  # the last: it may go on for longer
                if due and self.accelerator.is_main_process:
                    save_checkpoint(self.run.checkpoints, progress, self.model, self.best, self.plain_optimizer)
                if stopped:
                    break

    def step(self, batch: list[Example]) -> None:
        """One step of AdamW on the mean loss of the batch's supervised tokens, whichever process holds them."""
        config, progress, accelerator = self.config, self.progress, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(progress.step, self.total_steps, config)
        # Dropout follows from seed, step and process alone, so a resumed run draws what the whole run would have.
        seed = random.Random(f"{config.seed} {progress.step} {accelerator.process_index}").getrandbits(63)
        # Without a GPU torch.manual_seed still keeps a trace of its caller for one, which takes as long as clipping.
        (torch.default_generator if accelerator.device.type == "cpu" else torch).manual_seed(seed)
        self.model.train()
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.bf16):
            part = collate(part_of_this_process(batch, accelerator), accelerator.device)
            loss = self.parallel_model(*part, self.objective)
        supervised = sum(example.supervised for example in batch)
        # Several processes average their gradients: times their number, that is the sum which the mean loss needs.
        accelerator.backward(loss / supervised * accelerator.num_processes)
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm))
        if not math.isfinite(norm):  # before it reaches the weights
            raise UserError(
                f"the loss or its gradient is no number (norm {norm}) in step {progress.step:,} and was not applied; "
                f"the learning rate is {learning_rate_at(progress.step, self.total_steps, config):.2g}: lower "
                "learning_rate or max_grad_norm"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.window.loss += loss.detach()
        self.window.supervised_tokens += supervised
        progress.supervised_tokens += supervised
        progress.tokens += sum(example.length for example in batch)

    def log(self) -> None:
        """A line of metrics.jsonl about the steps since the last one."""
        progress, window = self.progress, self.window
        loss = self.sum_over_processes(float(window.loss)) / window.supervised_tokens
        progress.peak_memory_bytes = max(progress.peak_memory_bytes, peak_memory_bytes())
        line = {
            "step": progress.step,
            "epoch": progress.epoch,
            "loss": loss,
            "learning_rate": learning_rate_at(progress.step, self.total_steps, self.config),
            "tokens_per_second": (progress.tokens - window.first_token) / (time.perf_counter() - window.started),
            "supervised_tokens": progress.supervised_tokens,
            "peak_memory_bytes": progress.peak_memory_bytes,
        }
        if self.accelerator.is_main_process:
            self.run.log(line)
        self.window = Window(progress.tokens, time.perf_counter())

    def evaluate(self) -> None:
        """Validate, and keep the best weights so far."""
        progress = self.progress
        progress.final_validation_loss = self.validated()
        if progress.best_validation_loss is None or progress.final_validation_loss < progress.best_validation_loss:
            progress.best_validation_loss, progress.evaluations_since_best = progress.final_validation_loss, 0
            self.best = copy_of(self.model)
        else:
            progress.evaluations_since_best += 1

    def validated(self) -> float:
        """The validation loss now, always Σ nll / Σ tokens in float32 weights.

        It goes into metrics.jsonl, and what each row has of it into validation.jsonl, for two runs to be compared by
        rows.
        """
        progress, device = self.progress, self.accelerator.device
        before = time.perf_counter()
        self.model.eval()
        nll_R = torch.zeros(len(self.validation), dtype=torch.float64, device=device)  # R rows
        sizes = [example.size for example in self.validation]
        with torch.inference_mode():
            for batch in batches_of_epoch(sizes, self.config.batch_tokens, seed=0, epoch=0):
                if mine := batch[self.accelerator.process_index :: self.accelerator.num_processes]:
                    nll_R[mine] = self.model.nll(*collate([self.validation[row] for row in mine], device))
        if self.accelerator.num_processes > 1:
            nll_R = self.accelerator.reduce(nll_R)
        tokens = [example.supervised for example in self.validation]
        loss = float(nll_R.sum()) / sum(tokens)
        if not math.isfinite(loss):  # a step can leave finite weights whose products are infinite
            raise UserError(
                f"the validation loss is {loss} after step {progress.step:,}; lower learning_rate (now "
                f"{self.config.learning_rate:g}) or raise warmup_ratio (now {self.config.warmup_ratio:g})"
            )
        if self.accelerator.is_main_process:
            self.run.log({"step": progress.step, "epoch": progress.epoch, "validation_loss": loss})
            pairs = zip(nll_R.tolist(), tokens, strict=True)
            write_jsonl(self.run.validation, [{"step": progress.step, "row": row, "nll": nll, "tokens": count}
                                              for row, (nll, count) in enumerate(pairs)])  # fmt: skip
        self.console.print(f"step {progress.step:,}: validation loss {loss:.4f}")
        self.window.started += time.perf_counter() - before  # the rate of a logged line is that of training
        return loss

    def sum_over_processes(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)).item()

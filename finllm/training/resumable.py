"""SFTTrainer that can be stopped at any moment and goes on exactly, with the counts behind a run dir's figures.

What differs from transformers, and why:
- Checkpoints are complete or absent (finllm.training.checkpoints) and hold all that an exact resume needs.
  transformers' miss the counts behind our metrics, and early stopping's unless asked.
- A checkpoint of an epoch's last step is written after that epoch's evaluation, or a resumed run would go without it.
- A signal ends the step, is saved, and leaves with the command that goes on (finllm.training.stopping).
- Rates and losses are of what was seen since the last log, summed over processes, without the time of evaluations.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from transformers import ProgressCallback
from transformers.trainer_callback import EarlyStoppingCallback
from trl import SFTTrainer

from finllm.cpu.machine import peak_memory_bytes
from finllm.errors import UserError
from finllm.files import read_json, write_json
from finllm.run_dir import RunDir
from finllm.terminal import say
from finllm.training import checkpoints, method_state
from finllm.training.callbacks import MetricsWriter, ProgressBar, SaveAfterEpochsEnd, StopAtStep, StopOnSignal
from finllm.training.stopping import Stop, resume_command

PROGRESS = "progress.json"  # in a checkpoint: the counts behind metrics.jsonl and summary.json


class ResumableTrainer(SFTTrainer):
    """SFTTrainer that writes into a run dir and resumes exactly. Arguments as SFTTrainer's, and `run`.

    Whoever computes the loss calls `count` for every batch of training.
    """

    def __init__(
        self, *, run: RunDir, callbacks: list | None = None, stop_at_step: int | None = None, **arguments: Any
    ):
        self.stop, self.at_step = Stop(), StopAtStep(stop_at_step)
        own = [MetricsWriter(run), *(callbacks or []), self.at_step, StopOnSignal(self.stop), SaveAfterEpochsEnd()]
        super().__init__(callbacks=own, **arguments)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ProgressBar)
        self.run = run
        self._checkpoints = run.checkpoints
        self._since = time.perf_counter()  # training began, or went on
        self.train_seconds = self.evaluation_seconds = 0.0  # before that; since then
        self.supervised_tokens = self.tokens = 0  # of this process since training began
        self._window = {"nll": 0.0, "tokens": 0}  # since the last log
        self._logged = {"time": time.perf_counter(), "tokens": 0}

    def count(self, tokens: int, supervised_tokens: int, nll: float) -> None:
        """Add a batch of training: its tokens, those of them that teach, and their summed nll in nats."""
        self.tokens += tokens
        self.supervised_tokens += supervised_tokens
        self._window["nll"] += nll
        self._window["tokens"] += supervised_tokens

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
        """As SFTTrainer's, with its time left out of the time and rate of training, and its random numbers too.

        Every pass over a DataLoader draws one, so that dropout would depend on how often a run is evaluated.
        """
        start = time.perf_counter()
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            metrics = super().evaluate(*args, **kwargs)
        seconds = time.perf_counter() - start
        self.evaluation_seconds += seconds
        self._logged["time"] += seconds
        return metrics

    def _get_output_dir(self, trial) -> str:
        return str(self._checkpoints)

    def _save_checkpoint(self, model, trial) -> None:
        """As transformers', but complete or absent: see finllm.training.checkpoints."""
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
                if self._holds_adapter():
                    method_state.save(self.accelerator.unwrap_model(self.model), work)
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
            self._check_place(Path(resume_from_checkpoint).name, num_update_steps_per_epoch)
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

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        """As transformers', and the learning rate of the schedule that is now the run's.

        An optimizer's state holds the next step's rate. Of a run that goes on for longer it is that of the shorter
        one's end, which would be 0; of any other it is the same that is computed here.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or type(self.lr_scheduler) is not LambdaLR:
            return
        rates = [
            rate * factor(self.lr_scheduler.last_epoch)
            for rate, factor in zip(self.lr_scheduler.base_lrs, self.lr_scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.lr_scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.lr_scheduler._last_lr = rates

    def _check_place(self, checkpoint: str, steps_per_epoch: int) -> None:
        """The steps that a checkpoint is into the run must be its epochs: else other rows would come next.

        Within an epoch the two differ by less than a step, since a step of several batches counts the last ones whole.
        """
        step, epoch = self.state.global_step, self.state.epoch
        if abs(step - epoch * steps_per_epoch) >= 1:
            raise UserError(
                f"{checkpoint} is {epoch:.4g} epochs into the run and would be {step / steps_per_epoch:.4g} now, with "
                f"{steps_per_epoch:,} steps an epoch: rows are shared out otherwise than when it was written; go on "
                "with the number of processes and of epochs that it had"
            )

    def _run_epoch(self, **arguments) -> None:
        """Nothing where the checkpoint resumed from was the run's last: transformers would take one more step."""
        stopped_early = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        reached = self.state.max_steps if self.at_step.step is None else min(self.at_step.step, self.state.max_steps)
        if stopped_early or self.state.global_step >= reached:
            self.at_step.stopped = reached < self.state.max_steps and not stopped_early
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**arguments)

    def _holds_adapter(self) -> bool:
        """Whether this process has all of an adapter, and no engine has sharded it."""
        return hasattr(self.model, "peft_config") and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """As transformers', but an adapter's tensors come back as they were in training."""
        folder = Path(resume_from_checkpoint)
        if self._holds_adapter() and (folder / method_state.FILE).exists():
            method_state.load(self.model if model is None else model, folder)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        wrong = checkpoints.damage(Path(self.state.best_model_checkpoint))
        if wrong:
            raise UserError(
                f"the best checkpoint, {self.state.best_model_checkpoint}, is damaged: {wrong}; train again"
            )
        if self._holds_adapter() and (Path(self.state.best_model_checkpoint) / method_state.FILE).exists():
            method_state.load(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def train_run(self, resume: bool) -> dict[str, Any]:
        """Train, from the newest whole checkpoint with `resume`, and validate at the end; its part of summary.json.

        Raises `SystemExit` with 143 or 130 where SIGTERM or SIGINT stopped the run, and with 0 where `stop_at_step`
        did, after a checkpoint is written.
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
        if self.at_step.stopped:
            if self.is_world_process_zero():
                step, steps = self.state.global_step, self.state.max_steps
                say(f"{self.run.path} is at step {step:,} of {steps:,}, as stop_at_step asked; --resume auto goes on")
            self.run.let_go()
            raise SystemExit(0)
        seconds = self._train_seconds()
        # With load_best_model_at_end the model is one of an earlier step by now; its checkpoint's name has the step.
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        saved_step = int(Path(best).name.rpartition("-")[2]) if best else self.state.global_step
        if saved_step not in [line["step"] for line in self.state.log_history if "eval_loss" in line]:
            self.evaluate()
        evaluated = [line for line in self.state.log_history if "eval_loss" in line]
        progress = self._progress()
        return {
            "train_seconds": seconds,
            "tokens_per_second": progress["tokens"] / seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "steps": self.state.global_step,
            "epochs": float(self.state.epoch),
            "supervised_tokens": progress["supervised_tokens"],
            # of the model before training; None where that was not measured
            "first_validation_loss": evaluated[0]["eval_loss"] if evaluated[0]["step"] == 0 else None,
            # of the model that is saved, as it was after this step
            "final_validation_loss": [line["eval_loss"] for line in evaluated if line["step"] == saved_step][-1],
            "saved_step": saved_step,
            # of what was trained: an untrained model that was better is not among what this run can save
            "best_validation_loss": min(line["eval_loss"] for line in evaluated if line["step"]),
        }


def patience_used(checkpoint: Path) -> int:
    """How many evaluations in a row had no better loss when a checkpoint was written; 0 without early stopping."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    callback = state["stateful_callbacks"].get("EarlyStoppingCallback", {})
    return callback.get("attributes", {}).get("early_stopping_patience_counter", 0)

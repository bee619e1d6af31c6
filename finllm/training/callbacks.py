"""What a training run writes and shows while it goes on, and when it saves and stops: metrics.jsonl, the bars."""

from __future__ import annotations

from transformers import ProgressCallback, TrainerCallback

from finllm.files import write_jsonl
from finllm.run_dir import RunDir
from finllm.training.stopping import Stop


class MetricsWriter(TrainerCallback):
    """Writes metrics.jsonl: a line a logged training step, a line an evaluation."""

    TRAINING = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "supervised_tokens", "peak_memory_bytes")

    def __init__(self, run: RunDir):
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        """Keep the lines that the checkpoint knows of: what came after it will be done again."""
        if not state.is_world_process_zero:
            return
        known = {(line["step"], "eval_loss" in line) for line in state.log_history}
        lines = self.run.metrics_so_far()
        write_jsonl(self.run.metrics, [line for line in lines if (line["step"], "validation_loss" in line) in known])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        place = {"step": state.global_step, "epoch": round(float(state.epoch or 0), 4)}
        if "loss" in logs:
            self.run.log({**place, **{key: logs[key] for key in self.TRAINING if key in logs}})
        elif "eval_loss" in logs:
            self.run.log({**place, "validation_loss": logs["eval_loss"]})


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


class StopOnSignal(TrainerCallback):
    """A signal ends the step: the trainer saves a checkpoint and stops, all processes at the same step."""

    def __init__(self, stop: Stop):
        self.stop = stop
        self.stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop.agree(args.world_size, args.device):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """transformers takes the end of training for the end of an epoch; in the middle of one, nothing is due."""
        if self.stopped and not ends_epoch(state):
            control.should_log = control.should_evaluate = control.should_save = False


class StopAtStep(TrainerCallback):
    """The run is stopped after a step that was named beforehand, with a validation loss and a checkpoint of it."""

    def __init__(self, step: int | None):
        self.step = step  # None for a run that goes to its end
        self.stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True
            control.should_log = control.should_evaluate = control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """As `StopOnSignal.on_epoch_end`."""
        if self.stopped and not ends_epoch(state):
            control.should_log = control.should_evaluate = control.should_save = False


class SaveAfterEpochsEnd(TrainerCallback):
    """A checkpoint of an epoch's last step waits for what is due at the epoch's end.

    Written before, it would not know of that evaluation, and a run resumed from it would go on without one.
    """

    def __init__(self):
        self.waiting = False

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save and ends_epoch(state):
            control.should_save, self.waiting = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save, self.waiting = control.should_save or self.waiting, False


def ends_epoch(state) -> bool:
    """Whether the step just done is its epoch's last."""
    return float(state.epoch).is_integer()

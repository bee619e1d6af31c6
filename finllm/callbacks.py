"""What a training run writes and shows while it goes on: metrics.jsonl and the bars."""

from __future__ import annotations

from transformers import ProgressCallback, TrainerCallback

from finllm.run import RunDir, read_jsonl, write_jsonl


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

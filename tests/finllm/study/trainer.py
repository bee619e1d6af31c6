"""Stands in for recipes/sft.py where a study is tried without training: a process that takes time, keeps its step in a
checkpoint, ends on SIGTERM after saving, and finds the loss that its settings have. Every start is counted."""

import fcntl
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import yaml

arguments = sys.argv[1:]
config = yaml.safe_load(Path(arguments[arguments.index("--config") + 1]).read_text())
last = int(arguments[arguments.index("--stop_at_step") + 1]) if "--stop_at_step" in arguments else config["max_steps"]
run = Path(config["output_dir"])
checkpoint = run / "checkpoints" / "checkpoint.json"
rate, steps = config["learning_rate"], config["max_steps"]
if config.get("refused"):
    sys.exit(print("error: its layers cannot be adapted", file=sys.stderr) or 2)
run.mkdir(parents=True, exist_ok=True)
lock = open(run / ".lock", "a")  # noqa: SIM115  held until this process ends, as a run dir's is
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(print("error: in use by another run", file=sys.stderr) or 2)
(run / "config.yaml").write_text(yaml.safe_dump(config))
step = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with open(run / "steps.log", "a") as log:
    while step < last and not stopped:
        time.sleep(float(os.environ.get("SECONDS_A_STEP", "0")))
        step += 1
        log.write(f"{step}\n")
if rate > config.get("diverges_above", 1):
    sys.exit(print("error: the training loss is nan in step 2", file=sys.stderr) or 2)
checkpoint.parent.mkdir(exist_ok=True)
checkpoint.write_text(json.dumps({"step": step}))
if stopped:
    time.sleep(float(os.environ.get("SECONDS_TO_SAVE", "0")))
    sys.exit(143)
best = config["best_rate"]
loss = 2 + (math.log10(rate) - math.log10(best)) ** 2 + (0.5 if step < steps else 0) + config["seed"] / 1e6
lines = [json.dumps({"step": at, "validation_loss": loss}) for at in {steps // 2, step}]
(run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
rows = ({"step": step, "row": row, "nll": loss * 10 + row * rate, "tokens": 10} for row in range(8))
(run / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
if step == steps:
    summary = {"train_seconds": 1.0 * steps, "peak_memory_bytes": 1, "trainable_parameters": 1, "total_parameters": 2,
               "steps": steps, "supervised_tokens": 1, "schema_version": 1}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))

"""One training of a study: a command in a process of its own, with a run dir of its own, and how it ended."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finllm.files import locked, read_jsonl, write_text
from finllm.run_dir import LOCK, RunDir
from finllm.study.starting import Start

# By a method's `baseline` the command that trains, and its flags here
COMMANDS = {
    None: (Path("recipes/sft.py"), ("--disable_tqdm", "true")),
    "scratch": (Path("baselines/scratch/train.py"), ()),
}
REASON = 300  # characters of an error that are kept
REFUSED = 2  # the status of a command that says what its user can mend


@dataclass(frozen=True)
class Ended:
    """A training that ended: `loss` at the step that it was to reach, or `reason` why there is none.

    `refused` says that its settings cannot be trained at any rate; `stopped`, that it was the study that stopped it.
    """

    loss: float | None
    reason: str | None
    seconds: float
    refused: bool = False
    stopped: bool = False


def run_trial(
    root: Path,
    run: RunDir,
    settings: Mapping[str, Any],
    stop_at: int | None,
    device: int | None,
    stop: threading.Event,
    start: Start,
) -> Ended:
    """Train, or go on with, a run dir up to the step `stop_at`, or to its end; waits for the process.

    `root` is the checkout, `device` the number of the GPU that it may see, `start` how its process begins: in the
    folder of this one, so that relative paths lead where they do here. Its YAML and what it prints stand beside the run
    dir. Once `stop` is set, the run saves a checkpoint and ends.
    """
    config, log = run.path.with_name(f"{run.path.name}.yaml"), run.path.with_name(f"{run.path.name}.log")
    script, flags = COMMANDS[settings.get("baseline")]
    own = {**keys_of(settings), "output_dir": str(run.path)}
    write_text(config, yaml.safe_dump(own, sort_keys=False, allow_unicode=True))
    arguments = ["--config", str(config), "--resume", "auto", *flags]
    if stop_at is not None:
        arguments += ["--stop_at_step", str(stop_at)]
    _wait_for_others(run)
    begun = time.monotonic()
    began_at = log.stat().st_size if log.exists() else 0
    process = start(root / script, arguments, Path.cwd(), log, device)
    asked = False
    while (status := process.poll()) is None:
        if stop.is_set() and not asked:
            process.terminate()
            asked = True
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    if asked and status != 0:
        return Ended(None, None, seconds, stopped=True)
    if status != 0:
        # A run that was refused before it began would be at any rate; one that broke off in its course diverged.
        refused = status == REFUSED and not (run.path / "config.yaml").exists()
        return Ended(None, _why(status, log, began_at), seconds, refused)
    loss = _loss_at(run, stop_at or settings["max_steps"])
    return Ended(loss, "it ended without a validation loss" if loss is None else None, seconds)


def refusal_of(command: Sequence[str]) -> str:
    """What a command says why it would do nothing of it; empty where it ends well."""
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.returncode:
        return ""
    begin = done.stderr.find("error: ")
    lines = done.stderr[begin:].removeprefix("error: ").split("\n") if begin >= 0 else done.stderr.split("\n")[-2:]
    return "; ".join(line.strip() for line in lines if line.strip()) or f"it ended with status {done.returncode}"


def keys_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a method's settings those that its command knows."""
    return {key: value for key, value in settings.items() if key != "baseline"}


def _wait_for_others(run: RunDir) -> None:
    """A killed study's last training may still be saving its checkpoint."""
    lock = run.path / LOCK
    if lock.exists():
        with locked(lock):
            pass


def _loss_at(run: RunDir, step: int) -> float | None:
    """The validation loss of a step, in nats a token."""
    lines = read_jsonl(run.metrics) if run.metrics.exists() else []
    return next((line["validation_loss"] for line in lines if line["step"] == step and "validation_loss" in line), None)


def _why(status: int, log: Path, began_at: int) -> str:
    """What the end of a process's output says of its failure."""
    if status == -signal.SIGKILL:
        return "killed by SIGKILL, as the kernel does where memory runs out"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(began_at)
        lines = [line.strip() for line in file if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")
    said = said.removeprefix("error: ")
    return said if len(said) <= REASON else f"{said[:REASON]} …"


def drop_checkpoints(run: RunDir) -> None:
    """Remove what only resuming needs; metrics, proofs and model stay."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)

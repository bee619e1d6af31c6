"""What `--resume auto` may go on with: the run that the folder holds, in its own settings, or for more steps.

A run is what it was made from: its settings, data, base model, tokenizer, template, and number of processes.
finllm/run_dir.py compares them, finished or not. Here is what may differ all the same:

- More `num_train_epochs` or `max_steps` for a finished run. It goes on from its last checkpoint, with optimizer and
  data where they were, as transformers' own trainer does: from there on the learning rate is that of the longer
  schedule.
- Another number of processes, where rows a process and accumulation make it the same number of rows a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finllm.run_dir import RunDir
from finllm.terminal import say
from finllm.training import checkpoints

LENGTHS = ("num_train_epochs", "max_steps")
SHARES = ("per_device_train_batch_size", "gradient_accumulation_steps")
ENVIRONMENT = ("git_commit", "git_dirty", "python", "packages", "hardware", "processes")


def longer(run: RunDir, config: Mapping[str, Any], patience_of: Callable[[Path], int]) -> dict[str, str]:
    """Whether a run may go on for more steps than it had: its setting mapped to "", or to what stands against it.

    Empty where no more steps are asked for. `patience_of` reads from a checkpoint how many evaluations have passed
    without a better one.
    """
    held = run.config()
    # The one of the two that counts: transformers and the scratch baseline both let max_steps decide where it is set.
    key = LENGTHS[1] if (held.get(LENGTHS[1]) or 0) > 0 else LENGTHS[0]
    changed = [name for name in LENGTHS if held.get(name) != config.get(name)]
    if changed != [key] or not (config.get(key) or 0) > (held.get(key) or 0):
        return {}
    if not run.complete:
        return {key: f" in a run that is not finished: finish it with {key} {held[key]} first"}
    last = checkpoints.newest(run.checkpoints)
    if last is None:
        return {key: " and there is no checkpoint to go on from: they were not saved, or are gone"}
    step, steps = int(last.name.removeprefix(checkpoints.PREFIX)), run.summary()["steps"]
    if step != steps:
        return {key: f" and the last checkpoint is of step {step:,}, not of {steps:,}, the run's last"}
    patience = held.get("early_stopping_patience")
    if patience and patience_of(last) >= patience:
        return {key: f" and early_stopping_patience ({patience}) had ended the run; more steps change nothing"}
    return {key: ""}


def shared_otherwise(run: RunDir, config: Mapping[str, Any], processes: int) -> dict[str, str]:
    """Whether a run may go on in so many processes: what then differs mapped to "", or to what trains the same.

    Empty where their number is the same, or was never recorded.
    """
    held = run.config()
    before = run.provenance().get("processes") if (run.path / "provenance.json").exists() else None
    if before is None or before == processes:
        return {}
    if config.get("train_sampling_strategy") == "group_by_length":
        return {"processes": f"; rows grouped by length come in another order then: start {before}"}
    by_tokens = config.get("max_tokens_per_batch") is not None  # then a batch has as many rows as fit
    shares = SHARES[1:] if by_tokens else SHARES
    rows, now = before, processes
    for key in shares:
        rows, now = rows * held[key], now * config[key]
    if rows == now:
        return dict.fromkeys(("processes", *shares), "")
    unit = "batches" if by_tokens else "rows"
    fix = _same(rows, processes, config, shares)
    return {"processes": f"; a step had {rows} {unit} and would have {now}: start {before}, or {fix}"}


def _same(rows: int, processes: int, config: Mapping[str, Any], shares: tuple[str, ...]) -> str:
    """The settings under which so many processes take as many rows a step."""
    if rows % processes:
        return f"a number that divides {rows}"
    part = rows // processes
    batch = config[shares[0]] if len(shares) == 2 else 1
    if part % batch == 0:
        return f"set gradient_accumulation_steps to {part // batch}, which trains the same"
    return f"set gradient_accumulation_steps to 1 and per_device_train_batch_size to {part}, which trains the same"


@dataclass(frozen=True)
class GoingOn:
    """How a command goes on with the run in its folder, or begins one."""

    origin: dict[str, Any]  # what provenance.json is to say
    changes: dict[str, str]  # see RunDir.check
    finished: bool  # the very run that is asked for is there, whole

    @classmethod
    def of(
        cls,
        run: RunDir,
        config: Mapping[str, Any],
        origin: dict[str, Any],
        resume: bool,
        patience_of: Callable[[Path], int],
        any_processes: bool = False,
    ) -> GoingOn:
        """Hold what would be used against what was used; a `UserError` names all that differs and must not.

        `any_processes` says that the number of processes changes nothing in what a step learns from.
        """
        if not resume or not (run.path / "config.yaml").exists():
            run.check(config, resume, origin)
            return cls(origin, {}, finished=False)
        changes = longer(run, config, patience_of)
        changes |= {"processes": ""} if any_processes else shared_otherwise(run, config, origin["processes"])
        run.check(config, resume, origin, changes)
        finished = run.complete and not any(changes.get(key) == "" for key in LENGTHS)
        return cls(_continued(run, origin, changes), changes, finished)

    def start(self, run: RunDir, config: dict[str, Any], resume: bool) -> None:
        """Claim the folder, and say where the run goes on otherwise than it began."""
        held = run.config() if (run.path / "config.yaml").exists() else {}
        run.start(config, self.origin, resume, self.changes)
        for key in LENGTHS:
            if self.changes.get(key) == "":
                step = self.origin["extended"][-1]["step"]
                say(
                    f"{run.path} goes on from step {step:,}: {key} was {held[key]} and is now {config[key]}. From here "
                    f"on the learning rate follows the schedule of the longer run; the first {step:,} steps followed "
                    "that of the shorter one, so it ends elsewhere than a run that was as long from the beginning.",
                    flush=True,
                )
        if self.changes.get("gradient_accumulation_steps") == "":
            say(
                f"{run.path} goes on in {self.origin['processes']} processes with as many rows a step; "
                "sums round in another order and dropout is drawn anew",
                flush=True,
            )


def _continued(run: RunDir, origin: dict[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """What provenance.json is to say of a run that goes on: where its last part comes from, and what was until then.

    `resumed` has an entry for each time that code, machine or number of processes changed: what they were before.
    `extended` has one for each time that more steps were asked for: the step it had reached, and the setting before.
    """
    if not (run.path / "provenance.json").exists():
        return origin
    held = run.provenance()
    new = {**held, **origin}
    if other := {key: held[key] for key in ENVIRONMENT if key in held and held[key] != origin.get(key)}:
        new["resumed"] = [*held.get("resumed", []), other]
    for key in LENGTHS:
        if changes.get(key) == "":
            new["extended"] = [*held.get("extended", []), {"step": run.summary()["steps"], key: run.config()[key]}]
    return new

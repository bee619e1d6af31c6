"""The final runs of a study, evaluated by eval's commands, each a process of its own, and the report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finllm import threads
from finllm.data.dataset_dir import DatasetDir
from finllm.errors import Gathering
from finllm.study.settings import Evaluation, Study
from finllm.study.trial import refusal_of
from finllm.terminal import Terminal

SHOWN = 2000  # characters of a failed process's output


class Evaluating:
    """`root` is the checkout, `folder` the study dir, `devices` for each worker the number of its GPU, None without."""

    def __init__(self, root: Path, folder: Path, devices: Sequence[int | None]):
        self.root, self.folder, self.devices = root, folder, devices

    def evaluate(self, study: Study, content: dict[str, Any]) -> None:
        """Evaluate the final runs of `content`, study.json's, and their base models, and write the report.

        What was evaluated before is not evaluated again.
        """
        asked, flags = study.evaluation, flags_of(study.evaluation)
        by_base = runs_by_base(study, content, self.folder / "trials")
        runs = [run for held in by_base.values() for run in held]
        from_nothing = by_base.pop(None, [])  # it has no base to forget, nor one to be scaled from
        bases = {base: self.folder / name for base, name in names_of([*by_base]).items()}
        for base, place in bases.items():
            settings = study.of(_method_of(content, by_base[base][0]))[0].settings
            self._one("eval/run.py", *_as_base(settings), "--output_dir", place, *flags)
        self._shared_out("eval/run.py", runs, flags)
        for base, place in bases.items():
            if asked.texts:
                texts = ["--base", place, "--texts", asked.texts]
                self._one("eval/forgetting.py", by_base[base][0], *texts)  # here the base model writes its texts
                self._shared_out("eval/forgetting.py", by_base[base], texts)
        finals = _finals(content, self.folder / "trials").values()
        firsts = [held[0] for held in finals if held and held[0] not in from_nothing]
        if asked.scales and firsts:
            self._shared_out("eval/scaling.py", firsts, ["--scales", *asked.scales, "--batch_size", asked.batch_size])
        self._one("eval/leaderboard.py", *bases.values(), *runs, "--study", self.folder, "--split", asked.split,
                  "--output_dir", self.folder / "report")  # fmt: skip

    def problems(self, study: Study, dataset_of: Callable[[str], DatasetDir]) -> Iterator[str]:
        """What is known beforehand to keep models of a study from being evaluated and compared.

        eval/run.py looks at the base models, whose texts and positions nearly all models of theirs have.
        """
        asked, settings = study.evaluation, [candidate.settings for candidate in study.candidates]
        datasets = {name: dataset_of(name) for name in dict.fromkeys(each["dataset_name"] for each in settings)}
        gathering = Gathering()
        for dataset in datasets.values():
            for split in dict.fromkeys((asked.split, *(["validation"] if asked.scales else []))):
                with gathering:
                    dataset.require_rows(split)
        yield from map(str, gathering.errors)
        if len({dataset.hash for dataset in datasets.values()}) > 1:
            yield (
                f"dataset_name is {' and '.join(datasets)}, and models are compared on the same questions alone; give "
                "all methods one"
            )
        bases = dict.fromkeys(_as_base(each) for each in settings if each.get("model_name_or_path"))
        for base in bases if not gathering.errors else ():
            flags = [*base, "--output_dir", self.folder / "base", *flags_of(asked), "--dry_run"]
            said = refusal_of(self._command("eval/run.py", *flags))
            if said:  # as a key of the study; its models are evaluated apart, so that none can go by another's limits
                said = said.partition("; or leave these examples out")[0].replace(str(self.folder / "base"), base[1])
                yield f"evaluation: {said.replace('--max_new_tokens', 'evaluation.max_new_tokens')}"

    def _shared_out(self, script: str, runs: Sequence[Path], arguments: Sequence[Any]) -> None:
        """One of eval's commands on run dirs, which are shared out among as many processes as there are workers.

        One process shows its progress and its tables; of several each writes to a file of its own in evaluation/.
        """
        workers = min(len(self.devices), len(runs))
        if workers < 2:
            return self._one(script, *runs, *arguments)
        logs = self.folder / "evaluation"
        logs.mkdir(exist_ok=True)
        Terminal().print(f"{script}: {len(runs)} runs, {workers} at a time; output in {logs}", soft_wrap=True)
        each_a_part, started = (workers if None in self.devices else 0), []
        for number in range(workers):
            log = logs / f"{Path(script).stem}-{number}.log"
            with open(log, "w", encoding="utf-8") as file, threads.shared_by(each_a_part):
                started.append((log, subprocess.Popen(
                    self._command(script, *runs[number::workers], *arguments), stdout=file, stderr=file,
                    stdin=subprocess.DEVNULL, env=environment(self.devices[number]),
                )))  # fmt: skip
        failed = [(log, process.returncode) for log, process in started if process.wait()]
        for log, _ in failed:
            Terminal(stderr=True).print(f"{log}:\n{log.read_text(encoding='utf-8')[-SHOWN:]}", soft_wrap=True)
        if failed:
            raise SystemExit(max(1, failed[0][1]))

    def _one(self, script: str, *arguments: Any) -> None:
        """One of eval's commands as a process of its own, whose failure is this command's."""
        status = subprocess.run(self._command(script, *arguments), env=environment(self.devices[0])).returncode
        if status:
            raise SystemExit(max(1, status))

    def _command(self, script: str, *arguments: Any) -> list[str]:
        return [sys.executable, str(self.root / script), *map(str, arguments)]


def flags_of(asked: Evaluation) -> list[Any]:
    """eval/run.py's, for every model alike."""
    flags = ["--split", asked.split, "--max_new_tokens", asked.max_new_tokens, "--batch_size", asked.batch_size]
    flags += ["--max_examples", asked.max_examples] if asked.max_examples is not None else []
    return [*flags, *(["--max_generated", asked.max_generated] if asked.max_generated is not None else [])]


def _as_base(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """eval/run.py's flags for the base model of a method, asked as the method's own models are."""
    own = ("model_name_or_path", "dataset_name", *(["template"] if "template" in settings else []))
    return tuple(word for key in own for word in (f"--{key}", str(settings[key])))


def runs_by_base(study: Study, content: dict[str, Any], trials: Path) -> dict[str | None, list[Path]]:
    """The final runs by the base model that they began with, in the order of methods and seeds.

    Under None are those that began with random weights.
    """
    found: dict[str | None, list[Path]] = {}
    for method, runs in _finals(content, trials).items():
        if runs:
            found.setdefault(study.of(method)[0].settings.get("model_name_or_path"), []).extend(runs)
    return found


def names_of(bases: Sequence[str]) -> dict[str, str]:
    """For each base model the name that its results have in the study dir: base, where it is the only one."""
    if len(bases) == 1:
        return {bases[0]: "base"}
    found: dict[str, str] = {}
    for base in bases:
        name = "base-" + re.sub(r"[^A-Za-z0-9._-]+", "-", base.rstrip("/").rpartition("/")[2]).strip("-")[-40:]
        found[base] = name if name not in found.values() else f"{name}-{len(found) + 1}"
    return found


def _finals(content: dict[str, Any], trials: Path) -> dict[str, list[Path]]:
    return {
        name: [trials / run["run"] for run in method["finals"] if "validation_loss" in run]
        for name, method in content["methods"].items()
    }


def _method_of(content: dict[str, Any], run: Path) -> str:
    return next(
        name for name, method in content["methods"].items() if run.name in {each["run"] for each in method["finals"]}
    )


def environment(device: int | None) -> dict[str, str]:
    """This process's variables, for one that sees the GPU of this number alone."""
    return {**os.environ, **({} if device is None else {"CUDA_VISIBLE_DEVICES": str(device)})}

"""Which method, at which setting, on these data, on this machine, and how sure is that: the fair comparison.

    python recipes/compare.py --config recipes/configs/compare.yaml --output_dir runs/study [--resume auto]

The rate of each method is searched on validation loss, the chosen settings are trained with every seed, and only then
is the test split looked at. Every training is a process of recipes/sft.py, or of a baseline's command, with a run dir
of its own; the same command with `--resume auto` goes on after any kill, and with `--join` a second machine helps on a
shared folder.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import finllm  # noqa: F401
from finllm import threads
from finllm.data.dataset_dir import DatasetDir
from finllm.data.prepare import resolve
from finllm.errors import Once, UserError, run_command
from finllm.files import cache_dir, read_json, write_json, write_text
from finllm.models.methods import known_method
from finllm.study.alike import said_of
from finllm.study.conduct import Conduct, Found
from finllm.study.contents import check_contents
from finllm.study.evaluating import Evaluating, environment
from finllm.study.progress import Teller, plan_table, standing
from finllm.study.results import results_of
from finllm.study.settings import Study, read_study
from finllm.study.starting import Forking
from finllm.study.storage import Storage, check_storage
from finllm.study.trial import COMMANDS, keys_of, refusal_of
from finllm.terminal import Parser, Terminal

ROOT = Path(__file__).resolve().parents[1]
# Where to look for the rate of what has no method of peft: full training from a tenth of the usual rate of LoRA
# (Thinking Machines 2025, "LoRA Without Regret"), a part of the weights up to a few times that.
FULL, PARTIAL = (1e-5, 1e-3), (1e-4, 1e-3)
SCRATCH = (1e-3, 1e-2)  # of a small model from random weights, which nothing has to be kept of
PLANS = "plans"  # the folder of a study dir that --dry_run leaves
# Keys by which a run names what it is made from
NAMING = ("model_name_or_path", "model_revision", "dataset_name", "dataset_train_split", "dataset_test_split",
          "template", "eos_token", "pad_token", "max_length", "output_dir")  # fmt: skip


def main() -> None:
    arguments = read_arguments()
    folder, once = Path(arguments.output_dir), Once()
    study = read_study(
        arguments.config,
        lambda settings: usual_rates(settings, once),
        lambda study: Evaluating(ROOT, folder, [None]).problems(study, lambda name: dataset_of(name, once)),
    )
    check_storage(folder, arguments.storage)
    claim_folder(folder, study, arguments)
    devices = devices_of(arguments.workers)
    if not arguments.dry_run:
        storage, contents = Storage(folder, arguments.storage), contents_of(study, once)
        check_contents(Found(study, storage), folder / "trials", contents)

    plans = plans_of(study, folder / PLANS, devices)
    table, seconds = plan_table(study, plans, len(devices))
    console = Terminal()
    console.print(table)
    console.print(hours_of(seconds, devices), soft_wrap=True)
    if arguments.dry_run:
        return

    conduct = Conduct(study, storage, folder, ROOT, Forking())
    stopped = train(conduct, plans, devices)
    with storage.alone():
        if stopped:
            write_json(folder / "study.json", results_of(study, storage, folder / "trials"))
            Terminal().print("stopped; go on with the same command and --resume auto", soft_wrap=True)
            raise SystemExit(128 + stopped)
        check_contents(Found(study, storage), folder / "trials", contents)  # it may have changed meanwhile
        finish(study, storage, folder, devices)


def read_arguments() -> argparse.Namespace:
    parser = Parser(
        description="Compare methods fairly: rates searched, seeds repeated, the test split looked at last."
    )
    parser.add_argument("--config", required=True, help="the study's YAML")
    parser.add_argument("--output_dir", required=True, help="the study dir")
    parser.add_argument("--resume", choices=["auto"], help="go on with the study in output_dir, or start it")
    parser.add_argument("--join", action="store_true", help="help the study that another machine began in output_dir")
    parser.add_argument(
        "--workers", type=int, help="trainings at a time, which share a CPU's cores (default: one a GPU, one on a CPU)"
    )
    parser.add_argument("--storage", help="a database URL (Optuna's) instead of a journal in the study dir")
    parser.add_argument("--dry_run", action="store_true", help="check the study and print its plan, and no more")
    arguments = parser.parse_args()
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers is {arguments.workers}; it must be at least 1")
    return arguments


def usual_rates(settings: Mapping[str, Any], once: Once) -> tuple[float, float]:
    """Check the keys of a run and what they name, and say between which learning rates its method is usually trained.

    All that is wrong is one `UserError`; of keys that are not even read it is what they name, too.
    """
    if settings.get("baseline"):
        check_baseline(settings)
        return SCRATCH
    # TRL comes with it: seconds that help and a mistyped study need not wait for
    from finllm.training.beforehand import problems_of

    problems: list[str] = []
    try:
        run = parsed(settings)
    except UserError as error:
        problems, run = error.problems, None
        with contextlib.suppress(UserError):
            run = parsed({key: settings[key] for key in NAMING if key in settings})
    problems += [str(error) for error in problems_of(*run, once)] if run else []
    if problems:
        raise UserError("; ".join(problems), problems=problems)
    model = run[2]
    if model.kind is not None:
        return known_method(model.kind).rates or PARTIAL
    return PARTIAL if model.trainable else FULL


def parsed(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """The flags of recipes/sft.py, as it reads them."""
    from finllm.training.config import parse

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump({**settings, "learning_rate": 1e-4}, file)
        file.flush()
        try:
            return parse(["--config", file.name])
        except UserError as error:
            said = [problem.replace(f"{file.name}: ", "") for problem in error.problems]
            raise UserError("; ".join(said), problems=said) from None


def contents_of(study: Study, once: Once) -> dict[str, dict[str, str]]:
    """By candidate what identifies the data, base model, tokenizer and template that its names hold now."""
    from finllm.training.beforehand import made_from

    found = {}
    for candidate in study.candidates:
        if "baseline" in candidate.settings:
            found[candidate.name] = {"dataset_hash": dataset_of(candidate.settings["dataset_name"], once).hash}
        else:
            run = parsed({**study.settings_of(candidate, candidate.grid[0], study.seeds[0]), "output_dir": "none"})
            found[candidate.name] = made_from(*run, once).hashes(run[2].model_revision, once)
    return found


def dataset_of(name: str, once: Once) -> DatasetDir:
    """The data of this name, as a training opens them."""
    return once(resolve, name, cache_dir() / "datasets")


def check_baseline(settings: Mapping[str, Any]) -> None:
    """Let the baseline's own command say whether it can be trained so: recipes know nothing of baselines."""
    script, _ = COMMANDS[settings["baseline"]]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump({**keys_of(settings), "learning_rate": 1e-3}, file)
        file.flush()
        said = refusal_of([sys.executable, str(ROOT / script), "--config", file.name, "--dry_run"])
    if said:
        raise UserError(said.replace(f" in {file.name}", "").replace(f"{file.name}: ", ""))


def claim_folder(folder: Path, study: Study, arguments: argparse.Namespace) -> None:
    """Keep the study's YAML in its folder; refuse a folder that holds another study, or something else.

    What is only planned binds nobody: its YAML may change until it begins.
    """
    text, held = yaml.safe_dump(study.content, sort_keys=False, allow_unicode=True), folder / "study.yaml"
    if held.exists():
        if not (arguments.resume or arguments.join or arguments.dry_run):
            raise UserError(
                f"{folder} already holds a study; pass --resume auto to go on with it, or another --output_dir"
            )
        if held.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{arguments.config} is not the study that {folder} holds ({held}); give that file as --config, or "
                "another --output_dir"
            )
    elif arguments.join:
        raise UserError(f"{folder} holds no study to join; begin it there without --join")
    elif folder.exists() and (folder.is_file() or any(map(_foreign, folder.iterdir()))):
        raise UserError(f"{folder} is not empty and holds no study; take another --output_dir")
    elif not arguments.dry_run:
        write_text(held, text)


def _foreign(path: Path) -> bool:
    """Whether a file of a folder without a study is none that a study is about to begin with."""
    return path.name != PLANS and not path.name.startswith(".study.yaml.")


def devices_of(workers: int | None) -> list[int | None]:
    """For each worker the number of the GPU that its trainings see; None where there are no GPUs."""
    import torch

    count = torch.cuda.device_count()
    return [number % count if count else None for number in range(workers or count or 1)]


def plans_of(study: Study, folder: Path, devices: list[int | None]) -> dict[str, dict[str, Any] | str]:
    """What `finllm plan` says of a run of the first method that it can plan, kept for the next time it is asked.

    A plan takes a minute of its own, so the other methods are taken to be as slow until their first runs show it. It
    has as many threads as a training will have beside the others; of more trainings than cores each has part of one.
    """
    plans: dict[str, dict[str, Any] | str] = {}
    for method in study.methods:
        candidate = study.of(method)[0]
        if "baseline" in candidate.settings:  # `finllm plan` plans what recipes/sft.py trains
            continue
        place, config = folder / method, folder / f"{method}.yaml"
        plan, settings = place / "plan.json", study.settings_of(candidate, candidate.grid[0], study.seeds[0])
        text = yaml.safe_dump({**settings, "output_dir": str(place)}, sort_keys=False)
        text = f"# planned as one of {len(devices)} at a time\n{text}"
        if not (plan.exists() and config.exists() and config.read_text(encoding="utf-8") == text):
            plan.unlink(missing_ok=True)
            write_text(config, text)
            Terminal(stderr=True).print(f"planning {method}", soft_wrap=True)
            command = [sys.executable, "-m", "finllm.cli", "plan", "--config", str(config)]
            with threads.shared_by(devices.count(None)):
                done = subprocess.run(command, capture_output=True, text=True, env=environment(devices[0]))
            if done.returncode or not plan.exists():
                plans[method] = (done.stderr.strip().splitlines() or ["no plan"])[-1]
                continue
        held = read_json(plan)
        if (crowded := devices.count(None) / threads.cores()) > 1:  # it was measured with a core of its own
            held["step_seconds"] *= crowded
            held["tokens_per_second"] /= crowded
        plans[method] = held
        return plans
    return plans


def hours_of(seconds: float, devices: list[int | None]) -> str:
    """The sentence below the planned table."""
    said = f"Some {seconds / 3600:.1f} hours of training with {len(devices)} at a time"
    shared = any(devices.count(device) > 1 for device in devices if device is not None)
    return f"{said}, if those that share a GPU do not slow each other." if shared else f"{said}."


def train(conduct: Conduct, plans: Mapping[str, Any], devices: list[int | None]) -> int | None:
    """Let workers train until nothing is due, or a SIGINT or SIGTERM stops them after a checkpoint each: its number."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        conduct.stop.set()

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    tell = Teller(lambda: standing(conduct, Found(conduct.study, conduct.storage), plans, len(devices)))
    failures: list[BaseException] = []

    def worker(device: int | None) -> None:
        try:
            conduct.work(device, tell, devices.count(device) - 1)
        except BaseException as error:  # told by the thread that waits for all
            failures.append(error)
            conduct.stop.set()

    workers = [threading.Thread(target=worker, args=(device,)) for device in devices]
    with threads.shared_by(devices.count(None)):
        for thread in workers:
            thread.start()
        for thread in workers:
            while thread.is_alive():  # a join without end would keep signals from being seen
                thread.join(0.2)
    for number, handler in before.items():
        signal.signal(number, handler)
    if failures:
        raise failures[0]
    return received[0] if received else None


def finish(study: Study, storage: Storage, folder: Path, devices: list[int | None]) -> None:
    """Evaluate the final runs and their base models, and write the report. Only here is the test split looked at."""
    content = results_of(study, storage, folder / "trials")
    write_json(folder / "study.json", content)
    if not any("validation_loss" in run for method in content["methods"].values() for run in method["finals"]):
        reasons: dict[str, list[str]] = {}
        for name, method in content["methods"].items():
            reasons.setdefault(str(method["failed"]), []).append(name)
        said = "; ".join(said_of(reason, names, len(content["methods"])) for reason, names in reasons.items())
        raise UserError(f"no method could be trained: {said}")
    Evaluating(ROOT, folder, devices).evaluate(study, content)


if __name__ == "__main__":
    run_command(main)

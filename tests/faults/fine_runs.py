"""A tiny GPT-2 with dropout, trained for some steps by the recipe, in processes that may be killed."""

from __future__ import annotations

import json
import shutil
import signal
import zlib
from pathlib import Path

from processes import Moment, run

from finllm.files import read_jsonl, sha256_of_files
from finllm.run_dir import RunDir

CHANGES_EVERY_TIME = ("tokens_per_second", "peak_memory_bytes")
STEPS = 14
SETTINGS = ("--max_length", 256, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--max_steps", STEPS,
            "--max_train_samples", 20, "--max_eval_samples", 6, "--learning_rate", "1e-3", "--disable_tqdm", "true",
            "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 2,
            "--eval_strategy", "steps", "--eval_steps", 3, "--base_dropout", 0.2,
            "--bf16", "false")  # fmt: skip
# In float32 on every processor: bit for bit is promised for it alone, and what tells one adapter from another is finer.


class Fine:
    """`recipes/sft.py` on the tiny GPT-2; each run with an output folder of its own."""

    def __init__(self, model: Path, data: Path, folder: Path, wholes: Path):
        self.wholes = wholes
        self.arguments = ["--model_name_or_path", model, "--dataset_name", data, *SETTINGS]
        self.folder = folder

    def command(self, name: str, *more: object) -> list[object]:
        return [*self.arguments, "--output_dir", self.folder / name, *more]

    def train(self, name: str, *more: object, **how) -> int:
        """Run until its end or its killing; its exit status."""
        return run("recipes/sft.py", self.command(name, *more), self.log(name), **how)

    def whole(self, *more: object) -> RunDir:
        """The same, never interrupted; made once for all tests."""
        folder = self.wholes / f"{zlib.crc32(repr(more).encode()):x}"
        run_dir = RunDir(folder)
        if not run_dir.complete:
            arguments = [*self.arguments, "--output_dir", folder, *more]
            assert run("recipes/sft.py", arguments, self.log("whole")) == 0, self.printed("whole")
        return run_dir

    def killed(self, name: str) -> RunDir:
        """As run `name`: the plain run, killed while its third checkpoint has no name yet; made once for all tests."""
        first = self.wholes / "killed"
        if not first.exists():
            moment = Moment("rename", 3, ".writing")
            arguments = [*self.arguments, "--output_dir", first]
            assert run("recipes/sft.py", arguments, self.log("killed"), moment=moment) == -signal.SIGKILL
        run_dir = RunDir(shutil.copytree(first, self.folder / name))
        config = run_dir.path / "config.yaml"  # which names its own folder, and another one would be refused
        config.write_text(config.read_text().replace(str(first), str(run_dir.path)))
        return run_dir

    def resumed(self, name: str, *more: object) -> RunDir:
        """Go on with the run `name` until it ends."""
        status = self.train(name, *more, "--resume", "auto")
        assert status == 0, f"exit status {status}: {self.printed(name)}"
        return self.run(name)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def printed(self, name: str) -> str:
        return self.log(name).read_text(encoding="utf-8")

    def run(self, name: str) -> RunDir:
        return RunDir(self.folder / name)


def weights_of(run: RunDir) -> str:
    return sha256_of_files(run.model.glob("*.safetensors"))


def metrics_of(run: RunDir) -> list[dict]:
    """The lines of metrics.jsonl without what differs between two runs of the same."""
    lines = read_jsonl(run.metrics)
    return [{key: value for key, value in line.items() if key not in CHANGES_EVERY_TIME} for line in lines]


def state_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def assert_same(killed: RunDir, whole: RunDir) -> None:
    """Weights bit for bit, every line of metrics.jsonl, the summary's figures, and nothing half-written left."""
    assert metrics_of(killed) == metrics_of(whole)
    assert weights_of(killed) == weights_of(whole)
    for figure in ("steps", "supervised_tokens", "first_validation_loss", "best_validation_loss"):
        assert killed.summary()[figure] == whole.summary()[figure]
    left = [item.name for folder in (killed.path, killed.checkpoints) for item in folder.glob(".*")]
    assert left == [".lock"]

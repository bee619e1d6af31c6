"""One training of a study: by which command, with which YAML and flags."""

import json
import threading
from pathlib import Path

import pytest
import yaml

from finllm.run_dir import RunDir
from finllm.study.trial import Ended, run_trial


class Done:
    """A process that has ended well."""

    def poll(self):
        return 0


@pytest.mark.parametrize(("settings", "script", "flags"), [
    ({"lora_r": 4}, "recipes/sft.py", ["--disable_tqdm", "true"]),
    ({"baseline": "scratch", "width": 32}, "baselines/scratch/train.py", []),
])  # fmt: skip
@pytest.mark.parametrize("stop_at", [None, 3])
def test_a_method_is_trained_by_its_command_with_the_keys_that_it_knows(settings, script, flags, stop_at, tmp_path):
    run, started = RunDir(tmp_path / "trials" / "a-0.001-seed1"), []
    settings = {**settings, "max_steps": 9}

    def start(*given):
        started.append(given)
        run.path.mkdir(parents=True)
        lines = [{"step": step, "validation_loss": 5.0 - step / 10} for step in (0, 3, 9)]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Done()

    (tmp_path / "trials").mkdir()
    ended = run_trial(Path("checkout"), run, settings, stop_at, 1, threading.Event(), start)
    assert ended == Ended(5.0 - (stop_at or 9) / 10, None, ended.seconds)
    ((path, arguments, place, log, device),) = started
    config = tmp_path / "trials" / "a-0.001-seed1.yaml"
    stop = ["--stop_at_step", "3"] if stop_at else []
    assert (path, place, device) == (Path("checkout") / script, Path.cwd(), 1)
    assert arguments == ["--config", str(config), "--resume", "auto", *flags, *stop]
    assert log == config.with_suffix(".log")
    known = {key: value for key, value in settings.items() if key != "baseline"}
    assert yaml.safe_load(config.read_text()) == {**known, "output_dir": str(run.path)}

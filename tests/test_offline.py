"""From rows on disk to a leaderboard without one call to the network."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from finllm import cli

ROOT = Path(__file__).resolve().parents[1]
SPLIT = ("--validation_fraction", "0.15", "--test_fraction", "0.15")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Every attempt to reach another machine; each fails."""
    attempts: list[str] = []

    def refused(name):
        def call(*arguments, **_):
            attempts.append(f"{name} {arguments[-1]}")
            raise OSError(f"no network: {arguments[-1]}")

        return call

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused(name))
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refused(name))
    return attempts


def test_prepare_train_evaluate_and_compare_reach_for_nothing(command, calls, gpt2_dir, tmp_path, monkeypatch):
    source = ROOT / "finllm/data/sample/tax.jsonl"
    monkeypatch.setattr(sys, "argv", ["finllm", "prepare", str(source), "--output_dir", str(tmp_path / "data"), *SPLIT])
    cli.main()
    for script, *arguments in (
        ("recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", tmp_path / "data", "--max_steps", 2,
         "--output_dir", tmp_path / "run", "--max_length", 256, "--save_strategy", "no", "--disable_tqdm", "true"),
        ("eval/run.py", tmp_path / "run", "--max_examples", 4, "--max_generated", 2, "--max_new_tokens", 4),
        ("eval/leaderboard.py", tmp_path / "run", "--output_dir", tmp_path / "board"),
    ):  # fmt: skip
        done = command(script, *arguments)
        assert done.status == 0, done.err
    assert (tmp_path / "board" / "index.html").exists()
    assert calls == []


def test_no_command_reaches_for_the_network_where_nobody_has_forbidden_it(gpt2_dir, dataset_dir, tmp_path):
    """The suite sets HF_HUB_OFFLINE, which hides what libraries send of their own; here it is not set."""
    attempts = tmp_path / "attempts"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DO_NOT_TRACK"))}
    done = subprocess.run(
        [sys.executable, "tests/every_command_offline.py", tmp_path, gpt2_dir, dataset_dir, attempts], cwd=ROOT,
        env={**environment, "HF_HOME": str(tmp_path / "hub")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("# done\n"), done.stdout[-2000:] + done.stderr[-2000:]
    assert not attempts.exists(), attempts.read_text()

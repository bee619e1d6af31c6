"""Run dirs that come from others: links that lead out, files that are broken, another base model under the adapter."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from finllm.files import read_json

TRAIN = ("--max_steps", 2, "--max_length", 256, "--disable_tqdm", "true", "--save_strategy", "steps", "--save_steps", 1,
         "--save_total_limit", 1, "--eval_on_start", "false", "--max_eval_samples", 2)  # fmt: skip
LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_r", 4)
SCRATCH = ("--max_steps", 2, "--vocabulary_size", 400, "--width", 16, "--layers", 1, "--heads", 2, "--feed_forward", 32,
           "--max_length", 256)  # fmt: skip
FEW = ("--max_examples", 2, "--max_generated", 1, "--max_new_tokens", 2)


@pytest.fixture
def made(tmp_path_factory, command, forked, gpt2_dir, dataset_dir):
    """Copies of three small runs, evaluated; each made once for all tests."""
    store = tmp_path_factory.getbasetemp() / "foreign_runs"

    def call(name: str, to: Path) -> Path:
        if not (store / name / "eval").exists():
            sft = ("recipes/sft.py", "--model_name_or_path", gpt2_dir, *TRAIN)
            script, *more = {"full": sft, "lora": (*sft, *LORA), "scratch": ("baselines/scratch/train.py", *SCRATCH)}[
                name
            ]
            # In processes of their own: accelerate holds one precision a process, and these differ in it.
            done = forked(script, *more, "--dataset_name", dataset_dir, "--output_dir", store / name)
            assert done.status == 0, done.err
            assert (done := command("eval/run.py", store / name, *FEW)).status == 0, done.err
        shutil.copytree(store / name, to)
        return to

    return call


@pytest.fixture
def commands(command, gpt2_dir, dataset_dir, tmp_path):
    """Every command that reads or writes a run dir."""
    sft = ("--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, *TRAIN)

    def call(kind: str, run: Path):
        return {
            "sft": lambda: command("recipes/sft.py", *sft, "--output_dir", run, "--resume", "auto"),
            "plan": lambda: command("finllm/cli.py", "plan", *map(str, sft), "--output_dir", run),
            "scratch": lambda: command("baselines/scratch/train.py", *SCRATCH, "--dataset_name", dataset_dir,
                                       "--output_dir", run, "--resume", "auto"),
            "eval": lambda: command("eval/run.py", run, "--overwrite", *FEW),
            "eval of a base": lambda: command("eval/run.py", "--model_name_or_path", gpt2_dir, "--dataset_name",
                                              dataset_dir, "--output_dir", run, "--overwrite", *FEW),
            "leaderboard": lambda: command("eval/leaderboard.py", run, "--output_dir", tmp_path / "board"),
            "export": lambda: command("eval/export.py", run, "--output", tmp_path / "export.json"),
            "generate": lambda: command("finllm/cli.py", "generate", run, "What is a tax?", "--max_new_tokens", 2),
            "ask scratch": lambda: command("baselines/scratch/generate.py", run, "What is a tax?"),
        }[kind]()  # fmt: skip

    return call


COMMANDS = ("sft", "plan", "scratch", "eval", "eval of a base", "leaderboard", "export", "generate", "ask scratch")


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("name", ["checkpoints", ".lock", "eval/predictions.jsonl", "model/model.safetensors"])
def test_a_link_that_leads_out_of_a_run_is_refused_and_what_is_there_stays(commands, made, tmp_path, kind, name):
    run = made("full", tmp_path / "run")
    if kind in ("sft", "scratch"):
        (run / "summary.json").unlink()
    foreign = tmp_path / "foreign"
    (run / name).rename(foreign)
    (run / name).symlink_to(foreign)
    before = {**everything(run), **everything(tmp_path)}
    done = commands(kind, run)
    assert done.status == 2 and f"{name} is a link to" in done.err and "Traceback" not in done.err, done.err
    assert {**everything(run), **everything(tmp_path)} == before


@pytest.mark.parametrize("kind", ["eval", "leaderboard"])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "model", "eval", "deep/er/file"])
@pytest.mark.parametrize("where", ["relative", "absolute", "nowhere", "pipe"])
def test_whatever_leads_out_is_refused(commands, made, tmp_path, kind, name, where):
    run = made("full", tmp_path / "run")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    if (run / name).exists():
        (run / name).rename(tmp_path / "foreign")
    if where == "pipe":
        os.mkfifo(run / name)
    else:
        up = os.path.relpath(tmp_path, (run / name).parent)
        to = {"relative": f"{up}/foreign", "absolute": tmp_path / "foreign", "nowhere": "/no/such/place"}[where]
        (run / name).symlink_to(to)
    done = commands(kind, run)
    assert done.status == 2 and name in done.err and "must hold its files itself" in done.err, done.err
    assert not (tmp_path / "board").exists()


def test_a_run_that_is_a_link_itself_and_links_within_are_fine(commands, made, tmp_path):
    made("full", tmp_path / "disk")
    (tmp_path / "disk/eval/old.json").symlink_to("../summary.json")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    for kind in ("eval", "leaderboard", "generate"):
        assert (done := commands(kind, tmp_path / "run")).status == 0, done.err


def test_a_lock_that_has_another_name_elsewhere_is_not_written_to(commands, made, tmp_path):
    run = made("full", tmp_path / "run")
    (run / "summary.json").unlink()
    foreign = tmp_path / "foreign"
    foreign.write_text("dear")
    (run / ".lock").unlink()
    os.link(foreign, run / ".lock")
    done = commands("sft", run)
    assert done.status == 2 and ".lock has another name elsewhere" in done.err and foreign.read_text() == "dear"


@pytest.mark.parametrize("kind", ["eval", "generate"])
@pytest.mark.parametrize(
    "named",
    [5, 1.5, [], ["baselines.scratch.lm"], {}, True, "os", "baselines", "baselines.scratch", "baselines.no.such", "",
     "baselines.scratch.losses", "finllm.models.base"],
)  # fmt: skip
def test_what_is_no_language_model_is_one_line(commands, made, tmp_path, kind, named):
    run = made("full", tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "language_model": named}))
    done = commands(kind, run)
    assert done.status == 2 and "Traceback" not in done.err, done.err
    assert "language_model is" in done.err or "was trained from scratch" in done.err


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"{", b"5", b"\xff\xfe\x00", b"[" * 100_000, b"{}", None])
@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "summary.json"])
def test_a_file_of_a_run_that_is_broken_is_one_line(commands, made, tmp_path, name, content):
    run = made("lora", tmp_path / "run")
    if content is None:
        (run / name).unlink()
        (run / name).mkdir()
    else:
        (run / name).write_bytes(content)
    for kind in ("eval", "generate"):
        done = commands(kind, run)
        assert done.status == 2 and str(run) in done.err and "Traceback" not in done.err, done.err


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", {"layers": 10**6}), ("config.json", {"width": 10**12}), ("config.json", {"width": "x"}),
     ("config.json", {"heads": 3}), ("config.json", {"vocabulary_size": 10**18}), ("config.json", {"variant": 5}),
     ("model.safetensors", b""), ("model.safetensors", b"12345678"), ("tokenizer.model", b""),
     ("tokenizer.model", b"x"), ("tokenizer.model", None), ("model.safetensors", None)],
)  # fmt: skip
def test_a_broken_model_from_scratch_is_one_line(commands, made, tmp_path, file, content):
    run = made("scratch", tmp_path / "run")
    if isinstance(content, dict):
        held = json.loads((run / "model" / file).read_text())
        content = json.dumps({**held, **content}).encode()
    (run / "model" / file).unlink()
    if content is not None:
        (run / "model" / file).write_bytes(content)
    for kind in ("eval", "ask scratch"):
        done = commands(kind, run)
        assert done.status == 2 and f"{run}/model" in done.err and "Traceback" not in done.err, done.err


def test_an_adapter_is_not_put_on_another_base_model(commands, made, gpt2_dir, tmp_path):
    run = made("lora", tmp_path / "run")
    base = tmp_path / "base"
    shutil.copytree(gpt2_dir, base)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "model_name_or_path": str(base)}))
    for kind in ("eval", "generate"):
        assert (done := commands(kind, run)).status == 0, done.err
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    before = (run / "eval/results.json").read_bytes()
    for kind in ("eval", "generate"):
        done = commands(kind, run)
        assert done.status == 2 and "put that base model back" in done.err, done.err
        assert read_json(run / "provenance.json")["base_model_hash"][:80] in done.err
    assert (run / "eval/results.json").read_bytes() == before

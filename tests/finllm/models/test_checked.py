"""Models and adapters that come from others: code is never asked for, and what is broken is one line."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from foreign import changed, written
from processes import run
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[3]
OVERSIZED = (10**15).to_bytes(8, "little") + b"{}"
TRAIN = ("--max_steps", 1, "--max_length", 256, "--disable_tqdm", "true", "--save_strategy", "no",
         "--eval_on_start", "false", "--max_eval_samples", 2)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, gpt2_dir, dataset_dir) -> Path:
    """A folder with a finished run in `full` and one of an adapter in `lora`, made by the recipe."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, *TRAIN]
    lora = ["--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_r", 4]
    for name, more in (("full", ()), ("lora", lora)):
        printed = tmp_path_factory.mktemp("printed") / name
        assert run("recipes/sft.py", [*common, *more, "--output_dir", folder / name], printed) == 0, printed.read_text()
    return folder


@pytest.fixture
def asks(command, dataset_dir, tmp_path):
    """Every command that opens a model, each with the name of one."""
    sft = ("recipes/sft.py", "--dataset_name", dataset_dir, "--output_dir", tmp_path / "out", *TRAIN)

    def call(kind: str, model: Path):
        return {
            "sft": lambda: command(*sft, "--model_name_or_path", model),
            "plan": lambda: command("finllm/cli.py", "plan", *map(str, sft[1:]), "--model_name_or_path", model),
            "eval": lambda: command("eval/run.py", "--model_name_or_path", model, "--dataset_name", dataset_dir,
                                    "--output_dir", tmp_path / "base"),
            "eval of a run": lambda: command("eval/run.py", model),
            "generate": lambda: command("finllm/cli.py", "generate", model, "What is a tax?"),
            "show": lambda: command("finllm/cli.py", "data", "show", dataset_dir, "--tokenizer", model),
            "prepare": lambda: command("finllm/cli.py", "prepare", ROOT / "finllm/data/sample/tax.jsonl",
                                       "--output_dir", tmp_path / "out", "--tokenizer", model),
            "random-weights": lambda: command("finllm/cli.py", "random-weights", model, "--output_dir",
                                              tmp_path / "out"),
        }[kind]()  # fmt: skip

    return call


CODE = {"AutoTokenizer": ["code.Tokenizer", None], "AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
BASE = ("sft", "plan", "eval", "generate", "show", "prepare", "random-weights")


@pytest.mark.parametrize("answer", ["", "n\n", "y\n"])
@pytest.mark.parametrize(
    ("kind", "file"),
    [(kind, file) for kind in BASE for file in ("tokenizer_config.json", "config.json")]
    + [(kind, file) for kind in ("eval of a run", "generate")
       for file in ("full/model/tokenizer_config.json", "full/model/generation_config.json",
                    "lora/model/tokenizer_config.json", "lora/model/adapter_config.json")],
)  # fmt: skip
def test_code_of_a_model_is_neither_asked_for_nor_run(asks, monkeypatch, gpt2_dir, runs, tmp_path, kind, file, answer):
    name, _, inner = file.rpartition("/")
    folder = changed(runs if name else gpt2_dir, tmp_path / "foreign", file, auto_map=CODE)
    ran = tmp_path / "ran"
    ((folder / name) / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    done = asks(kind, folder / name.split("/")[0] if name else folder)
    assert done.status == 2 and done.err.count("\n") == 1, done.err
    assert f"{inner}: auto_map names code" in done.err and "[y/N]" not in done.out + done.err
    assert not ran.exists() and not (tmp_path / "out").exists() and not (folder / "eval").exists()


def test_a_y_on_standard_input_of_a_process_runs_nothing(gpt2_dir, dataset_dir, tmp_path):
    folder = changed(gpt2_dir, tmp_path / "foreign", "tokenizer_config.json", auto_map=CODE)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    done = subprocess.run(
        [sys.executable, "-m", "finllm.cli", "data", "show", dataset_dir, "--tokenizer", folder],
        cwd=ROOT, input="y\n", capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and "auto_map names code" in done.stderr and not (tmp_path / "ran").exists()


BROKEN_CONFIGS = [
    {"vocab_size": 10**12}, {"n_layer": 10**6}, {"n_inner": 10**13}, {"vocab_size": 10**19}, {"vocab_size": -5},
    {"n_layer": 0}, {"n_layer": "two"}, {"n_head": 7}, {"n_embd": [32]}, {"activation_function": "none of them"},
    {"model_type": 5}, {"model_type": "no-such-model"}, {"quantization_config": 7}, {"n_layer": 3}, {"vocab_size": 700},
    {"transformers_weights": "adapter_model.bin"},
]  # fmt: skip


@pytest.mark.parametrize("keys", BROKEN_CONFIGS, ids=str)
def test_a_config_of_no_model_is_one_line_before_memory_is_asked_for(asks, gpt2_dir, tmp_path, keys):
    folder = changed(gpt2_dir, tmp_path / "foreign", "config.json", **keys)
    done = asks("generate", folder)
    assert done.status == 2 and str(folder) in done.err and "Traceback" not in done.err, done.err
    assert done.err.splitlines()[-1].startswith("error: ")
    if next(iter(keys.values())) in (10**6, 10**12, 10**13):
        assert "GiB of weights and this machine has" in done.err
        refused = asks("random-weights", folder)
        assert refused.status == 2 and "GiB of weights" in refused.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'"text"'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_a_file_of_a_base_model_that_is_no_json_object_is_one_line(asks, gpt2_dir, tmp_path, file, content):
    done = asks("generate", written(gpt2_dir, tmp_path / "foreign", file, content))
    assert done.status == 2 and str(tmp_path / "foreign") in done.err and "Traceback" not in done.err, done.err


@pytest.mark.parametrize("content", [b"", b"12345", OVERSIZED, (2).to_bytes(8, "little") + b"[]", None])
def test_weights_that_are_cut_or_no_safetensors_are_one_line(asks, gpt2_dir, runs, tmp_path, content):
    for kind, folder, file in (
        ("sft", gpt2_dir, "model.safetensors"),
        ("eval of a run", runs / "full", "model/model.safetensors"),
        ("generate", runs / "lora", "model/adapter_model.safetensors"),
    ):
        whole = (folder / file).read_bytes()
        copy = written(folder, tmp_path / f"copy of {folder.name}", file, whole[:-9] if content is None else content)
        done = asks(kind, copy)
        assert done.status == 2 and "is not a whole safetensors file" in done.err and file in done.err, done.err
        assert "Traceback" not in done.err and not (copy / "eval").exists()


@pytest.mark.parametrize(
    ("shard", "said"),
    [("model-1.safetensors", None), ("model-1.bin", "weights are read from safetensors"), ("m.safetensors", "missing"),
     ("../model-1.safetensors", "of the same folder only"), (5, "of the same folder only")],
)  # fmt: skip
def test_an_index_may_name_safetensors_of_its_folder_only(asks, gpt2_dir, tmp_path, shard, said):
    folder = tmp_path / "sharded"
    shutil.copytree(gpt2_dir, folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with safe_open(folder / "model-1.safetensors", "numpy") as file:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(file.keys(), shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    done = asks("generate", folder)
    assert (done.status, said in done.err if said else True) == (2 if said else 0, True), done.err


def test_an_adapter_that_is_a_pickle_is_not_read(asks, runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs / "lora", copy)
    (copy / "model/adapter_model.safetensors").rename(copy / "model/adapter_model.bin")
    for kind in ("generate", "eval of a run"):
        done = asks(kind, copy)
        assert done.status == 2
        assert "adapter_model.safetensors is missing, and adapter_model.bin is not read" in done.err


@pytest.mark.parametrize(
    "keys",
    [{"r": 10**9}, {"r": 10**18}, {"r": -1}, {"r": "four"}, {"rank_pattern": {"c_attn": 10**9}}, {"use_dora": True},
     {"peft_type": "LORRA"}, {"peft_type": ["LORA"]}, {"peft_type": None}, {"target_modules": 5}, {"lora_alpha": "x"},
     {"target_modules": "nothing"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "loftq"},
     {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9}],
    ids=str,
)  # fmt: skip
def test_an_adapter_whose_config_makes_another_is_one_line_before_memory_is_asked_for(asks, runs, tmp_path, keys):
    copy = changed(runs / "lora", tmp_path / "copy", "model/adapter_config.json", **keys)
    done = asks("generate", copy)
    assert done.status == 2 and f"{copy}/model" in done.err and "Traceback" not in done.err, done.err
    assert "alloc" not in done.err


def test_a_rank_beyond_memory_is_refused_before_training(command, gpt2_dir, dataset_dir, tmp_path):
    done = command(
        "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, *TRAIN, "--use_peft", "true",
        "--lora_r", 10**9, "--lora_target_modules", "all-linear", "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert done.status == 2 and "lora_r is 1,000,000,000 and must be no more than" in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_an_adapter_with_whole_layers_beside_it_is_opened(asks, command, gpt2_dir, dataset_dir, tmp_path):
    done = command(
        "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, *TRAIN, "--use_peft", "true",
        "--lora_target_modules", "c_attn", "--lora_modules_to_save", "lm_head", "--use_dora", "true", "--output_dir",
        tmp_path / "run",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert asks("generate", tmp_path / "run").status == 0

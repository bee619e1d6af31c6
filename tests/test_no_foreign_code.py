"""Nothing that comes from outside is run: no pickle is read, and no code of a model repository."""

import ast
import pickle
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READERS = {"pickle.load", "pickle.loads", "torch.load", "joblib.load", "dill.load", "marshal.load", "marshal.loads",
           "eval", "exec", "yaml.load", "yaml.unsafe_load", "np.load", "numpy.load", "shelve.open"}  # fmt: skip
SOURCES = [path for folder in ("finllm", "recipes", "eval", "baselines", "benchmarks")
           for path in sorted((ROOT / folder).rglob("*.py"))]  # fmt: skip


ASKS = {
    "from_pretrained",
    "from_config",
    "load_adapter",
}  # of transformers and peft: told nothing, some ask and run code


def calls_of(source: str) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_reads_a_pickle_or_runs_text(path):
    source = path.read_text(encoding="utf-8")
    assert not READERS.intersection(calls_of(source))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) == "False"


def untold(source: str) -> list[str]:
    """Calls that load a model, a tokenizer, a config or an adapter and do not say that no code is run."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ASKS
        and "trust_remote_code=False" not in [ast.unparse(keyword) for keyword in call.keywords]
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_loader_is_told_that_no_code_is_run(path):
    assert untold(path.read_text(encoding="utf-8")) == []


def test_a_loader_that_is_told_nothing_is_found():
    assert untold("AutoTokenizer.from_pretrained(folder, revision='main')") and untold("model.load_adapter(folder)")
    assert not untold("PeftModel.from_pretrained(model, folder, trust_remote_code=False)")


def test_the_search_finds_what_it_looks_for():
    assert READERS.intersection(calls_of("import torch\ntorch.load(path)"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "adapter_model.bin"])
def test_weights_that_would_run_code_are_refused(command, gpt2_dir, tmp_path, dataset_dir, name):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was here",)

    folder = tmp_path / "model"
    folder.mkdir()
    for path in gpt2_dir.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(pickle.dumps(Payload()))
    done = command(
        "recipes/sft.py",
        "--model_name_or_path",
        folder,
        "--dataset_name",
        dataset_dir,
        "--output_dir",
        tmp_path / "run",
    )
    assert done.status == 2 and "safetensors" in done.err
    assert not (tmp_path / "was here").exists() and not (tmp_path / "run").exists()

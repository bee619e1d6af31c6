"""Small models, a small dataset dir, and the commands as a user calls them. No hub, no GPU."""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from processes import Done, run_ranks, serve, sync

ROOT = Path(__file__).resolve().parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"  # before any library of the hub is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several of pytest's workers share the cores: one thread each, told before torch counts them itself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the suite asserts is of a CPU, on every machine: a GPU is seen by the processes of its own tests alone.
# pytest's workers inherit what is set here, and so read what was there before from a name of its own.
GPUS = os.environ.setdefault("FINLLM_TESTS_ON", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# The same cases at every run, and however long one takes on a machine under load.
settings.register_profile("suite", database=None, derandomize=True, deadline=None)
settings.load_profile("suite")
gc.disable()  # until all files of tests are imported: collections take a fifth of that time, and find nothing
# Files with tests of ten seconds and more: they come first, so that no worker is left alone with one at the end.
LONG = {"test_conduct.py", "test_demo.py", "test_kill.py", "test_offline.py", "test_package.py", "test_sft.py",
        "test_report_browser.py", "test_sharing.py", "test_near_duplicates.py"}  # fmt: skip
LONGEST = 1800  # seconds that a process may take: a machine under load is slow, and one that hangs hangs for ever


os.fsync = sync


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> None:
    """What is prepared, mapped and tokenized here stays here."""
    os.environ["FINLLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of those that run the whole suite
        serve()


@pytest.fixture(scope="module", autouse=True)
def libraries_are_no_garbage():
    """What is imported by now stays: the collection that ends each training run need not look through it again."""
    gc.collect()
    gc.freeze()


def accelerate_begins_anew() -> None:
    """Accelerate holds one precision a process, and commands run in this one: none inherits another's."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    if accelerate := sys.modules.get("accelerate.state"):
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", autouse=True)
def no_module_inherits_a_precision():
    yield
    accelerate_begins_anew()


@pytest.fixture
def picture() -> None:
    """Whoever asks for it has commands draw the losses of a run: a fifth of the time of one of a few steps."""


@pytest.fixture
def command(request, capfd, monkeypatch) -> Callable[..., Done]:
    """`command("recipes/sft.py", "--config", …)`: a script of the checkout, run in this process as python runs it.

    Importing torch and transformers anew for each of some dozens of commands would take minutes. They are imported
    before the first: a command that only reads texts does without torch, and would leave later ones without it.
    """
    importlib.import_module("transformers")
    if "picture" not in request.fixturenames:
        monkeypatch.setattr("finllm.training.plots.plot_loss", lambda run: None)

    def call(script: str, *arguments: object) -> Done:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
        capfd.readouterr()
        accelerate_begins_anew()
        status = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as exit:
            status = exit.code or 0
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def shell() -> Callable[..., Done]:
    """`shell("python", "recipes/sft.py", …)`: a process of its own in the checkout, with this Python."""

    def call(program: str, *arguments: object, timeout: int = LONGEST, environment: dict | None = None) -> Done:
        path = str(Path(sys.executable).parent / program)
        done = subprocess.run(
            [path, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
            env=environment,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def on_gpu(shell) -> Callable[..., Done]:
    """`on_gpu("recipes/sft.py", …)`: a process of its own that sees the GPUs of this machine."""
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is no CUDA device: no /dev/nvidia0")
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if GPUS != "all":
        environment["CUDA_VISIBLE_DEVICES"] = GPUS

    def call(script: str, *arguments: object) -> Done:
        return shell("python", *script.split(), *arguments, environment=environment)

    return call


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer as GPT-2's: EOS and no pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(ROOT / "finllm/data/sample/saving.jsonl"), str(ROOT / "finllm/text/prompts.py")], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


def _save(folder: Path, tokenizer_dir: Path, config) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory, tokenizer_dir) -> Path:
    """A folder with a GPT-2 of two small layers and random weights."""
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=600, n_positions=512, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return _save(tmp_path_factory.mktemp("gpt2"), tokenizer_dir, config)


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory, tokenizer_dir) -> Path:
    """A folder with a Llama of two small layers and random weights, tied as SmolLM2 is."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _save(tmp_path_factory.mktemp("llama"), tokenizer_dir, config)


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory) -> Path:
    """A dataset dir of the 68 written questions on tax."""
    from finllm.data.prepare import prepare

    folder = tmp_path_factory.mktemp("data") / "tax"
    prepare(ROOT / "finllm/data/sample/tax.jsonl", folder, validation_fraction=0.15, test_fraction=0.15)
    return folder


@pytest.fixture
def forked(tmp_path) -> Callable[..., Done]:
    """`forked("eval/run.py", …)`: a process of its own as well, from one that has imported torch and trl.

    With `count`, so many that find each other, as under torchrun. `folder` is where they work, else the checkout.
    """

    def call(script: str, *arguments: object, count: int = 1, **how) -> Done:
        place = tmp_path / f".printed{len(list(tmp_path.glob('.printed*')))}"
        place.mkdir()
        return run_ranks(count, script, list(arguments), place, **how)

    return call

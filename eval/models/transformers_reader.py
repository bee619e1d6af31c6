"""What is known of a transformers model without its weights: its positions, its tokens, and what it is by content."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from eval.models.language_model import Pair
from finllm.errors import UserError
from finllm.models.asked import template_for, template_of_run
from finllm.models.base import base_model_hash, model_arguments, positions_of
from finllm.models.configs import causal_config
from finllm.models.find import load_tokenizer, resolve_base_model
from finllm.models.virtual import virtual_tokens_of
from finllm.run_dir import RunDir
from finllm.text.templates import Template
from finllm.text.tokens import tokenizer_hash


class TransformersReader:
    """See eval.models.fitting.Reader; of weights it reads nothing but, for `hashes`, their bytes."""

    def __init__(
        self, folders: Sequence[str], revision: str, name: str, asked: Callable[[PreTrainedTokenizerBase], Template]
    ):
        """`folders`, resolved, are what a model is loaded from: its tokenizer from the first, its config from the last.

        `name` is what a message calls its tokenizer; `asked` gives the template that it is asked in.
        """
        self.folders, self.revision, self.name = folders, revision, name
        self.config = causal_config(folders[-1], revision)
        self.tokenizer = load_tokenizer(folders[0])
        self.positions = positions_of(self.config) or math.inf
        self.template = asked(self.tokenizer)

    def encode(self, prompt: str, response: str) -> Pair:
        """As `LanguageModel.encode`."""
        return encode_pair(self.template, self.name, prompt, response)

    def positions_of(self, prompt_tokens: int, response_tokens: int) -> int:
        return prompt_tokens + response_tokens

    def hashes(self) -> dict[str, str]:
        """As provenance.json has them: of a hub id the commit."""
        weights = (base_model_hash(folder, revision=self.revision) for folder in self.folders)
        return {**dict(zip(("weights", "base"), weights, strict=False)), "tokenizer": tokenizer_hash(self.tokenizer)}


def encode_pair(template: Template, name: str, prompt: str, response: str) -> Pair:
    """Ids of prompt and response. An unknown token in the response is a `UserError`: it would be scored as text."""
    tokenizer = template.tokenizer
    asked, ids = template.encode_pair(prompt, response)
    unknown = tokenizer.unk_token_id
    # Byte-level vocabularies know every text; GPT-2 names its EOS as the unknown token, which a text may hold.
    if unknown is not None and unknown != tokenizer.eos_token_id and unknown in ids:
        raise UserError(
            f"the tokenizer of {name} cannot write {response[:60]!r}: some of it becomes "
            f"{tokenizer.unk_token}; take a model whose vocabulary has bytes, or drop the example"
        )
    return asked, ids


def reader(run: RunDir, template: str | None = None) -> TransformersReader:
    """What is known of a run's model without its weights; of an adapter with the base model under it.

    `template` is what the command line says, which must be what it was trained in.
    """
    config = run.config()
    adapted = model_arguments(config).use_peft
    folders = [str(run.model), *([resolve_base_model(config["model_name_or_path"])] if adapted else [])]
    asked = lambda tokenizer: template_of_run(run, tokenizer, template)  # noqa: E731
    found = TransformersReader(folders, config.get("model_revision") or "main", run.summary()["base_model"], asked)
    if adapted:
        found.positions -= virtual_tokens_of(run.model)
    return found


def base_reader(name: str, template: str | None = None) -> TransformersReader:
    """The same of an untouched base model, asked in `template`."""
    asked = lambda tokenizer: template_for(name, tokenizer, template)  # noqa: E731
    return TransformersReader([resolve_base_model(name)], "main", name, asked)

"""In which template a model is asked: a run in that of its training, a base model in the one that is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finllm.errors import UserError
from finllm.models.find import run_of
from finllm.run_dir import PUT_BACK, RunDir
from finllm.text.chat import Chat, hash_of
from finllm.text.prompts import TEMPLATE_ID
from finllm.text.templates import Alpaca, Template, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_for(name: str, tokenizer: PreTrainedTokenizerBase, asked: str | None = None) -> Template:
    """The template of a run dir or a base model by its name, on the tokenizer that was loaded for it.

    `asked` is what the command line says. A base model is asked in alpaca unless it says otherwise; for a run it may
    only say what the run was trained with.
    """
    run = run_of(name)
    return template_of(asked or TEMPLATE_ID, tokenizer, name) if run is None else template_of_run(run, tokenizer, asked)


def template_of_run(run: RunDir, tokenizer: PreTrainedTokenizerBase, asked: str | None = None) -> Template:
    """The template that a run was trained in, from its `model/`; a `UserError` where `asked` is another."""
    named, trained = run.config().get("template") or TEMPLATE_ID, run.provenance().get("template_hash")
    if named == TEMPLATE_ID:
        found: Template = Alpaca(tokenizer)
    else:
        source = tokenizer.chat_template
        if not isinstance(source, str):
            raise UserError(f"{run.model} has no chat template, and the run was trained with {named}; {PUT_BACK}")
        if (hash := hash_of(source)) != trained:
            raise UserError(
                f"{run.path} was trained with a template of hash {str(trained)[:16]}, and the chat template in its "
                f"model/ has {hash[:16]}; {PUT_BACK}"
            )
        found = Chat(tokenizer, source, Path(named).name, f"the chat template in {run.model}")
    if asked is not None and template_of(asked, tokenizer, str(run.path)).hash != found.hash:
        raise UserError(
            f"template is {asked}, and {run.path} was trained with {found.id} (hash {found.hash[:16]}), so it is asked "
            "with that; leave --template out"
        )
    return found

"""In which template a model is asked: a run, merged or not, in that of its training; a base model in the one named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finllm.errors import UserError, shortened
from finllm.files import read_json
from finllm.models.find import run_of
from finllm.run_dir import PUT_BACK, RunDir
from finllm.text.chat import Chat, hash_of
from finllm.text.prompts import TEMPLATE_ID
from finllm.text.templates import Alpaca, Template, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MADE = "finllm.json"  # in a merged folder: what it was made of, see finllm/models/plain.py


def template_for(name: str, tokenizer: PreTrainedTokenizerBase, asked: str | None = None) -> Template:
    """The template of a run dir, a merged run or a base model by its name, on the tokenizer that was loaded for it.

    `asked` is what the command line says. A base model is asked in alpaca unless it says otherwise; for what was
    trained here it may only say what it was trained with.
    """
    run = run_of(name)
    if run is not None:
        return template_of_run(run, tokenizer, asked)
    if (Path(name) / MADE).is_file():
        held = read_json(Path(name) / MADE).get("template")
        held = held if isinstance(held, dict) else {}
        named, hash = held.get("id"), held.get("hash")
        if not isinstance(named, str) or not isinstance(hash, str):
            raise UserError(f"{name}/{MADE}: template is {shortened(held)}, not an id and a hash; merge the run anew")
        return _as_trained(named, hash, tokenizer, Path(name), f"the chat template in {name}", asked)
    return template_of(asked or TEMPLATE_ID, tokenizer, name)


def template_of_run(run: RunDir, tokenizer: PreTrainedTokenizerBase, asked: str | None = None) -> Template:
    """The template that a run was trained in, from its `model/`; a `UserError` where `asked` is another."""
    named, trained = run.config().get("template") or TEMPLATE_ID, run.provenance().get("template_hash")
    return _as_trained(named, trained, tokenizer, run.path, f"the chat template in {run.model}", asked)


def _as_trained(
    named: str, trained: str | None, tokenizer: PreTrainedTokenizerBase, place: Path, of: str, asked: str | None
) -> Template:
    if named == TEMPLATE_ID:
        found: Template = Alpaca(tokenizer)
    else:
        source = tokenizer.chat_template
        if not isinstance(source, str):
            raise UserError(f"{place} has no chat template, and it was trained with {named}; {PUT_BACK}")
        if (hash := hash_of(source)) != trained:
            raise UserError(
                f"{place} was trained with a template of hash {str(trained)[:16]}, and {of} has {hash[:16]}; {PUT_BACK}"
            )
        found = Chat(tokenizer, source, Path(named).name, of)
    if asked is not None and template_of(asked, tokenizer, str(place)).hash != found.hash:
        raise UserError(
            f"template is {asked}, and {place} was trained with {found.id} (hash {found.hash[:16]}), so it is asked "
            "with that; leave --template out"
        )
    return found

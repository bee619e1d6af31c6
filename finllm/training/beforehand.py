"""What a run of recipes/sft.py is made from, and what is known of it before any weight is read.

The recipe takes its data, base model, tokenizer and template from `made_from`. `problems_of` says of a run that is yet
to come, as recipes/compare.py asks of every method of a study, whether these are there and go together: of a base model
the config and the headers of its weights are read, and the method is held against the names and shapes of its layers.
What only trying shows (memory that runs out, rows that are too long, a proof that fails) is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from finllm.data.dataset_dir import DatasetDir
from finllm.data.prepare import resolve
from finllm.errors import Gathering, Once, UserError
from finllm.files import cache_dir
from finllm.models.adapters import fitting_config
from finllm.models.base import base_model_hash, bytes_a_parameter, check_base_model, check_length, check_quantisation
from finllm.models.find import load_tokenizer, resolve_base_model
from finllm.models.partial import choose_weights
from finllm.models.proofs import tokenizer_fits
from finllm.models.settings import MethodConfig
from finllm.models.skeletons import skeleton
from finllm.text.prompts import ROLES_TAKE, TEMPLATE_ID
from finllm.text.templates import Template, template_of
from finllm.text.tokens import tokenizer_hash
from finllm.training.config import RecipeArguments, TrainingConfig
from finllm.training.learning import fit_schedule


@dataclass(frozen=True)
class MadeFrom:
    """What a run is made from; `base` is resolved, and `config` is its."""

    dataset: DatasetDir
    base: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    template: Template

    def hashes(self, revision: str, once: Once | None = None) -> dict[str, str]:
        """What identifies each of it by its content, as provenance.json has it."""
        return {
            "dataset_hash": self.dataset.hash,
            "base_model_hash": (once or Once())(base_model_hash, self.base, None, revision),
            "tokenizer_hash": tokenizer_hash(self.tokenizer),
            "template_hash": self.template.hash,
        }


def made_from(
    recipe: RecipeArguments, training: TrainingConfig, arguments: MethodConfig, once: Once | None = None
) -> MadeFrom:
    """What these flags name; all of it that is not there, or cannot be used, is one `UserError`."""
    gathering = Gathering()
    found = _made_from(recipe, training, arguments, once or Once(), gathering)
    gathering.raise_all()
    return found


def problems_of(
    recipe: RecipeArguments, training: TrainingConfig, arguments: MethodConfig, once: Once
) -> list[UserError]:
    """What is known beforehand to keep a run from being trained; `once` is one for all runs that are looked at."""
    gathering = Gathering()
    with gathering:
        check_quantisation(arguments)
    found = _made_from(recipe, training, arguments, once, gathering)
    if found.dataset and recipe.template == TEMPLATE_ID and found.dataset.manifest["template"].get("id") != TEMPLATE_ID:
        said = f"{found.dataset.path} holds conversations, and alpaca asks single questions; {ROLES_TAKE}"
        gathering.errors.append(UserError(said))  # the recipe names the rows, once it has tokenized them
    if found.config is not None:
        with gathering:
            _method_fits(found, training, arguments, gathering)
    return gathering.errors


def _made_from(
    recipe: RecipeArguments, training: TrainingConfig, arguments: MethodConfig, once: Once, gathering: Gathering
) -> MadeFrom:
    """What there is of it, None where something is not."""
    dataset = base = config = tokenizer = template = None
    with gathering:
        dataset = once(resolve, recipe.dataset_name, cache_dir() / "datasets")
    for split in dict.fromkeys((recipe.dataset_train_split, recipe.dataset_test_split)) if dataset else ():
        with gathering:
            once(dataset.require_rows, split)
    name = arguments.model_name_or_path
    with gathering:
        base, revision = once(resolve_base_model, name), arguments.model_revision
        config = once(check_base_model, base, revision, bytes_a_parameter(arguments))
        tokenizer = once(_tokenizer, base, revision, training.eos_token, training.pad_token)
        template = once(template_of, recipe.template, tokenizer, name)
    return MadeFrom(dataset, base, config, tokenizer, template)


def _tokenizer(base: str, revision: str, eos_token: str | None, pad_token: str | None) -> PreTrainedTokenizerBase:
    return load_tokenizer(base, revision, eos_token=eos_token, pad_token=pad_token)


def _method_fits(found: MadeFrom, training: TrainingConfig, arguments: MethodConfig, gathering: Gathering) -> None:
    """Hold tokenizer, method and lengths against the names and shapes of the model."""
    method = None
    try:
        model = skeleton(found.config, arguments.attn_implementation)
    except Exception as error:  # of a package that is missing, or a model that has no such attention, any
        if arguments.attn_implementation is None:
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"attn_implementation is {arguments.attn_implementation!r}: {reason}; remove it") from error
    if found.template is not None:
        with gathering:
            tokenizer_fits(found.tokenizer, model, found.template.ids)
    with gathering:
        if arguments.use_peft:
            method = fitting_config(model, arguments)
            fit_schedule(method, training.max_steps)
        elif arguments.trainable is not None:
            choose_weights(model, arguments.trainable)
    with gathering:
        check_length(model, training.max_length, getattr(method, "num_virtual_tokens", None) or 0)

"""From a run dir to a model that can be evaluated, whoever trained it."""

from __future__ import annotations

import importlib
from types import ModuleType

from eval.models.fitting import Reader
from eval.models.language_model import LanguageModel
from finllm.errors import UserError
from finllm.run_dir import RunDir


def open_run(run: RunDir, batch_size: int) -> LanguageModel:
    """The model of a run dir. A baseline names its own module in config.yaml (`language_model: baselines.….lm`).

    That module has `load(run, batch_size) -> LanguageModel` and `reader(run, template) -> Reader`; only modules of
    `baselines` are ever imported this way.
    """
    return _module_of(run, "load").load(run, batch_size)


def open_reader(run: RunDir, template: str | None = None) -> Reader:
    """What is known of a run's model without its weights. `template` is the command line's: it must be the run's."""
    return _module_of(run, "reader").reader(run, template)


def _module_of(run: RunDir, needed: str) -> ModuleType:
    name = run.require_complete().language_model()
    if name is None:
        from eval.models import transformers_lm, transformers_reader

        return transformers_lm if needed == "load" else transformers_reader
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("baselines"):
            raise  # a package that the baseline needs
        module = None
    if not callable(getattr(module, needed, None)):
        raise UserError(
            f"{run.path}/config.yaml: language_model is {name!r}, and there is no such module with a `{needed}`; put "
            "back the file that training wrote"
        )
    return module

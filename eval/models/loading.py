"""From a run dir to a model that can be evaluated, whoever trained it."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from eval.models.fitting import Reader
from eval.models.language_model import LanguageModel
from finllm.errors import UserError
from finllm.run_dir import RunDir


def open_run(run: RunDir, batch_size: int) -> LanguageModel:
    """The model of a run dir. A baseline names its own module in config.yaml (`language_model: baselines.….lm`).

    That module has `load(run, batch_size) -> LanguageModel` and `reader(run) -> Reader`; only modules of `baselines`
    are ever imported this way.
    """
    return _module_of(run).load(run, batch_size)


def open_reader(run: RunDir) -> Reader:
    """What is known of a run's model without its weights."""
    return _module_of(run).reader(run)


def _module_of(run: RunDir) -> ModuleType:
    module = run.require_complete().config().get("language_model")
    if module is None:
        from eval.models import transformers_lm

        return transformers_lm
    if re.fullmatch(r"baselines(\.[a-z_]+)+", module):
        return importlib.import_module(module)
    raise UserError(f"{run.path}/config.yaml: language_model is {module!r}; only a module of baselines is imported")

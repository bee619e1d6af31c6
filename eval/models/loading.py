"""From a run dir to a model that can be evaluated, whoever trained it."""

from __future__ import annotations

import importlib
import re

from eval.models.language_model import LanguageModel
from finllm.errors import UserError
from finllm.run_dir import RunDir


def open_run(run: RunDir, batch_size: int) -> LanguageModel:
    """The model of a run dir. A baseline names its own module in config.yaml (`language_model: baselines.….lm`).

    That module has `load(run, batch_size) -> LanguageModel`; only modules of `baselines` are ever imported this way.
    """
    module = run.require_complete().config().get("language_model")
    if module is None:
        from eval.models.transformers_lm import load
    elif re.fullmatch(r"baselines(\.[a-z_]+)+", module):
        load = importlib.import_module(module).load
    else:
        raise UserError(f"{run.path}/config.yaml: language_model is {module!r}; only a module of baselines is imported")
    return load(run, batch_size)

"""From a run dir to a model that can be evaluated, whoever trained it."""

from __future__ import annotations

import importlib

from eval.models.language_model import LanguageModel
from finllm.errors import UserError
from finllm.run_dir import RunDir


def open_run(run: RunDir, batch_size: int) -> LanguageModel:
    """The model of a run dir. A baseline names its own module in config.yaml (`language_model: baselines.….lm`).

    That module has `load(run, batch_size) -> LanguageModel`; only modules of `baselines` are ever imported this way.
    """
    module = run.require_complete().language_model()
    if module is None:
        from eval.models.transformers_lm import load

        return load(run, batch_size)
    try:
        load = getattr(importlib.import_module(module), "load", None)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("baselines"):
            raise  # a package that the baseline needs
        load = None
    if not callable(load):
        raise UserError(
            f"{run.path}/config.yaml: language_model is {module!r}, and there is no such module with a `load(run, "
            "batch_size)`; put back the file that training wrote"
        )
    return load(run, batch_size)

"""What libraries do when they are imported, and few runs use, put off until it is used. Nothing else of them changes.

    bitsandbytes                       compiles four functions, for which torch imports all of its compiler
    trl.import_utils                   reads the list of files of every installed package
    evaluate                           imports its evaluators of pipelines, with transformers, torch and scipy
    nltk                               imports scipy and scikit-learn, of which stemming words has no use
    transformers.loss.loss_utils       imports scipy.optimize for one function of object detection
    transformers.utils.import_utils    looks through its folder of models twice: it remembers 128 of some 500

Together they take a third of the processor time in which a command imports trl. `finllm` installs this before any of
them is imported; a library that has been imported by then stays as it is.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


@contextmanager
def _compiled_when_called(module: ModuleType) -> Iterator[None]:
    import torch

    compile_now = torch.compile

    def put_off(model: Callable | None = None, **how: Any) -> Callable:
        if model is None:
            return functools.partial(put_off, **how)
        compiled = functools.cache(lambda: compile_now(model, **how))
        return functools.wraps(model)(lambda *arguments, **named: compiled()(*arguments, **named))

    torch.compile = put_off
    try:
        yield
    finally:
        torch.compile = compile_now


class _ByName(Mapping):
    """Of a package the distributions that brought it: that of its own name, else what a search of all finds."""

    def __init__(self, search: Callable[[], Mapping[str, list[str]]]):
        self._searched = functools.cache(search)

    def __getitem__(self, package: str) -> list[str]:
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            return self._searched()[package]
        return [package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._searched())

    def __len__(self) -> int:
        return len(self._searched())


@contextmanager
def _distributions_by_name(module: ModuleType) -> Iterator[None]:
    search = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: _ByName(search)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = search


class _Later:
    """One name of a module that is imported when the name is called or looked into."""

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(self._module), self._name)(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(importlib.import_module(self._module), self._name), name)


class _Stands(ModuleType):
    """Stands for a module: some of its names are known without it, and any other brings the module itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # an import looks for some of these, and has to find none
            raise AttributeError(name)
        _leave(self)
        return getattr(importlib.import_module(self.__name__), name)


def _leave(stands: ModuleType) -> None:
    if sys.modules.get(stands.__name__) is stands:
        del sys.modules[stands.__name__]


def _standing(modules: dict[str, str]) -> Callable[[ModuleType], AbstractContextManager]:
    """While it runs, what `modules` names stands for those of them that are not imported yet."""

    @contextmanager
    def context(module: ModuleType) -> Iterator[None]:
        all_stand = []
        for name, known in modules.items():
            stands = _Stands(name)
            vars(stands).update({each: _Later(name, each) for each in known.split()})
            if sys.modules.setdefault(name, stands) is stands:
                all_stand.append(stands)
        try:
            yield
        finally:
            for stands in all_stand:
                _leave(stands)

    return context


@contextmanager
def _looked_through_once(module: ModuleType) -> Iterator[None]:
    yield
    module.create_import_structure_from_path = functools.cache(module.create_import_structure_from_path.__wrapped__)


EVALUATORS = """Evaluator evaluator AudioClassificationEvaluator AutomaticSpeechRecognitionEvaluator
    ImageClassificationEvaluator QuestionAnsweringEvaluator SummarizationEvaluator Text2TextGenerationEvaluator
    TextClassificationEvaluator TextGenerationEvaluator TokenClassificationEvaluator TranslationEvaluator"""
FOR_NLTK = {
    "scipy": "sparse",
    "scipy.stats": "fisher_exact norm",
    "sklearn": "svm",
    "sklearn.datasets": "load_svmlight_file",
    "sklearn.feature_extraction": "DictVectorizer",
    "sklearn.preprocessing": "LabelEncoder",
}
PUT_OFF: dict[str, Callable[[ModuleType], AbstractContextManager]] = {
    "bitsandbytes": _compiled_when_called,
    "trl.import_utils": _distributions_by_name,
    "evaluate": _standing({"evaluate.evaluation_suite": "EvaluationSuite", "evaluate.evaluator": EVALUATORS}),
    "nltk": _standing(FOR_NLTK),
    "transformers.loss.loss_utils": _standing({"scipy.optimize": "linear_sum_assignment"}),
    "transformers.utils.import_utils": _looked_through_once,
}
LARGE = ("accelerate", "bitsandbytes", "datasets", "evaluate", "finllm", "nltk", "pandas", "peft", "scipy", "sympy",
         "torch", "transformers", "trl")  # fmt: skip


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for: an import makes next to none, and some hundred thousand objects to look through."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Finder(MetaPathFinder):
    """Finds modules where Python does, and runs each of PUT_OFF in its context, and those of LARGE uncollected."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in LARGE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run, context = spec.loader.exec_module, PUT_OFF.get(name, nullcontext)

            def in_context(module: ModuleType) -> None:
                with _uncollected(), context(module):
                    run(module)

            spec.loader.exec_module = in_context  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Put off from now on, in this process; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

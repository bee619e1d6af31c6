"""What is put off when libraries are imported does what it would have done, once it is used."""

import gc
import importlib.metadata
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from finllm import deferred


def test_a_function_is_compiled_when_it_is_called(monkeypatch):
    compiled, asked, compile_now = [], [], torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def recorded(model, **how):
        asked.append(how)
        return compile_now(model, **how)

    monkeypatch.setattr(torch, "compile", recorded)
    with deferred.PUT_OFF["bitsandbytes"](ModuleType("bitsandbytes")):
        plain = torch.compile(lambda x: x + 1, backend=backend)

        @torch.compile(backend=backend, dynamic=False)
        def decorated(x):
            return 2 * x

    assert torch.compile is recorded and asked == compiled == []
    assert plain(torch.ones(2)).tolist() == [2, 2] and len(compiled) == 1
    assert decorated(x=torch.ones(2)).tolist() == [2, 2] == decorated(torch.ones(2)).tolist() and len(compiled) == 2
    assert [how.get("dynamic") for how in asked] == [None, False]  # once each
    assert decorated.__name__ == "decorated"


def test_the_distribution_of_a_package_is_found_by_its_name_or_by_a_search():
    search = importlib.metadata.packages_distributions
    with deferred.PUT_OFF["trl.import_utils"](ModuleType("trl.import_utils")):
        found = importlib.metadata.packages_distributions()
    assert importlib.metadata.packages_distributions is search
    assert found["transformers"] == ["transformers"] and found["yaml"] == ["PyYAML"]  # which is named otherwise
    assert set(found) == set(search()) and len(found) == len(search())
    with pytest.raises(KeyError):
        found["no_such_package"]


def test_a_module_that_few_use_is_imported_when_it_is_used(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    context = deferred._standing({"colorsys": "rgb_to_hls", "json": "loads"})
    with context(ModuleType("any")):
        from colorsys import rgb_to_hls

        assert type(sys.modules["colorsys"]) is deferred._Stands
        import json
    assert "colorsys" not in sys.modules and json.loads("1") == 1 and type(json) is ModuleType
    assert rgb_to_hls(1, 0, 0) == (0, 0.5, 1.0)
    assert sys.modules["colorsys"].rgb_to_hls(1, 0, 0) == (0, 0.5, 1.0)
    monkeypatch.delitem(sys.modules, "colorsys")
    with context(ModuleType("any")):
        from colorsys import hls_to_rgb  # which was not named: the module itself is imported

        assert hls_to_rgb(0, 0.5, 1.0) == (1, 0, 0) and type(sys.modules["colorsys"]) is ModuleType


def test_what_the_libraries_themselves_put_off_is_there():
    """In a process of its own, since here some of it is imported already."""
    code = """
import gc, sys
import finllm
import transformers.loss.loss_utils
from transformers.loss.loss_for_object_detection import linear_sum_assignment
from transformers.utils import import_utils
import evaluate, nltk, bitsandbytes
assert gc.isenabled()
put_off = {"scipy.optimize", "scipy.stats", "evaluate.evaluator", "sklearn", "torch._inductor.compile_fx"}
assert put_off & set(sys.modules) == set()
assert import_utils.create_import_structure_from_path.cache_info().currsize > 128
assert [each.tolist() for each in linear_sum_assignment([[2, 1], [1, 2]])] == [[0, 1], [1, 0]]
assert evaluate.EvaluationSuite.load.__qualname__ == "EvaluationSuite.load"
import evaluate.evaluator
assert evaluate.evaluator.TextClassificationEvaluator is not evaluate.TextClassificationEvaluator
assert type(evaluate.TextClassificationEvaluator()) is evaluate.evaluator.TextClassificationEvaluator
assert nltk.translate.gale_church.align_blocks([3, 4], [3, 4]) == [(0, 0), (1, 1)]  # by scipy's normal distribution
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("collects", [True, False])
def test_collecting_goes_on_after_an_import_as_it_was(collects, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import gc\nassert not gc.isenabled()\nraise ValueError('as it is')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(deferred, "LARGE", (*deferred.LARGE, "broken"))
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(ValueError, match="as it is"):
            import broken  # noqa: F401
        assert gc.isenabled() is collects
    finally:
        gc.enable()

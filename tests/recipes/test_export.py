"""`finllm export`: llama.cpp answers with the file as the run does, or there is none."""

import json
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from finllm.errors import UserError
from finllm.models import export, gguf_file, llama_cpp
from finllm.models.find import load_tokenizer
from finllm.models.gguf_proofs import texts_of
from finllm.models.ollama import modelfile, parts_of
from finllm.models.plain import plain_model
from finllm.text.templates import Alpaca, template_of
from tests.finllm.text.chats import CHATML, chat_tokenizer

ROOT = Path(__file__).resolve().parents[2]
LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_r", 4)
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=512, bos_token_id=0, eos_token_id=0, vocab_size=600)  # fmt: skip
SMALL = dict(vocab_size=600, n_positions=512, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
DEFAULT_SYSTEM = CHATML.replace(
    "{% for message", "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}"
    "{% endif %}{% for message", 1,
)  # fmt: skip


@pytest.fixture
def asked():
    """llama.cpp itself; the tests that need it are skipped without."""
    return pytest.importorskip("xllamacpp", reason="llama.cpp is not there: pip install 'finllm[llama_cpp]'")


def saved(folder, config, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # biases and norms too, so that none could be left out unseen
        attends = any(part in name for part in ("q_proj", "k_proj", "c_attn"))  # and places matter
        parameter.data += (0.5 if attends else 0.05) * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def trained(sft, tokenizer_dir, tmp_path):
    """`trained(config, …)`: two steps on a model of this config; with `template`, in that chat template."""

    def call(config, *flags, template=None):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
        if template:
            tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
            tokenizer.chat_template, config.vocab_size = template, 608
            flags = (*flags, "--template", "chat")
        base = saved(tmp_path / "base", config, tokenizer)
        done, run = sft("--max_length", 256, "--max_train_samples", 8, "--max_eval_samples", 2, "--eval_on_start",
                        "false", *flags, model=base, steps=2)  # fmt: skip
        assert done.status == 0, done.err
        return run

    return call


def exported(command, run, folder, *flags):
    done = command("finllm/cli.py", "export", run.path, "--format", "gguf", "--output_dir", folder, *flags)
    assert done.status == 0, done.err
    return {proof["name"]: proof for proof in json.loads((folder / "finllm.json").read_text())["proofs"]}, done.out


LLAMA_3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "nats"),
    [
        (GPT2Config(**SMALL), 5e-3),  # llama.cpp looks GELU up in a table of float16
        (LlamaConfig(**SIZES, tie_word_embeddings=True), 1e-4),
        (LlamaConfig(**{**SIZES, "head_dim": 16}, attention_bias=True, rope_parameters=LLAMA_3), 1e-4),
        (Qwen2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e6}), 1e-4),
        (MistralConfig(**SIZES, sliding_window=400), 1e-4),
    ],
    ids=["gpt2", "llama", "llama3", "qwen2", "mistral"],
)
def test_llama_cpp_says_of_each_token_what_the_model_says(config, nats, asked, tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(str(tokenizer_dir))
    model = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "base", config, tokenizer)).eval()
    ids = [*tokenizer("What is a bond? It is 12 % of it, or\tmore. " * 8).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        own = -model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    for dtype, limit in (("f32", nats), ("q8_0", 0.1)):
        gguf_file.write_gguf(tmp_path / dtype, model, tokenizer, Alpaca(tokenizer), "it", dtype)
        engine = llama_cpp.LlamaCpp(tmp_path / dtype, len(ids) + 8, in_float32=dtype == "f32")
        apart = (torch.tensor(engine.nll(ids, 1)) - own).abs().max()
        assert (limit / 100 if dtype == "q8_0" else 0) < apart < limit


@pytest.mark.parametrize(
    ("config", "template"),
    [(GPT2Config(**SMALL), None), (LlamaConfig(**SIZES, tie_word_embeddings=True), DEFAULT_SYSTEM)],
    ids=["gpt2", "llama-chat"],
)
def test_llama_cpp_answers_as_the_run_does(config, template, asked, trained, command, tmp_path):
    run = trained(config, *LORA, template=template)
    proofs, out = exported(command, run, tmp_path / "gguf", "--dtype", "f32")
    assert "200 texts become the same ids" in proofs["gguf: ids"]["said"]
    tried = int(re.search(r"^(\d+) questions are asked", proofs["gguf: template"]["said"])[1])
    assert tried >= 5 and proofs["gguf: template"]["figure"] == 0
    assert proofs["gguf: answers"]["figure"] <= 1
    perplexity = proofs["gguf: perplexity in llama.cpp"]
    assert 0 < perplexity["figure"] < perplexity["limit"] == 1e-3
    assert all(proof["said"] in out for proof in proofs.values())
    assert (tmp_path / "gguf" / "run-f32.gguf").exists()
    text = (tmp_path / "gguf" / "Modelfile").read_text()
    assert text.startswith("FROM ./run-f32.gguf\n") and 'PARAMETER stop "<|endoftext|>"' in text
    assert ('PARAMETER stop "<|im_end|>"' in text) == bool(template)


def test_a_file_that_is_another_model_is_not_kept(asked, trained, tmp_path, monkeypatch):
    """Rows of q and k as transformers has them, other cuts, control tokens that are none, another chat template."""
    run = trained(LlamaConfig(**SIZES, tie_word_embeddings=True), *LORA, template=CHATML)
    plain = plain_model(str(run.path), None, None, 5)
    writer = gguf_file.gguf.GGUFWriter
    written = writer.add_chat_template
    for owner, name, broken, said in (
        (gguf_file, "_rotated", lambda tensor, heads: tensor, "the perplexity of"),
        (gguf_file, "_cut_of", lambda content: "smollm", "texts become other ids"),
        (gguf_file, "_kind", lambda id, *_: gguf_file.TokenType.NORMAL, "texts become other ids"),
        (writer, "add_chat_template", lambda self, text: written(self, text.replace("assistant\n", "assistant:\n")),
         "questions are asked in other tokens"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            patch.setattr(export, "plain_model", lambda *_: plain)
            with pytest.raises(UserError, match=said) as raised:
                export.export_run(str(run.path), tmp_path / "gguf", "f32", None, 0.05, None, 50, True)
        assert "--dtype" not in str(raised.value)  # of what f32 is not, no other format is
        assert not (tmp_path / "gguf").exists() and not list(tmp_path.glob(".gguf*"))


def test_without_llama_cpp_the_weights_are_read_back(trained, command, tmp_path, monkeypatch):
    run = trained(GPT2Config(**SMALL))
    monkeypatch.setattr(llama_cpp, "AVAILABLE", False)
    proofs, out = exported(command, run, tmp_path / "gguf", "--dtype", "bf16", "--no_modelfile")
    assert [*proofs] == ["merged model", "gguf: perplexity in transformers"]
    assert 0 < proofs["gguf: perplexity in transformers"]["figure"] < 5e-2
    assert "pip install 'finllm[llama_cpp]'" in out and not (tmp_path / "gguf" / "Modelfile").exists()
    monkeypatch.setattr(
        gguf_file, "_rounded", lambda name, tensor, wanted: (gguf_file.DTYPES["f32"][0], 1.1 * tensor.numpy())
    )
    done = command("finllm/cli.py", "export", run.path, "--output_dir", tmp_path / "other")
    assert done.status == 2 and "is not the model that it was written from" in done.err
    assert "f16 rounds the weights: give --dtype f32, which does not" in done.err
    assert not (tmp_path / "other").exists()


def test_other_architectures_are_refused_by_name_before_anything_is_computed(trained, command, tmp_path):
    config = GPTNeoConfig(vocab_size=600, hidden_size=32, num_layers=2, attention_types=[[["global"], 2]], num_heads=2,
                          max_position_embeddings=512, bos_token_id=0, eos_token_id=0)  # fmt: skip
    run = trained(config)
    done = command("finllm/cli.py", "export", run.path, "--output_dir", tmp_path / "gguf")
    assert done.status == 2 and "GPTNeoForCausalLM is not written as GGUF here; GPT2LMHeadModel, Llama" in done.err
    done = command("finllm/cli.py", "export", run.path, "--format", "onnx")
    assert done.status == 2 and "--format is onnx" in done.err


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LlamaConfig(hidden_act="gelu", mlp_bias=True), ["hidden_act is 'gelu'", "mlp_bias is True"]),
        (LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}), ["rope_type is 'yarn'"]),
        (GPT2Config(activation_function="relu", scale_attn_by_inverse_layer_idx=True), ["'relu'", "inverse_layer_idx"]),
        (GPT2Config(scale_attn_weights=False), ["scale_attn_weights is False"]),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused_all_at_once(config, said):
    kind = "GPT2LMHeadModel" if config.model_type == "gpt2" else "LlamaForCausalLM"
    with pytest.raises(UserError) as found:
        gguf_file.check_config(config, kind)
    assert all(each in str(found.value) for each in said)


def test_a_window_of_attention_bounds_the_context():
    assert gguf_file.context_of(MistralConfig(max_position_embeddings=32768, sliding_window=4096)) == 4096
    assert (
        gguf_file.context_of(Qwen2Config(max_position_embeddings=2048, sliding_window=512, use_sliding_window=False))
        == 2048
    )


def test_a_modelfile_asks_in_the_template(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    alpaca = modelfile(Alpaca(tokenizer), "a.gguf", 1024)
    assert alpaca == (
        'FROM ./a.gguf\nTEMPLATE """Below is an instruction that describes a task. Write a response that '
        "appropriately completes the request.\n\n### Instruction:\n{{ range $i, $_ := .Messages }}{{ if eq (len (slice "
        '$.Messages $i)) 1 }}{{ .Content }}{{ end }}{{ end }}\n\n### Response:\n"""\nPARAMETER stop "<|endoftext|>"\n'
        "PARAMETER temperature 0\nPARAMETER num_ctx 1024\n"
    )
    chat = template_of("chat", chat_tokenizer(DEFAULT_SYSTEM), "it")
    text = modelfile(chat, "a.gguf", 100_000)
    assert (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ else }}<|im_start|>system\n"
        "Be brief.<|im_end|>\n<|im_start|>user\n{{ end }}{{ range .Messages }}{{ if eq .Role \"user\" }}{{ .Content }}"
        "<|im_end|>\n<|im_start|>assistant\n{{ else if eq .Role \"assistant\" }}{{ .Content }}<|im_end|>\n"
        "<|im_start|>user\n{{ end }}{{ end }}"
    ) in text and 'PARAMETER stop "<|im_end|>"' in text and "num_ctx 4096" in text  # fmt: skip
    row = {"instruction": "c?", "input": "d", "system": "S", "history": [{"role": "user", "content": "a"},
           {"role": "assistant", "content": "b"}]}  # fmt: skip
    assert parts_of(chat).prompt(row) == chat.prompts([row])[0]
    numbered = CHATML.replace(
        "message['role'] +", "message['role'] + (loop.index | string if message['role'] == 'user' else '') +"
    )
    with pytest.raises(UserError, match="does not write the same around each turn"):
        parts_of(template_of("chat", chat_tokenizer(numbered), "it"))


def test_a_vocabulary_of_pieces_with_bytes_is_that_of_llama_cpp(asked, tmp_path):
    """BPE as SentencePiece has it, which Llama 2 and Mistral use: no merges in the file, but scores."""
    special, text = ["<unk>", "<s>", "</s>"], (ROOT / "finllm/data/sample/saving.jsonl").read_text("utf-8")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    known = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=known, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, "vocab_size": 700, "num_hidden_layers": 1}))
    gguf_file.write_gguf(tmp_path / "pieces", model, fast, Alpaca(fast), "it", "f32")
    engine = llama_cpp.LlamaCpp(tmp_path / "pieces", 64)
    texts = texts_of(fast, [{"instruction": line, "output": ""} for line in text.splitlines()[:60]])
    assert len(texts) == 200 and any("<0xF0>" in fast(each).tokens() for each in texts)
    for each in texts:
        assert engine.ids(each, parse_special=True) == fast(each, add_special_tokens=False).input_ids, each

"""Tiny random models of many architectures of transformers: small numbers, whatever a config calls them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

VOCABULARY, POSITIONS, LAYERS = 600, 512, 2
SMALL = (
    (VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    (POSITIONS, "max_position_embeddings n_positions max_seq_len n_ctx max_target_positions seq_length"),
    (32, "hidden_size n_embd d_model dim word_embed_proj_dim embedding_size embedding_dim attention_hidden_size"),
    (32, "lru_width"),
    (48, "intermediate_size ffn_dim n_inner ffn_hidden_size decoder_ffn_dim dff"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks"),
    (2, "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads"),
    (2, "num_experts_per_tok"),
    (1, "num_key_value_heads n_head_kv num_kv_heads n_groups n_group topk_group first_k_dense_replace"),
    (16, "head_dim v_head_dim q_lora_rank kv_lora_rank moe_intermediate_size expert_dim chunk_size sliding_window"),
    (16, "shared_expert_intermediate_size moe_shared_expert_intermediate_size"),
    (8, "rotary_dim qk_rope_head_dim qk_nope_head_dim hidden_size_per_layer_input state_size"),
    (4, "num_experts num_local_experts n_routed_experts time_step_rank"),
    (0, "bos_token_id eos_token_id pad_token_id"),
)
NUMBERS = {name: number for number, names in SMALL for name in names.split()}

# What an architecture needs beside the small numbers; None for a number that its config must not be given.
PLAIN = """
apertus biogpt bitnet bloom cohere cohere2 ctrl exaone4 falcon gemma gemma2 gemma3_text
glm gpt2 gpt_bigcode gpt_neox gptj gpt_oss granite granitemoe helium hyperclovax jetmoe lfm2
llama mamba mistral mixtral modernbert-decoder mpt nanochat nemotron olmo olmo2 olmoe
openai-gpt opt persimmon phi phi3 qwen2 qwen3 rwkv stablelm
starcoder2 xglm bert t5
"""
DECODERS = "bert as a decoder, roberta as a decoder, electra as a decoder, bart"
ARCHITECTURES: dict[str, dict] = {
    **{name: {} for name in PLAIN.split()},
    "codegen": {"num_attention_heads": 4, "n_head": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 4},
    **{name: {"num_key_value_heads": 2} for name in ("deepseek_v2", "minicpm3")},
    **{name: {"is_decoder": True, "is_encoder_decoder": False} for name in DECODERS.split(", ")},
}


# Linear layers that LoRA may adapt where it may not have all of them.
# Bart's decoder has attention to an encoder, which is never asked: an adapter there gets no gradient.
TARGETS = {"mamba": "in_proj", "mamba2": "in_proj", "bart": "fc1"}


def config_of(name: str, **others):
    """A config of the architecture with small numbers, dropout off."""
    kind, extra = name.split(" ")[0], {**ARCHITECTURES.get(name, {}), **others}
    config = AutoConfig.for_model(kind)
    given = {
        key: number
        for key, number in NUMBERS.items()
        if hasattr(config, key) and not isinstance(getattr(type(config), key, None), property)
    }
    given |= {key: 0.0 for key in vars(config) if "dropout" in key or key.endswith(("pdrop", "_drop"))}
    if isinstance(vars(config).get("layer_types"), list):
        given["layer_types"] = list(config.layer_types)[:LAYERS]
    given |= extra
    return type(config)(**{key: value for key, value in given.items() if value is not None})


def save(name: str, folder: Path, tokenizer_dir: Path, **others) -> Path:
    """A folder with a tiny random model of the architecture, and the tokenizer beside it."""
    torch.manual_seed(0)
    config = config_of(name, **others)
    if name == "t5":
        from transformers import T5ForConditionalGeneration

        T5ForConditionalGeneration(config).save_pretrained(folder)
    else:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(folder)
    return folder

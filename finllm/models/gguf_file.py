"""A plain model as a GGUF file, for llama.cpp and what builds on it. The `gguf` package knows the names and writes.

    GPT-2                     gpt2    Conv1D weights turned
    Llama, SmolLM2, Mistral   llama   rows of q and k in the order that llama.cpp rotates them
    Qwen2                     qwen2

What a config says that llama.cpp would compute otherwise is refused; so are other architectures. What stands here of a
vocabulary is held against llama.cpp itself afterwards (finllm.models.llama_cpp).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType, TokenType
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from finllm.errors import UserError, raise_problems, shortened
from finllm.text.templates import Template

ARCHITECTURES = {
    "GPT2LMHeadModel": gguf.MODEL_ARCH.GPT2,
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
}
DTYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
BLOCK = 32  # numbers of a row that q8_0 scales together
NO_CONTEXT = 4096  # tokens, where a config names no end

# How llama.cpp calls the ways in which byte-level vocabularies cut a text before they merge: its own patterns, by those
# of tokenizer.json.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", _LLAMA_3), ("ByteLevel", False)): "llama-bpe",
    (("Split", _LLAMA_3.replace("{1,3}", "")), ("ByteLevel", False)): "qwen2",
}


def check_config(config: PreTrainedConfig, kind: str) -> None:
    """Refuse an architecture that is not written here, and all that its config says which llama.cpp does otherwise."""
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{kind} is not written as GGUF here; {', '.join(ARCHITECTURES)} are. `finllm merge` makes a folder of it "
            "that transformers and vLLM serve"
        )
    raise_problems(_unlike(config, kind), f"the config of {config.name_or_path}; llama.cpp makes another model of it")


def _unlike(config: PreTrainedConfig, kind: str) -> Iterator[str]:
    """What the config asks for that llama.cpp computes otherwise."""
    is_gpt2 = kind == "GPT2LMHeadModel"
    wanted: dict[str, Any] = (
        {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
         "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)}
        if is_gpt2 else {"hidden_act": ("silu",), "mlp_bias": (False, None)}
    )  # fmt: skip
    for name, allowed in wanted.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            yield f"{name} is {value!r}, and must be {allowed[0]!r}"
    rope = {} if is_gpt2 else _rope(config)
    if rope.get("rope_type", "default") not in ("default", "llama3"):
        yield f"rope_type is {rope['rope_type']!r}, and default and llama3 are written"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"partial_rotary_factor is {rope['partial_rotary_factor']!r}, and must be 1"


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def context_of(config: PreTrainedConfig) -> int:
    """Tokens that the file names as its context: no more than attention reaches, since a window is not written."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    positions = getattr(config, "max_position_embeddings", None) or NO_CONTEXT
    return min(positions, window or positions)


def write_gguf(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template, name: str, dtype: str
) -> None:
    """Write `model`, plain and in float32, with its tokenizer and chat template. The file is not written atomically."""
    config, kind = model.config, type(model).__name__
    check_config(config, kind)
    arch = ARCHITECTURES[kind]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    try:
        writer.add_name(name)
        writer.add_file_type(DTYPES[dtype][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_sizes(writer, config, is_gpt2=arch == gguf.MODEL_ARCH.GPT2)
        _add_vocabulary(writer, tokenizer, template, model.get_input_embeddings().weight.shape[0])
        for named, tensor in _tensors(model, arch):
            kept, numbers = _rounded(named, tensor, DTYPES[dtype][0])
            writer.add_tensor(named, numbers, raw_dtype=kept)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_sizes(writer: gguf.GGUFWriter, config: PreTrainedConfig, is_gpt2: bool) -> None:
    width, heads = config.hidden_size, config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_of(config))
    writer.add_embedding_length(width)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if is_gpt2:
        writer.add_feed_forward_length(config.n_inner or 4 * width)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head = getattr(config, "head_dim", None) or width // heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10_000.0)))


def _tensors(model: PreTrainedModel, arch: gguf.MODEL_ARCH) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor by llama.cpp's name and as it keeps it. A tied head is left out: it takes the embedding."""
    config, names = model.config, gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = f"{_name_of(model, head)}.weight" if head.weight is embedding.weight else None
    for name, tensor in model.state_dict().items():
        if name == tied:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"{type(model).__name__} has a tensor {name}, for which GGUF has no name")
        tensor = tensor.detach().float().cpu()
        if arch == gguf.MODEL_ARCH.LLAMA and (".q_proj." in name or ".k_proj." in name):
            tensor = _rotated(tensor, config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads)
        yield found, tensor.T if name in turned else tensor
    if _rope(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)


def _name_of(model: PreTrainedModel, module: torch.nn.Module) -> str:
    return next(name for name, each in model.named_modules() if each is module)


def _rotated(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k of each head, pairs side by side: llama.cpp rotates neighbours, transformers halves."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _llama3_factors(config: PreTrainedConfig) -> torch.Tensor:
    """By what llama.cpp divides each frequency: Llama 3's own, from transformers' computation of it."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = 1.0 / float(_rope(config)["rope_theta"]) ** (torch.arange(0, head, 2).float() / head)
    return plain / frequencies


def _rounded(name: str, tensor: torch.Tensor, wanted: GGMLQuantizationType) -> tuple[GGMLQuantizationType, np.ndarray]:
    """A tensor in the format that is asked for; in float32 what has one side, and GPT-2's positions, as llama.cpp has
    them, and in float16 what q8_0's blocks do not fit."""
    numbers = np.ascontiguousarray(tensor.numpy())
    if numbers.ndim < 2 or name == "position_embd.weight":
        wanted = GGMLQuantizationType.F32
    elif wanted == GGMLQuantizationType.Q8_0 and numbers.shape[-1] % BLOCK:
        wanted = GGMLQuantizationType.F16
    return wanted, gguf.quants.quantize(numbers, wanted)


# The vocabulary -------------------------------------------------------------------------------------------------------


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, template: Template, rows: int) -> None:
    """Tokens, their kinds, merges, special ids, and the chat template. `rows` are those of the embedding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {}
    kind = content.get("model", {}).get("type")
    if kind != "BPE":
        raise UserError(f"the tokenizer is {kind or type(tokenizer).__name__}; BPE alone is written as GGUF here")
    by_pieces = content["model"].get("byte_fallback")  # SentencePiece's BPE; else bytes are its letters
    writer.add_tokenizer_model("llama" if by_pieces else "gpt2")
    writer.add_tokenizer_pre("default" if by_pieces else _cut_of(content))
    vocabulary = {id: token for token, id in tokenizer.get_vocab().items()}
    added = {id: token.special for id, token in tokenizer.added_tokens_decoder.items()}
    tokens = [vocabulary.get(id, f"[PAD{id}]") for id in range(rows)]
    kinds = [_kind(id, vocabulary, added, tokenizer, by_pieces) for id in range(rows)]
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if by_pieces:
        _add_scores(writer, content, tokens)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=not by_pieces)
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    end = [id for id in template.stops if id != tokenizer.eos_token_id]
    if len(end) > 1:
        raise UserError(f"answers end in {len(template.stops)} tokens, and a GGUF file names two")
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id,
           "pad": tokenizer.pad_token_id, "eot": end[0] if end else None}  # fmt: skip
    special.special_token_ids = {name: id for name, id in ids.items() if id is not None and id < rows}
    special.add_special_token = {"bos": begins, "eos": False}
    special.chat_template = template.jinja
    special.add_to_gguf(writer, quiet=True)


def _kind(id: int, vocabulary: dict[int, str], added: dict[int, bool], tokenizer: Any, by_pieces: bool) -> TokenType:
    if id not in vocabulary:
        return TokenType.UNUSED
    if id in added:
        unknown = by_pieces and id == tokenizer.unk_token_id
        return TokenType.UNKNOWN if unknown else TokenType.CONTROL if added[id] else TokenType.USER_DEFINED
    token = vocabulary[id]
    is_byte = by_pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _cut_of(content: dict[str, Any]) -> str:
    """llama.cpp's name for how this tokenizer cuts texts before it merges."""
    cuts = content.get("pre_tokenizer") or {}
    parts = cuts.get("pretokenizers") or [cuts]
    found = tuple((part.get("type"), _how(part)) for part in parts)
    prefixed = any(part.get("add_prefix_space") for part in parts if part.get("type") == "ByteLevel")
    normalizer = (content.get("normalizer") or {}).get("type")
    if found not in CUTS or prefixed or normalizer not in (None, "NFC"):
        raise UserError(
            f"the tokenizer cuts texts by {shortened(cuts, 200)} (normalizer {normalizer}), for which llama.cpp has no "
            f"name that is known here; {', '.join(CUTS.values())} are"
        )
    return CUTS[found]


def _how(part: dict[str, Any]) -> Any:
    """What tells two parts of one type apart."""
    return {
        "ByteLevel": lambda: bool(part.get("use_regex", True)),
        "Digits": lambda: bool(part.get("individual_digits")),
        "Split": lambda: (part.get("pattern") or {}).get("Regex"),
    }.get(part.get("type"), lambda: None)()


def _add_scores(writer: gguf.GGUFWriter, content: dict[str, Any], tokens: list[str]) -> None:
    """llama.cpp merges the pair of the highest score first, tokenizer.json the one that its list has first."""
    rank: dict[str, int] = {}
    for place, merge in enumerate(content["model"]["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        rank.setdefault(left + right, place)
    writer.add_token_scores([-float(rank[token]) if token in rank else -1e6 for token in tokens])
    text = json.dumps(content.get("normalizer")) + json.dumps(content.get("pre_tokenizer"))
    writer.add_add_space_prefix('"Prepend"' in text or '"prepend_scheme": "first"' in text or
                                '"prepend_scheme": "always"' in text)  # fmt: skip

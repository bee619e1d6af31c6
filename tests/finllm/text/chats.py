"""A tokenizer with control tokens for conversations, and rows of one and of three turns. Written for these tests."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ONE = {"id": "one", "instruction": "Why?", "input": "", "output": "So."}
THREE = {
    "id": "three", "instruction": "And c?", "input": "", "output": "z", "system": "",
    "history": [
        {"role": "user", "content": "a?"}, {"role": "assistant", "content": "x"},
        {"role": "user", "content": "b?"}, {"role": "assistant", "content": "y"},
    ],
}  # fmt: skip
SYSTEM = {**THREE, "id": "system", "system": "Be brief."}


def chat_tokenizer(template=CHATML, **special) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges, so a character is a token; EOS is not the end of a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["a"], trainer)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", **special}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        **special,
    )


def chat_model(folder: Path, template=CHATML) -> Path:
    """A folder with a Llama of two small layers, random weights and the tokenizer above."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    chat_tokenizer(template).save_pretrained(folder)
    return folder

"""Language models whose every probability is set, so that whoever reads a test can work its figures out by hand.

A token is a byte, EOS has the id 0 and the byte b has b + 1. After each byte one other, its successor, has the
probability `share`, and each of the 256 others an equal part of the rest: with a share of ½ a token costs 1 bit where
it is the successor and 9 bits where it is not. From position `tires` on the weight of EOS is 511 times what it was, so
that answers to longer prompts are shorter. It is a real GPT-2 all the same: one layer whose attention adds nothing.
"""

from __future__ import annotations

import math
from pathlib import Path

EOS, OTHERS, WIDTH = 0, 256, 264
EARLY, LATE = 260, 261  # dimensions that say where a token stands
TIRED = 511.0


def chain(*texts: str, of: str = "e") -> dict[int, int]:
    """Successors by id: each byte of a text is followed by the next and the last by EOS; all others by `of`."""
    successors = {byte + 1: ord(of) + 1 for byte in range(256)} | {EOS: ord(of) + 1}
    for text in texts:
        ids = [byte + 1 for byte in text.encode()]
        successors |= dict(zip(ids, [*ids[1:], EOS], strict=True))
    return successors


def probability(successors: dict[int, int], share: float, tires: int, before: int, position: int, token: int) -> float:
    """Of `token`, when `before` stands at `position`: the definition, in floats of Python."""
    weights = dict.fromkeys(range(257), 1.0)
    weights[successors[before]] = OTHERS * share / (1 - share)
    if position >= tires:
        weights[EOS] *= TIRED
    return weights[token] / math.fsum(weights.values())


def nats(successors: dict[int, int], share: float, tires: int, prompt: str, response: str) -> list[float]:
    """Of each byte of a response and of its EOS."""
    before = [byte + 1 for byte in prompt.encode()]
    found = []
    for token in (*(byte + 1 for byte in response.encode()), EOS):
        found.append(-math.log(probability(successors, share, tires, before[-1], len(before) - 1, token)))
        before.append(token)
    return found


def byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {"<|endoftext|>": EOS, **{letter: byte + 1 for byte, letter in bytes_to_unicode().items()}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def save(
    folder: Path, successors: dict[int, int], share: float = 0.5, tires: int = 10**9, positions: int = 512
) -> Path:
    """The model and its tokenizer, as `save_pretrained` leaves them."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=257, n_positions=positions, n_embd=WIDTH, n_layer=1, n_head=1, n_inner=8, bos_token_id=EOS,
        eos_token_id=EOS, tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        body = model.transformer
        body.wte.weight[range(257), range(257)] = 1
        body.wpe.weight[:tires, EARLY] = 1
        body.wpe.weight[tires:, LATE] = 1
        # A token is two ones among zeros, of one mean and variance wherever it stands: this undoes the norm.
        mean = 2 / WIDTH
        body.ln_f.weight.fill_(math.sqrt(mean - mean**2 + config.layer_norm_epsilon))
        body.ln_f.bias.fill_(mean)
        for before, after in successors.items():
            model.lm_head.weight[after, before] = math.log(OTHERS * share / (1 - share))
        model.lm_head.weight[EOS, LATE] = math.log(TIRED)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder

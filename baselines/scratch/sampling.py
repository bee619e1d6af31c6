"""Greedy decoding: the most likely token, again and again. Shapes: see model.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baselines.scratch.model import CausalTransformer
from baselines.scratch.tokenizer import EOS, PAD


@torch.inference_mode()
def greedy(model: CausalTransformer, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """What the model writes after each prompt: up to and with its EOS, or until `max_new_tokens` or its last position.

    Prompts are read once, padded on the right; then each step reads one new token of each text and finds the others in
    the cache, where the padding stays hidden:

        bos What is a bond ? pad pad │ A  bond is         positions of the new tokens: 6, 7, 8
        bos How do I begin to save ? │ By setting aside                                 8, 9, 10
    """
    device = model.tokens.weight.device
    end = [max(0, min(max_new_tokens, model.position_limit - len(prompt))) for prompt in prompts]
    steps = max(end)
    lengths_B1 = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    longest = max(len(prompt) for prompt in prompts)
    ids_BT = torch.tensor([prompt + [PAD] * (longest - len(prompt)) for prompt in prompts], device=device)
    columns_1S = torch.arange(longest + steps, device=device)[None]
    visible_BS = (columns_1S < lengths_B1) | (columns_1S >= longest)

    caches = model.empty_caches(len(prompts), longest + steps)
    hidden_BTC = model.hidden(ids_BT, caches)
    hidden_BC = hidden_BTC[torch.arange(len(prompts), device=device), lengths_B1[:, 0] - 1]
    answers: list[list[int]] = [[] for _ in prompts]
    for step in range(steps):
        next_B = model.logits(hidden_BC).argmax(dim=-1)
        writing = False
        for answer, id, length in zip(answers, next_B.tolist(), end, strict=True):
            if len(answer) < length and answer[-1:] != [EOS]:
                answer.append(id)
                writing = writing or (id != EOS and len(answer) < length)
        if not writing:
            break
        # A text that has ended is read on with the others, and what comes of it is left: its position may stand still.
        positions_B1 = (lengths_B1 + step).clamp(max=model.position_limit - 1)
        visible_so_far_BS = visible_BS[:, : longest + step + 1]
        hidden_BC = model.hidden_of_next(next_B[:, None], positions_B1, caches, visible_so_far_BS)[:, 0]
    return answers

"""A GGUF file in llama.cpp itself, by the package xllamacpp: what it tokenizes, scores and answers, beside the model.

Its server listens on a free port of this machine's loopback for as long as it is asked. A token is scored by biasing
the choice to it: the log-probability that comes back is of the logits before any bias.
"""

from __future__ import annotations

import importlib.util
import json
import math
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from finllm.text.prompts import messages_of

AVAILABLE = importlib.util.find_spec("xllamacpp") is not None
FORCED = 1e4  # added to the logit of a token that is to be chosen
SMALLEST_CONTEXT, MOST_CONTEXT = 256, 4096  # tokens that memory is kept for


class LlamaCpp:
    """llama.cpp with the file at `path` loaded, on `context` tokens. Its cache is in float16, as it comes, unless it is
    asked for `in_float32`."""

    def __init__(self, path: Path, context: int, in_float32: bool = False):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = max(SMALLEST_CONTEXT, min(context, MOST_CONTEXT))
        parameters.n_parallel = 1
        parameters.n_gpu_layers = 0  # the proof is of the file, the same on every machine
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
        if in_float32:
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            # Its flash attention rounds keys and values to float16 on a CPU, whatever the cache holds.
            parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.verbosity = -1
        parameters.warmup = False
        self._server = xllamacpp.Server(parameters)

    def _posted(self, place: str, content: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._server.listening_address}{place}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def ids(self, text: str, parse_special: bool) -> list[int]:
        """The ids of a text, without BOS; what spells a control token is that token with `parse_special`."""
        asked = {"content": text, "add_special": False, "parse_special": parse_special}
        return self._posted("/tokenize", asked)["tokens"]

    def prompt(self, row: dict[str, Any]) -> str:
        """A row's question as the file's own chat template writes it."""
        return self._posted("/apply-template", {"messages": messages_of(row)})["prompt"]

    def answer_chat(self, row: dict[str, Any], max_new_tokens: int) -> str:
        """The greedy answer to a row, asked by the file's own chat template."""
        asked = {"messages": messages_of(row), "max_tokens": max_new_tokens, "temperature": 0}
        return self._server.handle_chat_completions(asked)["choices"][0]["message"]["content"] or ""

    def answer(self, ids: Sequence[int], max_new_tokens: int) -> str:
        """The greedy answer to a prompt in tokens."""
        asked = {"prompt": list(ids), "max_tokens": max_new_tokens, "temperature": 0}
        return self._server.handle_completions(asked)["choices"][0]["text"]

    def nll(self, ids: Sequence[int], begin: int) -> list[float]:
        """Nats of each token from the one at `begin` on, given all before it."""
        found = []
        for place in range(begin, len(ids)):
            asked = {
                "prompt": list(ids[:place]), "max_tokens": 1, "temperature": 0, "logprobs": 1, "cache_prompt": True,
                "logit_bias": {str(ids[place]): FORCED},
            }  # fmt: skip
            content = self._server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
            told = content[0]
            assert told["id"] == ids[place], f"token {ids[place]} was forced and {told['id']} came"
            logprob = told["logprob"]
            found.append(-logprob if logprob is not None else math.inf)
        return found

"""Records lm_eval_likelihood.json: what EleutherAI's lm-evaluation-harness gives for a tiny model and a few texts.

Run it from the root of the checkout, where lm-eval is installed beside the project:

    pip install "lm-eval==0.4.13" && python tests/eval/models/record_lm_eval.py

The model and the tokenizer are made by formula, not drawn, so that they are the same everywhere and for ever.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

FIXTURE = Path(__file__).with_name("lm_eval_likelihood.json")
TEXTS = [  # prompt, response; lm-eval moves white space at the end of a prompt into the response, so there is none
    ("Question: What is a bond?\nAnswer:", " A loan to a state or a firm."),
    (
        "Question: Is 5 % of £200 more than €9?\nAnswer:",
        " Yes, it is £10 — as long as £1 is not worth less than €0.90.",
    ),
    ("Say yes.", " Yes"),
    ("A longer prompt, so that the rows of a batch differ much in their lengths. " * 4 + "So:", " Save. " * 12 + "End"),
    ("税とは何か:", " 国や自治体に払うお金です。"),
]


def formula_model() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A GPT-2 of two layers whose weights are sines, and a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    config = GPT2Config(
        vocab_size=257, n_positions=512, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters(), 1):
            places = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            wave = torch.sin(places * (1 + math.sqrt(number)) + number)
            parameter.copy_((1 + 0.1 * wave if name.endswith("ln_f.weight") else 0.3 * wave).float())
    return model, fast


def main() -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = formula_model()
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    requests = [
        Instance("loglikelihood", {}, (prompt, response + tokenizer.eos_token), number)
        for number, (prompt, response) in enumerate(TEXTS)
    ]
    found = [{"log_likelihood": value, "greedy": greedy} for value, greedy in harness.loglikelihood(requests)]
    content = {
        "command": "python tests/eval/models/record_lm_eval.py",
        "lm_eval": importlib.metadata.version("lm_eval"),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "texts": [{"prompt": prompt, "response": response, **each}
                  for (prompt, response), each in zip(TEXTS, found, strict=True)],
    }  # fmt: skip
    FIXTURE.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

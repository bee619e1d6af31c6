"""The instruction template: the only one, called by training, evaluation, generation and the baseline.

It is the template of Stanford Alpaca (Taori et al. 2023), with and without an input. A prompt ends in a line feed and
a response never begins with white space (cleaning strips it), so for byte-level BPE the end of the prompt is a token
boundary: the tokens of the prompt and those of the response are the tokens of the whole.
"""

from __future__ import annotations

import hashlib

TEMPLATE_ID = "alpaca"

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)

TEMPLATE_HASH = hashlib.sha256(f"{WITH_INPUT}\0{WITHOUT_INPUT}".encode()).hexdigest()


def build_prompt(instruction: str, input: str = "") -> str:
    """The text that the model reads before it answers. Braces in the instruction or input stay as they are."""
    template = WITH_INPUT if input else WITHOUT_INPUT
    return template.format(instruction=instruction, input=input)

"""Small random models behind the protocol, some texts, and all that is asked of a likelihood."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from eval.audits.causality import causality
from eval.audits.likelihood import likelihood, padding, question, reproducibility
from eval.models.language_model import Description
from eval.models.transformers_lm import TransformersLM
from finllm.models.find import load_tokenizer
from finllm.text.prompts import build_prompt

QUESTIONS = ["What is a bond?", "How do I save for a house?", "Is tax due in April?", "What does a fund cost?"]
ANSWERS = [
    "A loan to a state.",
    "Put some money aside each month.",
    "Yes, by the fifteenth.",
    "A share of what it holds.",
]


def rows(answers=None):
    return [
        {"id": str(number), "question_id": str(number), "instruction": question, "input": "", "output": answer,
         "prompt": build_prompt(question), "reference": answer, "prediction": answers[number] if answers else None,
         "stopped": True if answers else None, "rougeL": 0.5 if answers else None}
        for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]  # fmt: skip


def many_rows(count=30, longest=12):
    """Rows whose responses have one to `longest` sentences, so that no two neighbours are of one length."""
    found = []
    for number in range(count):
        response = " ".join(ANSWERS[(number + step) % 4] for step in range(1 + number * 7 % longest))
        prompt = build_prompt(f"{QUESTIONS[number % 4]} ({number})")
        found.append({"question_id": str(number), "prompt": prompt, "reference": response, "prediction": None})
    return found


def small_model(folder, seed, config_changes=None):
    torch.manual_seed(seed)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    for name, value in (config_changes or {}).items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return TransformersLM(model, load_tokenizer(str(folder)), Description("base", "m", "m", 1, 0), batch_size=4)


def audits_of(lm, data) -> dict[str, dict]:
    """As eval.audits.audit has them, on the scores of a whole evaluation."""
    pairs = [lm.encode(row["prompt"], row["reference"]) for row in data]
    scores = lm.score([row["prompt"] for row in data], [row["reference"] for row in data])
    found = {"reproducibility": reproducibility(lm, pairs)}
    found["causality"] = causality(lm, data, pairs, found["reproducibility"]["depends_on_neighbours"])
    found["likelihood"] = likelihood(lm, pairs, scores, found["causality"]["unnormalised"])
    return {**found, "padding": padding(lm, pairs, scores), "question": question(lm, data, pairs, scores)}

"""transformers' Trainer as its documentation has it: rows padded to the longest of their batch, LoRA by peft.

    python benchmarks/plain_trainer.py MODEL ROWS.jsonl MAX_LENGTH LORA(0|1) TRAINING_ARGUMENTS_AS_JSON

Rows have `prompt` and `completion`. benchmarks/peers.py runs it; it imports nothing of this suite.
"""

import json
import sys

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)


def main(name: str, rows: str, max_length: str, lora: str, arguments: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids, labels = prompt + answer, [-100] * len(prompt) + answer
        return {"input_ids": ids[: int(max_length)], "labels": labels[: int(max_length)]}

    dataset = load_dataset("json", data_files=rows, split="train").map(encode, remove_columns=["prompt", "completion"])
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="float32", trust_remote_code=False)
    if lora == "1":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM",
            fan_in_fan_out=model.config.model_type == "gpt2",
        )  # fmt: skip
        model = get_peft_model(model, config)
    trainer = Trainer(
        model,
        TrainingArguments(**json.loads(arguments)),
        DataCollatorForSeq2Seq(tokenizer, padding=True),
        dataset,
    )
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])

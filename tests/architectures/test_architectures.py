"""Many architectures, tiny and random, from loading to evaluation: transformers' own loss and gradients, or a refusal.

Each goes through the recipe twice, in full and with LoRA, three steps of plain gradient descent on all rows at once. A
loop that knows nothing of this project does the same with transformers and peft alone, row by row.
"""

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from table import ROWS, refusal_of, row_of
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[2]
RATE, STEPS = 0.05, 3
LORA = ("--use_peft", "true", "--lora_r", "4", "--lora_dropout", "0", "--lora_target_modules")
# transformers' generate counts the positions of these from 0, their own forward from the padding id on: what they write
# is another function's than what is scored, and the audit says so.
WRITTEN_OTHERWISE = ("roberta as a decoder",)
REFUSED = {"bert": "sees the future", "t5": "encoder"}


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory) -> Path:
    """A dataset dir of so few questions that all of training is one batch."""
    from finllm.data.prepare import prepare

    source = tmp_path_factory.mktemp("source") / "rows.jsonl"
    rows = (ROOT / "finllm/data/sample/tax.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    source.write_text("\n".join(rows) + "\n", encoding="utf-8")
    prepare(source, source.parent / "data", validation_fraction=0.25, test_fraction=0.25, seed=3)
    return source.parent / "data"


def examples(folder: Path, tokenizer, split: str) -> list[tuple[torch.Tensor, int]]:
    """Ids of each row (1, T) and where its answer begins, made by hand."""
    from finllm.text.prompts import build_prompt

    found = []
    for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(build_prompt(row["instruction"], row["input"])).input_ids
        answer = tokenizer(row["output"], add_special_tokens=False).input_ids
        found.append((torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]]), len(prompt)))
    return found


def nats_a_token(model, rows) -> torch.Tensor:
    """Of all answers' tokens together, each row alone, from the logits that transformers gives."""
    nll, tokens = 0.0, 0
    for ids, start in rows:
        logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
        nll = nll + cross_entropy(logits, ids[0, start:], reduction="sum")
        tokens += len(logits)
    return nll / tokens


def trained_by_hand(folder: Path, rows, targets: str | None) -> tuple[list[float], dict[str, torch.Tensor], dict]:
    """Losses before each step, the weights at the end, and how far each has moved."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed
    from transformers.pytorch_utils import Conv1D

    set_seed(42)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if targets:
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        settings = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.0, "task_type": "CAUSAL_LM", "bias": "none"}
        modules = targets if targets == "all-linear" else {targets}
        model = get_peft_model(model, LoraConfig(target_modules=modules, fan_in_fan_out=transposed, **settings))
    model.eval()
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in weights.items()}
    losses = []
    for _ in range(STEPS):
        loss = nats_a_token(model, rows)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in weights.values():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
                    parameter.grad = None
    return losses, weights, {name: float((weights[name] - before[name]).norm()) for name in weights}


@pytest.fixture
def recipe(command, few_rows, tmp_path):
    def run(folder: Path, name: str, *arguments):
        return command(
            "recipes/sft.py", "--model_name_or_path", folder, "--dataset_name", few_rows,
            "--output_dir", tmp_path / name, "--max_steps", STEPS, "--per_device_train_batch_size", 64,
            "--optim", "sgd", "--learning_rate", RATE, "--lr_scheduler_type", "constant", "--max_grad_norm", 0,
            "--weight_decay", 0, "--logging_steps", 1, "--bf16", "false", "--dtype", "float32", "--max_length", 400,
            "--save_strategy", "no", "--disable_tqdm", "true", "--seed", 42, *arguments,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", [name for name in tiny.ARCHITECTURES if name not in REFUSED])
def test_an_architecture_has_transformers_own_loss_and_gradients_from_loading_to_evaluation(
    name, recipe, command, few_rows, tokenizer_dir, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.save(name, tmp_path / "base", tokenizer_dir)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = {split: examples(few_rows, tokenizer, split) for split in ("train", "validation", "test")}
    runs, tests, targets = {}, {}, tiny.TARGETS.get(name, "all-linear")
    for method, flags in (("full", ()), ("lora", (*LORA, targets))):
        done = recipe(folder, method, *flags)
        assert done.status == 0, done.err
        runs[method] = run = tmp_path / method
        losses, weights, moved = trained_by_hand(folder, rows["train"], targets if flags else None)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(losses, rel=1e-4)
        loaded = AutoModelForCausalLM.from_pretrained(folder if flags else run / "model", dtype=torch.float32).eval()
        if flags:
            loaded = PeftModel.from_pretrained(loaded, run / "model").eval()
        found, least = dict(loaded.named_parameters()), 1e-3 * max(moved.values())
        assert max(moved.values()) > 0
        for tensor, wanted in weights.items():
            apart = float((found[tensor] - wanted).norm())
            assert apart <= 1e-2 * max(moved[tensor], least) + 1e-6 * float(wanted.norm()), tensor
        with torch.no_grad():
            validation = nats_a_token(loaded, rows["validation"]).item()
            tests[method] = nats_a_token(loaded, rows["test"]).item()
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-4)
    done = command("eval/run.py", *runs.values(), "--max_generated", 1, "--max_new_tokens", 2, "--batch_size", 4)
    assert done.status == 0, done.err
    for method, run in runs.items():
        results = json.loads((run / "eval" / "results.json").read_text())
        assert results["splits"]["test"]["metrics"]["nll_per_token"]["value"] == pytest.approx(tests[method], rel=1e-4)
        of_likelihood = ("causality", "reproducibility", "likelihood", "question")
        assert all(results["audits"][audit]["passed"] for audit in of_likelihood), results["audits"]
        assert results["audits"]["padding"]["passed"] == (name not in WRITTEN_OTHERWISE)
    assert row_of(name, folder, runs) in ROWS.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_cannot_be_trained_is_refused_with_the_reason_and_leaves_no_run(
    name, reason, recipe, tokenizer_dir, tmp_path
):
    done = recipe(tiny.save(name, tmp_path / "base", tokenizer_dir), "run")
    assert done.status == 2 and reason in done.err and not (tmp_path / "run" / "config.yaml").exists()
    assert refusal_of(name, tmp_path / "base", done.err) in ROWS.read_text(encoding="utf-8").splitlines()


def test_the_page_has_a_row_for_each_and_no_other():
    rows = re.findall(r"(?m)^\| ([^|]+) \| `", ROWS.read_text(encoding="utf-8"))
    assert sorted(rows) == sorted(tiny.ARCHITECTURES) and len(rows) >= 30

"""A training run against a second one, written out in float64: every loss, rate and norm, and the weights it ends with.

One model has a head of its own with a bias, the other an attention with a scaling of its own. Steps accumulate batches
of rows that differ in length, so that a mean of means is another number.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, GraniteConfig, GraniteForCausalLM, GraniteModel, PhiConfig, PhiForCausalLM

from finllm.cpu import joined
from finllm.files import read_jsonl
from finllm.models.find import load_tokenizer
from finllm.run_dir import RunDir
from finllm.text.tokens import encode
from finllm.training.trainer import SupervisedTrainer

RATE, CLIP, WARMUP, STEPS, ROWS = 0.5, 0.05, 2, 6, 12
SMALL = {
    "vocab_size": 600, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "bos_token_id": 0,
    "num_attention_heads": 2, "eos_token_id": 0, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip


def phi():
    return PhiForCausalLM(PhiConfig(**SMALL, attention_dropout=0.0))


def granite():
    return GraniteForCausalLM(GraniteConfig(**SMALL, num_key_value_heads=1, attention_multiplier=0.9))


@pytest.fixture
def bases(tmp_path, tokenizer_dir):
    def save(make):
        torch.manual_seed(5)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "base")
        AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


@pytest.fixture
def trained(command, dataset_dir, tmp_path, monkeypatch):
    """Train, and note the rows of every batch that is trained on, in their order."""
    joins, begins, rows, training = joined.collate, SupervisedTrainer.train_run, [], []
    monkeypatch.setattr(
        joined, "collate", lambda batch: rows.append([row["input_ids"] for row in batch]) or joins(batch)
    )

    def train_run(self, resume):
        rows.clear()
        training[:] = [row["input_ids"] for row in self.train_dataset]
        return begins(self, resume)

    monkeypatch.setattr(SupervisedTrainer, "train_run", train_run)

    def call(base, *arguments, name="run"):
        done = command(
            "recipes/sft.py", "--model_name_or_path", base, "--dataset_name", dataset_dir, "--output_dir",
            tmp_path / name, "--max_train_samples", ROWS, "--max_eval_samples", 5, "--max_length", 400,
            "--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2, "--num_train_epochs", 3,
            "--learning_rate", RATE, "--warmup_steps", WARMUP, "--lr_scheduler_type", "linear", "--optim", "sgd",
            "--max_grad_norm", CLIP, "--logging_steps", 1, "--eval_strategy", "epoch", "--save_strategy", "no",
            "--bf16", "false", "--disable_tqdm", "true", *arguments,
        )  # fmt: skip
        assert done.status == 0, done.err
        batches = [batch for batch in rows if all(ids in training for ids in batch)]
        return RunDir(tmp_path / name), batches[: 2 * STEPS]

    return call


def nats(model, row):
    """Of the supervised tokens of one row alone, in float64."""
    labels = torch.tensor(row["labels"][1:])
    logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
    return cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


def rows_of(run, base, split, count=None):
    from finllm.data.dataset_dir import DatasetDir

    tokenizer = load_tokenizer(str(base))
    rows = DatasetDir(run.config()["dataset_name"]).split(split)
    rows = rows if count is None else rows.shuffle(run.config()["seed"]).select(range(count))
    return [encode(tokenizer, row, 400) for row in rows]


@pytest.mark.parametrize("make", [phi, granite])
def test_losses_norms_rates_and_weights_are_those_of_a_second_training(bases, trained, make):
    base = bases(make)
    run, batches = trained(base)
    train = {tuple(row["input_ids"]): row for row in rows_of(run, base, "train", ROWS)}
    validation = rows_of(run, base, "validation", 5)
    model = type(make()).from_pretrained(base).double().eval()
    assert model.lm_head.weight is not model.get_input_embeddings().weight

    def validated():
        with torch.no_grad():
            losses = torch.cat([nats(model, row) for row in validation])
        return losses.mean().item(), len(losses)

    expected, supervised, losses_of_validation = [], 0, [validated()[0]]
    for step in range(STEPS):
        step_rows = [train[tuple(ids)] for batch in batches[2 * step : 2 * step + 2] for ids in batch]
        losses = torch.cat([nats(model, row) for row in step_rows])
        losses.mean().backward()
        norm = torch.sqrt(
            sum((parameter.grad**2).sum() for parameter in model.parameters() if parameter.grad is not None)
        )
        rate = RATE * (step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP))
        supervised += len(losses)
        expected.append({"loss": losses.mean().item(), "grad_norm": norm.item(), "learning_rate": rate,
                         "supervised_tokens": supervised, "step": step + 1, "epoch": (step + 1) / 2})  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= rate * min(1.0, CLIP / (norm.item() + 1e-6)) * parameter.grad
                    parameter.grad = None
        if step % 2:
            losses_of_validation.append(validated()[0])

    lines = read_jsonl(run.metrics)
    found = [{key: line[key] for key in expected[0]} for line in lines if "loss" in line]
    assert found == [pytest.approx(each, rel=2e-5) for each in expected]
    assert [line["validation_loss"] for line in lines if "validation_loss" in line] == pytest.approx(
        losses_of_validation, rel=2e-5
    )
    summary = run.summary()
    assert [summary[f"{which}_validation_loss"] for which in ("first", "final", "best")] == pytest.approx(
        [losses_of_validation[0], losses_of_validation[-1], min(losses_of_validation[1:])], rel=2e-5
    )
    assert (summary["steps"], summary["epochs"], summary["supervised_tokens"]) == (STEPS, 3.0, supervised)
    tokens = 3 * sum(len(row["input_ids"]) for row in train.values())
    assert summary["tokens_per_second"] * summary["train_seconds"] == pytest.approx(tokens)
    before, after = load_file(base / "model.safetensors"), load_file(run.model / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in model.state_dict().items():
        apart = (after[name] - tensor).norm() / ((tensor - before[name]).norm() + 1e-6)
        assert apart < 2e-3, name

    epochs = [[ids for batch in batches[start : start + 4] for ids in batch] for start in (0, 4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(map(list, train))] * 3  # every row once an epoch
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_another_seed_of_the_data_gives_another_order(bases, trained):
    base = bases(phi)
    few = ("--max_steps", 2, "--eval_strategy", "no", "--eval_on_start", "false")
    first = trained(base, *few, "--data_seed", 1, name="1")[1][:4]
    other = trained(base, *few, "--data_seed", 2, name="3")[1][:4]
    assert first != other and len(first) == 4
    assert sorted(ids for batch in first for ids in batch) == sorted(ids for batch in other for ids in batch)


def test_the_best_checkpoint_is_the_one_that_is_saved(bases, trained):
    """Too large a rate makes each epoch worse than the first: what is saved has the loss of the best."""
    base = bases(phi)
    run, _ = trained(base, "--learning_rate", 40, "--max_grad_norm", 1, "--save_strategy", "epoch", "--warmup_steps", 0,
                     "--load_best_model_at_end", "true", "--lr_scheduler_type", "constant")  # fmt: skip
    lines = {line["step"]: line["validation_loss"] for line in read_jsonl(run.metrics) if "validation_loss" in line}
    best = min((loss, step) for step, loss in lines.items() if step)
    assert best[1] != STEPS and lines[0] < best[0], lines
    assert run.summary()["best_validation_loss"] == best[0]  # the untrained model is none of this run's
    saved = PhiForCausalLM.from_pretrained(run.model).double().eval()
    with torch.no_grad():
        loss = torch.cat([nats(saved, row) for row in rows_of(run, base, "validation", 5)]).mean().item()
    assert loss == pytest.approx(best[0], rel=1e-4)
    held = load_file(run.checkpoints / f"checkpoint-{best[1]}" / "model.safetensors")
    after = load_file(run.model / "model.safetensors")
    assert [name for name in held if not torch.equal(held[name], after[name])] == []


def test_an_attention_scaled_otherwise_is_another_model(bases):
    """Or the second training above would prove nothing about it."""
    base = bases(granite)
    ids, found = torch.arange(1, 40)[None], []
    for multiplier in (0.9, 8**-0.5):
        config = GraniteConfig.from_pretrained(base, attention_multiplier=multiplier)
        with torch.no_grad():
            found.append(GraniteModel.from_pretrained(base, config=config)(ids).last_hidden_state)
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert json.loads((base / "config.json").read_text())["attention_multiplier"] == 0.9

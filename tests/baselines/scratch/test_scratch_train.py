"""Training in this process: it learns, it resumes exactly, it refuses what cannot work."""

import dataclasses
import json
import math
import re

import pytest
import safetensors.torch
import torch
import yaml

from baselines.scratch.config import VARIANTS, TrainConfig
from baselines.scratch.data import encode_pair, lay_out
from baselines.scratch.loop import adamw, learning_rate_at
from baselines.scratch.losses import IGNORED
from baselines.scratch.model import Transformer
from baselines.scratch.tokenizer import Tokenizer
from baselines.scratch.train import train
from eval.models.loading import open_run
from finllm.data.dataset_dir import DatasetDir
from finllm.errors import UserError
from finllm.files import read_jsonl
from finllm.run_dir import RunDir
from finllm.text.prompts import build_prompt
from finllm.training import checkpoints
from tests.baselines.scratch.conftest import rows_of, write_dataset_dir

TIMED = ("tokens_per_second", "peak_memory_bytes")


def untimed(run: RunDir) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in TIMED} for line in read_jsonl(run.metrics)]


def changed(config: TrainConfig, **changes) -> TrainConfig:
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A finished run with its config, long enough to have learned something."""
    config = TrainConfig(
        dataset_name=str(dataset),
        output_dir=str(tmp_path_factory.mktemp("runs") / "learned"),
        vocabulary_size=360,
        max_length=64,
        layers=2,
        width=32,
        heads=2,
        feed_forward=64,
        batch_tokens=512,
        max_steps=100,
        learning_rate=0.01,
        dropout=0.0,
        eval_steps=50,
    )
    train(config)
    return config, RunDir(config.output_dir).require_complete()


def test_training_lowers_the_loss(trained):
    _, run = trained
    summary = run.summary()
    assert summary["first_validation_loss"] > math.log(360)  # worse than a guess: it is random and sure of itself
    assert summary["final_validation_loss"] < 2.0
    lines = read_jsonl(run.metrics)
    evaluations = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in evaluations] == [0, 50, 100]
    assert set(evaluations[0]) == {"step", "epoch", "validation_loss"}
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(10, 101, 10))
    assert set(steps[0]) == {
        *("step", "epoch", "loss", "learning_rate", "tokens_per_second", "supervised_tokens", "peak_memory_bytes")
    }
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["supervised_tokens"] == summary["supervised_tokens"]


def test_validation_loss_is_that_of_evaluation(trained):
    """Σ nll / Σ tokens of the best weights, by the harness, equals the best validation loss of the run."""
    config, run = trained
    rows = DatasetDir(config.dataset_name).rows("validation")
    prompts = [build_prompt(row["instruction"], row["input"]) for row in rows]
    scores = open_run(run, batch_size=4).score(prompts, [row["output"] for row in rows])
    loss = sum(score.nll for score in scores) / sum(score.tokens for score in scores)
    assert loss == pytest.approx(run.summary()["best_validation_loss"], rel=1e-6)


def test_score_covers_response_and_eos_alone(trained):
    _, run = trained
    model = open_run(run, batch_size=2)
    prompt, response = build_prompt("What is a bond?"), "A bond is money."
    (score,) = model.score([prompt], [response])
    example = lay_out(*encode_pair(model.tokenizer, prompt, response), "causal")
    log_probabilities = model.model.hidden(torch.tensor([example.ids]))
    log_probabilities = model.model.logits(log_probabilities)[0].log_softmax(-1)
    positions = [t for t, label in enumerate(example.labels) if label != IGNORED]
    expected = -sum(log_probabilities[t - 1, example.ids[t]].item() for t in positions)
    assert score.nll == pytest.approx(expected, rel=1e-5)
    assert score.tokens == len(model.tokenizer.encode(response)) + 1
    assert score.correct_tokens == sum(int(log_probabilities[t - 1].argmax()) == example.ids[t] for t in positions)


def test_results_are_the_same_for_any_batch_size(trained):
    _, run = trained
    rows = rows_of(7, 9)
    prompts = [build_prompt(instruction, input) for instruction, input, _ in rows]
    responses = [" ".join([output] * (n % 4)) for n, (_, _, output) in enumerate(rows)]  # from empty to long
    results = [
        (model.score(prompts, responses), model.generate(prompts, 20))
        for model in (open_run(run, batch_size) for batch_size in (1, 4, 100))
    ]
    assert len({answer.text for answer in results[0][1]}) > 1
    for scores, answers in results[1:]:
        assert answers == results[0][1]
        for score, alone in zip(scores, results[0][0], strict=True):
            assert score.nll == pytest.approx(alone.nll, rel=1e-5)
            assert (score.tokens, score.correct_tokens) == (alone.tokens, alone.correct_tokens)


def test_description_and_answers(trained):
    _, run = trained
    model = open_run(run, batch_size=8)
    assert (model.description.method, model.description.base_model) == ("scratch", None)
    assert model.description.total_parameters == run.summary()["total_parameters"]
    (answer,) = model.generate([build_prompt("What is a loan, in case 1.2?")], 40)
    assert answer.text.startswith("A ") and answer.stopped and answer.tokens < 40


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_goes_on_exactly(config, tmp_path, monkeypatch, variant):
    """Stopped twice, once in the middle of an epoch: weights bit for bit, metrics line for line."""
    config = changed(config, variant=variant, save_steps=4, eval_steps=3, dropout=0.2)
    train(config)
    whole = RunDir(config.output_dir)
    log = RunDir.log
    stopped = RunDir(tmp_path / "stopped")
    for last_step in (7, 10):

        def log_until(self, line, last_step=last_step):
            if line["step"] > last_step:
                raise KeyboardInterrupt
            log(self, line)

        monkeypatch.setattr(RunDir, "log", log_until)
        with pytest.raises(KeyboardInterrupt):
            train(changed(config, output_dir=str(stopped.path)), resume=last_step > 7)
        assert not stopped.complete
        assert checkpoints.newest(stopped.checkpoints).name == f"checkpoint-{last_step // 4 * 4}"
    monkeypatch.undo()
    train(changed(config, output_dir=str(stopped.path)), resume=True)
    assert (stopped.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()
    assert untimed(stopped) == untimed(whole)
    for key in ("steps", "epochs", "supervised_tokens", "first_validation_loss", "best_validation_loss"):
        assert stopped.summary()[key] == whole.summary()[key]


def test_the_saved_weights_are_the_best_and_patience_ends_the_run(config):
    """A learning rate that ruins the model after its warm-up: the run ends early and keeps what was good."""
    config = changed(config, max_steps=100, eval_steps=2, learning_rate=3.0, early_stopping_patience=2, weight_decay=0)
    train(config)
    run = RunDir(config.output_dir)
    summary = run.summary()
    validated = {line["step"]: line["validation_loss"] for line in read_jsonl(run.metrics) if "validation_loss" in line}
    losses = [*validated.values()]
    assert summary["steps"] < 100 and summary["best_validation_loss"] == min(losses) < losses[-1]
    assert validated[summary["saved_step"]] == summary["final_validation_loss"] == min(losses)
    assert losses[-2:] == sorted(losses[-2:]) or min(losses) < min(losses[-2:])
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    rows = DatasetDir(config.dataset_name).rows("validation")
    prompts = [build_prompt(row["instruction"], row["input"]) for row in rows]
    scores = open_run(run, batch_size=4).score(prompts, [row["output"] for row in rows])
    loss = sum(score.nll for score in scores) / sum(score.tokens for score in scores)
    assert loss == pytest.approx(min(losses), rel=1e-5)


def test_options_train_too(config):
    config = changed(
        config,
        tokenizer="unigram",
        vocabulary_size=340,
        positions="learned",
        tie_embeddings=False,
        loss_on_prompt=True,
        max_steps=None,
        num_train_epochs=2,
    )
    train(config)
    run = RunDir(config.output_dir)
    assert run.summary()["epochs"] == 2.0
    weights = safetensors.torch.load_file(run.model / "model.safetensors")
    assert "vocabulary.weight" in weights and "decoder.positions.table.weight" in weights
    with pytest.raises(UserError, match="this model learned 64 positions"):
        open_run(run, batch_size=1).generate([build_prompt("What? " * 50)], 5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_losses_are_trained_on_and_validation_stays_plain(config, variant):
    """Step 0's validation loss is that of the same weights without the extra losses; what is learned differs."""
    losses = []
    for extra in ({}, {"label_smoothing": 0.2}, {"unlikelihood": 2.0}):
        other = changed(config, variant=variant, output_dir=f"{config.output_dir}-{len(losses)}", max_steps=2, **extra)
        train(other)
        losses.append(read_jsonl(RunDir(other.output_dir).metrics))
    first = [lines[0]["validation_loss"] for lines in losses]
    assert first == [pytest.approx(first[0], rel=1e-6)] * 3
    trained = [lines[1]["loss"] for lines in losses]
    assert len({round(loss, 3) for loss in trained}) == 3 and trained[2] > trained[0]
    after = [lines[-1]["validation_loss"] for lines in losses]
    assert len(set(after)) == 3


def test_only_matrices_decay(config):
    model = Transformer(config.model(300))
    decayed, others = adamw(model, config).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == config.weight_decay and others["weight_decay"] == 0
    assert {re.sub(r"decoder\.blocks\.\d\.", "", names[id(parameter)]) for parameter in decayed["params"]} == {
        "vocabulary.weight",
        *(f"attention.{part}.weight" for part in ("query", "key", "value", "output")),
        "feed_forward.inner.weight",
        "feed_forward.output.weight",
    }
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_learning_rate_by_hand(config):
    config = changed(config, learning_rate=1.0, warmup_ratio=0.2)
    rates = [learning_rate_at(step, 10, config) for step in (1, 2, 3, 6, 10)]
    cosine = [0.5 * (1 + math.cos(math.pi * part / 9)) for part in (1, 4, 8)]
    assert rates == pytest.approx([0.5, 1.0, *cosine])


def test_data_that_cannot_work(config, tmp_path, monkeypatch):
    empty = write_dataset_dir(tmp_path / "empty", train=rows_of(1, 60), validation=[], test=[])
    with pytest.raises(UserError, match=r"the validation split of .*empty is empty"):
        train(changed(config, dataset_name=str(empty)))
    with pytest.raises(UserError, match=r"no prompt of the train split leaves room .* raise max_length"):
        train(changed(config, max_length=4))
    monkeypatch.setattr("finllm.cpu.machine.bf16_is_fast", lambda: False)
    with pytest.raises(UserError, match=r"bf16 is true and this cpu has no arithmetic for it; .* set bf16 to false"):
        train(changed(config, bf16=True))
    assert not RunDir(config.output_dir).path.exists()


def test_a_run_is_resumed_with_its_own_config_and_data(config, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("baselines.scratch.loop.save_checkpoint", interrupt)
        train(config)
    with pytest.raises(UserError, match="already holds a run; pass --resume auto"):
        train(config)
    with pytest.raises(UserError, match="width was 16 and is now 32"):
        train(changed(config, width=32), resume=True)
    dataset = write_dataset_dir(tmp_path / "d", train=rows_of(5, 60), validation=rows_of(6, 9), test=[])
    manifest = json.loads((dataset / "manifest.json").read_text())
    with pytest.raises(UserError, match=f"is now {manifest['sha256'][:16]}; put the old dataset back"):
        train(changed(config, dataset_name=str(dataset)), resume=True)
    train(config, resume=True)  # no checkpoint yet: it begins again
    assert [line["step"] for line in read_jsonl(RunDir(config.output_dir).metrics) if "loss" in line] == [
        *(2, 4, 6, 8, 10, 12)
    ]


def test_a_run_from_before_the_variants_goes_on(config, tmp_path, monkeypatch):
    """Its config.yaml has none of the new keys, its tensors no `decoder.` in their names: it is causal and pre-norm."""
    train(config)
    whole = RunDir(config.output_dir)
    log = RunDir.log

    def log_until(self, line):
        if line["step"] > 9:
            raise KeyboardInterrupt
        log(self, line)

    run = RunDir(tmp_path / "old")
    config = changed(config, output_dir=str(run.path))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "log", log_until)
        train(config)
    new_keys = ("variant", "norm", "label_smoothing", "unlikelihood")
    old = {key: value for key, value in run.config().items() if key not in new_keys}
    (run.path / "config.yaml").write_text(yaml.safe_dump(old, sort_keys=False))
    place = checkpoints.newest(run.checkpoints)
    for name in ("model", "best"):
        path = place / f"{name}.safetensors"
        tensors = {key.removeprefix("decoder."): tensor for key, tensor in safetensors.torch.load_file(path).items()}
        path.write_bytes(safetensors.torch.save(tensors))
    work = place.rename(place.with_name("changed"))
    checkpoints.seal(work, place)
    train(config, resume=True)
    assert run.config() == old
    assert (run.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()

    held = json.loads((run.model / "config.json").read_text())
    (run.model / "config.json").write_text(json.dumps({k: v for k, v in held.items() if k not in ("variant", "norm")}))
    assert open_run(run, 4).model.config == open_run(whole, 4).model.config
    with pytest.raises(UserError, match=r"dropout was 0\.1 and is now 0\.2"):
        (run.path / "summary.json").unlink()
        train(changed(config, dropout=0.2), resume=True)


def test_the_tokenizer_sees_the_training_split_alone(dataset, config, tmp_path):
    train(config)
    rows = DatasetDir(dataset).rows("train")
    texts = [row[column] for row in rows for column in ("instruction", "input", "output")]
    held = (RunDir(config.output_dir).model / "tokenizer.model").read_bytes()
    assert held == Tokenizer.train(texts, config.vocabulary_size).model

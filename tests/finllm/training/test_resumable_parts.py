"""What a trainer counts, over several processes and evaluations, and what it takes from a checkpoint: as literals."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer_callback import EarlyStoppingCallback
from trl import SFTTrainer

from finllm.errors import UserError
from finllm.files import write_json
from finllm.training import checkpoints, resumable
from finllm.training.resumable import ResumableTrainer, patience_used


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(resumable, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


@pytest.fixture
def trainer(clock, tmp_path):
    """One of two processes; the other has 30 tokens, 2 of them supervised with 3 nats, since the last log."""
    found = object.__new__(ResumableTrainer)
    found.args = SimpleNamespace(device=torch.device("cpu"), world_size=2)
    others = {"window": torch.tensor([3.0, 2, 30, 20]), "progress": torch.tensor([300.0, 20, 3, 2])}
    found.reduces = "window"
    found.accelerator = SimpleNamespace(reduce=lambda tensor: tensor + others[found.reduces])
    found.run = SimpleNamespace(checkpoints=tmp_path)
    found._since, found.train_seconds, found.evaluation_seconds = 90.0, 7.0, 0.0
    found.tokens = found.supervised_tokens = 0
    found._window, found._logged = {"nll": 0.0, "tokens": 0}, {"time": 95.0, "tokens": 0}
    found.is_world_process_zero = lambda: True
    found.state = SimpleNamespace(global_step=4, epoch=2.0, max_steps=9, best_global_step=None,
                                  best_model_checkpoint=None)  # fmt: skip
    return found


def test_counts_are_summed_over_processes_and_windows_end_with_a_log(trainer, clock, monkeypatch):
    logged = []
    monkeypatch.setattr(SFTTrainer, "log", lambda self, logs, start_time=None: logged.append((dict(logs), start_time)))

    def evaluate(self, *given, **named):
        clock.now += 4
        torch.rand(3)  # as each pass over a DataLoader draws
        return given, named

    monkeypatch.setattr(SFTTrainer, "evaluate", evaluate)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    trainer.count(50, 3, 4.5)
    trainer.count(20, 1, 1.5)
    assert trainer.evaluate(1, key=2) == ((1,), {"key": 2})  # four seconds that are not training's
    assert torch.rand(1) == expected
    clock.now += 5
    trainer.log({"loss": 99.0}, 7.0)
    found, start_time = logged.pop()
    assert found["loss"] == (4.5 + 1.5 + 3) / (3 + 1 + 2) and start_time == 7.0
    assert found["tokens_per_second"] == pytest.approx((70 + 30) / 10) and found["supervised_tokens"] == 4 + 20
    assert found["peak_memory_bytes"] > 1e6
    trainer.count(10, 2, 8.0)
    clock.now += 2
    trainer.reduces = "progress"
    assert trainer._progress() == {"tokens": 380, "supervised_tokens": 26, "window_nll": 11.0, "window_tokens": 4,
                                   "train_seconds": 7 + (111 - 90) - 4}  # fmt: skip
    trainer.reduces = "window"
    trainer.log({"loss": 0.0})
    assert logged.pop()[0] | {"peak_memory_bytes": 0} == {
        "loss": 11.0 / 4, "tokens_per_second": 40 / 2, "supervised_tokens": 6 + 20, "peak_memory_bytes": 0
    }  # fmt: skip
    trainer.log({"eval_loss": 1.0})
    assert logged.pop() == ({"eval_loss": 1.0}, None)
    trainer.accelerator.reduce = torch.zeros_like
    clock.now += 1
    trainer.log({"loss": 5.0})  # of a step in which nothing was supervised
    assert logged.pop()[0]["loss"] == 0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("moved", [True, False])
def test_one_process_goes_on_with_the_counts_of_all(trainer, tmp_path, monkeypatch, first, moved):
    monkeypatch.setattr(Trainer, "_init_training_state", lambda self, *given: given)
    trainer.is_world_process_zero = lambda: first
    trainer.state.best_global_step, trainer.state.best_model_checkpoint = 3, "elsewhere/checkpoint-3"
    place = tmp_path / "checkpoint-4"
    place.mkdir()
    if moved:
        (tmp_path / "checkpoint-3").mkdir()
    counts = {"tokens": 11, "supervised_tokens": 5, "window_nll": 2.5, "window_tokens": 3, "train_seconds": 60.0}
    write_json(place / "progress.json", counts)
    given = (9, 2, 3, str(place), None)
    assert trainer._init_training_state(*given) == given
    assert trainer.train_seconds == 60.0
    assert (trainer.tokens, trainer.supervised_tokens) == ((11, 5) if first else (0, 0))
    assert trainer._window == ({"nll": 2.5, "tokens": 3} if first else {"nll": 0.0, "tokens": 0})
    assert trainer._logged["tokens"] == (11 if first else 0)
    assert trainer.state.best_model_checkpoint == (
        str(tmp_path / "checkpoint-3") if moved else "elsewhere/checkpoint-3"
    )
    trainer.train_seconds = 7.0
    assert trainer._init_training_state(9, 2, 3, None, None) == (9, 2, 3, None, None) and trainer.train_seconds == 7.0


@pytest.mark.parametrize(("step", "epoch", "steps", "fits"), [
    (4, 2.0, 2, True), (5, 2.0, 2, False), (3, 2.0, 2, False), (3, 1.3, 3, True), (4, 1.0, 3, False),
    (39, 20.0, 2, False), (4, 1.9, 2, True),
])  # fmt: skip
def test_a_checkpoints_steps_are_its_epochs(trainer, step, epoch, steps, fits):
    trainer.state.global_step, trainer.state.epoch = step, epoch
    if fits:
        trainer._check_place("checkpoint-4", steps)
    else:
        with pytest.raises(UserError, match=f"checkpoint-4 is {epoch:.4g} epochs into the run and would be"):
            trainer._check_place("checkpoint-4", steps)


@pytest.mark.parametrize("resumed", ["checkpoint", None])
def test_the_rate_is_that_of_the_schedule_that_is_the_runs_now(trainer, monkeypatch, resumed):
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
    parameters = [{"params": [torch.zeros(1)], "lr": 0.8}, {"params": [torch.zeros(1)], "lr": 0.4}]
    optimizer = SGD(parameters)
    trainer.lr_scheduler = LambdaLR(optimizer, [lambda step: 1 - step / 10, lambda step: 1 / (1 + step)])
    trainer.lr_scheduler.last_epoch = 3
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # as the end of a shorter run left it
    trainer._load_optimizer_and_scheduler(resumed)
    rates = [0.8 * 0.7, 0.4 / 4] if resumed else [0.0, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)
    assert trainer.lr_scheduler.get_last_lr() == pytest.approx(rates if resumed else [0.8, 0.4])


@pytest.mark.parametrize(("step", "halt", "used", "goes_on", "halted"), [
    (8, None, 0, True, False), (9, None, 0, False, False), (10, None, 0, False, False), (5, 6, 0, True, False),
    (6, 6, 0, False, True), (9, 20, 0, False, False), (8, None, 2, False, False), (8, None, 1, True, False),
    (6, 6, 2, False, False),
])  # fmt: skip
def test_a_run_that_was_at_its_end_takes_no_step_more(trainer, monkeypatch, step, halt, used, goes_on, halted):
    epochs = []
    monkeypatch.setattr(Trainer, "_run_epoch", lambda self, **given: epochs.append(given))
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    stopping.early_stopping_patience_counter = used
    trainer.callback_handler = SimpleNamespace(callbacks=[object(), stopping])
    trainer.control = SimpleNamespace(should_training_stop=False)
    trainer.at_step, trainer.state.global_step = SimpleNamespace(step=halt, stopped=False), step
    trainer._run_epoch(epoch=1)
    assert epochs == ([{"epoch": 1}] if goes_on else [])
    assert trainer.control.should_training_stop is not goes_on and trainer.at_step.stopped is halted


def test_a_best_checkpoint_that_is_damaged_is_not_loaded(trainer, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(Trainer, "_load_best_model", lambda self: loaded.append(self.state.best_model_checkpoint))
    work = tmp_path / "work"
    work.mkdir()
    (work / "weights").write_text("1")
    checkpoints.seal(work, tmp_path / "checkpoint-3")
    trainer.model, trainer.state.best_model_checkpoint = torch.nn.Linear(1, 1), str(tmp_path / "checkpoint-3")
    trainer._load_best_model()
    assert loaded == [str(tmp_path / "checkpoint-3")]
    (tmp_path / "checkpoint-3" / "weights").write_text("2")
    with pytest.raises(UserError, match=r"the best checkpoint, .*checkpoint-3, is damaged: weights is not as it was"):
        trainer._load_best_model()
    assert len(loaded) == 1


def test_the_patience_that_a_checkpoint_has_used(tmp_path):
    for callbacks, used in (
        ({}, 0),
        ({"EarlyStoppingCallback": {"attributes": {"early_stopping_patience_counter": 3}}}, 3),
    ):
        (tmp_path / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": callbacks}))
        assert patience_used(tmp_path) == used

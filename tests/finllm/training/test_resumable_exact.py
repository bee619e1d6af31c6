"""What is counted exactly however large it is, and what a run that goes on, is evaluated or ends is asked for."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, StepLR
from transformers import Trainer
from transformers.trainer_callback import EarlyStoppingCallback
from trl import SFTTrainer

from finllm.errors import UserError
from finllm.files import write_json
from finllm.training import resumable
from finllm.training.resumable import ResumableTrainer

LARGE = 2**24 + 1  # no number of float32


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(resumable, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


@pytest.fixture
def trainer(clock, tmp_path):
    """The only process of a run of which nothing is counted yet."""
    found = object.__new__(ResumableTrainer)
    found.args = SimpleNamespace(device=torch.device("cpu"), world_size=3, eval_on_start=True, should_save=True,
                                 save_total_limit=2, load_best_model_at_end=False)  # fmt: skip
    found.accelerator = SimpleNamespace(reduce=lambda tensor: tensor, wait_for_everyone=lambda: None)
    found.run = SimpleNamespace(checkpoints=tmp_path, path=tmp_path)
    found.tokens = found.supervised_tokens = 0
    found._window, found._logged = {"nll": 0.0, "tokens": 0}, {"time": 90.0, "tokens": 0}
    found._since, found.train_seconds, found.evaluation_seconds = 90.0, 0.0, 0.0
    found.is_world_process_zero = lambda: True
    found.is_fsdp_enabled = found.is_deepspeed_enabled = False
    found.model = torch.nn.Linear(1, 1)
    found.state = SimpleNamespace(global_step=6, epoch=2, max_steps=9, best_global_step=4, best_model_checkpoint="best",
                                  log_history=[], save_to_json=lambda path: None)  # fmt: skip
    return found


@pytest.fixture
def logged(monkeypatch):
    found = []
    monkeypatch.setattr(SFTTrainer, "log", lambda self, logs, start_time=None: found.append(dict(logs)))
    return found


# Counts --------------------------------------------------------------------------------------------------------------


def test_no_count_is_too_large_to_be_exact(trainer, logged):
    trainer.count(2 * LARGE, LARGE, float(LARGE))
    assert trainer._progress() == {"tokens": 2 * LARGE, "supervised_tokens": LARGE, "window_nll": float(LARGE),
                                   "window_tokens": LARGE, "train_seconds": 10.0}  # fmt: skip
    trainer.log({"loss": 0.0})
    assert (logged[0]["supervised_tokens"], logged[0]["loss"]) == (LARGE, 1.0)
    assert logged[0]["tokens_per_second"] == 2 * LARGE / 10
    assert type(logged[0]["supervised_tokens"]) is int


def test_a_loss_of_one_token_is_its_nats(trainer, logged):
    trainer.count(5, 1, 3.0)
    trainer.log({"loss": 0.0})
    assert logged[0]["loss"] == 3.0


def test_the_time_of_all_evaluations_is_left_out(trainer, clock, logged, monkeypatch):
    def evaluate(self):
        clock.now += 4

    monkeypatch.setattr(SFTTrainer, "evaluate", evaluate)
    for _ in range(3):
        trainer.evaluate()
        clock.now += 1
    assert trainer.evaluation_seconds == 12 and trainer._train_seconds() == 13  # 10 before them, 3 between
    trainer.count(26, 1, 1.0)
    trainer.log({"loss": 0.0})
    assert logged[0]["tokens_per_second"] == 2


@pytest.mark.parametrize(("kind", "devices"), [("cpu", 0), ("cuda", 1), ("mps", 0)])
def test_an_evaluation_gives_back_the_random_numbers_of_its_gpu_too(trainer, monkeypatch, kind, devices):
    asked, fork = [], torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: asked.append(devices) or fork([]))
    monkeypatch.setattr(SFTTrainer, "evaluate", lambda self: None)
    trainer.args.device = SimpleNamespace(type=kind)
    trainer.evaluate()
    assert asked == [[trainer.args.device] * devices]


def test_a_trainer_may_be_evaluated_before_it_trains(monkeypatch, clock, tmp_path):
    def init(self, callbacks):
        self.args = SimpleNamespace(disable_tqdm=True, device=torch.device("cpu"))

    monkeypatch.setattr(SFTTrainer, "__init__", init)
    monkeypatch.setattr(SFTTrainer, "evaluate", lambda self: "measured")
    assert ResumableTrainer(run=resumable.RunDir(tmp_path)).evaluate() == "measured"


# A checkpoint --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_written_where_transformers_saves_no_arguments(trainer, monkeypatch, tmp_path):
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda self, model, trial: None)
    trainer.state.save_to_json = lambda path: Path(path).write_text("{}")
    trainer._save_checkpoint(None, None)
    found = sorted(path.name for path in (tmp_path / "checkpoint-6").iterdir())
    assert found == ["checksums.json", "progress.json", "trainer_state.json"]


def test_a_checkpoint_of_rows_that_are_shared_out_otherwise_is_refused(trainer, monkeypatch, tmp_path):
    monkeypatch.setattr(Trainer, "_init_training_state", lambda self, *given: given)
    place = tmp_path / "checkpoint-6"
    place.mkdir()
    counts = {"tokens": 1, "supervised_tokens": 1, "window_nll": 1.0, "window_tokens": 1, "train_seconds": 1.0}
    write_json(place / "progress.json", counts)
    trainer._init_training_state(9, 3, 3, str(place), None)  # 6 steps, 2 epochs of 3
    with pytest.raises(UserError, match=r"^checkpoint-6 is 2 epochs into the run and would be 1.5 now, with 4 steps"):
        trainer._init_training_state(9, 4, 3, str(place), None)


def test_of_a_schedule_that_is_no_function_of_the_step_the_rates_stay_as_loaded(trainer, monkeypatch):
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
    optimizer = SGD([torch.zeros(1)], lr=0.8)
    for schedule in (StepLR(optimizer, 1), type("Own", (LambdaLR,), {})(optimizer, lambda step: 0.5)):
        trainer.lr_scheduler = schedule
        optimizer.param_groups[0]["lr"] = 0.3
        trainer._load_optimizer_and_scheduler("checkpoint")
        assert optimizer.param_groups[0]["lr"] == 0.3


# A run ---------------------------------------------------------------------------------------------------------------


def stopping(used):
    found = EarlyStoppingCallback(early_stopping_patience=2)
    found.early_stopping_patience_counter = used
    return found


@pytest.mark.parametrize(("callbacks", "goes_on"), [
    ([], True), ([object()], True), ([stopping(2), object()], False), ([object(), stopping(2)], False),
    ([stopping(1), object()], True), ([stopping(2), stopping(1)], False),
])  # fmt: skip
def test_a_run_goes_on_unless_one_of_its_callbacks_has_lost_patience(trainer, monkeypatch, callbacks, goes_on):
    epochs = []
    monkeypatch.setattr(Trainer, "_run_epoch", lambda self, **given: epochs.append(given))
    trainer.callback_handler = SimpleNamespace(callbacks=callbacks)
    trainer.control = SimpleNamespace(should_training_stop=False)
    trainer.at_step = SimpleNamespace(step=None, stopped=False)
    trainer._run_epoch(epoch=1)
    assert (epochs == [{"epoch": 1}]) is goes_on and trainer.control.should_training_stop is not goes_on
    assert trainer.at_step.stopped is False


@pytest.fixture
def ran(trainer, clock, monkeypatch):
    """Run `train_run` with a training that takes a second and logs `lines`: its summary, and what was asked for."""

    def run(*lines, signal=None, resume=False, newest=None, eval_on_start=True):
        asked = []
        trainer.args.eval_on_start = eval_on_start

        def train(resume_from_checkpoint):
            clock.now += 1
            trainer.state.log_history.extend(lines)

        def evaluate():
            asked.append("evaluate")
            trainer.state.log_history.append({"step": 6, "eval_loss": 7.0})

        def leave(*how):
            asked.append(how)
            raise SystemExit(143)

        trainer.train, trainer.evaluate = train, evaluate
        trainer.stop = SimpleNamespace(signal=signal, listen=lambda: None, leave=lambda: None, exit=leave)
        trainer.at_step = SimpleNamespace(stopped=False)
        monkeypatch.setattr(resumable.checkpoints, "newest", lambda folder: newest and folder / newest)
        monkeypatch.setattr(resumable.checkpoints, "set_damaged_aside", lambda *given: None)
        try:
            return trainer.train_run(resume), asked
        except SystemExit:
            return None, asked

    return run


def test_a_log_of_training_is_no_evaluation(ran):
    """Each of the last step: without an evaluation of it there is none of what was trained."""
    summary, asked = ran({"step": 3, "eval_loss": 9.0}, {"step": 6, "loss": 1.0})
    assert asked == ["evaluate"] and summary["final_validation_loss"] == 7.0
    assert json.dumps(summary["epochs"]) == "2.0"


@pytest.mark.parametrize(("loads", "best", "step", "loss"), [
    (True, "checkpoints/checkpoint-3", 3, 2.0), (True, None, 6, 5.0), (False, "checkpoints/checkpoint-3", 6, 5.0),
])  # fmt: skip
def test_the_loss_at_the_end_is_of_the_model_that_is_saved(ran, trainer, loads, best, step, loss):
    trainer.args.load_best_model_at_end, trainer.state.best_model_checkpoint = loads, best
    lines = [{"step": at, "eval_loss": found} for at, found in ((0, 1.0), (3, 2.0), (4, 3.0), (6, 5.0))]
    summary, asked = ran(*lines)
    assert (summary["saved_step"], summary["final_validation_loss"], summary["steps"]) == (step, loss, 6)
    assert asked == [] and summary["best_validation_loss"] == 2.0 and summary["first_validation_loss"] == 1.0


def test_what_was_evaluated_at_the_end_is_not_evaluated_again(ran):
    summary, asked = ran({"step": 6, "eval_loss": 3.0}, {"step": 6, "loss": 1.0})
    assert asked == [] and summary["final_validation_loss"] == 3.0


@pytest.mark.parametrize(("wanted", "newest", "first"), [(True, None, True), (False, None, False),
                                                         (True, "checkpoint-3", False)])  # fmt: skip
def test_a_run_is_evaluated_at_its_start_where_that_is_asked_for(ran, trainer, wanted, newest, first):
    ran({"step": 6, "eval_loss": 3.0}, resume=True, newest=newest, eval_on_start=wanted)
    assert trainer.args.eval_on_start is first


def test_a_signal_leaves_with_the_step_and_the_number_of_processes(ran):
    assert ran({"step": 6, "eval_loss": 3.0}, signal=15) == (None, [(6, 3, True)])

"""How a run begins, is saved, goes on and ends: what is done in which order, whatever it is that trains."""

import json
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import pytest
import torch
from transformers import ProgressCallback, Trainer
from trl import SFTTrainer

from finllm.errors import UserError
from finllm.training import resumable
from finllm.training.resumable import ResumableTrainer


def trainer(tmp_path, adapted=False, fsdp=False, deepspeed=False, first=True, saves=True):
    found = object.__new__(ResumableTrainer)
    found.done = []
    found.model = SimpleNamespace(peft_config={}) if adapted else SimpleNamespace()
    found.is_fsdp_enabled, found.is_deepspeed_enabled = fsdp, deepspeed
    found.is_world_process_zero = lambda: first
    found.accelerator = SimpleNamespace(
        wait_for_everyone=lambda: found.done.append("wait"), reduce=lambda tensor: tensor,
        unwrap_model=lambda model: ("bare", model),
    )  # fmt: skip
    found.args = SimpleNamespace(
        should_save=saves, save_total_limit=2, world_size=1, device=torch.device("cpu"), eval_on_start=True,
        load_best_model_at_end=False,
        per_device_train_batch_size=4, gradient_accumulation_steps=3,
    )  # fmt: skip
    let_go = lambda: found.done.append("let go")  # noqa: E731
    found.run = SimpleNamespace(path=tmp_path, checkpoints=tmp_path / "checkpoints", let_go=let_go)
    found._checkpoints = found.run.checkpoints
    found.tokens, found.supervised_tokens, found._window = 700, 50, {"nll": 2.5, "tokens": 4}
    found._since, found.train_seconds, found.evaluation_seconds = 0.0, 0.0, 0.0
    found._logged = {"time": 0.0, "tokens": 0}
    found.state = SimpleNamespace(
        global_step=6, best_global_step=4, best_model_checkpoint="old/checkpoint-4", epoch=1.5, max_steps=9,
        log_history=[], save_to_json=lambda path: Path(path).write_text("{}"),
    )  # fmt: skip
    return found


# Adapters ------------------------------------------------------------------------------------------------------------

KINDS = [({}, False), ({"adapted": True}, True), ({"adapted": True, "fsdp": True}, False),
         ({"adapted": True, "deepspeed": True}, False), ({"fsdp": True}, False)]  # fmt: skip


@pytest.mark.parametrize(("kind", "holds"), KINDS)
@pytest.mark.parametrize("kept", [True, False])
def test_an_adapters_tensors_come_back_as_its_method_saved_them(tmp_path, monkeypatch, kind, holds, kept):
    """Where this process has all of it, and the checkpoint does: the last one and the best one alike."""
    found, told = trainer(tmp_path, **kind), []
    monkeypatch.setattr(resumable.method_state, "load", lambda *given: told.append(("ours", *given)))
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", lambda self, *given: told.append(("theirs", *given)))
    monkeypatch.setattr(Trainer, "_load_best_model", lambda self: told.append("their best"))
    monkeypatch.setattr(resumable.checkpoints, "damage", lambda place: None)
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    if kept:
        (folder / resumable.method_state.FILE).write_text("")
    found.state.best_model_checkpoint = str(folder)
    found._load_from_checkpoint(str(folder))
    found._load_from_checkpoint(str(folder), "another")
    found._load_best_model()
    assert told == (
        [("ours", found.model, folder), ("ours", "another", folder), ("ours", found.model, folder)]
        if holds and kept
        else [("theirs", str(folder), None), ("theirs", str(folder), "another"), "their best"]
    )


# A checkpoint --------------------------------------------------------------------------------------------------------


@pytest.fixture
def saving(tmp_path, monkeypatch):
    """Save a checkpoint of step 6; what is written meanwhile is noted. `broken` is raised where transformers saves."""

    def save(found, broken=None, best=4):
        found.state.best_global_step = best
        folder = found.run.checkpoints

        def theirs(self, model, trial):
            found.done.append(("theirs", self._get_output_dir(trial), model, trial))
            if broken:
                raise broken
            work = Path(self._get_output_dir(trial)) / "checkpoint-6"
            if found.args.should_save:
                (work / "weights").write_text("weights")
                (work / "training_args.bin").write_text("a pickle")

        def note(name):
            return lambda *given: found.done.append((name, *given))

        monkeypatch.setattr(Trainer, "_save_checkpoint", theirs)
        monkeypatch.setattr(resumable.method_state, "save", note("method"))
        monkeypatch.setattr(resumable.checkpoints, "rotate", note("rotate"))
        monkeypatch.setattr(resumable, "time", SimpleNamespace(perf_counter=lambda: 30.0))
        try:
            found._save_checkpoint("model", "trial")
        finally:
            assert found._get_output_dir(None) == str(folder)
        return folder / "checkpoint-6"

    return save


@pytest.mark.parametrize(("kind", "holds"), KINDS)
def test_a_checkpoint_holds_all_that_an_exact_resume_needs(tmp_path, saving, kind, holds):
    found = trainer(tmp_path, **kind)
    (tmp_path / "checkpoints" / ".writing" / "checkpoint-5").mkdir(parents=True)  # what a kill left
    place = saving(found)
    folder = tmp_path / "checkpoints"
    work = folder / ".writing" / "checkpoint-6"
    method = [("method", ("bare", found.model), work)] if holds else []
    assert found.done == ["wait", ("theirs", str(folder / ".writing"), "model", "trial"), "wait", *method,
                          ("rotate", folder, 2, "old/checkpoint-4"), "wait"]  # fmt: skip
    assert sorted(path.name for path in place.iterdir()) == ["checksums.json", "progress.json", "trainer_state.json",
                                                             "weights"]  # fmt: skip
    progress = json.loads((place / "progress.json").read_text())
    assert progress == {"schema_version": 1, "tokens": 700, "supervised_tokens": 50, "window_nll": 2.5,
                        "window_tokens": 4, "train_seconds": 30.0}  # fmt: skip
    assert {key: type(value) for key, value in progress.items() if key.endswith("tokens")} == dict.fromkeys(
        ("tokens", "supervised_tokens", "window_tokens"), int
    )
    assert list(folder.iterdir()) == [place]


def test_the_best_checkpoint_is_named_by_where_it_will_be(tmp_path, saving):
    found = trainer(tmp_path)
    place = saving(found, best=6)
    assert found.state.best_model_checkpoint == str(place) and found.done[-2] == ("rotate", place.parent, 2, str(place))
    found = trainer(tmp_path)
    saving(found, best=4)
    assert found.state.best_model_checkpoint == "old/checkpoint-4"


def test_a_process_that_does_not_save_waits_for_the_one_that_does(tmp_path, saving):
    found = trainer(tmp_path, adapted=True, saves=False)
    saving(found)
    assert [name if name == "wait" else name[0] for name in found.done] == ["wait", "theirs", "wait", "wait"]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("broken", "kept"), [(OSError(28, "No space left"), True), (RuntimeError("inline"), False)])
def test_a_checkpoint_that_cannot_be_written_says_from_where_to_go_on(tmp_path, saving, broken, kept):
    found = trainer(tmp_path)
    if kept:
        for step in (2, 4):
            (tmp_path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    takes = "checkpoint-4, the last one written" if kept else "the run from its beginning"
    with pytest.raises(UserError, match=rf"checkpoint-6 could not be written: .*, which takes {takes}"):
        saving(found, broken)


# A run ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Run `train_run` with a training that takes 20 s and logs `lines`; its part of the summary, and what was done."""

    def run(resume=False, lines=(), newest=None, fails=None, signal=None, halted=False, first=True, evaluates=()):
        found, clock = trainer(tmp_path, first=first), SimpleNamespace(now=100.0)
        done = found.done

        def train(resume_from_checkpoint):
            begun = (found._since, found._logged["time"])
            done.append(("train", resume_from_checkpoint, found.args.eval_on_start, *begun))
            clock.now += 25
            found.evaluation_seconds += 5
            if fails:
                raise fails
            found.state.log_history += lines

        def evaluate():
            done.append("evaluate")
            clock.now += 50
            found.state.log_history += evaluates

        def leave(step, world, says):
            raise SystemExit(143)

        found.train, found.evaluate = train, evaluate
        found.stop = SimpleNamespace(signal=signal, listen=lambda: done.append("listen"),
                                     leave=lambda: done.append("leave"), exit=leave)  # fmt: skip
        found.at_step = SimpleNamespace(stopped=halted)
        monkeypatch.setattr(resumable, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        monkeypatch.setattr(resumable, "peak_memory_bytes", lambda: 77)
        monkeypatch.setattr(resumable.checkpoints, "newest", lambda folder: newest and folder / newest)
        monkeypatch.setattr(resumable.checkpoints, "set_damaged_aside", lambda *given: done.append(("aside", *given)))
        try:
            return found.train_run(resume), done
        finally:
            run.done = done

    return run


def evaluated(*losses):
    return [{"step": step, "eval_loss": loss} for step, loss in losses]


def test_a_run_from_its_beginning(ran, tmp_path):
    lines = [*evaluated((0, 9.0)), {"step": 3, "loss": 1.0}, *evaluated((3, 4.0), (6, 5.0))]
    summary, done = ran(lines=lines, newest="checkpoint-3")
    folder = tmp_path / "checkpoints"
    assert done == ["wait", ("aside", folder, None), "listen", ("train", None, True, 100.0, 100.0), "leave"]
    assert summary == {
        "train_seconds": 20.0, "tokens_per_second": 35.0, "peak_memory_bytes": 77, "steps": 6, "epochs": 1.5,
        "supervised_tokens": 50, "first_validation_loss": 9.0, "final_validation_loss": 5.0, "saved_step": 6,
        "best_validation_loss": 4.0,
    }  # fmt: skip


def test_a_run_that_goes_on(ran, tmp_path):
    newest = tmp_path / "checkpoints" / "checkpoint-3"
    summary, done = ran(resume=True, newest="checkpoint-3", lines=evaluated((3, 4.0)), evaluates=evaluated((6, 3.0)))
    assert done == ["wait", ("aside", newest.parent, newest), "listen", ("train", str(newest), False, 100.0, 100.0),
                    "leave", "evaluate"]  # fmt: skip
    assert summary["train_seconds"] == 20.0  # the evaluation at the end is not training
    assert [summary[f"{which}_validation_loss"] for which in ("first", "final", "best")] == [None, 3.0, 3.0]
    _, done = ran(resume=True, lines=evaluated((6, 3.0)), first=False)
    assert done == ["wait", "listen", ("train", None, True, 100.0, 100.0), "leave"]


def test_a_model_that_was_best_untrained_is_none_that_can_be_saved(ran):
    summary, _ = ran(lines=evaluated((0, 1.0), (6, 2.0)))
    assert (summary["first_validation_loss"], summary["best_validation_loss"]) == (1.0, 2.0)


@pytest.mark.parametrize(("fails", "said"), [
    (UnpicklingError("x"), "holds something other than numbers and was not read"),
    (torch.OutOfMemoryError("CUDA out of memory\nmore"), "out of memory in step 7: CUDA out of memory; halve per_"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 5"), r"step 7: .* \(now 4\) and double .* \(now 3\)"),
    (UserError("its own words"), "^its own words$"),
])  # fmt: skip
def test_what_ends_a_training_is_said_with_the_fix(ran, fails, said):
    with pytest.raises(UserError, match=said):
        ran(fails=fails)
    assert ran.done[-1] == "leave"
    with pytest.raises(RuntimeError, match=r"^another$"):
        ran(fails=RuntimeError("another"))


@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_was_halted_or_stopped_leaves_with_its_status(ran, capsys, first):
    with pytest.raises(SystemExit) as left:
        ran(halted=True, first=first)
    assert left.value.code == 0 and ran.done[-1] == "let go"
    assert ("is at step 6 of 9, as stop_at_step asked; --resume auto goes on" in capsys.readouterr().out) is first
    with pytest.raises(SystemExit) as left:
        ran(signal=15, halted=True)
    assert left.value.code == 143 and "let go" not in ran.done


# What it is made of --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quiet", [True, False])
def test_the_callbacks_of_a_run_in_their_order(tmp_path, monkeypatch, quiet):
    told = {"removed": [], "added": []}

    def init(self, callbacks, **given):
        told.update(callbacks=callbacks, given=given)
        self.args = SimpleNamespace(disable_tqdm=quiet)

    monkeypatch.setattr(SFTTrainer, "__init__", init)
    monkeypatch.setattr(SFTTrainer, "remove_callback", lambda self, each: told["removed"].append(each), raising=False)
    monkeypatch.setattr(SFTTrainer, "add_callback", lambda self, each: told["added"].append(each), raising=False)
    run = resumable.RunDir(tmp_path)
    found = ResumableTrainer(run=run, callbacks=["own"], stop_at_step=3, model="model")
    kinds = [each if each == "own" else type(each).__name__ for each in told["callbacks"]]
    assert kinds == ["MetricsWriter", "own", "StopAtStep", "StopOnSignal", "SaveAfterEpochsEnd"]
    assert told["given"] == {"model": "model"} and found.at_step.step == 3 and found.run is run
    assert told["removed"] == ([] if quiet else [ProgressCallback])
    assert told["added"] == ([] if quiet else [resumable.ProgressBar])
    assert (found.tokens, found.supervised_tokens, found._window) == (0, 0, {"nll": 0.0, "tokens": 0})
    assert (found.train_seconds, found.evaluation_seconds, found._logged["tokens"]) == (0.0, 0.0, 0)
    assert found._get_output_dir(None) == str(run.checkpoints)
    ResumableTrainer(run=run)
    assert [type(each).__name__ for each in told["callbacks"]] == [kind for kind in kinds if kind != "own"]

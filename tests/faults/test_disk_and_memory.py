"""A full disk, a folder that cannot be written, data that is gone, too little memory, a gradient that is no number."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from fine_runs import Fine, assert_same
from processes import Moment
from safetensors.torch import load_file, save_file

from finllm.errors import UserError
from finllm.training import checkpoints


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(fine):
    fine.killed("full")
    assert fine.train("full", "--resume", "auto", file_limit=300_000) == 2  # the optimizer's state is larger
    printed, folder = fine.printed("full"), fine.run("full").checkpoints
    assert "checkpoint-6 could not be written" in printed and "GiB are free there" in printed
    assert "--resume auto, which takes checkpoint-4, the last one written" in printed
    assert checkpoints.newest(folder).name == "checkpoint-4"
    assert_same(fine.resumed("full"), fine.whole())


def test_data_that_vanished_is_named_and_the_run_goes_on_when_it_is_back(fine, dataset_dir, tmp_path):
    copy, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(dataset_dir, copy)
    fine = Fine(fine.arguments[1], copy, tmp_path, fine.wholes)
    assert fine.train("run", moment=Moment("rename", 3, ".writing")) == -9
    copy.rename(away)
    assert fine.train("run", "--resume", "auto") == 2
    assert f"{copy}" in fine.printed("run") and "Traceback" not in fine.printed("run")
    away.rename(copy)
    assert_same(fine.resumed("run"), fine.whole())


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EROFS, "choose a folder on a disk that can be written to"), (errno.ENOSPC, "free some space")],
)
def test_a_folder_that_cannot_be_written_is_named(command, fine, tmp_path, monkeypatch, number, advice):
    replace = os.replace

    def refuse(source, target):
        if "config.yaml" in str(target):
            raise OSError(number, os.strerror(number), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    done = command("recipes/sft.py", *fine.command("run"))
    assert done.status == 2
    assert f"{tmp_path}/run/config.yaml cannot be written: {os.strerror(number)}" in done.err and advice in done.err
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_answered_with_the_same_training_in_less(command, fine, monkeypatch, error):
    from finllm.training.trainer import SupervisedTrainer

    def training_step(self, *arguments):
        raise error

    monkeypatch.setattr(SupervisedTrainer, "training_step", training_step)
    done = command("recipes/sft.py", *fine.command("run"))
    assert done.status == 2
    assert "out of memory in step 1" in done.err
    assert "halve per_device_train_batch_size (now 4) and double gradient_accumulation_steps (now 1)" in done.err


def test_a_gradient_that_is_no_number_is_not_applied(command, fine, monkeypatch):
    from transformers import Trainer

    clip = Trainer._clip_grad_norm

    def broken(self, model):
        norm = clip(self, model)
        return norm * float("inf") if self.state.global_step == 4 else norm

    monkeypatch.setattr(Trainer, "_clip_grad_norm", broken)
    done = command("recipes/sft.py", *fine.command("run"))
    assert done.status == 2
    assert "the gradient's norm is inf in step 5 and was not applied; lower learning_rate (now 0.001)" in done.err
    newest = checkpoints.newest(fine.run("run").checkpoints)
    assert newest.name == "checkpoint-4"
    assert all(weight.isfinite().all() for weight in load_file(newest / "model.safetensors").values())


def test_a_validation_loss_that_is_no_number_ends_the_training_and_says_why(command, fine):
    """The last step's weights are finite numbers, and so large that what they are multiplied with is not."""
    wild = ("--max_steps", 1, "--learning_rate", 1e12, "--warmup_steps", 0, "--lr_scheduler_type", "constant")
    done = command("recipes/sft.py", *fine.command("run"), *wild)
    assert done.status == 2
    said = r"the validation loss is no number after step 1, in \d+ of \d+ rows; lower learning_rate"
    assert re.search(said, done.err)
    assert not fine.run("run").complete and not fine.run("run").model.exists()


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({}, "there are no weights in it"),
        ({"h.lora_A.weight": torch.zeros(0, 4), "h.lora_B.weight": torch.zeros(4, 0)}, "there are no weights in it"),
        ({"h.lora_A.weight": torch.ones(2, 4), "h.lora_B.weight": torch.zeros(4, 2)}, "all lora_B are zero"),
        ({"wte": torch.tensor([1.0, float("nan")])}, "wte holds values that are no numbers"),
    ],
)
def test_weights_that_were_saved_wrongly_are_found(tmp_path, tensors, problem):
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=problem):
        checkpoints.check_weights(tmp_path)


def test_an_adapter_that_is_not_the_trained_one_is_found_when_it_is_saved(command, fine, monkeypatch):
    from finllm.training.trainer import SupervisedTrainer

    save_model = SupervisedTrainer.save_model

    def save_half(self, folder=None, **arguments):
        save_model(self, folder, **arguments)
        path = Path(folder) / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({name: tensor * (9 if "lora_B" in name else 1) for name, tensor in tensors.items()}, path)

    lora = ("--use_peft", "true", "--lora_target_modules", "all-linear", "--save_strategy", "no")
    done = command("recipes/sft.py", *fine.command("sound", *lora))
    assert done.status == 0, done.err
    monkeypatch.setattr(SupervisedTrainer, "save_model", save_half)
    done = command("recipes/sft.py", *fine.command("wrong", *lora))
    assert done.status == 2 and "is not the one that was trained: a validation row has" in done.err
    assert not fine.run("wrong").model.exists() and not fine.run("wrong").complete

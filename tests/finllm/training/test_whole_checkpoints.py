"""Checkpoints on the disk: which is the newest whole one, which are removed, and what is wrong with saved weights."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from finllm.errors import UserError
from finllm.training import checkpoints


def written(folder, step, text="weights"):
    work = folder / checkpoints.WRITING / f"checkpoint-{step}"
    (work / "sub").mkdir(parents=True)
    (work / "model").write_text(f"{text} {step}")
    (work / "sub" / "state").write_text("state")
    place = folder / f"checkpoint-{step}"
    checkpoints.seal(work, place)
    return place


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != checkpoints.WRITING)


def test_a_sealed_checkpoint_has_the_hash_of_every_file(tmp_path):
    place = written(tmp_path, 5)
    hashes = json.loads((place / "checksums.json").read_text())["sha256"]
    assert list(hashes) == ["model", "sub/state"] and len(set(hashes.values())) == 2
    assert checkpoints.damage(place) is None
    again = tmp_path / "again"
    again.mkdir()
    (again / "other").write_text("x")
    checkpoints.seal(again, place)  # in place of the one that was there
    assert sorted(path.name for path in place.iterdir()) == ["checksums.json", "other"] and not again.exists()


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, rename = [], os.rename
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
                        or fsync(descriptor))  # fmt: skip
    before = []
    monkeypatch.setattr(os, "rename", lambda work, place: before.extend(synced) or rename(work, place))
    place = written(tmp_path, 1)
    work = tmp_path / ".writing" / "checkpoint-1"
    assert {str(work), *(str(work / name) for name in ("model", "sub", "sub/state", "checksums.json"))} <= set(before)
    assert synced[-1] == str(place.parent)


@pytest.mark.parametrize("damaged", ["model", "sub/state"])
def test_what_is_wrong_with_a_checkpoint(tmp_path, damaged):
    place = written(tmp_path, 1)
    (place / damaged).write_text("other")
    assert checkpoints.damage(place) == f"{damaged} is not as it was written (its SHA-256 differs)"
    (place / damaged).unlink()
    assert checkpoints.damage(place) == f"{damaged} is missing"
    for text in ('{"schema_version": 1}', "{", "\udce9".encode("utf-8", "surrogateescape").decode("latin1")):
        (place / "checksums.json").write_text(text)
        assert "its checksums.json cannot be read" in checkpoints.damage(place)


def test_the_newest_whole_one(tmp_path, capsys):
    assert checkpoints.newest(tmp_path) is None
    places = {step: written(tmp_path, step) for step in (9, 10, 100)}
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "checkpoint-12x").mkdir()
    assert checkpoints.by_step(tmp_path) == [places[9], places[10], places[100]]
    assert checkpoints.newest(tmp_path) == places[100] and capsys.readouterr().err == ""
    (places[100] / "model").write_text("other")
    assert checkpoints.newest(tmp_path) == places[10]
    assert f"{places[100]} is damaged: model is not as it was written" in capsys.readouterr().err
    checkpoints.set_damaged_aside(tmp_path, None)
    checkpoints.set_damaged_aside(tmp_path, places[100])
    assert "checkpoint-100" in names(tmp_path)
    (tmp_path / "damaged-checkpoint-100" / "old").mkdir(parents=True)
    checkpoints.set_damaged_aside(tmp_path, places[10])
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-12x", "checkpoint-9", "checkpoint-final",
                               "damaged-checkpoint-100"]  # fmt: skip
    assert not (tmp_path / "damaged-checkpoint-100" / "old").exists()
    for place in (places[9], places[10]):
        (place / "model").unlink()
    with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* is whole; remove the folder"):
        checkpoints.newest(tmp_path)


@pytest.mark.parametrize(("limit", "best", "kept"), [
    (None, None, [1, 2, 3, 4]), (1, None, [4]), (2, None, [3, 4]), (2, "x/checkpoint-1", [1, 4]),
    (1, "checkpoint-2", [2, 4]), (3, "checkpoint-4", [2, 3, 4]), (9, None, [1, 2, 3, 4]),
    (3, "checkpoint-1", [1, 3, 4]),
])  # fmt: skip
def test_the_oldest_go_and_never_the_newest_or_the_best(tmp_path, limit, best, kept):
    for step in (1, 2, 3, 4):
        written(tmp_path, step)
    checkpoints.rotate(tmp_path, limit, best)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


def saved(folder, **tensors):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    for name, each in tensors.items():
        save_file({name.replace("__", "."): each}, folder / f"{name}.safetensors")
    checkpoints.check_weights(folder)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_saved_weights_are_numbers_and_some(tmp_path, wrong):
    good = torch.tensor([1.0, -2.0])
    saved(tmp_path, a=good, b=torch.tensor([1, 2]), c=torch.zeros(2), d=torch.zeros(0))
    with pytest.raises(UserError, match="b holds values that are no numbers"):
        saved(tmp_path, a=good, b=torch.tensor([1.0, wrong]))
    for nothing in ({}, {"a": torch.zeros(0)}):
        with pytest.raises(UserError, match="there are no weights in it"):
            saved(tmp_path, **nothing)


def test_an_adapters_second_matrices_have_left_zero(tmp_path):
    with pytest.raises(UserError, match="all lora_B are zero, as before training"):
        saved(tmp_path, x__lora_A=torch.ones(2), x__lora_B=torch.zeros(2), y__lora_B=torch.zeros(2))
    saved(tmp_path, x__lora_A=torch.ones(2), x__lora_B=torch.zeros(2), y__lora_B=torch.tensor([0.0, 1e-9]))

"""Checkpoints and saved weights whichever file, tensor or checkpoint is the odd one: the first, the last, the only."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file

from finllm.errors import UserError
from finllm.training import checkpoints
from finllm.training.checkpoints import check_weights, newest, seal


def sealed(folder, step):
    work = folder / "work"
    work.mkdir()
    (work / "model").write_text(f"weights {step}")
    seal(work, folder / f"checkpoint-{step}")
    return folder / f"checkpoint-{step}"


def test_hashes_are_of_every_file_but_their_own_in_the_order_of_names(tmp_path):
    work, place = tmp_path / "work", tmp_path / "checkpoint-1"
    (work / "b").mkdir(parents=True)
    for name in ("c", "b/x", "a", "checksums.json"):  # the last from a checkpoint that this one was copied from
        (work / name).write_text(name)
    seal(work, place)
    assert list(json.loads((place / "checksums.json").read_text())["sha256"]) == ["a", "b/x", "c"]
    assert checkpoints.damage(place) is None


def test_the_oldest_is_the_last_resort(tmp_path):
    places = [sealed(tmp_path, step) for step in (2, 10)]
    (places[1] / "model").unlink()
    assert newest(tmp_path) == places[0]
    checkpoints.set_damaged_aside(tmp_path, places[0])
    assert newest(tmp_path) == places[0] and checkpoints.by_step(tmp_path) == places[:1]


def weights(folder, *files):
    """Files named in this order, each of these tensors."""
    folder.mkdir(exist_ok=True)
    for number, tensors in enumerate(files):
        save_file({name: torch.tensor(values) for name, values in tensors.items()}, folder / f"{number}.safetensors")
    return folder


NAN, ZEROS = [1.0, torch.nan], [0.0, 0.0]


@pytest.mark.parametrize("files", [
    [{"a": [1.0]}, {"b": []}], [{"a": []}, {"b": [1.0]}], [{"a": [], "b": [0.0], "c": []}], [{"a": [True]}],
    [{"x.lora_B": [0.0, 1.0]}, {"y.lora_B": ZEROS}], [{"x.lora_B": ZEROS}, {"y.lora_B": [0.0, 1.0]}],
    [{"a.lora_A": ZEROS, "b.bias": ZEROS}],
])  # fmt: skip
def test_weights_are_fine_whichever_of_them_is_not_empty_or_zero(tmp_path, files):
    check_weights(weights(tmp_path, *files))


@pytest.mark.parametrize(("files", "said"), [
    ([{"a": NAN}, {"b": [1.0]}], "a holds values that are no numbers"),
    ([{"a": [1.0]}, {"b": NAN}], "b holds values that are no numbers"),
    ([{"a": NAN, "b": [1.0], "c": NAN}], "a holds values that are no numbers; c holds values that are no numbers"),
    ([{"a.lora_B": ZEROS}, {"b.lora_A": [1.0]}], "all lora_B are zero, as before training"),
    ([{"a.lora_A": [1.0]}, {"b.lora_B": ZEROS}], "all lora_B are zero, as before training"),
    ([{"a": [], "b": []}], "there are no weights in it"), ([], "there are no weights in it"),
    ([{"a.lora_A": NAN, "b.lora_B": ZEROS}], "a.lora_A holds values that are no numbers; all lora_B are zero, as "
                                             "before training"),
])  # fmt: skip
def test_weights_are_wrong_whichever_of_them_is(tmp_path, files, said):
    with pytest.raises(UserError) as refused:
        check_weights(weights(tmp_path, *files))
    count = said.count(";") + 1
    problems = f"{count} problem{'s' if count > 1 else ''} in the weights just saved to {tmp_path}"
    assert str(refused.value) == f"{problems}; its checkpoints are kept: {said}"


def test_what_is_wrong_is_told_in_the_order_of_the_files(tmp_path):
    """Not in that of the folder on the disk."""
    order = [f"{number:02}" for number in range(30)]
    for name in random.Random(0).sample(order, len(order)):
        save_file({name: torch.tensor(NAN)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError) as refused:
        check_weights(tmp_path)
    told = str(refused.value).split("kept: ")[1].split("; ")
    assert [each.split()[0] for each in told] == order

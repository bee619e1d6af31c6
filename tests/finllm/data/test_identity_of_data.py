"""What identifies data is computed from the data: a manifest that says otherwise is not believed, by any command."""

import hashlib
import json
import shutil

import pytest
from evaluated_runs import leaderboard, make_run

from finllm.data.dataset_dir import DatasetDir
from finllm.files import read_jsonl, write_jsonl


@pytest.fixture
def altered(dataset_dir, tmp_path):
    """A copy whose test answers are others; the split's own hash is put right, that of the whole is left as it was."""
    place = tmp_path / "altered"
    shutil.copytree(dataset_dir, place)
    write_jsonl(place / "test.jsonl", [{**row, "output": "Nobody knows."} for row in read_jsonl(place / "test.jsonl")])
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["splits"]["test"]["sha256"] = hashlib.sha256((place / "test.jsonl").read_bytes()).hexdigest()
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def test_a_manifest_whose_hash_is_not_that_of_its_splits_is_refused_by_every_command(
    command, gpt2_dir, altered, dataset_dir, tmp_path
):
    model = ("--model_name_or_path", gpt2_dir, "--output_dir", tmp_path / "out")
    for script, arguments in (
        ("eval/run.py", (*model, "--dataset_name", altered)),
        ("recipes/sft.py", (*model, "--dataset_name", altered, "--max_steps", 1)),
        ("baselines/scratch/train.py", ("--dataset_name", altered, "--output_dir", tmp_path / "out")),
    ):
        done = command(script, *arguments)
        assert done.status == 2 and "prepare the dataset anew" in done.err, done.err
        assert f"names the dataset {DatasetDir(dataset_dir).hash[:16]}" in done.err and not (tmp_path / "out").exists()


def test_a_hash_that_was_made_up_for_sound_splits_is_refused(dataset_dir, tmp_path):
    place = tmp_path / "data"
    shutil.copytree(dataset_dir, place)
    manifest = json.loads((place / "manifest.json").read_text())
    for sha256 in ("0" * 64, None, 7):
        (place / "manifest.json").write_text(json.dumps({**manifest, "sha256": sha256}))
        with pytest.raises(ValueError, match="names the dataset"):
            DatasetDir(place)


@pytest.mark.parametrize("splits", [{}, [], {"train": "x", "validation": {}, "test": None}])
def test_a_manifest_without_hashes_of_its_splits_is_refused_in_one_line(dataset_dir, tmp_path, splits):
    place = tmp_path / "data"
    shutil.copytree(dataset_dir, place)
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, "splits": splits}))
    with pytest.raises(ValueError, match=r"train\.jsonl was changed .*validation\.jsonl was .*test\.jsonl was"):
        DatasetDir(place)


@pytest.mark.parametrize("key", ["instruction", "input", "reference"])
def test_runs_whose_examples_have_one_id_and_other_texts_are_not_compared(tmp_path, key):
    """As results of an altered dataset from another machine look, which name the true one's hash."""
    runs = [make_run(tmp_path / "a", 1.0), make_run(tmp_path / "b", 1.0)]
    rows = read_jsonl(runs[1] / "eval" / "predictions.jsonl")
    write_jsonl(runs[1] / "eval" / "predictions.jsonl", [{**rows[0], key: "Another text!!!!!!!!"}, *rows[1:]])
    done = leaderboard(*runs, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and "in 1 examples of the same id" in done.stderr
    assert not (tmp_path / "out").exists()

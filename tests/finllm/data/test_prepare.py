"""Preparing: the dataset dir as it lies on disk, what is left alone, what is replaced and what is refused."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finllm.data import build as build_module
from finllm.data import prepare as prepare_module
from finllm.data.dataset_dir import DatasetDir
from finllm.data.prepare import prepare, resolve
from finllm.errors import UserError
from finllm.text.prompts import TEMPLATE_HASH

FILES = ["changed.jsonl", "manifest.json", "rejected.jsonl", "test.jsonl", "train.jsonl", "validation.jsonl"]


def all_rows(dataset):
    return [row for split in ("train", "validation", "test") for row in dataset.rows(split)]


def state(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def test_dataset_dir_on_disk(dataset, source):
    assert sorted(path.name for path in dataset.path.iterdir()) == FILES
    manifest = json.loads((dataset.path / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest) == [
        *("schema_version", "source", "template", "split", "asked", "rules", "columns", "files", "left_alone"),
        *("left_out", "bad_rows", "cleaning", "examples", "splits", "rejected", "sha256"),
    ]
    assert manifest["schema_version"] == 1
    assert manifest["source"]["name"] == str(source) and manifest["source"]["rows"] == 203
    assert manifest["template"] == {"id": "alpaca", "hash": TEMPLATE_HASH}
    assert manifest["columns"] == {"instruction": "instruction", "input": "input", "output": "output"}
    assert manifest["split"] == {
        "seed": 42,
        "validation_fraction": 0.05,
        "test_fraction": 0.05,
        "cluster_near_duplicates": False,
    }
    columns = {"instruction": "instruction", "input": "input", "output": "output"}
    assert manifest["files"] == [
        {"file": "rows.jsonl", "rows": 203, "split": None, "form": "Alpaca", "columns": columns}
    ]
    assert {"step": "unicode", "enabled": True, "changed": 201, "dropped": 0} in manifest["cleaning"]
    assert {"step": "empty_output", "enabled": True, "changed": 0, "dropped": 1} in manifest["cleaning"]
    assert {"step": "duplicates", "enabled": True, "changed": 0, "dropped": 1} in manifest["cleaning"]
    assert manifest["rejected"] == 2
    assert sum(split["rows"] for split in manifest["splits"].values()) == 201
    assert sum(split["questions"] for split in manifest["splits"].values()) == 200
    assert dataset.hash == manifest["sha256"]


def test_rows_of_the_splits(dataset):
    rows = all_rows(dataset)
    assert all(list(row) == ["id", "question_id", "instruction", "input", "output"] for row in rows)
    assert len({row["id"] for row in rows}) == 201 and all(len(row["id"]) == 16 for row in rows)
    both = [row for row in rows if row["instruction"].lower().startswith("what is fund number 0")]
    assert len(both) == 2 and len({row["question_id"] for row in both}) == 1
    questions = [{row["question_id"] for row in dataset.rows(split)} for split in ("train", "validation", "test")]
    assert not questions[0] & questions[1] and not questions[0] & questions[2] and not questions[1] & questions[2]


def test_rejected_rows_name_their_place(dataset, make_rows):
    rejected = [json.loads(line) for line in (dataset.path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rejected == [
        {
            "row": {"instruction": "An empty one", "input": "", "output": "<nooutput>"},
            "file": "rows.jsonl",
            "line": 4,
            "reason": "empty_output",
        },
        {"row": make_rows(1)[0], "file": "rows.jsonl", "line": 202, "reason": "duplicates"},
    ]


def test_datasets_reads_three_splits(dataset, tmp_path):
    import datasets

    loaded = datasets.load_dataset(str(dataset.path), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {
        name: split["rows"] for name, split in dataset.manifest["splits"].items()
    }
    assert loaded["test"].to_list() == dataset.split("test").to_list() == dataset.rows("test")


def test_new_rows_move_no_old_question(dataset, source, tmp_path, make_rows, write):
    write(source, [*make_rows(400, start=1000), *map(json.loads, source.read_text(encoding="utf-8").splitlines())])
    larger = prepare(source, tmp_path / "larger")
    for split in ("train", "validation", "test"):
        assert {row["id"] for row in dataset.rows(split)} <= {row["id"] for row in larger.rows(split)}
    assert larger.hash != dataset.hash


def test_kept_duplicates_have_ids_of_their_own(source, tmp_path):
    dataset = prepare(source, tmp_path / "dataset", skip_cleaning=["duplicates"])
    ids = [row["id"] for row in all_rows(dataset)]
    assert len(set(ids)) == len(ids) == 202
    (second,) = (row_id for row_id in ids if len(row_id) != 16)
    assert second.endswith("-2") and second[:16] in ids


def test_same_source_and_settings_leave_the_files_alone(dataset, source, capsys):
    before = state(dataset.path)
    again = prepare(source, dataset.path)
    assert state(dataset.path) == before and again.hash == dataset.hash
    assert "already holds this dataset (same source, same settings): left as it is" in capsys.readouterr().out


def test_preparing_twice_gives_the_same_bytes(dataset, source, tmp_path):
    second = prepare(source, tmp_path / "second")
    for name in FILES:
        assert (second.path / name).read_bytes() == (dataset.path / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"seed": 7}, "split"),
        ({"skip_cleaning": ["echo"]}, "cleaning"),
        ({"columns": {"instruction": "output", "input": "input", "output": "instruction"}}, "columns"),
    ],
)
def test_another_dataset_is_replaced_with_overwrite_only(dataset, source, settings, difference):
    before = state(dataset.path)
    with pytest.raises(UserError, match=rf"holds another dataset \(different {difference}\); pass --overwrite"):
        prepare(source, dataset.path, **settings)
    assert state(dataset.path) == before
    replaced = prepare(source, dataset.path, **settings, overwrite=True)
    assert replaced.manifest != dataset.manifest
    assert sorted(path.name for path in dataset.path.iterdir()) == FILES
    assert [path.name for path in dataset.path.parent.iterdir() if path.name.startswith(".")] == []


def test_changed_source_is_another_dataset(dataset, source, make_rows, write):
    write(source, make_rows(300))
    with pytest.raises(UserError, match="different source"):
        prepare(source, dataset.path)


def test_folders_that_are_no_dataset_are_never_touched(source, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no dataset; take another --output_dir"):
            prepare(source, folder, overwrite=overwrite)
        with pytest.raises(UserError, match="is a file"):
            prepare(source, source, overwrite=overwrite)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_overwrite_keeps_what_is_not_of_the_dataset(dataset, source):
    (dataset.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds notes\.txt, which --overwrite would remove"):
        prepare(source, dataset.path, seed=1, overwrite=True)
    (dataset.path / "notes.txt").unlink()
    with pytest.raises(UserError, match=r"lies inside .* which --overwrite would remove"):
        prepare(dataset.path / "train.jsonl", dataset.path, overwrite=True)
    assert DatasetDir(dataset.path).hash == dataset.hash


def test_an_empty_folder_is_taken(source, tmp_path):
    (tmp_path / "empty").mkdir()
    assert prepare(source, tmp_path / "empty").manifest["rejected"] == 2


def test_damaged_dataset_dirs_are_seen_and_can_be_replaced(dataset, source):
    path = dataset.path / "test.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("fund", "bond"), encoding="utf-8")
    for read in (dataset.rows, dataset.split):
        with pytest.raises(UserError, match="was changed after it was prepared"):
            read("test")
    assert dataset.rows("train")
    with pytest.raises(UserError, match=r"was changed .* \(--overwrite replaces it\)"):
        prepare(source, dataset.path)
    assert prepare(source, dataset.path, overwrite=True).rows("test")
    path.unlink()
    with pytest.raises(UserError, match=r"test\.jsonl is missing"):
        DatasetDir(dataset.path)
    assert prepare(source, dataset.path, overwrite=True).hash == dataset.hash


def test_dataset_dir_refuses_what_it_is_not(dataset, tmp_path):
    with pytest.raises(
        UserError, match=r"is not a dataset dir: it has no manifest\.json; make one with finllm prepare"
    ):
        DatasetDir(tmp_path)
    with pytest.raises(UserError, match=r"no split 'tset' \(did you mean 'test'\?\)"):
        dataset.rows("tset")
    (dataset.path / "manifest.json").write_text('{"schema_version": 1, "source": {}}')
    with pytest.raises(UserError, match=r"manifest\.json has no 'splits'"):
        DatasetDir(dataset.path)
    (dataset.path / "manifest.json").write_text('{"schema_version": 9}')
    with pytest.raises(UserError, match="schema_version 9"):
        DatasetDir(dataset.path)


def test_a_dataset_dir_needs_no_preparing(dataset, tmp_path):
    with pytest.raises(UserError, match="is a dataset dir already"):
        prepare(dataset.path, tmp_path / "other")


def test_nothing_is_left_of_a_failure(source, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(build_module, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(source, tmp_path / "dataset")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_failed_overwrite_leaves_the_old_one(dataset, source, monkeypatch):
    before, replace = state(dataset.path), os.replace

    def fail_for_the_new_one(old, new):
        if Path(new) == dataset.path and not str(old).endswith(".old"):
            raise OSError("no")
        replace(old, new)

    monkeypatch.setattr(prepare_module.os, "replace", fail_for_the_new_one)
    with pytest.raises(OSError, match="no"):
        prepare(source, dataset.path, seed=1, overwrite=True)
    assert state(dataset.path) == before
    assert sorted(path.name for path in dataset.path.parent.iterdir()) == ["dataset", "rows.jsonl"]


def test_empty_results_say_why(tmp_path, make_rows, write):
    bad = write(
        tmp_path / "bad.jsonl", [{"instruction": "q", "output": ""}] * 2 + [{"instruction": "q", "output": "q"}]
    )
    with pytest.raises(UserError, match=r"cleaning dropped all 3 rows \(empty_output 2, echo 1\); see --skip_cleaning"):
        prepare(bad, tmp_path / "dataset")
    few = write(tmp_path / "few.jsonl", make_rows(3))
    assert [split["rows"] for split in prepare(few, tmp_path / "few").manifest["splits"].values()] == [1, 1, 1]
    write(few, make_rows(2))
    with pytest.raises(
        UserError, match=r"would be empty: 2 distinct questions with validation_fraction 0\.05"
    ) as raised:
        prepare(few, tmp_path / "dataset")
    assert "3 or more are needed" in str(raised.value) and str(raised.value).endswith("add rows")
    with pytest.raises(UserError, match=r"none\.jsonl holds no rows"):
        prepare(write(tmp_path / "none.jsonl", []), tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


# resolve


def test_resolve_opens_a_dataset_dir(dataset, tmp_path):
    assert resolve(dataset.path, tmp_path / "cache").path == dataset.path
    assert not (tmp_path / "cache").exists()


def test_resolve_prepares_once(dataset, source, tmp_path, capsys, make_rows, write):
    first = resolve(source, tmp_path / "cache")
    assert first.path.parent == tmp_path / "cache" and first.hash == dataset.hash
    assert first.path.name.startswith("rows-") and len(first.path.name) == len("rows-") + 16
    before = state(first.path)
    assert resolve(source, tmp_path / "cache").path == first.path and state(first.path) == before
    assert capsys.readouterr().err.count("was prepared into") == 1
    write(source, make_rows(300))
    assert resolve(source, tmp_path / "cache").path != first.path


def test_resolve_by_several_at_once(source, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: resolve(source, tmp_path / "cache"), range(8)))
    assert len({dataset.hash for dataset in found}) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found[0].path.name]
    found[0].check()


def test_resolve_knows_sample(tmp_path):
    dataset = resolve("sample", tmp_path)
    assert dataset.path.name.startswith("sample-") and dataset.manifest["source"]["name"] == "sample"

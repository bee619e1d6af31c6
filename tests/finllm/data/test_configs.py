"""Configs of a hub dataset and of its clone: chosen, never mixed, and their splits kept."""

import itertools

import datasets
import pytest

from finllm.data.dataset_dir import DatasetDir
from finllm.data.rows import read_rows
from finllm.data.sources import find_source
from finllm.data.split import SPLITS
from finllm.errors import UserError

CARD = """---
license: mit
configs:
- config_name: headlines
  data_files:
  - split: train
    path: "headlines/part-*.jsonl"
  - {split: test, path: held_out.jsonl}
- config_name: questions
  data_dir: questions
---
# Both
"""


@pytest.fixture
def clone(tmp_path, make_rows, write):
    folder = tmp_path / "clone"
    for below in ("headlines", "questions"):
        (folder / below).mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    write(folder / "headlines/part-1.jsonl", make_rows(20))
    write(folder / "headlines/part-2.jsonl", make_rows(10, 20))
    write(folder / "held_out.jsonl", make_rows(5, 30))
    write(folder / "questions/all.jsonl", make_rows(12, 100))
    return folder


def numbers(folder):
    rows = {split: DatasetDir(folder).rows(split) for split in SPLITS}
    return {split: sorted(int(row["instruction"].split()[-1][:-1]) for row in held) for split, held in rows.items()}


def test_a_config_is_chosen_and_has_its_own_splits(clone, tmp_path, finllm_prepare):
    status, out, err = finllm_prepare(clone, "--output_dir", tmp_path / "a", "--dataset_config", "headlines")
    assert status == 0, err
    held = numbers(tmp_path / "a")
    assert held["test"] == [*range(30, 35)] and sorted(held["train"] + held["validation"]) == [*range(30)]
    assert "config: headlines, of headlines, questions" in out and "not of the config 'headlines'" in out
    manifest = DatasetDir(tmp_path / "a").manifest
    assert manifest["source"]["config"] == "headlines" and manifest["asked"]["dataset_config"] == "headlines"
    status, out, err = finllm_prepare(clone, "--output_dir", tmp_path / "b", "--dataset_config", "questions")
    assert status == 0 and sorted(itertools.chain(*numbers(tmp_path / "b").values())) == [*range(100, 112)], err


def test_of_several_configs_one_must_be_chosen(clone, tmp_path, finllm_prepare):
    status, _, err = finllm_prepare(clone, "--output_dir", tmp_path / "a")
    assert status == 2 and "has 2 configs, which are not read together (headlines, questions)" in err
    assert "--dataset_config headlines" in err and not (tmp_path / "a").exists()
    status, _, err = finllm_prepare(clone, "--output_dir", tmp_path / "a", "--dataset_config", "question")
    assert status == 2 and "no config 'question' (did you mean 'questions'?); it has headlines, questions" in err
    file = clone / "held_out.jsonl"
    status, _, err = finllm_prepare(file, "--output_dir", tmp_path / "a", "--dataset_config", "x")
    assert status == 2 and "has no configs" in err


@pytest.mark.parametrize("said", ["only", "default: true", "default"])
def test_the_only_config_and_the_default_are_taken_and_told(said, clone, tmp_path, finllm_prepare):
    card = CARD.replace("- config_name: questions\n  data_dir: questions\n", "") if said == "only" else CARD.replace(
        "- config_name: headlines", "- config_name: headlines\n  default: true" if said == "default: true"
        else "- config_name: default")  # fmt: skip
    (clone / "README.md").write_text(card)
    status, out, err = finllm_prepare(clone, "--output_dir", tmp_path / "a")
    assert status == 0, err
    assert numbers(tmp_path / "a")["test"] == [*range(30, 35)] and "config: " in out
    (clone / "README.md").write_text(card.replace("split: test", "split: validation"))
    status, out, err = finllm_prepare(clone, "--output_dir", tmp_path / "a")
    assert status == 2 and "holds another dataset (different source)" in err  # the card says what is read


@pytest.mark.parametrize(("card", "said"), [
    ("---\nconfigs: [\n---\n", "its header is not YAML"),
    ("---\nconfigs: all\n---\n", "no list of which each item has a config_name"),
    ("---\nconfigs:\n- {config_name: a, data_files: none.jsonl}\n---\n", "files of the config 'a' are not there"),
    ("---\nconfigs:\n- {config_name: a, data_files: ../b.jsonl}\n---\n", "lies outside the folder"),
    ("---\nconfigs:\n- {config_name: a, data_files: 'https://a.b/c.jsonl'}\n---\n", "which is not here"),
])  # fmt: skip
def test_a_card_that_names_nothing_readable_is_refused(card, said, clone, write, make_rows):
    write(clone.parent / "b.jsonl", make_rows(3))
    (clone / "README.md").write_text(card)
    with pytest.raises(UserError, match=said):
        find_source(clone)


@pytest.mark.parametrize("card", ["No header.\n", "---\nlicense: mit\n---\n", "---\n# a line\n", ""])
def test_a_card_without_configs_changes_nothing(card, clone):
    (clone / "README.md").write_text(card)
    assert len(list(read_rows(find_source(clone)))) == 47


def test_the_hub_is_asked_for_the_config(monkeypatch, make_rows):
    splits = {"train": datasets.Dataset.from_list(make_rows(3))}
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *name: asked.append(name) or datasets.DatasetDict(splits))
    assert len(list(read_rows(find_source("owner/name", config="b")))) == 3 and asked == [("owner/name", "b")]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_: (_ for _ in ()).throw(ValueError("Config name is missing"))
    )
    with pytest.raises(UserError, match=r"Config name is missing.*--dataset_config"):
        list(read_rows(find_source("owner/name")))

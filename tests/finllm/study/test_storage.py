"""Where a study keeps what it found: in a journal of its own, or in a database that holds other studies as well."""

import shutil

import pytest

from finllm.errors import UserError
from finllm.study.search import Job
from finllm.study.storage import Storage, Task, check_storage

TASK = Task("full", Job(-14, 20), 42)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'studies.db'}"


def trained(folder, url, loss):
    """A study dir in which one training ended with this loss."""
    folder.mkdir(parents=True)
    storage = Storage(folder, url)
    storage.end(TASK, storage.begin(TASK), loss, None, 1.0, 0)
    return folder


def losses(folder, url=None):
    return {task: end.loss for task, end in Storage(folder, url).outcomes("full").items()}


def test_studies_of_one_name_in_one_database_know_nothing_of_each_other(tmp_path, url):
    mine, yours = (trained(tmp_path / who / "study", url, loss) for who, loss in (("me", 2.0), ("you", 3.0)))
    assert (losses(mine, url), losses(yours, url)) == ({TASK: 2.0}, {TASK: 3.0})


def test_a_study_dir_that_was_removed_and_is_begun_anew_finds_nothing_of_the_old_one(tmp_path, url):
    shutil.rmtree(trained(tmp_path / "study", url, 2.0))
    (tmp_path / "study").mkdir()
    assert losses(tmp_path / "study", url) == {}


@pytest.mark.parametrize("in_database", [False, True])
def test_a_study_dir_that_was_moved_keeps_what_it_found(tmp_path, url, in_database):
    url = url if in_database else None
    trained(tmp_path / "study", url, 2.0).rename(tmp_path / "study_of_may")
    assert losses(tmp_path / "study_of_may", url) == {TASK: 2.0}


def test_two_machines_at_one_study_dir_share_what_they_find(tmp_path, url):
    here = trained(tmp_path / "study", url, 2.0)
    (tmp_path / "mounted elsewhere").symlink_to(here)
    assert losses(tmp_path / "mounted elsewhere", url) == {TASK: 2.0}


def test_a_study_goes_on_where_it_keeps_what_it_found_and_nowhere_else(tmp_path, url):
    """Another storage is empty: all would be trained once more, and nobody would be told."""
    journal, database = trained(tmp_path / "a", None, 2.0), trained(tmp_path / "b", url, 2.0)
    check_storage(journal, None)
    check_storage(database, url)
    with pytest.raises(UserError, match=r"/a keeps what it found in .*/a/trials\.journal; leave --storage out"):
        check_storage(journal, url)
    with pytest.raises(UserError, match=r"/b keeps what it found in a database; pass its --storage URL"):
        check_storage(database, None)


@pytest.mark.parametrize("wrong", [
    "nonsense", "postgres1://me:secret@host/name", "sqlite:////no/such/folder/study.db", "mysql+none://x:secret@y",
    "postgresql://me:secret@localhost:1/x", "mysql://me:secret@localhost:1/x",
])  # fmt: skip
def test_a_database_that_cannot_be_opened_is_told_without_its_password(tmp_path, wrong):
    with pytest.raises(
        UserError, match=r"^--storage cannot be opened: .+; it is the URL of a database whose"
    ) as caught:
        check_storage(tmp_path / "study", wrong)
    assert "secret" not in str(caught.value) and not (tmp_path / "study").exists()

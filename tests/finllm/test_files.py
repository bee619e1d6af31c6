"""Files are whole or absent, and what is read is what was written."""

import contextlib
import os
import signal
import stat

import pytest

from finllm.errors import UserError
from finllm.files import atomic_open, locked, read_json, read_jsonl, sha256_of_files, write_json, write_jsonl


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"value": 1})
    with pytest.raises(RuntimeError), atomic_open(path) as file:
        file.write("half")
        raise RuntimeError("the disk is full")
    assert read_json(path) == {"schema_version": 1, "value": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert read_json(path)["value"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_written_files_can_be_read_by_others_as_far_as_the_umask_lets_them(tmp_path, monkeypatch):
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "file.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 2}', "has schema_version 2, this version of finllm reads 1"),
        ('{"value": 1}', "has schema_version None"),
        ("[1]", "has schema_version None"),
        ('{\n"a": }', "line 2: not JSON"),
    ],
)
def test_a_json_that_is_not_ours_is_refused(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "file.json")


def test_missing_files_and_broken_lines_are_named(tmp_path):
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path / "missing")
    write_jsonl(tmp_path / "rows.jsonl", [{"a": "é"}, {"a": "\u2028"}])
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": "é"}, {"a": "\u2028"}]
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: not JSON"):
        read_jsonl(tmp_path / "rows.jsonl")


def test_the_hash_of_files_follows_names_and_bytes(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    whole = sha256_of_files([a, b])
    assert whole == sha256_of_files([b, a])
    b.write_text("3")
    assert sha256_of_files([a, b]) != whole


@contextlib.contextmanager
def a_child_that_has_not_begun_its_program():
    """What a process that another thread starts is between fork and exec: it has a copy of every open file."""
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_is_free_once_it_is_let_go_of_although_a_child_has_a_copy_of_its_file(tmp_path):
    with contextlib.ExitStack() as stack:
        with locked(tmp_path / "lock"):
            stack.enter_context(a_child_that_has_not_begun_its_program())
            with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
                pass
        with locked(tmp_path / "lock", wait=False):
            pass


def test_a_task_that_was_let_go_of_can_be_begun_again_although_a_child_has_a_copy_of_its_claim(tmp_path):
    from finllm.study.storage import Claim

    claim = Claim(tmp_path / "full-0.0001-seed1")
    with a_child_that_has_not_begun_its_program():
        claim.let_go()
        Claim(tmp_path / "full-0.0001-seed1").let_go()

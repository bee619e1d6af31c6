"""Whether the machine is shared decides how long threads wait for each other."""

import os
import subprocess
import sys

import pytest

from finllm import threads

ROUNDS = "import finllm, os; print(os.environ['GOMP_SPINCOUNT'])"


@pytest.mark.parametrize(
    ("said", "cores", "shared"),
    [
        ("0.00 0.01 0.00 1/300 77", 2, False), ("2.00 1.00 1.00 1/300 77", 2, False),  # what ran before does not count
        ("0.10 0.10 0.10 2/300 77", 2, True), ("0.10 0.10 0.10 4/300 77", 8, False),
        ("0.10 0.10 0.10 5/300 77", 8, True), ("", 2, True), (None, 2, True),
    ],
)  # fmt: skip
def test_a_machine_is_shared_where_others_compute_on_half_of_it(said, cores, shared, tmp_path, monkeypatch):
    place = tmp_path / "loadavg"
    if said is not None:
        place.write_text(said)
    monkeypatch.setattr(threads, "Path", lambda path: place)
    monkeypatch.setattr(threads, "cores", lambda: cores)
    assert threads.is_shared() is shared


def test_who_runs_for_a_moment_shares_nothing(monkeypatch):
    """A spinner, or the shell that started this: seen at one look and not at the next."""
    found = iter([3, 1, 0, 2, 2])
    monkeypatch.setattr(threads, "_others_running", lambda: next(found))
    monkeypatch.setattr(threads, "cores", lambda: 2)
    assert not threads.is_shared() and next(found, None) is None


def test_the_users_own_word_stays():
    environment = {**os.environ, "GOMP_SPINCOUNT": "7"}
    done = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "7"
    del environment["GOMP_SPINCOUNT"]
    done = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() in ("1000", "10000")


@pytest.mark.parametrize(
    ("cores", "processes", "each"), [(2, 2, "1"), (8, 3, "2"), (2, 5, "1"), (8, 1, None), (8, 0, None)]
)
def test_processes_side_by_side_have_equal_parts_of_the_cores(cores, processes, each, monkeypatch):
    monkeypatch.delenv(threads.NUMBER, raising=False)
    monkeypatch.setattr(threads, "cores", lambda: cores)
    with pytest.raises(ZeroDivisionError), threads.shared_by(processes):
        assert os.environ.get(threads.NUMBER) == each
        raise ZeroDivisionError
    assert threads.NUMBER not in os.environ
    monkeypatch.setenv(threads.NUMBER, "7")
    with threads.shared_by(processes):
        assert os.environ[threads.NUMBER] == "7"
    assert os.environ[threads.NUMBER] == "7"

"""Several processes that share an evaluation: each does its part once, all get all of it, and what is kept is kept.

The processes are threads here, with accelerate's words between them, so that each one's part can be seen.
"""

import contextlib
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import sharing
from eval.models.language_model import Generation, Score
from eval.sharing import Kept, hash_of_sources, work_shared
from finllm.errors import UserError

ORDER = [5, 0, 3, 1, 4, 2, 6]


def scored(batch):
    return [Score(float(index), index, 10 * index) for index in batch]


@pytest.fixture
def together(monkeypatch, tmp_path):
    """Run `part(rank)` in so many threads that share like processes; what each returned."""

    def call(count, part):
        own, barrier, told = threading.local(), threading.Barrier(count), [None] * count

        def exchange(value):
            told[own.rank] = value
            barrier.wait()
            every = list(told)
            barrier.wait()
            return every

        def broadcast(values):
            values[:] = exchange(list(values))[0]
            return values

        monkeypatch.setattr(sharing, "processes", lambda: SimpleNamespace(
            process_index=own.rank, num_processes=count, is_main_process=own.rank == 0))  # fmt: skip
        monkeypatch.setattr(sharing, "gather_object", lambda new: [each for part in exchange(new) for each in part])
        monkeypatch.setattr(sharing, "broadcast_object_list", broadcast)
        found, errors = [None] * count, []

        def run(rank):
            own.rank = rank
            try:
                found[rank] = part(rank)
            except BaseException as error:
                errors.append(error)
                barrier.abort()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((each for each in errors if not isinstance(each, threading.BrokenBarrierError)), errors[0])
        return found

    return call


def evaluate(tmp_path, done, fails=(), stage="score", work=scored, **depends_on):
    def part(rank):
        kept = Kept(tmp_path, **(depends_on or {"model": 1}))

        def counted(batch):
            if rank in fails and any(call[0] == rank for call in done):
                raise KeyboardInterrupt
            done.append((rank, tuple(batch)))
            return work(batch)

        return work_shared("m: scoring", stage, ORDER, 2, counted, kept), kept

    return part


@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_are_dealt_in_turn_and_all_get_all_of_it_in_order(together, tmp_path, count):
    done = []
    found = together(count, evaluate(tmp_path, done))
    batches = [(5, 0), (3, 1), (4, 2), (6,)]
    assert sorted(done) == sorted((number % count, batch) for number, batch in enumerate(batches))
    for (results, seconds), _ in found:
        assert list(results.items()) == list(enumerate(scored(range(7)))) and seconds > 0
    lines = [json.loads(line) for path in sorted(tmp_path.rglob("*.jsonl")) for line in path.open()]
    assert sorted(tuple(line["indices"]) for line in lines) == sorted(batches)
    assert sorted(path.name for path in tmp_path.rglob("*.jsonl")) == [f"{rank}.jsonl" for rank in range(count)]
    assert all(line["stage"] == "score" and len(line["found"]) == len(line["indices"]) for line in lines)
    found[0][1].remove()
    found[-1][1].remove()
    assert list(tmp_path.iterdir()) == []


def test_what_was_done_before_a_kill_is_not_done_again_by_however_many(together, tmp_path, capsys):
    done = []
    with pytest.raises(KeyboardInterrupt):
        together(1, evaluate(tmp_path, done, fails=(0,)))
    (file,) = tmp_path.rglob("*.jsonl")
    line = json.loads(file.read_text())
    file.write_text(json.dumps(line | {"seconds": 1000.0}) + "\n" + '{"stage": "score", "indices": [3, 1], "fou')
    again = []
    found = together(2, evaluate(tmp_path, again))
    assert "m: scoring: 2 of 7 were done before this evaluation was stopped" in capsys.readouterr().out
    assert sorted(batch for _, batch in again) == [(3, 1), (4, 2), (6,)]
    assert {rank for rank, _ in again} == {0, 1}
    for (results, seconds), _ in found:
        assert list(results.items()) == list(enumerate(scored(range(7)))) and 1000 < seconds < 1100
    assert sorted(path.name for path in tmp_path.rglob("*.jsonl")) == ["0.jsonl", "1.jsonl", "before.jsonl"]
    last = []
    together(1, evaluate(tmp_path, last))
    assert last == [] and [path.name for path in tmp_path.rglob("*.jsonl")] == ["before.jsonl"]


def test_what_was_kept_of_another_evaluation_or_of_other_code_is_removed(together, tmp_path, monkeypatch):
    together(1, evaluate(tmp_path, [], model=1, texts=[1, 2]))
    same, other, code = [], [], []
    together(1, evaluate(tmp_path, same, texts=[1, 2], model=1))
    assert same == []
    together(1, evaluate(tmp_path, other, model=1, texts=[1, 3]))
    assert len(other) == 4 and len(list(tmp_path.glob(".partial/*"))) == 1
    monkeypatch.setattr(sharing, "hash_of_sources", lambda: "other")
    together(1, evaluate(tmp_path, code, model=1, texts=[1, 3]))
    assert len(code) == 4


def test_stages_are_kept_apart(together, tmp_path):
    def answered(batch):
        return [Generation(f"answer {index}", index, index % 2 == 0) for index in batch]

    first, second, third = [], [], []
    together(1, evaluate(tmp_path, first))
    together(1, evaluate(tmp_path, second, stage="answer", work=answered))
    ((results, _), _) = together(1, evaluate(tmp_path, third, stage="answer", work=answered))[0]
    assert len(second) == 4 and third == []
    assert results == {index: Generation(f"answer {index}", index, index % 2 == 0) for index in range(7)}


def test_as_many_results_as_examples(together, tmp_path):
    with pytest.raises(UserError, match="m: scoring: the model gave 1 results for 2 examples"):
        together(1, evaluate(tmp_path, [], work=lambda batch: scored(batch)[:1]))


def test_the_hash_of_the_code_is_of_every_file_of_it(tmp_path, monkeypatch):
    for name in ("finllm/a.py", "eval/sub/b.py", "baselines/c.py", "finllm/d.txt", "tests/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(sharing, "__file__", str(tmp_path / "eval" / "sharing.py"))

    def hashed():
        hash_of_sources.cache_clear()
        return hash_of_sources()

    before = hashed()
    for name, counts in (
        ("finllm/a.py", 1),
        ("eval/sub/b.py", 1),
        ("baselines/c.py", 1),
        ("finllm/d.txt", 0),
        ("tests/e.py", 0),
    ):
        (tmp_path / name).write_text("2")
        assert (hashed() != before) == bool(counts), name
        (tmp_path / name).write_text("1")
        assert hashed() == before
    listed = Path.rglob
    (tmp_path / "eval/b.py").write_text("3")
    both = hashed()
    for order in (sorted, lambda paths: sorted(paths, reverse=True)):  # whatever the disk says first
        monkeypatch.setattr(Path, "rglob", lambda path, what, order=order: order(listed(path, what)))
        assert hashed() == both
    (tmp_path / "finllm/a.py").rename(tmp_path / "finllm/z.py")
    assert hashed() != both
    (tmp_path / "finllm/z.py").write_text(".py1")
    of_name_and_content = hashed()
    (tmp_path / "finllm/z.py").rename(tmp_path / "finllm/z.py.py").write_text("1")
    assert hashed() != of_name_and_content  # where a name ends is told from what follows
    monkeypatch.undo()
    hash_of_sources.cache_clear()


def test_without_an_accelerator_processes_meet_on_cpus(monkeypatch):
    monkeypatch.setattr(sharing, "PartialState", lambda **how: how)
    for available in (False, True):
        monkeypatch.setattr(sharing.torch.cuda, "is_available", lambda available=available: available)
        assert sharing.processes() == {"cpu": not available}


def kept_lines(tmp_path):
    return {path.name: path.read_text().splitlines() for path in tmp_path.rglob("*.jsonl")}


@pytest.mark.parametrize("reverse", [False, True])
def test_what_several_kept_is_moved_into_one_file_whole_and_once(together, tmp_path, monkeypatch, reverse):
    """Whichever of the files the disk names first."""
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, what: sorted(listed(path, what), reverse=reverse))
    together(3, evaluate(tmp_path, []))
    before = kept_lines(tmp_path)
    assert {name: len(lines) for name, lines in before.items()} == {"0.jsonl": 2, "1.jsonl": 1, "2.jsonl": 1}
    again = []
    for _ in range(2):
        together(2, evaluate(tmp_path, again))
        (lines,) = kept_lines(tmp_path).values()
        assert sorted(lines) == sorted(line for each in before.values() for line in each) and again == []
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == ["before.jsonl"]


def test_a_line_that_was_cut_short_takes_none_of_those_after_it_along(together, tmp_path):
    together(1, evaluate(tmp_path, []))
    (file,) = tmp_path.rglob("*.jsonl")
    first, *others = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first[:20] + b"\n" + b"".join(others))
    again = []
    together(1, evaluate(tmp_path, again))
    assert again == [(0, (5, 0))]


def test_the_first_process_alone_looks_at_what_was_kept_and_tells(together, tmp_path, monkeypatch, capsys):
    gathered, looked, bars = sharing._gathered, [], []
    monkeypatch.setattr(sharing, "_gathered", lambda *given: looked.append(given) or gathered(*given))

    @contextlib.contextmanager
    def progress(disable):
        bars.append(disable)
        yield SimpleNamespace(track=lambda batches, description: batches)

    monkeypatch.setattr(sharing, "progress", progress)
    together(3, evaluate(tmp_path, []))
    assert len(looked) == 1 and sorted(bars) == [False, True, True] and capsys.readouterr().out == ""
    together(3, evaluate(tmp_path, []))
    assert len(looked) == 2
    assert capsys.readouterr().out.count("7 of 7 were done before this evaluation was stopped") == 1


@pytest.mark.parametrize("count", [1, 2])
def test_seconds_are_of_all_processes_and_of_before(together, tmp_path, monkeypatch, count):
    """A batch takes as many seconds as its first index, and each process's clock stands still but for its work."""
    clocks = threading.local()

    def seconds():
        clocks.now = getattr(clocks, "now", 1000.0)
        return clocks.now

    def work(batch):
        clocks.now = seconds() + batch[0]
        return scored(batch)

    monkeypatch.setattr(sharing, "time", SimpleNamespace(perf_counter=seconds))
    took = [seconds for (_, seconds), _ in together(count, evaluate(tmp_path, [], work=work))]
    assert took == ([5 + 3 + 4 + 6] if count == 1 else [5 + 4, 3 + 6])
    lines = [json.loads(line) for each in kept_lines(tmp_path).values() for line in each]
    assert {line["indices"][0]: line["seconds"] for line in lines} == {first: first / count for first in (5, 3, 4, 6)}
    again = [seconds for (_, seconds), _ in together(count, evaluate(tmp_path, [], work=work))]
    assert again == [(5 + 3 + 4 + 6) / count] * count

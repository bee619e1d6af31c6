"""A process that is forked does what one does that is started from nothing, and ends with whoever started it."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import PRELOADED

from finllm.study.starting import Forking, from_nothing

SCRIPT = """
import os, sys, time
import beside
print(beside.NAME, os.getcwd(), sys.argv[1:], __name__, os.getsid(0) == os.getpid(), flush=True)
print("to stderr", file=sys.stderr)
os.write(2, b"by its number ")
print(sorted(set(sys.argv[1:]) & set(sys.modules)))
if "wait" in sys.argv:
    open("waiting", "w").write(str(os.getpid()))
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "beside.py").write_text("NAME = 'a module of its folder'\n")
    (folder / "script.py").write_text(SCRIPT)
    return folder / "script.py"


def ended(process) -> int:
    while (status := process.poll()) is None:
        time.sleep(0.01)
    return status


@pytest.mark.parametrize("start", [from_nothing, Forking((PRELOADED,))], ids=["from nothing", "forked"])
def test_it_is_a_process_of_its_own_with_its_words_in_a_file(start, script, tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    assert ended(start(script, ["7", "x y"], tmp_path, log, None)) == 7
    said = log.read_text()
    assert said.startswith("before\n")
    assert f"a module of its folder {tmp_path} ['7', 'x y'] __main__ True" in said
    assert "to stderr" in said and "by its number" in said
    assert ended(start(script, ["0"], tmp_path, log, None)) == 0
    broken = script.with_name("broken.py")
    broken.write_text("raise ValueError('what went wrong')\n")
    assert ended(start(broken, [], tmp_path, log, None)) == 1
    assert log.read_text().rstrip().endswith("ValueError: what went wrong")
    process = start(script, ["0", "wait"], tmp_path, log, None)
    while not (tmp_path / "waiting").exists():
        time.sleep(0.01)
    process.terminate()
    assert ended(process) == -signal.SIGTERM


def test_workers_that_start_and_ask_at_the_same_time_are_each_told_of_their_own(script, tmp_path):
    start = Forking((PRELOADED,))
    quick = script.with_name("quick.py")
    quick.write_text("import sys; sys.exit(int(sys.argv[1]))")

    def work(number: int) -> list[int]:
        found = []
        for _ in range(6):
            process = start(quick, [str(number)], tmp_path, tmp_path / f"log{number}", None)
            while (status := process.poll()) is None:
                pass  # as often as it can
            found.append(status)
        return found

    with ThreadPoolExecutor(4) as workers:
        assert list(workers.map(work, range(4))) == [[number] * 6 for number in range(4)]


def test_with_a_gpu_each_is_started_from_nothing_and_sees_its_own(tmp_path):
    script = tmp_path / "seen.py"
    script.write_text("import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.getppid())")
    assert ended(Forking((PRELOADED,))(script, [], tmp_path, tmp_path / "log", 3)) == 0
    assert (tmp_path / "log").read_text().split() == ["3", str(os.getpid())]


STARTER = """
import sys, time
from pathlib import Path
from finllm.study.starting import Forking, from_nothing
if __name__ == "__main__":
    start = {"forked": Forking(()), "from nothing": from_nothing}[sys.argv[2]]
    process = start(Path(sys.argv[1]), ["0", "wait"], Path(sys.argv[3]), Path(sys.argv[3]) / "log", None)
    while process.poll() is None:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("way", ["forked", "from nothing"])
def test_it_ends_with_a_starter_that_is_killed(way, script, tmp_path):
    starter = tmp_path / "starter.py"
    starter.write_text(STARTER)
    process = subprocess.Popen([sys.executable, str(starter), str(script), way, str(tmp_path)])
    while not (tmp_path / "waiting").exists() or not (tmp_path / "waiting").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    child = int((tmp_path / "waiting").read_text())
    process.kill()
    process.wait()
    for _ in range(1000):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{child}/stat").exists() and " Z " in Path(f"/proc/{child}/stat").read_text():
            break  # ended, and its new parent has not asked yet
        time.sleep(0.01)
    else:
        pytest.fail("the process outlived who started it")

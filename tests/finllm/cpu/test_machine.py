"""What finllm does to the process it runs in."""

import ctypes
import json
import sys

import pytest
from accelerate.commands.launch import launch_command_parser

from finllm.cpu import machine
from finllm.errors import UserError

FAULTS = """
import json, resource, sys
import finllm, torch
from finllm.cpu import machine

kept = machine.keep_freed_memory() if sys.argv[1] == "keep" else None
def step():
    a = torch.ones(20, 2**20)  # 80 MiB
    return a.add(1).mul_(2).sum()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(json.dumps({"kept": kept, "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}))
"""

SHAPES = """
import ctypes, finllm, torch

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

heap = ctypes.CDLL(None).mallinfo2
heap.restype = Info
weight = torch.ones(64, 64, dtype=torch.bfloat16)
def products(begin, end):
    for rows in range(begin, end):
        torch.ones(rows, 64, dtype=torch.bfloat16) @ weight
products(1, 120)
before = heap().uordblks
products(120, 420)
print(heap().uordblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's mallinfo2 counts what is in use")
def test_products_of_new_shapes_do_not_fill_memory(shell, monkeypatch):
    caches = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in caches:
        monkeypatch.delenv(name, raising=False)
    ours = int(shell("python", "-c", SHAPES).out)
    for name in caches:
        monkeypatch.setenv(name, "1024")  # torch's own; what the user has set stays
    if int(shell("python", "-c", SHAPES).out) < 20 * 2**20:
        pytest.skip("this machine's bfloat16 products keep nothing for each shape")
    assert ours < 2**20


def test_freed_memory_is_used_again_without_page_faults(shell):
    default = json.loads(shell("python", "-c", FAULTS, "default").out)
    kept = json.loads(shell("python", "-c", FAULTS, "keep").out)
    if not kept["kept"]:
        assert default["kept"] is None  # another allocator than glibc's: nothing is promised
        return
    assert default["faults"] > 100_000  # 5 steps of 160 MiB in pages of 4 KiB
    assert kept["faults"] < default["faults"] / 20


def test_one_process_on_several_gpus_is_told_the_command_for_all(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    command = ["recipes/sft.py", "--config", "my run.yaml"]
    said = r"--multi_gpu --num_processes 4 recipes/sft.py --config 'my run.yaml'; for one .* CUDA_VISIBLE_DEVICES=0"
    with pytest.raises(UserError, match=said):
        machine.use_all_gpus(1, command)
    machine.use_all_gpus(4, command)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    machine.use_all_gpus(1, command)


def test_accelerates_one_process_starts_again_on_all_gpus(monkeypatch):
    started = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setattr("os.execv", lambda program, arguments: started.append(arguments) or sys.exit(0))
    with pytest.raises(SystemExit):
        machine.use_all_gpus(1, ["recipes/sft.py", "--config", "my run.yaml"])
    (command,) = started
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    arguments = launch_command_parser().parse_args(command[3:])
    assert (arguments.multi_gpu, arguments.num_processes) == (True, 4)
    assert (arguments.training_script, arguments.training_script_args) == (
        "recipes/sft.py",
        ["--config", "my run.yaml"],
    )
    machine.use_all_gpus(4, ["recipes/sft.py"])  # as which it then finds itself

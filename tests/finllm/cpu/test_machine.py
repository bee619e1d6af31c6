"""What finllm does to the process it runs in."""

import ctypes
import json
import resource
import sys
from types import SimpleNamespace

import pytest
from accelerate.commands.launch import launch_command_parser

from finllm.cpu import machine
from finllm.errors import UserError

FAULTS = """
import ctypes, json, resource, statistics, sys
import finllm, torch
from finllm.cpu import machine

# Without large pages, so that a fault is one page of the size that the system names, on every kernel.
PR_SET_THP_DISABLE = 41  # from linux/prctl.h
if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
kept = machine.keep_freed_memory() if sys.argv[1] == "keep" else None
def step():
    a = torch.ones(10, 2**20)  # 40 MiB, more than the largest buffer that glibc ever keeps by itself
    return a.add(1).mul_(2).sum()
for _ in range(15):  # the heap grows for some steps, until every buffer finds room in it
    step()
faults = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# The median: what other threads hold at the time can have the heap grow by one buffer more in any one step.
print(json.dumps({"kept": kept, "faults": statistics.median(faults)}))
"""
FAULTS_OF_A_STEP = 80 * 2**20 // resource.getpagesize()  # two buffers of 40 MiB

KEPT_SHAPES = 64  # as finllm/__init__.py sets it
NEW_SHAPES = 600
SHAPES = f"""
import ctypes, json, random
import finllm, torch

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

heap = ctypes.CDLL(None).mallinfo2
heap.restype = Info
weight = torch.ones(64, 64)
half, filters = weight.bfloat16(), weight[:, :, None, None].contiguous()
# A bfloat16 product goes through oneDNN's caches where the processor has instructions for it. A convolution of float32,
# of 1 x 1 the same product, goes through the same two caches on processors that have not.
products = {{
    "bfloat16": lambda rows: torch.ones(rows, 64, dtype=torch.bfloat16) @ half,
    "float32": lambda rows: torch.nn.functional.conv2d(torch.ones(rows, 64, 1, 1), filters),
}}
# In no order: the first shapes, which fill the caches, are as large as the later ones that take their places.
shapes = list(range(20, 20 + 2 * {KEPT_SHAPES} + {NEW_SHAPES}))
random.Random(0).shuffle(shapes)
grown = {{}}
for name, product in products.items():
    for rows in shapes[: 2 * {KEPT_SHAPES}]:
        product(rows)
    before = heap().uordblks
    for rows in shapes[2 * {KEPT_SHAPES} :]:
        product(rows)
    grown[name] = heap().uordblks - before
print(json.dumps(grown))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's mallinfo2 counts what is in use")
def test_products_of_new_shapes_do_not_fill_memory(shell, monkeypatch):
    """Held against torch's own 1,024 places, which keep every shape: what a shape costs differs between processors."""
    caches = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in caches:
        monkeypatch.delenv(name, raising=False)
    ours = json.loads(shell("python", "-c", SHAPES).out)
    for name in caches:
        monkeypatch.setenv(name, "1024")  # torch's own; what the user has set stays
    default = json.loads(shell("python", "-c", SHAPES).out)
    kept = [name for name, grown in default.items() if grown > NEW_SHAPES * 2**10]  # a primitive is some KiB or more
    assert kept  # of some processors the float32 one, of others the bfloat16 one
    for name in kept:  # what 64 places hold can change by what 64 shapes cost, of which the larger cost up to twice
        assert ours[name] < 2 * KEPT_SHAPES / NEW_SHAPES * default[name], (name, ours, default)


def test_freed_memory_is_used_again_without_page_faults(shell):
    default = json.loads(shell("python", "-c", FAULTS, "default").out)
    kept = json.loads(shell("python", "-c", FAULTS, "keep").out)
    if not kept["kept"]:
        assert default["kept"] is None  # another allocator than glibc's: nothing is promised
        return
    assert default["faults"] > FAULTS_OF_A_STEP / 2
    assert kept["faults"] < default["faults"] / 20


BALLOON, DISK, REPORTS = "0x0005", "0x0002", "0110010110000000"


@pytest.mark.parametrize(("devices", "gives"), [
    ([], False),
    ([(DISK, REPORTS)], False),  # feature 5 of another device means something else
    ([(BALLOON, REPORTS.replace("001011", "000011"))], False),  # a balloon that reports nothing
    ([(DISK, "0" * 16), (BALLOON, REPORTS)], True),
])  # fmt: skip
def test_large_pages_are_asked_for_unless_a_host_would_have_to_hand_them_over(tmp_path, monkeypatch, devices, gives):
    for number, (kind, features) in enumerate(devices):
        folder = tmp_path / f"virtio{number}"
        folder.mkdir()
        (folder / "device").write_text(f"{kind}\n")
        (folder / "features").write_text(f"{features}\n")
    monkeypatch.setattr(machine, "VIRTIO", tmp_path)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda name, value: 1))
    asked = []
    monkeypatch.setattr(machine, "_ask_for_large_pages", asked.append)
    assert machine.keep_freed_memory()
    assert asked == ([] if gives else [machine.memory_bytes() // 2])


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

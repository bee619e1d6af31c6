"""The machine a process runs on: its cores, its memory, its arithmetic."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import resource
import shlex
import sys
import time
from pathlib import Path

import psutil
import torch

from finllm.cpu import processor
from finllm.errors import UserError
from finllm.terminal import say
from finllm.text.credentials import without_credentials_of_flags
from finllm.threads import cores

# glibc's mallopt parameters, from malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
LAUNCHED = "ACCELERATE_USE_CPU"  # a variable that `accelerate launch` sets, whatever its value
LARGE_PAGE = 2 * 2**20
VIRTIO = Path("/sys/bus/virtio/devices")


def uses_gpu() -> bool:
    """Whether this process computes on a GPU: there is one, and `use_cpu` has not kept it from using it."""
    if not torch.cuda.is_available():
        return False
    from accelerate import PartialState

    return not PartialState._shared_state or PartialState().device.type == "cuda"


def use_all_cores() -> None:
    """Give a CPU's cores to this machine's processes in equal parts.

    `accelerate launch` starts a process on a CPU with one thread unless it is told otherwise, and half a machine of two
    cores would idle. Started without it, torch has counted the cores itself and OMP_NUM_THREADS is the user's word.
    """
    if LAUNCHED in os.environ and os.environ.get("OMP_NUM_THREADS") == "1" and not uses_gpu():
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def keep_freed_memory() -> bool:
    """Keep glibc from giving large buffers back to the kernel; whether the platform's allocator could be told so.

    By default every buffer above 32 MiB is mapped when allocated and unmapped when freed, so a training step on a CPU
    spends its time on page faults: the kernel must hand over zeroed pages again for each activation and gradient. Kept,
    they are used again, and half of the machine's memory is reserved, as addresses, in pages of 2 MiB where the kernel
    has them and no host has to hand them over first, so that what is new costs fewer faults. The process holds its peak
    until it ends. Call it before torch allocates; buffers that live now stay as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc: macOS, Windows, musl
        return False
    # One arena: backward runs in a thread of its own, and an arena of its own could not hold large buffers.
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 256 * 2**20, M_ARENA_MAX: 1}
    kept = all([mallopt(name, value) == 1 for name, value in settings.items()])
    if kept and not _gives_memory_back_to_a_host():
        _ask_for_large_pages(memory_bytes() // 2)
    return kept


def _gives_memory_back_to_a_host() -> bool:
    """Whether this is a virtual machine that reports its free memory to its host (virtio's balloon, feature 5).

    The host takes it back in blocks of 2 MiB. A page of that size then has to come from the host again, in small pages
    of the host's own, at 2 s a GiB where it was measured; small ones are mostly there still, at 0.4 to 0.8 s a GiB.
    """
    for device in VIRTIO.glob("*"):
        balloon = (device / "device").read_text().strip() == "0x0005"
        if balloon and (device / "features").read_text()[5] == "1":
            return True
    return False


def _ask_for_large_pages(size: int) -> None:
    """Ask for the heap's next `size` bytes in pages of 2 MiB. They are addresses only, until something is stored.

    A kernel without such pages, or a limit on addresses, leaves the heap as it is: slower, and otherwise the same.
    """
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = library.malloc(size)  # the heap grows by it, and keeps it when it is freed
    if not block:
        return
    begin = -(-block // LARGE_PAGE) * LARGE_PAGE
    library.madvise(begin, (block + size - begin) // LARGE_PAGE * LARGE_PAGE, mmap.MADV_HUGEPAGE)
    library.free(block)


def attend_at_any_length() -> None:
    """Let a GPU's attention be any but cuDNN's, which torch prefers on a Hopper and a data centre's Blackwell.

    It builds a graph for every shape that it has not seen, and batches of rows seldom have the same length twice: on an
    H100 steps of 30 layers took 0.14 s while all rows had one length, and 0.33 s and more where each batch had its own.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def give_back_freed_memory() -> None:
    """Give glibc's free memory back to the kernel now, so that what is allocated next is seen in resident memory."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def use_all_gpus(processes: int, command: list[str]) -> None:
    """Where one process sees several GPUs: start again on all of them if `accelerate launch` started it, else refuse.

    accelerate's YAML wants a number of processes and cannot say "as many as there are", so accelerate_config.yaml says
    one. One process for several GPUs is never right: transformers would split its batches over them by DataParallel,
    where a batch has n times the rows that the config says.
    """
    gpus = torch.cuda.device_count()
    if processes > 1 or gpus < 2:
        return
    arguments = ["--multi_gpu", "--num_processes", str(gpus), *command]
    if LAUNCHED in os.environ:
        say(f"{gpus} GPUs are here: starting a process for each", flush=True)
        os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *arguments])
    raise UserError(
        f"this machine has {gpus} GPUs and this is one process; for all of them run: accelerate launch "
        f"{shlex.join(without_credentials_of_flags(arguments))}; for one of them set CUDA_VISIBLE_DEVICES=0"
    )


def bf16_is_fast(gpu: bool = True) -> bool:
    """Whether this machine multiplies bfloat16 faster than float32: a GPU that can, or a CPU with AMX or AVX512-BF16.

    Without `gpu` its GPUs do not count.

    A CPU without these instructions emulates them some hundred times slower.
    """
    if gpu and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = processor.multiplies_bf16()
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() if known is None else known


def peak_memory_bytes() -> int:
    """The most memory this process has held: of the GPU where one is used, else resident memory."""
    if uses_gpu():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Let `recent_peak_bytes` begin anew, where the system can: a GPU, and Linux from 4.0 on."""
    if uses_gpu():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def recent_peak_bytes() -> int:
    """The most memory since `forget_peak`, or since the process began where there is no such thing."""
    if uses_gpu():
        return peak_memory_bytes()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    return peak_memory_bytes()


def memory_bytes() -> int:
    """The memory that this process may fill: the machine's, or less where a container limits it."""
    total = psutil.virtual_memory().total
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file; "max"
            total = min(total, int(Path(limit).read_text()))
    return total


def memory_to_train_in() -> int:
    """The memory that a training here may fill: the GPU's where one is used, else this process's."""
    return torch.cuda.get_device_properties().total_memory if uses_gpu() else memory_bytes()


def gpu_name() -> str | None:
    """The name of the GPU that this process computes on, None where it computes on a CPU."""
    return torch.cuda.get_device_name() if uses_gpu() else None


def name() -> str:
    """What computes here: the GPU's name where one is used, else the processor's and its instructions."""
    return gpu_name() or processor.name()


def now() -> float:
    """A clock's seconds, once all that a GPU was asked for is done."""
    if uses_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_product_rate(dtype: torch.dtype = torch.float32, seconds: float = 0.5) -> float:
    """Floating-point operations a second that square products reach: 2 · size³ each, the best of some."""
    device, size = ("cuda", 8192) if uses_gpu() else ("cpu", 1024)
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    best, end = float("inf"), now() + seconds
    while now() < end or best == float("inf"):
        start = now()
        left @ right
        best = min(best, now() - start)
    return 2 * size**3 / best

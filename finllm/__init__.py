"""Fine-tune small language models on financial instructions, and believe the result."""

import logging
import os

from finllm import deferred, threads

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other, which is well on an idle machine and ruins a shared one, where
# torch's usual 300,000 rounds left a chain of small products 4 % of its idle rate. On 2 cores with AMX a step of GPT-2
# under LoRA learns 911 tokens a second with 10,000 rounds and 729 with 1,000, after which a thread sleeps and has to be
# woken; with something else on one of the cores some 400 and 503. So it is as the machine is now. It is read when torch
# loads libgomp, so finllm is imported before torch; what the user has set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "1000" if threads.is_shared() else "10000")

# A CPU's products are prepared anew for every shape, and batches of real rows hardly ever repeat one. What was prepared
# is kept, 1,024 of them by oneDNN and as many again by the layer that torch has above it: some 550 MB of small blocks
# strewn over the heap, between which no large buffer fits, so that LoRA of GPT-2 went from 1.6 to 3.2 GiB in 200 steps.
# 64 are kept: 32 slow a step of GPT-2 under LoRA, and 128 gain nothing. Both are read at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

# TRL reports every training run to the hub, and the hub's library asks it for a list of programs first, also where all
# that is trained on lies on this machine. The hub's library reads this when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# peft imports bitsandbytes wherever it is installed, and on a CPU with bfloat16 that warns that a kernel of the package
# `kernels` is missing. It would have no use for one: finllm.models.base keeps 4-bit weights as training reads them.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "Failed to load CPU gemm_4bit_forward" not in record.msg
)
# With weights in 8 bits it tells of every product that it rounds its input: 3,900 lines in six steps.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(
    lambda record: "inputs will be cast from" not in record.msg
)

deferred.install()

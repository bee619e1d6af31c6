"""Fine-tune small language models on financial instructions, and believe the result."""

import os

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other, which is well on an idle machine and ruins a shared one: with
# something else on one of 2 cores, a chain of small products ran at 4 % of its idle rate. A thread that sleeps after
# 1,000 rounds keeps 40 % there and costs nothing measurable on an idle machine (16 to 20 rounds a second either way).
# It is read when torch loads libgomp, so finllm is imported before torch; what the user has set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

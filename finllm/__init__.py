"""Fine-tune small language models on financial instructions, and believe the result."""

import os

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other. Where something else runs on the machine too, that costs most of
# its time (small products: 0.2 against 2.3 rounds a second, 2 cores, one of them busy), so they sleep instead.
# It is read once, when torch is loaded, so finllm is imported before torch; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

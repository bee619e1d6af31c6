"""Fine-tune small language models on financial instructions, and believe the result."""

__version__ = "0.1.0"

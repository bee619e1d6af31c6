"""Base models, adapters, and their answers."""

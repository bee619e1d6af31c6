"""The search behind recipes/compare.py: which method, at which setting."""

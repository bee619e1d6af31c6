"""Metrics as `evaluate.Metric` modules: `evaluate.load("eval/metrics/rouge.py")` works without a network."""

"""One harness for every model here: likelihood, generation, metrics, and the report. Run from the checkout."""

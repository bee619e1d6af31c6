"""The transformer from scratch, kept and explained."""

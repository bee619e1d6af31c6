"""Models that this project compares itself with."""

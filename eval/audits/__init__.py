"""Whether a model's figures may be believed."""

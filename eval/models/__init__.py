"""What evaluation asks of a model, and the models that answer."""

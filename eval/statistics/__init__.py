"""How sure a figure is, and which models differ."""

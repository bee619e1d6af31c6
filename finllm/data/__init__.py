"""Raw rows to a dataset dir: rows (files, hub) → schema → clean → split → prepare."""

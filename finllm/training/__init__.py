"""From settings to a trained run dir."""

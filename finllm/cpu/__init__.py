"""What makes a CPU fast: rows end to end, fewer passes over memory, the loss, the machine."""

"""What made computed.jsonl; it is not installed."""

"""The edit inside vLLM's worker processes."""

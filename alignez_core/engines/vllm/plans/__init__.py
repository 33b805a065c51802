"""Edit plans on their way to vLLM's workers."""

"""Routes of generation: chat, completions, compare, models."""

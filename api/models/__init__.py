"""OpenAI's model list: the base model, and one model per usable profile."""

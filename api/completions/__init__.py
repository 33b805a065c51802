"""Text completions: OpenAI's older endpoint, which continues a prompt as it stands."""

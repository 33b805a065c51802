"""persona-nano: its training corpus, its training, and the measured effect of edits."""

"""persona-nano's training corpus, its training, and the measurement of what edits do to it."""

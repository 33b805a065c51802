"""Models as files: a catalogue of those that come in packages, GGUF files turned into directories, and their cache."""

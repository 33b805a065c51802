"""Models as files: the catalogue of models in packages, the conversion of GGUF files, and the cache of the results."""

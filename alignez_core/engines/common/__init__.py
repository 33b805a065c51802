"""Parts that every engine uses: checks, admission, tokens, sampling, streams, model files."""

"""Chat completions: the OpenAI shapes, and the way from a request to a stream of events."""

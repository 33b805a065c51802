"""The service around the engine: cost of HTTP and accounting, the lookup of an edit, and loads beyond limits."""

"""Cost of the service around the engine: HTTP and accounting, and the lookup of a sample-conditional edit."""

"""Engines: what runs a language model. `base` is the port, each other module one implementation."""

"""The transformers engine: one model call per step for all live requests, each in a slot."""

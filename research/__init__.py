"""Experiments outside the product: persona-nano's training, and measurements of the effect."""

"""Fits and evaluations: requests, claims, content, and publication of the result."""

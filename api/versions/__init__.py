"""Versions of a profile: immutable fits, with the evidence of how good they are."""

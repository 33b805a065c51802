"""Proof that a profile works: arms, judges, report, choice and gate.

Nothing is judged on what it was fitted or chosen on. Three arms answer the same queries with the same seeds: the bare
model, the persona as a prompt, and the candidate.
"""

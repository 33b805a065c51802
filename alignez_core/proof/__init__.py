"""Evaluation of a profile: arms, judges, choice, report and gate.

Three arms answer the same queries with the same seeds: the bare model, the persona as a prompt, and the candidate. The
queries are neither fitted nor chosen on.
"""

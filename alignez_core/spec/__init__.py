"""Fit requests as plain data: settings, personas, queries and their limits.

Imports no torch, so the control-plane API, the worker and the core share these types as they are.
"""

"""Fit requests as plain data: settings, personas, queries and limits.

Imports no torch, so that an API process without an engine can use these types.
"""

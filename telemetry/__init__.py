"""Logs, traces and metrics of all processes; imports none of them."""

"""Logs, traces and metrics of every process; knows none of them."""

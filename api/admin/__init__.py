"""Tenants, keys and the audit log; for administrators."""

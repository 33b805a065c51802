"""Aliases: which version is in use, promotion, rollback and canaries."""

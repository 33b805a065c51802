"""End users: who gets which profile."""

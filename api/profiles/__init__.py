"""Profiles: named behaviours and the fits that make them."""

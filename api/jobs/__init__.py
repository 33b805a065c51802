"""Jobs: fits in progress, and their events."""

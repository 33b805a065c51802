"""A tenant's own keys, usage counters and audit log; the operator's routes use the same shapes."""

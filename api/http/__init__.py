"""HTTP parts that no route owns: errors, fields, paging, idempotency, events, middleware."""

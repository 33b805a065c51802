"""The real stack under full load while profiles come and go, with every answer compared with its solo run.

Lasting profiles are asked every question alone first. Then requests are kept in flight: chats and text completions,
streamed or whole, greedy or sampled with a seed, with the base model or a profile, named in every way there is; some
clients hang up. Half of the clients are one tenant's, and rows are fewer than streams, so that tenants take turns.
Meanwhile profiles are fitted, promoted, rolled back, put on a canary, archived and deleted under requests in flight.
Afterwards everything else is asked alone, deleted profiles too, which SQL brings back past the triggers.
"""

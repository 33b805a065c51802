"""Everything `alignez up` runs on one machine: Postgres, Redis, and the three roles of the product."""

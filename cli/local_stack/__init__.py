"""The processes of `alignez up` on one machine: Postgres, Redis, and the three roles of the product."""

"""Waits until the Postgres of ALIGNEZ_DATABASE_URL lets us in, at most as many seconds as the first argument says."""

import sys
import time

import psycopg

from profiles.settings import DatabaseSettings, read_settings

# From a variable or a file, as the migration reads it.
url = read_settings(DatabaseSettings).database_url.replace("postgresql+psycopg://", "postgresql://", 1)
patience_s = float(sys.argv[1])
deadline = time.monotonic() + patience_s
while True:
    try:
        psycopg.connect(url, connect_timeout=5).close()
        break
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]  # names host and user, never the password
    if time.monotonic() >= deadline:
        sys.exit(
            f"no Postgres after {patience_s:g} s: {reason}\nLook at the owner's URL in its secret (database.owner), "
            "its firewall, and the chart's networkPolicy and database.external values."
        )
    print(f"waiting for Postgres: {reason}", flush=True)
    time.sleep(2)

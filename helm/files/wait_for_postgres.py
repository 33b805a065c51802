"""Waits until the Postgres of ALIGNEZ_DATABASE_URL lets us in, at most as many seconds as the first argument says."""

import os
import sys
import time

import psycopg

url = os.environ["ALIGNEZ_DATABASE_URL"].replace("postgresql+psycopg://", "postgresql://", 1)
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
            f"no Postgres after {patience_s:g} s: {reason}\nLook at the database's URL in its secret, its firewall, "
            "and the chart's networkPolicy and database.external values."
        )
    print(f"waiting for Postgres: {reason}", flush=True)
    time.sleep(2)

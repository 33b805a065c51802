"""Creates the role that the processes connect as; sets its attributes and password anew if it is there already.

The connection is the owner's (ALIGNEZ_DATABASE_URL); APPLICATION_PASSWORD is the role's. The role gets no rights here:
the migration grants them.
"""

import os
import sys

import psycopg
from psycopg import sql

from profiles.settings import DatabaseSettings, read_settings

ROLE = "alignez_app"

url = read_settings(DatabaseSettings).database_url.replace("postgresql+psycopg://", "postgresql://", 1)
password = os.environ["APPLICATION_PASSWORD"]
if not password:
    sys.exit(f"the password of {ROLE} is empty: put one into its secret (database.passwordKey)")
with psycopg.connect(url, connect_timeout=10) as connection:
    # Two jobs at once would both find no role.
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [ROLE])
    known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone()
    role = sql.Identifier(ROLE)
    if known is None:
        connection.execute(sql.SQL("CREATE ROLE {}").format(role))
    # Only its verifier is sent, so that no log of statements has the password.
    verifier = connection.pgconn.encrypt_password(password.encode(), ROLE.encode(), b"scram-sha-256").decode()
    connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD {}").format(
            role, sql.Literal(verifier)
        )
    )
print(f"role {ROLE}: {'created' if known is None else 'there already'}, password set")

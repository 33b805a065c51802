"""What `docs/operations.md` says of backups: one dump is enough, and a restored database serves the same profiles."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from cli.local_stack.postgres import find_binaries
from profiles import migrate
from profiles.fitting import claims as jobs
from profiles.models import JobStatus
from profiles.service import get_job, load_active, nearest_representations
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork, make_session_factory
from tests.factories import Factory, make_content


def run(tool: str, url: str, *arguments: str) -> None:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run([find_binaries() / tool, "-d", plain, *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture
def empty_database(owner_url: str) -> Iterator[str]:
    """Another database of the same server, without anything in it."""
    engine = create_engine(owner_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE restored TEMPLATE template0"))
        yield make_url(owner_url).set(database="restored").render_as_string(hide_password=False)
        connection.execute(text("DROP DATABASE restored WITH (FORCE)"))
    engine.dispose()


def test_a_restored_dump_serves_the_same_profiles_and_goes_on_with_the_jobs(
    committed: SessionFactory, postgres_url: str, owner_url: str, empty_database: str, tmp_path: Path
) -> None:
    with UnitOfWork.open(committed, PLATFORM) as uow:
        make = Factory(uow)
        caller = make.caller()
        content = make_content()
        version = make.ready(caller, content=content).version
        active = load_active(uow, version.id)
        near = nearest_representations(uow, version.id, content.embeddings[3], 4)
        running = make.fit(caller)
        make.claimed(running, lease_s=0.001)

    dump = tmp_path / "alignez.dump"
    run("pg_dump", owner_url, "-Fc", "-f", str(dump))
    run("pg_restore", empty_database, "--exit-on-error", str(dump))
    assert migrate.upgrade(empty_database)

    restored = make_session_factory(make_url(postgres_url).set(database="restored").render_as_string(False))
    with UnitOfWork.open(restored, PLATFORM) as uow:
        again = load_active(uow, version.id)
        for name in ("u", "v", "c"):
            assert np.array_equal(getattr(again.edits[0], name), getattr(active.edits[0], name))
        found = nearest_representations(uow, version.id, content.embeddings[3], 4)
        assert found.query_ids == near.query_ids
        assert found.help is not None
        assert near.help is not None
        assert np.array_equal(found.help, near.help)
        assert jobs.sweep(uow, 20.0) == (1, 0)
        assert get_job(uow, caller, running.job.id).status is JobStatus.QUEUED
    with pytest.raises(IntegrityError, match="immutable"), UnitOfWork.open(restored, PLATFORM) as uow:
        uow.session.execute(text("DELETE FROM profile_versions WHERE state = 'ready'"))
    restored.kw["bind"].dispose()

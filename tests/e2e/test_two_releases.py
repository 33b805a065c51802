"""An upgrade without downtime: the release before and this one, side by side on the database that this one migrated."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.processes import Processes
from cli.local_stack.broker import RedisServer
from tests.e2e.replicas import replicas_of, small_profile
from tests.worker.processes import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_ROOT = Path(__file__).parents[2]


def _git(*arguments: str) -> bytes:
    if shutil.which("git") is None:
        pytest.skip("git is not installed, so the release before is not at hand")
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, timeout=60)
    if done.returncode:
        pytest.skip(f"the release before is not in this checkout's history: {done.stderr.decode().strip()}")
    return done.stdout


def _before() -> str:
    """The newest release that this checkout came after; `ALIGNEZ_RELEASE_BEFORE` names any other commit."""
    if named := os.environ.get("ALIGNEZ_RELEASE_BEFORE"):
        return named
    tags = ("tag", "--list", "v*", "--sort=-version:refname")
    here = set(_git(*tags, "--points-at", "HEAD").decode().split())
    for tag in _git(*tags, "--merged", "HEAD").decode().split():
        if tag not in here:
            return tag
    pytest.skip("no release is tagged yet (ALIGNEZ_RELEASE_BEFORE names a commit to compare with)")


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before this one."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(_git("archive", _before()))) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def releases(postgres_url: str, release_before: Path, tmp_path: Path) -> Iterator[tuple[Processes, Processes]]:
    """The one before, and this one. `postgres_url` is at this one's newest migration."""
    folders = tmp_path / "before", tmp_path / "now"
    for folder in folders:
        folder.mkdir()
    with RedisServer(tmp_path / "redis") as redis:
        before = replicas_of(postgres_url, redis.url, folders[0], code=release_before)
        now = replicas_of(postgres_url, redis.url, folders[1])
        with before, now:
            yield before, now
    print(before.logs(), now.logs())


class Api:
    """Calls of one API process."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def create(self, name: str) -> str:
        """Asks for a profile; the job's id."""
        reply = self.client.post("/v1/profiles", json=small_profile(name))
        assert reply.status_code == 202, reply.text
        return str(reply.json()["job"]["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}").json()
        return job

    def fitted(self, job_id: str) -> None:
        wait_for(lambda: self.job(job_id)["status"] not in ("queued", "running"), 90, f"the end of job {job_id}")
        assert self.job(job_id)["status"] == "succeeded", self.job(job_id)

    def promote(self, profile: str, number: int) -> None:
        """By force: a proof this small need not show that the profile works."""
        reply = self.client.post(f"/v1/profiles/{profile}/promote", json={"version": number, "force": True})
        assert reply.status_code == 200, reply.text

    def default(self, profile: str) -> dict[str, float]:
        """Version → share of the profile's default alias."""
        shares: dict[str, float] = self.client.get(f"/v1/profiles/{profile}").json()["aliases"]["default"]
        return shares

    def answer(self, profile: str) -> str:
        body = {
            "model": f"persona-nano@{profile}",
            "messages": [{"role": "user", "content": "How do I start hiking?"}],
            "temperature": 0,
            "max_tokens": 40,
        }
        reply = self.client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["message"]["content"])


@pytest.fixture
def apis(releases: tuple[Processes, Processes], headers: dict[str, str]) -> Iterator[tuple[Api, Api]]:
    """The API of the release before, and this one's."""
    with ExitStack() as clients:

        def started(release: Processes) -> Api:
            url = release.start("api").url
            return Api(clients.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)))

        before, now = releases
        yield started(before), started(now)


def test_both_releases_serve_what_either_made(releases: tuple[Processes, Processes], apis: tuple[Api, Api]) -> None:
    before, now = releases
    old, new = apis
    assert old.client.get("/ready").json()["status"] == new.client.get("/ready").json()["status"] == "ready"

    names: list[str] = []

    def fit_with(relay: str, worker: str) -> None:
        """A profile from each API, through these two, and seen by the other."""
        for asker, watcher, name in ((old, new, "old"), (new, old, "new")):
            names.append(f"{name}-api-{relay}-relay-{worker}-worker")
            watcher.fitted(asker.create(names[-1]))

    relay, worker = before.start("relay"), before.start("worker")
    fit_with("old", "old")
    assert worker.end() == 0
    worker = now.start("worker")
    fit_with("old", "new")
    assert relay.end() == worker.end() == 0
    now.start("relay")
    worker = before.start("worker")
    fit_with("new", "old")
    assert worker.end() == 0
    now.start("worker")
    fit_with("new", "new")

    for api in (old, new):
        assert sorted(row["name"] for row in api.client.get("/v1/profiles").json()["data"]) == sorted(names)
    for name in names:
        new.promote(name, 1)
        assert old.answer(name) == new.answer(name)

    name = names[0]
    second_version = new.client.post(f"/v1/profiles/{name}/versions", json={}).json()["job"]["id"]
    old.fitted(second_version)
    new.promote(name, 2)
    assert new.default(name) == {"2": 1.0}
    assert old.client.post(f"/v1/profiles/{name}/rollback").status_code == 200
    assert new.default(name) == {"1": 1.0}
    old.promote(name, 2)
    assert new.default(name) == {"2": 1.0}
    assert old.answer(name) == new.answer(name)

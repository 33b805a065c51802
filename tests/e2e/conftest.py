"""`alignez up` as a user runs it: a process of its own, with the shipped model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from profiles.service import KeySpec, create_key, create_tenant
from profiles.uow import PLATFORM, SessionFactory, UnitOfWork
from tests.worker.processes import wait_for

_ROOT = Path(__file__).parents[2]
READY_S = 180.0
#: Where a test needs a fit, whatever it is worth: one form of the edit, no choice, a proof that takes no time.
SMALL_FIT: dict[str, Any] = {
    "method": "distill", "contrast": 1, "answers": 8, "tune_queries": 0, "held_out_queries": 6, "answer_tokens": 24
}  # fmt: skip
#: The same of the paper's method, whose requests look their neighbours up.
SMALL_ALIGNEZ: dict[str, Any] = {
    "method": "alignez", "neighbors": 4, "tune_queries": 0, "held_out_queries": 6, "answer_tokens": 24
}  # fmt: skip


@dataclass
class Up:
    """One `alignez up` and what a client needs of it.

    Args:
        prefix: what the command runs under, such as `setpriv`. settings: environment variables.
        model: what `--model` takes; None: the shipped one.
    """

    data_dir: Path
    prefix: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> Up:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ALIGNEZ_")}
        environment |= {"OMP_NUM_THREADS": "1", "HOME": str(self.data_dir.parent), **self.settings}
        command = [sys.executable, "-m", "cli.main", "up", "--port", "0", "--data-dir", str(self.data_dir)]
        command += ["--model", self.model] if self.model else []
        with (self.data_dir.parent / f"up-{self.data_dir.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *command], cwd=_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        wait_for(lambda: self.process.poll() is not None or self.run_file.exists(), READY_S, "run.json")
        assert self.process.poll() is None, self.output()
        return self

    @property
    def run_file(self) -> Path:
        return self.data_dir / "run.json"

    @property
    def run(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.run_file.read_text())
        return content

    @property
    def key(self) -> str:
        return Path(self.run["key_file"]).read_text().strip()

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.run["url"], headers={"Authorization": f"Bearer {self.key}"}, timeout=60, trust_env=False
        )

    def output(self) -> str:
        return (self.data_dir.parent / f"up-{self.data_dir.name}.log").read_text()

    def family(self) -> list[psutil.Process]:
        """Every process that belongs to the stack."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def create(self, name: str, **body: Any) -> str:
        """Asks for a profile; the job's id."""
        with self.client() as client:
            reply = client.post(
                "/v1/profiles",
                json={"name": name, "persona": {"preferred": "cheerful", "dispreferred": "gloomy"}, **body},
            )
            assert reply.status_code == 202, reply.text
            return str(reply.json()["job"]["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as the API shows it; a server that is away is asked again."""

        def ask() -> dict[str, Any] | None:
            try:
                with self.client() as client:
                    reply = client.get(f"/v1/jobs/{job_id}")
            except httpx.HTTPError:
                return None
            return reply.json() if reply.status_code == 200 else None

        found: dict[str, Any] = wait_for(ask, 60, "an answer about the job")
        return found

    def finished(self, job_id: str, seconds: float = 150) -> dict[str, Any]:
        """The job once it has ended."""

        def ended() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in ("succeeded", "failed", "cancelled") else None

        found: dict[str, Any] = wait_for(ended, seconds, f"the end of job {job_id}")
        return found

    def version(self, profile: str, number: int = 1) -> dict[str, Any]:
        """A version as the API shows it."""
        with self.client() as client:
            found: dict[str, Any] = client.get(f"/v1/profiles/{profile}/versions/{number}").json()
        return found

    def queries(self, profile: str) -> list[str]:
        """Every query that was given for the first version; the bank's, which judge it, are left out."""
        texts: list[str] = []
        cursor = None
        with self.client() as client:
            while True:
                query = {"limit": 100} | ({"cursor": cursor} if cursor else {})
                page = client.get(f"/v1/profiles/{profile}/versions/1/pairs", params=query).json()
                texts += [row["query"] for row in page["data"] if row["source"] != "bank"]
                cursor = page["next"]
                if cursor is None:
                    return texts


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One running stack for the tests that leave it as it was."""
    up = Up(tmp_path_factory.mktemp("stack") / "data").start()
    yield up
    up.stop()


@pytest.fixture
def headers(committed: SessionFactory) -> dict[str, str]:
    """Of a tenant's requests, on the test session's database."""
    with UnitOfWork.open(committed, PLATFORM) as uow:
        _, secret = create_key(uow, create_tenant(uow, f"tenant {time.time_ns()}").id, KeySpec("member", "test"))
    return {"Authorization": f"Bearer {secret}"}

"""Files of the one-machine stack, and the server that a client command talks to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cli.errors import CliError
from cli.files import write_atomically
from profiles.data_dir import default_data_dir, default_model_cache

__all__ = ["Connection", "RunInfo", "default_data_dir", "default_model_cache", "resolve_connection"]


@dataclass(frozen=True)
class RunInfo:
    """A running stack as others see it, in `run.json` of its data directory.

    Args:
        url: of the REST API.
        admin_key_file: file that holds an admin key.
        metrics_url: Prometheus endpoint of the API.
        pids: role → process id: api, worker, relay, postgres, broker (null: a server of your own), and worker-2, …
            for further workers.
        pid: the `alignez up` process.
        metrics_urls: role → Prometheus endpoint: api, worker, relay, and worker-2, … for further workers.
    """

    url: str
    admin_key_file: str
    metrics_url: str
    pids: dict[str, int | None] = field(default_factory=dict)
    pid: int = 0
    metrics_urls: dict[str, str] = field(default_factory=dict)

    def write(self, data_dir: Path) -> None:
        """Replace `run.json` in one step, so that a reader never sees half of it."""
        write_atomically(data_dir / "run.json", json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, data_dir: Path) -> RunInfo | None:
        """The stack of this data directory; None when none was started there or the file is not ours."""
        try:
            content = json.loads((data_dir / "run.json").read_text(encoding="utf-8"))
            return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None
        except PermissionError:
            raise CliError(
                f"{data_dir / 'run.json'} belongs to another user: run as that user, or pass --url and --key"
            ) from None


@dataclass(frozen=True)
class Connection:
    """Address of the API, and a key."""

    url: str
    key: str


def resolve_connection(url: str | None, key: str | None, data_dir: Path | None) -> Connection:
    """The server to talk to: what was given (option, or `ALIGNEZ_URL` / `ALIGNEZ_KEY`), else the running local stack.

    A key is taken from the local stack only for that stack's own URL: it must not travel to another server.

    Raises: CliError: there is no server or no key, with what to do.
    """
    run = RunInfo.read(data_dir or default_data_dir())
    if url is None:
        if run is None:
            raise CliError(
                f"no running stack in {data_dir or default_data_dir()}: start one with `alignez up`, or name a server "
                "with --url and --key (ALIGNEZ_URL, ALIGNEZ_KEY)"
            )
        url = run.url
    url = url.strip().rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise CliError(f"--url {url!r} is no address: it begins with http:// or https://")
    url = url.removesuffix("/v1")
    if key is None and run is not None and run.url == url:
        try:
            key = Path(run.admin_key_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CliError(f"the key file {run.admin_key_file} cannot be read ({error.strerror}): pass --key") from None
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CliError("--key holds characters that no key has: copy it again")
    if not key:
        raise CliError(f"no key for {url}: pass --key or set ALIGNEZ_KEY (`alignez keys create` makes one)")
    return Connection(url, key)

"""Files of the one-machine stack, and the server that a client command talks to."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cli.errors import CliError
from profiles.data_dir import default_data_dir, default_model_cache

__all__ = ["Connection", "RunInfo", "default_data_dir", "default_model_cache", "resolve_connection", "write_atomically"]


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Writes a file completely or not at all, readable by its owner only."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(path)


@dataclass(frozen=True)
class RunInfo:
    """A running stack, as `run.json` of its data directory describes it.

    Args:
        url: URL of the REST API.
        key_file: file that holds an operator key.
        metrics_url: Prometheus endpoint of the API.
        pids: role → process id: api, worker, relay, postgres, broker (null: the user's own server), and worker-2, …
            for further workers.
        pid: the `alignez up` process.
        metrics_urls: role → Prometheus endpoint: api, worker, relay, and worker-2, … for further workers.
    """

    url: str
    key_file: str
    metrics_url: str
    pids: dict[str, int | None] = field(default_factory=dict)
    pid: int = 0
    metrics_urls: dict[str, str] = field(default_factory=dict)

    def write(self, data_dir: Path) -> None:
        """Replaces `run.json` in one step, so that a reader never sees a part of it."""
        write_atomically(data_dir / "run.json", json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, data_dir: Path) -> RunInfo | None:
        """The stack of this data directory; None if none runs there or the file is malformed.

        Raises: CliError: another user owns the file.
        """
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
    """Address of the API, and an API key."""

    url: str
    key: str


def resolve_connection(url: str | None, key: str | None, data_dir: Path | None) -> Connection:
    """The given server and key (options, or `ALIGNEZ_URL` / `ALIGNEZ_KEY`), else those of the running local stack.

    The local stack's key is used for that stack's own URL only: it must not be sent to another server.

    Raises: CliError: no server or no key is known, or one of them is malformed.
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
        raise CliError(f"--url {url!r} is not an address: it must begin with http:// or https://")
    url = url.removesuffix("/v1")
    if key is None and run is not None and run.url == url:
        try:
            key = Path(run.key_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CliError(f"the key file {run.key_file} cannot be read ({error.strerror}): pass --key") from None
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CliError("--key has characters that are not allowed in a key: copy it again")
    if not key:
        raise CliError(f"no key for {url}: pass --key or set ALIGNEZ_KEY (`alignez keys create` makes one)")
    return Connection(url, key)

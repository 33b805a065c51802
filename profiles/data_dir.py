"""Default directories of data and models, shared by all processes and the command line."""

from __future__ import annotations

import os
from pathlib import Path


def default_data_dir() -> Path:
    """`$ALIGNEZ_DATA_DIR`, else `alignez` in the user's data directory (`$XDG_DATA_HOME`, `~/.local/share`).

    Every command finds the running stack there, whatever its working directory.
    """
    if given := os.environ.get("ALIGNEZ_DATA_DIR"):
        return Path(given).expanduser()
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "alignez"


def default_model_cache(data_dir: Path | None = None) -> Path:
    """Directory of converted models: `$ALIGNEZ_MODEL_CACHE`, else `models` in the data directory."""
    if given := os.environ.get("ALIGNEZ_MODEL_CACHE"):
        return Path(given).expanduser()
    return (data_dir or default_data_dir()) / "models"

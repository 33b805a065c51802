"""Which environment variables the processes read, taken from their settings classes."""

from __future__ import annotations

import os
from functools import lru_cache
from unittest import mock

from pydantic import AliasChoices, ValidationError
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from profiles.settings import DatabaseSettings
from worker.settings import WorkerSettings

#: By the word after `alignez` on the command line.
PROCESSES: dict[str, tuple[type[BaseSettings], ...]] = {
    "api": (ApiSettings, DatabaseSettings),
    "worker": (WorkerSettings, DatabaseSettings),
    "relay": (WorkerSettings, DatabaseSettings),
    "migrate": (DatabaseSettings,),
}


def names(settings: type[BaseSettings]) -> set[str]:
    """The environment variables that one class reads: prefix and field, or the field's aliases in their place."""
    prefix = settings.model_config["env_prefix"]
    found: set[str] = set()
    for field, info in settings.model_fields.items():
        if isinstance(info.validation_alias, AliasChoices):
            found |= {str(choice) for choice in info.validation_alias.choices if str(choice).startswith("ALIGNEZ_")}
        else:
            found.add(f"{prefix}{field}".upper())
    return found


def unknown(process: str, variables: set[str]) -> set[str]:
    """Those that the process would not read."""
    return variables - set[str]().union(*(names(each) for each in PROCESSES[process]))


def read(settings: type[BaseSettings], environment: dict[str, str]) -> BaseSettings:
    """The settings that a process with this environment, and no other variable, would have."""
    with mock.patch.dict(os.environ, environment, clear=True):
        return settings()


def invalid(process: str, environment: dict[str, str]) -> tuple[str, ...]:
    """What the settings classes say against the values."""
    return _invalid(process, tuple(sorted(environment.items())))


@lru_cache(maxsize=4096)
def _invalid(process: str, environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Cached by content: the releases of a matrix share most of their settings."""
    complaints: list[str] = []
    for settings in PROCESSES[process]:
        try:
            read(settings, dict(environment))
        except ValidationError as error:
            complaints += [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return tuple(complaints)

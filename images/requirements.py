"""The packages of an image, from the project's own files. For the Dockerfile; needs the standard library only.

requirements.py packages pyproject.toml torch transformers    the project's dependencies without these
requirements.py constraints constraints-vllm.txt              its pins, except for installed packages
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path


def packages(pyproject: Path, without: Collection[str]) -> Iterator[str]:
    """The dependencies of a pyproject.toml without some names. Raises: SystemExit: one of these is no dependency."""
    requirements = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    unknown = {_normalised(name) for name in without} - {_normalised(each) for each in requirements}
    if unknown:
        sys.exit(f"{pyproject} does not depend on {', '.join(sorted(unknown))}: update the Dockerfile")
    left_out = {_normalised(name) for name in without}
    yield from (each for each in requirements if _normalised(each) not in left_out)


def constraints(lines: Iterable[str], installed: Mapping[str, str]) -> Iterator[str]:
    """Pins of the base image's packages, which fit its CUDA and vLLM, then of our file for all others."""
    yield from (f"{name}=={version}" for name, version in sorted(installed.items()))
    for line in lines:
        pin = line.partition("#")[0].strip()
        if pin and _normalised(pin) not in installed:
            yield pin


def installed_versions() -> dict[str, str]:
    """Normalised name → version of all packages in this interpreter's environment."""
    # A local version such as 2.13.0+cu129 is in no index, but the constraint has to name it.
    return {_normalised(each.metadata["Name"]): each.version for each in distributions() if each.metadata["Name"]}


def _normalised(requirement: str) -> str:
    """The name in a requirement, normalised as in package indexes."""
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def main(arguments: list[str]) -> None:
    """Prints packages or constraints, one per line."""
    command, file, *rest = arguments
    if command == "packages":
        lines = packages(Path(file), rest)
    elif command == "constraints":
        lines = constraints(Path(file).read_text(encoding="utf-8").splitlines(), installed_versions())
    else:
        sys.exit(__doc__)
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Software bill of materials of an image: its Python packages as CycloneDX 1.6 JSON. Needs no network.

python -m images.sbom environment alignez-control
    every package of this interpreter's environment, for the Dockerfile
python -m images.sbom pinned alignez-control pyproject.toml constraints.txt torch transformers
    what the Dockerfile will install, except for the named packages, without an image: versions are the constraints
    file's, dependencies and licences those of the packages that are installed here
"""

from __future__ import annotations

import json
import sys
import tomllib
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from images.licences import Policy, declared_by, licence_of, pins
from images.requirements import packages


@dataclass(frozen=True)
class Package:
    """One package of an image. Args: needs: names of packages of the same image."""

    name: str
    version: str
    distribution: Distribution
    needs: tuple[str, ...]


def environment() -> dict[str, Distribution]:
    """Normalised name → package of this interpreter's environment."""
    # The first one of a name is the one that Python imports.
    found = [(canonicalize_name(each.metadata["Name"]), each) for each in distributions() if each.metadata["Name"]]
    return dict(reversed(found))


def installed(known: Mapping[str, Distribution]) -> list[Package]:
    """Every package of an environment. Needs of packages that are not there, such as torch, are left out."""
    return [
        Package(name, each.version, each, tuple(need for need, _ in _needs(each, ()) if need in known))
        for name, each in known.items()
    ]


def pinned(
    requirements: Iterable[str],
    versions: Mapping[str, str],
    known: Mapping[str, Distribution],
    without: Collection[str],
) -> list[Package]:
    """The requirements and all that they need, in pinned versions.

    Args:
        versions: normalised name → version of a constraints file. without: packages that the image leaves out or that
            its base image has.
    Raises: SystemExit: a package is not pinned, or not installed here.
    """
    left_out = {canonicalize_name(name) for name in without}
    extras: dict[str, set[str]] = {}
    needs: dict[str, set[str]] = {}
    waiting = [(canonicalize_name(each.name), each.extras) for each in map(Requirement, requirements) if _applies(each)]
    while waiting:
        name, asked = waiting.pop()
        if name in left_out or (name in extras and asked <= extras[name]):
            continue
        if name not in versions or name not in known:
            sys.exit(f"{name} is not {'installed here' if name in versions else 'pinned'}: its part cannot be listed")
        extras.setdefault(name, set()).update(asked)
        found = [each for each in _needs(known[name], extras[name]) if each[0] not in left_out]
        needs[name] = {need for need, _ in found}
        waiting += found
    return [Package(name, versions[name], known[name], tuple(found)) for name, found in needs.items()]


def _needs(package: Distribution, extras: Collection[str]) -> Iterator[tuple[NormalizedName, set[str]]]:
    """Names and extras that a package requires on this platform."""
    for each in map(Requirement, package.requires or ()):
        if _applies(each) or any(_applies(each, extra) for extra in extras):
            yield canonicalize_name(each.name), each.extras


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def document(image: str, version: str, found: Iterable[Package], direct: Collection[str]) -> dict[str, Any]:
    """The CycloneDX document, the same for the same packages. Args: direct: names that the image asks for itself."""
    listed = sorted(found, key=lambda each: each.name)
    refs = {each.name: f"pkg:pypi/{each.name}@{quote(each.version, safe='')}" for each in listed}
    names = Policy.read().names
    needs = [{"ref": image, "dependsOn": sorted(refs[name] for name in direct if name in refs)}]
    needs += [{"ref": refs[each.name], "dependsOn": sorted(refs[name] for name in each.needs)} for each in listed]
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": image, "name": image, "version": version},
            "lifecycles": [{"phase": "build"}],
        },
        "components": [_component(each, refs[each.name], names) for each in listed],
        "dependencies": needs,
        # Packages of the operating system and of the base image are not listed.
        "compositions": [{"aggregate": "incomplete", "assemblies": [image]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {**content, "serialNumber": f"urn:uuid:{serial}"}


def _component(package: Package, ref: str, names: Mapping[str, str]) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library", "bom-ref": ref, "name": package.name, "version": package.version, "purl": ref,
    }  # fmt: skip
    declared = declared_by(package.distribution)
    licence = licence_of(declared, names)
    if licence is not None:
        component["licenses"] = [{"expression": licence}]
    elif declared.names:
        component["licenses"] = [{"license": {"name": declared.names[0]}}]
    return component


def main(arguments: list[str]) -> None:
    """Prints the document."""
    match arguments:
        case ["environment", image]:
            known = environment()
            found, direct, version = installed(known), ["alignez"], known["alignez"].version
        case ["pinned", image, pyproject, constraints, *without]:
            requirements = list(packages(Path(pyproject), without))
            known = environment()
            versions = pins(Path(constraints).read_text(encoding="utf-8").splitlines())
            found = pinned(requirements, versions, known, without)
            direct = [canonicalize_name(Requirement(each).name) for each in requirements]
            version = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]["version"]
        case _:
            sys.exit(__doc__)
    print(json.dumps(document(image, version, found, direct), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])

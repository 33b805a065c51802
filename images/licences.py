"""Licences of every pinned package, checked against `audit.toml`. Needs no network.

python -m images.licences artifacts/licences.json constraints.txt --environment .venv
python -m images.licences artifacts/licences-vllm.json constraints-vllm.txt --report artifacts/pins-vllm.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

_POLICY = Path(__file__).with_name("audit.toml")
#: A longer `License` field is the licence's text, not its name.
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Declared:
    """What a package's metadata says about its licence. Args: names: by reliability, the best one first."""

    version: str
    expression: str | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """The content of `audit.toml`.

    Args:
        allowed: SPDX identifier → reason. names: a name in metadata → SPDX expression.
        packages: package → its entry, with `licence` and `reason`.
    """

    allowed: Mapping[str, str]
    names: Mapping[str, str]
    packages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = _POLICY) -> Policy:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls(content["allowed"], content["names"], content.get("packages", {}))


@dataclass(frozen=True)
class Finding:
    """One pinned package. Args: problem: None if its licence is allowed."""

    name: str
    version: str
    licence: str | None
    problem: str | None


def pins(lines: Iterable[str]) -> dict[str, str]:
    """Normalised name → version of a constraints file."""
    found = (line.partition("#")[0].strip().partition("==") for line in lines)
    return {canonicalize_name(name): version for name, _, version in found if name}


def installed(environment: Path) -> dict[str, Declared]:
    """The packages of a virtual environment."""
    folders = [str(folder) for folder in environment.glob("lib*/python*/site-packages")]
    return {canonicalize_name(each.metadata["Name"]): declared_by(each) for each in distributions(path=folders)}


def declared_by(package: Distribution) -> Declared:
    """What an installed package declares."""
    expression, name, classifiers = (
        package.metadata.get_all(field) or [] for field in ("License-Expression", "License", "Classifier")
    )
    return _declared(package.version, next(iter(expression), None), next(iter(name), None), classifiers)


def reported(report: Mapping[str, Any]) -> dict[str, Declared]:
    """The packages of a report that `pip install --dry-run --report` wrote."""
    found: dict[str, Declared] = {}
    for meta in (each["metadata"] for each in report["install"]):
        declared = _declared(
            meta["version"], meta.get("license_expression"), meta.get("license"), meta.get("classifier", ())
        )
        found[canonicalize_name(meta["name"])] = declared
    return found


def _declared(version: str, expression: str | None, name: str | None, classifiers: Iterable[str]) -> Declared:
    """Args: name: the field `License`, a name or a whole text. classifiers: all, on licences and other things."""
    names = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")]
    classes = " AND ".join(sorted(set(names) - {"OSI Approved", "DFSG approved"}))
    line = " ".join((name or "").split())
    return Declared(version, expression, tuple(each for each in (line[:_LONGEST_NAME], classes) if each))


def check(pinned: Mapping[str, str], known: Mapping[str, Declared], policy: Policy) -> list[Finding]:
    """One finding per pin, in the order of names."""
    return [_check(name, version, known.get(name), policy) for name, version in sorted(pinned.items())]


def _check(name: str, version: str, declared: Declared | None, policy: Policy) -> Finding:
    if declared is None or declared.version.partition("+")[0] != version.partition("+")[0]:
        got = "not installed" if declared is None else f"installed is {declared.version}"
        return Finding(name, version, None, f"its metadata is not here ({got})")
    licence = licence_of(declared, policy.names)
    entry = policy.packages.get(name)
    if entry is not None:
        if licence not in (None, entry["licence"]):
            return Finding(name, version, licence, f"audit.toml allows it as {entry['licence']}")
        return Finding(name, version, entry["licence"], None)
    if licence is None:
        names = " / ".join(declared.names) or "nothing"
        return Finding(name, version, None, f"unknown licence, its metadata says: {names}")
    problem = None if allows(licence, policy.allowed) else "not allowed by audit.toml"
    return Finding(name, version, licence, problem)


def licence_of(declared: Declared, names: Mapping[str, str]) -> str | None:
    """An SPDX expression; None if the metadata names no licence that is known."""
    for name in (declared.expression, *declared.names):
        if name is None:
            continue
        parts = [names.get(part, part) for part in ([name] if name in names else name.split(" AND "))]
        try:
            return str(canonicalize_license_expression(" AND ".join(parts)))
        except InvalidLicenseExpression:
            continue
    return None


def allows(expression: str, allowed: Mapping[str, str]) -> bool:
    """True if an SPDX expression in canonical form permits use under `allowed` licences alone."""
    tokens = re.findall(r"[()]|[^\s()]+", expression)

    def either() -> bool:
        verdict = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            verdict = both() or verdict
        return verdict

    def both() -> bool:
        verdict = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            verdict = one() and verdict
        return verdict

    def one() -> bool:
        token = tokens.pop(0)
        if token == "(":
            verdict = either()
            tokens.pop(0)
            return verdict
        if tokens and tokens[0] == "WITH":  # an exception permits more than the licence
            del tokens[:2]
        return token in allowed

    return either()


def main(arguments: Sequence[str]) -> int:
    """Writes the list; returns 1 if a licence is not allowed or not known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("constraints", type=Path)
    parser.add_argument("--environment", type=Path, action="append", default=[])
    parser.add_argument("--report", type=Path, action="append", default=[])
    given = parser.parse_args(arguments)
    known: dict[str, Declared] = {}
    for report in given.report:
        known |= reported(json.loads(report.read_text(encoding="utf-8")))
    for environment in given.environment:
        known |= installed(environment)
    findings = check(pins(given.constraints.read_text(encoding="utf-8").splitlines()), known, Policy.read())
    given.list.parent.mkdir(parents=True, exist_ok=True)
    given.list.write_text(json.dumps([asdict(each) for each in findings], indent=1) + "\n", encoding="utf-8")
    wrong = [each for each in findings if each.problem is not None]
    for each in wrong:
        print(f"{each.name} {each.version}: {each.licence or 'no licence'}: {each.problem}", file=sys.stderr)
    print(f"{given.constraints}: {len(findings) - len(wrong)} of {len(findings)} licences are allowed ({given.list})")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

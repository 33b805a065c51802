"""checkov on rendered releases, and the waivers of `checkov_waivers.toml`: which finding is accepted, and why."""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helm.charts import Manifest

ROOT = Path(__file__).parents[2]
WAIVERS = Path(__file__).with_name("checkov_waivers.toml")

_SHORTEST_REASON = 40


@dataclass(frozen=True, order=True)
class Finding:
    """A failed check: its id and title, the values file that was rendered, and the object as `Kind/component`."""

    check: str
    title: str
    profile: str
    object: str


@dataclass(frozen=True)
class Waiver:
    """Findings of one check that are accepted. `objects` and `profiles` are patterns (`*`); each has to match some."""

    check: str
    objects: tuple[str, ...]
    profiles: tuple[str, ...]
    reason: str

    def covers(self, finding: Finding) -> bool:
        return (
            finding.check == self.check
            and any(fnmatch.fnmatchcase(finding.object, each) for each in self.objects)
            and any(fnmatch.fnmatchcase(finding.profile, each) for each in self.profiles)
        )


def waivers(text: str) -> list[Waiver]:
    """The waivers of a file. Raises: ValueError: one has no reason."""
    found = []
    for each in tomllib.loads(text)["waiver"]:
        waiver = Waiver(each["check"], tuple(each["objects"]), tuple(each["profiles"]), each["reason"].strip())
        if len(waiver.reason) < _SHORTEST_REASON:
            raise ValueError(f"the waiver of {waiver.check} gives no reason")
        found.append(waiver)
    return found


def unexplained(findings: Iterable[Finding], accepted: Iterable[Waiver]) -> list[Finding]:
    """Findings that no waiver covers."""
    accepted = list(accepted)
    return sorted(each for each in findings if not any(waiver.covers(each) for waiver in accepted))


def unneeded(findings: Iterable[Finding], accepted: Iterable[Waiver]) -> list[str]:
    """Waivers, and single patterns of them, that cover nothing any more."""
    findings = list(findings)
    complaints = []
    for waiver in accepted:
        covered = [each for each in findings if waiver.covers(each)]
        for pattern in waiver.objects:
            if not any(fnmatch.fnmatchcase(each.object, pattern) for each in covered):
                complaints.append(f"{waiver.check}: no finding of {pattern}; remove it")
        for pattern in waiver.profiles:
            if not any(fnmatch.fnmatchcase(each.profile, pattern) for each in covered):
                complaints.append(f"{waiver.check}: no finding in {pattern}; remove it")
    return complaints


def command() -> Path | None:
    """checkov of $CHECKOV (`make helm-check` sets it) or of `.venv-checkov`; None if it is not installed."""
    path = ROOT / os.environ.get("CHECKOV", ".venv-checkov/bin/checkov")
    return path if path.exists() else None


def findings(releases: Mapping[str, list[Manifest]], program: Path, folder: Path) -> list[Finding]:
    """The failed checks of some releases, by name of their values file. Asks no network.

    Raises: RuntimeError: checkov did not read all objects.
    """
    for name, manifests in releases.items():
        (folder / name).mkdir()
        text = yaml.safe_dump_all(manifests)
        (folder / name / "release.yaml").write_text(text, encoding="utf-8")
    arguments = ["--framework", "kubernetes", "--skip-download", "--compact", "--quiet", "--output", "json"]
    done = subprocess.run(
        [program, *arguments, "--directory", "."], cwd=folder, capture_output=True, text=True, check=False, timeout=240
    )
    try:
        report: dict[str, Any] = json.loads(done.stdout)
        summary = report["summary"]
    except (ValueError, KeyError) as error:
        raise RuntimeError(f"checkov failed: {done.stderr[-2000:]}") from error
    if summary["parsing_errors"] or not summary["passed"]:
        raise RuntimeError(f"checkov did not read all objects: {summary}")
    return sorted(
        Finding(each["check_id"], each["check_name"], Path(each["file_path"]).parts[1], _object(each["resource"]))
        for each in report["results"]["failed_checks"]
    )


def _object(resource: str) -> str:
    """`Kind/component` of checkov's `Kind.namespace.release-alignez-component`."""
    kind, _, name = resource.split(".", 2)
    return f"{kind}/{name.removeprefix('rel-alignez-')}"
